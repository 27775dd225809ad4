//! Tests the protection of each upstream from direct access: code that the backend runs, or a neighbour on its network,
//! can send it requests that name any user.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::paths::{UpstreamPath, UpstreamPaths};
use super::probe::{Answer, Request, TIME_LIMIT};
use super::proxy::spoofed_value;
use super::{Line, Outcome, Target};
use crate::policy::{HostHeader, UpstreamIsolation, UpstreamSpec, isolation_of};

pub(super) async fn run_checks(target: &Target<'_>, paths: &[UpstreamPaths]) -> Vec<Line> {
    let mut lines = Vec::new();
    let has_several = target.policy.upstreams.len() > 1;
    for (upstream, paths) in target.policy.upstreams.iter().zip(paths) {
        let suffix = if has_several { format!(" {}", upstream.url) } else { String::new() };
        let isolation = isolation_of(target.policy, upstream);
        if isolation.is_empty() {
            lines.push((format!("isolation{suffix}"), unprotected(target, upstream, paths).await));
        }
        for means in isolation {
            let outcome = match &means {
                UpstreamIsolation::UnixSocket(path) => unix_socket(path),
                UpstreamIsolation::OneUser => one_user(target, paths).await,
                UpstreamIsolation::Credential(header) | UpstreamIsolation::Assertion(header) => {
                    demanded_header(target, upstream, paths, header.as_str()).await
                }
            };
            lines.push((format!("isolation: {}{suffix}", means.name()), outcome));
        }
    }
    lines
}

/// The result of direct requests to an upstream without the proxy's credential.
#[derive(Debug)]
enum DirectAccess {
    /// The upstream served a request at this path to the user that the request named.
    NamedUser(String),
    /// The upstream served this path without a credential, although it is known to check its callers there.
    Unchecked(String, u16),
    /// The upstream demands a credential at this path.
    Guarded(String, u16),
    /// No answer depended on the caller; with the paths and their statuses.
    Undecided(Vec<String>),
    /// The upstream cannot be reached from here, with the reason.
    Unreachable(String),
}

/// Sends requests to the upstream itself, each once without and once with a user's name. The worst result is returned.
async fn direct_access(target: &Target<'_>, upstream: &UpstreamSpec, paths: &UpstreamPaths) -> DirectAccess {
    if paths.paths.is_empty() {
        return DirectAccess::Undecided(vec!["no rule demands a token of a GET request".to_owned()]);
    }
    let mut reason = "its name does not resolve".to_owned();
    let mut guarded = None;
    let mut undecided = Vec::new();
    for endpoint in &paths.endpoints {
        if let Err(error) = endpoint.connect(TIME_LIMIT).await {
            reason = format!("{endpoint}: {error}");
            continue;
        }
        for path in &paths.paths {
            match ask(target, upstream, endpoint, path).await {
                Ok(Some(DirectAccess::Guarded(path, status))) => {
                    guarded.get_or_insert(DirectAccess::Guarded(path, status));
                }
                Ok(Some(worse)) => return worse,
                Ok(None) => undecided.push(path.path.clone()),
                Err(problem) => undecided.push(format!("{} ({problem})", path.path)),
            }
        }
        return guarded.unwrap_or(DirectAccess::Undecided(undecided));
    }
    DirectAccess::Unreachable(reason)
}

/// Requests one path; `None` where the answers do not show whether it is protected.
async fn ask(
    target: &Target<'_>,
    upstream: &UpstreamSpec,
    endpoint: &super::Endpoint,
    path: &UpstreamPath,
) -> Result<Option<DirectAccess>, String> {
    let headers = target.policy.trusted_headers.iter();
    let fields: Vec<String> =
        headers.map(|header| format!("{}: {}", header.written, spoofed_value(target, header))).collect();
    let request = Request { target: &path.path, host: &upstream.authority, ..Request::default() };
    let mut named = Request { fields: &fields, ..request }.send(endpoint).await?;
    let mut host = upstream.authority.as_str();
    // Frameworks that check the Host (Django, Tomcat) may know only the one that clients use.
    if matches!(named.status, 400 | 421) && upstream.host_header == HostHeader::Client {
        host = &target.host;
        named = Request { fields: &fields, host, ..request }.send(endpoint).await?;
    }
    let name = path.path.clone();
    if named.demands_credential() {
        return Ok(Some(DirectAccess::Guarded(name, named.status)));
    }
    if named.contains(&target.spoofed_user) {
        return Ok(Some(DirectAccess::NamedUser(name)));
    }
    if !named.is_success() {
        return Ok(None);
    }
    if path.is_guarded {
        return Ok(Some(DirectAccess::Unchecked(name, named.status)));
    }
    let anonymous = Request { host, ..request }.send(endpoint).await?;
    let again = Request { host, ..request }.send(endpoint).await?;
    // A page that differs at each request (a nonce, the time) proves nothing.
    let differs = |answer: &Answer| answer.status != named.status || answer.body != named.body;
    let is_stable = anonymous.status == again.status && anonymous.body == again.body;
    Ok((differs(&anonymous) && is_stable).then_some(DirectAccess::NamedUser(name)))
}

