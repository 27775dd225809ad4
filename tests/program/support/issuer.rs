//! A real issuer: RSA, P-256, P-384 and Ed25519 keys, discovery and a JWKS over HTTP, and the faults that an issuer can
//! have.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock, Mutex};
use std::time::Duration;

use aws_lc_rs::encoding::AsDer as _;
use aws_lc_rs::rand::SystemRandom;
use aws_lc_rs::rsa::{KeyPair as RsaKeyPair, KeySize};
use aws_lc_rs::signature::{
    ECDSA_P256_SHA256_FIXED_SIGNING, ECDSA_P384_SHA384_FIXED_SIGNING, EcdsaKeyPair, Ed25519KeyPair, KeyPair as _,
};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use jsonwebtoken::{Algorithm, EncodingKey, Header};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use super::now;

pub const AUDIENCE: &str = "test-api";

/// A key pair, as JWK and as a signing key.
#[derive(Clone)]
pub struct Key {
    pub id: String,
    pub algorithm: Algorithm,
    pub jwk: Value,
    pub pem: String,
    signing: EncodingKey,
}

fn b64(bytes: &[u8]) -> String {
    URL_SAFE_NO_PAD.encode(bytes)
}

fn pem(der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    let lines: Vec<&str> = text.as_bytes().chunks(64).map(|line| std::str::from_utf8(line).expect("ascii")).collect();
    format!("-----BEGIN PUBLIC KEY-----\n{}\n-----END PUBLIC KEY-----\n", lines.join("\n"))
}

impl Key {
    pub fn rsa(id: &str) -> Self {
        let pair = RsaKeyPair::generate(KeySize::Rsa2048).expect("key");
        let pkcs8: aws_lc_rs::encoding::Pkcs8V1Der<'_> = pair.as_der().expect("pkcs8");
        let public = pair.public_key();
        let components: aws_lc_rs::rsa::PublicKeyComponents<Vec<u8>> = public.into();
        let spki: aws_lc_rs::encoding::PublicKeyX509Der<'_> = public.as_der().expect("spki");
        Self {
            id: id.to_owned(),
            algorithm: Algorithm::RS256,
            jwk: json!({"kty":"RSA","use":"sig","kid":id,"n":b64(&components.n),"e":b64(&components.e)}),
            pem: pem(spki.as_ref()),
            // PKCS #8 has the PKCS #1 key, which jsonwebtoken needs, after a prefix of 26 bytes.
            signing: EncodingKey::from_rsa_der(&pkcs8.as_ref()[26..]),
        }
    }

    pub fn ec(id: &str, algorithm: Algorithm) -> Self {
        let (signing, curve, length) = if algorithm == Algorithm::ES256 {
            (&ECDSA_P256_SHA256_FIXED_SIGNING, "P-256", 32)
        } else {
            (&ECDSA_P384_SHA384_FIXED_SIGNING, "P-384", 48)
        };
        let pkcs8 = EcdsaKeyPair::generate_pkcs8(signing, &SystemRandom::new()).expect("key");
        let pair = EcdsaKeyPair::from_pkcs8(signing, pkcs8.as_ref()).expect("pair");
        let point = pair.public_key().as_ref();
        let spki: aws_lc_rs::encoding::PublicKeyX509Der<'_> = pair.public_key().as_der().expect("spki");
        Self {
            id: id.to_owned(),
            algorithm,
            jwk: json!({"kty":"EC","crv":curve,"kid":id,"x":b64(&point[1..=length]),"y":b64(&point[1 + length..])}),
            pem: pem(spki.as_ref()),
            signing: EncodingKey::from_ec_der(pkcs8.as_ref()),
        }
    }

