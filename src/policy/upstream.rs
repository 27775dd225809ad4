//! The backend as the file describes it: its address, its time limits, what it is given.

use std::sync::Arc;
use std::time::Duration;

use hyper::header::HeaderValue;
use url::Url;

use super::validate::Check;
use super::{AuthMode, CredentialSpec, Route, TokenToUpgrade, UpstreamSpec, fold};
use crate::config::{self, Config, HostHeader, Time};

impl Check {
    pub(super) fn upstream(&mut self, config: &Config) -> Option<UpstreamSpec> {
        let Some(upstream) = &config.upstream else {
            self.wrong("upstream", "missing: where is the backend? upstream: http://127.0.0.1:8000");
            return None;
        };
        let Some(text) = &upstream.url else {
            self.wrong("upstream", "has no url; write upstream: { url: http://127.0.0.1:8000 }");
            return None;
        };
        let path = "upstream.url";
        let (host, port, authority) = self.take(path, upstream_address(text))?;
        let credential = upstream.credential.as_ref().and_then(|credential| self.credential(credential));
        let time = |value: Option<Time>, default: u64| value.map_or(Duration::from_secs(default), |time| time.0);
        for (key, value) in [
            ("connect_timeout", upstream.connect_timeout),
            ("handshake_timeout", upstream.handshake_timeout),
            ("response_timeout", upstream.response_timeout),
        ] {
            self.not_zero(&format!("upstream.{key}"), value);
        }
        Some(UpstreamSpec {
            authority,
            host,
            port,
            host_header: upstream.host.unwrap_or(HostHeader::Client),
            connect_timeout: time(upstream.connect_timeout, 5),
            handshake_timeout: time(upstream.handshake_timeout, 30),
            response_timeout: time(upstream.response_timeout, 300),
            pool_idle_timeout: time(upstream.pool_idle_timeout, 4),
            reuse: upstream.reuse.0,
            token_to_http: upstream.token_to.http,
            token_to_websocket: self.token_to_upgrade(&upstream.token_to.websocket),
            credential,
        })
    }

    fn token_to_upgrade(&mut self, written: &config::TokenToWebSocket) -> TokenToUpgrade {
        let path = "upstream.token_to.websocket";
        if written.first_message.is_some() {
            if written.form.is_some() || written.query.is_some() {
                self.wrong(
                    path,
                    "says two things; write one of none, header, { query: token }, { first_message: vestibule }",
                );
            }
            // Its dialect is looked up once dialects are known.
            return TokenToUpgrade::None;
        }
        match (written.form.as_deref(), written.query.as_deref()) {
            (None | Some("none"), None) => TokenToUpgrade::None,
            (Some("header"), None) => TokenToUpgrade::Header,
            (None, Some("")) => {
                self.wrong(format!("{path}.query"), "is empty; write the parameter's name, such as token");
                TokenToUpgrade::None
            }
            (None, Some(name)) => TokenToUpgrade::Query(name.to_owned()),
            (Some(other), _) => {
                self.wrong(
                    path,
                    format!(
                        "\"{other}\" is not one of none, header, {{ query: token }}, {{ first_message: vestibule }}"
                    ),
                );
                TokenToUpgrade::None
            }
        }
    }

    /// The dialect in which we introduce a user to the upstream ourselves.
    pub(super) fn first_message(
        &mut self,
        config: &Config,
        mut upstream: UpstreamSpec,
        routes: &[Arc<Route>],
    ) -> UpstreamSpec {
        let path = "upstream.token_to.websocket.first_message";
        let written =
            config.upstream.as_ref().and_then(|upstream| upstream.token_to.websocket.first_message.as_deref());
        let Some(name) = written else { return upstream };
        let Some(dialect) = self.dialects.get(name).cloned() else {
            let known: Vec<&str> = self.dialects.keys().map(String::as_str).collect();
            self.wrong(path, format!("\"{name}\" is not a dialect with a first message; known: {}", known.join(", ")));
            return upstream;
        };
        let protected = routes.iter().filter(|route| matches!(route.auth, AuthMode::Required | AuthMode::Optional));
        for spoken in protected.filter_map(|route| route.websocket.dialect.as_ref().map(|spoken| (route, spoken))) {
            let (route, spoken) = spoken;
            if spoken.forwards() && spoken.name != dialect.name {
                let message = format!(
                    "clients of {} speak {}, whose messages go on; the upstream cannot be spoken to in another dialect there",
                    route.label, spoken.name
                );
                self.wrong(path, message);
            } else if !spoken.forwards() && dialect.acknowledge_literals() == 0 {
                let message = format!(
                    "{name} has no acknowledge with a fixed member, so nobody could tell when the upstream accepted the user of {}",
                    route.label
                );
                self.wrong(path, message);
            }
        }
        upstream.token_to_websocket = TokenToUpgrade::FirstMessage(dialect);
        upstream
    }

    fn credential(&mut self, credential: &config::Credential) -> Option<CredentialSpec> {
        let Some(name) = &credential.header else {
            self.wrong("upstream.credential", "has no header; write { header: Authorization, value_file: … }");
            return None;
        };
        let header = self.header_name("upstream.credential.header", name)?;
        if let b"host" | b"contentlength" | b"transferencoding" | b"connection" =
            fold(name).as_ref().map_or(&b""[..], |f| f.as_bytes())
        {
            self.wrong(
                "upstream.credential.header",
                format!("{name} cannot carry a secret; write Authorization or a header of the backend's own"),
            );
        }
        let (at, at_file) = ("upstream.credential.value", "upstream.credential.value_file");
        let Some(bytes) = self.secret(at, credential.value.as_ref(), at_file, credential.value_file.as_ref()) else {
            if credential.value.is_none() && credential.value_file.is_none() {
                self.wrong("upstream.credential", "has no value; write value_file: … or value: ${BACKEND_SECRET}");
            }
            return None;
        };
        let place = if credential.value.is_some() { at } else { at_file };
        match HeaderValue::from_bytes(&bytes) {
            Ok(mut value) if !bytes.is_empty() => {
                value.set_sensitive(true);
                Some(CredentialSpec { header, value })
            }
            _ => {
                self.wrong(place, "is empty, or holds what cannot stand in a header (a line break?)");
                None
            }
        }
    }
}

fn upstream_address(text: &str) -> Result<(String, u16, String), String> {
    let Some((scheme, _)) = text.split_once("://") else {
        return Err(format!("\"{text}\" has no scheme. Did you mean http://{text} ?"));
    };
    if scheme != "http" {
        return Err(format!("\"{scheme}://\" is not supported; write http://host:port"));
    }
    let url = Url::parse(text).map_err(|error| format!("\"{text}\" is not a URL: {error}"))?;
    if !url.username().is_empty() || url.password().is_some() {
        return Err("has a user or password in it; the backend's own secret goes into upstream.credential".to_owned());
    }
    if !matches!(url.path(), "" | "/") || url.query().is_some() || url.fragment().is_some() {
        return Err("has a path; paths go up as the client sent them, so write scheme, host and port only".to_owned());
    }
    let Some(host) = url.host_str() else { return Err(format!("\"{text}\" has no host")) };
    let port = url.port_or_known_default().unwrap_or(80);
    let authority = url.port().map_or_else(|| host.to_owned(), |port| format!("{host}:{port}"));
    Ok((host.trim_start_matches('[').trim_end_matches(']').to_owned(), port, authority))
}
