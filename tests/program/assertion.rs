//! Tests of the signed assertion (docs/contract.md section 6): its claims, its audience, and that no client can send
//! one.

use jsonwebtoken::jwk::JwkSet;
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::Value;

use crate::support::backend::{Backend, Heard};
use crate::support::client::{bearer, get, request};
use crate::support::issuer::Issuer;
use crate::support::now;
use crate::support::proxy::{Proxy, TempFile, command};
use crate::support::socket::Socket;

/// A key of the program's own making, and its public half as it printed it.
fn key() -> (TempFile, JwkSet) {
    let file = TempFile::new("");
    std::fs::remove_file(&file.0).expect("removed");
    let output = command().args(["token", "assertion-key", "--new", file.path()]).output().expect("runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let mode = std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(&file.0).expect("there").permissions());
    assert_eq!(mode & 0o777, 0o600);
    let keys = serde_json::from_slice(&output.stdout).expect("a JWKS");
    (file, keys)
}

fn verified(heard: &Heard, header: &str, keys: &JwkSet, audience: &str) -> Value {
    let values = heard.all(header);
    assert_eq!(values.len(), 1, "{}", heard.head);
    let mut validation = Validation::new(Algorithm::ES256);
    validation.set_audience(&[audience]);
    validation.set_issuer(&["vestibule"]);
    let key = DecodingKey::from_jwk(&keys.keys[0]).expect("a key");
    let token = jsonwebtoken::decode::<Value>(values[0], &key, &validation).expect("verifies");
    assert_eq!(token.header.kid, keys.keys[0].common.key_id);
    token.claims
}

#[tokio::test]
async fn it_says_who_asks_what_of_whom_for_a_minute_and_clients_cannot_send_one() {
    let (issuer, backend, other) = (Issuer::start().await, Backend::start().await, Backend::start().await);
    let (file, keys) = key();
    let yaml = format!(
        "upstream: {}\nproviders: [{}]\nidentity: {{ assertion: {{ key_file: \"{}\", audience: notebook }} }}\nroutes: [{{ path: /open, auth: none }}, {{ path: /other/**, upstream: {} }}]\n",
        backend.url(),
        issuer.provider(),
        file.path(),
        other.url()
    );
    let proxy = Proxy::start(&yaml).await;
    let credential = bearer(&issuer.token("alice"));
    let forged = "X_Vestibule-Assertion: forged";
    let mut ids = std::collections::HashSet::new();
    for method in ["GET", "POST"] {
        let fields = [credential.as_str(), forged, "X-Vestibule-Assertion: forged"];
        let (_, heard) =
            tokio::join!(request(proxy.address, method, "/cells/1?x=2", &fields, ""), backend.answer("ok"));
        let claims = verified(&heard, "x-vestibule-assertion", &keys, "notebook");
        assert!(!heard.has("x_vestibule-assertion"));
        assert_eq!((claims["sub"].as_str(), claims["method"].as_str()), (Some("alice"), Some(method)));
        assert_eq!(claims["path"], "/cells/1");
        let (issued, ends) = (claims["iat"].as_u64().expect("iat"), claims["exp"].as_u64().expect("exp"));
        assert_eq!(ends - issued, 60);
        assert!(now() - issued < 30);
        assert!(ids.insert(claims["jti"].as_str().expect("jti").to_owned()), "used twice");
    }
    // Another upstream is another audience.
    let fields = [credential.as_str()];
    let (_, heard) = tokio::join!(get(proxy.address, "/other/x", &fields), other.answer("ok"));
    assert_eq!(verified(&heard, "x-vestibule-assertion", &keys, &other.url())["path"], "/other/x");
    // On a public route there is no user.
    let fields = [forged, "X-Vestibule-Assertion: x"];
    let (_, heard) = tokio::join!(get(proxy.address, "/open", &fields), backend.answer("ok"));
    assert!(!heard.head.to_ascii_lowercase().contains("assertion"), "{}", heard.head);
    // A socket's upgrade too.
    let mut client = Socket::open(proxy.address, "/ws", &[]).await;
    let token = issuer.token("alice");
    let (_, (heard, _upstream)) = tokio::join!(client.authenticate(&token), backend.websocket());
    let claims = verified(&heard, "x-vestibule-assertion", &keys, "notebook");
    assert_eq!((claims["sub"].as_str(), claims["path"].as_str()), (Some("alice"), Some("/ws")));
}

#[tokio::test]
async fn a_key_of_the_start_s_own_is_shown_on_the_admin_listener() {
    let (issuer, backend) = (Issuer::start().await, Backend::start().await);
    let yaml = format!(
        "admin: {{ listen: \"127.0.0.1:0\" }}\nupstream: {}\nproviders: [{}]\nidentity: {{ assertion: {{ header: X-Word }} }}\n",
        backend.url(),
        issuer.provider()
    );
    let proxy = Proxy::start(&yaml).await;
    let admin = proxy.admin();
    let keys: JwkSet = serde_json::from_str(&get(admin, "/assertion-keys.json", &[]).await.body).expect("a JWKS");
    let credential = bearer(&issuer.token("alice"));
    let fields = [credential.as_str()];
    let (_, heard) = tokio::join!(get(proxy.address, "/x", &fields), backend.answer("ok"));
    assert_eq!(verified(&heard, "x-word", &keys, &backend.url())["sub"], "alice");
    assert!(!get(admin, "/assertion-keys.json", &[]).await.body.contains("\"d\""), "a private half");
}

#[test]
fn the_public_key_is_printed_for_whoever_pins_it() {
    let (file, keys) = key();
    // What is there is never overwritten.
    let again = command().args(["token", "assertion-key", "--new", file.path()]).output().expect("runs");
    assert_eq!(again.status.code(), Some(1));
    let yaml = |assertion: &str| {
        TempFile::new(&format!(
            "upstream: http://127.0.0.1:1\nproviders: [{{ preset: shared-secret, secret: 0123456789abcdef0123456789abcdeX }}]\n{assertion}"
        ))
    };
    let run = |file: &TempFile| {
        let output = command().args(["token", "assertion-key", "--config", file.path()]).output().expect("runs");
        (output.status.code(), output.stdout, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let kept = yaml(&format!("identity: {{ assertion: {{ key_file: \"{}\" }} }}\n", file.path()));
    let (code, printed, _) = run(&kept);
    assert_eq!(code, Some(0));
    assert_eq!(serde_json::from_slice::<JwkSet>(&printed).expect("a JWKS"), keys);
    let (code, _, said) = run(&yaml("identity: { assertion: {} }\n"));
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("/assertion-keys.json of the admin listener"), "{said}");
    let (_, _, said) = run(&yaml(&format!("identity: {{ assertion: {{ key_file: \"{}\" }} }}\n", kept.path())));
    assert!(
        said.contains("holds no P-256 private key in PKCS#8 PEM. Make one: vestibule token assertion-key --new"),
        "{said}"
    );
    let (_, _, said) = run(&yaml("identity: { headers: { X-Who: sub }, assertion: { header: x_who } }\n"));
    assert!(said.contains("carries a claim already"), "{said}");
}