/// Checks an upstream for which the configuration has no protection.
async fn unprotected(target: &Target<'_>, upstream: &UpstreamSpec, paths: &UpstreamPaths) -> Outcome {
    const REMEDY: &str = "Give it a secret (upstream.credential), identity.assertion, or a Unix socket";
    match direct_access(target, upstream, paths).await {
        DirectAccess::NamedUser(path) => Outcome::Failed(format!(
            "GET {path} sent to {} directly is served to a made-up user: code that the backend runs, or a neighbour in its network, can name any user. {REMEDY}",
            upstream.url
        )),
        DirectAccess::Unchecked(path, status) => Outcome::Failed(format!(
            "GET {path} sent to {} directly is answered {status} without a credential. {REMEDY}",
            upstream.url
        )),
        DirectAccess::Guarded(path, status) => Outcome::Passed(format!(
            "{} answers {status} to a direct GET {path}; write upstream.credential for the secret that it asks for",
            upstream.url
        )),
        DirectAccess::Undecided(tried) => Outcome::Skipped(format!(
            "nothing in the configuration protects {} from direct access, and none of its answers depends on the user ({}). For files that everyone may read this is right; otherwise name a path that shows the user: --whoami. {REMEDY}",
            upstream.url,
            tried.join(" ")
        )),
        // No answer is no protection: anyone may reach the backend when it runs again.
        DirectAccess::Unreachable(reason) => {
            Outcome::Skipped(format!("not tested, the backend cannot be reached from here: {reason}. {REMEDY}"))
        }
    }
}

/// Checks an upstream that should refuse requests without this header.
async fn demanded_header(target: &Target<'_>, upstream: &UpstreamSpec, paths: &UpstreamPaths, header: &str) -> Outcome {
    match direct_access(target, upstream, paths).await {
        DirectAccess::NamedUser(path) => Outcome::Failed(format!(
            "GET {path} sent to {} directly, without {header}, is served to a made-up user: the backend does not check {header} there",
            upstream.url
        )),
        DirectAccess::Unchecked(path, status) => Outcome::Failed(format!(
            "GET {path} sent to {} directly, without {header}, is answered {status}: the backend does not check {header}. Turn its check on, or name with --whoami a path that it guards",
            upstream.url
        )),
        DirectAccess::Guarded(path, status) => Outcome::Passed(format!(
            "GET {path} sent to {} directly, without {header}, is answered {status}",
            upstream.url
        )),
        DirectAccess::Undecided(tried) => Outcome::Skipped(format!(
            "no path was found at which {} checks {header} ({}); name one with --whoami",
            upstream.url,
            tried.join(" ")
        )),
        DirectAccess::Unreachable(reason) => Outcome::Skipped(format!("it cannot be reached from here: {reason}")),
    }
}

/// Checks a configuration that admits one user. It uses the token of another user, if `--token-file` has one.
async fn one_user(target: &Target<'_>, paths: &UpstreamPaths) -> Outcome {
    let only = target.policy.providers.iter().flat_map(|provider| &provider.allow.users).next();
    let path = paths.paths.first();
    let (Some(only), Some(path), Some(token)) = (only, path, &target.token) else {
        return Outcome::Skipped("needs another user's valid token: --token-file".to_owned());
    };
    match target.get_with(&path.path, &[format!("Authorization: Bearer {token}")]).await {
        Ok(answer) => match answer.refusal_code().as_deref() {
            Some("forbidden") => {
                Outcome::Passed(format!("the token of --token-file is refused: only {only} may enter"))
            }
            Some(code) => Outcome::Skipped(format!("the token of --token-file is answered {} {code}", answer.status)),
            None if unverified_user(token).is_some_and(|user| only.ends_with(&user)) => Outcome::Passed(format!(
                "{only} may enter; with another user's token in --token-file this tests that nobody else may"
            )),
            None => Outcome::Failed(format!(
                "a token of another user than {only} is answered {}: providers.allow is not in force there",
                answer.status
            )),
        },
        Err(problem) => Outcome::Failed(problem),
    }
}

/// Returns the `sub` of a token, unverified: it only chooses the text of a result.
fn unverified_user(token: &str) -> Option<String> {
    let payload = URL_SAFE_NO_PAD.decode(token.split('.').nth(1)?).ok()?;
    let claims: serde_json::Value = serde_json::from_slice(&payload).ok()?;
    Some(claims["sub"].as_str()?.to_owned())
}

fn unix_socket(path: &Path) -> Outcome {
    match std::fs::metadata(path).map(|meta| meta.permissions().mode()) {
        Ok(mode) if mode & 0o006 == 0 => Outcome::Passed(format!("{} is not open to everyone", path.display())),
        Ok(mode) => Outcome::Failed(format!(
            "{} has mode {:04o}: every user of this machine can open it; chmod 0660, and run the backend's users' code as another user",
            path.display(),
            mode & 0o7777
        )),
        Err(error) => Outcome::Skipped(format!("{}: {error}", path.display())),
    }
}
