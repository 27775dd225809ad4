//! `Config` → `Policy`: every rule that needs more than one key, every parsed value, all errors at once.
//! What belongs to one topic stands with it: `exposure`, `upstream`, `provider`, `dialect`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hyper::header::HeaderName;
use url::Url;

use super::backend::echo;
use super::memory;
use super::names::{ConfiguredNames, LONGEST, PROTECTED, Reserved};
use super::origin::is_loopback_name;
use super::preset::cookie_suffix;
use super::summary::walls;
use super::upstream::Upstreams;
use super::{
    AssertionSpec, Claim, CookieSource, DialectSpec, Expected, IssuedTokens, LimitSpec, ListenPlace, ListenSpec,
    LogSpec, Origin, OriginPattern, Pattern, Policy, QueryParameter, Requirement, ReservedNames, Route, TokenSources,
    TokenSubprotocol, TrustedHeader, fold,
};
use crate::config::{self, AuthMode, Config, Errors, Finding, OnExpiry, OneOrMany, Time};

/// Makes a policy, or says everything that is wrong.
///
/// # Errors
/// Every finding, each with the path of its key.
pub fn validate(config: &Config) -> Result<Policy, Vec<Finding>> {
    let mut check = Check::default();
    let policy = check.policy(config);
    match policy {
        Some(policy) if check.findings.is_empty() => Ok(policy),
        _ => Err(check.findings),
    }
}

/// Findings and warnings on the way; every step goes on after an error to find the next.
#[derive(Default)]
pub(super) struct Check {
    findings: Vec<Finding>,
    warnings: Vec<String>,
    /// Read so far.
    files: Vec<PathBuf>,
    /// Of the Clerk applications whose publishable keys are written.
    pub(super) cookie_suffixes: Vec<String>,
    /// Secrets that are published are taken; the listeners are on loopback only.
    pub(super) is_insecure_dev: bool,
    /// What tells tokens of the providers.
    pub(super) issued: Arc<IssuedTokens>,
    pub(super) dialects: BTreeMap<String, Arc<DialectSpec>>,
}

impl Check {
    pub(super) fn wrong(&mut self, path: impl Into<String>, message: impl Into<String>) {
        self.findings.push(Finding::new(path, message));
    }

    /// How much is wrong so far.
    pub(super) fn found(&self) -> usize {
        self.findings.len()
    }

    pub(super) fn warn(&mut self, warning: impl Into<String>) {
        self.warnings.push(warning.into());
    }

    /// The value, or a finding at `path`.
    pub(super) fn take<T>(&mut self, path: &str, result: Result<T, String>) -> Option<T> {
        result.map_err(|message| self.wrong(path, message)).ok()
    }

    /// Reads a file that a key names; one trailing newline is removed.
    pub(super) fn file(&mut self, path: &str, file: &str) -> Option<Vec<u8>> {
        self.files.push(PathBuf::from(file));
        match std::fs::metadata(file).map(|meta| meta.len()) {
            Ok(size) if size > 1 << 20 => {
                self.wrong(path, format!("{file} is larger than 1 MiB"));
                return None;
            }
            _ => {}
        }
        match std::fs::read(Path::new(file)) {
            Ok(mut bytes) => {
                if bytes.last() == Some(&b'\n') {
                    bytes.pop();
                    if bytes.last() == Some(&b'\r') {
                        bytes.pop();
                    }
                }
                Some(bytes)
            }
            Err(error) => {
                self.wrong(path, format!("{file}: {error}"));
                None
            }
        }
    }

    /// A secret given as itself or as a file; `what` names the key without `_file`.
    pub(super) fn secret(
        &mut self,
        path: &str,
        value: Option<&String>,
        file_path: &str,
        file: Option<&String>,
    ) -> Option<Vec<u8>> {
        match (value, file) {
            (Some(_), Some(_)) => {
                self.wrong(file_path, format!("stands beside {}; keep one", path.rsplit('.').next().unwrap_or(path)));
                None
            }
            (Some(value), None) => Some(value.clone().into_bytes()),
            (None, Some(file)) => self.file(file_path, file),
            (None, None) => None,
        }
    }

