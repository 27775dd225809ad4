//! The client's address and the forwarding headers (docs/contract.md section 3). They are trusted from trusted proxies
//! only and always written anew for the upstream.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use hyper::HeaderMap;
use hyper::header::{HOST, HeaderName, HeaderValue};

use crate::policy::{Origin, Policy, is_private};
use crate::telemetry::RequestId;

pub(super) const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
pub(super) const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
pub(super) const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
pub(super) const X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");

/// The maximum number of addresses that are read from `X-Forwarded-For`, counted from the right, the near end.
const MAX_HOPS: usize = 32;

/// The address and transport of an accepted connection.
#[derive(Clone, Debug)]
pub struct Connection {
    /// The address of a TCP connection's peer; `None` for a Unix socket.
    peer: Option<IpAddr>,
    /// The address of the peer, or of this host for a Unix socket, as it is in `X-Forwarded-For`.
    chain: HeaderValue,
    /// Whether the listener ended TLS for this connection.
    tls: bool,
}

impl Connection {
    /// Describes a connection; `peer` is `None` for a Unix socket, and `tls` is whether the listener ended TLS for it.
    #[must_use]
    pub fn new(peer: Option<SocketAddr>, tls: bool) -> Self {
        let peer = peer.map(|peer| peer.ip().to_canonical());
        Self { peer, chain: header_of(&address_text(peer.unwrap_or(LOCALHOST))), tls }
    }
}

/// A client over a Unix socket is on this host.
const LOCALHOST: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// The client of a request, by the connection and the forwarding headers.
#[derive(Clone, Debug)]
pub struct ClientAddress {
    /// The client's address: the peer's, or the one that a trusted proxy named.
    pub address: IpAddr,
    /// The scheme that the client used: `http` or `https`.
    pub scheme: &'static str,
    /// The `X-Forwarded-For` for the upstream: the client, the trusted proxies after it, the peer.
    pub chain: HeaderValue,
    /// The value of `X-Request-Id`.
    pub request_id: RequestId,
    /// Whether other clients have the same address.
    pub sharing: AddressSharing,
    /// Whether the peer of the connection is a trusted proxy.
    pub has_trusted_peer: bool,
}

/// Whether an address belongs to one client; limits per address apply only then.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressSharing {
    /// The address of one client, or of one network.
    NotShared,
    /// The address of a trusted proxy that named no client; all its clients share it.
    TrustedProxy,
    /// A private address whose peer sends `X-Forwarded-For` and is not trusted, most likely a load balancer: all its
    /// clients share it.
    Balancer,
}

impl ClientAddress {
    /// Returns the address to which limits per address apply, for IPv6 its /64; `None` when several clients share it.
    #[must_use]
    pub fn limited_address(&self) -> Option<IpAddr> {
        (self.sharing == AddressSharing::NotShared).then(|| network(self.address))
    }

    pub(super) fn of(connection: &Connection, headers: &HeaderMap, policy: &Policy) -> Self {
        let peer = connection.peer;
        let scheme = if connection.tls { "https" } else { "http" };
        let trusted = peer.map_or(policy.trusts_unix, |peer| policy.trusts(peer));
        let peer_or_localhost = peer.unwrap_or(LOCALHOST);
        if !trusted {
            // In this order, since most clients send no such field.
            let balancer = headers.contains_key(X_FORWARDED_FOR) && is_private(peer_or_localhost);
            let sharing = if balancer { AddressSharing::Balancer } else { AddressSharing::NotShared };
            return Self {
                address: peer_or_localhost,
                scheme,
                chain: connection.chain.clone(),
                request_id: RequestId::unique(),
                sharing,
                has_trusted_peer: false,
            };
        }
        let hops = forwarded_for(headers);
        // The client is the rightmost address that is not a trusted proxy's.
        let client = hops.iter().rposition(|hop| !policy.trusts(*hop)).unwrap_or(0);
        let mut chain: Vec<String> = hops.get(client..).unwrap_or_default().iter().copied().map(address_text).collect();
        chain.extend(peer.map(address_text));
        if chain.is_empty() {
            chain.push(address_text(peer_or_localhost));
        }
        Self {
            address: hops.get(client).copied().unwrap_or(peer_or_localhost),
            scheme: forwarded_proto(headers, hops.len(), client).unwrap_or(scheme),
            chain: header_of(&chain.join(", ")),
            request_id: given_request_id(headers).unwrap_or_else(RequestId::unique),
            sharing: if hops.is_empty() { AddressSharing::TrustedProxy } else { AddressSharing::NotShared },
            has_trusted_peer: true,
        }
    }
}

/// Returns addresses, which are visible ASCII, as the value of a header.
fn header_of(addresses: &str) -> HeaderValue {
    HeaderValue::from_str(addresses).unwrap_or(HeaderValue::from_static("unknown"))
}

fn address_text(address: IpAddr) -> String {
    // Room for an IPv4 address.
    let mut text = String::with_capacity(15);
    crate::telemetry::address(&mut text, address);
    text
}

/// Returns the network that an address counts as in limits per address: an IPv4 address itself, an IPv6 address's /64,
/// because a single host has that many addresses.
#[must_use]
pub fn network(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(v6) => {
            let [a, b, c, d, ..] = v6.segments();
            IpAddr::from([a, b, c, d, 0, 0, 0, 0])
        }
        v4 @ IpAddr::V4(_) => v4,
    }
}

/// Returns the members of a forwarding field, left to right over all its lines; RFC 9110 section 5.6.1 ignores empty
/// ones.
fn members<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl DoubleEndedIterator<Item = &'a str> {
    // A line that is not ASCII becomes one member that is neither an address nor a scheme.
    let lines = headers.get_all(name).iter().map(|value| value.to_str().unwrap_or("?"));
    lines.flat_map(|line| line.split(',')).map(str::trim).filter(|member| !member.is_empty())
}

