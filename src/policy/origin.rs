//! Origins (RFC 6454) of front ends, and the accepted Host values.

use std::fmt;

use url::Url;

use super::check::Check;
use crate::config::{NOT_SHOWN, shown_url};

/// Scheme, host and port, as a browser writes them in `Origin`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin {
    text: String,
    host: String,
}

impl Origin {
    /// Parses `https://app.example.com`, without path.
    ///
    /// # Errors
    /// Returns a sentence with the correct form.
    pub fn parse(text: &str) -> Result<Self, String> {
        if let Some(message) = missing_scheme(text, None) {
            return Err(message);
        }
        let url = Url::parse(text)
            .map_err(|_| format!("\"{}\" is not an origin; write it as https://app.example.com", shown_url(text)))?;
        if !matches!(url.scheme(), "http" | "https") || url.host_str().is_none() {
            return Err(format!("\"{}\" is not an http or https origin", shown_url(text)));
        }
        let bare = matches!(url.path(), "" | "/") && url.query().is_none() && url.fragment().is_none();
        if !bare || !url.username().is_empty() || url.password().is_some() {
            return Err(format!(
                "\"{}\" has more than scheme, host and port; write {}",
                shown_url(text),
                url.origin().ascii_serialization()
            ));
        }
        Ok(Self { text: url.origin().ascii_serialization(), host: url.host_str().unwrap_or_default().to_owned() })
    }

    /// Parses the origin of a page that no web server served: of a browser extension (`chrome-extension://…`) or of an
    /// application (`capacitor://localhost`, `tauri://localhost`, `app://.`). Browsers send it as it is, so it is compared
    /// byte for byte.
    fn of_application(text: &str) -> Result<Self, String> {
        let (scheme, rest) = text.split_once("://").unwrap_or_default();
        let lower = scheme.to_ascii_lowercase();
        if let "ws" | "wss" = lower.as_str() {
            let page = if lower == "ws" { "http" } else { "https" };
            return Err(format!("\"{text}\" is a socket's address; write the page's origin: {page}://{rest}"));
        }
        if let "file" | "data" | "blob" | "about" | "javascript" | "filesystem" | "ftp" = lower.as_str() {
            return Err(format!("\"{text}\": pages of {lower}: have no origin, browsers send `null` for them"));
        }
        let is_scheme = scheme.starts_with(|c: char| c.is_ascii_lowercase())
            && scheme.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'+' | b'-' | b'.'));
        let host = rest.strip_suffix('/').unwrap_or(rest);
        let (name, port) = host.split_once(':').map_or((host, None), |(name, port)| (name, Some(port)));
        let is_host = !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_'))
            && port.is_none_or(|port| port.parse::<u16>().is_ok());
        if !is_scheme || !is_host {
            return Err(format!(
                "\"{text}\" is not an origin; write scheme and host as the browser sends them, such as chrome-extension://abcdefghijklmnop or capacitor://localhost"
            ));
        }
        Ok(Self { text: format!("{scheme}://{host}"), host: name.to_owned() })
    }

    /// Returns the origin as browsers send it.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// Returns the host, without port.
    #[must_use]
    pub fn host(&self) -> &str {
        &self.host
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Returns the remedy for an address without a scheme. Without `scheme` it proposes https, and http for this machine.
pub(super) fn missing_scheme(text: &str, scheme: Option<&str>) -> Option<String> {
    if text.contains("://") {
        return None;
    }
    let shown = shown_url(text);
    let host = shown.split('/').next().unwrap_or_default();
    let host = host.rsplit_once(':').map_or(host, |(host, _)| host);
    let scheme = scheme.unwrap_or(if is_loopback_name(host) { "http" } else { "https" });
    if shown == NOT_SHOWN {
        return Some(format!("{shown} has no scheme; write {scheme}://host"));
    }
    Some(format!("\"{shown}\" has no scheme. Did you mean {scheme}://{shown} ?"))
}

/// An entry of `origins`: an exact origin, or `https://*.example.com`, where `*` is one label.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OriginPattern {
    /// Exactly this origin.
    Exact(Origin),
    /// Any origin of this scheme with one label before the suffix.
    OneLabel {
        /// The scheme with its separator: `https://`.
        scheme: String,
        /// The suffix: `.example.com`, with the port if there is one.
        suffix: String,
    },
}

