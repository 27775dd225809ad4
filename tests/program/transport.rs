//! Every kind of socket on both sides: Unix, TLS on the listener and to the upstream, several upstreams.

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio_rustls::rustls::pki_types::ServerName;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use crate::support::authority::Authority;
use crate::support::backend::Backend;
use crate::support::client::{bearer, get};
use crate::support::issuer::Issuer;
use crate::support::proxy::{Proxy, TempFile, command};
use crate::support::socket::{Side, Socket, frame, upgrade};
use crate::support::within;

/// Reads until the bytes end with this.
async fn until(stream: &mut (impl AsyncRead + Unpin), end: &str) -> String {
    let mut bytes = Vec::new();
    within(end, async {
        while !bytes.ends_with(end.as_bytes()) {
            let mut byte = [0];
            let read = stream.read(&mut byte).await.unwrap_or(0);
            assert!(read > 0, "it ended before {end:?}: {:?}", String::from_utf8_lossy(&bytes));
            bytes.push(byte[0]);
        }
    })
    .await;
    String::from_utf8_lossy(&bytes).into_owned()
}

async fn exactly(stream: &mut (impl AsyncRead + Unpin), wanted: &[u8]) {
    let mut bytes = vec![0; wanted.len()];
    within("bytes", stream.read_exact(&mut bytes)).await.expect("read");
    assert_eq!(String::from_utf8_lossy(&bytes), String::from_utf8_lossy(wanted));
}

