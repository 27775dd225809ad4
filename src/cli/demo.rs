//! `vestibule demo`: the real proxy before the demo's backend, in one process, on this machine only.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use super::run::executor;
use super::{DemoArguments, fail};
use crate::auth::Revocations;
use crate::config;
use crate::demo::{Demo, DemoError};
use crate::drain::Times;
use crate::listen::{ListenError, Listeners};
use crate::policy::{self, Policy};
use crate::runtime::Shared;
use crate::telemetry::{self, Format};

/// A taken port moves on at most this far.
const PORTS: u16 = 50;

#[derive(Debug, thiserror::Error)]
enum Failure {
    #[error(
        "--listen {0} is not an address and port on this machine, such as 127.0.0.1:8080; the demo signs in anyone who asks"
    )]
    Listen(String),
    #[error(transparent)]
    Bind(#[from] ListenError),
    #[error(transparent)]
    Demo(#[from] DemoError),
    #[error("the demo's own configuration is wrong: {0}")]
    Configuration(#[from] config::Report),
    #[error("the demo could not be run: {0}")]
    Io(#[from] std::io::Error),
}

pub(super) fn demo(arguments: &DemoArguments) -> ExitCode {
    let outcome = executor().map_err(Failure::Io).and_then(|executor| executor.block_on(run(&arguments.listen)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => fail(&failure, 1),
    }
}

async fn run(listen: &str) -> Result<(), Failure> {
    let address: Option<SocketAddr> = listen.parse().ok();
    let Some(address) = address.filter(|address| address.ip().is_loopback()) else {
        return Err(Failure::Listen(listen.to_owned()));
    };
    telemetry::start(Some(Format::Silent), "debug");
    let demo = Demo::start().await?;
    telemetry::observe(demo.observer());
    let (policy, listeners) = bind(address, &demo)?;
    let url = listeners.addresses().first().cloned().unwrap_or_default();
    let shared = Arc::new(Shared::start(policy, Revocations::default()));
    listeners.serve(&shared)?;
    for (_, keys) in shared.current().verifier.providers() {
        keys.first_attempt().await;
    }
    // Before the welcome: whoever has read it may already stop the demo.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    print_welcome(&url, &demo.token("alice")?);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    shared.drain.run(Times::at_once(Duration::from_secs(2))).await;
    Ok(())
}

/// The demo's configuration goes the way of every configuration.
fn policy(yaml: &str) -> Result<Policy, config::Report> {
    let loaded = config::load_yaml(yaml)?;
    let mut findings = Vec::new();
    let validated = policy::validate(&loaded.config).map_err(|found| findings = found);
    loaded.conclude(validated, findings)
}

fn bind(mut address: SocketAddr, demo: &Demo) -> Result<(Policy, Listeners), Failure> {
    let mut left = PORTS;
    loop {
        let policy = policy(&demo.configuration(address))?;
        match Listeners::bind(&policy) {
            Ok(listeners) => return Ok((policy, listeners)),
            Err(ListenError::Bind { source, .. }) if source.kind() == std::io::ErrorKind::AddrInUse && left > 0 => {
                left -= 1;
                address.set_port(address.port().wrapping_add(1));
            }
            Err(error) => return Err(error.into()),
        }
    }
}

#[expect(clippy::print_stdout, reason = "the demo's words")]
fn print_welcome(url: &str, token: &str) {
    println!(
        "Vestibule demo · everything runs in this process, on this machine only

  Open      {url}

  Try       curl -i {url}/api/whoami
              → 401
            curl -H \"Authorization: Bearer $TOKEN\" {url}/api/whoami
              → alice
            curl -H \"Authorization: Bearer $TOKEN\" -H \"X-User-Id: bob\" {url}/api/whoami
              → still alice

            with a token for alice, good for 1 h:
            TOKEN={token}

  For real  vestibule run --upstream http://127.0.0.1:8000 --issuer https://… --audience … --origin https://…
Ctrl-C stops."
    );
}
