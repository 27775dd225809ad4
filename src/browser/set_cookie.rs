//! Formats the `Set-Cookie` lines of the proxy's cookies.

use hyper::header::HeaderValue;

/// Formats a line that sets a cookie for this host alone, not readable by scripts, for `max_age` seconds; 0 removes the
/// cookie. A cookie with a `__Host-` name is sent over https only. Returns `None` if name or value cannot be sent.
pub(super) fn cookie_line(name: &str, value: &str, max_age: u64) -> Option<HeaderValue> {
    let secure = if name.starts_with("__Host-") { "; Secure" } else { "" };
    let line = format!("{name}={value}; Path=/; HttpOnly; SameSite=Lax; Max-Age={max_age}{secure}");
    let mut line = HeaderValue::try_from(line).ok()?;
    line.set_sensitive(true);
    Some(line)
}
