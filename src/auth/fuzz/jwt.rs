//! Any text as a token: its header and claims have one reading, and an identity that is stored is restored unchanged.

use std::sync::{Arc, LazyLock};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use serde_json::{Map, Value};

use crate::auth::identify::{VerifiedClaims, identify};
use crate::auth::identity::{Expiry, VerifiedBy};
use crate::auth::jwt::{claimed_issuer, is_of_balancer, is_opaque, parse, parse_logout, parse_of_balancer};
use crate::auth::{KeyFingerprint, SessionCookie, SessionCookies, StoredIdentity, claims};
use crate::fuzz::{Input, Tree};
use crate::policy::{ProviderSpec, Secret, SessionSpec};

/// The time at which tokens are judged, in Unix seconds, and the clock skew.
const NOW: u64 = 1_000_000;
const SKEW: f64 = 5.0;

static PROVIDERS: LazyLock<[Arc<ProviderSpec>; 2]> = LazyLock::new(|| {
    let provider = |rest: &str| {
        let file = format!(
            "upstream: http://127.0.0.1:1\nproviders: [{{ preset: shared-secret, secret: 0123456789abcdef0123456789abcdefX, {rest} }}]\n"
        );
        let policy = crate::policy::validate(&crate::config::load_yaml(&file).expect("loads").config).expect("valid");
        Arc::clone(&policy.providers[0])
    };
    [provider("audience: api"), provider("audience: any, user_id: /a/b, user_prefix: \"p:\"")]
});

static COOKIES: LazyLock<SessionCookies> = LazyLock::new(|| {
    let spec = SessionSpec { secret: Some(Secret::for_tests(b"a secret")), ..SessionSpec::default() };
    SessionCookies::new(&spec, None).expect("keys")
});

/// Checks the parsing of a token and the checks of its claims.
///
/// The first byte chooses the provider, and whether the rest is a token, or its header behind a length, then its claims.
pub fn jwt(data: &[u8]) {
    let mut input = Input::new(data);
    let choice = input.byte();
    let provider = &PROVIDERS[usize::from(choice & 1)];
    let token = if choice & 2 == 0 {
        let (header, payload) = (input.part(), input.rest());
        format!("{}.{}.c2ln", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(payload))
    } else {
        String::from_utf8_lossy(input.rest()).into_owned()
    };
    let (opaque, issuer) = (is_opaque(&token), claimed_issuer(&token));
    let _ = (is_of_balancer(&token), parse_logout(&token).is_ok(), parse_of_balancer(&token).is_ok());
    let Ok(parsed) = parse(&token) else { return };
    assert!(!opaque, "a token that is parsed is taken for an opaque one");
    let parts: Vec<Vec<u8>> =
        token.split('.').map(|part| URL_SAFE_NO_PAD.decode(part).expect("each part is base64url")).collect();
    assert_eq!(parts.len(), 3);
    for part in &parts[..2] {
        let tree = Tree::parse(part).expect("each part is JSON");
        assert!(matches!(tree, Tree::Object(_)) && !tree.has_duplicates(), "a part has two readings");
    }
    let header: Map<String, Value> = serde_json::from_slice(&parts[0]).expect("JSON");
    assert!(!header.contains_key("crit") && !header.contains_key("b64"));
    assert_ne!(header["alg"].as_str().map(str::to_ascii_lowercase).as_deref(), Some("none"));
    assert_eq!(header.get("kid").and_then(Value::as_str), parsed.key_id.as_deref());
    assert_eq!(parsed.claims.get("iss").and_then(Value::as_str), issuer.as_deref());
    checked(provider, &parsed.claims, parsed.kind);
}

/// Checks the judgement about claims, and that they come back as they were out of a session and a cookie.
fn checked(provider: &Arc<ProviderSpec>, found: &Map<String, Value>, kind: crate::auth::kind::TokenKindHeader) {
    let number = |name: &str| found.get(name).and_then(Value::as_f64);
    let times = claims::check_times(provider, found, NOW, &mut ());
    #[allow(clippy::cast_precision_loss, reason = "small numbers")]
    let now = NOW as f64;
    if let Ok(exp) = times {
        assert_eq!(exp.is_some(), found.contains_key("exp"));
        assert!(exp.is_none() || number("exp").is_some_and(|exp| exp.floor() + SKEW > now), "an expired token");
        for name in ["nbf", "iat"] {
            assert!(!found.contains_key(name) || number(name).is_some_and(|at| at <= now + SKEW), "{name} is later");
        }
    }
    let verified = VerifiedClaims {
        claims: found.clone(),
        kind,
        expiry: Expiry::At(2_000_000),
        verified_by: VerifiedBy::Key {
            fingerprint: KeyFingerprint::default(),
            algorithm: Algorithm::HS256,
            until: 2_000_000,
        },
    };
    let Ok(identity) = identify(provider, verified, &mut ()) else { return };
    let id = identity.user_id().strip_prefix(provider.user_prefix.as_deref().unwrap_or_default()).expect("its prefix");
    assert!((1..=256).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic()), "{id:?}");
    let restored = StoredIdentity::new(&identity).restore().expect("it was stored");
    assert_eq!(restored.claims(), identity.claims(), "other claims are restored");
    assert_eq!(restored.user_id(), identity.user_id());
    let Some(issued) = COOKIES.issue(&identity, None, NOW * 1_000) else { return };
    let cookie = SessionCookie::parse(&issued.value).expect("a cookie");
    let content = COOKIES.decrypt(&cookie).expect("it is ours");
    assert_eq!(&content.claims, identity.claims(), "other claims are in the cookie");
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_corpus_of_jwt_has_one_reading() {
        crate::fuzz::run_corpus("jwt", super::jwt);
    }
}
