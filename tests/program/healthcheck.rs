//! `vestibule healthcheck`: what a platform learns of a proxy by a command in its container.

use std::io::Write as _;
use std::net::TcpListener;

use crate::support::backend::Backend;
use crate::support::client::{Client, get};
use crate::support::issuer::{Issuer, Mood};
use crate::support::proxy::{Proxy, TempFile, command};
use crate::support::unused_port;

/// The exit code and the output.
fn healthcheck(arguments: &[&str]) -> (Option<i32>, String) {
    let output = command().arg("healthcheck").args(arguments).output().expect("it runs");
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).trim_end().to_owned())
}

fn listening(address: &str) -> TempFile {
    TempFile::new(&format!("listen: \"{address}\"\nupstream: http://127.0.0.1:1\n"))
}

const OK: (Option<i32>, &str) = (Some(0), "ok");

fn seen((code, said): &(Option<i32>, String)) -> (Option<i32>, &str) {
    (*code, said)
}

#[tokio::test]
async fn a_proxy_that_serves_is_alive_and_ready() {
    let (backend, issuer) = (Backend::start().await, Issuer::start().await);
    let yaml = format!("upstream: {}\nproviders: [{}]\n", backend.url(), issuer.provider());
    let proxy = Proxy::start(&yaml).await;
    proxy.logged("the first keys", |line| line.contains("JWKS fetched")).await;
    let address = proxy.address.to_string();
    // The configuration is named by flag, by file or by variable, as for `run`.
    assert_eq!(seen(&healthcheck(&["--listen", &address])), OK);
    assert_eq!(seen(&healthcheck(&["--config", listening(&address).path()])), OK);
    let output = command().args(["healthcheck", "--ready"]).env("VESTIBULE_LISTEN", &address).output().expect("runs");
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    // What else has become wrong in the file is no reason to end a process that serves.
    let wrong = TempFile::new(&format!("listen: \"{address}\"\nupstraem: nowhere\nproviders: [{{ issuer: x }}]\n"));
    assert_eq!(seen(&healthcheck(&["--config", wrong.path()])), OK);
}

#[tokio::test]
async fn a_proxy_that_drains_is_alive_and_not_ready() {
    let (backend, issuer) = (Backend::start().await, Issuer::start().await);
    let more = "drain: { delay: 60s, timeout: 60s }\n";
    let yaml = format!("upstream: {}\nproviders: [{}]\n{more}", backend.url(), issuer.provider());
    let proxy = Proxy::start(&yaml).await;
    proxy.signal("TERM");
    proxy.logged("the drain", |line| line.contains("draining; ")).await;
    let address = proxy.address.to_string();
    assert_eq!(seen(&healthcheck(&["--listen", &address])), OK);
    let (code, said) = healthcheck(&["--listen", &address, "--ready"]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("/.vestibule/readyz") && said.contains("not ready"), "{said}");
}

