//! Tests whether an upstream writes the headers of requests into its pages, where its users would read the secret of
//! `upstream.credential`. Bokeh and Panel do so by default, compressed.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};

use super::paths::{UpstreamPath, UpstreamPaths};
use super::probe::{Request, TIME_LIMIT};
use super::{Endpoint, Line, Outcome, Target};
use crate::policy::UpstreamSpec;

/// The length in random bytes of the long made-up secret; it has four characters for three bytes. Nothing compresses it to
/// less than its bytes.
const LONG: usize = 768;
/// The length in random bytes of the short made-up secret.
const SHORT: usize = 12;
/// The number of bytes by which a page must grow with the long secret, so that the secret is in it in whatever encoding.
const GROWTH: usize = LONG - 2 * SHORT - 32;

pub(super) async fn run_checks(target: &Target<'_>, paths: &[UpstreamPaths]) -> Vec<Line> {
    let mut lines = Vec::new();
    let has_several = target.policy.upstreams.len() > 1;
    for (upstream, paths) in target.policy.upstreams.iter().zip(paths) {
        if upstream.credential.is_some() {
            let suffix = if has_several { format!(" {}", upstream.url) } else { String::new() };
            lines.push((format!("secret in pages{suffix}"), check(target, upstream, paths).await));
        }
    }
    lines
}

/// Checks the pages of one upstream: as the proxy shows them to the user of `--token-file`, and directly, with a made-up
/// secret, where the upstream accepts one.
async fn check(target: &Target<'_>, upstream: &UpstreamSpec, paths: &UpstreamPaths) -> Outcome {
    let Some(credential) = &upstream.credential else { return Outcome::Skipped(String::new()) };
    let header = credential.header.as_str();
    let mut seen = Vec::new();
    for UpstreamPath { path, .. } in &paths.paths {
        let mut is_seen = false;
        if let (Some(token), Ok(secret)) = (&target.token, credential.value.to_str()) {
            let fields = [format!("Authorization: Bearer {token}")];
            if let Ok(answer) = target.get_with(path, &fields).await
                && answer.is_success()
            {
                is_seen = true;
                // Short secrets are found by accident.
                if secret.len() >= SHORT && spellings(secret).iter().any(|text| answer.contains(text)) {
                    return mirrored(path, header);
                }
            }
        }
        if let Some(grows) = grows_with(upstream, paths, path, header).await {
            is_seen = true;
            if grows {
                return mirrored(path, header);
            }
        }
        if is_seen {
            seen.push(path.as_str());
        }
    }
    if seen.is_empty() {
        return Outcome::Skipped(
            "no page of the backend could be read; name one with --whoami, beside --token-file".to_owned(),
        );
    }
    Outcome::Passed(format!("the value of {header} is not in {}", seen.join(" ")))
}

fn mirrored(path: &str, header: &str) -> Outcome {
    Outcome::Failed(format!(
        "GET {path} shows the value of {header} to the user: the backend writes request headers into its pages. Bokeh and Panel: start it with --exclude-headers {header}; else remove it there, or protect the backend by a Unix socket"
    ))
}

/// Returns the texts as which a secret is recognized in a page.
fn spellings(secret: &str) -> [String; 3] {
    [secret.to_owned(), STANDARD.encode(secret), URL_SAFE_NO_PAD.encode(secret)]
}

/// Returns whether a page grows with a made-up secret; `None` where the upstream cannot be reached, refuses the secret, or
/// answers with another length at each request.
async fn grows_with(upstream: &UpstreamSpec, paths: &UpstreamPaths, path: &str, header: &str) -> Option<bool> {
    for endpoint in &paths.endpoints {
        if endpoint.connect(TIME_LIMIT).await.is_err() {
            continue;
        }
        let before = page_length(upstream, endpoint, path, header, SHORT).await?;
        let long = page_length(upstream, endpoint, path, header, LONG).await?;
        let after = page_length(upstream, endpoint, path, header, SHORT).await?;
        let is_stable = before.abs_diff(after) < GROWTH / 4;
        return is_stable.then_some(long >= before.max(after) + GROWTH);
    }
    None
}

async fn page_length(
    upstream: &UpstreamSpec,
    endpoint: &Endpoint,
    path: &str,
    header: &str,
    bytes: usize,
) -> Option<usize> {
    let mut random = vec![0; bytes];
    crate::random::fill(&mut random).ok()?;
    let fields = [format!("{header}: {}", URL_SAFE_NO_PAD.encode(random))];
    let request = Request { target: path, host: &upstream.authority, fields: &fields, ..Request::default() };
    let answer = request.send(endpoint).await.ok().filter(super::probe::Answer::is_success)?;
    Some(answer.body.len())
}
