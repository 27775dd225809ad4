//! Formats the `Set-Cookie` lines of the proxy's cookies.

use hyper::header::HeaderValue;

use crate::policy::BrowserSpec;

/// Formats a line that sets a cookie for this host alone, not readable by scripts, for `max_age` seconds; 0 removes the
/// cookie. A cookie with a `__Host-` name is sent over https only. Returns `None` if name or value cannot be sent.
pub(super) fn cookie_line(name: &str, value: &str, max_age: u64, browser: &BrowserSpec) -> Option<HeaderValue> {
    let is_https = name.starts_with("__Host-");
    // Browsers refuse `SameSite=None` and `Partitioned` without `Secure`.
    let same_site = if is_https && browser.is_in_frames() { "None" } else { "Lax" };
    let secure = if is_https { "; Secure" } else { "" };
    let is_partitioned = is_https && browser.session.as_ref().is_some_and(|session| session.is_partitioned);
    let partitioned = if is_partitioned { "; Partitioned" } else { "" };
    let line =
        format!("{name}={value}; Path=/; HttpOnly; SameSite={same_site}; Max-Age={max_age}{secure}{partitioned}");
    let mut line = HeaderValue::try_from(line).ok()?;
    line.set_sensitive(true);
    Some(line)
}
