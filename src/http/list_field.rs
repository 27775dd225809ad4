//! Header fields whose value is a list (RFC 9110 section 5.6.1).

use hyper::HeaderMap;
use hyper::header::HeaderName;

/// Returns whether a list-valued field has this member, compared without case.
pub(super) fn lists(headers: &HeaderMap, name: &HeaderName, member: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|value| value.trim().eq_ignore_ascii_case(member))
}
