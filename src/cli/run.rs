//! `vestibule run`: starts the proxy, prints a summary of the policy, serves, and drains.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::signal::unix::{Signal, SignalKind, signal};

use super::descriptors::Shortage;
use super::executor::{NotStarted, UNFINISHED_WAIT, block_on};
use super::{RunArguments, USAGE, descriptors, dev_key, fail, policy, print_line};
use crate::admin::Admin;
use crate::auth::digest::DigestKeys;
use crate::auth::{RevocationFileError, Revocations, unix_seconds};
use crate::config::{Loaded, Report};
use crate::control::Control;
use crate::drain::DrainTimes;
use crate::listen::Listeners;
use crate::policy::{AuthMode, LogFormat, Policy, TokenToHttp, sockets, tokens};
use crate::reload::{Load, LoadedPolicy, Reload, Watched, load_watched};
use crate::runtime::{ProxyState, Runtime};
use crate::telemetry::{self, Format};
use crate::workers::{WorkerThreads, Workers};

pub(super) fn run(arguments: &RunArguments) -> ExitCode {
    let started = Instant::now();
    let file = arguments.config.file().into_iter().collect();
    let (mut loaded, watched) = match load_watched(file, || load(arguments)) {
        Ok(both) => both,
        Err(report) => return fail(&report, USAGE),
    };
    start_log(&loaded.policy);
    let known = Mutex::new(None);
    log_shortage(&known, descriptors::fit(&mut loaded.policy));
    let again = arguments.clone();
    let reload: Load = Box::new(move || {
        let mut loaded = load(&again).map_err(|report| report.line())?;
        log_shortage(&known, descriptors::fit(&mut loaded.policy));
        Ok(loaded)
    });
    let threads = match WorkerThreads::start(UNFINISHED_WAIT) {
        Ok(threads) => threads,
        Err(error) => return fail(&NotStarted(error), 1),
    };
    let outcome = block_on(async {
        let code = serve(loaded, watched, reload, started, threads.handle()).await;
        // They end while the runtime of this command does.
        threads.stop();
        code
    });
    // Each request that is still served writes its access line now.
    drop(threads);
    match outcome {
        Ok(code) => {
            telemetry::flush();
            code
        }
        Err(error) => fail(&error, 1),
    }
}

/// Logs too few file descriptors, once for each new shortage: most reloads change nothing about it.
fn log_shortage(known: &Mutex<Option<Shortage>>, found: Option<Shortage>) {
    let mut known = known.lock().unwrap_or_else(PoisonError::into_inner);
    if *known != found
        && let Some(shortage) = found
    {
        shortage.log();
    }
    *known = found;
}

fn load(arguments: &RunArguments) -> Result<LoadedPolicy, Report> {
    let dev = |loaded: &mut Loaded| if arguments.insecure_dev { dev_key::add_provider(loaded) } else { Vec::new() };
    policy(&arguments.config, dev)
}

fn start_log(policy: &Policy) {
    let format = match policy.log.format {
        LogFormat::Auto => None,
        LogFormat::Json => Some(Format::Json),
        LogFormat::Pretty => Some(Format::Pretty),
    };
    telemetry::start(format, policy.log.level.name());
}

async fn serve(loaded: LoadedPolicy, watched: Watched, load: Load, started: Instant, workers: Workers) -> ExitCode {
    let LoadedPolicy { policy, name, .. } = loaded;
    let listeners = match Listeners::bind(&policy) {
        Ok(listeners) => listeners,
        Err(error) => return fail(&error, 1),
    };
    let (mut signals, hangup) = match Signals::new().and_then(|signals| Ok((signals, signal(SignalKind::hangup())?))) {
        Ok(both) => both,
        Err(error) => return fail(&format!("signals cannot be received: {error}"), 1),
    };
    let revocations = match revocations(&policy) {
        Ok(revocations) => revocations,
        Err(error) => return fail(&format!("control.revocation_file: {error}"), 1),
    };
    let control = match policy.control.as_ref().map(Control::bind).transpose() {
        Ok(control) => control,
        Err(error) => return fail(&error, 1),
    };
    let admin = match policy.admin.as_ref().map(Admin::bind).transpose() {
        Ok(admin) => admin.flatten(),
        Err(error) => return fail(&error, 1),
    };
    let addresses = listeners.addresses();
    let state = match ProxyState::start(policy, revocations) {
        Ok(state) => Arc::new(state),
        Err(error) => return fail(&error, 1),
    };
    if let Err(error) = listeners.serve(&state, &workers) {
        return fail(&error, 1);
    }
    let admin_address = admin.as_ref().and_then(Admin::address).map(|address| format!("http://{address}"));
    let _admin = admin.map(|admin| admin.serve(&state));
    // The handle is held until the end, because dropping it removes the socket file.
    let _control = control.map(|control| control.serve(&state));
    tokio::spawn(Reload::new(&state, load, watched).run(hangup));
    announce_start(&state, &name, &addresses, admin_address.as_deref(), started).await;
    let times = signals.first(&state).await;
    state.drain.begin();
    let open = state.drain.tracked_count();
    tracing::info!(
        open,
        timeout_s = times.timeout.as_secs(),
        "draining; the platform must wait longer than timeout_s (stopTimeout, stop_grace_period, terminationGracePeriodSeconds)"
    );
    telemetry::write_soon();
    tokio::select! {
        done = state.drain.run(times) => {
            if let Some(instances) = &state.instances {
                instances.leave(instances.timeout() * 4).await;
            }
            if done {
                tracing::info!("drained");
            } else {
                let open = state.drain.tracked_count();
                tracing::warn!(open, "drain timeout exceeded, dropping open connections");
            }
            ExitCode::SUCCESS
        }
        () = signals.another() => ExitCode::from(130),
    }
}

