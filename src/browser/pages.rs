//! The responses that browsers get instead of a JSON refusal: a redirect to the sign-in, or a page with the reason.

use std::fmt::Write as _;
use std::sync::LazyLock;

use hyper::header::{
    ACCEPT, CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, REFERRER_POLICY,
};
use hyper::{HeaderMap, Method, StatusCode};

use crate::auth::token;
use crate::http::{Answer, Refusal, ResponseBody, accepts};
use crate::page::{self, Layout};
use crate::policy::Policy;
use crate::telemetry::{RequestId, Rule};

const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// A request that opens a page in a browser, judged by its head.
#[derive(Clone, Debug)]
pub struct Navigation {
    /// The path and query.
    target: String,
    /// Whether it has a session cookie, valid or not.
    has_session_cookie: bool,
    /// Whether it is the form of a sign-out.
    signs_out: bool,
}

/// The path to which the form of a sign-out is posted. No other form is the proxy's own.
pub(super) const LOGOUT: &str = "/.vestibule/logout";

impl Navigation {
    /// Returns the navigation of a GET or HEAD request, or of a sign-out by a form, with `Sec-Fetch-Mode: navigate` or,
    /// without such a field, an `Accept` that names HTML with another weight than 0.
    #[must_use]
    pub fn of(method: &Method, target: &str, headers: &HeaderMap) -> Option<Self> {
        let signs_out = *method == Method::POST && target.split('?').next() == Some(LOGOUT);
        if !signs_out && !matches!(*method, Method::GET | Method::HEAD) {
            return None;
        }
        let navigates = if let Some(mode) = headers.get(SEC_FETCH_MODE) {
            mode.as_bytes() == b"navigate"
        } else {
            headers.get_all(ACCEPT).iter().any(|line| accepts(line, "text/html"))
        };
        let has_session_cookie = token::has_session_cookie(headers);
        navigates.then(|| Self { target: target.to_owned(), has_session_cookie, signs_out })
    }
}

/// Turns the response to a refused navigation into one for a person: a redirect to `sign_in_url` if no credential was
/// presented, otherwise a page with the same status. The header fields of the refusal's own response are kept.
pub fn render_for_navigation(
    navigation: &Navigation,
    refusal: &Refusal,
    request_id: &RequestId,
    policy: &Policy,
    answer: &mut Answer,
) {
    let url = policy.browser.sign_in_url.as_ref().filter(|_| refusal.code == "missing_token");
    let url = url
        .and_then(|url| url.for_target(&token::without_tokens(&navigation.target, policy), policy.public_url.as_ref()));
    let headers = answer.headers_mut();
    if let Some(location) = url.and_then(|url| HeaderValue::try_from(url).ok()) {
        headers.insert(LOCATION, location);
        headers.remove(CONTENT_TYPE);
        *answer.status_mut() = StatusCode::FOUND;
        *answer.body_mut() = ResponseBody::from_proxy("");
        return;
    }
    page::describe(headers);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let of_sign_out = navigation.signs_out && refusal.status == StatusCode::SERVICE_UNAVAILABLE;
    let (title, text) = if of_sign_out { failed_sign_out(refusal) } else { title_and_text(refusal) };
    let mut body = format!("<h1>{title}</h1>\n<p>{text}</p>\n");
    if is_signed_in(refusal) {
        // A user who signed in with the wrong account may try another.
        if !policy.browser.logins.is_empty() {
            body.push_str("<p><a href=\"/.vestibule/logout?then=select_account\">Sign in as someone else</a></p>\n");
        } else if policy.browser.session.is_some() && navigation.has_session_cookie {
            body.push_str(SIGN_OUT);
            let _ = writeln!(body, "<script>{SIGN_OUT_SCRIPT}</script>");
            // With `no-referrer` a browser may send `Origin: null`, which the endpoint refuses.
            headers.insert(REFERRER_POLICY, HeaderValue::from_static("same-origin"));
            if let Ok(policy) = HeaderValue::from_str(&SIGN_OUT_POLICY) {
                headers.insert(CONTENT_SECURITY_POLICY, policy);
            }
        }
    }
    let request_id = request_id.text();
    let layout = Layout {
        narrow: true,
        contact: contact(policy),
        request: Some((refusal.status.as_u16(), &request_id)),
        ..Layout::default()
    };
    *answer.body_mut() = ResponseBody::from_proxy(page::page(title, &body, layout));
}

