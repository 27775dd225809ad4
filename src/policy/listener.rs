//! Listeners, the accepted Host values, and trusted proxies.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

use super::check::Check;
use super::{Hosts, Origin, is_loopback_name};
use crate::config::{self, Config, Finding, OneOrMany, shown_url};

/// The settings of a listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ListenSpec {
    /// The address as it is in the configuration, for messages.
    pub written: String,
    /// The addresses or the path to bind.
    pub place: ListenPlace,
    /// The certificate and key; `None`: plain HTTP.
    pub tls: Option<CertificateFiles>,
}

/// The place that a listener binds.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenPlace {
    /// TCP addresses; `localhost` may have two.
    Tcp(Vec<SocketAddr>),
    /// A Unix socket.
    Unix(PathBuf),
}

/// A certificate chain and its key, both PEM files; they are loaded again when they change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CertificateFiles {
    /// The chain, leaf first.
    pub certificate: PathBuf,
    /// The private key.
    pub key: PathBuf,
}

/// Returns the first place to listen on, and whether it uses TLS. Other errors in the configuration, or in the
/// certificate, do not matter.
///
/// # Errors
/// Returns an error when the value names no place.
pub fn first_listener(config: &Config) -> Result<(ListenPlace, bool), Finding> {
    let first = config.listen.first().ok_or_else(|| Finding::new("listen", NO_LISTENER))?;
    let place = listen_place(&first.address).map_err(|message| Finding::new("listen", message))?;
    Ok((place, first.tls.is_some()))
}

/// The networks of `private_ranges`, in which proxies and load balancers usually are: private, shared, link-local and
/// loopback addresses.
const PRIVATE: [IpNet; 9] = [
    v4([10, 0, 0, 0], 8),
    v4([172, 16, 0, 0], 12),
    v4([192, 168, 0, 0], 16),
    v4([100, 64, 0, 0], 10),
    v4([169, 254, 0, 0], 16),
    v4([127, 0, 0, 0], 8),
    v6(Ipv6Addr::LOCALHOST, 128),
    v6(Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0), 7),
    v6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0), 10),
];

/// The shortest prefixes in `trusted_proxies` without a warning: those of `private_ranges`. The networks of content delivery
/// networks are smaller.
const WIDEST_V4: u8 = 8;
const WIDEST_V6: u8 = 7;

const fn v4([a, b, c, d]: [u8; 4], length: u8) -> IpNet {
    IpNet::V4(Ipv4Net::new_assert(Ipv4Addr::new(a, b, c, d), length))
}

const fn v6(address: Ipv6Addr, length: u8) -> IpNet {
    IpNet::V6(Ipv6Net::new_assert(address, length))
}

/// Returns whether an address is in `private_ranges`.
#[must_use]
pub fn is_private(address: IpAddr) -> bool {
    PRIVATE.iter().any(|network| network.contains(&address))
}

/// The time before a certificate expires from which that is warned of.
pub const CERTIFICATE_SOON: Duration = Duration::from_secs(7 * 24 * 3_600);

/// Returns the networks as they are written in `trusted_proxies`.
pub(super) fn written_networks(networks: &[IpNet]) -> Vec<String> {
    let has_private = PRIVATE.iter().all(|private| networks.contains(private));
    let named = has_private.then(|| "private_ranges".to_owned()).into_iter();
    let others = networks.iter().filter(|network| !has_private || !PRIVATE.contains(network));
    named.chain(others.map(ToString::to_string)).collect()
}

const NO_LISTENER: &str = "is empty; write an address such as 127.0.0.1:8080";

impl Check {
    pub(super) fn listen(&mut self, config: &Config) -> Vec<ListenSpec> {
        if config.listen.is_empty() {
            self.error("listen", NO_LISTENER);
        }
        let mut out = Vec::new();
        for (index, listen) in config.listen.iter().enumerate() {
            let path = if config.listen.len() == 1 { "listen".to_owned() } else { format!("listen[{index}]") };
            let tls = listen.tls.as_ref().and_then(|tls| self.certificate(&path, tls));
            if let Some(place) = self.ok_or_report(&path, listen_place(&listen.address)) {
                if tls.is_some() && matches!(place, ListenPlace::Unix(_)) {
                    self.error(
                        format!("{path}.tls"),
                        "means nothing on a Unix socket, which stays on this machine; leave it out",
                    );
                }
                out.push(ListenSpec { written: listen.address.clone(), place, tls });
            }
        }
        out
    }

    fn certificate(&mut self, path: &str, tls: &config::ListenTls) -> Option<CertificateFiles> {
        let (Some(certificate), Some(key)) = (&tls.certificate_file, &tls.key_file) else {
            self.error(format!("{path}.tls"), "needs certificate_file and key_file, both PEM");
            return None;
        };
        self.file(&format!("{path}.tls.certificate_file"), certificate);
        self.file(&format!("{path}.tls.key_file"), key);
        Some(CertificateFiles { certificate: PathBuf::from(certificate), key: PathBuf::from(key) })
    }

