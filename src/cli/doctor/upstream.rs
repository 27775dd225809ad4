//! Tests whether the upstreams accept connections. Requests without a token are refused before an upstream is asked, so no
//! other check shows that every signed-in user gets 502.

use std::io::ErrorKind;

use super::paths::UpstreamPaths;
use super::probe::TIME_LIMIT;
use super::{Endpoint, Line, Outcome, Target};
use crate::policy::UpstreamSpec;

pub(super) async fn run_checks(target: &Target<'_>, paths: &[UpstreamPaths]) -> Vec<Line> {
    let mut lines = Vec::new();
    let has_several = target.policy.upstreams.len() > 1;
    for (upstream, paths) in target.policy.upstreams.iter().zip(paths) {
        let suffix = if has_several { format!(" {}", upstream.url) } else { String::new() };
        lines.push((format!("upstream{suffix}"), check(upstream, &paths.endpoints).await));
    }
    lines
}

async fn check(upstream: &UpstreamSpec, endpoints: &[Endpoint]) -> Outcome {
    let url = &upstream.url;
    if endpoints.is_empty() {
        return Outcome::Failed(format!(
            "the name in {url} does not resolve: every request that is let in is answered 502; correct upstream, or the name server"
        ));
    }
    let mut problems = Vec::new();
    for endpoint in endpoints {
        match endpoint.connect(TIME_LIMIT).await {
            Ok(_) => return Outcome::Passed(format!("{endpoint} accepts connections")),
            Err(error) if error.kind() == ErrorKind::PermissionDenied => {
                return Outcome::Skipped(format!("{endpoint}: {error}: run this as the user of the proxy"));
            }
            Err(error) => problems.push(format!("{endpoint}: {error}")),
        }
    }
    Outcome::Failed(format!(
        "{}: every request that is let in is answered 502; start the backend, or correct upstream",
        problems.join("; ")
    ))
}
