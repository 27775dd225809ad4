//! A token becomes an identity here, or it does not.
//!
//! The order is that of docs/contract.md section 5: everything cheap and structural first, then the
//! signature, then what the claims say. One function does it, and what it did it can say step by
//! step (`vestibule token inspect`).

use std::fmt::Arguments;
use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use jsonwebtoken::DecodingKey;
use serde_json::{Map, Value};

use super::allow::unmet;
use super::cache::TokenCache;
use super::identity::pointed;
use super::jwt::{self, Parsed};
use super::keys::{Candidates, KeyPrint, ProviderKeys};
use super::kind::{check_audience, check_kind, flattened, shown_audience};
use super::{Identity, NoCredential, Rejection, Token};
use crate::policy::{Claim, Parties, PathVariables, ProviderSpec};

/// A user id longer than this is no one's, and would not fit some backends' headers.
const USER_ID_BYTES: usize = 256;

/// A verified identity and the token it came from. Only [`Verifier::verify`] makes one.
#[derive(Debug)]
pub struct Verified {
    identity: Arc<Identity>,
    token: Option<Token>,
}

impl Verified {
    /// Who it is.
    #[must_use]
    pub fn identity(&self) -> &Arc<Identity> {
        &self.identity
    }

    /// Takes it apart for sealing.
    #[must_use]
    pub fn into_parts(self) -> (Arc<Identity>, Option<Token>) {
        (self.identity, self.token)
    }
}

struct Provider {
    spec: Arc<ProviderSpec>,
    keys: Arc<ProviderKeys>,
}

/// Every provider and its keys.
pub struct Verifier {
    providers: Vec<Provider>,
    cache: Option<TokenCache>,
}

/// One step of an explanation: what was looked at and what was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// `header`, `key`, `signature`, `exp` …
    pub name: &'static str,
    /// What was found; never the token.
    pub finding: String,
}

/// What the verifier thinks of a token, and why.
#[derive(Debug)]
pub struct Explanation {
    /// The steps in order, up to the one that refused.
    pub steps: Vec<Step>,
    /// The verdict.
    pub verdict: Result<Arc<Identity>, Rejection>,
}

/// Hears what verification finds on its way; the unit type hears nothing and costs nothing.
trait Trace {
    fn step(&mut self, name: &'static str, finding: Arguments<'_>);
}

impl Trace for () {
    fn step(&mut self, _name: &'static str, _finding: Arguments<'_>) {}
}

impl Trace for Vec<Step> {
    fn step(&mut self, name: &'static str, finding: Arguments<'_>) {
        self.push(Step { name, finding: finding.to_string() });
    }
}

impl Verifier {
    /// A verifier over these providers and their keys, which remembers at most `remembered` tokens.
    #[must_use]
    pub fn new(providers: impl IntoIterator<Item = (Arc<ProviderSpec>, Arc<ProviderKeys>)>, remembered: usize) -> Self {
        let providers = providers.into_iter().map(|(spec, keys)| Provider { spec, keys }).collect();
        Self { providers, cache: TokenCache::new(remembered) }
    }

    /// Each provider with its keys.
    pub fn providers(&self) -> impl Iterator<Item = (&ProviderSpec, &ProviderKeys)> {
        self.providers.iter().map(|provider| (&*provider.spec, &*provider.keys))
    }

    /// Whether the key that verified a token is still its provider's.
    #[must_use]
    pub fn vouches(&self, provider: &str, key: KeyPrint) -> bool {
        self.providers.iter().find(|known| known.spec.name == provider).is_some_and(|known| known.keys.vouches(key))
    }

    /// Verifies a token. Waits for a key fetch at most, which is bounded.
    ///
    /// # Errors
    /// Why it was refused.
    pub async fn verify(&self, token: Token) -> Result<Verified, Rejection> {
        let Some(cache) = &self.cache else {
            let identity = Arc::new(self.examine(token.expose(), now(), &mut ()).await?);
            return Ok(Verified { identity, token: Some(token) });
        };
        let digest = TokenCache::digest(&token);
        if let Some(identity) = cache.get(&digest) {
            if self.still_stands(&identity) {
                tracing::debug!("token seen before: user {}", identity.user_id());
                return Ok(Verified { identity, token: Some(token) });
            }
            cache.remove(&digest);
        }
        let identity = Arc::new(self.examine(token.expose(), now(), &mut ()).await?);
        cache.insert(digest, &identity, identity.provider().cache_ttl);
        Ok(Verified { identity, token: Some(token) })
    }