    pub(super) fn hosts(&mut self, config: &Config, loopback: bool, public_url: Option<&Origin>) -> Hosts {
        let Some(OneOrMany(written)) = &config.hosts else {
            if !loopback {
                return Hosts::Any;
            }
            return Hosts::Listed {
                names: public_url.map(|origin| origin.host().to_owned()).into_iter().collect(),
                loopback: true,
            };
        };
        if written.iter().any(|host| host == "any") {
            return Hosts::Any;
        }
        let mut names = Vec::new();
        for (index, host) in written.iter().enumerate() {
            if host.contains(['/', '*', ' ']) || (host.contains(':') && !host.starts_with('[')) {
                self.error(
                    format!("hosts[{index}]"),
                    format!("\"{}\" is not a host name without port; write app.example.com, or `any`", shown_url(host)),
                );
            }
            names.push(host.trim_end_matches('.').to_ascii_lowercase());
        }
        if let Some(public) = public_url.map(Origin::host).filter(|host| !names.iter().any(|name| name == host)) {
            names.push(public.to_owned());
        }
        Hosts::Listed { names, loopback: false }
    }

    pub(super) fn trusted_proxies(&mut self, config: &Config) -> Vec<IpNet> {
        let mut networks = Vec::new();
        for (index, text) in config.trusted_proxies.iter().enumerate() {
            if text == "unix" {
                // This entry is `trusts_unix` of the policy.
            } else if text == "private_ranges" {
                networks.extend(PRIVATE);
            } else if let Ok(network) = text.parse::<IpNet>() {
                let widest = if network.addr().is_ipv4() { WIDEST_V4 } else { WIDEST_V6 };
                if network.prefix_len() < widest {
                    self.warn_at(
                        format!("trusted_proxies[{index}]"),
                        format!(
                            "{text} has addresses of many clients: each of them can name any client address and any scheme in X-Forwarded-For and X-Forwarded-Proto, and escapes the limits per address; write the addresses of your load balancer, or private_ranges"
                        ),
                    );
                }
                networks.push(network);
            } else if let Ok(address) = text.parse::<IpAddr>() {
                networks.push(IpNet::from(address));
            } else {
                self.error(
                    format!("trusted_proxies[{index}]"),
                    format!("\"{text}\" is not an address, a CIDR, `private_ranges` or `unix`; names are not resolved"),
                );
            }
        }
        networks
    }
}

/// Returns whether an upstream with this host and port would be a listener of the proxy itself.
pub(super) fn is_own_listener(config: &Config, host: &str, port: u16) -> bool {
    let connected = host.parse::<IpAddr>().ok();
    let is_this_machine = is_loopback_name(host) || connected.is_some_and(|address| address.is_unspecified());
    let is_it = |listener: &SocketAddr| {
        let is_at = match connected.filter(|address| !address.is_unspecified()) {
            Some(address) => address == listener.ip() || (is_this_machine && listener.ip().is_unspecified()),
            None => is_this_machine && (listener.ip().is_loopback() || listener.ip().is_unspecified()),
        };
        is_at && listener.port() == port && port != 0
    };
    config.listen.iter().any(|listen| {
        matches!(listen_place(&listen.address), Ok(ListenPlace::Tcp(addresses)) if addresses.iter().any(is_it))
    })
}

fn listen_place(text: &str) -> Result<ListenPlace, String> {
    match text.strip_prefix("unix:") {
        Some(path) if path.starts_with('/') => Ok(ListenPlace::Unix(PathBuf::from(path))),
        Some(path) => Err(format!("\"{path}\" is not a whole path; write unix:/run/vestibule/http.sock")),
        None => listen_addresses(text).map(ListenPlace::Tcp),
    }
}

fn listen_addresses(text: &str) -> Result<Vec<SocketAddr>, String> {
    if let Some(port) = text.strip_prefix(':') {
        let port: u16 = port.parse().map_err(|_| format!("\"{text}\": a port is a number up to 65535"))?;
        // One dual-stack socket serves IPv4 too; where there is no IPv6, `listen` falls back to IPv4.
        return Ok(vec![SocketAddr::from((Ipv6Addr::UNSPECIFIED, port))]);
    }
    if let Ok(address) = text.parse::<SocketAddr>() {
        return Ok(vec![address]);
    }
    if let Some(port) = text.strip_prefix("localhost:").and_then(|port| port.parse::<u16>().ok()) {
        return Ok(vec![SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port))]);
    }
    if text.bytes().all(|b| b.is_ascii_digit()) && !text.is_empty() {
        return Err(format!(
            "\"{text}\" has no address. This machine only: 127.0.0.1:{text}. Every address: \":{text}\""
        ));
    }
    if text.parse::<IpAddr>().is_ok() {
        return Err(format!("\"{text}\" has no port; write it as 127.0.0.1:8080"));
    }
    Err(format!(
        "\"{}\" is not an address and port; write 127.0.0.1:8080, \":8080\" or localhost:8080",
        shown_url(text)
    ))
}
