//! Tells everything that is open that something has changed which may end it: one wake for a drain and for a
//! revocation alike, so that an idle socket waits for one thing only.

use std::future::Future;
use std::pin::Pin;

use tokio::sync::watch;

/// What has rung so far.
#[derive(Clone, Copy, Debug, Default)]
struct Rings {
    closing: bool,
}

/// Rung for everyone who listens.
#[derive(Clone, Debug)]
pub struct Bell(watch::Sender<Rings>);

/// Hears the bell.
#[derive(Debug)]
pub struct Ear(watch::Receiver<Rings>);

/// Waits for the next ring; gives the ear back.
pub type Listening = Pin<Box<dyn Future<Output = Ear> + Send + Sync>>;

impl Default for Bell {
    fn default() -> Self {
        Self(watch::Sender::new(Rings::default()))
    }
}

impl Bell {
    /// Everything is to close.
    pub fn ring_closing(&self) {
        self.0.send_modify(|rings| rings.closing = true);
    }

    /// Someone was revoked.
    pub fn ring(&self) {
        self.0.send_modify(|_| {});
    }

    /// Listens from now on. The first ring comes at once: whoever begins to listen looks once by itself, and so
    /// misses nothing.
    #[must_use]
    pub fn listen(&self) -> Listening {
        let mut rings = self.0.subscribe();
        rings.mark_changed();
        Ear(rings).listen()
    }
}

impl Ear {
    /// Whether everything is to close.
    #[must_use]
    pub fn hears_closing(&self) -> bool {
        self.0.borrow().closing
    }

    /// Waits for the next ring.
    #[must_use]
    pub fn listen(mut self) -> Listening {
        Box::pin(async move {
            if self.0.changed().await.is_err() {
                // Nobody is left to ring.
                std::future::pending::<()>().await;
            }
            self
        })
    }
}
