//! Parses a key set (RFC 7517) key by key, so that an unusable key is skipped and the others are used.
//!
//! A key is used only when its type, curve, size, `use`, `key_ops` and `alg` show that it verifies signatures of a
//! supported algorithm. Symmetric keys in a JWKS are never used.

mod pem;

use aws_lc_rs::digest;
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, DecodingKey};
use serde_json::{Map, Value};

use crate::json;
use crate::policy::{KeySource, Secret};

/// Upper bound on keys per set; larger sets are rejected.
const MAX_KEYS: usize = 100;
/// Upper bound on keys with the same `kid` and algorithm that are tried in turn.
const MAX_SAME_KID: usize = 4;
/// Upper bound on keys that are tried for a token without `kid`, since each costs a verification.
const MAX_WITHOUT_KID: usize = 8;

/// The reason why a whole set is unusable.
#[derive(Debug, thiserror::Error)]
pub(in crate::auth) enum BadKeys {
    #[error("not a JWKS: {0}")]
    NotAJwks(String),
    #[error("more than {MAX_KEYS} keys")]
    TooMany,
    #[error("no usable key: {0}")]
    NoneUsable(String),
    #[error("no PEM block with a public key or certificate")]
    NoPem,
    #[error("a PEM block holds a private key; verification needs the public one")]
    PrivateKey,
}

/// A digest of a key's material. It identifies the key in every key set that is fetched, even if other members of its
/// JWK change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KeyFingerprint([u8; 16]);

impl KeyFingerprint {
    /// Computes a fingerprint of parts; each is preceded by its length, so that parts cannot be confused.
    pub(in crate::auth) fn of(parts: &[&[u8]]) -> Self {
        let mut context = digest::Context::new(&digest::SHA256);
        for part in parts {
            context.update(&(part.len() as u64).to_be_bytes());
            context.update(part);
        }
        let digest = context.finish();
        Self(digest.as_ref().first_chunk().copied().unwrap_or_default())
    }

    /// Encodes the fingerprint, for a session cookie.
    pub(in crate::auth) fn text(self) -> String {
        URL_SAFE_NO_PAD.encode(self.0)
    }

    /// Parses a text that [`Self::text`] returned.
    pub(in crate::auth) fn from_text(text: &str) -> Option<Self> {
        URL_SAFE_NO_PAD.decode(text).ok()?.try_into().ok().map(Self)
    }
}

/// One usable key.
struct Key {
    fingerprint: KeyFingerprint,
    id: Option<String>,
    kind: KeyType,
    /// The algorithm that the JWK names; the key is used for no other.
    algorithm: Option<Algorithm>,
    decoding: DecodingKey,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum KeyType {
    Hmac,
    Rsa,
    P256,
    P384,
    Ed25519,
}

impl KeyType {
    fn fits(self, algorithm: Algorithm) -> bool {
        match algorithm {
            Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512 => self == Self::Hmac,
            Algorithm::RS256
            | Algorithm::RS384
            | Algorithm::RS512
            | Algorithm::PS256
            | Algorithm::PS384
            | Algorithm::PS512 => self == Self::Rsa,
            Algorithm::ES256 => self == Self::P256,
            Algorithm::ES384 => self == Self::P384,
            Algorithm::EdDSA => self == Self::Ed25519,
            _ => false,
        }
    }
}

impl Key {
    fn fits(&self, algorithm: Algorithm) -> bool {
        self.kind.fits(algorithm) && self.algorithm.is_none_or(|own| own == algorithm)
    }
}

/// The usable keys of a set.
pub(in crate::auth) struct KeySet {
    keys: Vec<Key>,
    skipped: Vec<String>,
}

impl std::fmt::Debug for KeySet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "KeySet({} keys)", self.keys.len())
    }
}

