//! `vestibule check`: what it understood, so that a reviewer can read the policy off it, and with `--online` what
//! each identity provider answers.

use std::process::ExitCode;

use super::{CheckArguments, USAGE, fail, policy, run::executor};
use crate::auth::{self, Inspection};
use crate::policy::{KeySource, Names, Policy, summary};
use crate::reload::Edition;

#[expect(clippy::print_stdout, reason = "the command's answer")]
pub(super) fn check(arguments: &CheckArguments) -> ExitCode {
    let Edition { policy, name, .. } = match policy(&arguments.config, |_| Vec::new()) {
        Ok(loaded) => loaded,
        Err(report) => return fail(&report, USAGE),
    };
    println!("{name}");
    print!("{}", summary(&policy, Names::Shown));
    for warning in &policy.warnings {
        println!("  warning     {warning}");
    }
    if !arguments.online {
        return ExitCode::SUCCESS;
    }
    match executor() {
        Ok(executor) => executor.block_on(online(&policy)),
        Err(error) => fail(&format!("the runtime could not be started: {error}"), 1),
    }
}

/// Each provider in turn: a look at one may take as long as its time limit.
#[expect(clippy::print_stdout, reason = "the command's answer")]
async fn online(policy: &Policy) -> ExitCode {
    let mut failed = false;
    for provider in &policy.providers {
        let mut inspection = Inspection::default();
        if provider.keys != KeySource::Asked {
            auth::inspect_keys(provider, &mut inspection).await;
        }
        auth::inspect_remote(provider, &mut inspection).await;
        for found in inspection.found {
            println!("  online      {}: {found}", provider.name);
        }
        for problem in inspection.problems {
            failed = true;
            println!("  PROBLEM     {}: {problem}", provider.name);
        }
    }
    if failed { ExitCode::from(1) } else { ExitCode::SUCCESS }
}
