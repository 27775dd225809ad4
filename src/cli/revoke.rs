//! `vestibule revoke`: ends a user, a session or a token at every instance, from any machine that reaches the engine of
//! `shared`. It prints how many of the running instances have applied the revocation.
//!
//! Exit code 0: written; 1: not written; 2: the configuration or the arguments are wrong.

use std::process::ExitCode;

use super::executor::block_on;
use super::{ConfigArguments, RevokeArguments, USAGE, fail, policy, print_line};
use crate::auth::digest::DigestKeys;
use crate::auth::{RevocationTarget, Revocations, issuer_or_name};
use crate::policy::Policy;
use crate::shared::{Written, write_entry};

pub(super) fn revoke(arguments: &RevokeArguments) -> ExitCode {
    // The flag chooses one of the configured providers here, and configures none.
    let config = ConfigArguments { issuer: None, ..arguments.config.clone() };
    let edition = match policy(&config, |_| Vec::new()) {
        Ok(edition) => edition,
        Err(report) => return fail(&report, USAGE),
    };
    let policy = &edition.policy;
    let (issuer, target) = match target(arguments, policy) {
        Ok(found) => found,
        Err(problem) => return fail(&problem, USAGE),
    };
    block_on(write(policy, &issuer, &target)).unwrap_or_else(|error| fail(&error, 1))
}

/// Returns the target of the revocation, and its issuer.
fn target(arguments: &RevokeArguments, policy: &Policy) -> Result<(String, RevocationTarget), String> {
    let known: Vec<&str> = policy.providers.iter().map(|provider| issuer_or_name(provider)).collect();
    let issuer = match (&arguments.config.issuer, &known[..]) {
        (Some(issuer), _) if known.contains(&issuer.as_str()) => issuer.clone(),
        (Some(issuer), _) => {
            return Err(format!("--issuer {issuer} is no configured issuer; there is {}", known.join(", ")));
        }
        (None, [one]) => (*one).to_owned(),
        (None, _) => {
            return Err(format!("there are several providers; write --issuer and one of {}", known.join(", ")));
        }
    };
    let targets = [
        arguments.user.clone().map(RevocationTarget::User),
        arguments.sid.clone().map(RevocationTarget::Session),
        arguments.jti.clone().map(RevocationTarget::Token),
    ];
    let mut targets = targets.into_iter().flatten();
    match (targets.next(), targets.next()) {
        (Some(target), None) => Ok((issuer, target)),
        _ => Err("write one of --user, --sid and --jti".to_owned()),
    }
}

async fn write(policy: &Policy, issuer: &str, target: &RevocationTarget) -> ExitCode {
    let Some(spec) = &policy.shared else {
        return fail(&"shared is not configured: revoke at the control listener of each instance", USAGE);
    };
    let Some(keys) = DigestKeys::derived(&spec.secrets, &spec.name) else {
        return fail(&"shared: no key can be derived from its secret; write another one to shared.secret_file", 1);
    };
    let keep = policy.revocation_keep();
    let revocations = Revocations::with_keys(keys);
    let limit = policy.limits.shared_entries();
    match write_entry(spec, limit, |now| revocations.entry_of(issuer, target, now, keep)).await {
        Ok(Written { taken: 0, live: 0 }) => {
            print_line("written; no instance is running, and those that start will have it");
            ExitCode::SUCCESS
        }
        Ok(Written { taken, live }) => {
            print_line(format_args!("written; {taken} of {live} running instances have taken it"));
            ExitCode::SUCCESS
        }
        Err(error) => fail(&format!("not written: {error}"), 1),
    }
}