/// A request and its answer, then an upgrade with a frame each way, over any stream to the proxy.
async fn talks(
    mut stream: impl AsyncRead + AsyncWrite + Unpin,
    again: impl AsyncRead + AsyncWrite + Unpin,
    backend: &Backend,
    token: &str,
    scheme: &str,
) {
    let head = format!("GET /x HTTP/1.1\r\nHost: localhost\r\n{}\r\n\r\n", bearer(token));
    stream.write_all(head.as_bytes()).await.expect("written");
    stream.flush().await.expect("flushed");
    let heard = backend.answer("hello").await;
    assert_eq!(heard.all("x-user-id"), ["alice"]);
    assert_eq!(heard.all("x-forwarded-proto"), [scheme]);
    assert!(until(&mut stream, "\r\n\r\nhello").await.starts_with("HTTP/1.1 200"));
    let mut stream = again;
    // In band: the first message, and one right behind it.
    let mut bytes = upgrade("/ws", &[]).into_bytes();
    bytes.extend(frame(Side::Client, 0x81, format!(r#"{{"type":"authenticate","token":"{token}"}}"#).as_bytes()));
    bytes.extend(frame(Side::Client, 0x81, b"up"));
    stream.write_all(&bytes).await.expect("written");
    stream.flush().await.expect("flushed");
    assert!(until(&mut stream, "\r\n\r\n").await.starts_with("HTTP/1.1 101"));
    let (_, mut upstream) = backend.websocket().await;
    assert_eq!(upstream.next_text().await, "up");
    assert!(until(&mut stream, "}").await.contains("authenticated"));
    let long = "down ".repeat(40_000);
    upstream.say(&long).await;
    exactly(&mut stream, &frame(Side::Server, 0x81, long.as_bytes())).await;
    upstream.send(0x88, [0x03, 0xe8]).await;
    exactly(&mut stream, &frame(Side::Server, 0x88, &[0x03, 0xe8])).await;
}

#[tokio::test]
async fn a_unix_listener_serves_and_its_file_goes_with_it() {
    let (issuer, backend) = (Issuer::start().await, Backend::start().await);
    let path = TempFile::new("");
    std::fs::remove_file(&path.0).expect("removed");
    let yaml = format!(
        "listen: [\"127.0.0.1:0\", \"unix:{}\"]\nhosts: any\nupstream: {}\nproviders: [{}]\n",
        path.path(),
        backend.url(),
        issuer.provider()
    );
    let mut proxy = Proxy::start(&yaml).await;
    let connect = || async { UnixStream::connect(&path.0).await.expect("connects") };
    talks(connect().await, connect().await, &backend, &issuer.token("alice"), "http").await;
    // Nobody is trusted unasked.
    let mut stream = connect().await;
    let head = format!(
        "GET /x HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 1.2.3.4\r\n{}\r\n\r\n",
        bearer(&issuer.token("alice"))
    );
    stream.write_all(head.as_bytes()).await.expect("written");
    assert_eq!(backend.answer("").await.all("x-forwarded-for"), ["127.0.0.1"]);
    proxy.signal("INT");
    assert_eq!(proxy.ended().await, Some(0));
    assert!(!path.0.exists());
}

#[tokio::test]
async fn a_trusted_unix_caller_names_the_client() {
    let (issuer, backend) = (Issuer::start().await, Backend::start().await);
    let path = TempFile::new("");
    std::fs::remove_file(&path.0).expect("removed");
    let yaml = format!(
        "listen: [\"127.0.0.1:0\", \"unix:{}\"]\ntrusted_proxies: [unix]\nupstream: {}\nproviders: [{}]\n",
        path.path(),
        backend.url(),
        issuer.provider()
    );
    let _proxy = Proxy::start(&yaml).await;
    let mut stream = UnixStream::connect(&path.0).await.expect("connects");
    let head = format!(
        "GET /x HTTP/1.1\r\nHost: localhost\r\nX-Forwarded-For: 1.2.3.4\r\nX-Forwarded-Proto: https\r\n{}\r\n\r\n",
        bearer(&issuer.token("alice"))
    );
    stream.write_all(head.as_bytes()).await.expect("written");
    let heard = backend.answer("").await;
    assert_eq!((heard.all("x-forwarded-for"), heard.all("x-forwarded-proto")), (vec!["1.2.3.4"], vec!["https"]));
}

#[tokio::test]
async fn tls_on_the_listener_speaks_http_1_and_follows_its_certificate() {
    let (issuer, backend, authority) = (Issuer::start().await, Backend::start().await, Authority::new());
    let (certificate, key) = authority.issue("localhost");
    let (certificate, key) = (TempFile::new(&certificate), TempFile::new(&key));
    let yaml = format!(
        "listen: [{{ address: \"127.0.0.1:0\", tls: {{ certificate_file: \"{}\", key_file: \"{}\" }} }}]\nupstream: {}\nproviders: [{}]\n",
        certificate.path(),
        key.path(),
        backend.url(),
        issuer.provider()
    );
    let proxy = Proxy::start(&yaml).await;
    let address = proxy.address;
    let connect = |connector: TlsConnector| async move {
        let tcp = TcpStream::connect(address).await.expect("connects");
        connector.connect(ServerName::try_from("localhost").expect("name"), tcp).await
    };
    let connector = authority.connector(&["h2", "http/1.1"]);
    let first = connect(connector.clone()).await.expect("a handshake");
    // HTTP/2 is not offered.
    assert_eq!(first.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let second = connect(connector.clone()).await.expect("a handshake");
    talks(first, second, &backend, &issuer.token("alice"), "https").await;
    // Plain HTTP there is no request.
    let mut plain = TcpStream::connect(proxy.address).await.expect("connects");
    plain.write_all(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("written");
    let mut rest = Vec::new();
    let _ = within("its end", plain.read_to_end(&mut rest)).await;
    assert!(!rest.starts_with(b"HTTP/"), "{}", String::from_utf8_lossy(&rest));
    // Renewed under another authority, and garbage does no harm.
    std::fs::write(&certificate.0, "garbage").expect("written");
    proxy.logged("a warning", |line| line.contains("certificate reload failed, keeping the current one")).await;
    assert!(connect(connector.clone()).await.is_ok());
    let successor = Authority::new();
    let (pem, new_key) = successor.issue("localhost");
    std::fs::write(&certificate.0, pem).expect("written");
    std::fs::write(&key.0, new_key).expect("written");
    proxy.logged("the news", |line| line.contains("certificate reloaded")).await;
    // Another client: this one would resume its session.
    assert!(connect(authority.connector(&[])).await.is_err());
    assert!(connect(successor.connector(&[])).await.is_ok());
}

/// The error about a key that belongs to another certificate.
fn mismatch(certificate: &str, key: &str) -> String {
    format!(
        "the key in {key} does not belong to the certificate in {certificate}; name the key that the certificate was issued for, or get a certificate for this key"
    )
}

#[tokio::test]
async fn a_certificate_that_is_no_good_stops_the_start() {
    let authority = Authority::new();
    let ((certificate, key), (_, other)) = (authority.issue("localhost"), authority.issue("localhost"));
    let (certificate, key, other) = (TempFile::new(&certificate), TempFile::new(&key), TempFile::new(&other));
    let (certificate, key, other) = (certificate.path(), key.path(), other.path());
    for (certificate, key, code, expected) in [
        (certificate, other, 1, &*format!("listen.tls: {}", mismatch(certificate, other))),
        (key, key, 1, "no certificate in PEM"),
        (certificate, certificate, 1, "no private key in PEM"),
        // The check of the configuration refuses it before anything is started.
        ("/dev/zero", key, 2, "larger than 1 MiB"),
    ] {
        let file = TempFile::new(&format!(
            "listen: [{{ address: \"127.0.0.1:0\", tls: {{ certificate_file: \"{certificate}\", key_file: \"{key}\" }} }}]\nadmin: null\nupstream: http://127.0.0.1:1\nroutes: [{{ path: /**, auth: none }}]\n"
        ));
        let output = command().args(["run", "--config", file.path()]).output().expect("runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{said}");
        assert!(said.contains(expected), "{said}");
    }
}

#[tokio::test]
async fn check_loads_the_certificates_of_the_listeners() {
    let authority = Authority::new();
    let ((certificate, key), (_, other)) = (authority.issue("localhost"), authority.issue("localhost"));
    let (certificate, key, other) = (TempFile::new(&certificate), TempFile::new(&key), TempFile::new(&other));
    let (certificate, key, other) = (certificate.path(), key.path(), other.path());
    let tls = |key: &str| format!("tls: {{ certificate_file: \"{certificate}\", key_file: \"{key}\" }}");
    let rest = "admin: null\nupstream: http://127.0.0.1:1\nroutes: [{ path: /**, auth: none }]\n";
    let check = |listen: &str| {
        let file = TempFile::new(&format!("{listen}{rest}"));
        let output = command().args(["check", "--config", file.path()]).output().expect("runs");
        let text = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&text).replace(file.path(), "FILE"))
    };
    let listener = |key: &str| format!("  - {{ address: \"127.0.0.1:0\", {} }}\n", tls(key));
    let (code, text) = check(&format!("listen:\n{}{}", listener(key), listener(key)));
    assert_eq!(code, Some(0), "{text}");
    let (code, text) = check(&format!("listen:\n{}{}", listener(key), listener(other)));
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains(&format!("FILE:3:36 listen[1].tls: {}", mismatch(certificate, other))), "{text}");
    let (code, text) = check(&format!("listen:\n{}", listener(certificate)));
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains(&format!("FILE:2:36 listen[0].tls: {certificate}: no private key in PEM")), "{text}");
}

#[tokio::test]
async fn a_certificate_that_expires_is_said_in_the_log_the_check_the_metrics_and_the_status() {
    const DAY: u64 = 86_400;
    let (authority, now) = (Authority::new(), crate::support::now());
    let (expired, soon) = (now - 665 * DAY - 3_600, now + 3 * DAY + 3_600);
    let (certificate, key) = authority.issue_until("localhost", expired);
    let (certificate, key) = (TempFile::new(&certificate), TempFile::new(&key));
    let tls = format!("tls: {{ certificate_file: \"{}\", key_file: \"{}\" }}", certificate.path(), key.path());
    // Two listeners with one certificate, which is said once.
    let yaml = format!(
        "listen: [{{ address: \"127.0.0.1:0\", {tls} }}, {{ address: \"localhost:0\", {tls} }}]\nadmin: {{ listen: \"127.0.0.1:0\" }}\nupstream: http://127.0.0.1:1\nroutes: [{{ path: /**, auth: none }}]\n"
    );
    let proxy = Proxy::start(&yaml).await;
    let admin = proxy.admin();
    let metrics = |end: u64| {
        let metric =
            |listener| format!("vestibule_certificate_not_after_timestamp_seconds{{listener=\"{listener}\"}} {end}");
        ["127.0.0.1:0", "localhost:0"].map(metric)
    };
    let remedy = "replace the file by a renewed one, which is loaded without a restart";
    let says = |what: &str| format!("the certificate in {} {what}: {remedy}", certificate.path());
    let warning = says("expired 665 days ago; clients refuse it");
    let line = proxy.logged("the warning", |line| line.contains(&warning)).await;
    assert!(line.contains("\"level\":\"warn\""), "{line}");
    assert_eq!(proxy.log().iter().filter(|line| line.contains(&warning)).count(), 1);
    let text = get(admin, "/metrics", &[]).await.body;
    assert!(metrics(expired).iter().all(|metric| text.lines().any(|line| line == metric)), "{text}");
    let page = get(admin, "/status", &[]).await.body;
    let sentence = "<p class=\"bad\"><strong>localhost:0</strong> has a certificate that expired on ";
    assert!(page.contains(sentence), "{page}");
    let check = || {
        let file = TempFile::new(&yaml);
        let output = command().args(["check", "--config", file.path()]).output().expect("runs");
        assert!(output.status.success(), "{output:?}");
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for index in [0, 1] {
        let text = check();
        let named = format!("listen[{index}].tls: {warning}");
        assert!(text.lines().any(|line| line.starts_with("  warning     ") && line.ends_with(&named)), "{text}");
    }
    // A renewed certificate, which expires soon.
    let (pem, new_key) = authority.issue_until("localhost", soon);
    std::fs::write(&certificate.0, pem).expect("written");
    std::fs::write(&key.0, new_key).expect("written");
    let warning = says("expires in 3 days");
    proxy.logged("the next warning", |line| line.contains(&warning)).await;
    let text = get(admin, "/metrics", &[]).await.body;
    assert!(metrics(soon).iter().all(|metric| text.lines().any(|line| line == metric)), "{text}");
    assert!(check().contains(&warning), "{}", check());
    // The listener's own certificate has longer, and an intermediate one has expired.
    let (pem, new_key) = authority.issue_chain_until("localhost", now + 30 * DAY, expired);
    std::fs::write(&certificate.0, pem).expect("written");
    std::fs::write(&key.0, new_key).expect("written");
    let warning = format!(
        "certificate 2 of the chain in {} expired 665 days ago; clients refuse the chain: {remedy}",
        certificate.path()
    );
    proxy.logged("the warning about the chain", |line| line.contains(&warning)).await;
    let text = get(admin, "/metrics", &[]).await.body;
    assert!(metrics(expired).iter().all(|metric| text.lines().any(|line| line == metric)), "{text}");
    let page = get(admin, "/status", &[]).await.body;
    assert!(page.contains(sentence), "{page}");
    assert!(check().contains(&warning), "{}", check());
    // One that has longer is not warned of.
    let (pem, new_key) = authority.issue_chain_until("localhost", now + 8 * DAY, now + 9 * DAY);
    std::fs::write(&certificate.0, pem).expect("written");
    std::fs::write(&key.0, new_key).expect("written");
    assert!(!check().contains(remedy), "{}", check());
}

#[tokio::test]
async fn an_unfinished_tls_handshake_does_not_hold_the_drain() {
    let authority = Authority::new();
    let (certificate, key) = authority.issue("localhost");
    let (certificate, key) = (TempFile::new(&certificate), TempFile::new(&key));
    let yaml = format!(
        "listen: [{{ address: \"127.0.0.1:0\", tls: {{ certificate_file: \"{}\", key_file: \"{}\" }} }}]\nupstream: http://127.0.0.1:1\nroutes: [{{ path: /**, auth: none }}]\nlimits: {{ header_timeout: 10m }}\ndrain: {{ timeout: 10m }}\n",
        certificate.path(),
        key.path()
    );
    let mut proxy = Proxy::start(&yaml).await;
    let mut client = TcpStream::connect(proxy.address).await.expect("connects");
    // The first bytes of a handshake record, whose rest does not come.
    client.write_all(&[0x16, 3, 1, 2, 0]).await.expect("written");
    proxy.signal("TERM");
    assert_eq!(proxy.ended().await, Some(0));
}

/// Accepts TLS and hands the plain bytes to a backend of the usual kind.
async fn behind_tls(acceptor: TlsAcceptor, backend: &Backend) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("port");
    let port = listener.local_addr().expect("address").port();
    let to = backend.address();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(mut tls) = acceptor.accept(tcp).await else { return };
                let mut plain = TcpStream::connect(to).await.expect("connects");
                let _ = tokio::io::copy_bidirectional(&mut tls, &mut plain).await;
            });
        }
    });
    format!("https://localhost:{port}")
}

