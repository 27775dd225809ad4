//! Pages that people see: one quiet style, no script, nothing from elsewhere.
//!
//! A leaf: it escapes what it is given and knows nothing of who asks.

use std::fmt::{self, Write as _};
use std::sync::LazyLock;

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper::HeaderMap;
use hyper::header::{CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderValue, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};

const STYLE: &str = include_str!("page/style.css");

/// What a page may do: be shown, with its own style, posting its own forms. No script, no frame around it.
pub static POLICY: LazyLock<String> = LazyLock::new(|| {
    let hash = STANDARD.encode(digest(&SHA256, STYLE.as_bytes()));
    format!(
        "default-src 'none'; style-src 'sha256-{hash}'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    )
});

/// A text from outside, as HTML.
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
                // Nothing that turns what follows around, or is not there to be seen.
                '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}' => f.write_char('\u{fffd}')?,
                character if character.is_control() && character != '\n' => f.write_char('\u{fffd}')?,
                character => f.write_char(character)?,
            }
        }
        Ok(())
    }
}

/// How a page is laid out.
#[derive(Clone, Copy, Debug, Default)]
pub struct Layout {
    /// A few lines in the middle of the window.
    pub narrow: bool,
    /// Comes again by itself after so many seconds.
    pub refresh: Option<u32>,
}

/// What an answer that is such a page says of it.
pub fn describe(headers: &mut HeaderMap) {
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/html; charset=utf-8"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    if let Ok(policy) = HeaderValue::from_str(&POLICY) {
        headers.insert(CONTENT_SECURITY_POLICY, policy);
    }
}

/// A whole page. `title` is escaped here, `body` is HTML already.
#[must_use]
pub fn page(title: &str, body: &str, layout: Layout) -> String {
    let title = Escaped(title);
    let refresh =
        layout.refresh.map_or_else(String::new, |every| format!("<meta http-equiv=\"refresh\" content=\"{every}\">\n"));
    let narrow = if layout.narrow { " class=\"narrow\"" } else { "" };
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n{refresh}<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main{narrow}>\n{body}</main>\n</body>\n</html>\n"
    )
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
        let page = page("</title><script>", "<p>b</p>", Layout { narrow: true, refresh: Some(5) });
        assert!(
            !page.contains("<script>") && page.contains("content=\"5\"") && page.contains("<main class=\"narrow\">")
        );
    }
}
