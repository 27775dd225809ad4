//! Another configuration without a restart: by SIGHUP and by a changed file, all or nothing, and open sockets judged
//! by it.

use serde_json::json;

use crate::support::authority::Authority;
use crate::support::backend::Backend;
use crate::support::client::{Client, bearer, get};
use crate::support::issuer::{Issuer, Key, Mood};
use crate::support::proxy::{Proxy, TempFile, TempFolder, command, is_reload};
use crate::support::socket::Socket;

struct Fixture {
    issuer: Issuer,
    backend: Backend,
    proxy: Proxy,
}

impl Fixture {
    async fn with(more: &str) -> Self {
        let (issuer, backend) = (Issuer::start().await, Backend::start().await);
        let proxy = Proxy::start(&yaml(&issuer, &backend, more)).await;
        Self { issuer, backend, proxy }
    }

    /// Writes the file anew and asks for it.
    async fn reload(&mut self, more: &str) -> String {
        let before = self.proxy.log().len();
        self.proxy.rewrite(&yaml(&self.issuer, &self.backend, more));
        self.proxy.signal("HUP");
        self.proxy.logged_after(before, "a reload", is_reload).await
    }

    async fn socket(&self, target: &str, token: &str) -> (Socket, Socket) {
        let mut client = Socket::open(self.proxy.address, target, &[]).await;
        let (_, (_, upstream)) = tokio::join!(client.authenticate(token), self.backend.websocket());
        (client, upstream)
    }
}

fn yaml(issuer: &Issuer, backend: &Backend, more: &str) -> String {
    let providers =
        if more.contains("providers:") { String::new() } else { format!("providers: [{}]\n", issuer.provider()) };
    format!("upstream: {}\n{providers}{more}", backend.url())
}

