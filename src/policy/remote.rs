//! The settings of requests to a provider about a token or a session: the endpoint, the proxy's credential, and the
//! limits on rate and concurrency (docs/contract.md section 5).

use std::fmt;
use std::time::Duration;

use url::Url;

use super::check::Check;
use super::origin::{is_loopback, missing_scheme};
use super::provider_preset::{DefaultKeys, Preset, RemoteApi};
use super::{CertificateAuthority, Secret};
use crate::config::{self, RemoteMode, Time, shown_url};

/// The settings of remote checks at one provider.
#[derive(Clone, Debug, PartialEq)]
pub struct RemoteSpec {
    /// Whether opaque tokens are verified by it. Otherwise it is asked in addition to each signature check.
    pub verifies_opaque_tokens: bool,
    /// The request to the provider.
    pub question: RemoteQuestion,
    /// The time that an answer is cached, at most until the token expires.
    pub cache: Duration,
    /// The timeout of one request.
    pub timeout: Duration,
    /// The maximum number of concurrent requests; half of them are reserved for open sockets.
    pub concurrency: usize,
    /// An additional certificate authority.
    pub authority: Option<CertificateAuthority>,
}

/// The kind of request, with the credential that it needs.
#[derive(Clone, Debug, PartialEq)]
pub enum RemoteQuestion {
    /// Token introspection (RFC 7662).
    Introspection {
        /// The endpoint.
        url: Url,
        /// The client id at the endpoint.
        client_id: String,
        /// The client secret at the endpoint.
        client_secret: Secret,
    },
    /// Clerk's Backend API.
    Clerk {
        /// The base URL, `https://api.clerk.com`.
        base: Url,
        /// The secret key, `sk_…`.
        secret_key: Secret,
    },
    /// The user endpoint of Supabase.
    Supabase {
        /// The project's base URL.
        base: Url,
        /// The project's API key.
        apikey: Secret,
    },
}

impl RemoteQuestion {
    /// Returns whether an open session can be checked only with its token, and so only until the token expires.
    #[must_use]
    pub fn carries_token(&self) -> bool {
        !matches!(self, Self::Clerk { .. })
    }
}

impl fmt::Display for RemoteSpec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, url) = match &self.question {
            RemoteQuestion::Introspection { url, .. } => ("introspection", url),
            RemoteQuestion::Clerk { base, .. } => ("Clerk's Backend API", base),
            RemoteQuestion::Supabase { base, .. } => ("Supabase's user endpoint", base),
        };
        let tokens =
            if self.verifies_opaque_tokens { "opaque tokens are checked" } else { "every token is checked too" };
        write!(f, "{tokens} at {url} ({what}), each answer kept {}", Time(self.cache))
    }
}

const CACHE: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(2);
const CONCURRENCY: u32 = 32;

impl Check {
    pub(super) fn remote(
        &mut self,
        at: &str,
        provider: &config::Provider,
        preset: &Preset,
        issuer: Option<&str>,
    ) -> Option<RemoteSpec> {
        let at = format!("{at}.remote");
        let only_introspection = preset.keys == DefaultKeys::Introspection;
        let Some(remote) = &provider.remote else {
            if only_introspection {
                self.error(at, "is missing: preset introspection asks the provider about every token; write\nremote: { url: https://…/introspect, client_id: …, client_secret_file: … }");
            }
            return None;
        };
        let verifies_opaque_tokens = match remote.mode {
            Some(RemoteMode::Also) if only_introspection => {
                self.error(
                    format!("{at}.mode"),
                    "preset introspection verifies no signatures, so mode cannot be also; leave it out",
                );
                true
            }
            Some(mode) => mode == RemoteMode::Instead,
            None if only_introspection => true,
            None => {
                self.error(&at, "has no mode; also: every token is asked about beside its signature; instead: only opaque tokens are");
                return None;
            }
        };
        for (key, value) in [("cache", remote.cache), ("timeout", remote.timeout)] {
            self.not_zero(&format!("{at}.{key}"), value);
        }
        let concurrency = remote.concurrency.unwrap_or(CONCURRENCY);
        if !(2..=1_000).contains(&concurrency) {
            self.error(format!("{at}.concurrency"), "must be between 2 and 1000; half of it is kept for open sockets");
        }
        let authority = self.authority(&format!("{at}.ca_file"), remote.ca_file.as_ref());
        let question = self.question(&at, remote, preset, issuer)?;
        Some(RemoteSpec {
            verifies_opaque_tokens,
            question,
            cache: remote.cache.map_or(CACHE, |time: Time| time.0),
            timeout: remote.timeout.map_or(TIMEOUT, |time: Time| time.0),
            concurrency: concurrency as usize,
            authority,
        })
    }

