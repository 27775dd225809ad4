//! `vestibule doctor`: tests the running proxy of this configuration, and the upstreams behind it, for known attacks
//! and for common mistakes of deployment. Each line of its output names the test, the finding and the remedy.
//!
//! It sends GET requests, WebSocket upgrades and two POST requests to the sign-in that must be refused, each with a
//! time limit, and no secret except the token of `--token-file`. Where instances share state it revokes a made-up
//! session. `proxy` and `sign_in` test the proxy, `upstream` whether there is a backend; `isolation` and `listeners` test
//! access that bypasses it, and `mirror` whether pages show a secret.

mod isolation;
mod listeners;
mod mirror;
mod paths;
mod probe;
mod proxy;
mod shared;
mod sign_in;
mod upstream;

use std::process::ExitCode;

use self::probe::{Answer, Request};
use super::endpoint::Endpoint;
use super::executor::block_on;
use super::{DoctorArguments, USAGE, fail, policy, print_line};
use crate::policy::{Hosts, ListenSpec, Policy};
use crate::random::{NoRandomNumbers, random};

/// The made-up text in paths, tokens, states and parameters of test requests.
const MARKER: &str = "vestibule-doctor";

/// The result of one check.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Outcome {
    /// The finding is as it should be.
    Passed(String),
    /// The finding is a problem, with its remedy.
    Failed(String),
    /// The check could not be made, with the reason.
    Skipped(String),
}

/// One line of the output: the check's name and its result.
type Line = (String, Outcome);

/// The running proxy that is tested, with the values that the tests need.
struct Target<'a> {
    policy: &'a Policy,
    proxy: Endpoint,
    /// The `Host` of requests to the proxy: one that it answers.
    host: String,
    /// The digest of the configuration, as metrics report it.
    digest: &'a str,
    /// A valid token, from `--token-file`.
    token: Option<String>,
    /// The path of `--whoami`.
    whoami: Option<&'a str>,
    /// A random user id. An answer that contains it shows that the upstream took it as the caller's.
    spoofed_user: String,
}

impl Target<'_> {
    /// Sends a GET request to the proxy.
    async fn get(&self, path: &str) -> Result<Answer, String> {
        self.get_with(path, &[]).await
    }

    /// Sends a GET request with further fields, each a whole line, to the proxy.
    async fn get_with(&self, path: &str, fields: &[String]) -> Result<Answer, String> {
        Request { target: path, host: &self.host, fields, ..Request::default() }.send(&self.proxy).await
    }
}

pub(super) fn doctor(arguments: &DoctorArguments) -> ExitCode {
    let edition = match policy(&arguments.config, |_| Vec::new()) {
        Ok(edition) => edition,
        Err(report) => return fail(&report, USAGE),
    };
    let listener = edition.policy.listen.first().ok_or_else(|| "listen is empty".to_owned());
    let proxy = match listener.and_then(endpoint) {
        Ok(proxy) => proxy,
        Err(problem) => return fail(&problem, USAGE),
    };
    let token = match arguments.token_file.as_ref().map(std::fs::read_to_string).transpose() {
        Ok(token) => token.map(|token| token.trim().trim_start_matches("Bearer ").to_owned()),
        Err(error) => return fail(&format!("--token-file: {error}; name a file that holds the token"), USAGE),
    };
    let whoami = arguments.whoami.as_deref();
    if whoami.is_some_and(|path| !path.starts_with('/')) {
        return fail(&"--whoami: write a path, such as /api/whoami", USAGE);
    }
    let spoofed_user = match random_user() {
        Ok(user) => user,
        Err(error) => return fail(&error, 1),
    };
    let host = answered_host(&edition.policy);
    let digest = &edition.digest;
    let target = Target { policy: &edition.policy, proxy, host, digest, token, whoami, spoofed_user };
    block_on(run_checks(&edition.name, &target)).unwrap_or_else(|error| fail(&error, 1))
}

fn endpoint(listen: &ListenSpec) -> Result<Endpoint, String> {
    Endpoint::of_listener(listen.place.clone(), listen.tls.is_some())
}

/// Returns a random user id, which no answer contains by accident.
fn random_user() -> Result<String, NoRandomNumbers> {
    Ok(format!("doctor{:016x}", u64::from_be_bytes(random()?)))
}

/// Returns a `Host` that the proxy accepts. It is that of `public_url` where there is one, since cookies and redirects
/// depend on it.
fn answered_host(policy: &Policy) -> String {
    if let Some(url) = &policy.public_url {
        let authority = url.as_str().split_once("://").map_or(url.as_str(), |(_, authority)| authority);
        return authority.to_owned();
    }
    match &policy.hosts {
        Hosts::Listed { names, loopback: false } => names.first().cloned().unwrap_or_else(|| "localhost".to_owned()),
        Hosts::Any | Hosts::Listed { .. } => "localhost".to_owned(),
    }
}

async fn run_checks(name: &str, target: &Target<'_>) -> ExitCode {
    print_line(format_args!("{name} at {}", target.proxy));
    let mut lines = Vec::new();
    let ready = proxy::is_ready(target).await;
    let is_reachable = ready.is_ok();
    lines.push(("ready".to_owned(), ready.unwrap_or_else(Outcome::Failed)));
    let mut paths = Vec::new();
    for index in 0..target.policy.upstreams.len() {
        paths.push(paths::UpstreamPaths::find(target, index).await);
    }
    if is_reachable {
        lines.extend(proxy::run_checks(target, &paths).await);
        lines.extend(sign_in::run_checks(target).await);
    }
    lines.extend(upstream::run_checks(target, &paths).await);
    lines.extend(isolation::run_checks(target, &paths).await);
    lines.extend(mirror::run_checks(target, &paths).await);
    lines.extend(listeners::run_checks(target).await);
    lines.extend(shared::run_checks(target).await);
    report(&lines)
}

fn report(lines: &[Line]) -> ExitCode {
    let mut failed = 0;
    for (name, outcome) in lines {
        let (word, text) = match outcome {
            Outcome::Passed(text) => ("ok", text),
            Outcome::Failed(text) => {
                failed += 1;
                ("RED", text)
            }
            Outcome::Skipped(text) => ("-", text),
        };
        // The text may contain values that an upstream or a provider wrote.
        let text = text.replace(char::is_control, "?");
        print_line(format_args!("  {word:<4} {name:<22}  {text}"));
    }
    if failed == 0 {
        print_line("Nothing is red.");
        return ExitCode::SUCCESS;
    }
    print_line(format_args!("{failed} of {} are red.", lines.len()));
    ExitCode::from(1)
}