    fn policy(&mut self, config: &Config) -> Option<Policy> {
        self.is_insecure_dev = config.insecure_dev;
        let listen = self.listen(config);
        let local = |spec: &ListenSpec, unix: bool| match &spec.place {
            ListenPlace::Tcp(addresses) => addresses.iter().all(|address| address.ip().is_loopback()),
            ListenPlace::Unix(_) => unix,
        };
        // No page reaches a Unix socket, whatever its name points at; no other machine either.
        let loopback = listen.iter().all(|spec| local(spec, false));
        let this_machine_only = listen.iter().all(|spec| local(spec, true));
        let public_url = config.public_url.as_ref().and_then(|text| self.take("public_url", Origin::parse(text)));
        let hosts = self.hosts(config, loopback, public_url.as_ref());
        let trusted_proxies = self.trusted_proxies(config);
        let origins = self.origins("origins", &config.origins);
        let admin = config.admin.as_ref().and_then(|admin| self.admin(admin));
        let control = config.control.as_ref().and_then(|control| self.control(control));
        let upstreams = self.upstreams(config);
        let trusted_headers = self.trusted_headers(config);
        let rules_by_method = config.routes.iter().any(|route| route.methods.is_some());
        let assertion = self.assertion(config);
        let reserved = Self::reserved(config, assertion.as_ref(), upstreams.as_ref());
        for (index, name) in config.identity.strip.iter().enumerate() {
            self.header_name(&format!("identity.strip[{index}]"), name);
        }
        let providers = self.providers(config);
        self.issued = Arc::new(IssuedTokens::of(&providers));
        let keys = config.providers.iter().filter_map(|provider| provider.publishable_key.as_deref());
        self.cookie_suffixes = keys.map(cookie_suffix).collect();
        self.dialects = self.dialects(config, &reserved);
        let routes = self.routes(config, upstreams.as_ref());
        let upstreams = upstreams.map(|upstreams| self.first_messages(upstreams, &routes));
        if config.errors == Errors::Verbose && !this_machine_only && !config.insecure_verbose_errors {
            self.wrong(
                "errors",
                "verbose tells strangers why a token was refused; listen on loopback only, or set insecure_verbose_errors: true",
            );
        }
        let known = upstreams.iter().flatten().any(|upstream| upstream.preset.is_some());
        let logins = self.logins(config, &providers, &routes, &trusted_headers, public_url.as_ref());
        let mut browser = self.browser(&config.browser, upstreams.as_deref(), &providers, public_url.as_ref(), known);
        self.sign_in_is_open(&browser, &routes, public_url.as_ref());
        browser.sign_in_with(logins);
        let log = self.log(config);
        let longest_message = routes.iter().map(|route| route.websocket.message_bytes).max().unwrap_or_default();
        let limits = self.limits(config, longest_message);
        let everything_decided =
            config.routes.iter().any(|route| route.path.as_deref() == Some("/**") && route.methods.is_none())
                && config.routes.iter().all(|route| matches!(route.auth, AuthMode::None | AuthMode::Deny));
        if config.providers.is_empty() && !everything_decided {
            self.wrong("providers", "no provider: nobody could sign in. Add one, for example\nproviders: [{ preset: oidc, issuer: \"https://issuer.example.com\", audience: my-api }]");
        }
        let rules_by_path = rules_by_path(&routes);
        let under_auto = routes.iter().filter(|route| route.websocket.on_expiry == OnExpiry::Auto);
        let longest_presence = under_auto.map(|route| route.websocket.presence).max();
        let policy = Policy {
            listen,
            hosts,
            public_url,
            trusted_proxies,
            trusts_unix: config.trusted_proxies.iter().any(|proxy| proxy == "unix"),
            origins,
            admin,
            control,
            upstreams: upstreams?,
            providers,
            assertion,
            trusted_headers: trusted_headers.into(),
            reserved,
            routes,
            rules_by_path,
            longest_presence,
            rules_by_method,
            cors: config.cors.as_ref().and_then(|cors| self.cors(config, cors)),
            events_end_with_token: config.events.on_expiry == config::EventsOnExpiry::Close,
            browser,
            limits,
            verbose_errors: config.errors == Errors::Verbose,
            log,
            drain_delay: config.drain.delay.0,
            drain_timeout: config.drain.timeout.0,
            warnings: Vec::new(),
            files: Vec::new(),
        };
        for upstream in policy.upstreams.iter().filter(|upstream| upstream.preset.is_some()) {
            if walls(&policy, upstream).is_empty() {
                self.warn(format!(
                    "{} runs its users' code, which can call it and name any user: give it its own secret ({}), or let one user alone in (allow.users)",
                    upstream.url,
                    upstream.preset.map_or("", |preset| preset.credential)
                ));
            }
        }
        let (warnings, files) = (std::mem::take(&mut self.warnings), std::mem::take(&mut self.files));
        Some(Policy { warnings, files, ..policy })
    }