/// The keys that may have signed a token.
pub(in crate::auth) enum Candidates<'a> {
    /// Keys to try in turn.
    Keys(Vec<(&'a DecodingKey, KeyFingerprint)>),
    /// No key matches.
    Unknown,
}

impl KeySet {
    /// Parses the keys in the configuration; returns `None` where they have to be fetched.
    pub(super) fn configured(source: &KeySource) -> Option<Result<Self, BadKeys>> {
        Some(match source {
            KeySource::Introspection | KeySource::ById { .. } => Ok(Self { keys: Vec::new(), skipped: Vec::new() }),
            KeySource::Secret(secret) => Ok(Self::secret(secret)),
            KeySource::Pem(pem) => Self::from_pem(pem),
            KeySource::Jwks(jwks) => Self::from_jwks(jwks),
            KeySource::Fetched { .. } => return None,
        })
    }

    fn secret(secret: &Secret) -> Self {
        let key = Key {
            fingerprint: KeyFingerprint::of(&[b"oct", secret.expose()]),
            id: None,
            kind: KeyType::Hmac,
            algorithm: None,
            decoding: DecodingKey::from_secret(secret.expose()),
        };
        Self { keys: vec![key], skipped: Vec::new() }
    }

    /// Parses a JWKS document.
    pub(in crate::auth) fn from_jwks(bytes: &[u8]) -> Result<Self, BadKeys> {
        let document = json::value(bytes).map_err(|_| BadKeys::NotAJwks(not_json(bytes).to_owned()))?;
        let Some(Value::Array(entries)) = document.get("keys") else { return Err(BadKeys::NotAJwks(other(&document))) };
        if entries.len() > MAX_KEYS {
            return Err(BadKeys::TooMany);
        }
        let mut keys = Vec::new();
        let mut skipped = Vec::new();
        for (index, entry) in entries.iter().enumerate() {
            match entry.as_object().ok_or("not an object").and_then(read) {
                Ok(key) => keys.push(key),
                Err(why) => skipped.push(format!("keys[{index}]: {why}")),
            }
        }
        if keys.is_empty() {
            return Err(BadKeys::NoneUsable(if skipped.is_empty() {
                "the list is empty".to_owned()
            } else {
                skipped.join("; ")
            }));
        }
        Ok(Self { keys, skipped })
    }

    /// Parses PEM blocks with public keys or certificates.
    pub(super) fn from_pem(pem: &[u8]) -> Result<Self, BadKeys> {
        let text = std::str::from_utf8(pem).map_err(|_| BadKeys::NoPem)?;
        let mut keys = Vec::new();
        let mut skipped = Vec::new();
        let blocks = text.split("-----BEGIN ").skip(1).filter_map(|block| block.split_once("-----"));
        for (index, (label, rest)) in blocks.enumerate() {
            if label.contains("PRIVATE KEY") {
                return Err(BadKeys::PrivateKey);
            }
            let Some((base64, _)) = rest.split_once("-----END ") else { continue };
            match pem::public_key(label, base64) {
                Ok((kind, decoding)) => {
                    let whole = format!("-----BEGIN {label}-----{base64}-----END {label}-----\n");
                    let fingerprint = KeyFingerprint::of(&[b"pem", whole.as_bytes()]);
                    keys.push(Key { fingerprint, id: None, kind, algorithm: None, decoding });
                }
                Err(why) => skipped.push(format!("PEM block {}: {why}", index + 1)),
            }
        }
        match (keys.is_empty(), skipped.is_empty()) {
            (true, true) => Err(BadKeys::NoPem),
            (true, false) => Err(BadKeys::NoneUsable(skipped.join("; "))),
            (false, _) => Ok(Self { keys, skipped }),
        }
    }

    /// Returns whether the set contains a key and the key may be used with the algorithm.
    pub(super) fn contains(&self, fingerprint: KeyFingerprint, algorithm: Algorithm) -> bool {
        self.keys.iter().any(|key| key.fingerprint == fingerprint && key.fits(algorithm))
    }

    /// Returns the number of usable keys.
    pub(in crate::auth) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Returns the skipped keys, each with the reason.
    pub(in crate::auth) fn skipped(&self) -> &[String] {
        &self.skipped
    }

    /// Returns the algorithms of the keys, for display.
    pub(super) fn algorithms(&self) -> Vec<String> {
        let mut names: Vec<String> = Vec::new();
        for key in &self.keys {
            let name = match (key.algorithm, key.kind) {
                (Some(algorithm), _) => format!("{algorithm:?}"),
                (None, KeyType::Hmac) => "HMAC".to_owned(),
                (None, KeyType::Rsa) => "RSA".to_owned(),
                (None, KeyType::P256) => "ES256".to_owned(),
                (None, KeyType::P384) => "ES384".to_owned(),
                (None, KeyType::Ed25519) => "EdDSA".to_owned(),
            };
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    /// Returns the keys that may have signed a token: those with the token's `kid`, or otherwise keys without a `kid`
    /// (as from PEM). For a token without `kid`, at most [`MAX_WITHOUT_KID`] keys for the algorithm.
    pub(in crate::auth) fn candidates(&self, algorithm: Algorithm, id: Option<&str>) -> Candidates<'_> {
        let fitting = |wanted: Option<&str>| {
            self.keys
                .iter()
                .filter(|key| key.fits(algorithm) && key.id.as_deref() == wanted)
                .map(|key| (&key.decoding, key.fingerprint))
                .take(MAX_SAME_KID)
                .collect::<Vec<_>>()
        };
        let found = if id.is_some() {
            let named = fitting(id);
            if named.is_empty() { fitting(None) } else { named }
        } else {
            let fitting = self.keys.iter().filter(|key| key.fits(algorithm));
            fitting.map(|key| (&key.decoding, key.fingerprint)).take(MAX_WITHOUT_KID).collect()
        };
        if found.is_empty() { Candidates::Unknown } else { Candidates::Keys(found) }
    }
}

/// Says what a document is that is not JSON.
fn not_json(bytes: &[u8]) -> &'static str {
    let text = bytes.trim_ascii_start();
    match text {
        [] => "it is empty",
        [b'<', ..] => "it is an HTML or XML page",
        _ if text.starts_with(b"-----BEGIN") => "it is PEM; write it as jwks.pem_file",
        _ => "it is not JSON with each member once",
    }
}

/// Says what a JSON document is that has no list `keys`.
fn other(document: &Value) -> String {
    /// How many members are named, and how many characters of each are shown.
    const NAMES: usize = 5;
    const CHARACTERS: usize = 64;
    let shown = |text: &str| text.chars().take(CHARACTERS).collect::<String>();
    let Some(members) = document.as_object() else { return "it is JSON, but no object".to_owned() };
    if members.contains_key("keys") {
        return "its member `keys` is no list".to_owned();
    }
    if members.is_empty() {
        return "it is an empty object, {}".to_owned();
    }
    let text = |name: &str| members.get(name).and_then(Value::as_str);
    if let Some(uri) = text("jwks_uri") {
        let uri: String = uri.chars().take(4 * CHARACTERS).collect();
        return format!("it is an OIDC discovery document; its keys are at {uri}, so write that as jwks.url");
    }
    if text("kty").is_some() {
        return "it is a single key; a JWKS is an object with a list `keys`".to_owned();
    }
    let is_pem = |value: &Value| value.as_str().is_some_and(|text| text.trim_start().starts_with("-----BEGIN"));
    if members.values().all(is_pem) {
        return "it maps key ids to certificates in PEM; write the URL of the provider's JWKS as jwks.url".to_owned();
    }
    let names: Vec<String> = members.keys().take(NAMES).map(|name| shown(name)).collect();
    format!("it is an object without a list `keys`; it has {}", names.join(", "))
}

/// Parses one JWK. The error is the reason why the key cannot be used.
fn read(jwk: &Map<String, Value>) -> Result<Key, &'static str> {
    // Some serializers write members that are not set as null.
    let text = |name: &str| match jwk.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text.as_str())),
        Some(_) => Err("a member has the wrong JSON type"),
    };
    if text("use")?.is_some_and(|usage| usage != "sig") {
        return Err("not for signatures (use)");
    }
    if let Some(operations) = jwk.get("key_ops").filter(|operations| !operations.is_null())
        && !operations.as_array().is_some_and(|list| list.iter().any(|operation| operation == "verify"))
    {
        return Err("not for verification (key_ops)");
    }
    let bytes = |name: &str| -> Result<Vec<u8>, &'static str> {
        let encoded = text(name)?.ok_or("a member is missing")?;
        URL_SAFE_NO_PAD.decode(encoded).map_err(|_| "a member is not base64url")
    };
    let curve = text("crv")?;
    let (kind, decoding, fingerprint) = match (text("kty")?.ok_or("no kty")?, curve) {
        ("RSA", _) => {
            // Some encoders keep the leading zero octet of ASN.1, which RFC 7518 section 6.3.1.1 forbids.
            let value = |bytes: Vec<u8>| bytes.into_iter().skip_while(|byte| *byte == 0).collect::<Vec<u8>>();
            let (modulus, exponent) = (value(bytes("n")?), value(bytes("e")?));
            check_rsa(&modulus, &exponent)?;
            let fingerprint = KeyFingerprint::of(&[b"RSA", &modulus, &exponent]);
            (KeyType::Rsa, DecodingKey::from_rsa_raw_components(&modulus, &exponent), fingerprint)
        }
        ("EC", Some(curve @ ("P-256" | "P-384"))) => {
            let (kind, length) = if curve == "P-256" { (KeyType::P256, 32) } else { (KeyType::P384, 48) };
            let (x, y) = (bytes("x")?, bytes("y")?);
            if x.len() != length || y.len() != length {
                return Err("a coordinate has the wrong length");
            }
            let point: Vec<u8> = std::iter::once(4).chain(x).chain(y).collect();
            (kind, DecodingKey::from_ec_der(&point), KeyFingerprint::of(&[b"EC", &point]))
        }
        ("OKP", Some("Ed25519")) => {
            let point = bytes("x")?;
            check_ed25519(&point)?;
            (KeyType::Ed25519, DecodingKey::from_ed_der(&point), KeyFingerprint::of(&[b"OKP", &point]))
        }
        ("oct", _) => return Err("a symmetric key must not be in a key set"),
        _ => return Err("key type or curve is not supported"),
    };
    let algorithm = match text("alg")? {
        None => None,
        Some("Ed25519") => Some(Algorithm::EdDSA),
        Some(name) => Some(name.parse().map_err(|_| "its algorithm is not supported")?),
    };
    if algorithm.is_some_and(|algorithm| !kind.fits(algorithm)) {
        return Err("its algorithm does not match its type");
    }
    let id = text("kid")?.map(str::to_owned);
    Ok(Key { fingerprint, id, kind, algorithm, decoding })
}

