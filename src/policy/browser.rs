//! The settings for browsers: session cookies, pages and sign-in (docs/contract.md section 8).

use std::sync::Arc;
use std::time::Duration;

use super::check::Check;
use super::path_readings::PathReadings;
use super::route_match::match_routes;
use super::{AuthMode, Contact, LoginSpec, Origin, ProviderSpec, Route, Secret, UpstreamSpec};
use crate::config;

/// The settings for browsers. Without a session and a sign-in, browsers are answered like any other client.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BrowserSpec {
    /// The settings of session cookies.
    pub session: Option<SessionSpec>,
    /// The URL to which a page navigation without a credential is redirected.
    pub sign_in_url: Option<SignInUrl>,
    /// The providers at which people sign in by OpenID Connect.
    pub logins: Vec<Arc<LoginSpec>>,
    /// The contact on pages for people.
    pub contact: Option<Contact>,
}

impl BrowserSpec {
    /// Adds the proxy's own sign-in, to which navigations without a credential are redirected.
    pub(super) fn sign_in_with(&mut self, logins: Vec<Arc<LoginSpec>>) {
        if !logins.is_empty() {
            self.sign_in_url = Some(SignInUrl { template: "/.vestibule/login?return_path={return_path}".to_owned() });
        }
        self.logins = logins;
    }

    /// Returns the longest time from the last token or the sign-in to the end of a session; `None` if sessions end with
    /// their tokens.
    pub(super) fn longest_session(&self) -> Option<Duration> {
        let by_sign_in = self.logins.iter().map(|login| login.session_max_age);
        by_sign_in.chain(self.session.as_ref().and_then(|session| session.max_age)).max()
    }

    /// Returns the name of the cookies, without prefix and port.
    #[must_use]
    pub fn cookie_name(&self) -> &str {
        self.session.as_ref().map_or(COOKIE_NAME, |session| &session.name)
    }

    /// Returns whether browsers send the cookies from frames on other sites.
    #[must_use]
    pub fn is_in_frames(&self) -> bool {
        self.session.as_ref().is_some_and(|session| session.in_frames)
    }

    /// Returns whether browsers get pages instead of JSON.
    #[must_use]
    pub fn is_on(&self) -> bool {
        self.session.is_some() || self.sign_in_url.is_some()
    }
}

/// The lifetime and the encryption of session cookies.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionSpec {
    /// The maximum age from the last presented token; `None`: until that token expires.
    pub max_age: Option<Duration>,
    /// The secret that encrypts the cookies; `None`: a random key of this process.
    pub secret: Option<Secret>,
    /// The interval at which the provider is asked whether the session is active.
    pub revalidate_every: Option<Duration>,
    /// The name of the cookies, without prefix and port.
    pub name: String,
    /// Whether browsers send the cookies from frames on other sites (`SameSite=None`).
    pub in_frames: bool,
    /// Whether browsers keep a cookie for each site that has a frame of this one.
    pub is_partitioned: bool,
}

impl Default for SessionSpec {
    fn default() -> Self {
        let name = COOKIE_NAME.to_owned();
        Self { max_age: None, secret: None, revalidate_every: None, name, in_frames: false, is_partitioned: false }
    }
}

/// The name of the cookies where none is configured.
pub const COOKIE_NAME: &str = "vestibule";

/// A sign-in URL, which may have a placeholder for the requested page.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SignInUrl {
    template: String,
}

impl SignInUrl {
    /// Returns the URL as it is in the configuration.
    #[must_use]
    pub fn written(&self) -> &str {
        &self.template
    }

    /// Returns the path of the URL; `None` if it is on another site.
    fn path_here(&self, public_url: Option<&Origin>) -> Option<&str> {
        let rest = public_url.and_then(|origin| self.template.strip_prefix(origin.as_str()));
        let path = rest.unwrap_or(&self.template).split(['?', '#']).next().unwrap_or_default();
        if path.is_empty() && rest.is_some() { Some("/") } else { path.starts_with('/').then_some(path) }
    }

