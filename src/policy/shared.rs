//! The settings of the engine through which the instances of one deployment share state: its address, its transport,
//! and the secrets that authenticate the stored entries (docs/shared-state.md).

use std::path::{Path, PathBuf};
use std::time::Duration;

use url::Url;

use super::check::Check;
use super::origin::missing_scheme;
use super::{CertificateAuthority, Secret, SessionSpec, is_loopback_name};
use crate::config::{self, FILE_BYTES, OnLoss, OneOrMany, Time, read_bounded, shown_file};

/// The settings of the engine.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SharedSpec {
    /// The engine's address, or those of Sentinels or cluster nodes, which are tried in order.
    pub addresses: Vec<EngineAddress>,
    /// The verification of the engine's certificate; `None`: plain TCP.
    pub tls: Option<EngineTls>,
    /// The name of the deployment. Instances with the same name share their state.
    pub name: String,
    /// The user of the engine's access control list.
    pub username: Option<String>,
    /// The file with the password, read at each connect.
    pub password_file: Option<PathBuf>,
    /// The name of the master at the Sentinels; then the addresses are those of Sentinels.
    pub sentinel: Option<String>,
    /// Whether the engine is a cluster.
    pub is_cluster: bool,
    /// The timeout of one command.
    pub timeout: Duration,
    /// The age of the copy from which on [`Self::on_loss`] applies.
    pub max_stale: Duration,
    /// The treatment of credentials in that case.
    pub on_loss: OnLoss,
    /// The secrets from which digests and authentication codes are derived: the first writes, all verify.
    pub secrets: Vec<Secret>,
}

/// The address of the engine, of a Sentinel or of a cluster node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineAddress {
    /// A name or an IP address, without brackets.
    pub host: String,
    /// The port.
    pub port: u16,
}

impl std::fmt::Display for EngineAddress {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// The settings for verifying the engine's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EngineTls {
    /// An additional certificate authority.
    pub authority: Option<CertificateAuthority>,
}

impl std::fmt::Display for SharedSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let addresses = self.addresses.iter().map(EngineAddress::to_string).collect::<Vec<_>>().join(", ");
        match &self.sentinel {
            Some(master) => write!(f, "the master {master} of the Sentinels {addresses}")?,
            None if self.is_cluster => write!(f, "the cluster at {addresses}")?,
            None => f.write_str(&addresses)?,
        }
        f.write_str(if self.tls.is_some() { " by TLS" } else { " by plain TCP" })?;
        write!(f, ", as {}; a copy older than {} ", self.name, Time(self.max_stale))?;
        f.write_str(match self.on_loss {
            OnLoss::Serve => "serves on",
            OnLoss::Refuse => "refuses credentials with 503",
        })
    }
}

const DEFAULT_NAME: &str = "vestibule";
const DEFAULT_TIMEOUT: Duration = Duration::from_millis(500);
const DEFAULT_MAX_STALE: Duration = Duration::from_secs(5 * 60);
/// The minimum of `max_stale`: three heartbeats, and one reconnect.
const LEAST_MAX_STALE: Duration = Duration::from_secs(30);
/// The maximum of `timeout`. Requests wait for some commands.
const MOST_TIMEOUT: Duration = Duration::from_secs(5);
/// The maximum length of the name in bytes: it is part of every key.
const NAME_BYTES: usize = 64;
/// The maximum number of addresses, and of secrets.
const MOST: usize = 16;

