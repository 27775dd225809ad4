//! The settings of upstreams: address, time limits, and the credentials that each gets.

use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hyper::header::{AUTHORIZATION, HeaderName, HeaderValue};
use tokio_rustls::rustls::pki_types::ServerName;
use url::Url;

use super::check::Check;
use super::dialect::Dialects;
use super::listener::is_own_listener;
use super::origin::missing_scheme;
use super::upstream_preset::upstream_preset;
use super::{CertificateAuthority, DialectSpec, Route, Secret, UpstreamPreset, fold, is_loopback_name};
use crate::config::{self, AuthMode, Config, HostHeader, Time, TokenToHttp, shown_url};

/// The settings of an upstream.
#[derive(Clone, Debug, PartialEq)]
pub struct UpstreamSpec {
    /// The URL as it is in the configuration, for messages.
    pub url: String,
    /// The preset of a known backend.
    pub preset: Option<UpstreamPreset>,
    /// The address to connect to.
    pub address: UpstreamAddress,
    /// The value of `Host`, unless the client's is sent.
    pub authority: String,
    /// The setting that decides whose `Host` the upstream gets.
    pub host_header: HostHeader,
    /// The timeout for establishing a connection.
    pub connect_timeout: Duration,
    /// The timeout for the answer to a WebSocket upgrade.
    pub handshake_timeout: Duration,
    /// The timeout for the head of a response.
    pub response_timeout: Duration,
    /// The time that an idle connection is kept.
    pub pool_idle_timeout: Duration,
    /// Whether connections are reused.
    pub reuse: bool,
    /// Whether HTTP requests carry the verified token.
    pub token_to_http: TokenToHttp,
    /// The place of the verified token on WebSocket upgrades.
    pub token_to_websocket: TokenToUpgrade,
    /// The backend's own secret, which is sent for verified users only.
    pub credential: Option<CredentialSpec>,
}

impl UpstreamSpec {
    /// Returns whether it gets the verified token of an upgrade, or of any other request.
    #[must_use]
    pub fn wants_token(&self, is_websocket: bool) -> bool {
        if is_websocket {
            self.token_to_websocket != TokenToUpgrade::None
        } else {
            self.token_to_http != TokenToHttp::None
        }
    }

    /// Returns the secret that the pages of a known backend send back in `Authorization: token …` and `?token=…`,
    /// because the backend writes its own secret into them. It is no credential of a user, so it counts as absent and
    /// the session cookie decides.
    pub(super) fn secret_in_pages(&self) -> Option<Secret> {
        let credential = self.credential.as_ref().filter(|_| self.preset.is_some())?;
        if credential.header != AUTHORIZATION {
            return None;
        }
        let (_, secret) = credential.value.to_str().ok()?.split_once(' ')?;
        Some(Secret::new(secret.as_bytes().to_vec()))
    }
}

/// The address of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpstreamAddress {
    /// A name or an address, and a port.
    Tcp {
        /// The host to resolve, without brackets.
        host: String,
        /// The port to connect to.
        port: u16,
        /// The verification of its certificate, if it uses TLS.
        tls: Option<UpstreamTls>,
    },
    /// A Unix socket.
    Unix(PathBuf),
}

/// The settings for verifying the certificate of an upstream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UpstreamTls {
    /// The name that the certificate must be for.
    pub server_name: String,
    /// An additional certificate authority.
    pub authority: Option<CertificateAuthority>,
}

/// The place of the verified token on an upgrade to the upstream.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenToUpgrade {
    /// None: the token is not sent.
    None,
    /// `Authorization`, as a Bearer token.
    Header,
    /// This query parameter.
    Query(String),
    /// A first message in this dialect, which the proxy sends after the upstream's 101.
    FirstMessage(Arc<DialectSpec>),
}

/// A header that the backend demands. Its value is never printed.
#[derive(Clone, PartialEq, Eq)]
pub struct CredentialSpec {
    /// The name of the header.
    pub header: HeaderName,
    /// The value of the header, marked sensitive.
    pub value: HeaderValue,
}

impl std::fmt::Debug for CredentialSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CredentialSpec").field("header", &self.header).finish_non_exhaustive()
    }
}

/// An upstream, and the dialect of its first message with the place of that key.
type Written = (UpstreamSpec, Option<(String, String)>);

/// All upstreams, and the index of the one that each route uses.
pub(super) struct Upstreams {
    pub(super) specs: Vec<UpstreamSpec>,
    /// The dialect in which users are authenticated to each upstream, as configured, and the place of that key.
    first_messages: Vec<Option<(String, String)>>,
    pub(super) of_route: Vec<usize>,
}