    /// Returns the sign-in URL for a request target; `None` for a target that a browser could take for another site.
    #[must_use]
    pub fn for_target(&self, target: &str, public_url: Option<&Origin>) -> Option<String> {
        // The target must begin with one slash and have no backslash and no invisible character. Browsers could take
        // anything else for another site.
        let is_path = target.starts_with('/')
            && !target.starts_with("//")
            && !target.contains('\\')
            && target.bytes().all(|b| (0x21..=0x7e).contains(&b));
        let path = if is_path { target } else { "/" };
        let mut out = self.template.replace("{return_path}", &encoded(path));
        if out.contains("{return_url}") {
            out = out.replace("{return_url}", &encoded(&format!("{}{path}", public_url?.as_str())));
        }
        Some(out)
    }
}

/// Whether a name is one that each instance recognizes as a cookie of this program. The word `login` is that of the cookie
/// that binds a sign-in to its browser.
fn is_cookie_name(name: &str) -> bool {
    let Some(rest) = name.strip_prefix(COOKIE_NAME) else { return false };
    let is_part = |part: &str| {
        !part.is_empty() && part != "login" && part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit())
    };
    rest.is_empty() || (name.len() <= 64 && rest.strip_prefix('-').is_some_and(|rest| rest.split('-').all(is_part)))
}

fn encoded(text: &str) -> String {
    percent_encoding::utf8_percent_encode(text, percent_encoding::NON_ALPHANUMERIC).to_string()
}

impl Check {
    pub(super) fn browser(
        &mut self,
        browser: &config::Browser,
        upstreams: Option<&[UpstreamSpec]>,
        providers: &[Arc<ProviderSpec>],
        public_url: Option<&Origin>,
        preset_wants_session: bool,
    ) -> BrowserSpec {
        let signs_in = browser.login.is_some();
        let usual = (preset_wants_session || signs_in).then(config::Session::default);
        if signs_in && matches!(browser.session, Some(None)) {
            self.error("browser.session", "is null, and browser.login signs people in to sessions; leave it out");
        }
        let session = match &browser.session {
            None => usual,
            Some(written) => written.clone(),
        };
        let session = session.map(|session| self.session(&session));
        if session.as_ref().is_some_and(|session| session.max_age.is_some()) {
            for provider in providers.iter().filter(|provider| {
                provider
                    .remote
                    .as_ref()
                    .is_some_and(|remote| !remote.verifies_opaque_tokens && remote.question.carries_token())
            }) {
                self.error(
                    "browser.session.max_age",
                    format!(
                        "provider {} is asked about every token (remote.mode: also), and a session has none to ask about; leave max_age out, so that it ends with its token",
                        provider.name
                    ),
                );
            }
        }
        // A session from a sign-in has a token; one that was made from a Bearer token has none and is refused by such
        // an upstream.
        if session.is_some() && !signs_in {
            for upstream in upstreams.unwrap_or_default() {
                if upstream.wants_token(false) || upstream.wants_token(true) {
                    self.error(
                        "browser.session",
                        format!(
                            "without browser.login a session has no token, and {} is to get one (upstream.token_to); remove one of the two",
                            upstream.url
                        ),
                    );
                }
            }
        }
        let sign_in_url = browser.sign_in_url.as_ref().and_then(|written| self.sign_in_url(written, public_url));
        let contact = self.contact(browser.contact.as_ref());
        if contact.is_some() && session.is_none() && browser.sign_in_url.is_none() && !signs_in {
            self.warn_at(
                "browser.contact",
                "would be shown nowhere: there are pages for people only with browser.session, sign_in_url or login",
            );
        }
        BrowserSpec { session, sign_in_url, logins: Vec::new(), contact }
    }

    /// Rejects a sign-in page that itself requires a credential: browsers would be redirected to it forever.
    pub(super) fn check_sign_in_page(
        &mut self,
        browser: &BrowserSpec,
        routes: &[Arc<Route>],
        public_url: Option<&Origin>,
    ) {
        let Some(path) = browser.sign_in_url.as_ref().and_then(|url| url.path_here(public_url)) else { return };
        let Ok(readings) = PathReadings::of(path, true) else { return };
        if matches!(match_routes(routes, "GET", &readings).auth, AuthMode::Required | AuthMode::Deny) {
            self.error(
                "browser.sign_in_url",
                format!("{path} itself asks for a credential, so browsers would be redirected in a loop; add, above the rule that does, routes: [{{ path: {path}, auth: none }}]"),
            );
        }
    }

