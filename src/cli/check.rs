//! `vestibule check`: what it understood, so that a reviewer can read the policy off it.

use std::process::ExitCode;

use super::{ConfigArguments, USAGE, fail, policy};
use crate::policy::summary;

#[expect(clippy::print_stdout, reason = "the command's answer")]
pub(super) fn check(arguments: &ConfigArguments) -> ExitCode {
    match policy(arguments, |_| Vec::new()) {
        Ok((policy, name)) => {
            println!("{name}");
            print!("{}", summary(&policy));
            for warning in &policy.warnings {
                println!("  warning     {warning}");
            }
            ExitCode::SUCCESS
        }
        Err(report) => fail(&report, USAGE),
    }
}