fn check_rsa(modulus: &[u8], exponent: &[u8]) -> Result<(), &'static str> {
    let significant = |bytes: &[u8]| {
        let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
        let rest = &bytes[zeros..];
        rest.first().map_or(0, |first| rest.len() * 8 - first.leading_zeros() as usize)
    };
    if !(2048..=8192).contains(&significant(modulus)) {
        return Err("an RSA modulus must have 2048 to 8192 bits");
    }
    let odd = |bytes: &[u8]| bytes.last().is_some_and(|last| last & 1 == 1);
    let bits = significant(exponent);
    if !odd(modulus) || !odd(exponent) || !(2..=33).contains(&bits) {
        return Err("RSA modulus or exponent is not usable");
    }
    Ok(())
}

fn check_ed25519(point: &[u8]) -> Result<(), &'static str> {
    let mut point = <[u8; 32]>::try_from(point).map_err(|_| "an Ed25519 key has 32 bytes")?;
    point[31] &= 0x7f;
    if SMALL_ORDER.contains(&point) {
        return Err("a point of small order, for which anyone could sign");
    }
    Ok(())
}

/// The points whose order divides 8 and their non-canonical encodings, with the sign bit cleared.
const SMALL_ORDER: [[u8; 32]; 7] = [
    filled(0x00, 0x00, 0x00),
    filled(0x01, 0x00, 0x00),
    [
        0x26, 0xe8, 0x95, 0x8f, 0xc2, 0xb2, 0x27, 0xb0, 0x45, 0xc3, 0xf4, 0x89, 0xf2, 0xef, 0x98, 0xf0, 0xd5, 0xdf,
        0xac, 0x05, 0xd3, 0xc6, 0x33, 0x39, 0xb1, 0x38, 0x02, 0x88, 0x6d, 0x53, 0xfc, 0x05,
    ],
    [
        0xc7, 0x17, 0x6a, 0x70, 0x3d, 0x4d, 0xd8, 0x4f, 0xba, 0x3c, 0x0b, 0x76, 0x0d, 0x10, 0x67, 0x0f, 0x2a, 0x20,
        0x53, 0xfa, 0x2c, 0x39, 0xcc, 0xc6, 0x4e, 0xc7, 0xfd, 0x77, 0x92, 0xac, 0x03, 0x7a,
    ],
    filled(0xec, 0xff, 0x7f),
    filled(0xed, 0xff, 0x7f),
    filled(0xee, 0xff, 0x7f),
];

