//! Makes a `Policy` from a `Config` and reports all of its errors at once. This module owns the rules that need keys of
//! several topics. Those of one topic are in its file: `listener`, `upstream`, `provider`, `dialect`.

use std::borrow::Cow;
use std::sync::Arc;

use super::check::Check;
use super::isolation::isolation_of;
use super::names::ConfiguredNames;
use super::protected_resource::Resources;
use super::provider_preset::cookie_suffix;
use super::token_sources::{BALANCER_HEADER, RouteContext, WrittenSources};
use super::upstream::Upstreams;
use super::{
    AssertionSpec, ListenPlace, ListenSpec, Origin, Pattern, Policy, ProviderTokens, Requirement, ReservedNames, Route,
    UpstreamSpec, WebSocketSpec,
};
use crate::config::{self, AuthMode, Config, Errors, Finding, Log, OnExpiry};

/// Makes a policy, or reports all errors.
///
/// # Errors
/// Returns all errors, each with the path of its key.
pub fn validate(config: &Config) -> Result<Policy, Vec<Finding>> {
    let mut check = Check::default();
    let policy = check.policy(&with_balancer_header(config));
    match policy {
        Some(policy) if check.findings.is_empty() => Ok(policy),
        _ => Err(check.findings),
    }
}

/// The beginning of the warning of a process that runs with `--insecure-dev`; `doctor` recognizes it on `/status`.
pub const DEVELOPMENT_TOKENS: &str = "development tokens are accepted (--insecure-dev)";

/// Returns the configuration with the header of load balancers in front of `Authorization`, if there is such a provider and
/// `token_from.header` is as by default.
fn with_balancer_header(config: &Config) -> Cow<'_, Config> {
    let is_balancer = |provider: &config::Provider| provider.preset.as_deref() == Some("aws-alb");
    let is_default = config.token_from.header.as_ref().is_some_and(|header| header.is("Authorization"));
    if !is_default || !config.providers.iter().any(is_balancer) {
        return Cow::Borrowed(config);
    }
    let mut config = config.clone();
    config.token_from.header =
        Some(config::OneOrMany([BALANCER_HEADER.as_str(), "Authorization"].map(str::to_owned).to_vec()));
    Cow::Owned(config)
}

impl Check {
    fn policy(&mut self, config: &Config) -> Option<Policy> {
        self.is_insecure_dev = config.insecure_dev;
        if config.insecure_dev {
            self.warn(format!(
                "{DEVELOPMENT_TOKENS}: anyone who reads the key of `vestibule token mint` on this machine can be any user; for development only"
            ));
        }
        let listen = self.listen(config);
        let local = |spec: &ListenSpec, unix: bool| match &spec.place {
            ListenPlace::Tcp(addresses) => addresses.iter().all(|address| address.ip().is_loopback()),
            ListenPlace::Unix(_) => unix,
        };
        // No page reaches a Unix socket, whatever address its name resolves to; nor does another machine.
        let loopback = listen.iter().all(|spec| local(spec, false));
        let this_machine_only = listen.iter().all(|spec| local(spec, true));
        let public_url =
            config.public_url.as_ref().and_then(|text| self.ok_or_report("public_url", Origin::parse(text)));
        let hosts = self.hosts(config, loopback, public_url.as_ref());
        let trusted_proxies = self.trusted_proxies(config);
        let origins = self.origins("origins", &config.origins);
        let admin = config.admin.as_ref().and_then(|admin| self.admin(admin));
        let control = config.control.as_ref().and_then(|control| self.control(control));
        let upstreams = self.upstreams(config);
        let trusted_headers = self.trusted_headers(config);
        let assertion = self.assertion(config);
        let reserved = Self::reserved(config, assertion.as_ref(), upstreams.as_ref());
        for (index, name) in config.identity.strip.iter().enumerate() {
            self.header_name(&format!("identity.strip[{index}]"), name);
        }
        let written_resources = self.written_resources(config, public_url.as_ref());
        let providers = self.providers(config, &written_resources.audiences());
        let resources = self.resources(&written_resources, &providers);
        let keys = config.providers.iter().filter_map(|provider| provider.publishable_key.as_deref());
        let cookie_suffixes: Vec<String> = keys.map(cookie_suffix).collect();
        let dialects = self.dialects(config, &reserved, &cookie_suffixes);
        let context = RouteContext { issued: Arc::new(ProviderTokens::of(&providers)), cookie_suffixes, dialects };
        let routes = self.routes(config, upstreams.as_ref(), &context, &resources);
        let upstreams = upstreams.map(|upstreams| self.first_messages(upstreams, &routes, &context.dialects));
        if config.errors == Errors::Verbose && !this_machine_only && !config.insecure_verbose_errors {
            self.error(
                "errors",
                "verbose tells every caller why a token was refused; listen on loopback only, or set insecure_verbose_errors: true",
            );
        }
        let has_upstream_preset = upstreams.iter().flatten().any(|upstream| upstream.preset.is_some());
        let logins = self.logins(config, &providers, &routes, &trusted_headers, public_url.as_ref());
        let mut browser =
            self.browser(&config.browser, upstreams.as_deref(), &providers, public_url.as_ref(), has_upstream_preset);
        self.check_sign_in_page(&browser, &routes, public_url.as_ref());
        browser.sign_in_with(logins);
        let control = control.map(|control| control.keeping_for(&browser));
        let shared = config.shared.as_ref().and_then(|shared| self.shared(shared, browser.session.as_ref()));
        self.check_quiet_paths(&config.log);
        let longest_message = routes.iter().map(|route| route.websocket.limits.message_bytes).max().unwrap_or_default();
        let memory = self.limits(&config.limits, longest_message);
        self.check_for_provider(config);
        if shared.is_some() && routes.iter().any(|route| is_too_short(&route.websocket)) {
            self.error(
                "websocket.presence",
                "must be at least 15s beside shared: what other instances have seen comes up to 10s later",
            );
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
            shared,
            upstreams: upstreams?,
            providers,
            assertion,
            trusted_headers: Arc::new(trusted_headers),
            reserved,
            routes,
            resource_documents: resources.documents,
            rules_by_path,
            longest_presence,
            cors: config.cors.as_ref().and_then(|cors| self.cors(config, cors)),
            events_end_with_token: config.events.on_expiry == config::EventsOnExpiry::Close,
            browser,
            limits: config.limits.clone(),
            memory,
            verbose_errors: config.errors == Errors::Verbose,
            log: config.log.clone(),
            drain_delay: config.drain.delay.0,
            drain_timeout: config.drain.timeout.0,
            warnings: Vec::new(),
            files: Vec::new(),
        };
        self.warn_of_users_code(&policy);
        let (warnings, files) = (std::mem::take(&mut self.warnings), std::mem::take(&mut self.files));
        Some(Policy { warnings, files, ..policy })
    }