    pub(super) fn origins(&mut self, path: &str, written: &[String]) -> Vec<OriginPattern> {
        written
            .iter()
            .enumerate()
            .filter_map(|(index, text)| self.take(&format!("{path}[{index}]"), OriginPattern::parse(text)))
            .collect()
    }

    pub(super) fn not_zero(&mut self, path: &str, value: Option<Time>) {
        if value.is_some_and(|time| time.0.is_zero()) {
            self.wrong(path, "is zero: nothing could ever be in time");
        }
    }

    pub(super) fn header_name(&mut self, path: &str, name: &str) -> Option<HeaderName> {
        if name.len() > LONGEST {
            self.wrong(path, format!("a header name longer than {LONGEST} bytes"));
            return None;
        }
        let parsed = HeaderName::try_from(name).map_err(|_| format!("\"{name}\" is not a header name"));
        self.take(path, parsed)
    }

    /// The names that no client may set, under this configuration.
    fn reserved(config: &Config, assertion: Option<&AssertionSpec>, upstreams: Option<&Upstreams>) -> ReservedNames {
        let identity = config.identity.headers.keys().chain(&config.identity.strip).map(String::as_str);
        // The assertion's usual name is reserved whether or not there is one.
        let assertion = [super::assertion::HEADER].into_iter().chain(assertion.map(|spec| spec.header.as_str()));
        let of_routes = config.routes.iter().filter_map(|route| route.token_from.header.as_ref()?.as_ref());
        let token_sources = config.token_from.header.iter().chain(of_routes).flat_map(|names| &names.0);
        let specs = upstreams.map_or(&[][..], |upstreams| &upstreams.specs);
        let credentials = specs.iter().filter_map(|upstream| upstream.credential.as_ref());
        ReservedNames::new(ConfiguredNames {
            identity: &identity.chain(assertion).collect::<Vec<_>>(),
            token_sources: &token_sources.map(String::as_str).collect::<Vec<_>>(),
            credentials: &credentials.map(|credential| credential.header.as_str()).collect::<Vec<_>>(),
            rules_by_method: config.routes.iter().any(|route| route.methods.is_some()),
        })
    }

    fn trusted_headers(&mut self, config: &Config) -> Vec<TrustedHeader> {
        let mut out: Vec<TrustedHeader> = Vec::new();
        let known = ReservedNames::default();
        for (name, claim) in &config.identity.headers {
            let path = format!("identity.headers.{name}");
            let Some(header) = self.header_name(&path, name) else { continue };
            let folded = fold(name);
            let letters = folded.as_bytes();
            let protected = PROTECTED.iter().any(|protected| fold(protected) == folded)
                || matches!(
                    letters,
                    b"connection" | b"upgrade" | b"te" | b"trailer" | b"keepalive" | b"expect" | b"via"
                )
                || letters.starts_with(b"secwebsocket")
                || known.classify(name).is_some_and(|kind| kind != Reserved::Identity);
            if protected {
                self.wrong(&path, format!("{name} has a meaning of its own; use another name, such as X-User-Id"));
            }
            if letters.is_empty() {
                self.wrong(&path, "has no letter or digit");
            }
            if let Some(twin) = out.iter().find(|other| fold(other.name.as_str()) == folded) {
                let twin = twin.written.clone();
                self.wrong(&path, format!("is the same name as {twin} to many backends; keep one"));
            }
            if let Some(parsed) = self.take(&path, Claim::parse(&claim.claim)) {
                if parsed.is_written_by_users() {
                    self.warn(format!("identity.headers.{name}: users can write the claim {parsed} themselves"));
                }
                out.push(TrustedHeader { written: name.clone(), name: header, claim: parsed, encode: claim.encode });
            }
        }
        out
    }

