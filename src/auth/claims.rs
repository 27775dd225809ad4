//! Checks the claims of a token whose signature has been verified: times, audience, authorized party, kind and
//! user id (docs/contract.md section 5).

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::Rejection;
use super::clock::is_in_milliseconds;
use super::kind::{TokenKindHeader, check_audience, check_kind, shown_audience};
use super::trace::Trace;
use crate::policy::{AuthorizedParties, Claim, ProviderSpec};

/// The longest accepted user id, in bytes, so that it fits the header limits of common servers.
const USER_ID_BYTES: usize = 256;

/// Checks `exp`, `nbf` and `iat`, and returns `exp`. A token must have `exp`; a provider's response about a token may
/// lack it.
pub(super) fn check_times(
    spec: &ProviderSpec,
    claims: &Map<String, Value>,
    now: u64,
    trace: &mut impl Trace,
) -> Result<Option<u64>, Rejection> {
    let skew = spec.clock_skew.as_secs();
    let exp = numeric_date(claims, "exp", f64::floor)?;
    if let Some(exp) = exp {
        if now >= exp.saturating_add(skew) {
            return Err(Rejection::Expired { exp, now });
        }
        let unit = if is_in_milliseconds(exp) { ", which looks like milliseconds instead of seconds" } else { "" };
        trace.step("exp", format_args!("{exp}, {} s from now{unit}", i128::from(exp) - i128::from(now)));
    }
    if let Some(nbf) = numeric_date(claims, "nbf", f64::ceil)?
        && nbf > now.saturating_add(skew)
    {
        return Err(Rejection::NotYetValid { nbf, now });
    }
    if let Some(iat) = numeric_date(claims, "iat", f64::ceil)?
        && iat > now.saturating_add(skew)
    {
        return Err(Rejection::IssuedInTheFuture { iat, now });
    }
    Ok(exp)
}

/// Checks the audience, the authorized party and the kind.
pub(super) fn check_audience_and_kind(
    spec: &ProviderSpec,
    header: TokenKindHeader,
    claims: &Map<String, Value>,
    trace: &mut impl Trace,
) -> Result<(), Rejection> {
    check_audience(spec, claims)?;
    check_party(&spec.authorized_parties, claims)?;
    trace.step("audience", format_args!("{}", shown_audience(claims)));
    trace.step("kind", format_args!("{}", check_kind(spec, header, claims)?));
    Ok(())
}

/// Returns `exp`, which every token must have.
pub(super) fn required_exp(claims: &Map<String, Value>) -> Result<u64, Rejection> {
    let missing = Rejection::Claim { claim: "exp".to_owned(), problem: "is missing" };
    numeric_date(claims, "exp", f64::floor)?.ok_or(missing)
}

/// Reads a `NumericDate`, which may be any JSON number (RFC 7519 section 2), and rounds it with `rounded` to whole
/// seconds; callers round in the direction that accepts less. A claim of the wrong JSON type is an error, not an
/// absent claim (CVE-2026-25537).
pub(super) fn numeric_date(
    claims: &Map<String, Value>,
    name: &'static str,
    rounded: impl Fn(f64) -> f64,
) -> Result<Option<u64>, Rejection> {
    let Some(value) = claims.get(name) else { return Ok(None) };
    let wrong = Rejection::Claim { claim: name.to_owned(), problem: "is not a number of seconds since 1970" };
    if let Some(whole) = value.as_u64() {
        return Ok(Some(whole));
    }
    // JSON has no infinity, and the parser rejects numbers that would become one.
    let fraction = value.as_f64().filter(|number| number.is_finite() && *number >= 0.0).ok_or(wrong)?;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative; `as` saturates")]
    let seconds = rounded(fraction) as u64;
    Ok(Some(seconds))
}

fn check_party(parties: &AuthorizedParties, claims: &Map<String, Value>) -> Result<(), Rejection> {
    let fits = |party: &str| match parties {
        AuthorizedParties::Any => true,
        AuthorizedParties::OneOf(names) => names.iter().any(|name| name == party),
        AuthorizedParties::Origins(patterns) => patterns.iter().any(|pattern| pattern.matches(party)),
        AuthorizedParties::Client(client_id) => client_id == party,
    };
    match (parties, claims.get("azp")) {
        (AuthorizedParties::Any, _) | (AuthorizedParties::Origins(_) | AuthorizedParties::Client(_), None) => Ok(()),
        (_, Some(Value::String(party))) if fits(party) => Ok(()),
        (_, Some(Value::String(party))) => {
            let party: String = party.chars().take(256).collect();
            Err(Rejection::WrongParty(format!("azp {party:?} is not in {}", shown_parties(parties))))
        }
        (_, Some(_)) => Err(Rejection::WrongParty("azp is not a string".to_owned())),
        (_, None) => Err(Rejection::WrongParty(format!(
            "azp is missing; it must be in {}; for tokens without azp write audience instead, or for Clerk origins",
            shown_parties(parties)
        ))),
    }
}

