//! `vestibule doctor`: replays what attackers try, and what deployments get wrong, against the running proxy of this
//! configuration and the backend behind it. Each line says what was tried, what came of it, and what to do.
//!
//! It asks only: GET and WebSocket upgrades, no secret of ours, a few dozen requests, each with its limit. What the
//! proxy must withstand is in `proxy`, what must not be reachable around it in `around`.

mod around;
mod proxy;

use std::fmt::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use super::place::Place;
use super::{DoctorArguments, USAGE, executor::executor, fail, policy, print_line};
use crate::policy::{ListenSpec, Policy};
use crate::reload::Edition;

/// For one answer.
const LIMIT: Duration = Duration::from_secs(5);
/// Stands in every path that is made up, and in everything that is spoofed: what it is found in has let it through.
const MARK: &str = "vestibule-doctor";

/// What came of one thing that was tried.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Verdict {
    /// As it should be.
    Good(String),
    /// Not as it should be, with the remedy.
    Red(String),
    /// It could not be tried, and why.
    Skipped(String),
}

/// What is examined, and how.
struct Patient<'a> {
    policy: &'a Policy,
    proxy: Place,
    digest: &'a str,
    token: Option<String>,
    whoami: &'a str,
}

/// An answer, as far as it is looked at.
struct Answer {
    status: u16,
    text: String,
}

impl Answer {
    fn read(bytes: &[u8]) -> Option<Self> {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let status = text.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()?;
        Some(Self { status, text })
    }

    /// Whether it refuses, whoever does.
    fn refuses(&self) -> bool {
        matches!(self.status, 400..=403 | 405 | 421 | 429 | 431 | 503)
    }

    /// The machine-readable code of a refusal of ours.
    fn code(&self) -> Option<String> {
        let (_, body) = self.text.split_once("\r\n\r\n")?;
        let problem: serde_json::Value = serde_json::from_str(body.trim_end()).ok()?;
        Some(problem["code"].as_str()?.to_owned())
    }
}

impl Place {
    /// GET with these fields beside, each a whole line.
    async fn get(&self, target: &str, host: &str, fields: &[String]) -> Result<Answer, String> {
        let mut request = format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n");
        for field in fields {
            let _ = write!(request, "{field}\r\n");
        }
        request.push_str("\r\n");
        let bytes = self.ask(request.as_bytes(), LIMIT).await.map_err(|error| error.to_string())?;
        Answer::read(&bytes).ok_or_else(|| "no HTTP answer".to_owned())
    }
}

pub(super) fn doctor(arguments: &DoctorArguments) -> ExitCode {
    let edition = match policy(&arguments.config, |_| Vec::new()) {
        Ok(edition) => edition,
        Err(report) => return fail(&report, USAGE),
    };
    let proxy = match edition.policy.listen.first().ok_or_else(|| "listen is empty".to_owned()).and_then(reached) {
        Ok(proxy) => proxy,
        Err(problem) => return fail(&problem, USAGE),
    };
    let token = match arguments.token_file.as_ref().map(std::fs::read_to_string).transpose() {
        Ok(token) => token.map(|token| token.trim().trim_start_matches("Bearer ").to_owned()),
        Err(error) => return fail(&format!("--token-file: {error}"), USAGE),
    };
    if !arguments.whoami.starts_with('/') {
        return fail(&"--whoami: write a path, such as /api/whoami", USAGE);
    }
    let executor = match executor() {
        Ok(executor) => executor,
        Err(error) => return fail(&format!("the runtime could not be started: {error}"), 1),
    };
    executor.block_on(examine(&edition, proxy, token, &arguments.whoami))
}

fn reached(listen: &ListenSpec) -> Result<Place, String> {
    Place::of(listen.place.clone(), listen.tls.is_some())
}

async fn examine(edition: &Edition, proxy: Place, token: Option<String>, whoami: &str) -> ExitCode {
    print_line(format_args!("{} at {proxy}", edition.name));
    let patient = Patient { policy: &edition.policy, proxy, digest: &edition.digest, token, whoami };
    let mut verdicts = proxy::examined(&patient).await;
    verdicts.extend(around::examined(&patient).await);
    let mut red = 0;
    for (name, verdict) in &verdicts {
        let (word, said) = match verdict {
            Verdict::Good(said) => ("ok", said),
            Verdict::Red(said) => {
                red += 1;
                ("RED", said)
            }
            Verdict::Skipped(said) => ("-", said),
        };
        print_line(format_args!("  {word:<4} {name:<18} {said}"));
    }
    if red == 0 {
        print_line("Nothing is red.");
        return ExitCode::SUCCESS;
    }
    print_line(format_args!("{red} of {} are red.", verdicts.len()));
    ExitCode::from(1)
}

/// A line: its name and what came of it.
type Line = (String, Verdict);