    pub fn ed(id: &str) -> Self {
        let pkcs8 = Ed25519KeyPair::generate_pkcs8(&SystemRandom::new()).expect("key");
        let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).expect("pair");
        let spki: aws_lc_rs::encoding::PublicKeyX509Der<'_> = pair.public_key().as_der().expect("spki");
        Self {
            id: id.to_owned(),
            algorithm: Algorithm::EdDSA,
            jwk: json!({"kty":"OKP","crv":"Ed25519","kid":id,"x":b64(pair.public_key().as_ref())}),
            pem: pem(spki.as_ref()),
            signing: EncodingKey::from_ed_der(pkcs8.as_ref()),
        }
    }

    /// Signs claims with this key.
    pub fn sign(&self, claims: &Value) -> String {
        self.sign_as(self.algorithm, Some(&self.id), claims)
    }

    /// Signs claims under a header with further members.
    pub fn sign_with(&self, more: &Value, claims: &Value) -> String {
        let mut header = json!({"alg": format!("{:?}", self.algorithm), "kid": self.id, "typ": "JWT"});
        for (name, value) in more.as_object().expect("object") {
            header[name] = value.clone();
        }
        self.sign_raw(&header.to_string(), claims.to_string().as_bytes())
    }

    /// Signs a header and a payload without change.
    pub fn sign_raw(&self, header: &str, payload: &[u8]) -> String {
        let signed = format!("{}.{}", b64(header.as_bytes()), b64(payload));
        let signature = jsonwebtoken::crypto::sign(signed.as_bytes(), &self.signing, self.algorithm).expect("signs");
        format!("{signed}.{signature}")
    }

    /// Signs a header and claims with padding behind each part, as load balancers of AWS do.
    pub fn sign_padded(&self, header: &Value, claims: &Value) -> String {
        let padded = |text: String| format!("{text}{}", "=".repeat(text.len().wrapping_neg() % 4));
        let encoded = |value: &Value| padded(b64(value.to_string().as_bytes()));
        let signed = format!("{}.{}", encoded(header), encoded(claims));
        let signature = jsonwebtoken::crypto::sign(signed.as_bytes(), &self.signing, self.algorithm).expect("signs");
        format!("{signed}.{}", padded(signature))
    }

    /// Signs claims under another algorithm of the key's family or another `kid`.
    pub fn sign_as(&self, algorithm: Algorithm, kid: Option<&str>, claims: &Value) -> String {
        let mut header = Header::new(algorithm);
        header.kid = kid.map(str::to_owned);
        jsonwebtoken::encode(&header, claims, &self.signing).expect("signs")
    }
}

/// An RSA key. Making one takes time, so one is made for all tests of this process.
pub static RSA: LazyLock<Key> = LazyLock::new(|| Key::rsa("rsa-1"));

/// The behaviour of the issuer.
#[derive(Clone, Debug)]
pub enum Mood {
    Well,
    Status(u16),
    /// Accepts connections and never answers.
    Silent,
    Garbage,
    Html,
    /// A response without end.
    Endless,
    Redirect(String),
    /// Closes connections at once.
    Rude,
    /// Answers as soon as the gate is opened.
    Held(Arc<Semaphore>),
}

struct Inner {
    mood: Mood,
    keys: Vec<Value>,
    calls_itself: Option<String>,
    ahead: u64,
}

/// An issuer on loopback.
pub struct Issuer {
    pub url: String,
    pub key: Key,
    inner: Arc<Mutex<Inner>>,
    fetches: Arc<AtomicUsize>,
}

impl Issuer {
    /// Starts an issuer with one RSA key.
    pub async fn start() -> Self {
        Self::with(RSA.clone()).await
    }

    pub async fn with(key: Key) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
        let url = format!("http://{}", listener.local_addr().expect("address"));
        let inner =
            Arc::new(Mutex::new(Inner { mood: Mood::Well, keys: vec![key.jwk.clone()], calls_itself: None, ahead: 0 }));
        let fetches = Arc::new(AtomicUsize::new(0));
        tokio::spawn(serve(listener, url.clone(), Arc::clone(&inner), Arc::clone(&fetches)));
        Self { url, key, inner, fetches }
    }

    pub fn set_mood(&self, mood: Mood) {
        self.inner.lock().expect("lock").mood = mood;
    }

    pub fn set_keys(&self, keys: Vec<Value>) {
        self.inner.lock().expect("lock").keys = keys;
    }

    /// Sets the clock in the `Date` of its responses ahead by so many seconds.
    pub fn clock_is_ahead(&self, seconds: u64) {
        self.inner.lock().expect("lock").ahead = seconds;
    }

    pub fn calls_itself(&self, name: &str) {
        self.inner.lock().expect("lock").calls_itself = Some(name.to_owned());
    }

    /// Adds a key that has not been fetched yet. Verifying its tokens waits until the gate is opened.
    pub fn rotates(&self) -> (Key, Gate) {
        let key = Key::ec("rotated", Algorithm::ES256);
        self.set_keys(vec![self.key.jwk.clone(), key.jwk.clone()]);
        let gate = Arc::new(Semaphore::new(0));
        self.set_mood(Mood::Held(Arc::clone(&gate)));
        (key, Gate(gate))
    }

    /// Returns the number of JWKS requests that arrived.
    pub fn fetches(&self) -> usize {
        self.fetches.load(Ordering::SeqCst)
    }

    /// Returns the claims of a valid token.
    pub fn claims(&self, user: &str) -> Value {
        let now = now();
        json!({"iss": self.url, "aud": AUDIENCE, "sub": user, "iat": now, "nbf": now, "exp": now + 3600})
    }

    /// Returns a valid token.
    pub fn token(&self, user: &str) -> String {
        self.key.sign(&self.claims(user))
    }

    /// Returns a valid token with some claims replaced; `null` removes one.
    pub fn token_with(&self, user: &str, overrides: Value) -> String {
        let mut claims = self.claims(user);
        for (name, value) in overrides.as_object().expect("object") {
            if value.is_null() {
                claims.as_object_mut().expect("object").remove(name);
            } else {
                claims[name] = value.clone();
            }
        }
        self.key.sign(&claims)
    }

    pub fn expired(&self, user: &str) -> String {
        self.token_with(user, json!({"exp": now() - 600}))
    }

    /// Returns a token that names this issuer and has no valid signature.
    pub fn unsigned(&self) -> String {
        let token = self.token("mallory");
        let (signed, _) = token.rsplit_once('.').expect("a signature");
        format!("{signed}.c2ln")
    }

    /// Returns a provider for the configuration, by discovery.
    pub fn provider(&self) -> String {
        format!("{{ preset: oidc, issuer: \"{}\", audience: {AUDIENCE} }}", self.url)
    }
}

