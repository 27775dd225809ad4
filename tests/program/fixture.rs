//! What most tests live in: an issuer, a backend, and the program before it.

use crate::support::backend::Backend;
use crate::support::issuer::Issuer;
use crate::support::proxy::Proxy;

pub struct House {
    pub issuer: Issuer,
    pub backend: Backend,
    pub proxy: Proxy,
}

/// With `more` in its configuration.
pub async fn house(more: &str) -> House {
    House::started(more, |_| ()).await
}

impl House {
    /// With an issuer in some mood from the start.
    pub async fn started(more: &str, prepare: impl Fn(&Issuer)) -> Self {
        let (issuer, backend) = (Issuer::start().await, Backend::start().await);
        prepare(&issuer);
        let yaml = format!("upstream: {}\nproviders: [{}]\n{more}", backend.url(), issuer.provider());
        Self { proxy: Proxy::start(&yaml).await, issuer, backend }
    }
}
