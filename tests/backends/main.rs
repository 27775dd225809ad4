//! Tests of real backends behind the built program: Jupyter Server and marimo from their packages, each with its own
//! token or password, and a `FastAPI` notebook of the kind for which the product is made.
//!
//! The Python packages are installed once into `target/backends`. On a machine without `python3` these
//! tests say so and pass, except where `CI` is set.

#![allow(clippy::missing_docs_in_private_items, reason = "modules of one test program")]
#![allow(clippy::expect_used, clippy::unwrap_used, reason = "in a test a failed expectation is the answer")]
#![allow(clippy::print_stderr, clippy::too_many_lines, clippy::cast_possible_truncation)]
#![allow(clippy::needless_pass_by_value, clippy::items_after_statements, clippy::unused_self)]
#![allow(clippy::missing_panics_doc, clippy::large_futures, clippy::large_stack_arrays, clippy::format_push_string)]

#[path = "../program/support/mod.rs"]
#[allow(dead_code, reason = "shared with the tests of the program, which use all of it")]
mod support;

mod fronts;
mod paths;
mod request_fields;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::time::Duration;

use base64::Engine as _;
use serde_json::{Value, json};

use support::client::{Answer, Client, bearer, get, request};
use support::issuer::Issuer;
use support::proxy::Proxy;
use support::socket::Socket;
use support::within;

/// Returns the Python of the virtual environment; `None` on a machine without Python.
fn python() -> Option<&'static Path> {
    static PYTHON: OnceLock<Option<PathBuf>> = OnceLock::new();
    PYTHON
        .get_or_init(|| {
            let there = Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success());
            if !there {
                assert!(std::env::var_os("CI").is_none(), "python3 is needed for the tests with real backends");
                eprintln!("skipped: these tests need python3");
                return None;
            }
            Some(environment())
        })
        .as_deref()
}

fn environment() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let requirements = root.join("tests/backends/requirements.txt");
    let folder = root.join("target/backends");
    let python = folder.join("bin/python");
    let wanted = std::fs::read_to_string(&requirements).expect("requirements");
    let marker = folder.join("installed.txt");
    if std::fs::read_to_string(&marker).is_ok_and(|installed| installed == wanted) {
        return python;
    }
    let run = |command: &mut Command| {
        let output = command.output().expect("runs");
        assert!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    };
    run(Command::new("python3").args(["-m", "venv"]).arg(&folder));
    run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--requirement"]).arg(&requirements));
    std::fs::write(&marker, wanted).expect("written");
    python
}

/// A backend's process and a folder of its own; both are removed with the test.
struct Backend {
    child: Child,
    address: SocketAddr,
    folder: PathBuf,
}

