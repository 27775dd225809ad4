//! The summary of the policy in sentences, for a reviewer. `check` prints it and a start logs it.

mod shown_keys;

use std::fmt::Write as _;
use std::sync::Arc;

use super::isolation::{UpstreamIsolation, isolation_of};
use super::listener::written_networks;
use super::memory;
use super::provider::DEFAULT_SKEW;
use super::{
    Audience, AuthMode, AuthorizedParties, Claim, Close, Expected, Hosts, KeySource, LoginSpec, MemorySpec, OnExpiry,
    OriginPattern, Policy, ProviderSpec, QueryMode, Renew, Route, SessionSpec, TokenToHttp, TokenToUpgrade,
    UpstreamSpec, is_loopback_name,
};
use crate::config::{Time, shown_url};

pub use shown_keys::keys_not_shown;

/// The form of user ids in the summary. `check` prints them, a page for several people does not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum UserNames {
    /// The ids, as they are in the configuration.
    Shown,
    /// The number of users only.
    Counted,
}

/// The lines of the summary, in two columns: the topic and its text.
struct Lines {
    text: String,
    names: UserNames,
}

impl Lines {
    fn add(&mut self, topic: &str, text: impl std::fmt::Display) {
        let _ = writeln!(self.text, "  {topic:<11} {text}");
    }

    /// Adds a further line of the same topic.
    fn more(&mut self, text: impl std::fmt::Display) {
        self.add("", text);
    }
}

/// Returns the summary in two columns, the topic and its text.
#[must_use]
pub fn summary(policy: &Policy, names: UserNames) -> String {
    let mut lines = Lines { text: String::new(), names };
    lines.listeners(policy);
    for index in 0..policy.upstreams.len() {
        lines.upstream(policy, index);
    }
    for provider in &policy.providers {
        lines.provider(provider);
    }
    lines.identity(policy);
    lines.routes(policy);
    lines.sockets(policy);
    lines.browsers(policy);
    lines.limits(policy);
    lines.operation(policy);
    lines.text
}

impl Lines {
    fn listeners(&mut self, policy: &Policy) {
        for listen in &policy.listen {
            self.add("listen", &listen.written);
        }
        if let Some(admin) = &policy.admin {
            self.add("admin", format_args!("{} (status, metrics; GET only)", admin.address));
        }
        if let Some(control) = &policy.control {
            self.add("control", control);
        }
        if let Some(shared) = &policy.shared {
            self.add("shared", shared);
        } else if may_have_several_instances(policy) {
            let sessions = if policy.browser.logins.is_empty() { "" } else { "sessions that began with a sign-in, " };
            self.add(
                "shared",
                format_args!(
                    "nothing: each instance has its own revocations, sign-outs, {sessions}presence and limits (docs/shared-state.md)"
                ),
            );
        }
        self.add("hosts", hosts_text(&policy.hosts));
        self.trusted_proxies(policy);
        if !policy.origins.is_empty() {
            self.add("origins", origins_text(&policy.origins));
        }
    }

    fn trusted_proxies(&mut self, policy: &Policy) {
        let mut trusted = written_networks(&policy.trusted_proxies);
        if policy.trusts_unix {
            trusted.push("Unix sockets".to_owned());
        }
        if !trusted.is_empty() {
            let trusted = trusted.join(", ");
            self.add(
                "proxies",
                format_args!("{trusted}: their X-Forwarded-For and X-Forwarded-Proto name the client and its scheme"),
            );
        }
    }

    fn upstream(&mut self, policy: &Policy, index: usize) {
        let upstream = &policy.upstreams[index];
        let paths: Vec<&str> = policy
            .routes
            .iter()
            .filter(|route| index > 0 && route.upstream == index)
            .map(|route| &*route.label)
            .collect();
        let of = if index == 0 { String::new() } else { format!(" for {}", paths.join(" ")) };
        self.add("upstream", format_args!("{}{of}", upstream.url));
        if let Some(credential) = &upstream.credential {
            self.more(format_args!("gets its credential in {}, for verified callers only", credential.header));
        }
        for sentence in handed_on(upstream) {
            self.more(sentence);
        }
        self.more(format_args!("isolation: {}", isolation_text(policy, upstream)));
        if let Some(preset) = &upstream.preset {
            let mut setup = preset.setup.lines();
            self.more(format_args!("it is {}, and keeps its own secret, which this proxy sends as", preset.name));
            self.more(format_args!("  {}", preset.credential));
            self.more(format_args!("and is started with {}", setup.next().unwrap_or_default()));
            for further in setup {
                self.more(further);
            }
            self.more(format_args!("for its health check: routes: [{{ path: {}, auth: none }}]", preset.health));
        }
    }

