//! `vestibule demo`: runs the proxy with a backend, in one process, on this machine only. The backend is the demo's
//! own, or that of `--upstream`.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use tokio::signal::unix::{SignalKind, signal};
use url::Url;

use super::executor::block_on;
use super::{DemoArguments, fail, print_line};
use crate::auth::Revocations;
use crate::config::{self, shown_url};
use crate::demo::{Demo, DemoError, OwnBackend, OwnBackendDemo};
use crate::drain::DrainTimes;
use crate::listen::{ListenError, Listeners};
use crate::policy::{self, Policy, UpstreamAddress};
use crate::runtime::ProxyState;
use crate::shared::EngineError;
use crate::telemetry::{self, Format};
use crate::workers::Workers;

/// The number of ports that are tried when the first is in use.
const MAX_PORTS: u16 = 50;

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
    #[error(transparent)]
    Shared(#[from] EngineError),
    #[error("--upstream {upstream}: {message}")]
    Upstream {
        /// Without user, password and query, which may be secrets.
        upstream: String,
        message: String,
    },
    #[error("the demo's own configuration is wrong: {0}")]
    Configuration(#[from] config::Report),
    #[error("the demo could not be run: {0}")]
    Io(#[from] std::io::Error),
}

pub(super) fn demo(arguments: &DemoArguments) -> ExitCode {
    let outcome = block_on(run(arguments)).map_err(|error| Failure::Io(error.0)).and_then(|outcome| outcome);
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => fail(&failure, 1),
    }
}

async fn run(arguments: &DemoArguments) -> Result<(), Failure> {
    let listen = &arguments.listen;
    let address: Option<SocketAddr> = listen.parse().ok();
    let Some(address) = address.filter(|address| address.ip().is_loopback()) else {
        return Err(Failure::Listen(listen.to_owned()));
    };
    if let Some(upstream) = &arguments.upstream {
        telemetry::start(None, "info");
        let backend = own_backend(upstream, arguments)?;
        let credential = backend.credential.clone();
        let demo = OwnBackendDemo::start(backend).await?;
        let (policy, listeners) = bind(address, Some(upstream), |address| demo.configuration(address))?;
        for warning in &policy.warnings {
            tracing::warn!("{warning}");
        }
        let token = demo.token()?;
        let problem = upstream_problem(&policy, arguments.upstream_preset.as_deref(), credential.as_deref()).await;
        return serve(policy, listeners, |url| {
            print_own_backend(url, demo.user(), upstream, problem.as_deref(), &token);
        })
        .await;
    }
    telemetry::start(Some(Format::Silent), "debug");
    let demo = Demo::start().await?;
    telemetry::observe(demo.observer());
    let (policy, listeners) = bind(address, None, |address| demo.configuration(address))?;
    let token = demo.token("alice")?;
    serve(policy, listeners, |url| print_welcome(url, &token)).await
}

async fn serve(policy: Policy, listeners: Listeners, welcome: impl FnOnce(&str)) -> Result<(), Failure> {
    let url = listeners.addresses().first().cloned().unwrap_or_default();
    let state = Arc::new(ProxyState::start(policy, Revocations::default())?);
    listeners.serve(&state, &Workers::default())?;
    for (_, keys) in state.current().verifier.providers() {
        keys.first_attempt().await;
    }
    // This comes before the output is printed, because its reader may stop the demo at once.
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    welcome(&url);
    tokio::select! {
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
    }
    state.drain.run(DrainTimes::immediate(Duration::from_secs(2))).await;
    telemetry::flush();
    Ok(())
}

/// The time limit of the request to the backend before the output is printed.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// Sends the backend one request, and returns the problem for the user: it does not answer, or refuses the secret that it
/// printed.
async fn upstream_problem(policy: &Policy, preset: Option<&str>, credential: Option<&str>) -> Option<String> {
    let upstream = policy.upstreams.first()?;
    let UpstreamAddress::Tcp { .. } = &upstream.address else { return None };
    let client =
        reqwest::Client::builder().timeout(PROBE_TIMEOUT).redirect(reqwest::redirect::Policy::none()).no_proxy();
    // Front pages are often served without a credential.
    let path = upstream.preset.map_or("/", |preset| preset.guarded);
    let mut request = client.build().ok()?.get(format!("{}{path}", upstream.url.trim_end_matches('/')));
    if let Some(credential) = credential {
        request = request.header("Authorization", credential);
    }
    match request.send().await {
        Err(_) => Some(format!("{} does not answer: start the backend; until then every page is 502", upstream.url)),
        Ok(answer) if matches!(answer.status().as_u16(), 401 | 403) && preset.is_some() => {
            Some(if credential.is_some() {
                format!(
                    "the backend answered {} to its token: copy the address again, as it prints it now",
                    answer.status().as_u16()
                )
            } else {
                format!(
                    "the backend answered {} without its token: give --upstream the address as it prints it, with ?token=…",
                    answer.status().as_u16()
                )
            })
        }
        Ok(_) => None,
    }
}

/// Parses the address that a backend prints for copying, with its own secret in it.
fn own_backend(written: &str, arguments: &DemoArguments) -> Result<OwnBackend, Failure> {
    let url = Url::parse(written).ok().filter(|url| url.host().is_some() || url.scheme() == "unix");
    let url = url.ok_or_else(|| Failure::Upstream {
        upstream: shown_url(written),
        message: "is not a URL; write it as http://127.0.0.1:8888".to_owned(),
    })?;
    let pair = |name: &str| url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned());
    let from_environment = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let is_jupyter = arguments.upstream_preset.as_deref() == Some("jupyter");
    let credential = if is_jupyter {
        pair("token").or_else(|| from_environment("JUPYTER_TOKEN")).map(|token| format!("token {token}"))
    } else {
        pair("access_token").map(|password| format!("Basic {}", STANDARD.encode(format!("vestibule:{password}"))))
    };
    let place = match url.scheme() {
        "unix" => written.to_owned(),
        _ => url.origin().ascii_serialization(),
    };
    let (preset, user) = (arguments.upstream_preset.clone(), arguments.user.clone());
    Ok(OwnBackend { url: place, preset, credential, user })
}

