//! Tests which listeners other machines can reach: those of the upstreams, and the proxy's own for operators.

use std::net::{IpAddr, SocketAddr, UdpSocket};
use std::os::unix::fs::PermissionsExt as _;

use super::probe::{Request, TIME_LIMIT};
use super::{Endpoint, Line, Outcome, Target};
use crate::policy::{ControlAddress, ListenPlace, UpstreamAddress, UpstreamSpec};

pub(super) async fn run_checks(target: &Target<'_>) -> Vec<Line> {
    let mut lines = Vec::new();
    let has_several = target.policy.upstreams.len() > 1;
    for upstream in &target.policy.upstreams {
        let suffix = if has_several { format!(" {}", upstream.url) } else { String::new() };
        lines.push((format!("backend{suffix}"), backend(upstream).await));
    }
    lines.push(("admin".to_owned(), admin(target).await));
    lines.push(("control".to_owned(), control(target).await));
    lines
}

/// Returns the address by which other machines reach this one. Connecting a UDP socket sends no packet.
fn outer_address() -> Option<IpAddr> {
    let socket = UdpSocket::bind("0.0.0.0:0").ok()?;
    socket.connect("192.0.2.1:9").ok()?;
    Some(socket.local_addr().ok()?.ip()).filter(|address| !address.is_loopback() && !address.is_unspecified())
}

/// Checks that an upstream with a loopback address in the configuration is not reachable by another address.
async fn backend(upstream: &UpstreamSpec) -> Outcome {
    let UpstreamAddress::Tcp { host, port, tls } = &upstream.address else {
        return Outcome::Passed("listens on a Unix socket".to_owned());
    };
    let Ok(mut addresses) = tokio::net::lookup_host((host.as_str(), *port)).await else {
        return Outcome::Skipped(format!("{host} does not resolve here"));
    };
    if !addresses.any(|address| address.ip().is_loopback()) {
        return Outcome::Skipped(format!(
            "{} is another machine: let only Vestibule reach it (security group, NetworkPolicy)",
            upstream.url
        ));
    }
    let Some(outer) = outer_address() else { return Outcome::Skipped("this machine has no other address".to_owned()) };
    let address = SocketAddr::new(outer, *port);
    let endpoint = if tls.is_some() { Endpoint::Https(address) } else { Endpoint::Http(address) };
    match endpoint.connect(TIME_LIMIT).await {
        Ok(_) => Outcome::Failed(format!(
            "{endpoint} can be reached without Vestibule; let the backend listen on 127.0.0.1 only, and publish no port"
        )),
        Err(_) => Outcome::Passed(format!("not reachable at {outer}")),
    }
}

async fn admin(target: &Target<'_>) -> Outcome {
    let Some(admin) = &target.policy.admin else { return Outcome::Passed("off".to_owned()) };
    let Ok(endpoint) = Endpoint::of_listener(ListenPlace::Tcp(vec![admin.address]), false) else {
        return Outcome::Skipped("admin.listen has port 0".to_owned());
    };
    if endpoint.connect(TIME_LIMIT).await.is_err() {
        return Outcome::Passed(format!("nothing listens at {}", admin.address));
    }
    // A page that points its name at this listener (DNS rebinding) must not read it.
    let foreign = Request { target: "/status", host: "vestibule-doctor.example", ..Request::default() };
    match foreign.send(&endpoint).await {
        Ok(answer) if answer.status == 421 => {}
        Ok(answer) => {
            return Outcome::Failed(format!(
                "{} answers {} to a foreign Host, and should answer 421: another program listens there, or admin.hosts lists it",
                admin.address, answer.status
            ));
        }
        Err(problem) => return Outcome::Skipped(format!("{}: {problem}", admin.address)),
    }
    if admin.address.ip().is_loopback() {
        return Outcome::Passed(format!(
            "{} answers this machine only, the code that the backend runs included: GET, no token, no user id; admin: null turns it off",
            admin.address
        ));
    }
    // Network rules decide which machines reach the listener, and this machine cannot see them.
    Outcome::Skipped(format!(
        "{} answers other machines too, as admin.listen says: GET, no token, no user id; let only your scraper reach it (NetworkPolicy, a port published on 127.0.0.1)",
        admin.address
    ))
}

async fn control(target: &Target<'_>) -> Outcome {
    let Some(control) = &target.policy.control else { return Outcome::Passed("off".to_owned()) };
    match &control.address {
        ControlAddress::Unix(path) => match std::fs::metadata(path).map(|meta| meta.permissions().mode() & 0o777) {
            Ok(0o600) => Outcome::Passed(format!("only the owner of {} can open it", path.display())),
            Ok(mode) => Outcome::Failed(format!(
                "{} has mode {mode:04o}: other users can end sessions and drain; chmod 0600",
                path.display()
            )),
            Err(error) => Outcome::Skipped(format!("{}: {error}", path.display())),
        },
        ControlAddress::Tcp(address) => {
            let request = Request { target: "/", host: "localhost", ..Request::default() };
            match request.send(&Endpoint::Http(*address)).await {
                Ok(answer) if answer.status == 401 => Outcome::Passed(format!("{address} asks for its token")),
                Ok(answer) => Outcome::Failed(format!(
                    "{address} answers {} without its token; is it another program?",
                    answer.status
                )),
                Err(problem) => Outcome::Skipped(format!("{address}: {problem}")),
            }
        }
    }
}