    fn provider(&mut self, provider: &ProviderSpec) {
        let issuer = provider.issuer.as_deref().unwrap_or("any issuer");
        let keys = keys_text(&provider.keys);
        let audience = match &provider.audience {
            Audience::Any => "any audience".to_owned(),
            Audience::OneOf(names) if names.is_empty() => "sign-in only, no Bearer tokens".to_owned(),
            Audience::OneOf(names) => format!("audience {}", names.join(" or ")),
        };
        let parties = match &provider.authorized_parties {
            AuthorizedParties::Any => String::new(),
            AuthorizedParties::OneOf(parties) => format!(", azp {}", parties.join(" or ")),
            AuthorizedParties::Origins(_) => ", azp from origins".to_owned(),
            AuthorizedParties::Client(client_id) => format!(", azp {client_id} where there is one"),
        };
        self.add("provider", format_args!("{} {issuer}  {keys}, {audience}{parties}", provider.name));
        self.more(format_args!("who may enter: {}", entrants(provider, self.names)));
        if provider.clock_skew != DEFAULT_SKEW {
            let skew = Time(provider.clock_skew);
            self.more(format_args!("clock skew {skew}: tokens are accepted that long after their end"));
        }
        if let Some(remote) = &provider.remote {
            self.more(remote);
        }
    }

    fn identity(&mut self, policy: &Policy) {
        for header in policy.trusted_headers.iter() {
            self.add("identity", format_args!("{} = {}", header.written, header.claim));
        }
        if let Some(default) = policy.routes.last() {
            self.add("tokens", tokens(policy, default));
        }
    }

    fn routes(&mut self, policy: &Policy) {
        // No request reaches a rule below one that matches everything.
        let last = policy.routes.iter().position(|route| route.matches_everything());
        let reached = last.map_or(policy.routes.len(), |last| last + 1);
        for (index, route) in policy.routes[..reached].iter().enumerate() {
            self.add(if index == 0 { "routes" } else { "" }, described(policy, route, self.names));
        }
        for (path, resource) in &policy.resource_documents {
            self.add("resource", format_args!("{} for OAuth clients, described at {path}", resource.identifier));
        }
    }

    fn sockets(&mut self, policy: &Policy) {
        if let Some(default) = policy.routes.last() {
            let dialect = default.websocket.dialect.as_ref().map_or("none", |dialect| dialect.name.as_str());
            self.add("sockets", format_args!("dialect {dialect}; {}", sockets(policy, default)));
            if let Some(origins) = &default.websocket.allowed_origins {
                self.more(format_args!("upgrades of pages from {} only", origins_text(origins)));
            }
        }
        if policy.events_end_with_token {
            self.add("events", "event streams end with their token");
        }
    }

    fn browsers(&mut self, policy: &Policy) {
        if let Some(session) = &policy.browser.session {
            self.add("session", session_text(policy, session));
        }
        for (name, text) in policy.browser.logins.iter().flat_map(|login| sign_in(login)) {
            self.add(name, text);
        }
        if let Some(url) = policy.browser.sign_in_url.as_ref().filter(|_| policy.browser.logins.is_empty()) {
            self.add("sign-in", format_args!("page loads without a credential are redirected to {}", url.written()));
        }
    }

    fn limits(&mut self, policy: &Policy) {
        let MemorySpec { unauthenticated_bytes, held_message_bytes, cgroup_bytes } = policy.memory;
        let cgroup = cgroup_bytes.map_or_else(String::new, |bytes| format!("; the cgroup may use {} MiB", bytes >> 20));
        self.add(
            "memory",
            format_args!(
                "at most {} MiB while no caller has authenticated, {} MiB of them counted by limits.unauthenticated_bytes{cgroup}",
                memory::max_before_authentication(unauthenticated_bytes) >> 20,
                unauthenticated_bytes >> 20
            ),
        );
        self.more(format_args!(
            "unfinished messages that are read whole: at most {} MiB of all users",
            held_message_bytes >> 20
        ));
        if policy.limits.failed_tokens_per_minute.is_none() {
            self.add("limits", "bad tokens of one address: no limit (failed_tokens_per_minute: null)");
        }
    }

