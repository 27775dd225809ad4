//! An OpenID provider on loopback, which is honest unless a test changes it. [`OpenId::authorize`] signs a user in and
//! returns the query with which the browser would be redirected back.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, OnceLock};

use aws_lc_rs::digest::{SHA256, digest};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde_json::{Map, Value, json};
use url::Url;

use super::answerer::{Answerer, Asked, Reply, ok};
use super::issuer::{Key, RSA};
use super::now;

pub const CLIENT: &str = "vestibule-client";
pub const SECRET: &str = "a secret: with & odd = characters";

/// The authorization request for which a code was issued.
#[derive(Clone)]
struct Attempt {
    parameters: HashMap<String, String>,
    claims: Map<String, Value>,
}

/// The behaviour of the provider. `null` in an object removes a member.
pub struct Conduct {
    pub user: String,
    pub metadata: Value,
    pub id_token: Value,
    /// Members of the ID token's header.
    pub id_token_header: Value,
    /// The key that signs ID tokens.
    pub key: Key,
    /// The text that replaces the ID token.
    pub raw_id_token: Option<String>,
    /// Members of the token endpoint's response.
    pub tokens: Value,
    /// The response of the token endpoint, in place of the usual one.
    pub token_reply: Option<Reply>,
    /// The response of the page where people sign in.
    pub authorize_reply: Reply,
    /// The response of the endpoint for pushed requests.
    pub push_reply: Option<Reply>,
    pub userinfo: Value,
    pub gives_refresh_token: bool,
    /// Whether a refresh token can be used again, and stays the same.
    pub has_fixed_refresh_tokens: bool,
    /// Members of the responses to renewals.
    pub renewed: Value,
    attempts: HashMap<String, Attempt>,
    pushed: HashMap<String, HashMap<String, String>>,
    /// The valid refresh tokens with their claims.
    grants: HashMap<String, Map<String, Value>>,
    /// The tokens that were revoked.
    pub revoked: Vec<String>,
    count: usize,
}

#[derive(Clone)]
pub struct OpenId {
    pub url: String,
    pub answerer: Answerer,
    pub conduct: Arc<Mutex<Conduct>>,
}

fn merge(into: &mut Map<String, Value>, changes: &Value) {
    for (name, value) in changes.as_object().into_iter().flatten() {
        if value.is_null() {
            into.remove(name);
        } else {
            into.insert(name.clone(), value.clone());
        }
    }
}

fn form(text: &str) -> HashMap<String, String> {
    url::form_urlencoded::parse(text.as_bytes()).into_owned().collect()
}

impl OpenId {
    pub async fn start() -> Self {
        let conduct = Arc::new(Mutex::new(Conduct {
            user: "alice".to_owned(),
            metadata: json!({}),
            id_token: json!({}),
            id_token_header: json!({}),
            key: RSA.clone(),
            raw_id_token: None,
            tokens: json!({}),
            token_reply: None,
            authorize_reply: (200, String::new(), "<form></form>".to_owned()),
            push_reply: None,
            userinfo: json!({}),
            gives_refresh_token: false,
            has_fixed_refresh_tokens: false,
            renewed: json!({}),
            attempts: HashMap::new(),
            pushed: HashMap::new(),
            grants: HashMap::new(),
            revoked: Vec::new(),
            count: 0,
        }));
        let url: Arc<OnceLock<String>> = Arc::default();
        let (its_conduct, its_url) = (Arc::clone(&conduct), Arc::clone(&url));
        let answerer = Answerer::start(move |asked| {
            let url = its_url.get().expect("asked after the start");
            its_conduct.lock().expect("lock").answer(url, asked)
        })
        .await;
        url.set(answerer.url.clone()).expect("set once");
        Self { url: answerer.url.clone(), answerer, conduct }
    }

    /// Changes the behaviour.
    pub fn set(&self, change: impl FnOnce(&mut Conduct)) {
        change(&mut self.conduct.lock().expect("lock"));
    }

    /// Returns a provider for the configuration.
    pub fn provider(&self) -> String {
        format!("{{ preset: oidc, issuer: \"{}\" }}", self.url)
    }

    /// Consents to the request of an authorization URL, and returns the query of the callback.
    pub fn authorize(&self, location: &str) -> String {
        let (code, parameters) = self.code(location);
        url::form_urlencoded::Serializer::new(String::new())
            .append_pair("code", &code)
            .append_pair("state", &parameters["state"])
            .finish()
    }

    /// Returns the parameters of an authorization URL, pushed or not.
    pub fn parameters(&self, location: &str) -> HashMap<String, String> {
        let url = Url::parse(location).expect("a URL");
        assert_eq!(url.path(), "/authorize", "{location}");
        let mut parameters: HashMap<String, String> = url.query_pairs().into_owned().collect();
        if let Some(uri) = parameters.get("request_uri") {
            parameters = self.conduct.lock().expect("lock").pushed.remove(uri).expect("a pushed request");
        }
        parameters
    }