impl Check {
    pub(super) fn upstreams(&mut self, config: &Config) -> Option<Upstreams> {
        let Some(upstream) = &config.upstream else {
            self.error("upstream", "is missing: where is the backend? Write upstream: http://127.0.0.1:8000");
            return None;
        };
        let first = self.upstream(config, "upstream", upstream);
        let mut further: Vec<Written> = Vec::new();
        let mut of_route = Vec::new();
        for (index, route) in config.routes.iter().enumerate() {
            let Some(upstream) = &route.upstream else {
                of_route.push(0);
                continue;
            };
            let at = format!("routes[{index}].upstream");
            if route.auth == AuthMode::Deny {
                self.error(&at, "is never reached: the rule says auth: deny");
            }
            let found = self.upstream(config, &at, upstream)?;
            // Routes with the same settings share their connections. The dialect of a first message is one of these, though
            // it is not in the settings yet.
            let dialect = |(_, first_message): &Written| first_message.as_ref().map(|(dialect, _)| dialect.clone());
            let is_same = |known: &Written| known.0 == found.0 && dialect(known) == dialect(&found);
            let known = further.iter().position(is_same).unwrap_or_else(|| {
                further.push(found);
                further.len() - 1
            });
            of_route.push(known + 1);
        }
        let all = std::iter::once(first?).chain(further);
        let (specs, first_messages) = all.unzip();
        Some(Upstreams { specs, first_messages, of_route })
    }

    fn upstream(&mut self, config: &Config, at: &str, upstream: &config::Upstream) -> Option<Written> {
        let Some(text) = &upstream.url else {
            self.error(at, "has no url; write upstream: { url: http://127.0.0.1:8000 }");
            return None;
        };
        let path = format!("{at}.url");
        let (mut address, authority) = self.ok_or_report(&path, upstream_address(text))?;
        self.upstream_tls(at, upstream, &mut address);
        if let UpstreamAddress::Tcp { host, port, .. } = &address
            && is_own_listener(config, host, *port)
        {
            self.error(
                &path,
                "is the address at which this proxy itself listens (listen); write that of the backend, and let the two have different ports",
            );
        } else if let UpstreamAddress::Tcp { host, .. } = &address
            && host.parse::<IpAddr>().is_ok_and(|address| address.is_unspecified())
        {
            self.warn_at(
                &path,
                format!(
                    "{host} is an address to listen on, not one to connect to; write 127.0.0.1, and let the backend listen there too: at {host} other machines reach it, and can name any user"
                ),
            );
        } else if let UpstreamAddress::Tcp { host, tls: None, .. } = &address
            && !is_loopback_name(host)
        {
            self.warn_at(
                &path,
                format!(
                    "{host} is not this machine, and http:// is not encrypted: anyone on the network in between can read the requests and name any user; write https:// if others reach that network"
                ),
            );
        }
        let credential = upstream.credential.as_ref().and_then(|credential| self.credential(at, credential));
        let time = |value: Option<Time>, default: u64| value.map_or(Duration::from_secs(default), |time| time.0);
        for (key, value) in [
            ("connect_timeout", upstream.connect_timeout),
            ("handshake_timeout", upstream.handshake_timeout),
            ("response_timeout", upstream.response_timeout),
        ] {
            self.not_zero(&format!("{at}.{key}"), value);
        }
        let speaks_tls = matches!(address, UpstreamAddress::Tcp { tls: Some(_), .. });
        let usual = if speaks_tls { HostHeader::Upstream } else { HostHeader::Client };
        let preset = upstream.preset.as_deref();
        let preset = preset.and_then(|name| self.ok_or_report(&format!("{at}.preset"), upstream_preset(name)));
        let spec = UpstreamSpec {
            url: text.clone(),
            preset,
            authority,
            host_header: upstream.host.unwrap_or(usual),
            connect_timeout: time(upstream.connect_timeout, 5),
            handshake_timeout: time(upstream.handshake_timeout, 30),
            response_timeout: time(upstream.response_timeout, 300),
            pool_idle_timeout: time(upstream.pool_idle_timeout, 4),
            reuse: upstream.reuse.0,
            token_to_http: upstream.token_to.http,
            token_to_websocket: self.token_to_upgrade(at, &upstream.token_to.websocket),
            credential,
            address,
        };
        let path = format!("{at}.token_to.websocket.first_message");
        Some((spec, upstream.token_to.websocket.first_message.clone().map(|dialect| (dialect, path))))
    }

