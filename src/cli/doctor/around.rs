//! What must not be reachable around the proxy: the backend by another address or without its wall, and our own
//! listeners.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::{Line, MARK, Patient, Verdict};
use crate::cli::place::Place;
use crate::policy::{ControlAddress, ListenPlace, UpstreamAddress, UpstreamSpec, Wall, walls};

pub(super) async fn examined(patient: &Patient<'_>) -> Vec<Line> {
    let mut lines = Vec::new();
    let many = patient.policy.upstreams.len() > 1;
    for upstream in &patient.policy.upstreams {
        let of = if many { format!(" {}", upstream.url) } else { String::new() };
        let places = places(upstream).await;
        lines.push((format!("backend{of}"), from_outside(upstream, &places).await));
        let walls = walls(patient.policy, upstream);
        if walls.is_empty() {
            lines.push((format!("wall{of}"), no_wall(patient, &places).await));
        }
        for wall in walls {
            lines.push((format!("wall: {}{of}", wall.name()), behind(patient, &wall, &places).await));
        }
    }
    lines.push(("admin".to_owned(), admin(patient).await));
    lines.push(("control".to_owned(), control(patient).await));
    lines
}

/// Where a backend listens.
async fn places(upstream: &UpstreamSpec) -> Vec<Place> {
    match &upstream.address {
        UpstreamAddress::Unix(path) => vec![Place::Unix(path.clone())],
        UpstreamAddress::Tcp { host, port, tls } => {
            let Ok(found) = tokio::net::lookup_host((host.as_str(), *port)).await else { return Vec::new() };
            found.map(|address| if tls.is_some() { Place::Https(address) } else { Place::Http(address) }).collect()
        }
    }
}

/// The address by which other machines know this one; no packet is sent.
fn outer_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|address| !address.is_loopback() && !address.is_unspecified())
}

/// A backend that the configuration reaches by loopback must not be reachable otherwise.
async fn from_outside(upstream: &UpstreamSpec, places: &[Place]) -> Verdict {
    let UpstreamAddress::Tcp { port, tls, .. } = &upstream.address else {
        return Verdict::Good("listens on a Unix socket".to_owned());
    };
    let is_local =
        |place: &Place| matches!(place, Place::Http(address) | Place::Https(address) if address.ip().is_loopback());
    if !places.iter().any(is_local) {
        return Verdict::Skipped(format!(
            "{} is another machine: see that only Vestibule reaches it (security group, NetworkPolicy)",
            upstream.url
        ));
    }
    let Some(outer) = outer_address() else { return Verdict::Skipped("this machine has no other address".to_owned()) };
    let address = SocketAddr::new(outer, *port);
    let place = if tls.is_some() { Place::Https(address) } else { Place::Http(address) };
    match place.connect().await {
        Ok(_) => Verdict::Red(format!(
            "{place} can be reached without Vestibule; have it listen on 127.0.0.1 only, and publish no port"
        )),
        Err(_) => Verdict::Good(format!("not reachable at {outer}")),
    }
}

/// What the backend answers to someone who names a user itself and is not us.
async fn direct(patient: &Patient<'_>, places: &[Place]) -> Result<(Place, u16), String> {
    let mut fields: Vec<String> =
        patient.policy.trusted_headers.iter().map(|header| format!("{}: {MARK}", header.written)).collect();
    fields.push(format!("X-Request-Id: {MARK}"));
    let mut problem = "its name does not resolve".to_owned();
    for place in places {
        match place.get(patient.whoami, "localhost", &fields).await {
            Ok(answer) => return Ok((place.clone(), answer.status)),
            Err(error) => problem = format!("{place}: {error}"),
        }
    }
    Err(problem)
}

async fn no_wall(patient: &Patient<'_>, places: &[Place]) -> Verdict {
    match direct(patient, places).await {
        Ok((place, status)) if !matches!(status, 401 | 403) => Verdict::Red(format!(
            "{place} answers {status} to someone else's request that names a user: so can code that the backend runs, or a neighbour. Give it a secret (upstream.credential), or identity.assertion, or a Unix socket"
        )),
        Ok((place, status)) => Verdict::Good(format!(
            "{place} answers {status} without us; write upstream.credential for the secret it wants"
        )),
        Err(problem) => Verdict::Good(format!("from here nobody reaches it: {problem}")),
    }
}

