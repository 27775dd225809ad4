//! The two things the demo brings itself: an issuer with new keys at every start, and a small live
//! notebook as backend; and the configuration that stands between them, as a user would write it.
//!
//! Owns neither the proxy nor the terminal: `cli` starts the real one before this backend, and hands
//! on what it says, for the page's column *Vestibule did*.

mod expression;
mod issuer;
mod notebook;
mod sign_in;
mod story;

use std::net::SocketAddr;
use std::sync::Arc;

use crate::telemetry::{Observed, Observer};

use issuer::Issuer;
use story::Story;

/// Beyond their token's end the demo's sockets live this much longer: long enough to see, short enough
/// to wait for.
const GRACE: &str = "2s";

/// Why the demo's own parts could not be started.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The system gave no port, or the like.
    #[error("the demo could not be started: {0}")]
    Io(#[from] std::io::Error),
    /// The cryptography library made no key.
    #[error("no key could be made")]
    Key,
}

/// Someone's own backend, before which the demo's issuer and sign-in page stand.
#[derive(Clone, Debug, Default)]
pub struct OwnBackend {
    /// Where it is.
    pub url: String,
    /// What it is.
    pub preset: Option<String>,
    /// Its own secret: header value of `Authorization`.
    pub credential: Option<String>,
    /// The one who may sign in; without, Alice and Bob.
    pub user: Option<String>,
}

/// The demo's issuer and sign-in page before someone's own backend.
pub struct Front {
    issuer: Arc<Issuer>,
    sign_in: sign_in::SignIn,
    backend: OwnBackend,
}

impl Front {
    /// Starts both on free loopback ports. The sign-in page answers as long as this lives.
    ///
    /// # Errors
    /// When there is no port, or no key.
    pub async fn start(backend: OwnBackend) -> Result<Self, DemoError> {
        let issuer = Arc::new(Issuer::start().await?);
        let users = match &backend.user {
            Some(user) => vec![user.clone()],
            None => ["alice", "bob"].map(str::to_owned).to_vec(),
        };
        let sign_in = sign_in::start(Arc::clone(&issuer), users)?;
        Ok(Self { issuer, sign_in, backend })
    }

    /// The configuration for a proxy at `listen` before that backend; JSON is YAML.
    #[must_use]
    pub fn configuration(&self, listen: SocketAddr) -> String {
        let mut upstream = serde_json::json!({"url": self.backend.url});
        if let Some(preset) = &self.backend.preset {
            upstream["preset"] = preset.as_str().into();
        }
        if let Some(credential) = &self.backend.credential {
            upstream["credential"] = serde_json::json!({"header": "Authorization", "value": credential});
        }
        let mut provider = serde_json::json!({
            "name": "demo", "preset": "oidc", "issuer": self.issuer.url(), "audience": issuer::AUDIENCE,
        });
        if let Some(user) = &self.backend.user {
            provider["allow"] = serde_json::json!({"users": [user]});
        }
        serde_json::json!({
            "listen": listen.to_string(),
            "admin": null,
            "upstream": upstream,
            "providers": [provider],
            "browser": {"session": {}, "sign_in_url": format!("{}?return={{return_path}}", sign_in::PATH)},
            "routes": [{
                "path": format!("{}/**", sign_in::PATH),
                "auth": "none",
                "upstream": format!("http://{}", self.sign_in.address),
            }],
        })
        .to_string()
    }

    /// A token for a user, good for an hour.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn token(&self) -> Result<String, DemoError> {
        self.issuer.token(self.user(), 3_600)
    }

    /// Who may sign in, or the first of them.
    #[must_use]
    pub fn user(&self) -> &str {
        self.backend.user.as_deref().unwrap_or("alice")
    }
}

/// The issuer and the backend, running.
pub struct Demo {
    issuer: Arc<Issuer>,
    story: Arc<Story>,
    backend: SocketAddr,
}

impl Demo {
    /// Starts both on free loopback ports. The sign-in page answers as long as this lives.
    ///
    /// # Errors
    /// When there is no port, or no key.
    pub async fn start() -> Result<Self, DemoError> {
        let story = Arc::new(Story::default());
        let issuer = Arc::new(Issuer::start().await?);
        let backend = notebook::start(Arc::clone(&story), Arc::clone(&issuer)).await?;
        Ok(Self { issuer, story, backend })
    }

    /// The configuration for a proxy at `listen` before this backend.
    #[must_use]
    pub fn configuration(&self, listen: SocketAddr) -> String {
        format!(
            "listen: \"{listen}\"
admin: null
upstream: {{ url: \"http://{}\", pool_idle_timeout: 1s }}
providers: [{{ name: demo, preset: oidc, issuer: \"{}\", audience: {} }}]
websocket: {{ grace: {GRACE} }}
routes:
  - {{ path: /, auth: none }}
  - {{ path: /demo/**, auth: none }}
  - {{ path: /favicon.ico, auth: none }}
",
            self.backend,
            self.issuer.url(),
            issuer::AUDIENCE
        )
    }

    /// A token for a user, good for an hour.
    ///
    /// # Errors
    /// When it cannot be signed.
    pub fn token(&self, user: &str) -> Result<String, DemoError> {
        self.issuer.token(user, 3_600)
    }

    /// Hears what the proxy says, for the page.
    #[must_use]
    pub fn observer(&self) -> Observer {
        let story = Arc::clone(&self.story);
        Box::new(move |observed| match observed {
            Observed::Access(line) => story.vestibule_answered(line),
            Observed::Message(message) => story.vestibule_said(message),
        })
    }
}
