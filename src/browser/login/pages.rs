//! The pages of sign-in and sign-out. They share one style, cause no request to another host, and repeat nothing of the
//! request's URL, since links can contain any text.

use std::fmt::Write as _;
use std::sync::LazyLock;

use hyper::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, HeaderValue, REFERRER_POLICY};
use hyper::{Response, StatusCode};

use super::LOGIN;
use crate::http::{Answer, ResponseBody};
use crate::page::{self, Contact, Escaped, Layout};
use crate::telemetry::RequestId;

/// A page.
pub(super) struct Page {
    status: StatusCode,
    title: &'static str,
    /// The body as HTML.
    body: String,
    /// Whether it posts a form that may redirect to a provider.
    pub(super) has_form: bool,
    shows_request_id: bool,
}

/// A provider in the list of the sign-in page.
pub(super) struct Choice {
    pub(super) label: String,
    pub(super) target: String,
    pub(super) is_last: bool,
}

impl Page {
    fn new(status: StatusCode, title: &'static str, text: &str) -> Self {
        Self { status, title, body: format!("<p>{text}</p>\n"), has_form: false, shows_request_id: true }
    }

    fn with(mut self, html: &str) -> Self {
        self.body.push_str(html);
        self
    }

    /// Returns the response; forms may redirect to these origins.
    pub(super) fn answer(&self, request_id: &RequestId, origins: &[String], contact: Option<Contact<'_>>) -> Answer {
        let body = format!("<h1>{}</h1>\n{}", self.title, self.body);
        let request_id = request_id.text();
        let request = self.shows_request_id.then(|| (self.status.as_u16(), &*request_id));
        let layout = Layout { narrow: true, contact, request, ..Layout::default() };
        let html = page::page(self.title, &body, layout);
        let mut answer = Response::new(ResponseBody::from_proxy(html));
        *answer.status_mut() = self.status;
        let headers = answer.headers_mut();
        page::describe(headers);
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
        if self.has_form {
            // With `no-referrer` Chromium posts the form with `Origin: null`, which is refused.
            headers.insert(REFERRER_POLICY, HeaderValue::from_static("same-origin"));
            // The response to a form may be a redirect to the provider, which this directive covers too.
            let policy =
                page::POLICY.replace("form-action 'self'", &format!("form-action 'self' {}", origins.join(" ")));
            if let Ok(policy) = HeaderValue::try_from(policy) {
                headers.insert(CONTENT_SECURITY_POLICY, policy);
            }
        }
        answer
    }
}

/// Returns a link that starts another sign-in.
fn try_again(return_path: &str) -> String {
    let query = url::form_urlencoded::Serializer::new(String::new()).append_pair("return_path", return_path).finish();
    format!("<p><a href=\"{}\">Try again</a></p>\n", Escaped(&format!("{LOGIN}?{query}")))
}

/// A button that signs out and asks the provider for another account.
const SOMEONE_ELSE: &str = "<form method=\"post\" action=\"/.vestibule/logout\"><input type=\"hidden\" name=\"then\" value=\"select_account\"><button>Sign in as someone else</button></form>\n";

pub(super) fn chooser(choices: &[Choice]) -> Page {
    let mut list = String::from("<ul class=\"choices\">\n");
    for Choice { label, target, is_last } in choices {
        let last = if *is_last { " <span class=\"soft\">last used</span>" } else { "" };
        let _ = writeln!(list, "<li><a href=\"{}\">{}{last}</a></li>", Escaped(target), Escaped(label));
    }
    list.push_str("</ul>\n");
    let mut page = Page::new(StatusCode::OK, "Sign in", "Choose where you sign in.").with(&list);
    page.shows_request_id = false;
    page
}

pub(super) fn sign_out(selects_account: bool) -> Page {
    let (title, text, form) = if selects_account {
        let text = "This ends your session here first, on every page that is open.";
        ("Sign in as someone else", text, SOMEONE_ELSE)
    } else {
        let form = "<form method=\"post\" action=\"/.vestibule/logout\"><button>Sign out</button></form>\n";
        ("Sign out", "This ends your session here, on every page that is open.", form)
    };
    let mut page = Page::new(StatusCode::OK, title, text).with(form);
    page.shows_request_id = false;
    page.has_form = true;
    page
}

pub(super) fn signed_out() -> Page {
    let again = "<p><a href=\"/\">Sign in again</a></p>\n";
    let mut page = Page::new(StatusCode::OK, "Signed out", "You are signed out. You can close this page.").with(again);
    page.shows_request_id = false;
    page
}

pub(super) fn bad_request() -> Page {
    Page::new(StatusCode::BAD_REQUEST, "This link does not work", "The address of this page is wrong or incomplete.")
        .with(&try_again("/"))
}