#[tokio::test]
async fn sighup_puts_another_policy_in_force_on_connections_that_are_open() {
    let mut fixture = Fixture::with("").await;
    let mut client = Client::connect(fixture.proxy.address).await;
    client.send("GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert_eq!(client.answer().await.status, 401);
    fixture.reload("routes: [{ path: /health, auth: none }]\n").await;
    client.send("GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    let (answer, _) = tokio::join!(client.answer(), fixture.backend.answer("up"));
    assert_eq!((answer.status, answer.body.as_str()), (200, "up"));
    fixture.reload("routes: [{ path: /health, auth: deny }]\n").await;
    client.send("GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert_eq!(client.answer().await.status, 403);
}

#[tokio::test]
async fn a_changed_file_is_followed_without_being_asked() {
    let fixture = Fixture::with("").await;
    fixture.proxy.rewrite(&yaml(&fixture.issuer, &fixture.backend, "routes: [{ path: /health, auth: deny }]\n"));
    fixture.proxy.logged("the reload", |line| line.contains("configuration reloaded")).await;
    assert_eq!(get(fixture.proxy.address, "/health", &[]).await.status, 403);
}

#[tokio::test]
async fn a_swapped_link_is_followed_as_configmaps_swap_them() {
    let (issuer, backend) = (Issuer::start().await, Backend::start().await);
    let folder = TempFolder::new();
    let version = |name: &str, more: &str| {
        std::fs::create_dir(folder.0.join(name)).expect("a folder");
        let text = format!("listen: 127.0.0.1:0\nadmin: null\n{}", yaml(&issuer, &backend, more));
        std::fs::write(folder.0.join(name).join("vestibule.yaml"), text).expect("a file");
        std::os::unix::fs::symlink(name, folder.0.join("..next")).expect("a link");
        std::fs::rename(folder.0.join("..next"), folder.0.join("..data")).expect("swapped");
    };
    version("first", "");
    let file = folder.0.join("vestibule.yaml");
    std::os::unix::fs::symlink("..data/vestibule.yaml", &file).expect("a link");
    let proxy = Proxy::of_file(&file).await;
    assert_eq!(get(proxy.address, "/health", &[]).await.status, 401);
    version("second", "routes: [{ path: /health, auth: deny }]\n");
    proxy.logged("the reload", |line| line.contains("configuration reloaded")).await;
    assert_eq!(get(proxy.address, "/health", &[]).await.status, 403);
}

#[tokio::test]
async fn a_broken_file_changes_nothing_and_the_error_says_where() {
    let mut fixture = Fixture::with("").await;
    for (more, expected) in [
        ("routs: []\n", "routs: unknown key; did you mean `routes`?"),
        ("limits: { connections: many }\n", "limits.connections: \\\"many\\\" is not a whole number"),
        ("routes: [{ path: nowhere }]\n", "routes[0].path"),
        ("listen: 127.0.0.1:1\n", "listen: cannot be changed by a reload; restart required"),
        ("admin: { listen: 127.0.0.1:0 }\n", "admin: cannot be changed by a reload; restart required"),
        (
            "control: { listen: \"unix:/tmp/vestibule-never-made.sock\" }\n",
            "control: cannot be changed by a reload; restart required",
        ),
        ("providers: []\n", "providers: no provider: nobody could sign in."),
    ] {
        let said = fixture.reload(more).await;
        assert!(said.contains("reload rejected") && said.contains(expected), "{more}: {said}");
        let token = fixture.issuer.token("alice");
        let field = bearer(&token);
        let fields = [field.as_str()];
        let (answer, _) = tokio::join!(get(fixture.proxy.address, "/x", &fields), fixture.backend.answer("served"));
        assert_eq!(answer.status, 200, "{more}");
    }
    assert!(fixture.reload("").await.contains("configuration reloaded"), "what is right again is taken");
}

#[tokio::test]
async fn a_file_that_is_gone_is_refused_and_taken_when_it_is_back() {
    let fixture = Fixture::with("").await;
    fixture.proxy.remove_file();
    fixture
        .proxy
        .logged("the refusal", |line| line.contains("reload rejected") && line.contains("cannot be read"))
        .await;
    fixture.proxy.rewrite(&yaml(&fixture.issuer, &fixture.backend, "routes: [{ path: /health, auth: deny }]\n"));
    fixture.proxy.logged("the reload", |line| line.contains("configuration reloaded")).await;
    assert_eq!(get(fixture.proxy.address, "/health", &[]).await.status, 403);
}

#[tokio::test]
async fn a_provider_that_is_the_same_keeps_its_keys() {
    let mut fixture = Fixture::with("").await;
    let token = fixture.issuer.token("alice");
    let field = bearer(&token);
    let fields = [field.as_str()];
    let (answer, _) = tokio::join!(get(fixture.proxy.address, "/x", &fields), fixture.backend.answer("served"));
    assert_eq!((answer.status, fixture.issuer.fetches()), (200, 1));
    // It could not be asked now.
    fixture.issuer.set_mood(Mood::Status(500));
    fixture.reload("routes: [{ path: /health, auth: none }]\n").await;
    let (answer, _) = tokio::join!(get(fixture.proxy.address, "/x", &fields), fixture.backend.answer("served"));
    assert_eq!((answer.status, fixture.issuer.fetches()), (200, 1));
}

#[tokio::test]
async fn a_secret_is_read_again_when_its_file_changes() {
    let secret = TempFile::new("first-0123456789abcdef0123456789abcdef\n");
    let backend = Backend::start().await;
    let proxy = Proxy::start(&format!(
        "upstream: {}\nproviders: [{{ preset: shared-secret, secret_file: \"{}\", audience: any }}]\n",
        backend.url(),
        secret.path()
    ))
    .await;
    let token = |secret: &str| {
        let claims = json!({"sub": "alice", "exp": crate::support::now() + 600});
        let key = jsonwebtoken::EncodingKey::from_secret(secret.as_bytes());
        bearer(&jsonwebtoken::encode(&jsonwebtoken::Header::default(), &claims, &key).expect("signed"))
    };
    let (first, second) =
        (token("first-0123456789abcdef0123456789abcdef"), token("second-0123456789abcdef0123456789abcdef"));
    let fields = [first.as_str()];
    let (answer, _) = tokio::join!(get(proxy.address, "/x", &fields), backend.answer("served"));
    assert_eq!(answer.status, 200);
    assert_eq!(get(proxy.address, "/x", &[&second]).await.status, 401);
    std::fs::write(secret.path(), "second-0123456789abcdef0123456789abcdef\n").expect("written");
    proxy.logged("the reload", |line| line.contains("configuration reloaded")).await;
    assert_eq!(get(proxy.address, "/x", &fields).await.status, 401, "the old secret is worth nothing");
    let fields = [second.as_str()];
    let (answer, _) = tokio::join!(get(proxy.address, "/x", &fields), backend.answer("served"));
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn open_sockets_are_judged_by_the_new_policy() {
    let mut fixture = Fixture::with("").await;
    let admin = fixture.issuer.token_with("root", json!({"role": "admin"}));
    let user = fixture.issuer.token("alice");
    let (mut may, mut may_upstream) = fixture.socket("/ws/a", &admin).await;
    let (mut may_not, mut may_not_upstream) = fixture.socket("/ws/a", &user).await;
    let (mut elsewhere, mut elsewhere_upstream) = fixture.socket("/other", &user).await;
    let (mut denied, _denied_upstream) = fixture.socket("/closed", &admin).await;
    fixture.reload("routes: [{ path: /closed, auth: deny }, { path: /ws/**, require: { role: admin } }]\n").await;
    assert_eq!(may_not.next_text().await, r#"{"type":"error","message":"Access denied"}"#);
    assert_eq!(may_not.next_close().await, (1008, "Access denied".into()));
    assert_eq!(may_not_upstream.next_close().await.0, 1001);
    assert_eq!(denied.next_text().await, r#"{"type":"error","message":"Access denied"}"#);
    assert_eq!(denied.next_close().await, (1008, "Access denied".into()));
    for (client, upstream) in [(&mut may, &mut may_upstream), (&mut elsewhere, &mut elsewhere_upstream)] {
        client.say("still here").await;
        assert_eq!(upstream.next_text().await, "still here");
    }
    // And later ones by it too: the claim that the route now requires is gone.
    may.say(&json!({"type": "refresh_auth", "token": fixture.issuer.token("root")}).to_string()).await;
    assert_eq!(may.next_text().await, r#"{"type":"error","message":"Access denied"}"#);
    assert_eq!(may.next_close().await, (1008, "Access denied".into()));
}

#[tokio::test]
async fn sockets_of_a_provider_that_is_gone_or_refuses_their_user_end() {
    let mut fixture = Fixture::with("").await;
    let (mut alice, _alice_upstream) = fixture.socket("/ws", &fixture.issuer.token("alice")).await;
    let (mut bob, mut bob_upstream) = fixture.socket("/ws", &fixture.issuer.token("bob")).await;
    let only_bob = fixture.issuer.provider().replace(" }", ", allow: { users: [bob] } }");
    fixture.reload(&format!("providers: [{only_bob}]\n")).await;
    assert_eq!(alice.next_text().await, r#"{"type":"error","message":"Access denied"}"#);
    assert_eq!(alice.next_close().await, (1008, "Access denied".into()));
    bob.say("still here").await;
    assert_eq!(bob_upstream.next_text().await, "still here");
    for provider in [
        // Another application's tokens.
        fixture.issuer.provider().replace("audience: ", "audience: not-"),
        fixture.issuer.provider().replace("preset: oidc", "preset: oidc, require: { plan: paid }"),
    ] {
        let (mut carol, _upstream) = fixture.socket("/ws", &fixture.issuer.token("bob")).await;
        fixture.reload(&format!("providers: [{provider}]\n")).await;
        assert_eq!(carol.next_text().await, r#"{"type":"error","message":"Access denied"}"#, "{provider}");
        assert_eq!(carol.next_close().await, (1008, "Access denied".into()));
        fixture.reload("").await;
    }
    let (mut dora, _dora_upstream) = fixture.socket("/ws", &fixture.issuer.token("dora")).await;
    let other = Issuer::with(Key::rsa("other")).await;
    fixture.reload(&format!("providers: [{}]\n", other.provider())).await;
    assert_eq!(dora.next_text().await, r#"{"type":"error","message":"Access denied"}"#);
    assert_eq!(dora.next_close().await, (1008, "Access denied".into()));
}

#[tokio::test]
async fn a_socket_whose_trusted_headers_would_change_comes_back_for_them() {
    let mut fixture = Fixture::with("").await;
    let token = fixture.issuer.token_with("alice", json!({"role": "admin"}));
    let (mut told, _upstream) = fixture.socket("/ws", &token).await;
    let (mut same, mut same_upstream) = fixture.socket("/ws", &fixture.issuer.token("bob")).await;
    fixture.reload("identity: { headers: { X-User-Id: sub, X-Role: role } }\n").await;
    assert_eq!(told.next_close().await, (1012, "Identity changed".into()));
    // Without the claim there is no header, so this upstream has heard what it would hear.
    same.say("still here").await;
    assert_eq!(same_upstream.next_text().await, "still here");
}

#[tokio::test]
async fn a_public_socket_ends_when_its_route_is_public_no_more() {
    let mut fixture = Fixture::with("routes: [{ path: /public/**, auth: none }]\n").await;
    let opening = Socket::open(fixture.proxy.address, "/public/a", &[]);
    let (mut client, (_, mut upstream)) = tokio::join!(opening, fixture.backend.websocket());
    fixture.reload("routes: [{ path: /public/**, auth: none }, { path: /x, auth: none }]\n").await;
    client.say("still here").await;
    assert_eq!(upstream.next_text().await, "still here");
    fixture.reload("").await;
    assert_eq!(client.next_close().await, (1008, "Access denied".into()));
}

#[tokio::test]
async fn a_socket_that_waits_while_the_policy_changes_is_judged_by_the_new_one() {
    let mut fixture = Fixture::with("").await;
    let mut waiting = Socket::open(fixture.proxy.address, "/ws", &[]).await;
    fixture.reload("routes: [{ path: /ws, auth: deny }]\n").await;
    let token = fixture.issuer.token("alice");
    waiting.say(&json!({"type": "authenticate", "token": token}).to_string()).await;
    assert!(waiting.next_text().await.contains("Access denied"));
    assert_eq!(waiting.next_close().await, (1008, "Access denied".into()));
    assert!(fixture.backend.is_untouched());
}

#[tokio::test]
async fn the_log_level_follows() {
    let mut fixture = Fixture::with("").await;
    for (level, user, is_heard) in [("info", "alice", false), ("debug", "bob", true)] {
        fixture.proxy.set_level(level);
        fixture.reload("").await;
        let _pair = fixture.socket("/ws", &fixture.issuer.token(user)).await;
        // What was said of it stands in the log before this.
        fixture.reload("routs: []\n").await;
        let user = format!("\"user\":\"{user}\"");
        let is_said = |line: &String| line.contains("\"first message verified\"") && line.contains(&user);
        assert_eq!(fixture.proxy.log().iter().any(is_said), is_heard, "{level}");
    }
}

/// Judged by the former policy, a token could put into an open socket what the one in force does not take.
#[tokio::test]
async fn a_refresh_that_was_being_verified_is_judged_by_the_policy_in_force() {
    let mut fixture = Fixture::with("").await;
    let token = fixture.issuer.token_with("alice", json!({"role": "admin"}));
    let (mut client, mut upstream) = fixture.socket("/ws", &token).await;
    let (key, gate) = fixture.issuer.rotates();
    let mut claims = fixture.issuer.claims("alice");
    claims["role"] = json!("reader");
    client.say(&json!({"type": "refresh_auth", "token": key.sign(&claims)}).to_string()).await;
    // Messages flow on while it is verified, and show that it has been read.
    client.say("marker").await;
    assert_eq!(upstream.next_text().await, "marker");
    let said = fixture.reload("routes: [{ path: /**, require: { role: admin } }]\n").await;
    assert!(said.contains("configuration reloaded"), "{said}");
    gate.open();
    assert!(client.next_text().await.contains("Access denied"));
    assert_eq!(client.next_close().await, (1008, "Access denied".into()));
}

/// It may have waited for hours: the policy under which it came is no longer in force.
#[tokio::test]
async fn a_socket_that_waited_through_a_reload_is_judged_by_the_policy_in_force() {
    let stranger = Issuer::start().await;
    let mut fixture = Fixture::with("websocket: { dialect: token-field }\n").await;
    let provider = fixture.issuer.provider();
    let token = fixture.issuer.token("alice");
    for changed in [
        "routes: [{ path: /**, require: { role: admin } }]\n".to_owned(),
        "routes: [{ path: /**, auth: deny }]\n".to_owned(),
        format!("providers: [{}]\n", provider.replace(" }", ", allow: { users: [bob] } }")),
        format!("providers: [{}]\n", stranger.provider()),
    ] {
        assert!(fixture.reload("websocket: { dialect: token-field }\n").await.contains("configuration reloaded"));
        let mut client = Socket::open(fixture.proxy.address, "/ws", &[]).await;
        let said = fixture.reload(&format!("websocket: {{ dialect: token-field }}\n{changed}")).await;
        assert!(said.contains("configuration reloaded"), "{said}");
        client.say(&json!({"prompt": "hello", "auth_token": token}).to_string()).await;
        assert!(client.next_text().await.contains("\"error\""), "{changed}");
        assert_eq!(client.next_close().await.0, 4001, "{changed}");
        assert!(fixture.backend.is_untouched(), "{changed}");
    }
}

#[tokio::test]
async fn a_warning_is_logged_when_it_is_new_and_not_when_its_line_moves() {
    let mut fixture = Fixture::with("").await;
    let unused = "routes: [{ path: /**, auth: required }, { path: /a, auth: none }]\n";
    fixture.reload(unused).await;
    let count = |proxy: &Proxy| proxy.log().iter().filter(|line| line.contains("is never used")).count();
    assert_eq!(count(&fixture.proxy), 1, "{:?}", fixture.proxy.log());
    assert!(fixture.reload(&format!("# A line more.\n{unused}")).await.contains("configuration reloaded"));
    assert_eq!(count(&fixture.proxy), 1, "{:?}", fixture.proxy.log());
}

/// Checks that a reload fails, and does not wait without end, while the certificates that the system trusts are not read: a
/// pipe that nobody writes is read like a file on a mount that does not answer.
#[tokio::test]
async fn a_reload_whose_certificates_are_not_read_is_rejected_and_the_next_one_is_not() {
    let (issuer, backend, folder) = (Issuer::start().await, Backend::start().await, TempFolder::new());
    let (trusted, pem) = (folder.0.join("trusted.pem"), Authority::new().pem());
    std::fs::copy(pem.path(), &trusted).expect("copied");
    let mut program = command();
    program.env("SSL_CERT_FILE", &trusted).env_remove("SSL_CERT_DIR");
    let proxy = Proxy::with_command(&yaml(&issuer, &backend, ""), "debug", program).await;
    std::fs::remove_file(&trusted).expect("removed");
    assert!(std::process::Command::new("mkfifo").arg(&trusted).status().expect("mkfifo").success());
    let before = proxy.log().len();
    // The client of this upstream is made with these certificates.
    let next = "routes: [{ path: /new, auth: none }, { path: /other, upstream: \"https://127.0.0.1:1\" }]\n";
    proxy.rewrite(&yaml(&issuer, &backend, next));
    proxy.signal("HUP");
    let said = proxy.logged_after(before, "a rejected reload", is_reload).await;
    assert!(said.contains("reload rejected, keeping the current configuration"), "{said}");
    assert!(said.contains("the certificates that the system trusts: its files are not read within 10 s"), "{said}");
    assert_eq!(get(proxy.address, "/new", &[]).await.status, 401, "the former configuration");
    // The reader opens the pipe, and goes on when its writer is gone.
    let (pipe, readable) = (trusted.clone(), folder.0.join("readable.pem"));
    std::fs::copy(pem.path(), &readable).expect("copied");
    let opened = tokio::task::spawn_blocking(move || std::fs::OpenOptions::new().write(true).open(pipe));
    let writer = opened.await.expect("opened").expect("opened");
    std::fs::rename(&readable, &trusted).expect("replaced");
    let before = proxy.log().len();
    drop(writer);
    proxy.signal("HUP");
    let said = proxy.logged_after(before, "a reload", is_reload).await;
    assert!(said.contains("configuration reloaded"), "{said}");
    let (answer, _) = tokio::join!(get(proxy.address, "/new", &[]), backend.answer("up"));
    assert_eq!(answer.status, 200);
}