impl Check {
    pub(super) fn shared(&mut self, shared: &config::SharedState, session: Option<&SessionSpec>) -> Option<SharedSpec> {
        let errors = self.error_count();
        let (addresses, is_tls) = self.engine_addresses(shared)?;
        if shared.sentinel.is_some() && shared.cluster.0 {
            self.error("shared.cluster", "is set beside sentinel; use one of the two");
        }
        if addresses.len() > 1 && shared.sentinel.is_none() && !shared.cluster.0 {
            self.error("shared.url", "names several addresses; they are those of Sentinels (write sentinel: and the master's name)\nor of cluster nodes (write cluster: true)");
        }
        if shared.sentinel.as_ref().is_some_and(|master| !is_name(master)) {
            self.error("shared.sentinel", NAME_FORM);
        }
        let name = shared.name.clone().unwrap_or_else(|| DEFAULT_NAME.to_owned());
        if !is_name(&name) {
            self.error("shared.name", NAME_FORM);
        }
        if shared.ca_file.is_some() && !is_tls {
            self.error("shared.ca_file", "has nothing to verify: url is redis://; write rediss://");
        }
        let authority = self.authority("shared.ca_file", shared.ca_file.as_ref());
        let password_file = self.password_file(shared);
        let is_near = addresses.iter().all(|address| is_loopback_name(&address.host));
        if !is_tls && !is_near && password_file.is_some() {
            self.warn_at(
                "shared.url",
                "is redis://: the engine's password crosses the network unencrypted; write rediss:// where the engine speaks TLS",
            );
        }
        let timeout = shared.timeout.map_or(DEFAULT_TIMEOUT, |time| time.0);
        if timeout.is_zero() || timeout > MOST_TIMEOUT {
            self.error("shared.timeout", "must be from 1ms to 5s");
        }
        let max_stale = shared.max_stale.map_or(DEFAULT_MAX_STALE, |time| time.0);
        if max_stale < LEAST_MAX_STALE {
            self.error("shared.max_stale", "must be at least 30s: instances tell of each other every 5s");
        }
        let secrets = self.shared_secrets(shared.secret_file.as_ref(), session);
        (self.error_count() == errors).then_some(SharedSpec {
            addresses,
            tls: is_tls.then_some(EngineTls { authority }),
            name,
            username: shared.username.clone(),
            password_file,
            sentinel: shared.sentinel.clone(),
            is_cluster: shared.cluster.0,
            timeout,
            max_stale,
            on_loss: shared.on_loss,
            secrets,
        })
    }

    /// Returns the addresses, and whether they use TLS.
    fn engine_addresses(&mut self, shared: &config::SharedState) -> Option<(Vec<EngineAddress>, bool)> {
        let urls = shared.url.as_ref().map_or(&[][..], |urls| &urls.0);
        if urls.is_empty() || urls.len() > MOST {
            self.error("shared", "needs a url, and at most 16; write shared: \"rediss://cache.internal:6379\"");
            return None;
        }
        let mut found = Vec::new();
        for (index, text) in urls.iter().enumerate() {
            let path = if urls.len() == 1 { "shared.url".to_owned() } else { format!("shared.url[{index}]") };
            found.extend(self.ok_or_report(&path, parse(text)));
        }
        if found.len() < urls.len() {
            return None;
        }
        let is_tls = found.iter().any(|(_, is_tls)| *is_tls);
        if found.iter().any(|(_, one)| *one != is_tls) {
            self.error("shared.url", "mixes redis:// and rediss://; all addresses are spoken to in the same way");
        }
        Some((found.into_iter().map(|(address, _)| address).collect(), is_tls))
    }

    /// Checks the password file. The password is not kept: it is read at each connect, so that it can be changed
    /// without a restart.
    fn password_file(&mut self, shared: &config::SharedState) -> Option<PathBuf> {
        let Some(file) = &shared.password_file else {
            if shared.username.is_some() {
                self.error("shared.username", "needs password_file");
            }
            return None;
        };
        match read_bounded(Path::new(file), FILE_BYTES) {
            Ok(None) => self.error("shared.password_file", format!("{file} is larger than 1 MiB")),
            Ok(Some(bytes)) if bytes.trim_ascii().is_empty() => {
                self.error("shared.password_file", format!("{file} is empty"));
            }
            Ok(Some(_)) => {}
            Err(error) => self.error("shared.password_file", format!("{}: {error}", shown_file(file))),
        }
        Some(PathBuf::from(file))
    }

