//! Tokens that must not get in: each with the verdict it gets. The good ones beside them do, so that a proxy which
//! refuses everything does not pass.

use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey};
use serde_json::{Value, json};

use crate::support::backend::Backend;
use crate::support::client::{bearer, get};
use crate::support::issuer::{AUDIENCE, Issuer, Key, RSA};
use crate::support::now;
use crate::support::proxy::Proxy;

const SECRET: &str = "the-shared-secret-of-another-provider-0123456789";

struct Attacks {
    rows: Vec<(String, String, &'static str)>,
}

impl Attacks {
    fn add(&mut self, name: impl Into<String>, token: impl Into<String>, expected: &'static str) {
        self.rows.push((name.into(), token.into(), expected));
    }
}

fn b64(bytes: impl AsRef<[u8]>) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn hmac(algorithm: &str, kid: &str, claims: &Value, secret: &[u8]) -> String {
    let header = json!({"alg": algorithm, "kid": kid, "typ": "JWT"});
    let signed = format!("{}.{}", b64(header.to_string()), b64(claims.to_string()));
    let algorithm = match algorithm {
        "HS384" => Algorithm::HS384,
        "HS512" => Algorithm::HS512,
        _ => Algorithm::HS256,
    };
    let signature = jsonwebtoken::crypto::sign(signed.as_bytes(), &EncodingKey::from_secret(secret), algorithm);
    format!("{signed}.{}", signature.expect("signs"))
}

/// With claims that differ; `null` stays null.
fn with(claims: &Value, differ: Value) -> Value {
    let mut all = claims.clone();
    for (name, value) in differ.as_object().expect("object") {
        all[name] = value.clone();
    }
    all
}

fn without(claims: &Value, name: &str) -> Value {
    let mut all = claims.clone();
    all.as_object_mut().expect("object").remove(name);
    all
}

fn algorithms(attacks: &mut Attacks, claims: &Value, stranger: &Key) {
    let payload = b64(claims.to_string());
    for alg in [
        json!("none"),
        json!("None"),
        json!("NONE"),
        json!("nOnE"),
        json!(""),
        json!(null),
        json!(0),
        json!(["RS256"]),
        json!({"a": 1}),
    ] {
        let header = b64(json!({"alg": alg, "kid": "rsa-1"}).to_string());
        attacks.add(format!("alg {alg}, no signature"), format!("{header}.{payload}."), "invalid_token");
        attacks.add(format!("alg {alg}, some signature"), format!("{header}.{payload}.c2ln"), "invalid_token");
    }
    attacks.add("no alg", format!("{}.{payload}.c2ln", b64(r#"{"kid":"rsa-1"}"#)), "invalid_token");
    for alg in ["RS1", "ES256K", "ES512", "HS1", "dir", "RSA1_5", "PBES2-HS256+A128KW", "ML-DSA-44", "rs256", " RS256"]
    {
        let header = b64(json!({"alg": alg, "kid": "rsa-1"}).to_string());
        attacks.add(format!("alg {alg:?}"), format!("{header}.{payload}.c2ln"), "invalid_token");
    }
    // The public key as an HMAC secret, in each form a library has taken it in.
    let modulus = URL_SAFE_NO_PAD.decode(RSA.jwk["n"].as_str().expect("n")).expect("base64url");
    let secrets: [(&str, Vec<u8>); 6] = [
        ("PEM", RSA.pem.clone().into_bytes()),
        ("PEM without its last newline", RSA.pem.trim_end().as_bytes().to_vec()),
        ("JWK", RSA.jwk.to_string().into_bytes()),
        ("modulus", modulus),
        ("modulus as text", RSA.jwk["n"].as_str().expect("n").as_bytes().to_vec()),
        ("nothing", b"\0".to_vec()),
    ];
    for algorithm in ["HS256", "HS384", "HS512"] {
        for (name, secret) in &secrets {
            attacks.add(
                format!("{algorithm} with the {name}"),
                hmac(algorithm, "rsa-1", claims, secret),
                "invalid_token",
            );
        }
    }
    attacks.add(
        "HS256 with another provider's secret",
        hmac("HS256", "rsa-1", claims, SECRET.as_bytes()),
        "invalid_token",
    );
    // Another algorithm than the one that signed.
    for (name, token) in [("RS256 as PS256", RSA.sign(claims)), ("ES256 as RS256", stranger.sign(claims))] {
        let (_, rest) = token.split_once('.').expect("parts");
        let alg = if name.ends_with("PS256") { "PS256" } else { "RS256" };
        attacks.add(name, format!("{}.{rest}", b64(json!({"alg": alg, "kid": "rsa-1"}).to_string())), "invalid_token");
    }
}

fn headers(attacks: &mut Attacks, claims: &Value, stranger: &Key, issuer: &str) {
    let own = &stranger.jwk;
    for (name, more) in [
        ("its own key in jwk", json!({"jwk": own})),
        ("its own key in jwk, our kid", json!({"jwk": own, "kid": "rsa-1"})),
        ("jku elsewhere", json!({"jku": "http://127.0.0.1:1/jwks"})),
        ("jku on the issuer", json!({"jku": format!("{issuer}/jwks")})),
        ("x5u elsewhere", json!({"x5u": "http://127.0.0.1:1/x.pem"})),
        ("x5c", json!({"x5c": ["MIIB"]})),
        ("x5t", json!({"x5t": "AAAA"})),
        ("kid of ours", json!({"kid": "rsa-1"})),
        ("kid that is a path", json!({"kid": "../../../../dev/null"})),
        ("kid that is SQL", json!({"kid": "' OR '1'='1"})),
        ("kid that is a command", json!({"kid": "$(id)"})),
        ("kid with a zero", json!({"kid": "rsa-1\u{0}"})),
        ("kid with a line end", json!({"kid": "rsa-1\n"})),
        ("kid that is a URL", json!({"kid": "http://127.0.0.1:1/jwks"})),
        ("kid of 300 bytes", json!({"kid": "k".repeat(300)})),
        ("kid of another type", json!({"kid": 1})),
        ("kid null", json!({"kid": null})),
    ] {
        attacks.add(format!("signed by a stranger: {name}"), stranger.sign_with(&more, claims), "invalid_token");
    }
    for (name, more) in [
        ("crit", json!({"crit": ["exp"]})),
        ("crit, empty", json!({"crit": []})),
        ("crit unknown", json!({"crit": ["x"], "x": true})),
        ("b64 false", json!({"b64": false, "crit": ["b64"]})),
        ("b64 false alone", json!({"b64": false})),
        ("typ of a proof", json!({"typ": "dpop+jwt"})),
        ("typ of a logout token", json!({"typ": "logout+jwt"})),
        ("typ of another type", json!({"typ": 1})),
        ("cat of another type", json!({"cat": {}})),
        ("kid of a key we do not have", json!({"kid": "rsa-2"})),
        ("kid in another case", json!({"kid": "RSA-1"})),
    ] {
        attacks.add(format!("signed by us: {name}"), RSA.sign_with(&more, claims), "invalid_token");
    }
    let body = claims.to_string();
    let inner = body.trim_start_matches('{').trim_end_matches('}');
    for (name, header, payload) in [
        ("alg twice", r#"{"alg":"RS256","alg":"none","kid":"rsa-1"}"#, body.clone()),
        ("kid twice", r#"{"alg":"RS256","kid":"rsa-1","kid":"rsa-1"}"#, body.clone()),
        ("iss twice", "", format!("{{\"iss\":\"https://evil.example\",{inner}}}")),
        ("exp twice", "", format!("{{\"exp\":99999999999,{inner}}}")),
        ("sub twice", "", format!("{{{inner},\"sub\":\"admin\"}}")),
        ("sub twice by an escape", "", format!("{{{inner},\"s\\u0075b\":\"admin\"}}")),
        ("a nested member twice", "", format!("{{{inner},\"x\":{{\"a\":1,\"a\":2}}}}")),
        ("two objects", "", format!("{body}{body}")),
        ("bytes behind", "", format!("{body}x")),
        ("a byte order mark", "", format!("\u{feff}{body}")),
        ("a comment", "", format!("/**/{body}")),
        ("a trailing comma", "", format!("{{{inner},}}")),
        ("an array", "", format!("[{body}]")),
        ("a string", "", json!(body).to_string()),
        ("a number", "", "1".to_owned()),
        ("null", "", "null".to_owned()),
        ("nothing in it", "", "{}".to_owned()),
        ("NaN", "", format!("{{{inner},\"x\":NaN}}")),
        ("a number out of range", "", format!("{{{inner},\"x\":1e999}}")),
        ("forty levels", "", format!("{{{inner},\"x\":{}{}}}", "[".repeat(40), "]".repeat(40))),
    ] {
        let header = if header.is_empty() { r#"{"alg":"RS256","kid":"rsa-1"}"# } else { header };
        attacks.add(format!("signed by us: {name}"), RSA.sign_raw(header, payload.as_bytes()), "invalid_token");
    }
    let latin = RSA.sign_raw(r#"{"alg":"RS256","kid":"rsa-1"}"#, b"{\"sub\":\"\xe9\"}");
    attacks.add("signed by us: not UTF-8", latin, "invalid_token");
}

fn claims_of(attacks: &mut Attacks, claims: &Value, issuer: &str) {
    let sign = |differ: Value| RSA.sign(&with(claims, differ));
    for (name, exp, expected) in [
        ("long ago", json!(now() - 600), "token_expired"),
        ("at the edge", json!(now() - 6), "token_expired"),
        ("zero", json!(0), "token_expired"),
        ("text", json!("99999999999"), "invalid_token"),
        ("a fraction of long ago", json!(1_000_000_000.5), "token_expired"),
        ("a negative fraction", json!(-0.5), "invalid_token"),
        ("negative", json!(-1), "invalid_token"),
        ("null", json!(null), "invalid_token"),
        ("true", json!(true), "invalid_token"),
        ("a list", json!([9_999_999_999_u64]), "invalid_token"),
    ] {
        attacks.add(format!("exp {name}"), sign(json!({ "exp": exp })), expected);
    }
    attacks.add("no exp", RSA.sign(&without(claims, "exp")), "invalid_token");
    for (name, differ) in [
        ("nbf ahead", json!({"nbf": now() + 60})),
        ("nbf as text", json!({"nbf": "0"})),
        ("nbf null", json!({"nbf": null})),
        ("iat ahead", json!({"iat": now() + 60})),
        ("iat as text", json!({"iat": "0"})),
        ("iat a list", json!({"iat": []})),
        ("aud of another", json!({"aud": "other-api"})),
        ("aud in another case", json!({"aud": AUDIENCE.to_uppercase()})),
        ("aud that begins like ours", json!({"aud": format!("{AUDIENCE}-2")})),
        ("aud with a space", json!({"aud": format!("{AUDIENCE} ")})),
        ("aud of two in one text", json!({"aud": format!("{AUDIENCE},other")})),
        ("aud empty", json!({"aud": ""})),
        ("aud an empty list", json!({"aud": []})),
        ("aud a list with a number", json!({"aud": [AUDIENCE, 1]})),
        ("aud a list in a list", json!({"aud": [[AUDIENCE]]})),
        ("aud an object", json!({"aud": {AUDIENCE: true}})),
        ("aud null", json!({"aud": null})),
        ("aud true", json!({"aud": true})),
        ("iss with a slash", json!({"iss": format!("{issuer}/")})),
        ("iss in another case", json!({"iss": issuer.to_uppercase()})),
        ("iss that begins like ours", json!({"iss": format!("{issuer}.evil.example")})),
        ("iss with user info", json!({"iss": issuer.replace("http://", "http://x@")})),
        ("iss a list with ours", json!({"iss": [issuer]})),
        ("iss null", json!({"iss": null})),
        ("iss a number", json!({"iss": 7})),
        ("iss of the provider with the secret", json!({"iss": "https://sessions.example"})),
        ("a logout token", json!({"events": {"http://schemas.openid.net/event/backchannel-logout": {}}})),
        ("an ID token by token_use", json!({"token_use": "id"})),
        ("an ID token by typ", json!({"typ": "ID"})),
        ("an ID token by at_hash", json!({"at_hash": "x"})),
        ("an ID token by c_hash", json!({"c_hash": "x"})),
        ("a refresh token by typ", json!({"typ": "Refresh"})),
        ("a refresh token by token_type", json!({"token_type": "refresh"})),
        ("a refresh token by token_use", json!({"token_use": "refresh"})),
        ("sub a fraction", json!({"sub": 7.5})),
        ("sub a number beyond 64 bits", json!({"sub": 1e30})),
        ("sub a list", json!({"sub": ["alice"]})),
        ("sub true", json!({"sub": true})),
        ("sub with a line end", json!({"sub": "alice\r\nX-Role: admin"})),
        ("sub with a zero", json!({"sub": "alice\u{0}"})),
        ("sub with a space", json!({"sub": "alice "})),
        ("sub with a tab", json!({"sub": "alice\t"})),
        ("sub with DEL", json!({"sub": "alice\u{7f}"})),
        ("sub in other letters", json!({"sub": "аlice"})),
        ("sub of 257 bytes", json!({"sub": "a".repeat(257)})),
    ] {
        attacks.add(name, sign(differ), "invalid_token");
    }
    attacks.add("no aud", RSA.sign(&without(claims, "aud")), "invalid_token");
    attacks.add("no iss", RSA.sign(&without(claims, "iss")), "invalid_token");
    attacks.add("no sub", RSA.sign(&without(claims, "sub")), "missing_user");
    attacks.add("sub null", sign(json!({"sub": null})), "missing_user");
    attacks.add("sub empty", sign(json!({"sub": ""})), "missing_user");
}

fn signatures(attacks: &mut Attacks, claims: &Value, keys: &[Key]) {
    for key in keys {
        let token = key.sign(claims);
        let (signed, signature) = token.rsplit_once('.').expect("parts");
        let bytes = URL_SAFE_NO_PAD.decode(signature).expect("base64url");
        let half = bytes.len() / 2;
        let flipped = |at: usize| {
            let mut changed = bytes.clone();
            changed[at] ^= 1;
            changed
        };
        let name = format!("{:?}", key.algorithm);
        let forged: [(&str, Vec<u8>); 11] = [
            ("empty", Vec::new()),
            ("a byte short", bytes[..bytes.len() - 1].to_vec()),
            ("half of it", bytes[..half].to_vec()),
            ("a byte more", [&bytes[..], &[0]].concat()),
            ("a zero before it", [&[0], &bytes[..]].concat()),
            ("first bit flipped", flipped(0)),
            ("last bit flipped", flipped(bytes.len() - 1)),
            ("all zeros", vec![0; bytes.len()]),
            ("all ones", vec![0xff; bytes.len()]),
            ("its halves exchanged", [&bytes[half..], &bytes[..half]].concat()),
            ("twice", [&bytes[..], &bytes[..]].concat()),
        ];
        for (what, signature) in forged {
            attacks.add(format!("{name} signature: {what}"), format!("{signed}.{}", b64(signature)), "invalid_token");
        }
        let other = key.sign(&with(claims, json!({"sub": "bob"})));
        let (_, others) = other.rsplit_once('.').expect("parts");
        attacks.add(format!("{name} signature of another token"), format!("{signed}.{others}"), "invalid_token");
        if key.algorithm == Algorithm::ES256 {
            // ASN.1, which JWS does not use (CVE-2022-21449 and others took odd ones).
            let integer = |half: &[u8]| {
                let mut value = half.to_vec();
                if value[0] & 0x80 != 0 {
                    value.insert(0, 0);
                }
                [&[2, value.len() as u8], &value[..]].concat()
            };
            let body = [integer(&bytes[..half]), integer(&bytes[half..])].concat();
            let der = [&[0x30, body.len() as u8], &body[..]].concat();
            attacks.add("ES256 signature in DER", format!("{signed}.{}", b64(der)), "invalid_token");
            let zero_r = [&vec![0; half][..], &bytes[half..]].concat();
            attacks.add("ES256 signature with r = 0", format!("{signed}.{}", b64(zero_r)), "invalid_token");
            let zero_s = [&bytes[..half], &vec![0; half][..]].concat();
            attacks.add("ES256 signature with s = 0", format!("{signed}.{}", b64(zero_s)), "invalid_token");
        }
    }
}

fn shapes(attacks: &mut Attacks, good: &str) {
    let parts: Vec<&str> = good.split('.').collect();
    let [header, payload, signature] = parts.as_slice() else { panic!("three parts") };
    let padded = |part: &str| URL_SAFE.encode(URL_SAFE_NO_PAD.decode(part).expect("base64url"));
    let standard = |part: &str| STANDARD.encode(URL_SAFE_NO_PAD.decode(part).expect("base64url"));
    // The unused bits of the last character, set: another text for the same bytes.
    let trailing = |part: &str| {
        let mut text = part.to_owned();
        let alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
        let last = text.pop().and_then(|last| alphabet.find(last)).expect("a character");
        text.push(alphabet.as_bytes()[last | 1] as char);
        text
    };
    for (name, token) in [
        ("one part", (*header).to_owned()),
        ("two parts", format!("{header}.{payload}")),
        ("no signature", format!("{header}.{payload}.")),
        ("no header", format!(".{payload}.{signature}")),
        ("no payload", format!("{header}..{signature}")),
        ("four parts", format!("{good}.x")),
        ("five parts", format!("{good}.x.y")),
        ("dots", ".".repeat(5_000)),
        ("a dot before", format!(".{good}")),
        ("an opaque token", "0123456789abcdef0123456789abcdef".to_owned()),
        ("padded signature", format!("{header}.{payload}.{}", padded(signature))),
        ("signature in the standard alphabet", format!("{header}.{payload}.{}", standard(signature))),
        ("signature with its unused bits set", format!("{header}.{payload}.{}", trailing(signature))),
        ("signature in another case", format!("{header}.{payload}.{}", signature.to_lowercase())),
        ("parts exchanged", format!("{payload}.{header}.{signature}")),
    ] {
        attacks.add(name, token, "invalid_token");
    }
    for (name, token) in [
        ("padded header", format!("{header}=.{payload}.{signature}")),
        ("a space in it", good.replacen('.', ". ", 1)),
        ("Bearer twice", format!("Bearer {good}")),
        ("two tokens", format!("{good}, {good}")),
        ("in quotes", format!("\"{good}\"")),
        ("JSON serialization", format!("{{\"payload\":\"{payload}\"}}")),
    ] {
        attacks.add(name, token, "invalid_request");
    }
    attacks.add("longer than limits.token_bytes", format!("{good}{}", "A".repeat(17_000)), "invalid_token");
}

#[tokio::test]
async fn no_forged_token_gets_in() {
    let (mut backend, issuer) = (Backend::start().await, Issuer::with(RSA.clone()).await);
    let (ec, ed) = (Key::ec("ec-1", Algorithm::ES256), Key::ed("ed-1"));
    issuer.set_keys(vec![RSA.jwk.clone(), ec.jwk.clone(), ed.jwk.clone()]);
    let other = Issuer::with(Key::ec("other-1", Algorithm::ES256)).await;
    let proxy = Proxy::start(&format!(
        "upstream: {}\nlimits: {{ failed_tokens_per_minute: null }}\nshared_user_ids: true\nproviders:\n  - {}\n  - {}\n  - {{ preset: shared-secret, secret: {SECRET}, issuer: \"https://sessions.example\", audience: {AUDIENCE} }}\n",
        backend.url(),
        issuer.provider().replace("preset: oidc", "name: main, preset: oidc"),
        other.provider().replace("preset: oidc", "name: other, preset: oidc"),
    ))
    .await;
    // Signing keeps this thread busy for seconds, and the issuer runs on it: a key request that is under way would time out.
    proxy.ready().await;
    let claims = issuer.claims("alice");
    let good = RSA.sign(&claims);
    let stranger = Key::ec("stranger", Algorithm::ES256);

    let mut attacks = Attacks { rows: Vec::new() };
    algorithms(&mut attacks, &claims, &stranger);
    headers(&mut attacks, &claims, &stranger, &issuer.url);
    claims_of(&mut attacks, &claims, &issuer.url);
    signatures(&mut attacks, &claims, &[RSA.clone(), ec.clone(), ed.clone()]);
    shapes(&mut attacks, &good);
    // Each issuer's keys verify its own tokens only.
    attacks.add("another provider's key", other.key.sign(&claims), "invalid_token");
    attacks.add(
        "another provider's key, our kid",
        other.key.sign_with(&json!({"kid": "ec-1"}), &claims),
        "invalid_token",
    );
    attacks.add(
        "our key, another provider's issuer",
        RSA.sign(&with(&claims, json!({"iss": other.url}))),
        "invalid_token",
    );

    let mut wrong = Vec::new();
    for (name, token, expected) in &attacks.rows {
        let credential = bearer(token);
        let answer = get(proxy.address, "/", &[&credential]).await;
        println!("{:<60} expected {expected:<16} found {}", name, answer.code());
        if (answer.status, answer.code().as_str()) != (401, *expected) {
            wrong.push(format!("{name}: {} {}", answer.status, answer.code()));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert!(attacks.rows.len() >= 150, "{}", attacks.rows.len());
    assert!(backend.is_untouched());
    // And the good ones do.
    let session = hmac("HS256", "x", &with(&claims, json!({"iss": "https://sessions.example"})), SECRET.as_bytes());
    for token in [good, ec.sign(&claims), ed.sign(&claims), other.token("alice"), session] {
        let credential = bearer(&token);
        let fields = [credential.as_str()];
        let (answer, heard) = tokio::join!(get(proxy.address, "/", &fields), backend.answer("ok"));
        assert_eq!((answer.status, heard.all("x-user-id")), (200, vec!["alice"]));
    }
}
