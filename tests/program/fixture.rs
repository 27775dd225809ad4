//! The fixture of most tests: an issuer, a backend, and the program in front of the backend.

use std::net::SocketAddr;

use crate::support::backend::Backend;
use crate::support::client::{bearer, get_served};
use crate::support::issuer::Issuer;
use crate::support::proxy::Proxy;
use crate::support::socket::Socket;

pub struct Fixture {
    pub issuer: Issuer,
    pub backend: Backend,
    pub proxy: Proxy,
}

/// Starts all three, with `more` in the configuration, and waits until the program is ready.
pub async fn fixture(more: &str) -> Fixture {
    Fixture::started(more, |_| ()).await.ready().await
}

/// Starts the program on one processor, so that the requests of all clients find the same idle upstream connections.
pub async fn fixture_on_one_processor(more: &str) -> Fixture {
    Fixture::started_by(more, |_| (), async |yaml| Proxy::on_one_processor(yaml).await).await.ready().await
}

impl Fixture {
    /// Starts all three; `prepare` sets up the issuer before the program reads its keys.
    pub async fn started(more: &str, prepare: impl Fn(&Issuer)) -> Self {
        Self::started_by(more, prepare, async |yaml| Proxy::start(yaml).await).await
    }

    async fn started_by(more: &str, prepare: impl Fn(&Issuer), start: impl AsyncFn(&str) -> Proxy) -> Self {
        let (issuer, backend) = (Issuer::start().await, Backend::start().await);
        prepare(&issuer);
        let yaml = format!("upstream: {}\nproviders: [{}]\n{more}", backend.url(), issuer.provider());
        Self { proxy: start(&yaml).await, issuer, backend }
    }

    /// Waits until the program is ready. What it logs later does not come from its start.
    async fn ready(self) -> Self {
        self.proxy.logged("ready", |line| line.contains("\"msg\":\"ready\"")).await;
        self
    }

    /// Returns the user id that the backend receives with a request with this token, or the code of the refusal.
    pub async fn outcome(&self, token: &str, more: &[&str]) -> String {
        outcome(self.proxy.address, &self.backend, token, more).await
    }
}

/// Returns the user id that the backend receives with a request with this token and these header fields, or the code of
/// the refusal.
pub async fn outcome(proxy: SocketAddr, backend: &Backend, token: &str, more: &[&str]) -> String {
    let credential = bearer(token);
    let fields = [&[credential.as_str()], more].concat();
    let (answer, heard) = get_served(proxy, backend, "/x", &fields).await;
    heard.map_or_else(|| answer.code(), |heard| heard.all("x-user-id").join(","))
}

/// Opens a socket whose token is on its upgrade request. Returns the client's end and the upstream's.
pub async fn open_socket(proxy: SocketAddr, backend: &Backend, token: &str) -> (Socket, Socket) {
    let credential = bearer(token);
    let fields = [credential.as_str()];
    let (client, (_, upstream)) = tokio::join!(Socket::open(proxy, "/ws", &fields), backend.websocket());
    (client, upstream)
}
