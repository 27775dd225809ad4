//! Reads a public key from a PEM block (RFC 7468): a `SubjectPublicKeyInfo`, a certificate, or an RSA key of PKCS #1.
//!
//! Of a certificate only the key is used. Its dates, names and issuer are not looked at: whoever configured it trusts the
//! key.

use aws_lc_rs::encoding::{AsDer as _, PublicKeyX509Der};
use aws_lc_rs::rsa::{PublicKey as RsaKey, PublicKeyComponents};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P384_SHA384_FIXED, ED25519, ParsedPublicKey, VerificationAlgorithm,
};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jsonwebtoken::DecodingKey;

use super::{KeyType, check_ed25519, check_rsa};
use crate::der::{CONTEXT_0, Elements, INTEGER, SEQUENCE};

/// Parses the base64 of a block with this label. The error is the reason why there is no usable key.
pub(super) fn public_key(label: &str, base64: &str) -> Result<(KeyType, DecodingKey), &'static str> {
    let base64: String = base64.split_ascii_whitespace().collect();
    let der = STANDARD.decode(base64).map_err(|_| "not base64")?;
    match label {
        "PUBLIC KEY" => of_info(&der),
        "RSA PUBLIC KEY" => of_rsa(&der),
        "CERTIFICATE" => of_info(certificate_key(&der).ok_or("no certificate in DER")?),
        _ => Err("neither a public key nor a certificate"),
    }
}

/// Returns the `SubjectPublicKeyInfo` of a certificate (RFC 5280 section 4.1).
fn certificate_key(der: &[u8]) -> Option<&[u8]> {
    let mut fields = Elements::of(der).take(SEQUENCE)?.elements().take(SEQUENCE)?.elements();
    // Version 1 is not written.
    let _version = fields.take(CONTEXT_0);
    let _serial = fields.take(INTEGER)?;
    let [_signature_algorithm, _issuer, _validity, _subject] = [(); 4].map(|()| fields.take(SEQUENCE));
    fields.take(SEQUENCE).map(|info| info.whole)
}

fn of_info(info: &[u8]) -> Result<(KeyType, DecodingKey), &'static str> {
    let mut document = Elements::of(info);
    if document.take(SEQUENCE).is_none() || !document.is_empty() {
        return Err("no public key in DER");
    }
    if let Some(point) = point::<65>(&ECDSA_P256_SHA256_FIXED, info) {
        return Ok((KeyType::P256, DecodingKey::from_ec_der(&point)));
    }
    if let Some(point) = point::<97>(&ECDSA_P384_SHA384_FIXED, info) {
        return Ok((KeyType::P384, DecodingKey::from_ec_der(&point)));
    }
    if let Some(point) = point::<32>(&ED25519, info) {
        check_ed25519(&point)?;
        return Ok((KeyType::Ed25519, DecodingKey::from_ed_der(&point)));
    }
    of_rsa(info)
}

/// Returns the point of a key of this algorithm, which is the end of its encoding.
fn point<const LENGTH: usize>(algorithm: &'static dyn VerificationAlgorithm, info: &[u8]) -> Option<[u8; LENGTH]> {
    // Encoded again: a point may be compressed in the key that was read.
    let encoded: PublicKeyX509Der<'_> = ParsedPublicKey::new(algorithm, info).ok()?.as_der().ok()?;
    encoded.as_ref().last_chunk().copied()
}

/// Parses an RSA key, also of a `SubjectPublicKeyInfo`.
fn of_rsa(der: &[u8]) -> Result<(KeyType, DecodingKey), &'static str> {
    let key = RsaKey::from_der(der).map_err(|_| "key type or curve is not supported")?;
    let PublicKeyComponents { n, e } = PublicKeyComponents::<Vec<u8>>::from(&key);
    check_rsa(&n, &e)?;
    Ok((KeyType::Rsa, DecodingKey::from_rsa_raw_components(&n, &e)))
}
