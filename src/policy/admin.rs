//! The admin listener: its address, and the Host values that it answers.

use std::net::{Ipv4Addr, SocketAddr};

use super::check::Check;
use super::origin::is_loopback_name;
use crate::config;

/// The settings of the admin listener.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AdminSpec {
    /// The address to listen on.
    pub address: SocketAddr,
    /// Whether the address is the default. Then a port in use does not prevent the start.
    pub is_default: bool,
    /// The Host values that are answered in addition to addresses and `localhost`, in lower case.
    pub hosts: Vec<String>,
}

const PORT: u16 = 9180;

impl AdminSpec {
    /// Returns whether this Host is answered. A web page whose name resolves to this machine must not read the
    /// listener.
    #[must_use]
    pub fn answers(&self, host: &str) -> bool {
        let name = match host.rsplit_once(':') {
            Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
            _ => host,
        };
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        bare.parse::<std::net::IpAddr>().is_ok()
            || is_loopback_name(name)
            || self.hosts.iter().any(|listed| listed.eq_ignore_ascii_case(name))
    }
}

impl Check {
    pub(super) fn admin(&mut self, admin: &config::Admin) -> Option<AdminSpec> {
        for (index, host) in admin.hosts.iter().enumerate() {
            if host.is_empty() || host.contains(['/', ':', ' ']) {
                self.error(
                    format!("admin.hosts[{index}]"),
                    format!("\"{host}\" is not a host name; write it without scheme and port"),
                );
            }
        }
        let address = match admin.listen.as_deref() {
            None => SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)),
            Some(written) => {
                let every = written.strip_prefix(':').map(|port| format!("[::]:{port}"));
                let parsed = every.as_deref().unwrap_or(written).parse().map_err(|_| {
                    format!("\"{written}\" is not an address with a port; write 127.0.0.1:{PORT}, or admin: null to do without")
                });
                self.ok_or_report("admin.listen", parsed)?
            }
        };
        Some(AdminSpec { address, is_default: admin.listen.is_none(), hosts: admin.hosts.clone() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_answers_to_addresses_localhost_and_what_is_listed() {
        let admin =
            AdminSpec { address: ([127, 0, 0, 1], PORT).into(), is_default: true, hosts: vec!["ops.internal".into()] };
        for (host, answers) in [
            ("127.0.0.1:9180", true),
            ("10.0.1.7", true),
            ("[::1]:9180", true),
            ("localhost:9180", true),
            ("OPS.internal:9180", true),
            ("evil.example", false),
            ("evil.example:9180", false),
            ("localhost.evil.example", false),
            ("", false),
            ("127.0.0.1.evil.example", false),
        ] {
            assert_eq!(admin.answers(host), answers, "{host}");
        }
    }
}