    fn session(&mut self, session: &config::Session) -> SessionSpec {
        for (key, value) in [("max_age", session.max_age), ("revalidate_every", session.revalidate_every)] {
            self.not_zero(&format!("browser.session.{key}"), value);
        }
        if !is_cookie_name(&session.name) {
            self.error(
                "browser.session.name",
                format!(
                    "\"{}\" must be vestibule, or vestibule- with lower-case letters, digits and dashes behind it: every instance keeps cookies of these names from its backend",
                    session.name
                ),
            );
        }
        if session.partitioned && session.same_site != config::SameSite::None {
            self.error(
                "browser.session.partitioned",
                "means nothing without same_site: none; write that too, or leave partitioned out",
            );
        }
        let (value, file) = (session.secret.as_ref(), session.secret_file.as_ref());
        let secret = self.secret("browser.session.secret", value, "browser.session.secret_file", file);
        if let Some(secret) = &secret {
            let key = if value.is_some() { "browser.session.secret" } else { "browser.session.secret_file" };
            self.hard_to_guess(key, secret);
        }
        SessionSpec {
            max_age: session.max_age.map(|time| time.0),
            secret: secret.map(Secret::new),
            revalidate_every: session.revalidate_every.map(|time| time.0),
            name: session.name.clone(),
            in_frames: session.same_site == config::SameSite::None,
            is_partitioned: session.partitioned,
        }
    }

    fn sign_in_url(&mut self, written: &str, public_url: Option<&Origin>) -> Option<SignInUrl> {
        let path = "browser.sign_in_url";
        let example = written.replace("{return_path}", "x").replace("{return_url}", "x");
        let is_path = example.starts_with('/') && !example.starts_with("//");
        let is_url = url::Url::parse(&example).is_ok_and(|url| matches!(url.scheme(), "http" | "https"));
        if !(is_path || is_url) || example.contains(['{', '}', ' ', '\\']) {
            self.error(
                path,
                format!("\"{written}\" is neither a path nor an http or https URL; it may hold {{return_path}}, or {{return_url}}"),
            );
            return None;
        }
        let at = written.find(['?', '#']).unwrap_or(written.len());
        if written[..at].contains('{') {
            self.error(
                path,
                "has a placeholder outside its query, where it could choose another site; write ?return={return_path}",
            );
            return None;
        }
        if written.contains("{return_url}") && public_url.is_none() {
            self.error(
                path,
                "holds {return_url}, and public_url is not set: the Host that a request came with must not choose it",
            );
            return None;
        }
        Some(SignInUrl { template: written.to_owned() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_people_wanted_to_go_never_leads_elsewhere() {
        let sign_in = SignInUrl { template: "https://id.example.com/in?back={return_path}".into() };
        for (target, expected) in [
            ("/lab?x=1&y=2", "%2Flab%3Fx%3D1%26y%3D2"),
            ("//evil.example", "%2F"),
            ("/\\evil.example", "%2F"),
            ("https://evil.example/", "%2F"),
            ("/a\tb", "%2F"),
            ("", "%2F"),
        ] {
            let url = sign_in.for_target(target, None).expect("a URL");
            assert_eq!(url, format!("https://id.example.com/in?back={expected}"), "{target}");
        }
        let public = Origin::parse("https://app.example.com").expect("an origin");
        let sign_in = SignInUrl { template: "/in?back={return_url}".into() };
        assert_eq!(
            sign_in.for_target("/lab", Some(&public)).as_deref(),
            Some("/in?back=https%3A%2F%2Fapp%2Eexample%2Ecom%2Flab")
        );
        assert_eq!(sign_in.for_target("/lab", None), None);
    }
}