    fn shared_secrets(&mut self, files: Option<&OneOrMany>, session: Option<&SessionSpec>) -> Vec<Secret> {
        let Some(files) = files else {
            let secret = session.and_then(|session| session.secret.clone());
            if secret.is_none() {
                self.error("shared", "has no secret that all instances have: set shared.secret_file, or browser.session.secret_file.\nMake one: openssl rand -base64 48");
            }
            return secret.into_iter().collect();
        };
        if files.0.is_empty() || files.0.len() > MOST {
            self.error("shared.secret_file", "names no file, or more than 16");
        }
        let mut secrets = Vec::new();
        for (index, file) in files.0.iter().enumerate() {
            let path = if files.0.len() == 1 {
                "shared.secret_file".to_owned()
            } else {
                format!("shared.secret_file[{index}]")
            };
            let Some(secret) = self.file(&path, file) else { continue };
            self.hard_to_guess(&path, &secret);
            let secret = Secret::new(secret);
            if secrets.contains(&secret) {
                self.error(&path, "holds the same secret as another of these files");
            }
            secrets.push(secret);
        }
        secrets
    }
}

const NAME_FORM: &str = "must be 1 to 64 letters, digits, dots, dashes and underscores";

fn is_name(text: &str) -> bool {
    (1..=NAME_BYTES).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
}

/// Parses `redis://host:port` or `rediss://host:port`. Returns the address, and whether it uses TLS.
fn parse(text: &str) -> Result<(EngineAddress, bool), String> {
    if let Some(message) = missing_scheme(text, Some("rediss")) {
        return Err(message);
    }
    let scheme = text.split("://").next().unwrap_or_default();
    let is_tls = match scheme {
        "redis" => false,
        "rediss" => true,
        _ => return Err(format!("\"{scheme}://\" is not supported; write rediss://host:port, or redis://host:port")),
    };
    // The URL may hold a password, so it is not repeated.
    let url = Url::parse(text).map_err(|error| format!("is not a URL: {error}"))?;
    if url.password().is_some() {
        return Err("has a password in it, which logs and process lists show; write it to a file and name that in\nshared.password_file".to_owned());
    }
    if !url.username().is_empty() {
        return Err("has a user name in it; write shared.username".to_owned());
    }
    if !matches!(url.path(), "" | "/" | "/0") || url.query().is_some() || url.fragment().is_some() {
        return Err("has a path; database 0 is used, so write scheme, host and port only".to_owned());
    }
    let Some(host) = url.host_str().filter(|host| !host.is_empty()) else { return Err("has no host".to_owned()) };
    let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
    Ok((EngineAddress { host, port: url.port().unwrap_or(6379) }, is_tls))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_a_scheme_a_host_and_a_port() {
        let address = |host: &str, port, is_tls| Ok((EngineAddress { host: host.to_owned(), port }, is_tls));
        assert_eq!(parse("rediss://cache.internal"), address("cache.internal", 6379, true));
        assert_eq!(parse("redis://127.0.0.1:7000/0"), address("127.0.0.1", 7000, false));
        assert_eq!(parse("redis://[::1]:7000/"), address("::1", 7000, false));
        for (text, expected) in [
            ("cache.internal:6379", "Did you mean rediss://cache.internal:6379 ?"),
            (":secret@cache:6379", "\"cache:6379\" has no scheme. Did you mean rediss://cache:6379 ?"),
            ("http://cache", "is not supported"),
            ("redis://:secret@cache", "shared.password_file"),
            ("redis://me@cache", "shared.username"),
            ("redis://cache/1", "database 0"),
            ("redis://cache?db=1", "database 0"),
            ("redis://", "has no host"),
        ] {
            let error = parse(text).expect_err(text);
            assert!(error.contains(expected) && !error.contains("secret@"), "{text}: {error}");
        }
    }
}