    fn code(&self, location: &str) -> (String, HashMap<String, String>) {
        let parameters = self.parameters(location);
        let mut conduct = self.conduct.lock().expect("lock");
        conduct.count += 1;
        let code = format!("secret-code-{}", conduct.count);
        let now = now();
        let claims = json!({
            "iss": self.url, "aud": CLIENT, "sub": conduct.user, "iat": now, "exp": now + 600, "auth_time": now,
            "nonce": parameters["nonce"], "sid": format!("sid-{}", conduct.count),
        });
        let Value::Object(mut claims) = claims else { unreachable!() };
        merge(&mut claims, &conduct.id_token);
        conduct.attempts.insert(code.clone(), Attempt { parameters: parameters.clone(), claims });
        (code, parameters)
    }

    /// Returns the requests to this path.
    pub fn asked(&self, path: &str) -> Vec<Asked> {
        let on = |asked: &Asked| asked.line().split(' ').nth(1) == Some(path);
        self.answerer.asked().into_iter().filter(on).collect()
    }
}

impl Conduct {
    fn answer(&mut self, url: &str, asked: &Asked) -> Reply {
        let path = asked.line().split(' ').nth(1).unwrap_or_default().to_owned();
        match path.as_str() {
            "/.well-known/openid-configuration" => {
                let document = json!({
                    "issuer": url, "jwks_uri": format!("{url}/jwks"),
                    "authorization_endpoint": format!("{url}/authorize"), "token_endpoint": format!("{url}/token"),
                    "end_session_endpoint": format!("{url}/end"), "revocation_endpoint": format!("{url}/revoke"),
                    "userinfo_endpoint": format!("{url}/userinfo"),
                });
                let Value::Object(mut document) = document else { unreachable!() };
                merge(&mut document, &self.metadata);
                ok(Value::Object(document))
            }
            "/jwks" => ok(json!({ "keys": [RSA.jwk] })),
            "/token" => match self.token_reply.clone() {
                Some(reply) => reply,
                None => self.token(asked),
            },
            "/par" => self.push_reply.clone().unwrap_or_else(|| {
                self.count += 1;
                let uri = format!("urn:pushed:{}", self.count);
                self.pushed.insert(uri.clone(), form(&asked.body));
                (201, String::new(), json!({ "request_uri": uri, "expires_in": 60 }).to_string())
            }),
            "/revoke" => {
                self.revoked.push(form(&asked.body)["token"].clone());
                ok(json!({}))
            }
            "/userinfo" => ok(self.userinfo.clone()),
            path if path.starts_with("/authorize?") => self.authorize_reply.clone(),
            _ => (404, String::new(), "{}".to_owned()),
        }
    }

    fn token(&mut self, asked: &Asked) -> Reply {
        let form = form(&asked.body);
        let no = |code: &str| (400, String::new(), json!({ "error": code }).to_string());
        let claims = match form.get("grant_type").map(String::as_str) {
            Some("authorization_code") => {
                let Some(attempt) = self.attempts.remove(&form["code"]) else { return no("invalid_grant") };
                let challenge = URL_SAFE_NO_PAD.encode(digest(&SHA256, form["code_verifier"].as_bytes()));
                let fits = attempt.parameters["code_challenge"] == challenge
                    && attempt.parameters["code_challenge_method"] == "S256"
                    && attempt.parameters["redirect_uri"] == form["redirect_uri"];
                if !fits {
                    return no("invalid_request");
                }
                attempt.claims
            }
            Some("refresh_token") => {
                let found = if self.has_fixed_refresh_tokens {
                    self.grants.get(&form["refresh_token"]).cloned()
                } else {
                    self.grants.remove(&form["refresh_token"])
                };
                let Some(mut claims) = found else { return no("invalid_grant") };
                let now = now();
                merge(&mut claims, &json!({ "iat": now, "exp": now + 600, "nonce": null }));
                merge(&mut claims, &self.renewed);
                claims
            }
            _ => return no("unsupported_grant_type"),
        };
        self.count += 1;
        let mut answer = Map::new();
        let is_kept = self.has_fixed_refresh_tokens && form.contains_key("refresh_token");
        if self.gives_refresh_token && !is_kept {
            let token = format!("secret-refresh-{}", self.count);
            self.grants.insert(token.clone(), claims.clone());
            answer.insert("refresh_token".to_owned(), token.into());
        }
        let id_token = self
            .raw_id_token
            .clone()
            .unwrap_or_else(|| self.key.sign_with(&self.id_token_header, &Value::Object(claims)));
        answer.insert("id_token".to_owned(), id_token.into());
        answer.insert("access_token".to_owned(), format!("secret-access-{}", self.count).into());
        answer.insert("token_type".to_owned(), "Bearer".into());
        answer.insert("expires_in".to_owned(), 600.into());
        merge(&mut answer, &self.tokens);
        ok(Value::Object(answer))
    }
}

impl OpenId {
    /// Returns the number of requests with a refresh token.
    pub fn refreshes(&self) -> usize {
        let is_refresh = |asked: &Asked| asked.body.contains("grant_type=refresh_token");
        self.asked("/token").iter().filter(|asked| is_refresh(asked)).count()
    }

    /// Returns the refresh tokens that are neither used nor revoked.
    pub fn valid_refresh_tokens(&self) -> Vec<String> {
        let conduct = self.conduct.lock().expect("lock");
        conduct.grants.keys().filter(|token| !conduct.revoked.contains(token)).cloned().collect()
    }

    /// Waits until refresh tokens have been used so often.
    pub async fn refreshed_times(&self, count: usize) {
        while self.refreshes() < count {
            self.answerer.asked_times(self.answerer.count() + 1).await;
        }
    }
}