    /// Reports a configuration without a provider, unless every route is open or closed to everyone.
    fn check_for_provider(&mut self, config: &Config) {
        let needs_no_provider =
            config.routes.iter().any(|route| route.path.as_deref() == Some("/**") && route.methods.is_none())
                && config.routes.iter().all(|route| matches!(route.auth, AuthMode::None | AuthMode::Deny));
        if config.providers.is_empty() && !needs_no_provider {
            self.error("providers", "no provider: nobody could sign in. Add one, for example\nproviders: [{ preset: oidc, issuer: \"https://issuer.example.com\", audience: my-api }]");
        }
    }

    /// Warns of each backend that runs its users' code and is not protected from it.
    fn warn_of_users_code(&mut self, policy: &Policy) {
        for upstream in policy.upstreams.iter().filter(|upstream| upstream.preset.is_some()) {
            if isolation_of(policy, upstream).is_empty() {
                self.warn(format!(
                    "{} runs its users' code, which can call it and name any user: give it its own secret ({}), or let only one user in (allow.users)",
                    upstream.url,
                    upstream.preset.map_or("", |preset| preset.credential)
                ));
            }
        }
    }

    /// Returns the names that no client may set under this configuration.
    fn reserved(config: &Config, assertion: Option<&AssertionSpec>, upstreams: Option<&Upstreams>) -> ReservedNames {
        let identity = config.identity.headers.keys().chain(&config.identity.strip).map(String::as_str);
        // The assertion's default header name is reserved even without an assertion.
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

    fn routes(
        &mut self,
        config: &Config,
        upstreams: Option<&Upstreams>,
        context: &RouteContext,
        resources: &Resources,
    ) -> Vec<Arc<Route>> {
        let mut out = Vec::new();
        for index in 0..config.routes.len() {
            out.extend(self.route(config, index, upstreams, context, resources).map(Arc::new));
        }
        self.warn_of_case(&out);
        self.warn_of_unused(&out);
        self.warn_of_loose(&out, !config.providers.is_empty());
        out.push(Arc::new(self.default_route(config, upstreams, context, resources)));
        out
    }

    fn route(
        &mut self,
        config: &Config,
        index: usize,
        upstreams: Option<&Upstreams>,
        context: &RouteContext,
        resources: &Resources,
    ) -> Option<Route> {
        let (at, route) = (format!("routes[{index}]"), &config.routes[index]);
        let Some(path) = &route.path else {
            self.error(&at, "has no path; write path: /api/**");
            return None;
        };
        let pattern = self.ok_or_report(&format!("{at}.path"), Pattern::parse(path))?;
        if route.auth != AuthMode::Required && !route.require.is_empty() {
            self.error(format!("{at}.require"), REQUIRE_WITHOUT_USER);
        }
        self.check_methods(&format!("{at}.methods"), route.methods.as_deref());
        if matches!(route.protected_resource, Some(Some(_))) && matches!(route.auth, AuthMode::None | AuthMode::Deny) {
            self.error(
                format!("{at}.protected_resource"),
                "has no effect: a rule with this auth reads no token; remove it, or write auth: required",
            );
        }
        let mut require = self.requirement(&format!("{at}.require"), &route.require, Some(&pattern));
        require.audience = resources.bound(Some(index));
        let written = WrittenSources::of(&config.token_from, &route.token_from);
        let mut token_from = self.token_from(&format!("{at}.token_from"), &written, context);
        let upstream = upstreams.map_or(0, |upstreams| upstreams.of_route[index]);
        let backend = upstreams.and_then(|upstreams| upstreams.specs[upstream].preset);
        token_from.upstream_secret = upstreams.and_then(|upstreams| upstreams.specs[upstream].secret_in_pages());
        let websocket =
            self.websocket(config, &route.websocket, &format!("{at}.websocket"), backend, &context.dialects);
        Some(Route {
            label: path.as_str().into(),
            pattern: (path != "/**").then_some(pattern),
            methods: route.methods.clone().unwrap_or_default(),
            auth: route.auth,
            require,
            upstream,
            token_from,
            websocket,
        })
    }

    /// Makes the route of requests that no written route matches.
    fn default_route(
        &mut self,
        config: &Config,
        upstreams: Option<&Upstreams>,
        context: &RouteContext,
        resources: &Resources,
    ) -> Route {
        let no_keys = config::RouteTokenFrom::default();
        let mut token_from = self.token_from("token_from", &WrittenSources::of(&config.token_from, &no_keys), context);
        let first = upstreams.and_then(|upstreams| upstreams.specs.first());
        token_from.upstream_secret = first.and_then(UpstreamSpec::secret_in_pages);
        let backend = first.and_then(|first| first.preset);
        let websocket =
            self.websocket(config, &config::RouteWebSocket::default(), "websocket", backend, &context.dialects);
        Route {
            label: "default".into(),
            pattern: None,
            methods: Vec::new(),
            auth: AuthMode::Required,
            require: Requirement { audience: resources.bound(None), ..Requirement::default() },
            upstream: 0,
            token_from,
            websocket,
        }
    }

    fn check_methods(&mut self, at: &str, methods: Option<&[String]>) {
        for method in methods.unwrap_or_default() {
            if hyper::Method::from_bytes(method.as_bytes()).is_err() || method.to_ascii_uppercase() != *method {
                self.error(at, format!("\"{method}\" is not a method; write it in capitals, as in GET"));
            }
        }
        if methods.is_some_and(<[String]>::is_empty) {
            self.error(at, "is empty: the rule would never match; leave it out for every method");
        }
    }

    /// Warns of two routes whose patterns differ only by letter case: a path in either spelling must satisfy both.
    fn warn_of_case(&mut self, routes: &[Arc<Route>]) {
        let is_cased = |route: &Arc<Route>| route.pattern.as_ref().is_some_and(Pattern::has_other_than_small_letters);
        let cased: Vec<bool> = routes.iter().map(is_cased).collect();
        for (index, one) in routes.iter().enumerate() {
            for (offset, other) in routes[index + 1..].iter().enumerate() {
                if !cased[index] && !cased[index + 1 + offset] {
                    continue;
                }
                if let (Some(first), Some(second)) = (&one.pattern, &other.pattern)
                    && first.overlaps_by_case_only(second)
                {
                    let message = format!(
                        "routes {} and {} differ by letter case: a path in either spelling must pass both",
                        one.label, other.label
                    );
                    let second = index + 1 + offset;
                    self.warn_at(format!("routes[{second}].path"), message);
                }
            }
        }
    }

    fn check_quiet_paths(&mut self, log: &Log) {
        for (index, path) in log.quiet.iter().enumerate() {
            if !path.starts_with('/') {
                self.error(format!("log.quiet[{index}]"), format!("\"{path}\" must start with a slash"));
            }
        }
    }
}

/// `require` looks at a verified user's claims. A rule with another `auth` than `required` may have no user.
const REQUIRE_WITHOUT_USER: &str =
    "needs a verified user, and this rule lets callers in without one, or nobody at all; remove `auth`, or `require`";

/// Returns whether `presence` is shorter than other instances may take to report that a user was seen.
fn is_too_short(websocket: &WebSocketSpec) -> bool {
    websocket.on_expiry == OnExpiry::Auto && websocket.presence < std::time::Duration::from_secs(15)
}

/// Returns whether two rules that can be reached treat a request differently.
fn rules_by_path(routes: &[Arc<Route>]) -> bool {
    let reached = routes.iter().position(|route| route.matches_everything()).map_or(routes.len(), |last| last + 1);
    routes[..reached].windows(2).any(|pair| !pair[0].has_same_outcome(&pair[1]))
}
