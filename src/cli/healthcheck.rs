//! `vestibule healthcheck`: asks the running proxy of this configuration whether it is alive, or with `--ready` whether
//! it can take traffic, for platforms that check a container by a command in it.
//!
//! Exit code 0: yes; 1: no, or no answer; 2: the configuration has no address to ask.

use std::process::ExitCode;
use std::time::Duration;

use super::endpoint::Endpoint;
use super::{HealthcheckArguments, USAGE, fail, print_line};
use crate::config::{self, Environment};
use crate::policy;

/// Time limit for the answer. Platforms wait longer, so the reason is in the output of the command.
const TIME_LIMIT: Duration = Duration::from_secs(3);

pub(super) fn healthcheck(arguments: &HealthcheckArguments) -> ExitCode {
    let loaded = match config::load(&arguments.config.flags(), &Environment::process()) {
        Ok(loaded) => loaded,
        Err(report) => return fail(&report, USAGE),
    };
    // Only `listen` is read. Any other error in a file that has changed since the start is reported by the reload, and
    // must not end a running process.
    let endpoint = policy::first_listener(&loaded.config)
        .map_err(|finding| format!("{}: {}", finding.path(), finding.message()))
        .and_then(|(listener, uses_tls)| Endpoint::of_listener(listener, uses_tls));
    let endpoint = match endpoint {
        Ok(endpoint) => endpoint,
        Err(problem) => return fail(&format!("{}: {problem}", loaded.source), USAGE),
    };
    let path = if arguments.ready { "/.vestibule/readyz" } else { "/.vestibule/healthz" };
    let executor = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let request = format!("GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n");
    let answer = executor.and_then(|executor| executor.block_on(endpoint.send(request.as_bytes(), TIME_LIMIT)));
    match answer.map(|answer| Health::read(&answer)) {
        Ok(Health::Yes) => print_line("ok"),
        Ok(Health::Busy) if !arguments.ready => print_line("ok, though every connection is taken (limits.connections)"),
        Ok(Health::Busy) => return fail(&format!("{endpoint}: every connection is taken (limits.connections)"), 1),
        Ok(Health::No(reason)) => return fail(&format!("{endpoint}{path}: {reason}"), 1),
        Err(error) => return fail(&format!("{endpoint}: {error}"), 1),
    }
    ExitCode::SUCCESS
}

/// The meaning of an answer of `/healthz` or `/readyz`.
#[derive(Debug, PartialEq, Eq)]
enum Health {
    Yes,
    /// The status was 503 because `limits.connections` is reached: the process is alive, and a restart would not help.
    Busy,
    No(String),
}

impl Health {
    fn read(answer: &[u8]) -> Self {
        let answer = String::from_utf8_lossy(answer);
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or((&answer, ""));
        let status = head.lines().next().unwrap_or_default();
        match status.strip_prefix("HTTP/1.1 ").unwrap_or_default().get(..4) {
            Some("200 ") => Self::Yes,
            Some("503 ") if is_busy(body) => Self::Busy,
            _ if status.is_empty() => Self::No("closed without an answer".to_owned()),
            _ => Self::No(format!("{status:?} {:?}", body.trim_end())),
        }
    }
}

fn is_busy(body: &str) -> bool {
    serde_json::from_str::<serde_json::Value>(body).is_ok_and(|problem| problem["code"] == "busy")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_200_is_yes_and_no_room_is_alive() {
        let read = |answer: &str| Health::read(answer.as_bytes());
        assert_eq!(read("HTTP/1.1 200 OK\r\n\r\nok\n"), Health::Yes);
        assert_eq!(read("HTTP/1.1 503 Service Unavailable\r\n\r\n{\"code\":\"busy\"}"), Health::Busy);
        for no in ["", "HTTP/1.1 503 Service Unavailable\r\n\r\nnot ready\n", "HTTP/1.1 2000 OK\r\n\r\n", "200"] {
            assert!(matches!(read(no), Health::No(_)), "{no}");
        }
    }
}
