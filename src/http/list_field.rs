//! Header fields whose value is a list (RFC 9110 section 5.6.1).

use hyper::HeaderMap;
use hyper::header::{HeaderName, HeaderValue};

/// Returns whether a list-valued field has this member, compared without case.
pub(super) fn lists(headers: &HeaderMap, name: &HeaderName, member: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|value| value.trim().eq_ignore_ascii_case(member))
}

/// Returns whether a line of `Accept` names this media type, with another weight than 0 (RFC 9110 sections 12.4.2 and
/// 12.5.1). A range such as `*/*` names none.
#[must_use]
pub fn accepts(line: &HeaderValue, media_type: &str) -> bool {
    line.as_bytes().split(|byte| *byte == b',').any(|range| {
        let mut parts = range.split(|byte| *byte == b';').map(<[u8]>::trim_ascii);
        parts.next().is_some_and(|kind| kind.eq_ignore_ascii_case(media_type.as_bytes())) && !parts.any(is_zero_weight)
    })
}

/// Returns whether a parameter is a weight of 0, with which the sender refuses what it names.
fn is_zero_weight(parameter: &[u8]) -> bool {
    let [b'q' | b'Q', b'=', b'0', fraction @ ..] = parameter else { return false };
    matches!(fraction, [] | [b'.', ..]) && fraction.iter().skip(1).all(|digit| *digit == b'0')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_media_type_is_accepted_where_it_is_named_with_a_weight() {
        for (line, expected) in [
            ("text/html", true),
            ("application/json, Text/HTML;level=1;q=0.001", true),
            ("text/html;q=1", true),
            ("text/html;q=0.0, text/html;level=1", true),
            ("text/html;q=0", false),
            ("text/html ; Q=0.", false),
            ("application/json,text/html; level=1; q=0.000", false),
            ("*/*, text/*, text/html2", false),
            ("", false),
        ] {
            assert_eq!(accepts(&HeaderValue::from_static(line), "text/html"), expected, "{line}");
        }
    }
}