/// Returns the contact of the configuration, as a page shows it.
pub(super) fn contact(policy: &Policy) -> Option<page::Contact<'_>> {
    policy.browser.contact.as_ref().map(|contact| page::Contact { text: contact.text(), href: contact.href() })
}

/// The button and script that end the cookie's session. The script shows the button, since a form cannot send DELETE.
const SIGN_OUT: &str = "<p><button type=\"button\" id=\"sign-out\" hidden>Sign out</button></p>\n<p role=\"status\" id=\"outcome\"></p>\n<p id=\"again\" hidden><a href=\"\">Open this page again</a></p>\n<noscript><p>Signing out here needs JavaScript.</p></noscript>\n";

const SIGN_OUT_SCRIPT: &str = include_str!("sign_out.js");

static SIGN_OUT_POLICY: LazyLock<String> =
    LazyLock::new(|| format!("{}; connect-src 'self'", page::policy_with_script(SIGN_OUT_SCRIPT)));

/// Returns whether the refusal is that of a verified user, by `allow` or `require`.
fn is_signed_in(refusal: &Refusal) -> bool {
    refusal.status == StatusCode::FORBIDDEN && matches!(refusal.rule, Some(Rule::Allow | Rule::Require))
}

/// Returns the title and the sentences of the page after a sign-out that could not be recorded, or not everywhere.
fn failed_sign_out(refusal: &Refusal) -> (&'static str, &'static str) {
    if refusal.is_in_force {
        (
            "You are signed out in this browser",
            "A copy of your session may be accepted for some moments more. You may still be signed in at your provider: sign out there too.",
        )
    } else {
        ("You may still be signed in", "Signing out did not succeed. Go back, and try again in a moment.")
    }
}

/// Returns the title and the sentence of a page. Neither repeats anything of the request, because links can contain any
/// text.
fn title_and_text(refusal: &Refusal) -> (&'static str, &'static str) {
    match refusal.status {
        StatusCode::UNAUTHORIZED => (
            "Please sign in",
            "This page is for people who are signed in. Sign in where you came from, and open it again.",
        ),
        StatusCode::FORBIDDEN if is_signed_in(refusal) => (
            "Access denied",
            "Your account has no access to this page. If you need it, ask the operator of this site and tell them the request id.",
        ),
        StatusCode::FORBIDDEN if refusal.rule == Some(Rule::Origin) => {
            ("Access denied", "The request came from a site that may not send it. Open the page by its own address.")
        }
        StatusCode::FORBIDDEN => ("Access denied", "This page is closed to everyone."),
        StatusCode::NOT_FOUND => ("Page not found", "There is no page at this address."),
        StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => (
            "The application does not answer",
            "The application behind this page does not answer. It may be starting. Try again in a moment.",
        ),
        StatusCode::SERVICE_UNAVAILABLE => (
            "Service unavailable",
            "This page cannot be served at the moment. The fault is not yours. Try again in a moment.",
        ),
        StatusCode::TOO_MANY_REQUESTS => {
            ("Too many attempts", "Too many sign-in attempts failed. Wait a minute and try again.")
        }
        _ => ("The request failed", "The request could not be served as it was sent."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_navigation_is_told_from_a_fetch() {
        for (method, fields, expected) in [
            (Method::GET, &[("sec-fetch-mode", "navigate")][..], true),
            (Method::HEAD, &[("accept", "text/html,*/*;q=0.8")], true),
            (Method::GET, &[("accept", "application/json")], false),
            (Method::GET, &[("sec-fetch-mode", "cors"), ("accept", "text/html")], false),
            (Method::POST, &[("sec-fetch-mode", "navigate")], false),
            (Method::GET, &[("accept", "*/*")], false),
            (Method::GET, &[("accept", "application/json, text/html;q=0")], false),
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
            }
            assert_eq!(Navigation::of(&method, "/", &headers).is_some(), expected, "{method} {fields:?}");
        }
        // The form of a sign-out is a page for a person too, and no other request that changes something.
        let headers = |mode| HeaderMap::from_iter([(SEC_FETCH_MODE, HeaderValue::from_static(mode))]);
        for (method, target, mode, expected) in [
            (Method::POST, LOGOUT, "navigate", true),
            (Method::POST, "/.vestibule/logout?x", "navigate", true),
            (Method::POST, LOGOUT, "same-origin", false),
            (Method::DELETE, LOGOUT, "navigate", false),
            (Method::POST, "/.vestibule/logouts", "navigate", false),
        ] {
            assert_eq!(Navigation::of(&method, target, &headers(mode)).is_some(), expected, "{method} {target} {mode}");
        }
    }
}
