//! The sign-in page of `demo --upstream`, in place of an identity provider's own. It gives anyone on this machine a
//! token, and the page makes a session of it (`POST /.vestibule/session`).
//!
//! `browser.login` is not used. An OpenID provider redirects people to one registered address, while this page works at
//! any address by which it is opened: 127.0.0.1, localhost, or a port that ssh or an editor forwards.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::Incoming;
use hyper::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue};
use hyper::{Method, Request, Response, StatusCode};
use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;

use super::DemoError;
use super::issuer::Issuer;
use crate::page::{Escaped, Layout, page};
use crate::small_server::{FullResponse, Listener};

/// The path of the page. A rule for it demands no credential.
pub(super) const PATH: &str = "/vestibule-demo";
/// The maximum length in bytes of a request body.
const MAX_BODY_BYTES: usize = 1_024;
/// The validity of a token, and so of its session, in seconds.
const TOKEN_SECONDS: u64 = 8 * 3_600;

const SCRIPT: &str = include_str!("sign_in.js");

struct SignInHandler {
    issuer: Arc<Issuer>,
    users: Vec<String>,
}

/// The server of the page. It stops when this is dropped.
pub(super) struct SignIn {
    pub(super) address: SocketAddr,
    _serving: AbortOnDropHandle<()>,
}

/// Starts the server on a free loopback port.
pub(super) fn start(issuer: Arc<Issuer>, users: Vec<String>) -> Result<SignIn, DemoError> {
    let listener = Listener::tcp(SocketAddr::from((Ipv4Addr::LOCALHOST, 0)))?;
    let address = listener.address().ok_or_else(|| std::io::Error::other("no address"))?;
    let handler = Arc::new(SignInHandler { issuer, users });
    let serving = listener.serve(move |request| {
        let handler = Arc::clone(&handler);
        async move { handler.respond(request).await }
    });
    Ok(SignIn { address, _serving: serving })
}

impl SignInHandler {
    async fn respond(&self, request: Request<Incoming>) -> FullResponse {
        let path = request.uri().path().strip_prefix(PATH).unwrap_or("/nowhere").to_owned();
        match (request.method(), path.as_str()) {
            (&Method::GET, "" | "/") => response("text/html; charset=utf-8", self.page()),
            (&Method::GET, "/sign-in.js") => response("text/javascript; charset=utf-8", SCRIPT.to_owned()),
            (&Method::POST, "/token") => self.token(request).await,
            _ => status(StatusCode::NOT_FOUND),
        }
    }

    fn page(&self) -> String {
        let button = |user: &String| format!("<button type=\"button\" data-user=\"{0}\">{0}</button>", Escaped(user));
        let buttons = self.users.iter().map(button).collect::<Vec<_>>().join("\n");
        let body = format!(
            "<h1>Sign in</h1>\n<p>This is Vestibule's demo, in the place of your identity provider: choose who you are. Anyone who opens this page can be any user; it is on this machine only.</p>\n<p id=\"users\">{buttons}</p>\n<p class=\"soft\" role=\"status\" id=\"said\"></p>\n<noscript><p>The demo's sign-in needs JavaScript.</p></noscript>\n<script src=\"{PATH}/sign-in.js\"></script>\n"
        );
        page("Sign in to the demo", &body, Layout { narrow: true, ..Layout::default() })
    }

    async fn token(&self, request: Request<Incoming>) -> FullResponse {
        let Ok(body) = Limited::new(request.into_body(), MAX_BODY_BYTES).collect().await else {
            return status(StatusCode::BAD_REQUEST);
        };
        let asked: Value = serde_json::from_slice(&body.to_bytes()).unwrap_or_default();
        let user = self.users.iter().find(|user| asked["user"].as_str() == Some(user));
        match user.and_then(|user| self.issuer.token(user, TOKEN_SECONDS).ok()) {
            Some(token) => response("application/json", json!({ "token": token }).to_string()),
            None => status(StatusCode::BAD_REQUEST),
        }
    }
}

fn response(kind: &'static str, text: String) -> FullResponse {
    let mut response = Response::new(Full::new(Bytes::from(text)));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(kind));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    // The policy is that of every page, plus the one script that signs in.
    let policy =
        crate::page::POLICY.replace("default-src 'none'", "default-src 'none'; script-src 'self'; connect-src 'self'");
    if let Ok(policy) = HeaderValue::try_from(policy) {
        headers.insert(CONTENT_SECURITY_POLICY, policy);
    }
    response
}

fn status(status: StatusCode) -> FullResponse {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}