    fn token_from(
        &mut self,
        path: &str,
        header: Option<&OneOrMany>,
        message: bool,
        query: Option<&config::QuerySource>,
        subprotocols: &[config::SubprotocolSource],
        cookie: Option<&str>,
    ) -> TokenSources {
        let mut headers = Vec::new();
        for name in header.map_or(&[][..], |names| &names.0) {
            if let Some(name) = self.header_name(&format!("{path}.header"), name) {
                headers.push(name);
            }
        }
        if query.is_some_and(|query| query.name.0.is_empty() || query.name.0.iter().any(String::is_empty)) {
            self.wrong(format!("{path}.query.name"), "is empty; write the parameter's name, such as token");
        }
        let query = query.filter(|query| !query.uses.is_empty()).map(|query| QueryParameter {
            names: query.name.0.clone(),
            issued: Arc::clone(&self.issued),
            mode: query.mode,
            websocket: query.uses.contains(&config::QueryUse::Websocket),
            events: query.uses.contains(&config::QueryUse::Events),
        });
        // RFC 6265 section 4.1.1: a cookie's name is a token, as a header's is.
        if let Some(name) = cookie.filter(|name| HeaderName::try_from(*name).is_err()) {
            self.wrong(format!("{path}.cookie"), format!("\"{name}\" is not a cookie's name; write it as __session"));
        }
        let subprotocols = subprotocols
            .iter()
            .enumerate()
            .map(|(index, source)| {
                let at = format!("{path}.subprotocol[{index}].prefix");
                if source.prefix.is_empty() {
                    self.wrong(&at, "is empty: every offer would be taken for a token; write it as base64url.bearer.authorization.k8s.io.");
                } else if HeaderName::try_from(source.prefix.as_str()).is_err() {
                    self.wrong(&at, format!("\"{}\" cannot begin a subprotocol", source.prefix));
                }
                TokenSubprotocol { prefix: source.prefix.clone(), encoding: source.encoding }
            })
            .collect();
        let cookie = cookie.map(|name| CookieSource { name: name.to_owned(), suffixes: self.cookie_suffixes.clone() });
        TokenSources { headers, message, query, subprotocols, cookie, echo: None }
    }

    fn routes(&mut self, config: &Config, upstreams: Option<&Upstreams>) -> Vec<Arc<Route>> {
        let mut out = Vec::new();
        for (index, route) in config.routes.iter().enumerate() {
            let at = format!("routes[{index}]");
            let Some(path) = &route.path else {
                self.wrong(&at, "has no path; write path: /api/**");
                continue;
            };
            let Some(pattern) = self.take(&format!("{at}.path"), Pattern::parse(path)) else { continue };
            if route.auth != AuthMode::Required && !route.require.is_empty() {
                self.wrong(format!("{at}.require"), REQUIRE_WITHOUT_USER);
            }
            let mut methods = Vec::new();
            for method in route.methods.iter().flatten() {
                if hyper::Method::from_bytes(method.as_bytes()).is_err() || method.to_ascii_uppercase() != *method {
                    self.wrong(
                        format!("{at}.methods"),
                        format!("\"{method}\" is not a method; write it in capitals, as in GET"),
                    );
                }
                methods.push(method.clone());
            }
            if route.methods.as_ref().is_some_and(Vec::is_empty) {
                self.wrong(
                    format!("{at}.methods"),
                    "is empty: the rule would never match; leave it out for every method",
                );
            }
            let require = self.requirement(&format!("{at}.require"), &route.require, Some(&pattern));
            let base = &config.token_from;
            let header = route.token_from.header.as_ref().map_or(base.header.as_ref(), Option::as_ref);
            let query = route.token_from.query.as_ref().map_or(base.query.as_ref(), Option::as_ref);
            let message = route.token_from.message.unwrap_or(base.message);
            let subprotocols = route.token_from.subprotocol.as_ref().unwrap_or(&base.subprotocol);
            let cookie = route.token_from.cookie.as_ref().unwrap_or(&base.cookie).as_deref();
            let mut token_from =
                self.token_from(&format!("{at}.token_from"), header, message, query, subprotocols, cookie);
            let upstream = upstreams.map_or(0, |upstreams| upstreams.of_route[index]);
            let backend = upstreams.and_then(|upstreams| upstreams.specs[upstream].preset);
            token_from.echo = upstreams.and_then(|upstreams| echo(&upstreams.specs[upstream]));
            let websocket = self.websocket(config, &route.websocket, &format!("{at}.websocket"), backend);
            let pattern = (path != "/**").then_some(pattern);
            out.push(Arc::new(Route {
                label: path.as_str().into(),
                pattern,
                methods,
                auth: route.auth,
                require,
                upstream,
                token_from,
                websocket,
            }));
        }
        self.warn_of_case(&out);
        let base = &config.token_from;
        let (header, query, cookie) = (base.header.as_ref(), base.query.as_ref(), base.cookie.as_deref());
        let mut token_from = self.token_from("token_from", header, base.message, query, &base.subprotocol, cookie);
        let first = upstreams.and_then(|upstreams| upstreams.specs.first());
        token_from.echo = first.and_then(echo);
        let backend = first.and_then(|first| first.preset);
        let websocket = self.websocket(config, &config::RouteWebSocket::default(), "websocket", backend);
        out.push(Arc::new(Route {
            label: "default".into(),
            pattern: None,
            methods: Vec::new(),
            auth: AuthMode::Required,
            require: Requirement::default(),
            upstream: 0,
            token_from,
            websocket,
        }));
        out
    }