/// Reads the demo's configuration in the same way as any other.
fn policy(yaml: &str) -> Result<Policy, config::Report> {
    let loaded = config::load_yaml(yaml)?;
    let mut findings = Vec::new();
    let validated = policy::validate(&loaded.config).map_err(|found| findings = found);
    // Warnings get no place: nobody wrote this configuration.
    loaded.conclude(validated, findings)
}

/// Listens at `address`, or on the next port that is free. `upstream` is the URL of `--upstream`.
fn bind(
    mut address: SocketAddr,
    upstream: Option<&str>,
    configuration: impl Fn(SocketAddr) -> String,
) -> Result<(Policy, Listeners), Failure> {
    let mut left = MAX_PORTS;
    loop {
        let policy = policy(&configuration(address)).map_err(|report| {
            let of_upstream = report.findings().iter().find(|finding| finding.path().starts_with("upstream"));
            match (upstream, of_upstream) {
                (Some(upstream), Some(finding)) => {
                    Failure::Upstream { upstream: shown_url(upstream), message: finding.message().to_owned() }
                }
                _ => Failure::Configuration(report),
            }
        })?;
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

fn print_welcome(url: &str, token: &str) {
    print_line(format_args!(
        "Vestibule demo · everything runs in this process, on this machine only

  Open      {url}

  Try       TOKEN={token}
              a token for alice, good for 1 h
            curl -i {url}/api/whoami
              → 401
            curl -H \"Authorization: Bearer $TOKEN\" {url}/api/whoami
              → alice
            curl -H \"Authorization: Bearer $TOKEN\" -H \"X-User-Id: bob\" {url}/api/whoami
              → still alice

  Your own  vestibule demo --upstream 'http://127.0.0.1:8888/lab?token=…' --upstream-preset jupyter
            (paste the address that Jupyter prints, with its token)
  For real  vestibule run --upstream http://127.0.0.1:8000 --issuer https://… --audience … --origin https://…
Ctrl-C stops."
    ));
}

fn print_own_backend(url: &str, user: &str, upstream: &str, problem: Option<&str>, token: &str) {
    // The query may be the backend's own secret.
    let upstream = shown_url(upstream);
    let problem = problem.map_or_else(String::new, |problem| format!("  PROBLEM   {problem}\n"));
    print_line(format_args!(
        "Vestibule demo · before your own backend, on this machine only

  Open      {url}
  Before    {upstream}
{problem}
  Try       TOKEN={token}
              a token for {user}, good for 1 h
            curl -i {url}/
              → 401
            curl -i -H \"Authorization: Bearer $TOKEN\" {url}/
              → the backend's own answer

  For real  the same with your identity provider: upstream, preset and credential in a file,
            see docs/first-configuration.md, and docs/backends/ for your backend
Ctrl-C stops.",
    ));
}
