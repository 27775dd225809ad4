//! `vestibule check`: prints the policy that results from the configuration, for a reviewer, and with `--online` the
//! answers of each identity provider.

use std::process::ExitCode;

use super::executor::block_on;
use super::{CheckArguments, USAGE, fail, inspected_policy, print, print_line};
use crate::auth::{self, Inspection};
use crate::config::Loaded;
use crate::listen::check_certificates;
use crate::policy::{KeySource, Policy, UserNames, keys_not_shown, summary};
use crate::reload::LoadedPolicy;
use crate::shared;

pub(super) fn check(arguments: &CheckArguments) -> ExitCode {
    let mut further = Vec::new();
    let inspect = |loaded: &Loaded, policy: &mut Policy| {
        further = keys_not_shown(loaded.changed_keys());
        check_certificates(policy)
    };
    let LoadedPolicy { policy, name, .. } = match inspected_policy(&arguments.config, |_| Vec::new(), inspect) {
        Ok(loaded) => loaded,
        Err(report) => return fail(&report, USAGE),
    };
    print_line(&name);
    print(summary(&policy, UserNames::Shown).as_bytes());
    if !further.is_empty() {
        print_line(format_args!("  also set    {}", further.join(", ")));
    }
    for warning in &policy.warnings {
        print_line(format_args!("  warning     {warning}"));
    }
    let code = if arguments.online {
        block_on(online(&policy)).unwrap_or_else(|error| fail(&error, 1))
    } else {
        ExitCode::SUCCESS
    };
    // Last, so that what follows its heading is the file.
    print_files(&policy);
    code
}

/// Prints the files that the presets of backends need.
fn print_files(policy: &Policy) {
    let mut files: Vec<_> = policy.upstreams.iter().filter_map(|upstream| upstream.preset.as_ref()?.file).collect();
    files.dedup();
    for (name, text) in files {
        // Not indented, so that it can be pasted.
        print(format!("\n# {name}\n{text}").as_bytes());
    }
}

/// Asks the providers one after the other. Each has its own timeout.
async fn online(policy: &Policy) -> ExitCode {
    let mut failed = false;
    for provider in &policy.providers {
        let mut inspection = Inspection::default();
        if provider.keys != KeySource::Introspection {
            auth::inspect_keys(provider, &mut inspection).await;
        }
        auth::inspect_remote(provider, &mut inspection).await;
        if let Some(login) = policy.browser.logins.iter().find(|login| login.name == provider.name)
            && let Some(metadata) = auth::login::inspect(login, &mut inspection).await
        {
            auth::login::inspect_client(login, &metadata, &mut inspection).await;
        }
        failed |= print_inspection(&provider.name, inspection);
    }
    if let Some(spec) = &policy.shared {
        let mut inspection = Inspection::default();
        shared::inspect(spec, !policy.browser.logins.is_empty(), &mut inspection).await;
        failed |= print_inspection("shared", inspection);
    }
    if failed { ExitCode::from(1) } else { ExitCode::SUCCESS }
}

/// Prints the findings about one provider. Returns whether there was a problem.
fn print_inspection(what: &str, inspection: Inspection) -> bool {
    for found in inspection.found {
        print_line(format_args!("  online      {what}: {found}"));
    }
    let has_problem = !inspection.problems.is_empty();
    for problem in inspection.problems {
        print_line(format_args!("  PROBLEM     {what}: {problem}"));
    }
    has_problem
}
