//! The two things the demo brings itself: an issuer with new keys at every start, and a small live
//! notebook as backend; and the configuration that stands between them, as a user would write it.
//!
//! Owns neither the proxy nor the terminal: `cli` starts the real one before this backend, and hands
//! on what it says, for the page's column *Vestibule did*.

mod expression;
mod issuer;
mod notebook;
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

/// The issuer and the backend, running.
pub struct Demo {
    issuer: Arc<Issuer>,
    story: Arc<Story>,
    backend: SocketAddr,
}

impl Demo {
    /// Starts both on free loopback ports.
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