pub(super) fn cookie_missing() -> Page {
    Page::new(
        StatusCode::BAD_REQUEST,
        "Your browser did not send our cookie back",
        "Signing in needs a cookie, and your browser sent none. Allow cookies for this site, and open it at the same address as when you signed in.",
    )
    .with(&try_again("/"))
}

pub(super) fn cookie_not_kept() -> Page {
    Page::new(
        StatusCode::BAD_REQUEST,
        "Your browser did not keep our cookie",
        "You signed in, and your browser came back without the session. It may block cookies of this site, or hold too many of them, or another site may set one of the same name.",
    )
    .with(&try_again("/"))
}

pub(super) fn stale() -> Page {
    Page::new(
        StatusCode::BAD_REQUEST,
        "This sign-in is over",
        "It took too long, or it was completed before. Start again. Bookmark the page that you want to reach, not the one where you sign in.",
    )
    .with(&try_again("/"))
}

pub(super) fn provider_error(code: &str, is_denied: bool, return_path: &str) -> Page {
    let (status, text) = if is_denied {
        (StatusCode::FORBIDDEN, "The sign-in was cancelled, or your provider does not let you in here.")
    } else {
        (StatusCode::BAD_REQUEST, "Your provider did not complete the sign-in.")
    };
    Page::new(status, "You are not signed in", text)
        .with(&format!("<p class=\"soft\">Error from your provider: <code>{}</code></p>\n", Escaped(code)))
        .with(&try_again(return_path))
}

pub(super) fn not_allowed() -> Page {
    let mut page = Page::new(
        StatusCode::FORBIDDEN,
        "Access denied",
        "You are signed in at your provider, but this account may not enter here.",
    )
    .with(SOMEONE_ELSE);
    page.has_form = true;
    page
}

/// Returns the page after a sign-in that is not newer than a revocation. A sign-in `wait` seconds later is, unless the
/// provider goes on with the session that was revoked.
pub(super) fn session_ended(wait: u64) -> Page {
    let unit = if wait == 1 { "second" } else { "seconds" };
    Page::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "Your session was ended",
        &format!(
            "Your provider or an administrator has ended it. Sign in again in {wait} {unit}. If this page comes back, sign out at your provider first, and then sign in here; or tell the operator of this site the request id below."
        ),
    )
    .with(&try_again("/"))
}

pub(super) fn provider_down() -> Page {
    Page::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "Signing in is not possible now",
        "The sign-in service cannot be reached. Try again in a moment. People who are signed in stay signed in.",
    )
    .with(&try_again("/"))
}

pub(super) fn too_many_sign_ins() -> Page {
    Page::new(
        StatusCode::SERVICE_UNAVAILABLE,
        "Signing in is not possible now",
        "Too many sign-ins are under way. Try again in a moment. People who are signed in stay signed in.",
    )
    .with(&try_again("/"))
}

pub(super) fn no_refresh_token() -> Page {
    Page::new(
        StatusCode::BAD_REQUEST,
        "You are not signed in",
        "Your provider gave no permission to renew the session, and this site requires it. Tell its operator the request id below.",
    )
    .with(&try_again("/"))
}

pub(super) fn client_refused() -> Page {
    Page::new(
        StatusCode::BAD_GATEWAY,
        "Signing in is not set up correctly",
        "The sign-in service does not accept this site as its client. Trying again does not help: tell the operator of this site the request id below.",
    )
    .with(&try_again("/"))
}

pub(super) fn unusable() -> Page {
    Page::new(
        StatusCode::BAD_GATEWAY,
        "The sign-in could not be verified",
        "The sign-in service gave an answer that cannot be accepted. If it happens again, tell the operator of this site the request id below.",
    )
    .with(&try_again("/"))
}

/// The script that passes the fragment, which browsers do not send, to the sign-in.
const SCRIPT: &str =
    "const link=document.querySelector('a');location.replace(link.href+encodeURIComponent(location.hash.slice(1)))";

static SCRIPT_POLICY: LazyLock<String> = LazyLock::new(|| page::policy_with_script(SCRIPT));

/// Returns a page with this script, in place of the redirect, where fragments are kept.
pub(super) fn keep_fragment(target: &str) -> Answer {
    let link = format!(
        "<p><a href=\"{}\">Continue</a></p>\n<script>{SCRIPT}</script>\n",
        Escaped(&format!("{target}&fragment="))
    );
    let mut page = Page::new(StatusCode::OK, "Sign in", "One moment: you are being sent to the sign-in.").with(&link);
    page.shows_request_id = false;
    let mut answer = page.answer(&RequestId::default(), &[], None);
    if let Ok(policy) = HeaderValue::from_str(&SCRIPT_POLICY) {
        answer.headers_mut().insert(CONTENT_SECURITY_POLICY, policy);
    }
    answer
}
