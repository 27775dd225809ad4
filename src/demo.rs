//! `vestibule demo`: an issuer with new keys, a small live notebook and the proxy, in one process, on
//! this machine only, with nothing to configure.
//!
//! The proxy is the real one under a real configuration; the page shows what the browser sent, what
//! Vestibule did and what the backend saw, as it happens.

mod expression;
mod issuer;
mod notebook;
mod story;

use std::process::ExitCode;
use std::sync::Arc;

use crate::config::{self, Environment, Flags};
use crate::listen::{ListenError, Listeners};
use crate::policy::{self, Policy};
use crate::runtime::{Runtime, Shared};
use crate::telemetry::{self, Format, Observed};

use issuer::Issuer;
use story::Story;

/// A taken port moves on at most this far.
const PORTS: u16 = 50;
/// Beyond their token's end the demo's sockets live this much longer: long enough to see, short enough
/// to wait for.
const GRACE: &str = "2s";

#[derive(Debug, thiserror::Error)]
enum DemoError {
    #[error(
        "--listen {0} is not an address and port on this machine, such as 127.0.0.1:8080; the demo signs in anyone who asks"
    )]
    Listen(String),
    #[error(transparent)]
    Bind(#[from] ListenError),
    #[error("the demo could not be started: {0}")]
    Io(#[from] std::io::Error),
    #[error("the demo's own configuration is wrong: {0}")]
    Configuration(String),
    #[error("no key could be made")]
    Key,
}

/// Runs the demo until Ctrl-C. `executor`: what it runs on.
pub fn main(listen: &str, executor: std::io::Result<tokio::runtime::Runtime>) -> ExitCode {
    let outcome = executor.map_err(DemoError::Io).and_then(|executor| executor.block_on(run(listen)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => say_error(&error),
    }
}

#[expect(clippy::print_stderr, reason = "the command's own words")]
fn say_error(error: &DemoError) -> ExitCode {
    eprintln!("{error}");
    ExitCode::from(1)
}

async fn run(listen: &str) -> Result<(), DemoError> {
    let address: std::net::SocketAddr = listen.parse().map_err(|_| DemoError::Listen(listen.to_owned()))?;
    if !address.ip().is_loopback() {
        return Err(DemoError::Listen(listen.to_owned()));
    }
    let story = Arc::new(Story::default());
    telemetry::start(Some(Format::Silent), "debug");
    let teller = Arc::clone(&story);
    telemetry::observe(Box::new(move |observed| match observed {
        Observed::Access(line) => teller.vestibule_answered(line),
        Observed::Message(message) => teller.vestibule_said(message),
    }));
    let issuer = Arc::new(Issuer::start().await?);
    let backend = notebook::start(Arc::clone(&story), Arc::clone(&issuer)).await?;
    let (policy, listeners) = bind(address, &issuer, &format!("http://{backend}"))?;
    let local = listeners.addresses().first().copied().unwrap_or(address);
    let shared = Arc::new(Shared::new(Runtime::start(policy)));
    listeners.serve(&shared);
    for (_, keys) in shared.current().verifier.providers() {
        keys.first_attempt().await;
    }
    print_welcome(&format!("http://{local}"), &issuer.token("alice", 3_600)?);
    tokio::signal::ctrl_c().await?;
    shared.drain.run(std::time::Duration::ZERO, std::time::Duration::from_secs(2)).await;
    Ok(())
}

/// The demo's configuration is what a user would write.
fn policy(address: std::net::SocketAddr, issuer: &Issuer, backend: &str) -> Result<Policy, DemoError> {
    let yaml = format!(
        "listen: \"{address}\"
upstream: {{ url: \"{backend}\", pool_idle_timeout: 1s }}
providers: [{{ name: demo, preset: oidc, issuer: \"{}\", audience: {} }}]
websocket: {{ grace: {GRACE} }}
routes:
  - {{ path: /, auth: none }}
  - {{ path: /demo/**, auth: none }}
  - {{ path: /favicon.ico, auth: none }}
",
        issuer.url(),
        issuer::AUDIENCE
    );
    let environment = move |name: &str| (name == "VESTIBULE_CONFIG_YAML").then(|| yaml.clone());
    let loaded = config::load(&Flags::default(), &Environment(&environment))
        .map_err(|report| DemoError::Configuration(report.to_string()))?;
    let mut findings = Vec::new();
    let validated = policy::validate(&loaded.config).map_err(|found| findings = found);
    loaded.conclude(validated, findings).map_err(|report| DemoError::Configuration(report.to_string()))
}

fn bind(address: std::net::SocketAddr, issuer: &Issuer, backend: &str) -> Result<(Policy, Listeners), DemoError> {
    let mut address = address;
    for _ in 0..PORTS {
        let policy = policy(address, issuer, backend)?;
        match Listeners::bind(&policy) {
            Ok(listeners) => return Ok((policy, listeners)),
            Err(ListenError::Bind { source, .. }) if source.kind() == std::io::ErrorKind::AddrInUse => {
                address.set_port(address.port().wrapping_add(1));
            }
            Err(error) => return Err(error.into()),
        }
    }
    let policy = policy(address, issuer, backend)?;
    let listeners = Listeners::bind(&policy)?;
    Ok((policy, listeners))
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