impl OriginPattern {
    /// Parses an entry of `origins`.
    ///
    /// # Errors
    /// Returns a sentence with the correct form.
    pub fn parse(text: &str) -> Result<Self, String> {
        if !text.contains('*') {
            let is_of_web = |scheme: &str| scheme.eq_ignore_ascii_case("https") || scheme.eq_ignore_ascii_case("http");
            let is_application = text.split_once("://").is_some_and(|(scheme, _)| !is_of_web(scheme));
            let parse = if is_application { Origin::of_application } else { Origin::parse };
            return parse(text).map(Self::Exact);
        }
        let Some((scheme, suffix)) = text.split_once('*') else { return Err(String::new()) };
        let wrong = || format!("\"{text}\": a star stands for one whole first label: https://*.example.com");
        if !matches!(scheme, "https://" | "http://") || !suffix.starts_with('.') || suffix.contains('*') {
            return Err(wrong());
        }
        let checked = Origin::parse(&format!("{scheme}x{suffix}")).map_err(|_| wrong())?;
        let suffix = checked.as_str().strip_prefix(scheme).and_then(|rest| rest.strip_prefix('x')).ok_or_else(wrong)?;
        if suffix.matches('.').count() < 2 {
            return Err(format!("\"{text}\" would allow a whole top-level domain"));
        }
        Ok(Self::OneLabel { scheme: scheme.to_owned(), suffix: suffix.to_owned() })
    }

    /// Returns whether the entry matches the value of an `Origin` header.
    #[must_use]
    pub fn matches(&self, origin: &str) -> bool {
        match self {
            Self::Exact(exact) => exact.as_str() == origin,
            Self::OneLabel { scheme, suffix } => origin
                .strip_prefix(scheme.as_str())
                .and_then(|rest| rest.strip_suffix(suffix.as_str()))
                .is_some_and(|label| {
                    !label.is_empty()
                        && label.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-')
                }),
        }
    }
}

impl fmt::Display for OriginPattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(origin) => origin.fmt(f),
            Self::OneLabel { scheme, suffix } => write!(f, "{scheme}*{suffix}"),
        }
    }
}

/// The accepted Host values (docs/contract.md section 7): a website whose name resolves to 127.0.0.1 must not reach a
/// listener that is meant for this machine alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hosts {
    /// Any Host is accepted.
    Any,
    /// These names are accepted and, on a loopback listener, `localhost`, `*.localhost` and loopback addresses.
    Listed {
        /// The names without port, in lower case.
        names: Vec<String>,
        /// Whether the names of this machine's loopback are accepted too.
        loopback: bool,
    },
}

impl Hosts {
    /// Returns whether a Host value (host, without port) is accepted.
    #[must_use]
    pub fn answers(&self, host: &str) -> bool {
        match self {
            Self::Any => true,
            Self::Listed { names, loopback } => {
                let host = host.trim_end_matches('.');
                names.iter().any(|name| name.eq_ignore_ascii_case(host)) || (*loopback && is_loopback_name(host))
            }
        }
    }
}

/// Returns whether a host, in any case, is `localhost`, a name under it, or a loopback address.
#[must_use]
pub fn is_loopback_name(host: &str) -> bool {
    let address = host.trim_start_matches('[').trim_end_matches(']');
    let above = host.len().checked_sub("localhost".len()).and_then(|at| host.split_at_checked(at));
    above.is_some_and(|(above, name)| {
        name.eq_ignore_ascii_case("localhost") && (above.is_empty() || above.ends_with('.'))
    }) || address.parse::<std::net::IpAddr>().is_ok_and(|address| address.to_canonical().is_loopback())
}

