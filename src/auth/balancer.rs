//! Reads tokens of an AWS Application Load Balancer (`X-Amzn-Oidc-Data`). The payload has what the identity provider says
//! of the user. The header says who signed the token, for which client, and until when it is valid.

use serde_json::{Map, Value};

use super::Rejection;
use super::claims::numeric_date;

/// Puts the header's `iss`, `exp`, `client` (as `aud`) and `signer` among the claims, in place of what the payload has under
/// these names: the user's claims must not stand in for them.
///
/// # Errors
/// When one is missing or has the wrong type, or the payload names another issuer.
pub(super) fn add_header_claims(header: &Map<String, Value>, claims: &mut Map<String, Value>) -> Result<(), Rejection> {
    let text = |name: &str| match header.get(name) {
        Some(Value::String(text)) if !text.is_empty() => Ok(Value::from(text.as_str())),
        _ => Err(Rejection::Claim {
            claim: name.to_owned(),
            problem: "is missing, empty or not a string in the header of the balancer's token",
        }),
    };
    let (issuer, client, signer) = (text("iss")?, text("client")?, text("signer")?);
    if claims.get("iss").is_some_and(|named| *named != issuer) {
        return Err(Rejection::Malformed("header and payload name different issuers"));
    }
    let missing =
        Rejection::Claim { claim: "exp".to_owned(), problem: "is missing in the header of the balancer's token" };
    let in_header = numeric_date(header, "exp", f64::floor)?.ok_or(missing)?;
    let in_payload = numeric_date(claims, "exp", f64::floor)?.unwrap_or(u64::MAX);
    for (name, value) in
        [("iss", issuer), ("aud", client), ("signer", signer), ("exp", in_header.min(in_payload).into())]
    {
        claims.insert(name.to_owned(), value);
    }
    Ok(())
}
