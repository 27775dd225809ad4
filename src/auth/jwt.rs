//! Parses a compact JWS with JSON claims (RFC 7515, RFC 7519) strictly and before any cryptography. The size
//! of a token was limited when it was extracted, so the work done here is bounded too.

use base64::Engine as _;
use base64::alphabet::URL_SAFE;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig, URL_SAFE_NO_PAD};
use jsonwebtoken::Algorithm;
use serde_json::{Map, Value};

use super::Rejection;
use super::balancer;
use super::kind::{Category, TokenKindHeader};
use crate::json;

/// The maximum length of a `kid` in bytes; longer ones are rejected.
const KID_BYTES: usize = 256;

/// The parts of a token. Nothing is verified yet.
pub(super) struct Parsed<'a> {
    pub(super) algorithm: Algorithm,
    pub(super) key_id: Option<String>,
    pub(super) kind: TokenKindHeader,
    pub(super) claims: Map<String, Value>,
    /// The signing input, `header.payload` (RFC 7515 section 5.2).
    pub(super) signed: &'a str,
    /// The signature, still encoded as base64url.
    pub(super) signature: &'a str,
}

/// The values of `typ` that a token may have, in lower case, and what is wrong with one that has another.
struct TokenTypes {
    accepted: &'static [&'static str],
    problem: &'static str,
}

const ACCESS_OR_ID_TOKEN: TokenTypes =
    TokenTypes { accepted: &["jwt", "at+jwt"], problem: "typ is neither JWT nor at+jwt" };
const LOGOUT_TOKEN: TokenTypes =
    TokenTypes { accepted: &["jwt", "logout+jwt"], problem: "typ is neither JWT nor logout+jwt" };
const BALANCER_TOKEN: TokenTypes = TokenTypes { accepted: &["jwt"], problem: "typ is not JWT" };

/// Returns whether a token is opaque, that is, does not have the form of a JWT. Then only its provider can verify it.
pub(super) fn is_opaque(token: &str) -> bool {
    let mut parts = token.split('.');
    let (Some(header), Some(_), Some(_), None) = (parts.next(), parts.next(), parts.next(), parts.next()) else {
        return true;
    };
    // Every JWT begins with a JSON object in base64url.
    !URL_SAFE_NO_PAD.decode(header).is_ok_and(|header| header.trim_ascii_start().starts_with(b"{"))
}

/// Reads the issuer that a JWT names, without verifying anything. It may only be used to recognize a token, never
/// to accept one.
pub(super) fn claimed_issuer(token: &str) -> Option<String> {
    let payload = token.split('.').nth(1)?;
    let payload = URL_SAFE_NO_PAD.decode(payload.trim_end_matches('=')).ok()?;
    let claims: Map<String, Value> = serde_json::from_slice(&payload).ok()?;
    claims.get("iss")?.as_str().map(str::to_owned)
}

/// Splits a token and parses its header and claims.
///
/// # Errors
/// [`Rejection::Malformed`], [`Rejection::Algorithm`] or [`Rejection::WrongKind`].
pub(super) fn parse(token: &str) -> Result<Parsed<'_>, Rejection> {
    parse_typed(token, &ACCESS_OR_ID_TOKEN)
}

/// Splits and reads a logout token of `OpenID Connect`.
pub(super) fn parse_logout(token: &str) -> Result<Parsed<'_>, Rejection> {
    parse_typed(token, &LOGOUT_TOKEN)
}

/// Accepts parts with padding, as load balancers of AWS write them.
const PADDED: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new().with_decode_padding_mode(DecodePaddingMode::Indifferent),
);

/// Returns whether a token calls itself one of a load balancer, by the `signer` in its header; nothing is verified.
pub(super) fn is_of_balancer(token: &str) -> bool {
    let header = token.split('.').next().and_then(|header| PADDED.decode(header).ok());
    header.and_then(|header| json::object(&header).ok()).is_some_and(|header| header.contains_key("signer"))
}

/// Splits and reads a token of a load balancer. Its claims are the payload's with those of the header.
///
/// # Errors
/// As [`parse`], and when the header lacks what a load balancer writes.
pub(super) fn parse_of_balancer(token: &str) -> Result<Parsed<'_>, Rejection> {
    let (mut parsed, header) = parse_with(token, &BALANCER_TOKEN, &PADDED)?;
    balancer::add_header_claims(&header, &mut parsed.claims)?;
    // The signature is of the text with its padding, and is itself decoded without.
    parsed.signature = parsed.signature.trim_end_matches('=');
    Ok(parsed)
}