    fn question(
        &mut self,
        at: &str,
        remote: &config::Remote,
        preset: &Preset,
        issuer: Option<&str>,
    ) -> Option<RemoteQuestion> {
        let by_client = preset.remote == RemoteApi::Introspection;
        let foreign: &[(&str, bool)] = if by_client {
            &[("secret_key", remote.secret_key.is_some()), ("secret_key_file", remote.secret_key_file.is_some())]
        } else {
            &[
                ("client_id", remote.client_id.is_some()),
                ("client_secret", remote.client_secret.is_some()),
                ("client_secret_file", remote.client_secret_file.is_some()),
            ]
        };
        for (key, _) in foreign.iter().filter(|(_, written)| *written) {
            let instead = if by_client { "client_id and client_secret_file" } else { "secret_key_file" };
            self.error(format!("{at}.{key}"), format!("means nothing to preset {}; it takes {instead}", preset.name));
        }
        let base = match preset.remote {
            RemoteApi::Clerk => Some("https://api.clerk.com".to_owned()),
            // The issuer is `<base>/auth/v1`.
            RemoteApi::Supabase => issuer.map(|issuer| issuer.trim_end_matches("/auth/v1").to_owned()),
            RemoteApi::Introspection => None,
        };
        let url = self.remote_url(at, remote, base)?;
        let url_path = format!("{at}.secret_key");
        let key = (remote.secret_key.as_ref(), remote.secret_key_file.as_ref());
        match preset.remote {
            RemoteApi::Clerk => {
                let secret_key = self.remote_secret(&url_path, key)?;
                Some(RemoteQuestion::Clerk { base: url, secret_key })
            }
            RemoteApi::Supabase => {
                let apikey = self.remote_secret(&url_path, key)?;
                Some(RemoteQuestion::Supabase { base: url, apikey })
            }
            RemoteApi::Introspection => {
                let secret = (remote.client_secret.as_ref(), remote.client_secret_file.as_ref());
                let client_secret = self.remote_secret(&format!("{at}.client_secret"), secret);
                let Some(client_id) = remote.client_id.clone().filter(|id| !id.is_empty()) else {
                    self.error(
                        format!("{at}.client_id"),
                        "is missing: the endpoint answers only to a client that it knows (RFC 7662 section 2.1)",
                    );
                    return None;
                };
                Some(RemoteQuestion::Introspection { url, client_id, client_secret: client_secret? })
            }
        }
    }

    /// Returns the configured URL, or that of the preset. The token and the proxy's secret are sent there.
    fn remote_url(&mut self, at: &str, remote: &config::Remote, base: Option<String>) -> Option<Url> {
        let path = format!("{at}.url");
        let Some(text) = remote.url.clone().or(base) else {
            self.error(
                path,
                "is missing; write the introspection endpoint (RFC 7662), as its discovery document names it",
            );
            return None;
        };
        if let Some(message) = missing_scheme(&text, None) {
            self.error(path, message);
            return None;
        }
        let url = match Url::parse(&text) {
            Ok(url)
                if matches!(url.scheme(), "http" | "https") && url.host_str().is_some() && url.query().is_none() =>
            {
                url
            }
            _ => {
                self.error(path, format!("\"{}\" is not an http or https URL without a query", shown_url(&text)));
                return None;
            }
        };
        if !url.username().is_empty() || url.password().is_some() {
            self.error(&path, "holds a user or a password; write them as client_id and client_secret_file");
        }
        if url.scheme() == "http" && !is_loopback(&url) && !remote.allow_http {
            self.error(
                &path,
                "would send tokens and our secret over plain http; use https, or set remote.allow_http: true",
            );
        }
        if url.scheme() == "http" && !is_loopback(&url) && remote.allow_http {
            let host = url.host_str().unwrap_or_default();
            self.warn_at(
                format!("{at}.allow_http"),
                format!(
                    "tokens and our secret go to {host} by plain http: anyone on the network in between can read them, and answer that any token is active; use https if others reach that network"
                ),
            );
        }
        Some(url)
    }

    fn remote_secret(&mut self, path: &str, (value, file): (Option<&String>, Option<&String>)) -> Option<Secret> {
        let file_path = format!("{path}_file");
        let Some(bytes) = self.secret(path, value, &file_path, file) else {
            if value.is_none() && file.is_none() {
                self.error(file_path, "is missing: the provider answers only to a caller it knows");
            }
            return None;
        };
        let fits = |b: &u8| b.is_ascii_graphic();
        if bytes.is_empty() || !bytes.iter().all(fits) {
            self.error(if value.is_some() { path } else { &file_path }, "is empty or holds other than visible ASCII");
            return None;
        }
        Some(Secret::new(bytes))
    }
}