/// Loads the revocations of earlier runs.
fn revocations(policy: &Policy) -> Result<Revocations, RevocationFileError> {
    let keys = policy.shared.as_ref().and_then(|shared| DigestKeys::derived(&shared.secrets, &shared.name));
    let revocations = Revocations::with_keys(keys.unwrap_or_default());
    if let Some(path) = policy.control.as_ref().and_then(|control| control.revocation_file.as_ref()) {
        let count =
            revocations.attach_file(path, policy.limits.revocations + policy.limits.sign_outs, unix_seconds())?;
        tracing::info!(count, "loaded revocations");
    }
    Ok(revocations)
}

struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }

    /// Waits for the first signal. SIGTERM, and a request on the control listener, drain with the configured times;
    /// SIGINT comes from a person at the keyboard and drains at once.
    async fn first(&mut self, state: &ProxyState) -> DrainTimes {
        let asked = state.drain.request_token();
        let as_configured = || {
            let runtime = state.current();
            DrainTimes::gradual(runtime.policy.drain_delay, runtime.policy.drain_timeout)
        };
        tokio::select! {
            _ = self.terminate.recv() => as_configured(),
            () = asked.cancelled() => as_configured(),
            _ = self.interrupt.recv() => DrainTimes::immediate(state.current().policy.drain_timeout),
        }
    }

    async fn another(&mut self) {
        tokio::select! {
            _ = self.terminate.recv() => {}
            _ = self.interrupt.recv() => {}
        }
    }
}

/// Announces the start: on a terminal in two columns, elsewhere as log lines. `listening` comes at once, `ready` when
/// `/.vestibule/readyz` is 200.
async fn announce_start(
    state: &Arc<ProxyState>,
    name: &str,
    addresses: &[String],
    admin: Option<&str>,
    started: Instant,
) {
    let runtime = state.current();
    let is_for_people = std::io::stdout().is_terminal() || runtime.policy.log.format == LogFormat::Pretty;
    for warning in &runtime.policy.warnings {
        tracing::warn!("{warning}");
    }
    if !is_for_people {
        let version = env!("CARGO_PKG_VERSION");
        tracing::info!(listen = %addresses.join(" "), admin = admin.unwrap_or("none"), config = name, version, "listening");
        telemetry::write_soon();
        tokio::spawn(log_ready(Arc::clone(state), started));
        return;
    }
    // A summary that is printed a moment later can include the keys.
    let is_ready = tokio::time::timeout(Duration::from_millis(300), state.until_ready()).await.is_ok();
    let elapsed = started.elapsed().as_millis();
    telemetry::flush();
    let reachable = runtime.upstreams.is_reachable().await;
    print_start(&runtime, name, (addresses, admin), reachable);
    if is_ready {
        print_line(format_args!("ready in {elapsed} ms"));
    } else {
        print_line(format_args!(
            "not ready yet: waiting for the keys of a provider or the first copy of the shared state"
        ));
        tokio::spawn(log_ready(Arc::clone(state), started));
    }
}

/// Logs that the process is ready, as soon as it is.
async fn log_ready(state: Arc<ProxyState>, started: Instant) {
    state.until_ready().await;
    let after_ms = u64::try_from(started.elapsed().as_millis()).unwrap_or(u64::MAX);
    tracing::info!(after_ms, "ready");
    telemetry::write_soon();
}

fn print_start(runtime: &Runtime, name: &str, (addresses, admin): (&[String], Option<&str>), reachable: bool) {
    let policy = &runtime.policy;
    let mut out = String::new();
    let mut line = |name: &str, text: &str| {
        let _ = writeln!(out, "  {name:<11} {text}");
    };
    let admin = admin.map_or_else(String::new, |admin| format!("       admin {admin}/status"));
    line("listening", &format!("{}{admin}", addresses.join("  ")));
    for (index, upstream) in policy.upstreams.iter().enumerate() {
        let missing = if index == 0 && !reachable { "     not reachable yet: 502 until it is" } else { "" };
        line("upstream", &format!("{}{missing}", upstream.url));
    }
    for (spec, keys) in runtime.verifier.providers() {
        let health = keys.health();
        let keys = match (&health.failure, health.keys) {
            (Some(failure), _) => format!("no keys yet: {failure}"),
            (None, 0) => "keys are being fetched".to_owned(),
            (None, count) => format!("{count} keys, {}", health.algorithms.join(" ")),
        };
        line("provider", &format!("{} {}   {keys}", spec.name, spec.issuer.as_deref().unwrap_or("")));
    }
    let headers: Vec<String> = policy.trusted_headers.iter().map(|h| format!("{} = {}", h.written, h.claim)).collect();
    let passed = if policy.upstreams.iter().all(|upstream| upstream.token_to_http == TokenToHttp::None) {
        "the caller's token is not passed on"
    } else {
        "the caller's token is passed on too"
    };
    line("identity", &format!("{}   {passed}", headers.join(", ")));
    if let Some(default) = policy.routes.last() {
        line("tokens", &tokens(policy, default));
        line("sockets", &sockets(policy, default));
    }
    let public: Vec<&str> =
        policy.routes.iter().filter(|route| route.auth == AuthMode::None).map(|route| &*route.label).collect();
    if !public.is_empty() {
        line("public", &public.join(" "));
    }
    print_line(format_args!("vestibule {} · {name}\n{}", env!("CARGO_PKG_VERSION"), out.trim_end_matches('\n')));
}