/// Returns the scheme that the client uses, by `X-Forwarded-Proto`.
///
/// Proxies that append to it write one member for each of `X-Forwarded-For`, so the member at the client's position
/// counts. If the lists differ in length the leftmost one counts, which is the client's in every convention: mistaking
/// https for http only withholds features of https.
fn forwarded_proto(headers: &HeaderMap, hops: usize, client: usize) -> Option<&'static str> {
    let count = members(headers, &X_FORWARDED_PROTO).count();
    let at = if count == hops { client } else { 0 };
    let scheme = members(headers, &X_FORWARDED_PROTO).nth(at)?;
    let is_https = scheme.eq_ignore_ascii_case("https") || scheme.eq_ignore_ascii_case("wss");
    Some(if is_https { "https" } else { "http" })
}

/// Returns the addresses of `X-Forwarded-For`, left to right. Read from the right, a member that is no address ends the
/// list.
fn forwarded_for(headers: &HeaderMap) -> Vec<IpAddr> {
    let mut hops = Vec::new();
    for entry in members(headers, &X_FORWARDED_FOR).rev().take(MAX_HOPS) {
        let bare = entry.trim_start_matches('[').split(']').next().unwrap_or(entry);
        let address = bare.parse().ok().or_else(|| entry.parse::<SocketAddr>().ok().map(|address| address.ip()));
        match address {
            Some(address) => hops.push(IpAddr::to_canonical(&address)),
            None => break,
        }
    }
    hops.reverse();
    hops
}

/// Returns the client's request id, when there is exactly one and it is well-formed.
fn given_request_id(headers: &HeaderMap) -> Option<RequestId> {
    let mut values = headers.get_all(X_REQUEST_ID).iter();
    let id = RequestId::given(values.next()?.as_bytes())?;
    values.next().is_none().then_some(id)
}

/// Inserts the proxy's forwarding headers and request id. Those that the client sent are removed before.
///
/// Where `public_url` is configured, host and scheme are its own: a balancer may have replaced the `Host`, and one that
/// forwards `X-Forwarded-Host` as a client wrote it cannot be told from one that sets it.
pub(super) fn insert(headers: &mut HeaderMap, client: &ClientAddress, public_url: Option<&Origin>) {
    headers.insert(X_FORWARDED_FOR, client.chain.clone());
    let public = public_url.and_then(|url| url.as_str().split_once("://"));
    let public = public.and_then(|(scheme, authority)| {
        let scheme = if scheme == "https" { "https" } else { "http" };
        Some((scheme, HeaderValue::try_from(authority).ok()?))
    });
    let (scheme, host) = match public {
        Some((scheme, authority)) => (scheme, Some(authority)),
        None => (client.scheme, headers.get(HOST).cloned()),
    };
    headers.insert(X_FORWARDED_PROTO, HeaderValue::from_static(scheme));
    if let Some(host) = host {
        headers.insert(X_FORWARDED_HOST, host);
    }
    if let Some(id) = client.request_id.to_header() {
        headers.insert(X_REQUEST_ID, id);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_ipv6_address_counts_by_its_64() {
        let a: IpAddr = "2001:db8::1".parse().expect("address");
        let b: IpAddr = "2001:db8::ffff:1".parse().expect("address");
        let c: IpAddr = "2001:db8:0:1::1".parse().expect("address");
        assert_eq!(network(a), network(b));
        assert_ne!(network(a), network(c));
    }

    #[test]
    fn the_chain_is_read_from_the_right_and_stops_at_what_is_no_address() {
        for (value, expected) in [
            ("1.2.3.4, 10.0.0.1", vec!["1.2.3.4", "10.0.0.1"]),
            ("unknown, 1.2.3.4", vec!["1.2.3.4"]),
            ("1.2.3.4:5678, [2001:db8::1]:99, ::ffff:10.0.0.9", vec!["1.2.3.4", "2001:db8::1", "10.0.0.9"]),
            ("1.2.3.4,, 10.0.0.1 , ", vec!["1.2.3.4", "10.0.0.1"]),
            ("", vec![]),
        ] {
            let mut headers = HeaderMap::new();
            headers.insert(X_FORWARDED_FOR, HeaderValue::from_static(value));
            let found: Vec<String> = forwarded_for(&headers).iter().map(IpAddr::to_string).collect();
            assert_eq!(found, expected, "{value}");
        }
    }

    #[test]
    fn the_scheme_of_the_clients_own_hop_counts() {
        for (protos, hops, client, expected) in [
            (&["https"][..], 0, 0, Some("https")),
            (&["WSS"], 1, 0, Some("https")),
            (&["ws"], 1, 0, Some("http")),
            (&["https,http"], 2, 0, Some("https")),
            (&["https, http"], 2, 0, Some("https")),
            (&["https", "http"], 2, 0, Some("https")),
            (&["https,http"], 0, 0, Some("https")),
            (&["https,http"], 1, 0, Some("https")),
            // The left one is what the client wrote before the first trusted proxy.
            (&["https,http"], 2, 1, Some("http")),
            (&["http,https,http"], 3, 1, Some("https")),
            (&["http,https"], 2, 1, Some("https")),
            (&[", https ,"], 1, 0, Some("https")),
            (&["", ","], 1, 0, None),
            (&[], 1, 0, None),
            (&["ftp"], 1, 0, Some("http")),
        ] {
            let mut headers = HeaderMap::new();
            for proto in protos {
                headers.append(X_FORWARDED_PROTO, HeaderValue::from_static(proto));
            }
            assert_eq!(forwarded_proto(&headers, hops, client), expected, "{protos:?} {hops} {client}");
        }
    }
}