/// A gate that holds back every response of an issuer until it is opened.
pub struct Gate(Arc<Semaphore>);

impl Gate {
    pub fn open(&self) {
        self.0.add_permits(1_000);
    }

    /// Closes the connections that wait, without a response.
    pub fn slam(&self) {
        self.0.close();
    }
}

async fn serve(listener: TcpListener, url: String, inner: Arc<Mutex<Inner>>, fetches: Arc<AtomicUsize>) {
    loop {
        let Ok((mut stream, _)) = listener.accept().await else { return };
        let (inner, url, fetches) = (Arc::clone(&inner), url.clone(), Arc::clone(&fetches));
        tokio::spawn(async move {
            let mut head = Vec::new();
            let mut chunk = [0; 1024];
            while !head.windows(4).any(|window| window == b"\r\n\r\n") {
                match stream.read(&mut chunk).await {
                    Ok(0) | Err(_) => return,
                    Ok(length) => head.extend_from_slice(&chunk[..length]),
                }
            }
            let head = String::from_utf8_lossy(&head).into_owned();
            let (mood, keys, name, ahead) = {
                let inner = inner.lock().expect("lock");
                (inner.mood.clone(), inner.keys.clone(), inner.calls_itself.clone(), inner.ahead)
            };
            let date = httpdate::fmt_http_date(std::time::SystemTime::now() + Duration::from_secs(ahead));
            let body = if head.starts_with("GET /.well-known/openid-configuration ") {
                json!({"issuer": name.unwrap_or_else(|| url.clone()), "jwks_uri": format!("{url}/jwks")}).to_string()
            } else {
                fetches.fetch_add(1, Ordering::SeqCst);
                json!({ "keys": keys }).to_string()
            };
            let answer = |status: &str, body: &str| {
                let length = body.len();
                format!(
                    "HTTP/1.1 {status}\r\nDate: {date}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{body}"
                )
            };
            let bytes = match mood {
                Mood::Well => answer("200 OK", &body),
                Mood::Status(code) => answer(&format!("{code} Mood"), "{}"),
                Mood::Silent => {
                    tokio::time::sleep(Duration::from_secs(60)).await;
                    return;
                }
                Mood::Garbage => answer("200 OK", "\u{1}\u{2} not json"),
                Mood::Html => answer("200 OK", "<html><body>maintenance</body></html>"),
                Mood::Endless => {
                    let head = "HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n{\"keys\":[";
                    let _ = stream.write_all(head.as_bytes()).await;
                    let block = vec![b' '; 64 << 10];
                    while stream.write_all(&block).await.is_ok() {}
                    return;
                }
                Mood::Redirect(to) => {
                    format!("HTTP/1.1 302 Found\r\nLocation: {to}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
                }
                Mood::Held(gate) => {
                    // The permit is available once the test has opened the gate, and for every later request.
                    let Ok(_open) = gate.acquire().await else { return };
                    answer("200 OK", &body)
                }
                Mood::Rude => return,
            };
            let _ = stream.write_all(bytes.as_bytes()).await;
            let _ = stream.shutdown().await;
        });
    }
}