impl Check {
    pub(super) fn origins(&mut self, path: &str, written: &[String]) -> Vec<OriginPattern> {
        written
            .iter()
            .enumerate()
            .filter_map(|(index, text)| self.ok_or_report(&format!("{path}[{index}]"), OriginPattern::parse(text)))
            .collect()
    }
}

/// Returns whether a URL's host is this machine's loopback.
pub(super) fn is_loopback(url: &Url) -> bool {
    url.host_str().is_some_and(is_loopback_name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_star_is_one_label() {
        let pattern = OriginPattern::parse("https://*.example.com").expect("pattern");
        for (origin, expected) in [
            ("https://a.example.com", true),
            ("https://a.b.example.com", false),
            ("https://example.com", false),
            ("https://evilexample.com", false),
            ("http://a.example.com", false),
            ("https://a.example.com:444", false),
            ("https://.example.com", false),
            ("https://a/.example.com", false),
        ] {
            assert_eq!(pattern.matches(origin), expected, "{origin}");
        }
        for wrong in ["*", "https://*", "https://*.com", "https://a.*.com", "*.example.com", "https://x*.example.com"] {
            assert!(OriginPattern::parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn pages_of_extensions_and_applications_have_origins_too() {
        for (written, sent) in [
            ("chrome-extension://abcdefghijklmnopabcdefghijklmnop", None),
            ("moz-extension://8eaef023-2b34-4da1-9baa-8bc8c9d6a490", None),
            ("safari-web-extension://8EAEF023-2B34-4DA1-9BAA-8BC8C9D6A490", None),
            ("capacitor://localhost", None),
            ("ionic://localhost/", Some("ionic://localhost")),
            ("tauri://localhost", None),
            ("app://.", None),
            ("app://localhost:8080", None),
        ] {
            let pattern = OriginPattern::parse(written).expect(written);
            let sent = sent.unwrap_or(written);
            assert!(pattern.matches(sent) && matches!(pattern, OriginPattern::Exact(_)), "{written}");
            for other in
                [&sent.to_uppercase(), &format!("{sent}.evil"), "null", "", &format!("{sent}/"), "http://localhost"]
            {
                assert!(!pattern.matches(other), "{written} {other}");
            }
        }
        for (wrong, word) in [
            ("null", "no scheme"),
            ("file:///index.html", "`null`"),
            ("data://x", "`null`"),
            ("wss://app.example.com", "https://app.example.com"),
            ("chrome-extension://", "not an origin"),
            ("chrome-extension://*", "a star"),
            ("Capacitor://localhost", "not an origin"),
            ("capacitor://local host", "not an origin"),
            ("capacitor://localhost/path", "not an origin"),
            ("capacitor://user@localhost", "not an origin"),
            ("capacitor://localhost:port", "not an origin"),
            ("1app://localhost", "not an origin"),
            ("https://a/b", "more than scheme"),
            ("HTTPS://a/b", "more than scheme"),
        ] {
            let error = OriginPattern::parse(wrong).expect_err(wrong);
            assert!(error.contains(word), "{wrong}: {error}");
        }
        assert!(Origin::parse("capacitor://localhost").is_err(), "public_url is of the web");
    }

    #[test]
    fn a_rebound_name_is_not_loopback() {
        let hosts = Hosts::Listed { names: vec!["app.example.com".into()], loopback: true };
        for (host, expected) in [
            ("localhost", true),
            ("x.localhost", true),
            ("127.0.0.1", true),
            ("127.8.8.8", true),
            ("[::1]", true),
            ("APP.example.com", true),
            ("evil.example", false),
            ("localhost.evil.example", false),
            ("127.0.0.1.evil.example", false),
        ] {
            assert_eq!(hosts.answers(host), expected, "{host}");
        }
    }
}
