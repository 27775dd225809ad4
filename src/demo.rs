//! The parts of `vestibule demo` other than the proxy: an issuer with new keys at every start, a small live notebook as
//! backend, and the configuration of the proxy between them, as a user would write it.
//!
//! `cli` starts the proxy, and passes its log lines on for the page's column *Vestibule did*.

mod event_log;
mod expression;
mod issuer;
mod notebook;
mod sign_in;

use std::net::SocketAddr;
use std::sync::Arc;

use crate::telemetry::{Observed, Observer};

use event_log::EventLog;
use issuer::Issuer;

/// The time that the demo's sockets stay open after their token has expired: long enough to see, short enough to wait
/// for.
const GRACE: &str = "2s";

/// The reason why the demo's own parts could not be started.
#[derive(Debug, thiserror::Error)]
pub enum DemoError {
    /// The system reported an error, such as no free port.
    #[error("the demo could not be started: {0}")]
    Io(#[from] std::io::Error),
    /// The cryptography library could not make a key.
    #[error("generating a key failed")]
    Key,
}

/// The user's own backend, for which the demo is issuer and sign-in page.
#[derive(Clone, Debug, Default)]
pub struct OwnBackend {
    /// The URL of the backend.
    pub url: String,
    /// The name of the backend's preset.
    pub preset: Option<String>,
    /// The backend's own secret, as a value of `Authorization`.
    pub credential: Option<String>,
    /// The only user who may sign in; otherwise alice and bob may.
    pub user: Option<String>,
}

/// The issuer and the sign-in page for the user's own backend. The page is served until this is dropped.
pub struct OwnBackendDemo {
    issuer: Arc<Issuer>,
    sign_in: sign_in::SignIn,
    backend: OwnBackend,
}

impl OwnBackendDemo {
    /// Starts both on free loopback ports.
    ///
    /// # Errors
    /// Returns an error when there is no port, or no key.
    pub async fn start(backend: OwnBackend) -> Result<Self, DemoError> {
        let issuer = Arc::new(Issuer::start().await?);
        let users = match &backend.user {
            Some(user) => vec![user.clone()],
            None => ["alice", "bob"].map(str::to_owned).to_vec(),
        };
        let sign_in = sign_in::start(Arc::clone(&issuer), users)?;
        Ok(Self { issuer, sign_in, backend })
    }

    /// Returns the configuration of a proxy at `listen` for that backend, as JSON, which is YAML too.
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

    /// Signs a token for a user that is valid for an hour.
    ///
    /// # Errors
    /// Returns an error when it cannot be signed.
    pub fn token(&self) -> Result<String, DemoError> {
        self.issuer.token(self.user(), 3_600)
    }

    /// Returns the user who may sign in, or the first of several.
    #[must_use]
    pub fn user(&self) -> &str {
        self.backend.user.as_deref().unwrap_or("alice")
    }
}

/// The running issuer and backend.
pub struct Demo {
    issuer: Arc<Issuer>,
    log: Arc<EventLog>,
    backend: SocketAddr,
}

impl Demo {
    /// Starts issuer and backend on free loopback ports.
    ///
    /// # Errors
    /// Returns an error when there is no port, or no key.
    pub async fn start() -> Result<Self, DemoError> {
        let log = Arc::new(EventLog::default());
        let issuer = Arc::new(Issuer::start().await?);
        let backend = notebook::start(Arc::clone(&log), Arc::clone(&issuer)).await?;
        Ok(Self { issuer, log, backend })
    }

    /// Returns the configuration of a proxy at `listen` for this backend.
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

    /// Signs a token for a user that is valid for an hour.
    ///
    /// # Errors
    /// Returns an error when it cannot be signed.
    pub fn token(&self, user: &str) -> Result<String, DemoError> {
        self.issuer.token(user, 3_600)
    }

    /// Returns the observer that adds the proxy's log lines to the page.
    #[must_use]
    pub fn observer(&self) -> Observer {
        let log = Arc::clone(&self.log);
        Box::new(move |observed| match observed {
            Observed::Access(line) => log.push_access(line),
            Observed::Message(message) => log.push_message(message),
        })
    }
}