    /// Adds settings of the log, of errors and of the drain that differ from their defaults.
    fn operation(&mut self, policy: &Policy) {
        if policy.verbose_errors {
            self.add("errors", "verbose: a caller is told why its token was refused");
        }
        if policy.log.query {
            self.add("log", "has the queries of URLs (log.query); values are masked by the names of their parameters");
        }
        if !policy.drain_delay.is_zero() {
            let delay = Time(policy.drain_delay);
            self.add("drain", format_args!("new requests are accepted for {delay} after SIGTERM (drain.delay)"));
        }
    }
}

fn keys_text(keys: &KeySource) -> String {
    match keys {
        KeySource::Introspection => "no keys".to_owned(),
        KeySource::Secret(_) => "shared secret".to_owned(),
        KeySource::Pem(_) => "PEM file".to_owned(),
        KeySource::Jwks(_) => "JWKS file".to_owned(),
        KeySource::ById { base, .. } => format!("keys by their id at {}", shown_url(base.as_str())),
        KeySource::Fetched { url, discovery: true, .. } => format!("discovery at {}", shown_url(url.as_str())),
        KeySource::Fetched { url, .. } => format!("keys at {}", shown_url(url.as_str())),
    }
}

fn origins_text(origins: &[OriginPattern]) -> String {
    if origins.is_empty() {
        return "no origin".to_owned();
    }
    origins.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

/// Describes in a sentence the protection of an upstream from direct access.
fn isolation_text(policy: &Policy, upstream: &UpstreamSpec) -> String {
    let found = isolation_of(policy, upstream);
    if found.is_empty() {
        return "none: any program that reaches the backend's port can name any user. A secret of its own (credential), a signed assertion (identity.assertion), a Unix socket, or a single user would protect it".to_owned();
    }
    found.iter().map(UpstreamIsolation::to_string).collect::<Vec<_>>().join("; ")
}

/// Returns whether other instances are likely: behind a load balancer, with session cookies that they could read.
fn may_have_several_instances(policy: &Policy) -> bool {
    let session = policy.browser.session.as_ref();
    !policy.trusted_proxies.is_empty() && session.is_some_and(|session| session.secret.is_some())
}

/// Describes the places in which an upstream gets the client's token.
fn handed_on(upstream: &UpstreamSpec) -> Vec<String> {
    let mut out = vec![match upstream.token_to_http {
        TokenToHttp::None => "the caller's token is not passed on".to_owned(),
        TokenToHttp::Header => "the caller's token is passed on in Authorization".to_owned(),
    }];
    match &upstream.token_to_websocket {
        TokenToUpgrade::None => {}
        TokenToUpgrade::Header => out.push("on WebSocket upgrades it is passed on in Authorization".to_owned()),
        TokenToUpgrade::Query(name) => out.push(format!("on WebSocket upgrades it is passed on as ?{name}=")),
        TokenToUpgrade::FirstMessage(dialect) => {
            out.push(format!("on WebSockets it is passed on in a first message ({})", dialect.name));
        }
    }
    out
}

/// Returns whether a token in a request can be accepted. A provider without an audience signs people in, and that is all.
fn accepts_tokens(policy: &Policy) -> bool {
    let signs_in_only =
        |provider: &Arc<ProviderSpec>| matches!(&provider.audience, Audience::OneOf(names) if names.is_empty());
    policy.browser.logins.is_empty() || !policy.providers.iter().all(signs_in_only)
}

/// Describes the `Host` values that are answered.
fn hosts_text(hosts: &Hosts) -> String {
    match hosts {
        Hosts::Any => "any".to_owned(),
        Hosts::Listed { names, loopback } => {
            // Those of this machine follow in one word.
            let is_shown = |name: &&String| !(*loopback && is_loopback_name(name));
            let mut shown: Vec<String> = names.iter().filter(is_shown).cloned().collect();
            if *loopback {
                shown.push("localhost and loopback addresses".to_owned());
            }
            shown.join(", ")
        }
    }
}

/// Describes how long a session by cookie lives, how its cookie is encrypted, and the methods of its endpoint.
fn session_text(policy: &Policy, session: &SessionSpec) -> String {
    let accepts_tokens = accepts_tokens(policy);
    let life = match (session.max_age, policy.browser.logins.first()) {
        (Some(age), _) => Time(age).to_string(),
        (None, Some(login)) if accepts_tokens => {
            format!("{} from a sign-in, as long as the token from a POST", Time(login.session_max_age))
        }
        (None, Some(login)) => Time(login.session_max_age).to_string(),
        (None, None) => "as long as the token".to_owned(),
    };
    let key = if session.secret.is_some() { "a secret of yours" } else { "a key of each process" };
    let methods = if accepts_tokens { "POST and DELETE" } else { "DELETE" };
    format!("by cookie, {life}, encrypted with {key}; {methods} /.vestibule/session")
}

/// Describes in one clause when the sockets of a route end.
#[must_use]
pub fn sockets(policy: &Policy, route: &Route) -> String {
    let of_a_sign_in = "those of a sign-in stay open while its session is renewed, and end with it";
    let mut text = if accepts_tokens(policy) { token_expiry(policy, route) } else { of_a_sign_in.to_owned() };
    add_further_ends(&mut text, route);
    if accepts_tokens(policy) && !policy.browser.logins.is_empty() {
        let _ = write!(text, "; {of_a_sign_in}");
    }
    text
}

/// Describes in one clause what becomes of a socket whose token expires.
fn token_expiry(policy: &Policy, route: &Route) -> String {
    let spec = &route.websocket;
    // A token counts until its end and the tolerance for clocks, so no socket closes before that.
    let skew = policy.providers.iter().map(|provider| provider.clock_skew).max().unwrap_or_default();
    let grace = Time(spec.grace.max(skew));
    let code = spec.dialect.as_ref().map_or(Close::Expired.default_code(), |dialect| dialect.code(Close::Expired));
    match spec.on_expiry {
        OnExpiry::Keep => "stay open after their token's end".to_owned(),
        OnExpiry::Close => format!("closed with {code}, {grace} after their token's end, unless refreshed"),
        OnExpiry::Auto => format!(
            "auto: closed with {code}, {grace} after their token's end if the client renews, else while the user is seen within {}",
            Time(spec.presence)
        ),
    }
}

/// Adds what else ends the sockets of a route.
fn add_further_ends(text: &mut String, route: &Route) {
    let spec = &route.websocket;
    if let Some(lifetime) = spec.max_lifetime {
        let _ = write!(text, ", at most {}", Time(lifetime));
    }
    if let Some(every) = spec.revalidate_every {
        let _ = write!(text, ", its provider asked every {} where it can be", Time(every));
    }
    if let Some(idle) = spec.limits.idle_timeout {
        let _ = write!(text, ", closed after {} without a message", Time(idle));
    }
}

/// Describes in one clause the places where a token is read.
#[must_use]
pub fn tokens(policy: &Policy, route: &Route) -> String {
    if !accepts_tokens(policy) {
        return "none are accepted: people sign in, and their session cookie tells who they are".to_owned();
    }
    format!("from {}", token_source_list(route))
}

fn token_source_list(route: &Route) -> String {
    let mut sources: Vec<String> = route
        .token_from
        .headers
        .iter()
        .map(|name| if name == hyper::header::AUTHORIZATION { "Authorization".to_owned() } else { name.to_string() })
        .collect();
    if route.token_from.basic {
        sources.push("the password of Basic".to_owned());
    }
    if route.token_from.message {
        sources.push("first message".to_owned());
    }
    sources.extend(route.token_from.subprotocols.iter().map(|source| format!("subprotocol {}…", source.prefix)));
    if let Some(query) = &route.token_from.query {
        let names = query.names.iter().map(|name| format!("?{name}=")).collect::<Vec<_>>().join(" ");
        sources.push(match query.mode {
            QueryMode::Move => format!("{names} (deprecated, moved)"),
            QueryMode::Deny => format!("{names} refused"),
        });
    }
    if let Some(cookie) = &route.token_from.cookie {
        sources.push(format!("cookie {}, from our own pages and origins", cookie.name));
    }
    sources.join(", ")
}

/// Describes the users that `allow` and `require` of a provider admit.
fn entrants(provider: &ProviderSpec, names: UserNames) -> String {
    let allow = &provider.allow;
    let mut groups = Vec::new();
    for (what, listed) in [("user", &allow.users), ("e-mail address", &allow.emails)] {
        match (listed.len(), names) {
            (0, _) => {}
            (1, UserNames::Counted) => groups.push(format!("1 {what}")),
            (count, UserNames::Counted) => groups.push(format!("{count} {what}{}", plural(what))),
            (count, UserNames::Shown) => {
                let what = if count == 1 { what.to_owned() } else { format!("{what}{}", plural(what)) };
                groups.push(format!("{what} {}", listed.join(", ")));
            }
        }
    }
    if !allow.email_domains.is_empty() {
        groups.push(format!("e-mail addresses at {}", allow.email_domains.join(", ")));
    }
    let mut text = if groups.is_empty() { "everyone this issuer signs in".to_owned() } else { groups.join("; or ") };
    let mails = !allow.emails.is_empty() || !allow.email_domains.is_empty();
    if mails || provider.user_id.is_email() {
        let which = if provider.trust_unverified_email { "verified or not" } else { "verified ones only" };
        let _ = write!(text, " ({which})");
    }
    for (claim, expected) in &provider.require.claims {
        let _ = write!(text, ", if {}", demanded(claim, expected, names));
    }
    text
}

fn plural(word: &str) -> &'static str {
    if word.ends_with('s') { "es" } else { "s" }
}

