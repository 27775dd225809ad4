//! Tests of few file descriptors: the soft limit is raised, and with a low hard limit further connections get 503.

use crate::support::backend::Backend;
use crate::support::client::Client;
use crate::support::issuer::Issuer;
use crate::support::proxy::Proxy;
use crate::support::socket::Socket;

/// The descriptors that are not for connections: 128, and four for each thread that serves them where there are several.
fn reserved() -> usize {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    128 + if threads > 1 { 4 * threads } else { 0 }
}

async fn start(limit: &str) -> (Backend, Issuer, Proxy) {
    let (backend, issuer) = (Backend::start().await, Issuer::start().await);
    let yaml =
        format!("upstream: {}\nproviders: [{}]\nlimits: {{ connections: 150 }}\n", backend.url(), issuer.provider());
    let proxy = Proxy::with_descriptors(&yaml, limit).await;
    (backend, issuer, proxy)
}

async fn served(proxy: &Proxy) -> Client {
    let mut client = Client::connect(proxy.address).await;
    client.send("GET /.vestibule/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert_eq!(client.answer().await.status, 200);
    client
}

async fn is_told_that_it_is_busy(proxy: &Proxy) {
    let answer = Client::connect(proxy.address).await.answer().await;
    assert_eq!((answer.status, answer.code().as_str(), answer.field("retry-after")), (503, "busy", Some("5")));
}

#[tokio::test]
async fn a_low_soft_limit_is_raised_to_what_the_connections_need() {
    let (_backend, _issuer, proxy) = start("-Sn 100").await;
    let mut open = Vec::new();
    for _ in 0..150 {
        open.push(served(&proxy).await);
    }
    is_told_that_it_is_busy(&proxy).await;
    assert!(!proxy.log().iter().any(|line| line.contains("descriptors")), "{:#?}", proxy.log());
}

#[tokio::test]
async fn a_low_hard_limit_takes_fewer_connections_and_says_so() {
    let (backend, issuer, proxy) = start(&format!("-n {}", reserved() + 40)).await;
    let is_warning =
        |line: &str| line.contains("limits.connections needs more file descriptors than the system allows");
    let warning = proxy.logged("the warning", is_warning).await;
    let (descriptors, needed) = (reserved() + 40, reserved() + 300);
    let fields = format!("\"configured\":150,\"accepted\":20,\"descriptors\":{descriptors},\"needed\":{needed}}}");
    assert!(warning.ends_with(&fields) && warning.contains("raise the hard limit"), "{warning}");
    proxy.signal("HUP");
    proxy.logged("the reload", |line| line.contains("configuration reloaded")).await;
    assert_eq!(proxy.log().iter().filter(|line| is_warning(line)).count(), 1, "a reload brings nothing new");
    // Each of them with a descriptor to the backend too.
    let token = issuer.token("alice");
    let mut open = Vec::new();
    for _ in 0..20 {
        let mut socket = Socket::open(proxy.address, "/ws", &[]).await;
        let (_, (_, upstream)) = tokio::join!(socket.authenticate(&token), backend.websocket());
        open.push((socket, upstream));
    }
    is_told_that_it_is_busy(&proxy).await;
    let (mut last, mut upstream) = open.pop().expect("twenty");
    upstream.say("still at work").await;
    assert_eq!(last.next_text().await, "still at work");
}

/// Nobody asked for more connections, and there are enough.
#[tokio::test]
async fn a_default_that_does_not_fit_is_no_warning() {
    let (backend, issuer) = (Backend::start().await, Issuer::start().await);
    let yaml = format!("upstream: {}\nproviders: [{}]\n", backend.url(), issuer.provider());
    let proxy = Proxy::with_descriptors(&yaml, "-n 2200").await;
    let is_line = |line: &str| line.contains("limits.connections lowered to what the file descriptors allow");
    let line = proxy.logged("the line", is_line).await;
    let (accepted, needed) = ((2_200 - reserved()) / 2, reserved() + 20_000);
    let fields = format!("\"configured\":10000,\"accepted\":{accepted},\"descriptors\":2200,\"needed\":{needed}}}");
    assert!(line.ends_with(&fields) && line.contains("\"level\":\"info\""), "{line}");
    assert!(!proxy.log().iter().any(|line| line.contains("\"level\":\"warn\"")), "{:#?}", proxy.log());
}