    fn upstream_tls(&mut self, at: &str, upstream: &config::Upstream, address: &mut UpstreamAddress) {
        let authority = self.authority(&format!("{at}.tls.ca_file"), upstream.tls.ca_file.as_ref());
        let written = upstream.tls.ca_file.is_some() || upstream.tls.server_name.is_some();
        match address {
            UpstreamAddress::Tcp { tls: Some(tls), .. } => {
                tls.authority = authority;
                if let Some(name) = &upstream.tls.server_name {
                    tls.server_name.clone_from(name);
                }
                if ServerName::try_from(tls.server_name.as_str()).is_err() {
                    self.error(format!("{at}.tls.server_name"), format!("\"{}\" is not a host name", tls.server_name));
                }
            }
            _ if written => self.error(format!("{at}.tls"), "means nothing to an upstream without TLS; write https://"),
            _ => {}
        }
    }

    fn token_to_upgrade(&mut self, at: &str, written: &config::TokenToWebSocket) -> TokenToUpgrade {
        let path = &format!("{at}.token_to.websocket");
        if written.first_message.is_some() {
            if written.form.is_some() || written.query.is_some() {
                self.error(
                    path,
                    "says two things; write one of none, header, { query: token }, { first_message: vestibule }",
                );
            }
            // The dialect is looked up later, when all dialects are known.
            return TokenToUpgrade::None;
        }
        match (written.form.as_deref(), written.query.as_deref()) {
            (None | Some("none"), None) => TokenToUpgrade::None,
            (Some("header"), None) => TokenToUpgrade::Header,
            (None, Some("")) => {
                self.error(format!("{path}.query"), "is empty; write the parameter's name, such as token");
                TokenToUpgrade::None
            }
            (None, Some(name)) => TokenToUpgrade::Query(name.to_owned()),
            (Some(other), _) => {
                self.error(
                    path,
                    format!(
                        "\"{other}\" is not one of none, header, {{ query: token }}, {{ first_message: vestibule }}"
                    ),
                );
                TokenToUpgrade::None
            }
        }
    }

    /// Resolves the dialects in which the proxy authenticates users to upstreams.
    pub(super) fn first_messages(
        &mut self,
        upstreams: Upstreams,
        routes: &[Arc<Route>],
        dialects: &Dialects,
    ) -> Vec<UpstreamSpec> {
        let Upstreams { mut specs, first_messages, .. } = upstreams;
        for (index, (spec, written)) in specs.iter_mut().zip(first_messages).enumerate() {
            let Some((name, path)) = written else { continue };
            let of_it: Vec<&Arc<Route>> = routes.iter().filter(|route| route.upstream == index).collect();
            if let Some(dialect) = self.first_message(&name, &path, &of_it, dialects) {
                spec.token_to_websocket = TokenToUpgrade::FirstMessage(dialect);
            }
        }
        specs
    }

    fn first_message(
        &mut self,
        name: &str,
        path: &str,
        routes: &[&Arc<Route>],
        dialects: &Dialects,
    ) -> Option<Arc<DialectSpec>> {
        let Some(dialect) = dialects.get(name).cloned() else {
            let known: Vec<&str> = dialects.keys().map(String::as_str).collect();
            self.error(path, format!("\"{name}\" is not a dialect with a first message; known: {}", known.join(", ")));
            return None;
        };
        let protected = routes.iter().filter(|route| matches!(route.auth, AuthMode::Required | AuthMode::Optional));
        for spoken in protected.filter_map(|route| route.websocket.dialect.as_ref().map(|spoken| (route, spoken))) {
            let (route, spoken) = spoken;
            if spoken.forwards() && spoken.name != dialect.name {
                let message = format!(
                    "clients of {} speak {}, whose messages are forwarded; write the same dialect for the upstream",
                    route.label, spoken.name
                );
                self.error(path, message);
            } else if !spoken.forwards() && dialect.acknowledge_literals() == 0 {
                let message = format!(
                    "{name} has no acknowledge with a fixed member, so nobody could tell when the upstream accepted the user of {}",
                    route.label
                );
                self.error(path, message);
            }
        }
        Some(dialect)
    }