/// Describes the required value of a claim.
fn demanded(claim: &Claim, expected: &[Expected], names: UserNames) -> String {
    let is_user = *claim == Claim::UserId || claim.is_email() || matches!(claim, Claim::Pointer(p) if p == "/sub");
    if is_user && names == UserNames::Counted {
        return format!("{claim} is one of {}", expected.len());
    }
    let shown: Vec<String> = expected
        .iter()
        .map(|expected| match expected {
            Expected::Value(serde_json::Value::String(text)) => text.clone(),
            Expected::Value(value) => value.to_string(),
            Expected::Variable(name) => format!("{{{name}}} of the path"),
            Expected::Present => "any value".to_owned(),
        })
        .collect();
    format!("{claim} is {}", shown.join(" or "))
}

fn described(policy: &Policy, route: &Route, names: UserNames) -> String {
    let auth = match route.auth {
        AuthMode::Required if !accepts_tokens(policy) => "a user who has signed in",
        AuthMode::Optional if !accepts_tokens(policy) => "anyone; a session is verified when there is one",
        AuthMode::Required => "a valid token",
        AuthMode::Optional => "anyone; a token is verified when sent",
        AuthMode::None => "anyone",
        AuthMode::Deny => "nobody",
    };
    let path = if route.pattern.is_none() && &*route.label == "default" { "everything else" } else { &route.label };
    let methods = if route.methods.is_empty() { String::new() } else { format!(" {}", route.methods.join(",")) };
    let mut text = format!("{path}{methods}: {auth}");
    for (claim, expected) in &route.require.claims {
        let _ = write!(text, ", if {}", demanded(claim, expected, names));
    }
    let dialect =
        |route: &Route| route.websocket.dialect.as_ref().map_or_else(|| "none".to_owned(), |d| d.name.clone());
    let sockets = |route: &Route| sockets(policy, route);
    if let Some(default) = policy.routes.last()
        && (dialect(route), sockets(route)) != (dialect(default), sockets(default))
    {
        let _ = write!(text, "; its sockets: dialect {}; {}", dialect(route), sockets(route));
    }
    if let Some(default) = policy.routes.last()
        && route.websocket.allowed_origins != default.websocket.allowed_origins
        && let Some(origins) = &route.websocket.allowed_origins
    {
        let _ = write!(text, "; upgrades of pages from {} only", origins_text(origins));
    }
    text
}

/// Describes the sign-in at a provider, and the values to register there, as lines to copy.
fn sign_in(login: &LoginSpec) -> Vec<(&'static str, String)> {
    let LoginSpec { name, provider_spec, client_id, session_max_age, scopes, .. } = login;
    let issuer = provider_spec.issuer.as_deref().unwrap_or_default();
    let mut lines = vec![
        ("sign-in", format!("at {name} {issuer}, as client {client_id}; at most {}", Time(*session_max_age))),
        ("", format!("register there as redirect URI: {}", login.redirect_uri())),
        ("", format!("as post-logout redirect URI: {}", login.signed_out_uri())),
        ("", format!("as back-channel logout URI: {}", login.backchannel_logout_uri())),
        ("", format!("scopes: {}", scopes.join(" "))),
    ];
    if let Some(doubt) = login.refresh_token_doubt() {
        let age = Time(*session_max_age);
        let effect = if login.renew == Renew::Required {
            "sign-ins fail (renew: required)".to_owned()
        } else {
            format!("a person who is removed at {name} stays signed in for up to {age}")
        };
        lines.push(("", format!("{doubt}; without one, {effect}")));
    }
    lines
}