impl Drop for Backend {
    fn drop(&mut self) {
        // The whole group is killed: kernels are children of the server.
        let _ = Command::new("kill").args(["-KILL", "--", &format!("-{}", self.child.id())]).status();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Backend {
    async fn start(name: &str, python: &Path, arguments: impl Fn(u16) -> Vec<String>, prepare: impl Fn(&Path)) -> Self {
        Self::start_with(name, python, arguments, prepare, &[]).await
    }

    async fn start_with(
        name: &str,
        python: &Path,
        arguments: impl Fn(u16) -> Vec<String>,
        prepare: impl Fn(&Path),
        environment: &[(&str, &str)],
    ) -> Self {
        use std::os::unix::process::CommandExt as _;
        let folder = std::env::temp_dir().join(format!("vestibule-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&folder).expect("folder");
        prepare(&folder);
        let port = support::unused_port();
        let log = std::fs::File::create(folder.join("backend.log")).expect("log");
        let child = Command::new(python)
            .args(arguments(port))
            .current_dir(&folder)
            .env("HOME", &folder)
            .envs(environment.iter().copied())
            .env("JUPYTER_RUNTIME_DIR", folder.join("runtime"))
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("log"))
            .stderr(log)
            .process_group(0)
            .spawn()
            .expect("the backend starts");
        let mut backend = Self { child, address: SocketAddr::from(([127, 0, 0, 1], port)), folder };
        within(name, async {
            while tokio::net::TcpStream::connect(backend.address).await.is_err() {
                if let Some(status) = backend.child.try_wait().expect("status") {
                    panic!(
                        "{name} ended with {status}: {}",
                        std::fs::read_to_string(backend.folder.join("backend.log")).unwrap_or_default()
                    );
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        })
        .await;
        backend
    }
}

fn provider(issuer: &Issuer) -> String {
    format!("providers: [{}]\n", issuer.provider())
}

async fn call(proxy: &Proxy, method: &str, target: &str, fields: &[&str], body: &Value) -> Answer {
    let text = if body.is_null() { String::new() } else { body.to_string() };
    let mut all = vec!["Content-Type: application/json"];
    all.extend_from_slice(fields);
    request(proxy.address, method, target, &all, &text).await
}

#[tokio::test(flavor = "multi_thread")]
async fn jupyter_server_runs_a_cell_for_a_bearer_token() {
    let Some(python) = python() else { return };
    const TOKEN: &str = "the-backends-own-token-9a8b7c";
    let backend = Backend::start(
        "jupyter",
        python,
        |port| {
            [
                "-m",
                "jupyter_server",
                "--ServerApp.ip=127.0.0.1",
                &format!("--ServerApp.port={port}"),
                "--ServerApp.open_browser=False",
                &format!("--IdentityProvider.token={TOKEN}"),
                "--ServerApp.allow_root=True",
                "--ServerApp.port_retries=0",
            ]
            .map(str::to_owned)
            .to_vec()
        },
        |_| {},
    )
    .await;
    let issuer = Issuer::start().await;
    let yaml = format!(
        "upstream: {{ url: \"http://{}\", credential: {{ header: Authorization, value: \"token {TOKEN}\" }} }}\n{}routes: [{{ path: /api/kernels/**, websocket: {{ subprotocols: [v1.kernel.websocket.jupyter.org] }} }}]\n",
        backend.address,
        provider(&issuer)
    );
    let proxy = Proxy::start(&yaml).await;
    let credential = bearer(&issuer.token("alice"));
    let fields = [credential.as_str()];
    // The table of credentials in docs/contract.md section 3.
    let expired = bearer(&issuer.expired("alice"));
    let foreign = bearer(&issuer.token_with("alice", json!({"iss": "https://elsewhere.example"})));
    let twice = [credential.as_str(), credential.as_str()];
    let cases: [(&[&str], u16, &str); 6] = [
        (&[], 401, "missing_token"),
        (&["Authorization: "], 401, "missing_token"),
        (&[&expired], 401, "token_expired"),
        (&["Authorization: Basic YTpi"], 401, "invalid_request"),
        (&twice, 401, "invalid_request"),
        (&[&foreign], 401, "invalid_token"),
    ];
    for (fields, status, code) in cases {
        let answer = get(proxy.address, "/api/contents", fields).await;
        assert_eq!((answer.status, answer.code().as_str()), (status, code));
    }
    // The backend is not open: around the proxy, and with the client's own token, it refuses.
    assert_eq!(get(backend.address, "/api/contents", &[]).await.status, 403);
    assert_eq!(get(backend.address, "/api/contents", &fields).await.status, 403);
    let notebook =
        json!({"type": "notebook", "content": {"cells": [], "metadata": {}, "nbformat": 4, "nbformat_minor": 5}});
    assert_eq!(call(&proxy, "PUT", "/api/contents/made.ipynb", &fields, &notebook).await.status, 201);
    let listed = get(proxy.address, "/api/contents", &fields).await;
    assert!(
        listed.json()["content"].as_array().expect("a list").iter().any(|entry| entry["name"] == "made.ipynb"),
        "{listed:?}"
    );
    let kernel = call(&proxy, "POST", "/api/kernels", &fields, &json!({})).await;
    assert_eq!(kernel.status, 201, "{kernel:?}");
    let id = kernel.json()["id"].as_str().expect("an id").to_owned();
    let target = format!("/api/kernels/{id}/channels?session_id=test");
    // The credential on the upgrade, and in band as a browser would.
    let mut on_upgrade = Socket::open(proxy.address, &target, &fields).await;
    assert_eq!(answer_of_jupyter(&mut on_upgrade, "21*2").await, "42");
    let mut in_band = Socket::open(proxy.address, &target, &[]).await;
    assert_eq!(in_band.authenticate(&issuer.token("alice")).await["user_id"], "alice");
    assert_eq!(answer_of_jupyter(&mut in_band, "sum(range(10))").await, "45");
    // Binary frames of the kernel's subprotocol, chosen by us before the upstream was asked.
    let offer = ["Sec-WebSocket-Protocol: v1.kernel.websocket.jupyter.org"];
    let (answer, _) = Socket::try_open(proxy.address, &target, &offer).await;
    assert_eq!(answer.field("sec-websocket-protocol"), Some("v1.kernel.websocket.jupyter.org"));
}

/// Runs code over a kernel's socket and returns the text of its result.
async fn answer_of_jupyter(socket: &mut Socket, code: &str) -> String {
    let message = json!({
        "header": {"msg_id": format!("test-{code}"), "msg_type": "execute_request", "username": "test", "session": "test", "version": "5.3", "date": "2026-01-01T00:00:00Z"},
        "parent_header": {}, "metadata": {}, "channel": "shell",
        "content": {"code": code, "silent": false, "store_history": true, "user_expressions": {}, "allow_stdin": false, "stop_on_error": true}
    });
    socket.say(&message.to_string()).await;
    loop {
        let frame = socket.next().await;
        if frame.opcode != 1 {
            continue;
        }
        let said: Value = serde_json::from_str(frame.text()).expect("json");
        if said["msg_type"] == "execute_result" && said["parent_header"]["msg_id"] == format!("test-{code}") {
            return said["content"]["data"]["text/plain"].as_str().expect("text").to_owned();
        }
    }
}

/// Returns the setup that `check` prints for a backend by preset, without the two columns.
fn setup(yaml: &str) -> String {
    let file = support::proxy::TempFile::new(yaml);
    let output = support::proxy::command().args(["check", "--config", file.path()]).output().expect("runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout).expect("utf-8")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_with_a_session_has_a_name_in_jupyter_as_check_says_it_is_set_up() {
    let Some(python) = python() else { return };
    const TOKEN: &str = "the-backends-own-token-9a8b7c";
    let issuer = Issuer::start().await;
    let yaml = |url: &str| {
        format!(
            "upstream: {{ url: \"{url}\", preset: jupyter, credential: {{ header: Authorization, value: \"token {TOKEN}\" }} }}\n{}",
            provider(&issuer)
        )
    };
    let said = setup(&yaml("http://127.0.0.1:8888"));
    let (_, config) = said.split_once("\n# jupyter_server_config.py\n").expect("a file");
    assert!(config.contains("identity_provider_class"), "{said}");
    let backend = Backend::start_with(
        "jupyter-names",
        python,
        |port| {
            [
                "-m",
                "jupyter_server",
                "--ServerApp.ip=127.0.0.1",
                &format!("--ServerApp.port={port}"),
                "--ServerApp.open_browser=False",
                "--ServerApp.allow_remote_access=True",
                "--ServerApp.allow_root=True",
                "--ServerApp.port_retries=0",
                "--config=jupyter_server_config.py",
            ]
            .map(str::to_owned)
            .to_vec()
        },
        |folder| std::fs::write(folder.join("jupyter_server_config.py"), config).expect("written"),
        &[("JUPYTER_TOKEN", TOKEN)],
    )
    .await;
    let proxy = Proxy::start(&yaml(&format!("http://{}", backend.address))).await;
    let credential = bearer(&issuer.token("alice"));
    let signed_in = request(proxy.address, "POST", "/.vestibule/session", &[&credential], "").await;
    let cookie = signed_in.field("set-cookie").and_then(|line| line.split(';').next()).expect("a cookie");
    let cookie = format!("Cookie: {cookie}");
    let me = get(proxy.address, "/api/me", &[&cookie]).await;
    assert_eq!((me.status, me.json()["identity"]["username"].as_str()), (200, Some("alice")), "{}", me.body);
    // It sets no cookie of its own that would outlive the proxy's, and refuses requests without its token.
    assert!(!me.head.to_ascii_lowercase().contains("username-"), "{}", me.head);
    assert_eq!(get(proxy.address, "/api/me", &[]).await.status, 401);
    assert_eq!(get(backend.address, "/api/me", &["X-User-Id: root"]).await.status, 403);
    let token = format!("Authorization: token {TOKEN}");
    assert_eq!(get(backend.address, "/api/me", &[&token]).await.status, 403, "not from us");
    // A kernel by the cookie, from a page of ours and from no other.
    let fields = [cookie.as_str(), "Origin: http://localhost"];
    let kernel = call(&proxy, "POST", "/api/kernels", &[&credential], &json!({"name": "python3"})).await;
    assert_eq!(kernel.status, 201, "{}", kernel.body);
    let channels = format!("/api/kernels/{}/channels", kernel.json()["id"].as_str().expect("an id"));
    let mut socket = Socket::open(proxy.address, &channels, &fields).await;
    assert_eq!(answer_of_jupyter(&mut socket, "6*7").await, "42");
    // What runs there cannot read the token in its environment.
    let read = "__import__('os').environ.get('JUPYTER_TOKEN', 'nothing')";
    assert_eq!(answer_of_jupyter(&mut socket, read).await, "'nothing'");
    let foreign = [cookie.as_str(), "Origin: https://evil.example"];
    assert_eq!(Socket::try_open(proxy.address, &channels, &foreign).await.0.status, 403);
    let gone = request(proxy.address, "DELETE", "/.vestibule/session", &fields, "").await;
    assert_eq!(gone.status, 204);
    loop {
        let frame = socket.next().await;
        if frame.opcode == 8 {
            assert_eq!(frame.close(), (1008, "Session ended".into()));
            break;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn marimo_runs_a_cell_for_a_bearer_token() {
    let Some(python) = python() else { return };
    const PASSWORD: &str = "the-backends-own-password-1f2e3d";
    let backend = Backend::start(
        "marimo",
        python,
        |port| {
            ["-m", "marimo", "--yes", "edit", "notebook.py", "--headless", "--host", "127.0.0.1", "--port", &port.to_string(), "--token-password", PASSWORD, "--skip-update-check"]
                .map(str::to_owned)
                .to_vec()
        },
        |folder| {
            let source = "import marimo\n\napp = marimo.App()\n\n\n@app.cell\ndef _():\n    x = 21\n    return (x,)\n\n\nif __name__ == \"__main__\":\n    app.run()\n";
            std::fs::write(folder.join("notebook.py"), source).expect("written");
        },
    )
    .await;
    let issuer = Issuer::start().await;
    let basic = base64::engine::general_purpose::STANDARD.encode(format!("vestibule:{PASSWORD}"));
    let yaml = format!(
        "upstream: {{ url: \"http://{}\", credential: {{ header: Authorization, value: \"Basic {basic}\" }} }}\n{}",
        backend.address,
        provider(&issuer)
    );
    let proxy = Proxy::start(&yaml).await;
    let credential = bearer(&issuer.token("alice"));
    let fields = [credential.as_str()];
    assert_eq!(get(proxy.address, "/", &[]).await.status, 401);
    assert_eq!(get(backend.address, "/api/status", &[]).await.status, 401);
    let page = get(proxy.address, "/", &fields).await;
    assert_eq!(page.status, 200);
    let server_token = page
        .body
        .split("\"serverToken\": \"")
        .nth(1)
        .or_else(|| page.body.split("\"serverToken\":\"").nth(1))
        .and_then(|rest| rest.split('"').next())
        .expect("the page names its server token")
        .to_owned();
    let mut socket = Socket::open(proxy.address, "/ws?session_id=s_test01&file=notebook.py", &[]).await;
    assert_eq!(socket.authenticate(&issuer.token("alice")).await["user_id"], "alice");
    let ready: Value = serde_json::from_str(&next_text_of_any_size(&mut socket).await).expect("json");
    assert_eq!(ready["op"], "kernel-ready");
    let cell = ready["data"]["cell_ids"][0].as_str().expect("a cell").to_owned();
    let server_field = format!("Marimo-Server-Token: {server_token}");
    let fields = [credential.as_str(), "Marimo-Session-Id: s_test01", &server_field];
    let body = json!({"objectIds": [], "values": [], "autoRun": true});
    assert_eq!(call(&proxy, "POST", "/api/kernel/instantiate", &fields, &body).await.status, 200);
    let body = json!({"cellIds": [cell], "codes": ["21*2"]});
    assert_eq!(call(&proxy, "POST", "/api/kernel/run", &fields, &body).await.status, 200);
    within("the cell's output", async {
        loop {
            let said: Value = serde_json::from_str(&next_text_of_any_size(&mut socket).await).expect("json");
            let output = said["data"]["output"]["data"].as_str().unwrap_or_default();
            if said["op"] == "cell-op" && output.contains("42") {
                return;
            }
        }
    })
    .await;
}

/// Returns the next whole text, with its fragments joined.
async fn next_text_of_any_size(socket: &mut Socket) -> String {
    let mut text = Vec::new();
    loop {
        let frame = socket.next().await;
        match frame.opcode {
            0 | 1 => text.extend_from_slice(&frame.payload),
            _ => continue,
        }
        if frame.fin {
            return String::from_utf8(text).expect("text");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fastapi_notebook_sees_the_verified_user_over_http_and_websocket() {
    let Some(python) = python() else { return };
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/backends/notebook_app.py");
    let backend = Backend::start(
        "fastapi",
        python,
        |port| {
            ["-m", "uvicorn", "notebook_app:app", "--host", "127.0.0.1", "--port", &port.to_string()]
                .map(str::to_owned)
                .to_vec()
        },
        |folder| {
            std::fs::copy(&source, folder.join("notebook_app.py")).expect("copied");
        },
    )
    .await;
    let issuer = Issuer::start().await;
    let proxy = Proxy::start(&format!(
        "upstream: http://{}\n{}routes: [{{ path: /health, auth: none }}]\nwebsocket: {{ grace: 0s }}\n",
        backend.address,
        provider(&issuer)
    ))
    .await;
    let (alice, bob) = (issuer.token("alice"), issuer.token("bob"));
    let (as_alice, as_bob) = (bearer(&alice), bearer(&bob));
    assert_eq!(get(proxy.address, "/health", &[]).await.status, 200);
    assert_eq!(get(proxy.address, "/api/notebooks/", &[]).await.code(), "missing_token");
    assert_eq!(get(proxy.address, "/api/notebooks/", &[&as_alice]).await.json(), json!(["n1", "n3"]));
    assert_eq!(get(proxy.address, "/api/notebooks/", &[&as_bob, "X-User-Id: alice"]).await.json(), json!(["n2"]));
    // The redirect of a collection names the host the client asked.
    let redirected = get(proxy.address, "/api/notebooks", &[&as_alice]).await;
    assert_eq!((redirected.status, redirected.field("location")), (307, Some("http://localhost/api/notebooks/")));
    let foreign = get(proxy.address, "/api/notebooks/n2", &[&as_alice]).await;
    assert_eq!((foreign.status, foreign.json()), (403, json!({"detail": "another user's notebook"})));
    // The user opens a socket of their own notebook, and none of another user's.
    let mut socket = Socket::open(proxy.address, "/ws/notebooks/n1", &[]).await;
    assert_eq!(socket.authenticate(&alice).await["type"], "authenticated");
    socket.say(r#"{"hello":1}"#).await;
    let echo: Value = serde_json::from_str(&socket.next_text().await).expect("json");
    assert_eq!((echo["user"].as_str(), &echo["message"]), (Some("alice"), &json!({"hello": 1})));
    let mut refused = Socket::open(proxy.address, "/ws/notebooks/n2", &[]).await;
    assert_eq!(refused.authenticate(&alice).await["message"], "Access denied");
    assert_eq!(refused.next_close().await, (1008, "Access denied".into()));
    // The frame that a request causes is there when its answer is.
    for cell in 0..20 {
        let target = format!("/api/notebooks/n1/cells/{cell}/run");
        let fields = [as_alice.as_str()];
        let answered = request(proxy.address, "POST", &target, &fields, "");
        let (pushed, answer) = tokio::join!(socket.next_text(), answered);
        assert_eq!(answer.status, 200);
        let pushed: Value = serde_json::from_str(&pushed).expect("json");
        assert_eq!((pushed["type"].as_str(), pushed["cell"].as_u64()), (Some("cell_updated"), Some(cell)));
    }
    // A widely used client, with its defaults and its own reconnect.
    let dying = issuer.token_with("alice", json!({"exp": support::now() - 2}));
    let client = Command::new(python)
        .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/backends/websockets_client.py"))
        .env("SOCKET_URL", format!("ws://{}/ws/notebooks/n1", proxy.address))
        .env("TOKENS", format!("{dying},{alice}"))
        .output();
    let output = client.expect("python runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    // A chat as a streamed POST: each word arrives by itself.
    let mut client = Client::connect(proxy.address).await;
    client.send(format!("POST /api/chat HTTP/1.1\r\nHost: localhost\r\nContent-Length: 0\r\n{as_alice}\r\n\r\n")).await;
    for word in ["hello\n", "alice\n", "and\n", "goodbye\n"] {
        client.until(word).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backend_that_believes_signed_assertions_believes_nobody_else() {
    let Some(python) = python() else { return };
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let key = support::proxy::TempFile::new("");
    std::fs::remove_file(&key.0).expect("removed");
    let made = support::proxy::command().args(["token", "assertion-key", "--new", key.path()]).output().expect("runs");
    let keys = support::proxy::TempFile::new(&String::from_utf8(made.stdout).expect("text"));
    let backend = Backend::start_with(
        "guarded",
        python,
        |port| {
            ["-m", "uvicorn", "guarded_app:app", "--host", "127.0.0.1", "--port", &port.to_string()]
                .map(str::to_owned)
                .to_vec()
        },
        |folder| {
            for source in ["tests/backends/guarded_app.py", "docs/asgi/vestibule_assertion.py"] {
                let source = root.join(source);
                std::fs::copy(&source, folder.join(source.file_name().expect("a name"))).expect("copied");
            }
        },
        &[("KEYS", keys.path())],
    )
    .await;
    let issuer = Issuer::start().await;
    let yaml = |upstream: SocketAddr| {
        format!(
            "upstream: http://{upstream}\n{}identity: {{ assertion: {{ key_file: \"{}\", audience: guarded }} }}\nroutes: [{{ path: /open/**, auth: none }}]\n",
            provider(&issuer),
            key.path()
        )
    };
    let proxy = Proxy::start(&yaml(backend.address)).await;
    let alice = issuer.token("alice");
    let credential = bearer(&alice);
    for (method, target) in [("GET", "/a"), ("POST", "/a?b=c"), ("GET", "/caf%C3%A9/%20x")] {
        let answer = request(proxy.address, method, target, &[&credential], "").await;
        assert_eq!((answer.status, answer.json()), (200, json!({"user": "alice"})), "{method} {target}");
    }
    let mut socket = Socket::open(proxy.address, "/ws", &[]).await;
    assert_eq!(socket.authenticate(&alice).await["type"], "authenticated");
    assert_eq!(socket.next_text().await, "alice");
    // A neighbour reaches the backend's port, with and without the proxy's header name; so does the proxy's own public
    // route.
    assert_eq!(get(backend.address, "/a", &[]).await.status, 403);
    assert_eq!(get(backend.address, "/a", &["X-User-Id: alice", "X-Vestibule-Assertion: x"]).await.status, 403);
    assert_eq!(get(proxy.address, "/open/a", &["X-Vestibule-Assertion: x"]).await.status, 403);
    let (refused, _) = Socket::try_open(backend.address, "/ws", &[]).await;
    assert_eq!(refused.status, 403);
    // An intercepted assertion is not valid for another request, nor twice in a header.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("port");
    let ear = Proxy::start(&yaml(listener.local_addr().expect("address"))).await;
    let mut client = Client::connect(ear.address).await;
    client.send(format!("GET /a HTTP/1.1\r\nHost: localhost\r\n{credential}\r\n\r\n")).await;
    let (stream, _) = within("the upstream to be dialled", listener.accept()).await.expect("accepts");
    let head = Client::over(stream).until("\r\n\r\n").await;
    let assertion = head.lines().find(|line| line.starts_with("x-vestibule-assertion")).expect("asserted").to_owned();
    assert_eq!(get(backend.address, "/a", &[&assertion]).await.status, 200, "the same request, within its minute");
    assert_eq!(get(backend.address, "/b", &[&assertion]).await.status, 403);
    assert_eq!(request(backend.address, "POST", "/a", &[&assertion], "").await.status, 403);
    assert_eq!(get(backend.address, "/a", &[&assertion, &assertion]).await.status, 403);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wsgi_backend_reads_no_look_alike() {
    let Some(python) = python() else { return };
    // CGI maps `X-User-Id` and `X_User_Id` to one name, and WSGI applications read that name.
    let source = "import sys\nfrom wsgiref.simple_server import make_server\ndef app(environ, start):\n    start('200 OK', [('Content-Type', 'text/plain')])\n    return [environ.get('HTTP_X_USER_ID', 'nobody').encode()]\nmake_server('127.0.0.1', int(sys.argv[1]), app).serve_forever()\n";
    let backend =
        Backend::start("wsgi", python, |port| vec!["-c".to_owned(), source.to_owned(), port.to_string()], |_| {}).await;
    let issuer = Issuer::start().await;
    let proxy = Proxy::start(&format!(
        "upstream: http://{}\n{}routes: [{{ path: /open, auth: none }}]\n",
        backend.address,
        provider(&issuer)
    ))
    .await;
    let credential = bearer(&issuer.token("alice"));
    for spoofed in ["X-User-Id: mallory", "X_User_Id: mallory", "x_user-id: mallory", "X.User.Id: mallory"] {
        let answer = get(proxy.address, "/x", &[&credential, spoofed]).await;
        assert_eq!((answer.status, answer.body.as_str()), (200, "alice"), "{spoofed}");
        assert_eq!(get(proxy.address, "/open", &[spoofed]).await.body, "nobody", "{spoofed}");
    }
}

/// Reads a schema and then documents from standard input, separated by `---8<---`, and says `yes` or `no` of each.
const VALIDATE: &str = r#"
import json, sys, yaml
from jsonschema import Draft202012Validator
parts = sys.stdin.read().split("---8<---\n")
schema = json.loads(parts[0])
Draft202012Validator.check_schema(schema)
for text in parts[1:]:
    print("yes" if Draft202012Validator(schema).is_valid(yaml.safe_load(text)) else "no")
"#;

#[tokio::test]
async fn the_schema_takes_what_the_program_takes_and_no_unknown_key() {
    let Some(python) = python() else { return };
    let schema = support::proxy::command().arg("schema").output().expect("runs").stdout;
    let example = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/config.example.yaml")).expect("text");
    let documents = [
        (example.as_str(), "yes"),
        ("listen: \":8080\"\nupstream: http://127.0.0.1:8000\n", "yes"),
        (
            "listen: [\":8080\", { address: \"unix:/x\" }]\nupstream: { url: \"http://a\", tls: { ca_file: x } }\n",
            "yes",
        ),
        ("origins: \"${ALLOWED}\"\nlimits: { connections: \"${N}\", body_bytes: 1MiB }\n", "yes"),
        ("identity: { headers: { X-User-Id: sub, X-Name: { claim: name, encode: percent } } }\n", "yes"),
        (
            "routes: [{ path: /x, websocket: { dialect: none, max_lifetime: null }, token_from: { query: null } }]\n",
            "yes",
        ),
        ("admin: null\nhosts: any\nproviders: [{ preset: oidc, audience: [a, b] }]\n", "yes"),
        ("upstreams: http://a\n", "no"),
        ("limits: { connections: many }\n", "no"),
        ("routes: [{ path: /x, auth: nobody }]\n", "no"),
        ("providers: [{ preset: oidc, audiences: [a] }]\n", "no"),
    ];
    let mut input = String::from_utf8(schema).expect("utf-8");
    for (document, _) in documents {
        input.push_str("---8<---\n");
        input.push_str(document);
    }
    let mut child = Command::new(python)
        .args(["-c", VALIDATE])
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .expect("python");
    std::io::Write::write_all(&mut child.stdin.take().expect("piped"), input.as_bytes()).expect("written");
    let output = child.wait_with_output().expect("its output");
    let verdicts: Vec<_> = std::str::from_utf8(&output.stdout).expect("utf-8").lines().collect();
    assert_eq!(verdicts.len(), documents.len(), "{verdicts:?}");
    for ((document, expected), verdict) in documents.iter().zip(verdicts) {
        assert_eq!(verdict, *expected, "{document}");
    }
}