    fn credential(&mut self, at: &str, credential: &config::Credential) -> Option<CredentialSpec> {
        let Some(name) = &credential.header else {
            self.error(format!("{at}.credential"), "has no header; write { header: Authorization, value_file: … }");
            return None;
        };
        let header = self.header_name(&format!("{at}.credential.header"), name)?;
        if let b"host" | b"contentlength" | b"transferencoding" | b"connection" = fold(name).as_bytes() {
            self.error(
                format!("{at}.credential.header"),
                format!("{name} cannot carry a secret; write Authorization or a header of the backend's own"),
            );
        }
        let (value, file) = (format!("{at}.credential.value"), format!("{at}.credential.value_file"));
        let Some(bytes) = self.secret(&value, credential.value.as_ref(), &file, credential.value_file.as_ref()) else {
            if credential.value.is_none() && credential.value_file.is_none() {
                self.error(format!("{at}.credential"), "has no value; write value_file: … or value: ${BACKEND_SECRET}");
            }
            return None;
        };
        let place = if credential.value.is_some() { value } else { file };
        match HeaderValue::from_bytes(&bytes) {
            Ok(mut value) if !bytes.trim_ascii().is_empty() => {
                value.set_sensitive(true);
                Some(CredentialSpec { header, value })
            }
            _ => {
                self.error(place, "is empty, or has a character that a header value cannot have (a line break?)");
                None
            }
        }
    }
}

/// Returns whether a URL has a user or a password, or may have one: of a URL that cannot be parsed nobody can say where its
/// authority ends, since a password may have a slash in it.
fn may_have_user(text: &str) -> bool {
    let is_in_authority = |url: Url| {
        let written = text.split_once(':').map_or(text, |(_, rest)| rest).trim_start_matches(['/', '\\']);
        let authority = written.split(['/', '\\', '?', '#']).next().unwrap_or_default();
        authority.contains('@') || !url.username().is_empty() || url.password().is_some()
    };
    text.contains('@') && Url::parse(text).ok().filter(Url::has_host).is_none_or(is_in_authority)
}

fn upstream_address(text: &str) -> Result<(UpstreamAddress, String), String> {
    if let Some(path) = text.strip_prefix("unix:") {
        if !path.starts_with('/') {
            return Err(format!("\"{path}\" is not a whole path; write unix:/run/app.sock"));
        }
        return Ok((UpstreamAddress::Unix(PathBuf::from(path)), "localhost".to_owned()));
    }
    if may_have_user(text) {
        return Err("has a user or password in it; the backend's own secret goes into upstream.credential".to_owned());
    }
    // A query may hold a secret too.
    let shown = shown_url(text);
    if let Some(message) = missing_scheme(text, Some("http")) {
        return Err(message);
    }
    let scheme = text.split("://").next().unwrap_or_default();
    if !matches!(scheme, "http" | "https") {
        return Err(format!(
            "\"{scheme}://\" is not supported; write http://host:port, https://host:port or unix:/path"
        ));
    }
    let url = Url::parse(text).map_err(|error| format!("\"{shown}\" is not a URL: {error}"))?;
    if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
        return Err("has a path; paths go up as the client sent them, so write scheme, host and port only".to_owned());
    }
    let Some(host) = url.host_str() else { return Err(format!("\"{shown}\" has no host")) };
    let port = url.port_or_known_default().unwrap_or(80);
    let authority = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    let tls = (scheme == "https").then(|| UpstreamTls { server_name: host.clone(), authority: None });
    Ok((UpstreamAddress::Tcp { host, port, tls }, authority))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::validate;

    #[test]
    fn only_routes_with_the_same_first_message_share_an_upstream() {
        let yaml = "upstream: http://127.0.0.1:1\n\
                    providers: [{ preset: oidc, issuer: \"https://issuer.example.com\", audience: api }]\n\
                    routes:\n\
                    - { path: /told/**, upstream: { url: \"http://127.0.0.1:2\", token_to: { websocket: { first_message: vestibule } } } }\n\
                    - { path: /plain/**, upstream: { url: \"http://127.0.0.1:2\" } }\n\
                    - { path: /also/told/**, upstream: { url: \"http://127.0.0.1:2\", token_to: { websocket: { first_message: vestibule } } } }\n";
        let config = config::load_yaml(yaml).expect("loads").config;
        let policy = validate(&config).expect("valid");
        let of_route = |path: &str| policy.match_path("GET", path).expect("few readings").route.upstream;
        let is_told = |index: usize| policy.upstreams[index].token_to_websocket != TokenToUpgrade::None;
        let (told, plain, also_told) = (of_route("/told/x"), of_route("/plain/x"), of_route("/also/told/x"));
        assert!(is_told(told) && !is_told(plain));
        assert_eq!(told, also_told);
    }
}