/// Formats the configuration key that lists the accepted parties with the first of them.
fn shown_parties(parties: &AuthorizedParties) -> String {
    const SHOWN: usize = 8;
    let (key, mut names) = match parties {
        AuthorizedParties::Any => return "any".to_owned(),
        AuthorizedParties::OneOf(names) => ("authorized_parties", names.clone()),
        AuthorizedParties::Client(client_id) => ("browser.login.client_id", vec![client_id.clone()]),
        AuthorizedParties::Origins(patterns) => ("origins", patterns.iter().map(ToString::to_string).collect()),
    };
    let more = if names.len() > SHOWN { ", …" } else { "" };
    names.truncate(SHOWN);
    format!("{key} ({}{more})", names.join(", "))
}

/// Looks up a claim for a rule or a header. An `email` that is not verified counts as absent unless the provider has
/// `trust_unverified_email`. Here `sub` is the claim itself; rules and headers see the user id in its place
/// ([`Identity::claim`](super::Identity::claim)).
pub(super) fn value<'a>(spec: &ProviderSpec, claims: &'a Map<String, Value>, claim: &Claim) -> Option<&'a Value> {
    let value = match claim {
        Claim::UserId => claims.get("sub"),
        Claim::Name(name) => claims.get(name),
        Claim::Pointer(pointer) => resolve_pointer(claims, pointer),
    };
    value.filter(|value| !value.is_null() && (!claim.is_email() || counts_email(spec, claims)))
}

fn counts_email(spec: &ProviderSpec, claims: &Map<String, Value>) -> bool {
    spec.trust_unverified_email || claims.get("email_verified") == Some(&Value::Bool(true))
}

/// Reads the user id and puts the provider's prefix before it.
pub(super) fn user_id(spec: &ProviderSpec, claims: &Map<String, Value>) -> Result<String, Rejection> {
    let id = match value(spec, claims, &spec.user_id) {
        None if spec.user_id.is_email() && claims.get("email").is_some_and(Value::is_string) => {
            return Err(Rejection::UnusableUser(
                "is an email without email_verified: true; trust_unverified_email would accept it",
            ));
        }
        None => return Err(Rejection::MissingUser),
        Some(Value::String(id)) if id.is_empty() => return Err(Rejection::MissingUser),
        Some(Value::String(id)) => Cow::Borrowed(id.as_str()),
        Some(other) => Cow::Owned(
            decimal_text(other).ok_or(Rejection::UnusableUser("is neither a string nor a whole number of 64 bits"))?,
        ),
    };
    if id.len() > USER_ID_BYTES {
        return Err(Rejection::UnusableUser("is longer than 256 bytes"));
    }
    // With `encode: percent` any text is safe in a header, and the log escapes it.
    if !spec.encoded_user_ids && !id.bytes().all(|b| (0x21..=0x7e).contains(&b)) {
        return Err(Rejection::UnusableUser(
            "has characters other than visible ASCII; identity.headers with encode: percent would accept it",
        ));
    }
    Ok(format!("{}{id}", spec.user_prefix.as_deref().unwrap_or_default()))
}

/// Returns the decimal text of a JSON integer of 64 bits. A longer number is parsed as floating point, where several
/// numbers share one value, so it has none, like a number with a fraction or an exponent.
pub(super) fn decimal_text(value: &Value) -> Option<String> {
    value.as_number().filter(|number| number.is_u64() || number.is_i64()).map(ToString::to_string)
}

