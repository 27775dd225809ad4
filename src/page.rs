//! The layout of the pages for people: one style, nothing loaded from elsewhere.
//!
//! This module imports nothing of the proxy. It takes plain values and escapes them.

use std::fmt::{self, Write as _};
use std::sync::LazyLock;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::HeaderMap;
use hyper::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};

/// The name that every page shows.
const PRODUCT: &str = "Vestibule";

const STYLE: &str = include_str!("page/style.css");

/// The `Content-Security-Policy` of a page: its own style and forms, no script, no framing by other pages.
pub static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = STANDARD.encode(digest(&SHA256, STYLE.as_bytes()));
    format!(
        "default-src 'none'; style-src 'sha256-{hash}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
});

/// A text from outside, which is escaped as HTML when it is formatted.
#[derive(Clone, Copy, Debug)]
pub struct Escaped<'a>(pub &'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for character in self.0.chars() {
            match character {
                '&' => f.write_str("&amp;")?,
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '"' => f.write_str("&quot;")?,
                '\'' => f.write_str("&#39;")?,
                // Direction overrides and control characters would change how a text is displayed.
                '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => f.write_char('\u{fffd}')?,
                character if character.is_control() && character != '\n' => f.write_char('\u{fffd}')?,
                character => f.write_char(character)?,
            }
        }
        Ok(())
    }
}

/// The layout of a page, and the lines below its text.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layout<'a> {
    /// Whether the page is a few lines in the middle of the window.
    pub narrow: bool,
    /// The number of seconds after which the browser loads the page again.
    pub refresh: Option<u32>,
    /// The contact for people who need help.
    pub contact: Option<Contact<'a>>,
    /// The status and the request id, which people pass on to that contact.
    pub request: Option<(u16, &'a str)>,
}

/// The contact that a page shows.
#[derive(Clone, Copy, Debug)]
pub struct Contact<'a> {
    /// A line of text, an address or a URL.
    pub text: &'a str,
    /// The URL that the text links to, `http:`, `https:` or `mailto:`.
    pub href: Option<&'a str>,
}

/// Sets the header fields of a response that is such a page.
pub fn describe(headers: &mut HeaderMap) {
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    if let Ok(policy) = HeaderValue::from_str(&POLICY) {
        headers.insert(CONTENT_SECURITY_POLICY, policy);
    }
}

/// Returns the `Content-Security-Policy` of a page that holds this one script.
#[must_use]
pub fn policy_with_script(script: &str) -> String {
    let hash = STANDARD.encode(digest(&SHA256, script.as_bytes()));
    format!("{}; script-src 'sha256-{hash}'", *POLICY)
}

/// Makes a whole page. `title` and the values of the layout are escaped here; `body` is HTML already.
#[must_use]
pub fn page(title: &str, body: &str, layout: Layout<'_>) -> String {
    let title = Escaped(title);
    let refresh =
        layout.refresh.map_or_else(String::new, |every| format!("<meta http-equiv=\"refresh\" content=\"{every}\">\n"));
    let narrow = if layout.narrow { " class=\"narrow\"" } else { "" };
    let footer = footer(layout, narrow);
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n{refresh}<title>{title} · {PRODUCT}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<header{narrow}>{PRODUCT}</header>\n<main{narrow}>\n{body}</main>\n{footer}</body>\n</html>\n"
    )
}

/// Returns the contact and the request id, each in a line with its label.
fn footer(layout: Layout<'_>, class: &str) -> String {
    let mut lines = String::new();
    // Writing into a string does not fail.
    if let Some(Contact { text, href }) = layout.contact {
        let text = Escaped(text);
        let _ = match href {
            Some(href) => writeln!(lines, "<p>Contact: <a href=\"{}\">{text}</a></p>", Escaped(href)),
            None => writeln!(lines, "<p>Contact: {text}</p>"),
        };
    }
    if let Some((status, id)) = layout.request {
        let _ = writeln!(lines, "<p>Status {status}. Request id: <code>{}</code></p>", Escaped(id));
    }
    if lines.is_empty() { lines } else { format!("<footer{class}>\n{lines}</footer>\n") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_from_outside_is_markup() {
        assert_eq!(
            Escaped("<a href=\"x\">'&\u{202e}\u{1b}").to_string(),
            "&lt;a href=&quot;x&quot;&gt;&#39;&amp;\u{fffd}\u{fffd}"
        );
        let page = page("</title><script>", "<p>b</p>", Layout { narrow: true, refresh: Some(5), ..Layout::default() });
        assert!(
            !page.contains("<script>") && page.contains("content=\"5\"") && page.contains("<main class=\"narrow\">")
        );
    }

    #[test]
    fn contact_and_request_id_are_labelled_and_escaped() {
        let contact = Contact { text: "<ops>", href: Some("https://help.example.com/?a=1&b=2") };
        let layout = Layout { contact: Some(contact), request: Some((403, "a\"b")), ..Layout::default() };
        let page = page("Access denied", "<h1>Access denied</h1>\n", layout);
        for expected in [
            "<title>Access denied · Vestibule</title>",
            "<p>Contact: <a href=\"https://help.example.com/?a=1&amp;b=2\">&lt;ops&gt;</a></p>",
            "<p>Status 403. Request id: <code>a&quot;b</code></p>",
        ] {
            assert!(page.contains(expected), "{expected}\n{page}");
        }
        assert!(!super::page("Signed out", "", Layout::default()).contains("<footer"));
    }
}