async fn behind(patient: &Patient<'_>, wall: &Wall, places: &[Place]) -> Verdict {
    match wall {
        Wall::UnixSocket(path) => unix_socket(path),
        Wall::OneUser => one_user(patient).await,
        Wall::Credential(header) | Wall::Assertion(header) => match direct(patient, places).await {
            Ok((place, 401 | 403)) => Verdict::Good(format!("{place} refuses requests without {header}")),
            Ok((place, status)) => Verdict::Red(format!(
                "{place} answers {status} to a request without {header} that names a user: it does not ask for it. Switch its own check on, or --whoami to a path that it guards"
            )),
            Err(problem) => Verdict::Skipped(format!("from here nobody reaches it: {problem}")),
        },
    }
}

/// Nobody else may enter: tried with another's token, where that is what was given.
async fn one_user(patient: &Patient<'_>) -> Verdict {
    let only = patient.policy.providers.iter().flat_map(|provider| &provider.allow.users).next();
    let (Some(only), Some(token)) = (only, &patient.token) else {
        return Verdict::Skipped("needs another user's valid token: --token-file".to_owned());
    };
    match patient.proxy.get(patient.whoami, "localhost", &[format!("Authorization: Bearer {token}")]).await {
        Ok(answer) if answer.refuses() => Verdict::Good(format!("this token is refused ({})", answer.status)),
        Ok(_) if said_of(token).is_some_and(|user| only.ends_with(&user)) => {
            Verdict::Good(format!("{only} enters; another user's token would show that nobody else does"))
        }
        Ok(answer) => Verdict::Red(format!(
            "a token of another user than {only} is answered {}: allow is not what is in force there",
            answer.status
        )),
        Err(problem) => Verdict::Red(problem),
    }
}

/// The `sub` of a token, unverified: it decides about a sentence only.
fn said_of(token: &str) -> Option<String> {
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&payload).ok()?;
    Some(claims["sub"].as_str()?.to_owned())
}

fn unix_socket(path: &Path) -> Verdict {
    match std::fs::metadata(path).map(|meta| meta.permissions().mode()) {
        Ok(mode) if mode & 0o006 == 0 => Verdict::Good(format!("{} is not open to everyone", path.display())),
        Ok(mode) => Verdict::Red(format!(
            "{} has mode {:04o}: every user of this machine opens it; chmod 0660, and a user of its own for the code that the backend runs",
            path.display(),
            mode & 0o7777
        )),
        Err(error) => Verdict::Skipped(format!("{}: {error}", path.display())),
    }
}

async fn admin(patient: &Patient<'_>) -> Verdict {
    let Some(admin) = &patient.policy.admin else { return Verdict::Good("off".to_owned()) };
    let Ok(inner) = Place::of(ListenPlace::Tcp(vec![admin.address]), false) else {
        return Verdict::Skipped("admin.listen has no fixed port".to_owned());
    };
    if inner.connect().await.is_err() {
        return Verdict::Good(format!("nothing answers at {}", admin.address));
    }
    let open = if admin.address.ip().is_loopback() {
        None
    } else {
        outer_address().map(|outer| SocketAddr::new(outer, admin.address.port()))
    };
    match open {
        Some(address) if Place::Http(address).connect().await.is_ok() => Verdict::Red(format!(
            "{address} answers other machines; listen on 127.0.0.1, or see that only your scraper reaches it"
        )),
        _ => Verdict::Good(format!(
            "{} on this machine only, the code that the backend runs included: GET, no token, no user id; admin: null switches it off",
            admin.address
        )),
    }
}

async fn control(patient: &Patient<'_>) -> Verdict {
    let Some(control) = &patient.policy.control else { return Verdict::Good("off".to_owned()) };
    match &control.address {
        ControlAddress::Unix(path) => match std::fs::metadata(path).map(|meta| meta.permissions().mode() & 0o777) {
            Ok(0o600) => Verdict::Good(format!("{} opens for its owner only", path.display())),
            Ok(mode) => Verdict::Red(format!(
                "{} has mode {mode:04o}: others can end sessions and drain; chmod 0600",
                path.display()
            )),
            Err(error) => Verdict::Skipped(format!("{}: {error}", path.display())),
        },
        ControlAddress::Tcp(address) => match Place::Http(*address).get("/", "localhost", &[]).await {
            Ok(answer) if answer.status == 401 => Verdict::Good(format!("{address} wants its token")),
            Ok(answer) => {
                Verdict::Red(format!("{address} answers {} without its token; is that another program?", answer.status))
            }
            Err(problem) => Verdict::Skipped(format!("{address}: {problem}")),
        },
    }
}
