//! Tests of `vestibule doctor`: a sound deployment has no failed check, and each fault makes its own check fail and no
//! other.

mod deployments;

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt as _;

use serde_json::json;

use crate::support::answerer::{Answerer, Asked, Reply, ok};
use crate::support::client::get;
use crate::support::issuer::Issuer;
use crate::support::proxy::{Proxy, TempFile, TempFolder, command};
use crate::support::socket::Socket;

const SECRET: &str = "the-backends-own-secret";
const USUAL: &str = "routes: [{ path: /health, auth: none }, { path: /admin/**, auth: deny }, { path: /team/**, require: { role: admin } }]\n";

/// Answers like a backend that demands its secret. The response has the user that it read.
fn guarded(asked: &Asked) -> Reply {
    if asked.field("x-backend-secret") == Some(SECRET) || asked.line() == "GET /health" {
        return ok(json!({"user": asked.field("x-user-id"), "account": asked.field("x-account")}));
    }
    (401, String::new(), "{}".to_owned())
}

fn open(asked: &Asked) -> Reply {
    ok(json!({"user": asked.field("x-user-id")}))
}

fn yaml(issuer: &Issuer, backend: &Answerer, more: &str) -> String {
    let credential = if more.contains("upstream:") {
        String::new()
    } else {
        format!(
            "upstream: {{ url: \"{}\", credential: {{ header: X-Backend-Secret, value: {SECRET} }} }}\n",
            backend.url
        )
    };
    let providers =
        if more.contains("providers:") { String::new() } else { format!("providers: [{}]\n", issuer.provider()) };
    let routes = if more.contains("routes:") { "" } else { USUAL };
    format!("{credential}{providers}{routes}{more}")
}

/// Runs the doctor for a proxy at this address with this configuration. Returns the exit code, the names of failed
/// checks, and the output.
async fn doctor(at: SocketAddr, yaml: &str, arguments: &[&str]) -> (Option<i32>, BTreeSet<String>, String) {
    let admin = if yaml.contains("admin:") { "" } else { "admin: null\n" };
    let file = TempFile::new(&format!("listen: {at}\n{admin}{yaml}"));
    let mut command = command();
    command.args(["doctor", "--config", file.path()]).args(arguments);
    // The backend answers in this process meanwhile.
    let output = tokio::task::spawn_blocking(move || command.output().expect("runs")).await.expect("ran");
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let red = text.lines().filter_map(|line| line.strip_prefix("  RED  "));
    let red = red.map(|line| line.split("  ").next().unwrap_or(line).trim().to_owned()).collect();
    (output.status.code(), red, text)
}

fn only(name: &str) -> BTreeSet<String> {
    BTreeSet::from([name.to_owned()])
}

#[tokio::test]
async fn a_sound_deployment_has_nothing_red() {
    let (issuer, backend) = (Issuer::start().await, Answerer::start(guarded).await);
    let yaml = yaml(&issuer, &backend, "");
    let proxy = Proxy::start(&yaml).await;
    let token = TempFile::new(&issuer.token("alice"));
    let (code, red, text) = doctor(proxy.address, &yaml, &["--token-file", token.path()]).await;
    assert_eq!((code, red), (Some(0), BTreeSet::new()), "{text}");
    for said in [
        "ok   ready",
        "ok   anonymous",
        "ok   forged tokens",
        "ok   path spellings",
        "ok   own prefix",
        "ok   socket ",
        "ok   token in URL",
        "ok   foreign host",
        "ok   spoofed identity",
        "ok   upstream ",
        "ok   isolation: credential",
        "ok   secret in pages",
    ] {
        assert!(text.contains(said), "{said}\n{text}");
    }
    // No secret is printed.
    assert!(!text.contains(SECRET) && !text.contains(&issuer.token("alice")), "{text}");
    // The backend received GET requests alone.
    assert!(backend.asked().iter().all(|asked| asked.line().starts_with("GET ")));
}

#[tokio::test]
async fn its_own_token_in_a_url_is_not_in_the_table_of_those_that_clients_send() {
    let (issuer, backend) = (Issuer::start().await, Answerer::start(guarded).await);
    let proxy = Proxy::start(&yaml(&issuer, &backend, "admin: { listen: \"127.0.0.1:0\" }\n")).await;
    let says = yaml(&issuer, &backend, &format!("admin: {{ listen: \"{}\" }}\n", proxy.admin()));
    let (_, _, text) = doctor(proxy.address, &says, &[]).await;
    assert!(text.contains("?token= is taken out of a socket's URL"), "{text}");
    let status = get(proxy.admin(), "/status", &[]).await.body;
    assert!(status.contains("<h2>Tokens in URLs</h2>\n<p class=\"soft\">None since the start.</p>"), "{status}");
    // A verified token is listed all the same: that user agent hides none.
    let target = format!("/x?token={}", issuer.token("alice"));
    Socket::try_open(proxy.address, &target, &["User-Agent: vestibule-doctor"]).await;
    let status = get(proxy.admin(), "/status", &[]).await.body;
    assert!(status.contains("<td>a client without Origin</td>"), "{status}");
}