fn parse_typed<'a>(token: &'a str, types: &TokenTypes) -> Result<Parsed<'a>, Rejection> {
    parse_with(token, types, &URL_SAFE_NO_PAD).map(|(parsed, _)| parsed)
}

/// Returns the parts, and the whole header.
fn parse_with<'a>(
    token: &'a str,
    types: &TokenTypes,
    encoding: &GeneralPurpose,
) -> Result<(Parsed<'a>, Map<String, Value>), Rejection> {
    let malformed = Rejection::Malformed;
    // The dots are counted before anything is decoded: a megabyte of them costs one pass (CVE-2025-30204).
    match token.bytes().filter(|b| *b == b'.').count() {
        2 => {}
        4 => {
            return Err(malformed(
                "five parts: an encrypted token (JWE); request an audience at the provider to get a signed one",
            ));
        }
        _ => return Err(malformed("not a JWT, which has three parts separated by dots; is it an opaque token?")),
    }
    let (signed, signature) = token.rsplit_once('.').ok_or(malformed("no signature"))?;
    let (header, payload) = signed.split_once('.').ok_or(malformed("no payload"))?;
    if header.is_empty() || payload.is_empty() || signature.is_empty() {
        return Err(malformed("an empty part"));
    }
    let decode = |part: &str| encoding.decode(part);
    let header = decode(header).map_err(|_| malformed("the header is not base64url"))?;
    let header =
        json::object(&header).map_err(|_| malformed("the header is not a JSON object with each member once"))?;
    let algorithm = algorithm(&header, types)?;
    let text = |name: &str| header.get(name).and_then(Value::as_str);
    let is_access_token = text("typ").is_some_and(|kind| kind.to_ascii_lowercase().ends_with("at+jwt"));
    let category = match header.get("cat") {
        None => Category::Unspecified,
        Some(Value::String(category)) => Category::from_claim(category),
        Some(_) => return Err(malformed("cat is not a string")),
    };
    let key_id = match header.get("kid") {
        None | Some(Value::Null) => None,
        Some(Value::String(kid)) if !kid.is_empty() && kid.len() <= KID_BYTES && !kid.chars().any(char::is_control) => {
            Some(kid.clone())
        }
        Some(_) => return Err(malformed("kid is not a short printable string")),
    };
    let payload = decode(payload).map_err(|_| malformed("the payload is not base64url"))?;
    let claims =
        json::object(&payload).map_err(|_| malformed("the payload is not a JSON object with each member once"))?;
    // This is checked before a key is used: the signature check must not have to handle padded or non-canonical base64.
    decode(signature).map_err(|_| malformed("the signature is not base64url"))?;
    let kind = TokenKindHeader { is_access_token, category };
    Ok((Parsed { algorithm, key_id, kind, claims, signed, signature }, header))
}

