//! Any document as a key set: what is accepted of it, and which signatures it verifies.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::Algorithm;
use serde_json::Value;

use crate::auth::keys::{Candidates, KeySet};

/// The largest number of keys in a set.
const MAX_KEYS: usize = 100;

/// A token that was signed by a known key, and the members of its public key that decide about it.
struct Signed {
    algorithm: Algorithm,
    signed: &'static str,
    signature: &'static str,
    key: &'static [(&'static str, &'static str)],
}

/// The examples of RFC 7515 appendices A.2 and A.3 and of RFC 8037 appendix A.
const SIGNED: [Signed; 3] = [
    Signed {
        algorithm: Algorithm::RS256,
        signed: "eyJhbGciOiJSUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ",
        signature: "cC4hiUPoj9Eetdgtv3hF80EGrhuB__dzERat0XF9g2VtQgr9PJbu3XOiZj5RZmh7AAuHIm4Bh-0Qc_lF5YKt_O8W2Fp5jujGbds9uJdbF9CUAr7t1dnZcAcQjbKBYNX4BAynRFdiuB--f_nZLgrnbyTyWzO75vRK5h6xBArLIARNPvkSjtQBMHlb1L07Qe7K0GarZRmB_eSN9383LcOLn6_dO--xi12jzDwusC-eOkHWEsqtFZESc6BfI7noOPqvhJ1phCnvWh6IeYI2w9QOYEUipUTI8np6LbgGY9Fs98rqVt5AXLIhWkWywlVmtVrBp0igcN_IoypGlUPQGe77Rw",
        key: &[
            (
                "n",
                "ofgWCuLjybRlzo0tZWJjNiuSfb4p4fAkd_wWJcyQoTbji9k0l8W26mPddxHmfHQp-Vaw-4qPCJrcS2mJPMEzP1Pt0Bm4d4QlL-yRT-SFd2lZS-pCgNMsD1W_YpRPEwOWvG6b32690r2jZ47soMZo9wGzjb_7OMg0LOL-bSf63kpaSHSXndS5z5rexMdbBYUsLA9e-KXBdQOS-UTo7WTBEMa2R2CapHg665xsmtdVMTBQY4uDZlxvb3qCo5ZwKh9kG4LT6_I5IhlJH7aGhyxXFvUK-DWNmoudF8NAco9_h9iaGNj8q2ethFkMLs91kzk2PAcDTW9gb54h4FRWyuXpoQ",
            ),
            ("e", "AQAB"),
        ],
    },
    Signed {
        algorithm: Algorithm::ES256,
        signed: "eyJhbGciOiJFUzI1NiJ9.eyJpc3MiOiJqb2UiLA0KICJleHAiOjEzMDA4MTkzODAsDQogImh0dHA6Ly9leGFtcGxlLmNvbS9pc19yb290Ijp0cnVlfQ",
        signature: "DtEhU3ljbEg8L38VWAfUAqOyKAM6-Xx-F4GawxaepmXFCgfTjDxw5djxLa8ISlSApmWQxfKTUJqPP3-Kg6NU1Q",
        key: &[
            ("x", "f83OJ3D2xF1Bg8vub9tLe1gHMzV76e8Tus9uPHvRVEU"),
            ("y", "x_FEzRu9m36HLN_tue659LNpXW6pCyStikYjKIWI5a0"),
        ],
    },
    Signed {
        algorithm: Algorithm::EdDSA,
        signed: "eyJhbGciOiJFZERTQSJ9.RXhhbXBsZSBvZiBFZDI1NTE5IHNpZ25pbmc",
        signature: "hgyY0il_MGCjP0JzlnLWG1PPOt7-09PGcvMg3AIbQR6dWbhijcNR4ki4iylGjg5BhVsPt9g7sVvpAr_MuM0KAg",
        key: &[("x", "11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo")],
    },
];

/// Checks that no document makes a key of anything but a public key of a known type, and that a token verifies only
/// where the key that signed it is in the document.
pub fn jwks(data: &[u8]) {
    // An object with this name is something else to serde_json's own `Value`.
    if String::from_utf8_lossy(data).contains("$serde_json") {
        return;
    }
    let document: Option<Value> = serde_json::from_slice(data).ok();
    let entries = document.as_ref().and_then(|document| document.get("keys")).and_then(Value::as_array);
    let Ok(set) = KeySet::from_jwks(data) else { return };
    let entries = entries.expect("a set is made of a list of keys alone");
    assert!(entries.len() <= MAX_KEYS);
    assert_eq!(set.len() + set.skipped().len(), entries.len(), "a key is neither used nor skipped");
    let public = entries.iter().filter(|entry| {
        let type_of = |name: &str| entry.get(name).and_then(Value::as_str);
        matches!(type_of("kty"), Some("RSA" | "EC" | "OKP")) && type_of("use").is_none_or(|usage| usage == "sig")
    });
    assert!(set.len() <= public.count(), "a key that is not a public key for signatures is used");
    let ids: Vec<Option<&str>> =
        entries.iter().map(|entry| entry.get("kid").and_then(Value::as_str)).chain([None, Some("unknown")]).collect();
    for algorithm in [Algorithm::HS256, Algorithm::HS384, Algorithm::HS512] {
        for id in &ids {
            assert!(matches!(set.candidates(algorithm, *id), Candidates::Unknown), "a key verifies {algorithm:?}");
        }
    }
    for signed in &SIGNED {
        let is_there = entries.iter().any(|entry| signed.key.iter().all(|(name, value)| holds(entry, name, value)));
        for id in &ids {
            let Candidates::Keys(keys) = set.candidates(signed.algorithm, *id) else { continue };
            assert!(keys.len() <= 8, "{} keys are tried", keys.len());
            for (key, _) in keys {
                let text = signed.signed.as_bytes();
                let verifies = jsonwebtoken::crypto::verify(signed.signature, text, key, signed.algorithm);
                assert!(is_there || !verifies.unwrap_or(false), "verified by a key that did not sign");
            }
        }
    }
}

/// Returns whether a member of a key has a value, but for leading zeros.
fn holds(entry: &Value, name: &str, value: &str) -> bool {
    let decoded = |text: &str| URL_SAFE_NO_PAD.decode(text).ok();
    let stripped = |bytes: Vec<u8>| bytes.into_iter().skip_while(|byte| *byte == 0).collect::<Vec<u8>>();
    let found = entry.get(name).and_then(Value::as_str).and_then(decoded);
    found.map(stripped) == decoded(value).map(stripped)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_corpus_of_jwks_verifies_nothing_else() {
        crate::fuzz::run_corpus("jwks", super::jwks);
    }

    /// The target would notice nothing if its tokens did not verify.
    #[test]
    fn each_example_is_verified_by_its_own_key() {
        for (signed, rest) in
            SIGNED.iter().zip([r#""kty":"RSA""#, r#""kty":"EC","crv":"P-256""#, r#""kty":"OKP","crv":"Ed25519""#])
        {
            let members: Vec<String> =
                signed.key.iter().map(|(name, value)| format!(r#""{name}":"{value}""#)).collect();
            let document = format!(r#"{{"keys":[{{{rest},{}}}]}}"#, members.join(","));
            let set = KeySet::from_jwks(document.as_bytes()).expect("a key");
            let Candidates::Keys(keys) = set.candidates(signed.algorithm, None) else { panic!("no key") };
            let text = signed.signed.as_bytes();
            let verifies = jsonwebtoken::crypto::verify(signed.signature, text, keys[0].0, signed.algorithm);
            assert!(verifies.is_ok_and(|verifies| verifies), "{:?}", signed.algorithm);
        }
    }
}