const fn filled(first: u8, middle: u8, last: u8) -> [u8; 32] {
    let mut bytes = [middle; 32];
    bytes[0] = first;
    bytes[31] = last;
    bytes
}

#[cfg(test)]
mod vectors;

#[cfg(test)]
mod tests {
    use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
    use aws_lc_rs::rsa::KeySize;
    use aws_lc_rs::signature::KeyPair as _;
    use base64::engine::general_purpose::STANDARD;

    use super::*;
    use crate::der::{CONTEXT_0, Elements, SEQUENCE};

    fn b64(bytes: &[u8]) -> String {
        URL_SAFE_NO_PAD.encode(bytes)
    }

    fn usable(jwk: &Value) -> Result<(), &'static str> {
        read(jwk.as_object().expect("object")).map(|_| ())
    }

    #[test]
    fn only_keys_for_verifying_signatures_are_used() {
        let mut modulus = vec![0xff; 256];
        let n = b64(&modulus);
        modulus.truncate(128);
        let small = b64(&modulus);
        let point = b64(&[9; 32]);
        for (jwk, counts) in [
            (serde_json::json!({"kty":"RSA","n":n,"e":"AQAB"}), true),
            (serde_json::json!({"kty":"RSA","n":n,"e":"AQAB","use":"sig","alg":"RS256","key_ops":["verify"]}), true),
            (serde_json::json!({"kty":"RSA","n":n,"e":"AQAB","use":"enc"}), false),
            (serde_json::json!({"kty":"RSA","n":n,"e":"AQAB","use":7}), false),
            (serde_json::json!({"kty":"RSA","n":n,"e":"AQAB","key_ops":["sign"]}), false),
            (serde_json::json!({"kty":"RSA","n":n,"e":"AQAB","key_ops":"verify"}), false),
            (serde_json::json!({"kty":"RSA","n":n,"e":"AQAB","alg":"RSA-OAEP"}), false),
            (serde_json::json!({"kty":"RSA","n":n,"e":"AQAB","alg":"ES256"}), false),
            (serde_json::json!({"kty":"RSA","n":n,"e":"AQAB","alg":"HS256"}), false),
            (serde_json::json!({"kty":"RSA","n":n,"e":"AQ"}), false),
            (serde_json::json!({"kty":"RSA","n":small,"e":"AQAB"}), false),
            (serde_json::json!({"kty":"RSA","e":"AQAB"}), false),
            (serde_json::json!({"kty":"EC","crv":"P-256","x":point,"y":point}), true),
            (serde_json::json!({"kty":"EC","crv":"P-384","x":point,"y":point}), false),
            (serde_json::json!({"kty":"EC","crv":"secp256k1","x":point,"y":point}), false),
            (serde_json::json!({"kty":"OKP","crv":"Ed25519","x":point}), true),
            (serde_json::json!({"kty":"OKP","crv":"Ed25519","x":b64(&[0; 32])}), false),
            (serde_json::json!({"kty":"OKP","crv":"Ed25519","x":b64(&[9; 31])}), false),
            (serde_json::json!({"kty":"OKP","crv":"X25519","x":point}), false),
            (serde_json::json!({"kty":"oct","k":b64(&[7; 32])}), false),
            (serde_json::json!({"kty":"RSA","n":n,"e":"AQAB","kid":7}), false),
            (
                serde_json::json!({"kty":"RSA","n":n,"e":"AQAB","kid":null,"use":null,"alg":null,"key_ops":null,"crv":null}),
                true,
            ),
            (serde_json::json!({"kty":null,"n":n,"e":"AQAB"}), false),
            (serde_json::json!({"kty":"RSA","n":null,"e":"AQAB"}), false),
        ] {
            assert_eq!(usable(&jwk).is_ok(), counts, "{jwk}");
        }
    }

    #[test]
    fn leading_zeros_do_not_change_the_fingerprint() {
        let modulus = vec![0xff; 256];
        let padded = [&[0, 0][..], &modulus].concat();
        let print = |n: &[u8], e: &[u8]| {
            let jwk = serde_json::json!({"kty":"RSA","n":b64(n),"e":b64(e)});
            read(jwk.as_object().expect("object")).expect("a key").fingerprint
        };
        assert_eq!(print(&modulus, &[1, 0, 1]), print(&padded, &[0, 1, 0, 1]));
    }

    fn pem_of(label: &str, der: &[u8]) -> String {
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der))
    }

    #[test]
    fn keys_of_every_type_are_read_from_pem() {
        let rsa = aws_lc_rs::rsa::KeyPair::generate(KeySize::Rsa2048).expect("key");
        let spki: PublicKeyX509Der<'_> = rsa.public_key().as_der().expect("key");
        let compressed = "MDkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDIgACMRIdE0+hBwj+4L34+JQ5bHMiHgbXjj0Lzn+nhyOp7vE=";
        let mut blocks = vec![
            (KeyType::P256, pem_of("PUBLIC KEY", &STANDARD.decode(compressed).expect("base64"))),
            (KeyType::Rsa, pem_of("PUBLIC KEY", spki.as_ref())),
            (KeyType::Rsa, pem_of("RSA PUBLIC KEY", rsa.public_key().as_ref())),
        ];
        for (kind, algorithm) in [
            (KeyType::P256, &rcgen::PKCS_ECDSA_P256_SHA256),
            (KeyType::P384, &rcgen::PKCS_ECDSA_P384_SHA384),
            (KeyType::Ed25519, &rcgen::PKCS_ED25519),
            (KeyType::Rsa, &rcgen::PKCS_RSA_SHA256),
        ] {
            let pair = rcgen::KeyPair::generate_for(algorithm).expect("key");
            let certificate =
                rcgen::CertificateParams::new(Vec::new()).expect("name").self_signed(&pair).expect("signed");
            blocks.push((kind, pair.public_key_pem()));
            blocks.push((kind, pem_of("CERTIFICATE", certificate.der())));
            blocks.push((kind, pem_of("CERTIFICATE", &of_version_1(certificate.der()))));
        }
        for (kind, block) in &blocks {
            let set = KeySet::from_pem(block.as_bytes()).unwrap_or_else(|error| panic!("{kind:?}: {error}\n{block}"));
            assert_eq!(set.keys.iter().map(|key| key.kind).collect::<Vec<_>>(), [*kind], "{block}");
        }
        let all: String =
            blocks.iter().map(|(_, block)| format!("# a comment\r\n{block}").replace('\n', "\r\n")).collect();
        assert_eq!(KeySet::from_pem(all.as_bytes()).expect("keys").len(), blocks.len());
    }

    /// Leaves the version out of a certificate, which makes it one of version 1.
    fn of_version_1(certificate: &[u8]) -> Vec<u8> {
        let sequence = |content: &[u8]| {
            let length = u16::try_from(content.len()).expect("short").to_be_bytes();
            [&[SEQUENCE, 0x82, length[0], length[1]], content].concat()
        };
        let mut outer = Elements::of(certificate).take(SEQUENCE).expect("a certificate").elements();
        let mut fields = outer.take(SEQUENCE).expect("fields").elements();
        fields.take(CONTEXT_0).expect("a version");
        sequence(&sequence(fields.rest()))
    }

    #[test]
    fn errors_say_why_a_pem_block_has_no_usable_key() {
        let der = |base64: &str| STANDARD.decode(base64).expect("base64");
        let small = "MIGJAoGBAMWzvHjaecAmYsjTEq0IjH0KwdUM1D87PALP3A2VfdBBIliIm+ulKf+6CXpYknxP+Z9I0JMyoDMVERiQe570RsMY5ZcyMUQmjU2a3ga6nW/A36auya6YQc/uMmuWNXaE+k3kAb0Bp6KNITRTSBLsmz+FbKa3CXIrBtG5AiVD75rxAgMBAAE=";
        let secp256k1 = "MFYwEAYHKoZIzj0CAQYFK4EEAAoDQgAEX5xayoFNvtsJPm9KY4mHgKMpsNHFFyaz8h6m2ZShSs9Dfrc875xFCIzYVIDojWUhXPB5VYWoWIqgFOuYBLqPwg==";
        for (block, expected) in [
            (pem_of("RSA PUBLIC KEY", &der(small)), "PEM block 1: an RSA modulus must have 2048 to 8192 bits"),
            (pem_of("PUBLIC KEY", &der(secp256k1)), "PEM block 1: key type or curve is not supported"),
            (pem_of("PUBLIC KEY", &[0; 32]), "PEM block 1: no public key in DER"),
            (pem_of("CERTIFICATE", &[SEQUENCE, 0]), "PEM block 1: no certificate in DER"),
            (pem_of("CERTIFICATE REQUEST", &[0; 32]), "PEM block 1: neither a public key nor a certificate"),
            ("-----BEGIN PUBLIC KEY-----\n?\n-----END PUBLIC KEY-----".to_owned(), "PEM block 1: not base64"),
        ] {
            let error = KeySet::from_pem(block.as_bytes()).expect_err(expected).to_string();
            assert_eq!(error, format!("no usable key: {expected}"));
        }
        for text in ["", "-----BEGIN PUBLIC KEY-----", "-----BEGIN PUBLIC KEY"] {
            assert!(matches!(KeySet::from_pem(text.as_bytes()), Err(BadKeys::NoPem)), "{text}");
        }
        let private = pem_of("RSA PRIVATE KEY", &[0]);
        assert!(matches!(KeySet::from_pem(private.as_bytes()), Err(BadKeys::PrivateKey)));
    }

    #[test]
    fn an_unusable_key_is_skipped() {
        let n = b64(&[0xff; 256]);
        let set = format!(r#"{{"keys":[null,{{"kty":"RSA","n":"{n}","e":"AQAB","kid":"a"}},{{"kty":7}},"x"]}}"#);
        let set = KeySet::from_jwks(set.as_bytes()).expect("one is good");
        assert_eq!((set.len(), set.skipped().len()), (1, 3));
    }

    #[test]
    fn errors_say_why_a_key_set_is_unusable() {
        for (text, expected) in [
            ("", "not a JWKS: it is empty"),
            ("\n<html>", "not a JWKS: it is an HTML or XML page"),
            ("-----BEGIN CERTIFICATE-----", "not a JWKS: it is PEM; write it as jwks.pem_file"),
            (r#"{"keys":[],"keys":[]}"#, "not a JWKS: it is not JSON with each member once"),
            ("[]", "not a JWKS: it is JSON, but no object"),
            ("{}", "not a JWKS: it is an empty object, {}"),
            (r#"{"keys":{}}"#, "not a JWKS: its member `keys` is no list"),
            (
                r#"{"issuer":"https://i","jwks_uri":"https://i/jwks"}"#,
                "not a JWKS: it is an OIDC discovery document; its keys are at https://i/jwks, so write that as jwks.url",
            ),
            (
                r#"{"kty":"RSA","n":"AQ","e":"AQAB"}"#,
                "not a JWKS: it is a single key; a JWKS is an object with a list `keys`",
            ),
            (
                r#"{"f90fb1":"-----BEGIN CERTIFICATE-----\nMIID","2c2748":"-----BEGIN CERTIFICATE-----\nMIID"}"#,
                "not a JWKS: it maps key ids to certificates in PEM; write the URL of the provider's JWKS as jwks.url",
            ),
            (
                r#"{"message":"no Route matched","request_id":"7"}"#,
                "not a JWKS: it is an object without a list `keys`; it has message, request_id",
            ),
            (r#"{"keys":[]}"#, "no usable key: the list is empty"),
        ] {
            assert_eq!(KeySet::from_jwks(text.as_bytes()).expect_err(text).to_string(), expected, "{text}");
        }
    }

    #[test]
    fn a_token_without_kid_is_tried_with_at_most_eight_fitting_keys() {
        let n = b64(&[0xff; 256]);
        let one = format!(r#"{{"kty":"RSA","n":"{n}","e":"AQAB","kid":"a"}}"#);
        let two = one.replace("\"a\"", "\"b\"");
        let set = KeySet::from_jwks(format!(r#"{{"keys":[{one}]}}"#).as_bytes()).expect("set");
        assert!(matches!(set.candidates(Algorithm::RS256, None), Candidates::Keys(_)));
        assert!(matches!(set.candidates(Algorithm::ES256, None), Candidates::Unknown));
        assert!(matches!(set.candidates(Algorithm::RS256, Some("z")), Candidates::Unknown));
        let set = KeySet::from_jwks(format!(r#"{{"keys":[{one},{two}]}}"#).as_bytes()).expect("set");
        assert!(matches!(set.candidates(Algorithm::RS256, None), Candidates::Keys(keys) if keys.len() == 2));
        let nine = [one.as_str(); 9].join(",");
        let set_of_nine = KeySet::from_jwks(format!(r#"{{"keys":[{nine}]}}"#).as_bytes()).expect("set");
        assert!(matches!(set_of_nine.candidates(Algorithm::RS256, None), Candidates::Keys(keys) if keys.len() == 8));
        assert!(matches!(set.candidates(Algorithm::RS256, Some("b")), Candidates::Keys(keys) if keys.len() == 1));
    }
}
