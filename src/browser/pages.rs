//! What someone who opens a page sees when there is none for them: where to sign in, or why not.

use hyper::header::{ACCEPT, CACHE_CONTROL, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION};
use hyper::{HeaderMap, Method, StatusCode};

use crate::auth::token;
use crate::http::{Answer, Refusal, ResponseBody};
use crate::page::{self, Escaped, Layout};
use crate::policy::Policy;

const SEC_FETCH_MODE: HeaderName = HeaderName::from_static("sec-fetch-mode");

/// Someone opens a page, as far as its head tells.
#[derive(Clone, Debug)]
pub struct Navigation {
    /// Path and query.
    target: String,
}

impl Navigation {
    /// GET or HEAD with `Sec-Fetch-Mode: navigate`, or without such a field an `Accept` that names HTML.
    #[must_use]
    pub fn of(method: &Method, target: &str, headers: &HeaderMap) -> Option<Self> {
        if !matches!(*method, Method::GET | Method::HEAD) {
            return None;
        }
        let navigates = if let Some(mode) = headers.get(SEC_FETCH_MODE) {
            mode.as_bytes() == b"navigate"
        } else {
            let accepts = headers.get_all(ACCEPT).iter().filter_map(|value| value.to_str().ok());
            let is_html =
                |range: &str| range.split(';').next().unwrap_or(range).trim().eq_ignore_ascii_case("text/html");
            accepts.flat_map(|value| value.split(',')).any(is_html)
        };
        navigates.then(|| Self { target: target.to_owned() })
    }
}

/// Turns the answer to a refused navigation into one for a person: to `sign_in_url` where nothing was presented and
/// there is one, else a page of the same status. The fields of the refusal's own answer stay.
pub fn answer_navigation(
    navigation: &Navigation,
    refusal: &Refusal,
    request_id: &str,
    policy: &Policy,
    answer: &mut Answer,
) {
    let unknown = refusal.status == StatusCode::UNAUTHORIZED;
    let url = policy.browser.sign_in_url.as_ref().filter(|_| refusal.code == "missing_token");
    let url = url
        .and_then(|url| url.for_target(&token::without_tokens(&navigation.target, policy), policy.public_url.as_ref()));
    let headers = answer.headers_mut();
    if let Some(location) = url.and_then(|url| HeaderValue::try_from(url).ok()) {
        headers.insert(LOCATION, location);
        headers.remove(CONTENT_TYPE);
        *answer.status_mut() = StatusCode::FOUND;
        *answer.body_mut() = ResponseBody::ours("");
        return;
    }
    page::describe(headers);
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    let (title, text) = said(refusal, unknown);
    // Whoever signed in with the wrong account may try another.
    let other = if refusal.code == "forbidden" && !policy.browser.logins.is_empty() {
        "<p><a href=\"/.vestibule/logout?then=select_account\">Sign in as someone else</a></p>\n"
    } else {
        ""
    };
    let body = format!(
        "<h1>{title}</h1>\n<p>{text}</p>\n{other}<p class=\"soft\">{} · <code>{}</code></p>\n",
        refusal.status.as_u16(),
        Escaped(request_id)
    );
    *answer.body_mut() = ResponseBody::ours(page::page(title, &body, Layout { narrow: true, refresh: None }));
}

/// A title and a sentence. Nothing of the request: a page must not say what a stranger wrote into a link.
fn said(refusal: &Refusal, unknown: bool) -> (&'static str, &'static str) {
    match refusal.status {
        _ if unknown => (
            "Please sign in",
            "This page is for people who are signed in. Sign in where you came from, and open it again.",
        ),
        StatusCode::FORBIDDEN => (
            "Not for you",
            "You are signed in, and this page is not for you. If you think it should be, tell whoever runs it the number below.",
        ),
        StatusCode::NOT_FOUND => ("Nothing here", "There is no such page."),
        StatusCode::BAD_GATEWAY | StatusCode::GATEWAY_TIMEOUT => (
            "It does not answer",
            "What stands behind this page does not answer. It may be starting; try again in a moment.",
        ),
        StatusCode::SERVICE_UNAVAILABLE => {
            ("Not now", "This cannot be answered at the moment. Nothing is wrong with you; try again soon.")
        }
        StatusCode::TOO_MANY_REQUESTS => ("Too many attempts", "Wait a little, and try again."),
        _ => ("That did not work", "The request could not be served as it came."),
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
        ] {
            let mut headers = HeaderMap::new();
            for (name, value) in fields {
                headers.insert(HeaderName::from_static(name), HeaderValue::from_static(value));
            }
            assert_eq!(Navigation::of(&method, "/", &headers).is_some(), expected, "{method} {fields:?}");
        }
    }
}