#[tokio::test]
async fn nobody_there_is_red_alone() {
    let (issuer, backend) = (Issuer::start().await, Answerer::start(guarded).await);
    let (code, red, text) = doctor(([127, 0, 0, 1], 1).into(), &yaml(&issuer, &backend, ""), &[]).await;
    assert_eq!((code, red), (Some(1), only("ready")), "{text}");
}

#[tokio::test]
async fn an_upstream_that_does_not_answer_is_red_and_no_isolation() {
    let (issuer, backend) = (Issuer::start().await, Answerer::start(guarded).await);
    // The port of a listener that is gone.
    let gone = std::net::TcpListener::bind("127.0.0.1:0").expect("bound").local_addr().expect("an address");
    for (upstream, said) in [
        (format!("http://{gone}"), format!("RED  upstream                http://{gone}: Connection refused")),
        (
            "http://nowhere.invalid:8000".to_owned(),
            "RED  upstream                the name in http://nowhere.invalid:8000 does not resolve".to_owned(),
        ),
    ] {
        let yaml = yaml(&issuer, &backend, &format!("upstream: {upstream}\n"));
        let proxy = Proxy::start(&yaml).await;
        let (code, red, text) = doctor(proxy.address, &yaml, &[]).await;
        assert_eq!((code, red), (Some(1), only("upstream")), "{text}");
        assert!(text.contains(&said) && text.contains("is answered 502"), "{said}\n{text}");
        assert!(text.contains("-    isolation               not tested"), "{text}");
        // Without an answer of the upstream nothing is known about what it does with a client's headers.
        assert!(text.contains("-    spoofed identity        GET /health is answered 502"), "{text}");
    }
}

#[tokio::test]
async fn a_process_that_accepts_development_tokens_is_red_and_says_so_first() {
    let (issuer, backend) = (Issuer::start().await, Answerer::start(guarded).await);
    let state = TempFolder::new();
    let runs = yaml(&issuer, &backend, "admin: { listen: \"127.0.0.1:0\" }\n");
    for is_insecure in [true, false] {
        let mut program = std::process::Command::new("sh");
        let script = format!("exec \"$0\" \"$@\" {}", if is_insecure { "--insecure-dev" } else { "" });
        program.args(["-c", &script]).arg(command().get_program()).env("XDG_STATE_HOME", &state.0);
        let proxy = Proxy::with_command(&runs, "info", program).await;
        let log = proxy.log();
        let warned = log.iter().position(|line| line.contains("development tokens are accepted (--insecure-dev)"));
        let listening = log.iter().position(|line| line.contains("\"msg\":\"listening\"")).expect("a start");
        assert_eq!(warned.is_some_and(|at| at < listening), is_insecure, "{log:?}");
        let says = yaml(&issuer, &backend, &format!("admin: {{ listen: \"{}\" }}\n", proxy.admin()));
        // A page of /status has what a client sends too.
        let origin = "Origin: development tokens are accepted (--insecure-dev)";
        let target = format!("/ws?token={}", issuer.expired("alice"));
        let mut refused = Socket::open(proxy.address, &target, &[origin]).await;
        refused.next_text().await;
        let status = get(proxy.admin(), "/status", &[]).await.body;
        assert!(status.contains("<td>development tokens are accepted"), "{status}");
        let (_, red, text) = doctor(proxy.address, &says, &[]).await;
        assert_eq!(red.contains("development tokens"), is_insecure, "{text}");
        assert_eq!(text.contains("ok   development tokens"), !is_insecure, "{text}");
    }
}

#[tokio::test]
async fn what_the_process_does_otherwise_than_the_file_is_red() {
    let (issuer, backend) = (Issuer::start().await, Answerer::start(guarded).await);
    let token = TempFile::new(&issuer.token("alice"));
    let with_token = ["--token-file", token.path()];
    // The running configuration, that of the file, and the failed checks.
    for (runs, says, expected) in [
        (
            "routes: [{ path: /health, auth: none }, { path: /team/**, auth: none }]\n",
            "routes: [{ path: /health, auth: none }, { path: /team/**, require: { role: admin } }]\n",
            "anonymous",
        ),
        ("token_from: { query: null }\n", "", "token in URL"),
        ("hosts: any\n", "", "foreign host"),
        (
            "identity: { headers: { X-User-Id: sub } }\n",
            "identity: { headers: { X-User-Id: sub, X-Account: sub } }\n",
            "spoofed identity",
        ),
    ] {
        let proxy = Proxy::start(&yaml(&issuer, &backend, runs)).await;
        let (code, red, text) = doctor(proxy.address, &yaml(&issuer, &backend, says), &with_token).await;
        assert_eq!((code, red), (Some(1), only(expected)), "{expected}: {text}");
    }
}

