//! Tests of sign-in by OpenID Connect with the tests' own provider, honest or not.

mod attacks;
mod audit;
mod clients;
mod flow;
mod hostile;
mod logout;
mod renewal;
mod revoked_sessions;
mod tokens;

use std::collections::BTreeMap;
use std::net::SocketAddr;

use serde_json::json;

use crate::support::backend::Backend;
use crate::support::client::{Answer, request};
use crate::support::openid::{CLIENT, OpenId, SECRET};
use crate::support::proxy::Proxy;

/// The Origin of the proxy's own pages.
pub(crate) const OURS: &str = "Origin: http://localhost";

/// Starts a provider that gives refresh tokens, and access tokens that are valid for `seconds`.
pub(crate) async fn provider(seconds: u64) -> OpenId {
    let provider = OpenId::start().await;
    provider.set(|conduct| {
        conduct.gives_refresh_token = true;
        conduct.tokens = json!({ "expires_in": seconds });
    });
    provider
}

/// The parts of a browser that a sign-in needs: cookies and redirects.
#[derive(Clone)]
pub(crate) struct Browser {
    pub(crate) address: SocketAddr,
    cookies: BTreeMap<String, String>,
}

impl Browser {
    pub(crate) fn new(address: SocketAddr) -> Self {
        Self { address, cookies: BTreeMap::new() }
    }

    pub(crate) fn cookie_field(&self) -> String {
        let pairs: Vec<String> = self.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
        format!("Cookie: {}", pairs.join("; "))
    }

    pub(crate) async fn send(&mut self, method: &str, target: &str, fields: &[&str], body: &str) -> Answer {
        let cookies = self.cookie_field();
        let mut all = fields.to_vec();
        if !self.cookies.is_empty() {
            all.push(&cookies);
        }
        let answer = request(self.address, method, target, &all, body).await;
        for line in answer.head.lines().filter_map(|line| line.split_once(": ")) {
            if !line.0.eq_ignore_ascii_case("set-cookie") {
                continue;
            }
            let (name, value) = line.1.split(';').next().and_then(|pair| pair.split_once('=')).expect("a pair");
            if line.1.contains("Max-Age=0") {
                self.cookies.remove(name);
            } else {
                self.cookies.insert(name.to_owned(), value.to_owned());
            }
        }
        answer
    }

    /// Opens a page.
    pub(crate) async fn open(&mut self, target: &str) -> Answer {
        self.send("GET", target, &["Sec-Fetch-Mode: navigate", "Sec-Fetch-Dest: document"], "").await
    }

    /// Returns the target of a redirect.
    pub(crate) fn location(answer: &Answer) -> String {
        answer.field("location").unwrap_or_else(|| panic!("no location: {answer:?}")).to_owned()
    }

    /// Follows the redirects from a page of the proxy to the provider.
    pub(crate) async fn reach_provider(&mut self, target: &str) -> String {
        let answer = self.open(target).await;
        assert_eq!(answer.status, 302, "{}", answer.body);
        let login = Self::location(&answer);
        assert!(login.starts_with("/.vestibule/login?return_path="), "{login}");
        let answer = self.open(&login).await;
        assert_eq!(answer.status, 302, "{}", answer.body);
        Self::location(&answer)
    }

    /// Signs in, and returns the answer to the callback.
    pub(crate) async fn sign_in(&mut self, provider: &OpenId, target: &str) -> Answer {
        let location = self.reach_provider(target).await;
        self.come_back(&provider.authorize(&location)).await
    }

    pub(crate) async fn come_back(&mut self, query: &str) -> Answer {
        self.open(&format!("/.vestibule/callback?{query}")).await
    }

    pub(crate) fn has_session(&self) -> bool {
        self.cookies.keys().any(|name| name == "vestibule-80")
    }
}

pub(crate) struct Fixture {
    provider: OpenId,
    backend: Backend,
    proxy: Proxy,
}

impl Fixture {
    async fn start(login: &str, more: &str) -> Self {
        let provider = OpenId::start().await;
        Self::at(provider, login, more).await
    }

    /// Starts the fixture with this provider.
    async fn at(provider: OpenId, login: &str, more: &str) -> Self {
        let backend = Backend::start().await;
        let proxy = Proxy::with_level(&Self::yaml(&provider, &backend, login, more), "trace").await;
        Self { provider, backend, proxy }
    }

    pub(crate) fn yaml(provider: &OpenId, backend: &Backend, login: &str, more: &str) -> String {
        let auth = if login.contains("client_") { String::new() } else { format!("client_secret: '{SECRET}', ") };
        let providers =
            if more.contains("providers:") { String::new() } else { format!("providers: [{}]\n", provider.provider()) };
        format!(
            "upstream: {}\npublic_url: http://localhost\n{providers}browser: {{ login: {{ client_id: {CLIENT}, {auth}{login} }} }}\n{more}",
            backend.url()
        )
    }

    fn browser(&self) -> Browser {
        Browser::new(self.proxy.address)
    }

    /// Returns the user that the backend receives with a page that this browser opens.
    async fn user(&self, browser: &mut Browser) -> String {
        let (answer, heard) = tokio::join!(browser.open("/x"), self.backend.answer("served"));
        assert_eq!(answer.status, 200);
        assert!(!heard.has("authorization") && !heard.all("cookie").iter().any(|line| line.contains("vestibule")));
        heard.all("x-user-id").join(",")
    }
}
