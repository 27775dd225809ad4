//! Tests with Project Wycheproof's published vectors for every supported algorithm family, through the proxy's own
//! parser of a JWKS: valid signatures verify, and invalid ones do not, whatever their fault.

use serde_json::json;
use wycheproof::{TestResult, ecdsa, eddsa, rsa_pkcs1_verify, rsa_pss_verify};

use super::*;

struct Counts {
    valid: usize,
    invalid: usize,
    keys_refused: usize,
}

/// Verifies one vector with the call of the verifier.
fn verify(
    counts: &mut Counts,
    jwk: &Value,
    algorithm: Algorithm,
    message: &[u8],
    signature: &[u8],
    expected: TestResult,
) {
    let Ok(set) = KeySet::from_jwks(json!({"keys": [jwk]}).to_string().as_bytes()) else {
        // A key that is not accepted verifies nothing.
        counts.keys_refused += 1;
        return;
    };
    let Candidates::Keys(keys) = set.candidates(algorithm, None) else { panic!("one key fits: {jwk}") };
    let signature = URL_SAFE_NO_PAD.encode(signature);
    let verified =
        keys.iter().any(|(key, _)| jsonwebtoken::crypto::verify(&signature, message, key, algorithm).unwrap_or(false));
    match expected {
        TestResult::Valid => {
            assert!(verified, "{algorithm:?} {signature}");
            counts.valid += 1;
        }
        TestResult::Invalid => {
            assert!(!verified, "{algorithm:?} {signature}");
            counts.invalid += 1;
        }
        // For legacy forms that some implementations accept, either verdict is right.
        TestResult::Acceptable => {}
    }
}

fn b64(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn trimmed(bytes: &[u8]) -> &[u8] {
    let zeros = bytes.iter().take_while(|byte| **byte == 0).count();
    &bytes[zeros..]
}

#[test]
fn published_vectors_verify_or_do_not_as_they_should() {
    // The provider is installed as at the program's start.
    let _ = jsonwebtoken::crypto::aws_lc::DEFAULT_PROVIDER.install_default();
    let mut counts = Counts { valid: 0, invalid: 0, keys_refused: 0 };
    for (name, algorithm, curve) in [
        (ecdsa::TestName::EcdsaSecp256r1Sha256P1363, Algorithm::ES256, "P-256"),
        (ecdsa::TestName::EcdsaSecp384r1Sha384P1363, Algorithm::ES384, "P-384"),
    ] {
        for group in ecdsa::TestSet::load(name).expect("vectors").test_groups {
            let point = &group.key.key[1..];
            let (x, y) = point.split_at(point.len() / 2);
            let jwk = json!({"kty": "EC", "crv": curve, "x": b64(x), "y": b64(y)});
            for test in group.tests {
                verify(&mut counts, &jwk, algorithm, &test.msg, &test.sig, test.result);
            }
        }
    }
    for group in eddsa::TestSet::load(eddsa::TestName::Ed25519).expect("vectors").test_groups {
        let jwk = json!({"kty": "OKP", "crv": "Ed25519", "x": b64(&group.key.pk)});
        for test in group.tests {
            verify(&mut counts, &jwk, Algorithm::EdDSA, &test.msg, &test.sig, test.result);
        }
    }
    let rsa = |n: &[u8], e: &[u8]| json!({"kty": "RSA", "n": b64(trimmed(n)), "e": b64(trimmed(e))});
    for (name, algorithm) in [
        (rsa_pkcs1_verify::TestName::Rsa2048Sha256, Algorithm::RS256),
        (rsa_pkcs1_verify::TestName::Rsa3072Sha384, Algorithm::RS384),
        (rsa_pkcs1_verify::TestName::Rsa4096Sha512, Algorithm::RS512),
    ] {
        for group in rsa_pkcs1_verify::TestSet::load(name).expect("vectors").test_groups {
            let jwk = rsa(&group.key.n, &group.key.e);
            for test in group.tests {
                verify(&mut counts, &jwk, algorithm, &test.msg, &test.sig, test.result);
            }
        }
    }
    for (name, algorithm) in [
        (rsa_pss_verify::TestName::RsaPss2048Sha256Mgf1SaltLen32, Algorithm::PS256),
        (rsa_pss_verify::TestName::RsaPss2048Sha384Mgf1SaltLen48, Algorithm::PS384),
        (rsa_pss_verify::TestName::RsaPss4096Sha512Mgf1SaltLen64, Algorithm::PS512),
    ] {
        for group in rsa_pss_verify::TestSet::load(name).expect("vectors").test_groups {
            let jwk = rsa(&group.key.n, &group.key.e);
            for test in group.tests {
                verify(&mut counts, &jwk, algorithm, &test.msg, &test.sig, test.result);
            }
        }
    }
    assert!(counts.valid > 500 && counts.invalid > 1_000, "{} valid, {} invalid", counts.valid, counts.invalid);
    assert_eq!(counts.keys_refused, 0);
}