    /// A path in other letters falls under both of two such rules, so both must let it pass.
    fn warn_of_case(&mut self, routes: &[Arc<Route>]) {
        let cased = |route: &Route| route.pattern.as_ref().is_some_and(Pattern::has_other_than_small_letters);
        for (index, one) in routes.iter().enumerate() {
            for other in &routes[index + 1..] {
                if !cased(one) && !cased(other) {
                    continue;
                }
                if let (Some(first), Some(second)) = (&one.pattern, &other.pattern)
                    && first.overlaps_by_case_only(second)
                {
                    self.warn(format!(
                        "routes {} and {} differ by letter case: a path in either spelling must pass both",
                        one.label, other.label
                    ));
                }
            }
        }
    }

    pub(super) fn requirement(
        &mut self,
        path: &str,
        written: &std::collections::BTreeMap<String, serde_json::Value>,
        pattern: Option<&Pattern>,
    ) -> Requirement {
        let mut claims = Vec::new();
        for (name, value) in written {
            let at = format!("{path}.{name}");
            let Some(claim) = self.take(&at, Claim::parse(name)) else { continue };
            if claim.is_written_by_users() {
                self.warn(format!("{at}: users can write the claim {claim} themselves"));
            }
            let values = match value {
                serde_json::Value::Array(values) if values.is_empty() => {
                    self.wrong(&at, "an empty list: nothing could satisfy it");
                    continue;
                }
                serde_json::Value::Array(values) => values.clone(),
                value => vec![value.clone()],
            };
            let mut expected = Vec::new();
            for value in values {
                match value {
                    serde_json::Value::String(text) if text.starts_with('{') && text.ends_with('}') => {
                        let variable = &text[1..text.len() - 1];
                        if !pattern.is_some_and(|pattern| pattern.variables().any(|name| name == variable)) {
                            self.wrong(&at, format!("{text} is not a variable of the path"));
                        }
                        expected.push(Expected::Variable(variable.to_owned()));
                    }
                    serde_json::Value::Object(object)
                        if object.len() == 1 && object.get("present") == Some(&serde_json::Value::Bool(true)) =>
                    {
                        expected.push(Expected::Present);
                    }
                    serde_json::Value::Object(_) | serde_json::Value::Null => {
                        self.wrong(&at, "must be text, a number, true or false, a list of these, or { present: true }");
                    }
                    value => expected.push(Expected::Value(value)),
                }
            }
            claims.push((claim, expected));
        }
        Requirement { claims }
    }

    fn log(&mut self, config: &Config) -> LogSpec {
        for (index, path) in config.log.quiet.iter().enumerate() {
            if !path.starts_with('/') {
                self.wrong(format!("log.quiet[{index}]"), format!("\"{path}\" must start with a slash"));
            }
        }
        LogSpec {
            format: config.log.format,
            level: config.log.level,
            access: config.log.access,
            query: config.log.query,
            quiet: config.log.quiet.clone(),
        }
    }