/// Resolves a JSON pointer (RFC 6901) in an object.
pub(super) fn resolve_pointer<'a>(claims: &'a Map<String, Value>, pointer: &str) -> Option<&'a Value> {
    let rest = pointer.strip_prefix('/')?;
    let (first, deeper) = match rest.split_once('/') {
        Some((first, _)) => (first, Some(&rest[first.len()..])),
        None => (rest, None),
    };
    let value = claims.get(&first.replace("~1", "/").replace("~0", "~"))?;
    match deeper {
        Some(deeper) => value.pointer(deeper),
        None => Some(value),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn claims(value: Value) -> Map<String, Value> {
        match value {
            Value::Object(map) => map,
            _ => Map::new(),
        }
    }

    fn spec() -> ProviderSpec {
        let yaml = "upstream: http://127.0.0.1:1\nproviders: [{ preset: shared-secret, secret: 0123456789abcdef0123456789abcdef, audience: api }]\n";
        let policy = crate::policy::validate(&crate::config::load_yaml(yaml).expect("loads").config).expect("valid");
        (*policy.providers[0]).clone()
    }

    fn outcome(overrides: Value) -> Result<(), &'static str> {
        let now = 1_000_000;
        let mut all = claims(json!({"iss":"i","sub":"u","aud":"api","exp":now + 60,"nbf":now,"iat":now}));
        for (key, value) in claims(overrides) {
            if value == json!("ABSENT") {
                all.remove(&key)
            } else {
                all.insert(key, value)
            };
        }
        let spec = spec();
        required_exp(&all)
            .and_then(|_| check_times(&spec, &all, now, &mut ()))
            .and_then(|_| check_audience_and_kind(&spec, TokenKindHeader::default(), &all, &mut ()))
            .and_then(|()| user_id(&spec, &all).map(|_| ()))
            .map_err(|r| r.outcome())
    }

    #[test]
    fn times_are_judged_at_their_edges_and_by_their_type() {
        let now = 1_000_000;
        for (overrides, expected) in [
            (json!({}), Ok(())),
            (json!({"exp": now - 4}), Ok(())),
            (json!({"exp": now - 5}), Err("expired")),
            (json!({"exp": "ABSENT"}), Err("claim")),
            (json!({"exp": "9999999999"}), Err("claim")),
            (json!({"exp": null}), Err("claim")),
            (json!({"exp": 1e12}), Ok(())),
            (json!({"exp": 1e300}), Ok(())),
            // `exp` is rounded down.
            (json!({"exp": 999_995.5}), Err("expired")),
            (json!({"exp": 999_996.5}), Ok(())),
            (json!({"exp": -0.5}), Err("claim")),
            (json!({"exp": true}), Err("claim")),
            // `nbf` and `iat` are rounded up.
            (json!({"nbf": 1_000_005.0}), Ok(())),
            (json!({"nbf": 1_000_005.5}), Err("not_yet_valid")),
            (json!({"iat": 1_000_004.5}), Ok(())),
            (json!({"iat": 1_000_005.5}), Err("issued_in_the_future")),
            (json!({"exp": -1}), Err("claim")),
            (json!({"exp": u64::MAX}), Ok(())),
            (json!({"nbf": now + 5}), Ok(())),
            (json!({"nbf": now + 6}), Err("not_yet_valid")),
            (json!({"nbf": "x"}), Err("claim")),
            (json!({"nbf": "ABSENT", "iat": "ABSENT"}), Ok(())),
            (json!({"iat": now + 6}), Err("issued_in_the_future")),
            (json!({"iat": [now]}), Err("claim")),
        ] {
            assert_eq!(outcome(overrides.clone()), expected, "{overrides}");
        }
    }

    #[test]
    fn audience_is_a_string_or_an_array_of_strings() {
        for (aud, expected) in [
            (json!("api"), Ok(())),
            (json!(["x", "api"]), Ok(())),
            (json!("API"), Err("wrong_audience")),
            (json!([]), Err("wrong_audience")),
            (json!([""]), Err("wrong_audience")),
            (json!(["api", 7]), Err("wrong_audience")),
            (json!([["api"]]), Err("wrong_audience")),
            (json!({"api": 1}), Err("wrong_audience")),
            (json!(null), Err("wrong_audience")),
            (json!("ABSENT"), Err("claim")),
        ] {
            assert_eq!(outcome(json!({ "aud": aud })), expected, "{aud}");
        }
    }

    #[test]
    fn other_kinds_of_token_are_told_apart() {
        for (overrides, expected) in [
            (json!({"token_use": "access"}), Ok(())),
            (json!({"token_use": "id"}), Err("wrong_kind")),
            (json!({"typ": "ID"}), Err("wrong_kind")),
            (json!({"typ": "Refresh"}), Err("wrong_kind")),
            (json!({"typ": "Bearer"}), Ok(())),
            (json!({"at_hash": "x"}), Err("wrong_kind")),
            (json!({"events": {}}), Err("wrong_kind")),
            (json!({"token_type": "refresh"}), Err("wrong_kind")),
        ] {
            assert_eq!(outcome(overrides.clone()), expected, "{overrides}");
        }
    }

    #[test]
    fn user_ids_are_non_empty_bounded_strings_or_whole_numbers() {
        for (sub, expected) in [
            (json!("u"), Ok(())),
            (json!(""), Err("missing_user")),
            (json!(null), Err("missing_user")),
            (json!("ABSENT"), Err("missing_user")),
            (json!(7), Ok(())),
            (json!(u64::MAX), Ok(())),
            (json!(7.5), Err("unusable_user")),
            (json!(1e30), Err("unusable_user")),
            (json!(true), Err("unusable_user")),
            (json!(["u"]), Err("unusable_user")),
            (json!("a\r\nX-Admin: 1"), Err("unusable_user")),
            (json!("a b"), Err("unusable_user")),
            (json!("Jos\u{e9}"), Err("unusable_user")),
            (json!("x".repeat(256)), Ok(())),
            (json!("x".repeat(257)), Err("unusable_user")),
        ] {
            assert_eq!(outcome(json!({ "sub": sub })), expected, "{sub}");
        }
    }
}
