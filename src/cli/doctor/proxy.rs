//! Tests the running proxy with the requests of an attacker who has no valid token, or another user's.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::paths::{UpstreamPaths, closed_rules, demanding_rules, example};
use super::probe::{Answer, Request, Upgrade, upgrade};
use super::{Endpoint, Line, MARKER, Outcome, Target};
use crate::policy::{AuthMode, Claim, DEVELOPMENT_TOKENS, Hosts, ListenPlace, QueryMode, TrustedHeader};

/// The header and signature of tokens that no issuer signed, in the forms that some verifier has accepted.
const FORGED: [(&str, &str); 4] = [
    (r#"{"alg":"none"}"#, ""),
    (r#"{"alg":"NonE","typ":"JWT"}"#, "AAAA"),
    (r#"{"alg":"HS256","typ":"JWT"}"#, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"),
    (
        r#"{"alg":"ES256","typ":"JWT"}"#,
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    ),
];
/// The headers in which other proxies send an identity.
const SPOOFED: [&str; 6] = [
    "Remote-User",
    "X-Forwarded-User",
    "X-Forwarded-Email",
    "X-Auth-Request-User",
    "X-Remote-User",
    "Cf-Access-Authenticated-User-Email",
];

/// Requests the readiness of the proxy.
///
/// # Errors
/// Returns the reason why nothing else can be tested, for the user: there is no proxy at this address.
pub(super) async fn is_ready(target: &Target<'_>) -> Result<Outcome, String> {
    let proxy = &target.proxy;
    match target.get("/.vestibule/readyz").await {
        Ok(answer) if answer.status == 200 => Ok(Outcome::Passed("the proxy answers and is ready".to_owned())),
        Ok(answer) if answer.status == 503 => Ok(Outcome::Failed(
            "the proxy answers and is not ready: no provider has keys yet, the state of shared is not loaded, or it is draining; `vestibule check --online` asks the providers and the engine".to_owned(),
        )),
        Ok(answer) => Err(format!(
            "{proxy} answers {} to /.vestibule/readyz: it is not Vestibule, or it is behind another proxy",
            answer.status
        )),
        Err(problem) => Err(format!("{proxy}: {problem}; start the proxy with this configuration")),
    }
}

pub(super) async fn run_checks(target: &Target<'_>, paths: &[UpstreamPaths]) -> Vec<Line> {
    let mut lines = Vec::new();
    for (name, outcome) in [
        ("configuration", configuration(target).await),
        ("development tokens", development_tokens(target).await),
        ("anonymous", anonymous(target).await),
        ("forged tokens", forged_tokens(target).await),
        ("path spellings", path_spellings(target).await),
        ("own prefix", own_prefix(target).await),
        ("socket", socket(target).await),
        ("token in URL", token_in_url(target).await),
        ("foreign host", foreign_host(target).await),
        ("spoofed identity", spoofed_identity(target, paths).await),
    ] {
        lines.push((name.to_owned(), outcome));
    }
    lines
}

/// Compares the configuration in force with this one, by the digest that the admin listener reports.
async fn configuration(target: &Target<'_>) -> Outcome {
    let Some(admin) = &target.policy.admin else {
        return Outcome::Skipped(
            "admin is off, and only the admin listener shows which configuration is in force".to_owned(),
        );
    };
    let Ok(endpoint) = Endpoint::of_listener(ListenPlace::Tcp(vec![admin.address]), false) else {
        return Outcome::Skipped("admin.listen has port 0".to_owned());
    };
    let digest = target.digest;
    match (Request { target: "/metrics", host: "localhost", ..Request::default() }).send(&endpoint).await {
        Ok(answer) if answer.contains(&format!("vestibule_config_info{{digest=\"{digest}\"}} 1")) => {
            Outcome::Passed(format!("{digest} is in force"))
        }
        Ok(answer) if answer.contains("vestibule_config_info{") => Outcome::Failed(
            "the process serves another configuration than this one: a reload was rejected (its log says why), or the process has other flags and variables".to_owned(),
        ),
        Ok(_) => Outcome::Skipped(format!("{endpoint} is not the admin listener of this proxy")),
        Err(problem) => Outcome::Skipped(format!("admin: {endpoint}: {problem}")),
    }
}

/// Checks by the warnings on `/status` that the process does not run with `--insecure-dev`.
async fn development_tokens(target: &Target<'_>) -> Outcome {
    let Some(admin) = &target.policy.admin else {
        return Outcome::Skipped("admin is off, and only its /status shows whether --insecure-dev is set".to_owned());
    };
    let Ok(endpoint) = Endpoint::of_listener(ListenPlace::Tcp(vec![admin.address]), false) else {
        return Outcome::Skipped("admin.listen has port 0".to_owned());
    };
    match (Request { target: "/status", host: "localhost", ..Request::default() }).send(&endpoint).await {
        Ok(answer) if policy_of(&answer).is_some_and(|text| text.contains(DEVELOPMENT_TOKENS)) => {
            Outcome::Failed(format!(
                "{DEVELOPMENT_TOKENS}: anyone who reads the key of `vestibule token mint` on this machine can be any user; start the process without the flag"
            ))
        }
        Ok(answer) if answer.is_success() && policy_of(&answer).is_some() => {
            Outcome::Passed("none are accepted (--insecure-dev is not set)".to_owned())
        }
        Ok(_) => Outcome::Skipped(format!("{endpoint} is not the admin listener of this proxy")),
        Err(problem) => Outcome::Skipped(format!("admin: {endpoint}: {problem}")),
    }
}

/// Returns the current policy with its warnings out of the page of `/status`. Other sections of it have texts of clients,
/// which hold no tag.
fn policy_of(status: &Answer) -> Option<&str> {
    Some(status.body.rsplit_once("<h2>Current policy</h2>")?.1)
}

async fn anonymous(target: &Target<'_>) -> Outcome {
    let closed = closed_rules(target);
    for (route, path) in &closed {
        match target.get(path).await {
            Ok(answer) if matches!(answer.refusal_code().as_deref(), Some("missing_token" | "forbidden")) => {}
            Ok(answer) => {
                return Outcome::Failed(format!(
                    "GET {path} without a token is answered {}: the rule {} is not in force there",
                    answer.status, route.label
                ));
            }
            Err(problem) => return Outcome::Failed(format!("GET {path}: {problem}")),
        }
    }
    match closed.len() {
        0 => Outcome::Skipped("no rule demands a token of a GET request".to_owned()),
        1 => Outcome::Passed("1 rule tried without a token: it refuses".to_owned()),
        count => Outcome::Passed(format!("{count} rules tried without a token: all refuse")),
    }
}

/// Returns a path for which a token is demanded.
fn protected_path(target: &Target<'_>) -> Option<String> {
    demanding_rules(target).into_iter().next().map(|(_, path)| path)
}

/// Returns a token that no issuer signed; without `iss` where the provider has no issuer.
fn forged_token(issuer: Option<&str>, header: &str, signature: &str) -> String {
    let mut claims =
        serde_json::json!({"sub": MARKER, "aud": MARKER, "azp": MARKER, "exp": 4_102_444_800_u64, "iat": 0});
    if let Some(issuer) = issuer {
        claims["iss"] = issuer.into();
    }
    format!("{}.{}.{signature}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims.to_string()))
}

async fn forged_tokens(target: &Target<'_>) -> Outcome {
    let Some(path) = protected_path(target) else { return no_protected_path() };
    for provider in &target.policy.providers {
        for (header, signature) in FORGED {
            let token = forged_token(provider.issuer.as_deref(), header, signature);
            match target.get_with(&path, &[format!("Authorization: Bearer {token}")]).await {
                Ok(answer) if answer.is_refusal() => {}
                Ok(answer) => {
                    return Outcome::Failed(format!(
                        "GET {path} with a token that no issuer signed ({header}) is answered {}",
                        answer.status
                    ));
                }
                Err(problem) => return Outcome::Failed(format!("GET {path} with a forged token: {problem}")),
            }
        }
    }
    Outcome::Passed(format!("{} kinds for each provider: all are refused", FORGED.len()))
}

fn no_protected_path() -> Outcome {
    Outcome::Skipped("no rule demands a token".to_owned())
}

/// Checks other spellings of the paths that a rule denies.
async fn path_spellings(target: &Target<'_>) -> Outcome {
    let mut tried = 0;
    for (route, path) in closed_rules(target).iter().filter(|(route, _)| route.pattern.is_some()) {
        // A rule that is open in its plain spelling fails the check `anonymous` instead.
        if !target.get(path).await.is_ok_and(|answer| answer.is_refusal()) {
            continue;
        }
        let rest = path.trim_start_matches('/');
        let encoded = rest
            .chars()
            .next()
            .map_or_else(String::new, |first| format!("/%{:02x}{}", u32::from(first), &rest[first.len_utf8()..]));
        for spelling in [
            path.to_ascii_uppercase(),
            format!("{path}/"),
            format!("/{path}"),
            format!("/./{rest}"),
            format!("/{MARKER}/../{rest}"),
            format!("/{MARKER}/%2e%2e/{rest}"),
            format!("{path};x=y"),
            path.replacen('/', "/%2f", 1),
            encoded,
        ] {
            tried += 1;
            match target.get(&spelling).await {
                Ok(answer) if answer.is_refusal() => {}
                Ok(answer) => {
                    return Outcome::Failed(format!(
                        "GET {spelling} is answered {}, and the rule {} should refuse it",
                        answer.status, route.label
                    ));
                }
                Err(problem) => return Outcome::Failed(format!("GET {spelling}: {problem}")),
            }
        }
    }
    if tried == 0 {
        return Outcome::Skipped("no rule closes a path of its own".to_owned());
    }
    Outcome::Passed(format!("{tried} spellings of paths that a rule closes: all are refused"))
}

async fn own_prefix(target: &Target<'_>) -> Outcome {
    for path in [
        "/.vestibule/vestibule-doctor",
        "/.VESTIBULE/vestibule-doctor",
        "/%2evestibule/x",
        "//.vestibule/x",
        "/.vestibule/../.vestibule/x",
    ] {
        match target.get(path).await {
            Ok(answer) if matches!(answer.refusal_code().as_deref(), Some("not_found" | "bad_request")) => {}
            Ok(answer) => {
                return Outcome::Failed(format!(
                    "GET {path} is answered {}, and must never reach the upstream",
                    answer.status
                ));
            }
            Err(problem) => return Outcome::Failed(format!("GET {path}: {problem}")),
        }
    }
    Outcome::Passed("no path under /.vestibule reaches the upstream".to_owned())
}

/// Checks that a socket whose first message is no token does not reach the upstream.
async fn socket(target: &Target<'_>) -> Outcome {
    let Some(path) = protected_path(target) else { return no_protected_path() };
    match upgrade(&target.proxy, &target.host, &path, Some(MARKER)).await {
        Ok(Upgrade::Closed) => Outcome::Passed("a socket whose first message is no token is closed".to_owned()),
        Ok(Upgrade::Silent) => {
            Outcome::Failed(format!("a socket on {path} whose first message was no token stays open"))
        }
        Ok(Upgrade::Message) => {
            Outcome::Failed(format!("a socket on {path} receives messages of the upstream without a token"))
        }
        Ok(Upgrade::Refused(401 | 403 | 429 | 503)) => {
            Outcome::Passed("an upgrade without a credential is refused".to_owned())
        }
        Ok(Upgrade::Refused(status)) => {
            Outcome::Failed(format!("an upgrade on {path} without a token is answered {status}"))
        }
        Err(problem) => Outcome::Failed(format!("an upgrade on {path}: {problem}")),
    }
}

/// Checks that a token in the URL is removed or refused. Otherwise it is in the upstream's log.
async fn token_in_url(target: &Target<'_>) -> Outcome {
    let rules = demanding_rules(target);
    let Some((route, path)) = rules.first() else { return no_protected_path() };
    let Some(query) = &route.token_from.query else {
        return Outcome::Failed(
            "token_from.query is off: a page that still sends ?token= sends it on into the backend's log; write query: { name: token, mode: deny }".to_owned(),
        );
    };
    if !query.websocket {
        return Outcome::Skipped("token_from.query is not read on WebSockets, where this is tried".to_owned());
    }
    // Only a token that names a configured issuer is handled by the proxy; other values are the backend's own and pass.
    let issuer = target.policy.providers.first().and_then(|provider| provider.issuer.as_deref());
    let (header, signature) = FORGED[0];
    let token = forged_token(issuer, header, signature);
    let name = query.names.first().map_or("token", String::as_str);
    match upgrade(&target.proxy, &target.host, &format!("{path}?{name}={token}"), None).await {
        Ok(Upgrade::Closed) => Outcome::Passed(match query.mode {
            QueryMode::Move => format!("?{name}= is taken out of a socket's URL before it is logged or forwarded"),
            QueryMode::Deny => format!("?{name}= is refused"),
        }),
        Ok(Upgrade::Refused(400..=499 | 503)) => Outcome::Passed(format!("an upgrade with ?{name}= is refused")),
        Ok(Upgrade::Refused(status)) => {
            Outcome::Failed(format!("an upgrade with ?{name}= is answered {status}: the token goes on to the backend"))
        }
        Ok(Upgrade::Silent | Upgrade::Message) => Outcome::Failed(format!(
            "an upgrade with ?{name}= is accepted as if the token were not there: it goes on to the backend"
        )),
        Err(problem) => Outcome::Failed(format!("an upgrade with ?{name}=: {problem}")),
    }
}

/// Checks that a website whose name resolves to a loopback listener (DNS rebinding) is refused.
async fn foreign_host(target: &Target<'_>) -> Outcome {
    const FOREIGN: &str = "vestibule-doctor.example";
    let is_loopback = target.policy.listen.iter().any(|listen| match &listen.place {
        ListenPlace::Tcp(addresses) => addresses.iter().any(|address| address.ip().is_loopback()),
        ListenPlace::Unix(_) => false,
    });
    if !is_loopback && matches!(target.policy.hosts, Hosts::Any) {
        return Outcome::Skipped(
            "any Host is answered; list your host names in hosts if no load balancer checks them".to_owned(),
        );
    }
    match (Request { target: "/", host: FOREIGN, ..Request::default() }).send(&target.proxy).await {
        Ok(answer) if answer.status == 421 => Outcome::Passed("a foreign Host is answered 421".to_owned()),
        Ok(answer) => Outcome::Failed(format!(
            "Host: {FOREIGN} is answered {}: a website that points its name at this machine can read the answers; leave hosts unset, or list your host names",
            answer.status
        )),
        Err(problem) => Outcome::Failed(problem),
    }
}

/// Returns the value that is sent in a trusted header.
pub(super) fn spoofed_value(target: &Target<'_>, header: &TrustedHeader) -> String {
    if matches!(&header.claim, Claim::Name(name) if name == "email") {
        format!("{}@{MARKER}.example", target.spoofed_user)
    } else {
        target.spoofed_user.clone()
    }
}

/// Checks that a client's identity headers do not appear in the answers of the upstream.
async fn spoofed_identity(target: &Target<'_>, paths: &[UpstreamPaths]) -> Outcome {
    let user = &target.spoofed_user;
    let configured = target.policy.trusted_headers.iter();
    let configured = configured.map(|header| (header.written.clone(), spoofed_value(target, header)));
    let mut fields = Vec::new();
    for (name, value) in configured.chain(SPOOFED.map(|name| (name.to_owned(), user.clone()))) {
        for name in [name.replace('-', "_"), name.replace('-', "."), name] {
            fields.push(format!("{name}: {value}"));
        }
    }
    let (mut tried, mut refused) = (Vec::new(), None);
    if let Some(token) = &target.token {
        let mut fields = fields.clone();
        fields.push(format!("Authorization: Bearer {token}"));
        for path in paths.iter().flat_map(|paths| &paths.paths) {
            let path = &path.path;
            match target.get_with(path, &fields).await {
                Ok(answer) if answer.contains(user) => return spoofed(path),
                Ok(answer) => match answer.refusal_code().as_deref() {
                    None => tried.push(path.clone()),
                    // Not allowed on this route; another one may be open to this user.
                    Some("forbidden") => {}
                    Some(code) => {
                        return Outcome::Skipped(format!(
                            "GET {path} with the token of --token-file is answered {} {code}",
                            answer.status
                        ));
                    }
                },
                Err(problem) => return Outcome::Failed(format!("GET {path}: {problem}")),
            }
        }
    }
    for route in target.policy.routes.iter().filter(|route| matches!(route.auth, AuthMode::None | AuthMode::Optional)) {
        let Some(path) = example(target, route) else { continue };
        match target.get_with(&path, &fields).await {
            Ok(answer) if answer.contains(user) => return spoofed(&path),
            // The proxy's own answer, as while the upstream is down, says nothing about the upstream.
            Ok(answer) => match answer.refusal_code() {
                None => tried.push(path),
                Some(code) => refused = Some(format!("GET {path} is answered {} {code}", answer.status)),
            },
            Err(problem) => return Outcome::Failed(format!("GET {path}: {problem}")),
        }
    }
    if tried.is_empty() {
        return Outcome::Skipped(refused.unwrap_or_else(|| {
            "needs a valid token: --token-file, and --whoami with a path where the backend shows its caller".to_owned()
        }));
    }
    Outcome::Passed(format!(
        "{} headers that name a user do not show in the answers of {}",
        fields.len(),
        tried.join(" ")
    ))
}

fn spoofed(path: &str) -> Outcome {
    Outcome::Failed(format!(
        "GET {path} shows a user that the client made up: the backend believes a header that is neither in identity.headers nor in identity.strip, or the process serves another configuration"
    ))
}