fn algorithm(header: &Map<String, Value>, types: &TokenTypes) -> Result<Algorithm, Rejection> {
    // RFC 7515 section 4.1.11: a token with an extension that is not supported must be rejected. No extension is
    // supported, and `b64: false` (RFC 7797) would change the signing input.
    if header.contains_key("crit") || header.contains_key("b64") {
        return Err(Rejection::Malformed("header extensions (crit, b64) are not supported"));
    }
    if let Some(kind) = header.get("typ") {
        let known = kind.as_str().is_some_and(|kind| {
            let kind = kind.to_ascii_lowercase();
            types.accepted.contains(&kind.strip_prefix("application/").unwrap_or(&kind))
        });
        if !known {
            return Err(Rejection::WrongKind(types.problem));
        }
    }
    let Some(name) = header.get("alg").and_then(Value::as_str) else {
        return Err(Rejection::Malformed("alg is not a string"));
    };
    let shown = || Rejection::Algorithm(name.chars().take(32).collect());
    name.parse().map_err(|_| shown())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn encode(text: &str) -> String {
        URL_SAFE_NO_PAD.encode(text)
    }

    fn outcome(header: &str, payload: &str) -> Result<(), &'static str> {
        parse(&format!("{}.{}.c2ln", encode(header), encode(payload))).map(|_| ()).map_err(|r| r.outcome())
    }

    #[test]
    fn headers_that_could_be_read_two_ways_are_refused() {
        for (header, expected) in [
            (r#"{"alg":"RS256"}"#, Ok(())),
            (r#"{"alg":"RS256","typ":"JWT","kid":"k"}"#, Ok(())),
            (r#"{"alg":"RS256","typ":"at+jwt"}"#, Ok(())),
            (r#"{"alg":"RS256","typ":"application/AT+JWT"}"#, Ok(())),
            (r#"{"alg":"RS256","jku":"https://evil.example","jwk":{},"x5c":1,"x5u":"x"}"#, Ok(())),
            (r#"{"alg":"none"}"#, Err("algorithm")),
            (r#"{"alg":"NoNe"}"#, Err("algorithm")),
            (r#"{"alg":"rs256"}"#, Err("algorithm")),
            (r#"{"alg":["RS256"]}"#, Err("malformed")),
            (r#"{"alg":"RS256","alg":"HS256"}"#, Err("malformed")),
            (r#"{"alg":"RS256","crit":["exp"]}"#, Err("malformed")),
            (r#"{"alg":"RS256","crit":[]}"#, Err("malformed")),
            (r#"{"alg":"RS256","b64":false}"#, Err("malformed")),
            (r#"{"alg":"RS256","kid":null}"#, Ok(())),
            (r#"{"alg":"RS256","kid":7}"#, Err("malformed")),
            (r#"{"alg":"RS256","kid":""}"#, Err("malformed")),
            (r#"{"alg":"RS256","kid":"a\nb"}"#, Err("malformed")),
            (r#"{"alg":"RS256","typ":"dpop+jwt"}"#, Err("wrong_kind")),
            (r#"{"alg":"RS256","typ":7}"#, Err("wrong_kind")),
            (r"{}", Err("malformed")),
            (r"[]", Err("malformed")),
        ] {
            assert_eq!(outcome(header, "{}"), expected, "{header}");
        }
    }

    #[test]
    fn the_reason_names_the_types_that_this_kind_of_token_may_have() {
        let token = format!("{}.e30.c2ln", encode(r#"{"alg":"RS256","typ":"other"}"#));
        let reason = |parsed: Result<Parsed<'_>, Rejection>| parsed.map(|_| ()).map_err(|reason| reason.to_string());
        for (parsed, expected) in [
            (reason(parse(&token)), "typ is neither JWT nor at+jwt"),
            (reason(parse_logout(&token)), "typ is neither JWT nor logout+jwt"),
            (reason(parse_of_balancer(&token)), "typ is not JWT"),
        ] {
            assert!(parsed.as_ref().is_err_and(|reason| reason.contains(expected)), "{parsed:?}");
        }
    }

    #[test]
    fn what_does_not_look_like_a_jwt_is_opaque() {
        let jwt = format!("{}.e30.c2ln", encode(r#"{"alg":"RS256"}"#));
        for (token, opaque) in [
            (jwt.as_str(), false),
            ("eyJ9.x.y", false),
            ("opaque", true),
            ("a.b", true),
            ("a.b.c", true),
            ("..", true),
            ("eyJ9.a.b.c.d", true),
        ] {
            assert_eq!(is_opaque(token), opaque, "{token}");
        }
    }

    #[test]
    fn shapes_that_are_no_compact_jws_are_refused() {
        let header = encode(r#"{"alg":"RS256"}"#);
        let payload = encode("{}");
        for token in [
            String::new(),
            "x".to_owned(),
            ".".repeat(100_000),
            format!("{header}.{payload}"),
            format!("{header}.{payload}."),
            format!("{header}..c2ln"),
            format!("{header}.{payload}.c2ln.x.y"),
            format!("{header}=.{payload}.c2ln"),
            format!("{header}.{payload}.c2ln="),
            format!("{header}.{payload}.c2+n"),
            format!("{header}.{}.c2ln", encode("[]")),
            format!("{header}.{}.c2ln", encode(r#"{"sub":"a","sub":"b"}"#)),
        ] {
            assert!(parse(&token).is_err(), "{}", &token[..token.len().min(80)]);
        }
    }
}