#[tokio::test]
async fn an_upstream_behind_tls_is_known_by_its_certificate() {
    let (issuer, backend, authority) = (Issuer::start().await, Backend::start().await, Authority::new());
    let url = behind_tls(authority.acceptor("localhost"), &backend).await;
    let ca = authority.pem();
    let start = |more: String| {
        let yaml = format!("upstream: {{ url: \"{url}\"{more} }}\nproviders: [{}]\n", issuer.provider());
        async move { Proxy::start(&yaml).await }
    };
    let proxy = start(format!(", tls: {{ ca_file: \"{}\" }}", ca.path())).await;
    let token = issuer.token("alice");
    let connect = || async { TcpStream::connect(proxy.address).await.expect("connects") };
    talks(connect().await, connect().await, &backend, &token, "http").await;
    // It sees its own name.
    let credential = bearer(&token);
    let fields = [credential.as_str()];
    let (_, heard) = tokio::join!(get(proxy.address, "/x", &fields), backend.answer(""));
    assert_eq!(heard.all("host"), [url.trim_start_matches("https://")]);
    assert_eq!(heard.all("x-forwarded-host"), ["localhost"]);
    // Unknown authority, and another name.
    let other = format!(", tls: {{ ca_file: \"{}\", server_name: other.example }}", ca.path());
    for more in [String::new(), other] {
        let proxy = start(more).await;
        let answer = get(proxy.address, "/x", &fields).await;
        assert_eq!((answer.status, answer.code()), (502, "upstream_failed".into()));
        proxy.logged("why", |line| line.contains("invalid peer certificate")).await;
    }
}