    /// Whether what was found once still holds: the token has not ended, and its key is one of those that
    /// would verify it now. What else was asked of it cannot change.
    fn still_stands(&self, identity: &Identity) -> bool {
        let spec = identity.provider();
        let provider = self.providers.iter().find(|provider| provider.spec.name == spec.name);
        now() < identity.expires_at().saturating_add(spec.clock_skew.as_secs())
            && provider.is_some_and(|provider| provider.keys.verifies_with(identity.key()))
    }

    /// Verifies a token and says every step.
    pub async fn explain(&self, token: &Token) -> Explanation {
        let mut steps = Vec::new();
        let verdict = self.examine(token.expose(), now(), &mut steps).await.map(Arc::new);
        Explanation { steps, verdict }
    }

    async fn examine(&self, token: &str, now: u64, trace: &mut (impl Trace + Send)) -> Result<Identity, Rejection> {
        let parsed = jwt::parse(token)?;
        trace.step("shape", format_args!("{} bytes, three parts", token.len()));
        let kid = parsed.key_id.as_deref().unwrap_or("none");
        trace.step("header", format_args!("alg {:?}, kid {kid}", parsed.algorithm));
        let provider = self.provider_of(&parsed.claims)?;
        let spec = &provider.spec;
        trace.step(
            "issuer",
            format_args!("{} (provider {})", spec.issuer.as_deref().unwrap_or("not checked"), spec.name),
        );
        if !spec.algorithms.contains(&parsed.algorithm) {
            return Err(Rejection::Algorithm(format!("{:?}", parsed.algorithm)));
        }
        let key = verify_signature(provider, &parsed, trace).await?;
        check_claims(spec, &parsed, now, trace)?;
        let expires_at = required_time(&parsed.claims, "exp")?;
        // Required claims come before the user id, and are read as every rule reads claims.
        let user_id = user_id(spec, &parsed.claims);
        let shown = user_id.clone().unwrap_or_default();
        let claims = flattened(spec, parsed.claims);
        let identity = Identity::new(Arc::clone(spec), shown, claims, expires_at, key);
        // No route is known here, so a requirement of a provider has no path variables.
        if let Some(claim) = unmet(&spec.require, &PathVariables::default(), |claim| identity.claim(claim)) {
            return Err(Rejection::Required(claim.to_string()));
        }
        trace.step("user", format_args!("{}", user_id?));
        Ok(identity)
    }

    fn provider_of(&self, claims: &Map<String, Value>) -> Result<&Provider, Rejection> {
        // `validate` lets a provider without issuer stand alone only.
        if let [only] = self.providers.as_slice()
            && only.spec.issuer.is_none()
        {
            return Ok(only);
        }
        let issuer = match claims.get("iss") {
            Some(Value::String(issuer)) => issuer.as_str(),
            None => return Err(Rejection::Claim { claim: "iss".to_owned(), problem: "is missing" }),
            Some(_) => return Err(Rejection::Claim { claim: "iss".to_owned(), problem: "is not a string" }),
        };
        self.providers
            .iter()
            .find(|provider| provider.spec.issuer.as_deref() == Some(issuer))
            .ok_or_else(|| Rejection::UnknownIssuer(issuer.chars().take(256).collect()))
    }
}

/// Seconds since the epoch by this machine's clock.
#[must_use]
pub fn now() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |elapsed| elapsed.as_secs())
}

async fn verify_signature(
    provider: &Provider,
    parsed: &Parsed<'_>,
    trace: &mut (impl Trace + Send),
) -> Result<KeyPrint, Rejection> {
    let id = parsed.key_id.as_deref();
    let mut set = provider.keys.current().await?;
    if matches!(set.candidates(parsed.algorithm, id), Candidates::Unknown) {
        trace.step(
            "key",
            format_args!("kid {} is not in the set at hand; asking the provider again", id.unwrap_or("none")),
        );
        set = provider.keys.look_again().await?;
    }
    let keys = match set.candidates(parsed.algorithm, id) {
        Candidates::Keys(keys) => keys,
        Candidates::Ambiguous => return Err(Rejection::AmbiguousKey),
        Candidates::Unknown => return Err(Rejection::UnknownKey(parsed.key_id.clone())),
    };
    trace.step("key", format_args!("{} of the provider's fit", keys.len()));
    let verifies = |key: &DecodingKey| {
        // An error here is a key or signature that cannot be right for the algorithm: not verified.
        jsonwebtoken::crypto::verify(parsed.signature, parsed.signed.as_bytes(), key, parsed.algorithm).unwrap_or(false)
    };
    let Some((_, print)) = keys.iter().find(|(key, _)| verifies(key)) else { return Err(Rejection::BadSignature) };
    trace.step("signature", format_args!("verifies"));
    Ok(*print)
}

