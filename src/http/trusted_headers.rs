//! The headers that tell the upstream who the verified user is, made from the claims of the identity.

use std::borrow::Cow;

use hyper::header::{HeaderName, HeaderValue};
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::Value;

use crate::auth::Identity;
use crate::policy::{Claim, Encode, TrustedHeader};

/// The characters that percent-encoding keeps: the unreserved ones of RFC 3986.
const PERCENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// The trusted headers of one identity. They are comparable, because a refreshed token must not change them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrustedHeaders(Vec<(HeaderName, HeaderValue)>);

/// The reason why an identity cannot be passed to the upstream; for the log.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IdentityHeaderError {
    /// A claim is not a valid header value.
    #[error("claim {claim} {problem}, so header {header} cannot be made")]
    Claim {
        /// The header.
        header: String,
        /// The claim.
        claim: String,
        /// The problem with the claim.
        problem: &'static str,
    },
    /// The identity assertion could not be signed.
    #[error("no assertion could be signed")]
    Unsigned,
}

impl TrustedHeaders {
    /// Makes the headers for an identity. An absent claim means no header.
    ///
    /// # Errors
    /// Returns an error when a claim is not a valid header value; nothing is truncated or guessed.
    pub fn of(headers: &[TrustedHeader], identity: &Identity) -> Result<Self, IdentityHeaderError> {
        let mut out = Vec::with_capacity(headers.len());
        for header in headers {
            let value = match &header.claim {
                // Nearly every request has this one, and needs no copy of it.
                Claim::UserId => None,
                claim => match identity.claim(claim) {
                    Some(value) => Some(value),
                    None => continue,
                },
            };
            let error = |problem| IdentityHeaderError::Claim {
                header: header.name.to_string(),
                claim: header.claim.to_string(),
                problem,
            };
            let text = match value.as_deref() {
                None => encoded(identity.user_id(), header.encode),
                Some(value) => text(value, header.encode).map_err(error)?,
            };
            let value = HeaderValue::from_str(&text).ok().filter(|_| is_visible(text.as_bytes()));
            out.push((
                header.name.clone(),
                value.ok_or_else(|| error("holds other than visible ASCII (encode: percent allows any text)"))?,
            ));
        }
        Ok(Self(out))
    }
}

impl IntoIterator for TrustedHeaders {
    type Item = (HeaderName, HeaderValue);
    type IntoIter = std::vec::IntoIter<Self::Item>;

    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

/// Returns whether a text is visible ASCII with no space at its ends.
fn is_visible(text: &[u8]) -> bool {
    // Without a branch, so that the compiler looks at 16 bytes at once.
    let is_visible = text.iter().fold(true, |visible, byte| visible & (0x20..=0x7e).contains(byte));
    is_visible && text.first() != Some(&b' ') && text.last() != Some(&b' ')
}

fn encoded(text: &str, encode: Option<Encode>) -> Cow<'_, str> {
    match encode {
        Some(Encode::Percent) => utf8_percent_encode(text, PERCENT).into(),
        None => Cow::Borrowed(text),
    }
}

fn text(value: &Value, encode: Option<Encode>) -> Result<Cow<'_, str>, &'static str> {
    match value {
        Value::String(text) => Ok(encoded(text, encode)),
        Value::Number(number) => Ok(Cow::Owned(number.to_string())),
        Value::Bool(value) => Ok(Cow::Owned(value.to_string())),
        Value::Array(members) => {
            let texts: Vec<Cow<'_, str>> = members
                .iter()
                .map(|member| match member {
                    Value::String(text) if text.contains(',') && encode.is_none() => {
                        Err("has a member with a comma in it")
                    }
                    Value::Array(_) | Value::Object(_) | Value::Null => {
                        Err("is an array of other than text, numbers and booleans")
                    }
                    member => text(member, encode),
                })
                .collect::<Result<_, _>>()?;
            Ok(Cow::Owned(texts.join(",")))
        }
        Value::Object(_) | Value::Null => Err("is an object"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn claim_values_become_text_or_an_error() {
        for (value, encode, expected) in [
            (json!("a"), None, Ok("a")),
            (json!(7), None, Ok("7")),
            (json!(true), None, Ok("true")),
            (json!(["a", 1, false]), None, Ok("a,1,false")),
            (json!([]), None, Ok("")),
            (json!(["a,b"]), None, Err(())),
            (json!(["a,b"]), Some(Encode::Percent), Ok("a%2Cb")),
            (json!("José"), Some(Encode::Percent), Ok("Jos%C3%A9")),
            (json!({"a": 1}), None, Err(())),
            (json!([["a"]]), None, Err(())),
            (json!([null]), None, Err(())),
        ] {
            let found = text(&value, encode);
            assert_eq!(found.as_deref().map_err(|_| ()), expected, "{value}");
        }
    }
}