#[tokio::test]
async fn at_its_connection_limit_it_is_alive_and_gets_no_more() {
    let (backend, issuer) = (Backend::start().await, Issuer::start().await);
    let more = "limits: { connections: 1 }\n";
    let yaml = format!("upstream: {}\nproviders: [{}]\n{more}", backend.url(), issuer.provider());
    let proxy = Proxy::start(&yaml).await;
    let mut only = Client::connect(proxy.address).await;
    only.send("GET /.vestibule/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert_eq!(only.answer().await.status, 200);
    let address = proxy.address.to_string();
    let (code, said) = healthcheck(&["--listen", &address]);
    assert_eq!((code, said.as_str()), (Some(0), "ok, though every connection is taken (limits.connections)"));
    let (code, said) = healthcheck(&["--listen", &address, "--ready"]);
    assert_eq!(code, Some(1), "{said}");
}

#[tokio::test]
async fn it_asks_over_tls_whatever_the_certificate_and_over_a_unix_socket() {
    let (backend, issuer) = (Backend::start().await, Issuer::start().await);
    let key = rcgen::KeyPair::generate().expect("key");
    let params = rcgen::CertificateParams::new(vec!["app.example.com".to_owned()]).expect("params");
    let certificate = TempFile::new(&params.self_signed(&key).expect("signed").pem());
    let key = TempFile::new(&key.serialize_pem());
    let tls = format!("tls: {{ certificate_file: {}, key_file: {} }}", certificate.path(), key.path());
    let unix = TempFile::new("");
    std::fs::remove_file(&unix.0).expect("removed");
    let yaml = format!(
        "listen: [{{ address: \"127.0.0.1:0\", {tls} }}, \"unix:{}\"]\nhosts: any\nupstream: {}\nproviders: [{}]\n",
        unix.path(),
        backend.url(),
        issuer.provider()
    );
    let proxy = Proxy::start(&yaml).await;
    let over_tls = TempFile::new(&format!("listen: [{{ address: \"{}\", {tls} }}]\n", proxy.address));
    assert_eq!(seen(&healthcheck(&["--config", over_tls.path()])), OK);
    assert_eq!(seen(&healthcheck(&["--config", listening(&format!("unix:{}", unix.path())).path()])), OK);
    // Plain HTTP to a port that speaks TLS is no answer.
    let (code, said) = healthcheck(&["--listen", &proxy.address.to_string()]);
    assert_eq!(code, Some(1), "{said}");
}

#[test]
fn nobody_somebody_else_and_somebody_silent_are_not_alive() {
    let free = format!("127.0.0.1:{}", unused_port());
    let (code, said) = healthcheck(&["--listen", &free]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains(&free) && said.contains("refused"), "{said}");

    let silent = TcpListener::bind("127.0.0.1:0").expect("a port");
    let (code, said) = healthcheck(&["--listen", &silent.local_addr().expect("address").to_string()]);
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("no answer within 3 s"), "{said}");

    for answer in ["", "garbage", "HTTP/1.1 404 Not Found\r\n\r\n", "HTTP/1.1 503 Service Unavailable\r\n\r\nbusy"] {
        let other = TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = other.local_addr().expect("address").to_string();
        let answering = std::thread::spawn(move || {
            let (mut socket, _) = other.accept().expect("a connection");
            socket.write_all(answer.as_bytes()).expect("written");
        });
        let (code, said) = healthcheck(&["--listen", &address]);
        answering.join().expect("answered");
        assert_eq!(code, Some(1), "{answer:?}: {said}");
    }
}

#[test]
fn where_it_cannot_know_the_address_it_says_so() {
    for (listen, expected) in [
        ("127.0.0.1:0", "port 0 is chosen anew at each start"),
        ("8080", "has no address"),
        ("unix:relative", "is not a whole path"),
    ] {
        let file = listening(listen);
        let (code, said) = healthcheck(&["--config", file.path()]);
        assert_eq!(code, Some(2), "{said}");
        assert!(said.contains(file.path()) && said.contains("listen: ") && said.contains(expected), "{said}");
    }
    let (code, said) = healthcheck(&["--config", "/nowhere.yaml"]);
    assert_eq!(code, Some(2), "{said}");
}

#[tokio::test]
async fn without_keys_it_is_alive_and_not_ready() {
    let (backend, issuer) = (Backend::start().await, Issuer::start().await);
    issuer.set_mood(Mood::Status(500));
    let yaml = format!("upstream: {}\nproviders: [{}]\n", backend.url(), issuer.provider());
    let proxy = Proxy::start(&yaml).await;
    assert_eq!(get(proxy.address, "/.vestibule/readyz", &[]).await.status, 503);
    let address = proxy.address.to_string();
    assert_eq!(seen(&healthcheck(&["--listen", &address])), OK);
    assert_eq!(healthcheck(&["--listen", &address, "--ready"]).0, Some(1));
}