fn check_claims(spec: &ProviderSpec, parsed: &Parsed<'_>, now: u64, trace: &mut impl Trace) -> Result<(), Rejection> {
    let claims = &parsed.claims;
    let skew = spec.clock_skew.as_secs();
    let exp = required_time(claims, "exp")?;
    if now >= exp.saturating_add(skew) {
        return Err(Rejection::Expired { exp, now });
    }
    trace.step("exp", format_args!("{exp}, {} s from now", i128::from(exp) - i128::from(now)));
    if let Some(nbf) = time(claims, "nbf")?
        && nbf > now.saturating_add(skew)
    {
        return Err(Rejection::NotYetValid { nbf, now });
    }
    if let Some(iat) = time(claims, "iat")?
        && iat > now.saturating_add(skew)
    {
        return Err(Rejection::IssuedInTheFuture { iat, now });
    }
    check_audience(spec, claims)?;
    check_party(&spec.authorized_parties, claims)?;
    trace.step("audience", format_args!("{}", shown_audience(claims)));
    trace.step("kind", format_args!("{}", check_kind(spec, parsed)?));
    Ok(())
}

fn required_time(claims: &Map<String, Value>, name: &'static str) -> Result<u64, Rejection> {
    time(claims, name)?.ok_or(Rejection::Claim { claim: name.to_owned(), problem: "is missing" })
}

/// A `NumericDate`. A wrong JSON type is not an absent claim (CVE-2026-25537).
fn time(claims: &Map<String, Value>, name: &'static str) -> Result<Option<u64>, Rejection> {
    match claims.get(name) {
        None => Ok(None),
        Some(value) => value
            .as_u64()
            .map(Some)
            .ok_or(Rejection::Claim { claim: name.to_owned(), problem: "is not a whole number of seconds" }),
    }
}

fn check_party(parties: &Parties, claims: &Map<String, Value>) -> Result<(), Rejection> {
    let fits = |party: &str| match parties {
        Parties::Any => true,
        Parties::OneOf(names) => names.iter().any(|name| name == party),
        Parties::Origins(patterns) => patterns.iter().any(|pattern| pattern.matches(party)),
    };
    match (parties, claims.get("azp")) {
        (Parties::Any, _) | (Parties::Origins(_), None) => Ok(()),
        (_, Some(Value::String(party))) if fits(party) => Ok(()),
        (_, Some(Value::String(party))) => Err(Rejection::WrongParty(Some(party.chars().take(256).collect()))),
        (_, Some(_) | None) => Err(Rejection::WrongParty(None)),
    }
}

fn user_id(spec: &ProviderSpec, claims: &Map<String, Value>) -> Result<String, Rejection> {
    let value = match &spec.user_id {
        Claim::UserId => claims.get("sub"),
        Claim::Name(name) => claims.get(name),
        Claim::Pointer(pointer) => pointed(claims, pointer),
    };
    let id = match value {
        None | Some(Value::Null) => return Err(Rejection::MissingUser),
        Some(Value::String(id)) if id.is_empty() => return Err(Rejection::MissingUser),
        Some(Value::String(id)) => id,
        Some(_) => return Err(Rejection::UnusableUser("is not a string")),
    };
    if id.len() > USER_ID_BYTES {
        return Err(Rejection::UnusableUser("is longer than 256 bytes"));
    }
    // With `encode: percent` the header is safe whatever stands here; the log escapes.
    if !spec.encoded_user_ids && !id.bytes().all(|b| (0x21..=0x7e).contains(&b)) {
        return Err(Rejection::UnusableUser("holds other than visible ASCII; see identity.headers encode: percent"));
    }
    Ok(format!("{}{id}", spec.user_prefix.as_deref().unwrap_or_default()))
}

/// A request that carried no credential may still be served where the route says so; this is where
/// that proof is used up.
impl NoCredential {
    /// Consumes the proof.
    pub fn accept(self) {}
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
        use crate::config;
        let yaml = "upstream: http://127.0.0.1:1\nproviders: [{ preset: shared-secret, secret: 0123456789abcdef0123456789abcdef, audience: api }]\n";
        let environment = |name: &str| (name == "VESTIBULE_CONFIG_YAML").then(|| yaml.to_owned());
        let loaded = config::load(&config::Flags::default(), &config::Environment(&environment)).expect("loads");
        let policy = crate::policy::validate(&loaded.config).expect("valid");
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
        let parsed = Parsed::unsigned(all.clone());
        check_claims(&spec, &parsed, now, &mut ())
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
            (json!({"exp": 1e12}), Err("claim")),
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
    fn user_ids_are_non_empty_bounded_strings() {
        for (sub, expected) in [
            (json!("u"), Ok(())),
            (json!(""), Err("missing_user")),
            (json!(null), Err("missing_user")),
            (json!("ABSENT"), Err("missing_user")),
            (json!(7), Err("unusable_user")),
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