#[tokio::test]
async fn what_the_configuration_itself_leaves_open_is_red() {
    let (issuer, backend) = (Issuer::start().await, Answerer::start(guarded).await);
    for (more, expected) in [("token_from: { query: null }\n", "token in URL"), ("hosts: any\n", "foreign host")] {
        let yaml = yaml(&issuer, &backend, more);
        let proxy = Proxy::start(&yaml).await;
        let (code, red, text) = doctor(proxy.address, &yaml, &[]).await;
        assert_eq!((code, red), (Some(1), only(expected)), "{expected}: {text}");
    }
}

/// Answers in Vestibule's place and does one thing wrong.
fn impostor(wrong: &'static str) -> impl Fn(&Asked) -> Reply + Send + 'static {
    move |asked| {
        let path = asked.line().strip_prefix("GET ").unwrap_or_default();
        let refused =
            |status: u16, code: &str| (status, String::new(), json!({"code": code, "request_id": "1"}).to_string());
        let served = || ok(json!({}));
        let decoded = path.to_ascii_lowercase().replace("%2e", ".");
        match path {
            "/.vestibule/readyz" => (200, String::new(), "ready\n".to_owned()),
            _ if asked.field("host").is_some_and(|host| host.ends_with(".example")) => refused(421, "host_not_served"),
            "/health" => served(),
            _ if decoded.contains(".vestibule") => match wrong {
                "own prefix" => served(),
                _ => refused(404, "not_found"),
            },
            _ if asked.field("upgrade").is_some() => refused(401, "missing_token"),
            _ if asked.field("authorization").is_some() => match wrong {
                "forged tokens" => served(),
                _ => refused(401, "invalid_token"),
            },
            _ if path.starts_with("/ADMIN") && wrong == "path spellings" => served(),
            _ if path.starts_with("/admin") => refused(403, "forbidden"),
            _ => refused(401, "missing_token"),
        }
    }
}

#[tokio::test]
async fn an_impostor_is_found_out_by_what_it_does_wrong() {
    let (issuer, backend) = (Issuer::start().await, Answerer::start(guarded).await);
    for (wrong, expected) in [
        ("nothing", BTreeSet::new()),
        ("own prefix", only("own prefix")),
        ("forged tokens", only("forged tokens")),
        ("path spellings", only("path spellings")),
    ] {
        let at = Answerer::start(impostor(wrong)).await.url.trim_start_matches("http://").parse().expect("an address");
        let (_, red, text) = doctor(at, &yaml(&issuer, &backend, ""), &[]).await;
        assert_eq!(red, expected, "{wrong}: {text}");
    }
}

/// Answers upgrades with 101 and echoes messages; everything else is as it should be.
async fn open_sockets() -> SocketAddr {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("port");
    let address = listener.local_addr().expect("address");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\n") {
                    let Ok(byte) = stream.read_u8().await else { return };
                    head.push(byte);
                }
                let asked = Asked { head: String::from_utf8_lossy(&head).into_owned(), body: String::new() };
                if asked.field("upgrade").is_some() && !asked.line().contains("token=") {
                    let switching =
                        "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n";
                    let _ = stream.write_all(switching.as_bytes()).await;
                    let _ = stream.write_all(b"\x81\x05hello").await;
                    return;
                }
                let (status, _, body) = impostor("nothing")(&asked);
                let answer =
                    format!("HTTP/1.1 {status} x\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len());
                let _ = stream.write_all(answer.as_bytes()).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn a_backend_that_speaks_on_a_socket_without_a_token_is_red() {
    let (issuer, backend) = (Issuer::start().await, Answerer::start(guarded).await);
    let (_, red, text) = doctor(open_sockets().await, &yaml(&issuer, &backend, ""), &[]).await;
    assert_eq!(red, only("socket"), "{text}");
}

#[tokio::test]
async fn an_upstream_without_isolation_is_red() {
    let issuer = Issuer::start().await;
    let backend = Answerer::start(open).await;
    let provider = issuer.provider();
    for (more, expected) in [
        (format!("upstream: {}\n", backend.url), "isolation"),
        (
            format!(
                "upstream: {{ url: \"{}\", credential: {{ header: X-Backend-Secret, value: {SECRET} }} }}\n",
                backend.url
            ),
            "isolation: credential",
        ),
        (format!("upstream: {}\nidentity: {{ assertion: {{ }} }}\n", backend.url), "isolation: assertion"),
    ] {
        let yaml = yaml(&issuer, &backend, &more);
        let proxy = Proxy::start(&yaml).await;
        let (_, red, text) = doctor(proxy.address, &yaml, &[]).await;
        assert_eq!(red, only(expected), "{expected}: {text}");
    }
    // The file admits one user alone, while the running program admits another too.
    let alone = provider.replace(" }", ", allow: { users: [alice] } }");
    let alone = yaml(&issuer, &backend, &format!("upstream: {}\nproviders: [{alone}]\n", backend.url));
    let everyone = yaml(&issuer, &backend, &format!("upstream: {}\n", backend.url));
    for (runs, user, expected) in [
        (&everyone, "bob", only("isolation: one user")),
        (&alone, "alice", BTreeSet::new()),
        (&alone, "bob", BTreeSet::new()),
    ] {
        let token = TempFile::new(&issuer.token(user));
        let proxy = Proxy::start(runs).await;
        let (_, red, text) = doctor(proxy.address, &alone, &["--token-file", token.path()]).await;
        assert_eq!(red, expected, "{user}: {text}");
        assert_eq!(text.contains("ok   isolation: one user"), expected != only("isolation: one user"), "{text}");
    }
}

#[tokio::test]
async fn a_unix_socket_that_everyone_opens_is_red() {
    let (issuer, folder) = (Issuer::start().await, TempFolder::new());
    let path = folder.0.join("backend.sock");
    let _backend = tokio::net::UnixListener::bind(&path).expect("bound");
    let unused = Answerer::start(open).await;
    let yaml = yaml(
        &issuer,
        &unused,
        &format!("upstream: unix:{}\nroutes: [{{ path: /admin/**, auth: deny }}]\n", path.display()),
    );
    let proxy = Proxy::start(&yaml).await;
    for (mode, expected) in [(0o666, only("isolation: unix socket")), (0o660, BTreeSet::new())] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("set");
        let (_, red, text) = doctor(proxy.address, &yaml, &[]).await;
        assert_eq!(red, expected, "{mode:o}: {text}");
    }
}

/// Returns whether this machine has an address for other machines. Without one the check cannot be made.
fn has_another_address() -> bool {
    let socket = std::net::UdpSocket::bind("0.0.0.0:0").expect("bound");
    socket.connect("192.0.2.1:9").is_ok() && socket.local_addr().is_ok_and(|address| !address.ip().is_loopback())
}

#[tokio::test]
async fn what_other_machines_reach_is_red() {
    if !has_another_address() {
        println!("skipped: this machine has no other address");
        return;
    }
    let issuer = Issuer::start().await;
    let everywhere = Answerer::start_on("0.0.0.0", guarded).await;
    let around = yaml(&issuer, &everywhere, "");
    let proxy = Proxy::start(&around).await;
    let (_, red, text) = doctor(proxy.address, &around, &[]).await;
    assert_eq!(red, only("backend"), "{text}");
    let backend = Answerer::start(guarded).await;
    let admin = Answerer::start_on("0.0.0.0", open).await;
    let port = admin.url.rsplit(':').next().expect("a port").to_owned();
    let proxy = Proxy::start(&yaml(&issuer, &backend, "")).await;
    let says = yaml(&issuer, &backend, &format!("admin: {{ listen: \":{port}\" }}\n"));
    let (_, red, text) = doctor(proxy.address, &says, &[]).await;
    assert_eq!(red, only("admin"), "{text}");
}

#[tokio::test]
async fn a_control_socket_that_others_open_and_a_stale_configuration_are_red() {
    let (issuer, backend) = (Issuer::start().await, Answerer::start(guarded).await);
    let folder = TempFolder::new();
    let path = folder.0.join("control.sock");
    let controlled = yaml(&issuer, &backend, &format!("control: {{ listen: \"unix:{}\" }}\n", path.display()));
    let proxy = Proxy::start(&controlled).await;
    for (mode, expected) in [(0o666, only("control")), (0o600, BTreeSet::new())] {
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(mode)).expect("set");
        let (_, red, text) = doctor(proxy.address, &controlled, &[]).await;
        assert_eq!(red, expected, "{mode:o}: {text}");
    }
    let proxy = Proxy::start(&yaml(&issuer, &backend, "admin: { listen: \"127.0.0.1:0\" }\n")).await;
    let admin = proxy.admin();
    let says = yaml(&issuer, &backend, &format!("admin: {{ listen: \"{admin}\" }}\n"));
    let (_, red, text) = doctor(proxy.address, &says, &[]).await;
    assert_eq!(red, only("configuration"), "{text}");
}