#[tokio::test]
async fn an_upstream_on_a_unix_socket() {
    let (issuer, backend) = (Issuer::start().await, Backend::start().await);
    let path = TempFile::new("");
    std::fs::remove_file(&path.0).expect("removed");
    let listener = UnixListener::bind(&path.0).expect("bound");
    let to = backend.address();
    tokio::spawn(async move {
        while let Ok((mut unix, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut plain = TcpStream::connect(to).await.expect("connects");
                let _ = tokio::io::copy_bidirectional(&mut unix, &mut plain).await;
            });
        }
    });
    let proxy =
        Proxy::start(&format!("upstream: \"unix:{}\"\nproviders: [{}]\n", path.path(), issuer.provider())).await;
    let connect = || async { TcpStream::connect(proxy.address).await.expect("connects") };
    talks(connect().await, connect().await, &backend, &issuer.token("alice"), "http").await;
}

#[tokio::test]
async fn routes_have_upstreams_of_their_own_and_each_keeps_its_secret() {
    let issuer = Issuer::start().await;
    let (api, ui, tools) = (Backend::start().await, Backend::start().await, Backend::start().await);
    let yaml = format!(
        "upstream: {{ url: {}, credential: {{ header: X-Secret, value: api }}, token_to: {{ http: header }} }}\nproviders: [{}]\nroutes:\n  - {{ path: /ui/**, auth: none, upstream: {} }}\n  - {{ path: /tools/**, upstream: {{ url: {}, credential: {{ header: X-Secret, value: tools }} }} }}\n",
        api.url(),
        issuer.provider(),
        ui.url(),
        tools.url()
    );
    let proxy = Proxy::start(&yaml).await;
    let credential = bearer(&issuer.token("alice"));
    let fields = [credential.as_str()];
    for (target, backend, user, secret, has_token) in [
        ("/x", &api, vec!["alice"], vec!["api"], true),
        ("/tools/x", &tools, vec!["alice"], vec!["tools"], false),
        ("/tools", &tools, vec!["alice"], vec!["tools"], false),
        ("/toolsx", &api, vec!["alice"], vec!["api"], true),
    ] {
        let (answer, heard) = tokio::join!(get(proxy.address, target, &fields), backend.answer("ok"));
        assert_eq!((answer.status, answer.body.as_str()), (200, "ok"), "{target}");
        assert_eq!((heard.all("x-user-id"), heard.all("x-secret")), (user, secret), "{target}");
        assert_eq!(heard.has("authorization"), has_token, "{target}");
        assert_eq!(heard.target(), target);
    }
    // The front end's own, hot-reload socket included: nothing of ours.
    let (answer, heard) = tokio::join!(get(proxy.address, "/ui/main.js", &fields), ui.answer("js"));
    assert_eq!(answer.body, "js");
    assert!(!heard.has("x-user-id") && !heard.has("x-secret"));
    let (mut client, (_, mut upstream)) = tokio::join!(Socket::open(proxy.address, "/ui/hmr", &[]), ui.websocket());
    upstream.say("update").await;
    assert_eq!(client.next_text().await, "update");
    client.say("ack").await;
    assert_eq!(upstream.next_text().await, "ack");
    // In band to an upstream of a route's own.
    let mut client = Socket::open(proxy.address, "/tools/ws", &[]).await;
    let token = issuer.token("alice");
    let (said, (heard, _upstream)) = tokio::join!(client.authenticate(&token), tools.websocket());
    assert_eq!(said["type"], "authenticated");
    assert_eq!(heard.all("x-secret"), ["tools"]);
}
