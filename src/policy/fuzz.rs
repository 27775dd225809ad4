//! A fuzz target of configurations.

#![allow(clippy::expect_used, reason = "a failed expectation is what a fuzzer looks for")]

use crate::config::{Report, load_yaml};
use crate::fuzz::Input;

/// The secret of the configurations, in every place that takes one as a value.
const SECRET: &str = "hunter2hunter2-9876543210-abcdef";

/// A configuration with secrets, to which a fuzzer adds lines.
const WITH_SECRETS: &str = "upstream:\n  url: http://127.0.0.1:1\n  credential: { header: X-Backend, value: hunter2hunter2-9876543210-abcdef }\nproviders:\n  - preset: shared-secret\n    audience: any\n    secret: hunter2hunter2-9876543210-abcdef\n";

/// Checks that any text is a configuration or has errors whose places are in it, and that no error shows a secret.
///
/// The first byte chooses whether the rest is the whole configuration or follows one with secrets.
pub fn configuration(data: &[u8]) {
    let mut input = Input::new(data);
    let is_whole = input.byte() & 1 == 0;
    let Ok(rest) = std::str::from_utf8(input.rest()) else { return };
    // Files of this machine are not a part of the configuration, and some of them never end.
    if rest.contains("file") || rest.contains("ca_bundle") {
        return;
    }
    let text = if is_whole { rest.to_owned() } else { format!("{WITH_SECRETS}{rest}") };
    if let Some(report) = errors(&text) {
        inside(&report, &text);
        if !is_whole {
            let shown = format!("{report}\n{}", report.line());
            assert!(!shown.contains(&SECRET[..14]), "a secret is shown:\n{shown}");
        }
    }
}

/// Loads and validates a configuration, and returns its errors.
fn errors(text: &str) -> Option<Report> {
    match load_yaml(text) {
        Err(report) => Some(report),
        Ok(loaded) => match super::validate(&loaded.config) {
            Ok(policy) => {
                let _ = super::summary(&policy, super::UserNames::Shown);
                loaded.conclude(Ok(()), Vec::new()).err()
            }
            Err(findings) => {
                assert!(!findings.is_empty(), "refused without a reason");
                Some(loaded.conclude(Err::<(), ()>(()), findings).expect_err("it was refused"))
            }
        },
    }
}

/// Checks that the places of all errors are in the text.
fn inside(report: &Report, text: &str) {
    assert!(!report.findings().is_empty(), "a report without an error");
    // Each of these ends a line of YAML.
    let text = text.replace("\r\n", "\n").replace('\r', "\n");
    for finding in report.findings() {
        assert!(!finding.message().is_empty());
        let Some((line, column)) = finding.position() else { continue };
        // The end of the text may be the place of what is missing there.
        let lines: Vec<&str> = text.split('\n').collect();
        let width = line.checked_sub(1).and_then(|at| lines.get(at)).map(|line| line.chars().count());
        assert!(width.is_some_and(|width| (1..=width + 1).contains(&column)), "{line}:{column} is not in the text");
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_corpus_of_configurations_has_its_errors_in_place() {
        crate::fuzz::run_corpus("configuration", super::configuration);
    }
}