    fn limits(&mut self, config: &Config, longest_message: usize) -> LimitSpec {
        let limits = &config.limits;
        if limits.connections == 0 {
            self.wrong("limits.connections", "is zero: nobody could connect");
        }
        if limits.connections_per_address == 0 {
            self.wrong("limits.connections_per_address", "is zero: nobody could connect");
        }
        if limits.failed_tokens_per_minute == Some(0) {
            self.wrong(
                "limits.failed_tokens_per_minute",
                "is zero: the first mistake would be too many; null: no limit",
            );
        }
        for (key, value) in [("sign_outs", limits.sign_outs), ("sign_outs_per_user", limits.sign_outs_per_user)] {
            if value == 0 {
                self.wrong(format!("limits.{key}"), "is zero: nobody could sign out");
            }
        }
        for (key, value) in [
            ("login_sessions", limits.login_sessions),
            ("login_attempts", limits.login_attempts),
            ("login_requests", limits.login_requests),
        ] {
            if value == 0 {
                self.wrong(format!("limits.{key}"), "is zero: nobody could sign in");
            }
        }
        if !(256..=1 << 20).contains(&limits.token_bytes.0) {
            self.wrong("limits.token_bytes", "must be between 256 and 1MiB");
        }
        if !(1024..=1 << 20).contains(&limits.header_bytes.0) {
            self.wrong("limits.header_bytes", "must be between 1KiB and 1MiB");
        }
        if limits.token_bytes.0 > limits.header_bytes.0 {
            self.wrong("limits.token_bytes", "is more than limits.header_bytes, so no header could carry such a token");
        }
        for (key, value) in [
            ("header_timeout", limits.header_timeout),
            ("keep_alive_timeout", limits.keep_alive_timeout),
            ("body_idle_timeout", limits.body_idle_timeout),
            ("discard_body_timeout", limits.discard_body_timeout),
            ("send_timeout", limits.send_timeout),
        ] {
            self.not_zero(&format!("limits.{key}"), Some(value));
        }
        let header_bytes = limits.header_bytes.0;
        let (cgroup_bytes, least) = (memory::cgroup_limit(), memory::least_bound(header_bytes));
        let default = memory::default_bound(cgroup_bytes, header_bytes);
        let unauthenticated_bytes = limits.unauthenticated_bytes.map_or(default, |size| size.0);
        if unauthenticated_bytes < least {
            self.wrong(
                "limits.unauthenticated_bytes",
                format!("must be at least {} KiB, eight times limits.header_bytes", least >> 10),
            );
        }
        let default = memory::default_of_messages(cgroup_bytes, longest_message);
        let held_message_bytes = limits.held_message_bytes.map_or(default, |size| size.0);
        if held_message_bytes < longest_message {
            self.wrong(
                "limits.held_message_bytes",
                format!("must be at least websocket.message_bytes, which is {} KiB", longest_message >> 10),
            );
        }
        let sum = memory::most_before_known(unauthenticated_bytes);
        if let Some(memory) = memory::memory_limit(cgroup_bytes).filter(|memory| sum > *memory) {
            self.warn(format!(
                "this process may use {} MiB of memory, and strangers alone can make it hold {} MiB (limits.unauthenticated_bytes is {} MiB): raise the memory limit, or lower limits.unauthenticated_bytes",
                memory >> 20,
                sum >> 20,
                unauthenticated_bytes >> 20
            ));
        }
        LimitSpec {
            connections: limits.connections,
            connections_per_address: limits.connections_per_address,
            waiting_websockets: limits.waiting_websockets,
            waiting_websockets_per_address: limits.waiting_websockets_per_address,
            websockets_per_user: limits.websockets_per_user,
            presence: limits.presence,
            unauthenticated_bytes,
            held_message_bytes,
            cgroup_bytes,
            token_cache: limits.token_cache,
            revocations: limits.revocations,
            sign_outs: limits.sign_outs,
            sign_outs_per_user: limits.sign_outs_per_user,
            login_sessions: limits.login_sessions,
            login_attempts: limits.login_attempts,
            login_requests: limits.login_requests,
            failed_tokens_per_minute: limits.failed_tokens_per_minute,
            token_bytes: limits.token_bytes.0,
            header_bytes: limits.header_bytes.0,
            header_timeout: limits.header_timeout.0,
            keep_alive_timeout: limits.keep_alive_timeout.0,
            body_bytes: limits.body_bytes.map(|size| size.0),
            body_idle_timeout: limits.body_idle_timeout.0,
            discard_body_bytes: limits.discard_body_bytes.0,
            discard_body_timeout: limits.discard_body_timeout.0,
            send_timeout: limits.send_timeout.0,
        }
    }
}

/// A credential that is optional, or not asked for, need not be there to be looked at.
const REQUIRE_WITHOUT_USER: &str =
    "needs a verified user, and this rule lets callers in without one, or nobody at all; remove `auth`, or `require`";

/// Whether any two rules that can be reached treat a request differently.
fn rules_by_path(routes: &[Arc<Route>]) -> bool {
    let matches_all = |route: &Route| route.pattern.is_none() && route.methods.is_empty();
    let reached = routes.iter().position(|route| matches_all(route)).map_or(routes.len(), |last| last + 1);
    routes[..reached].windows(2).any(|pair| !pair[0].has_same_outcome(&pair[1]))
}

/// Whether a URL's host is this machine's loopback.
pub(super) fn is_loopback(url: &Url) -> bool {
    url.host_str().is_some_and(is_loopback_name)
}
