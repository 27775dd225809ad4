//! Tests of sessions that are renewed, or not, and of the sockets that depend on them.

use serde_json::json;

use super::{Browser, Fixture, OURS, provider};
use crate::support::authority::Authority;
use crate::support::backend::Backend;
use crate::support::issuer::{Key, RSA};
use crate::support::proxy::{Proxy, TempFolder, command, is_reload};
use crate::support::socket::Socket;
use crate::support::within;

async fn start(seconds: u64, more: &str) -> (Fixture, Browser) {
    let fixture = Fixture::at(provider(seconds).await, "", more).await;
    let mut browser = fixture.browser();
    assert_eq!(browser.sign_in(&fixture.provider, "/").await.status, 303);
    (fixture, browser)
}

impl Fixture {
    /// A socket of this browser's session, from both sides.
    async fn socket(&self, browser: &Browser) -> (Socket, Socket) {
        let cookie = browser.cookie_field();
        let fields = [cookie.as_str(), OURS];
        let opening = Socket::open(self.proxy.address, "/ws", &fields);
        let (client, (heard, upstream)) = tokio::join!(opening, self.backend.websocket());
        assert_eq!(heard.all("x-user-id"), ["alice"]);
        (client, upstream)
    }
}

async fn passes(client: &mut Socket, upstream: &mut Socket, text: &str) {
    client.say(text).await;
    assert_eq!(upstream.next_text().await, text);
    upstream.say(text).await;
    assert_eq!(client.next_text().await, text, "no frame of ours came before it");
}

/// Returns the proxy's error message and the Close after it.
async fn ending(client: &mut Socket) -> (u16, String) {
    let frame = client.next().await;
    if frame.opcode == 8 {
        return frame.close();
    }
    assert!(frame.text().starts_with("{\"type\":\"error\""), "{}", frame.text());
    client.next_close().await
}

fn status(code: u16) -> (u16, String, String) {
    (code, String::new(), "{}".to_owned())
}

#[tokio::test]
async fn an_open_socket_renews_its_session_and_hears_nothing_of_it() {
    let (fixture, browser) = start(2, "").await;
    let (mut client, mut upstream) = fixture.socket(&browser).await;
    for count in 1..=3 {
        fixture.provider.refreshed_times(count).await;
        passes(&mut client, &mut upstream, &format!("after renewal {count}")).await;
    }
}

#[tokio::test]
async fn requests_at_the_token_s_end_wait_for_one_renewal() {
    let (fixture, browser) = start(0, "").await;
    fixture.provider.set(|conduct| conduct.tokens = json!({ "expires_in": 600 }));
    fixture.provider.answerer.hold();
    let before = fixture.provider.answerer.count();
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..5 {
        let mut browser = browser.clone();
        waiting.spawn(async move { browser.open("/x").await.status });
    }
    let serve = async {
        fixture.provider.answerer.asked_times(before + 1).await;
        fixture.provider.answerer.open();
        for _ in 0..5 {
            fixture.backend.answer("served").await;
        }
    };
    let (statuses, ()) = tokio::join!(waiting.join_all(), serve);
    assert_eq!(statuses, [200; 5]);
    assert_eq!(fixture.provider.refreshes(), 1);
}

#[tokio::test]
async fn a_renewal_needs_no_id_token() {
    let (fixture, mut browser) = start(0, "").await;
    fixture.provider.set(|conduct| conduct.tokens = json!({ "id_token": null, "expires_in": 600 }));
    assert_eq!(fixture.user(&mut browser).await, "alice");
    assert_eq!(fixture.user(&mut browser).await, "alice");
    assert_eq!(fixture.provider.refreshes(), 1);
}

#[tokio::test]
async fn a_session_that_the_provider_does_not_renew_ends_with_its_sockets() {
    for (what, renewed) in [("invalid_grant", None), ("another user", Some(json!({ "sub": "bob" })))] {
        let (fixture, mut browser) = start(2, "").await;
        let (mut client, _upstream) = fixture.socket(&browser).await;
        match renewed {
            Some(renewed) => fixture.provider.set(|conduct| conduct.renewed = renewed),
            None => fixture.provider.set(|conduct| {
                conduct.token_reply = Some((400, String::new(), json!({ "error": "invalid_grant" }).to_string()));
            }),
        }
        assert_eq!(ending(&mut client).await, (1008, "Session ended".to_owned()), "{what}");
        let answer = browser.open("/x").await;
        assert_eq!(answer.status, 302, "{what}: a navigation signs in again");
    }
}

#[tokio::test]
async fn a_renewal_that_changes_a_trusted_header_is_told_by_1012() {
    let more = "identity: { headers: { X-User-Id: sub, X-Role: role } }\n";
    let fixture = Fixture::at(provider(2).await, "", more).await;
    fixture.provider.set(|conduct| conduct.id_token = json!({ "role": "user" }));
    let mut browser = fixture.browser();
    browser.sign_in(&fixture.provider, "/").await;
    let (mut client, _upstream) = fixture.socket(&browser).await;
    fixture.provider.set(|conduct| conduct.renewed = json!({ "role": "admin" }));
    assert_eq!(ending(&mut client).await, (1012, "Identity changed".to_owned()));
    let (answer, heard) = tokio::join!(browser.open("/x"), fixture.backend.answer("served"));
    assert_eq!((answer.status, heard.all("x-role")), (200, vec!["admin"]));
}

#[tokio::test]
async fn a_renewal_that_no_longer_satisfies_the_route_ends_the_socket() {
    let more = "routes: [{ path: /ws, require: { role: user } }]\n";
    let fixture = Fixture::at(provider(2).await, "", more).await;
    fixture.provider.set(|conduct| conduct.id_token = json!({ "role": "user" }));
    let mut browser = fixture.browser();
    browser.sign_in(&fixture.provider, "/").await;
    let (mut client, _upstream) = fixture.socket(&browser).await;
    fixture.provider.set(|conduct| conduct.renewed = json!({ "role": "guest" }));
    assert_eq!(ending(&mut client).await, (1008, "Access denied".to_owned()));
}

#[tokio::test]
async fn while_the_provider_is_down_sessions_live_for_the_grace() {
    // A client secret that the provider does not accept any more ends no session either.
    for reply in [status(500), (401, String::new(), json!({ "error": "invalid_client" }).to_string())] {
        let (fixture, mut browser) = start(0, "websocket: { revalidate_grace: 5m }\n").await;
        fixture.provider.set(|conduct| conduct.token_reply = Some(reply));
        assert_eq!(fixture.user(&mut browser).await, "alice");
        let tried = fixture.provider.refreshes();
        assert!((1..=2).contains(&tried), "{tried}");
        assert_eq!(fixture.user(&mut browser).await, "alice");
        assert!(fixture.provider.refreshes() <= 2, "not asked again for five seconds");
    }
}

#[tokio::test]
async fn past_the_grace_nobody_can_say_and_nobody_is_signed_out() {
    let (fixture, mut browser) = start(2, "websocket: { revalidate_grace: 1s }\n").await;
    let (mut client, _upstream) = fixture.socket(&browser).await;
    fixture.provider.set(|conduct| conduct.token_reply = Some(status(503)));
    assert_eq!(ending(&mut client).await, (1013, "Try again later".to_owned()));
    let answer = browser.open("/x").await;
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert!(answer.field("retry-after").is_some() && browser.has_session());
    fixture.provider.set(|conduct| conduct.token_reply = None);
    within("the provider to be asked again", async {
        loop {
            tokio::select! {
                answer = browser.open("/x") => assert_eq!(answer.status, 503),
                _ = fixture.backend.answer("served") => return,
            }
            tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn a_renewed_token_with_a_bad_signature_or_of_another_kind_is_a_failed_renewal() {
    for is_access_token in [false, true] {
        let (fixture, mut browser) = start(0, "").await;
        fixture.provider.set(|conduct| {
            if is_access_token {
                conduct.id_token_header = json!({ "typ": "at+jwt" });
            } else {
                conduct.key = Key::rsa("rsa-1");
            }
        });
        assert_eq!(fixture.user(&mut browser).await, "alice", "within the grace");
        fixture.proxy.logged("the failure", |line| line.contains("renewal_failed")).await;
        fixture.provider.set(|conduct| {
            conduct.key = RSA.clone();
            conduct.id_token_header = json!({});
            conduct.tokens = json!({ "expires_in": 600 });
        });
        fixture.provider.refreshed_times(1).await;
        assert_eq!(fixture.user(&mut browser).await, "alice");
    }
}

#[tokio::test]
async fn a_session_ends_at_its_max_age_whatever_is_renewed() {
    let provider = provider(600).await;
    let backend = crate::support::backend::Backend::start().await;
    let yaml = Fixture::yaml(&provider, &backend, "", "").replace("login: {", "session: { max_age: 2s }, login: {");
    let proxy = crate::support::proxy::Proxy::start(&yaml).await;
    let fixture = Fixture { provider, backend, proxy };
    let mut browser = fixture.browser();
    browser.sign_in(&fixture.provider, "/").await;
    let (mut client, _upstream) = fixture.socket(&browser).await;
    assert_eq!(ending(&mut client).await, (4401, "Session expired".to_owned()));
    assert_eq!(browser.open("/x").await.status, 302);
}

#[tokio::test]
async fn a_renewal_does_not_bring_back_what_was_revoked() {
    let control = crate::support::unused_port();
    let token = "a-token-of-the-control-listener-0123456789";
    let more = format!("control: {{ listen: \"127.0.0.1:{control}\", token: {token} }}\n");
    let (fixture, mut browser) = start(2, &more).await;
    let (mut client, _upstream) = fixture.socket(&browser).await;
    let revoke = json!({ "issuer": fixture.provider.url, "sub": "alice" }).to_string();
    let field = format!("Authorization: Bearer {token}");
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], control));
    let answer = crate::support::client::request(address, "POST", "/revoke", &[&field], &revoke).await;
    assert_eq!(answer.status, 204, "{}", answer.body);
    assert_eq!(ending(&mut client).await, (1008, "Session ended".to_owned()));
    let renewed = fixture.provider.refreshes();
    assert_eq!(browser.open("/x").await.status, 302);
    assert_eq!(fixture.provider.refreshes(), renewed, "what was revoked is not renewed");
}

#[tokio::test]
async fn signing_in_again_moves_the_sockets_to_the_new_session() {
    let (fixture, mut browser) = start(600, "").await;
    let former = browser.clone();
    let (mut client, mut upstream) = fixture.socket(&browser).await;
    let location = Browser::location(&browser.open("/.vestibule/login?prompt=login").await);
    assert_eq!(browser.come_back(&fixture.provider.authorize(&location)).await.status, 303);
    passes(&mut client, &mut upstream, "at once").await;
    within("the former session to end", async {
        loop {
            let mut former = former.clone();
            tokio::select! {
                answer = former.open("/x") => {
                    assert_eq!(answer.status, 302);
                    return;
                }
                _ = fixture.backend.answer("served") => {}
            }
            tokio::time::sleep(std::time::Duration::from_millis(200)).await;
        }
    })
    .await;
    passes(&mut client, &mut upstream, "after its session has ended").await;
    // A sign-out from the new session means it too.
    let answer = browser.send("POST", "/.vestibule/logout", &[OURS], "").await;
    assert_eq!(answer.status, 303);
    assert_eq!(ending(&mut client).await, (1008, "Session ended".to_owned()));
}

#[tokio::test]
async fn signing_out_in_one_tab_ends_the_socket_of_another() {
    let (fixture, mut browser) = start(600, "").await;
    let (mut client, _upstream) = fixture.socket(&browser).await;
    assert_eq!(browser.send("POST", "/.vestibule/logout", &[OURS], "").await.status, 303);
    assert_eq!(ending(&mut client).await, (1008, "Session ended".to_owned()));
}

#[tokio::test]
async fn after_a_restart_a_session_is_good_to_its_token_s_end() {
    let secret = "0123456789abcdef0123456789abcdefXYZ";
    for (seconds, expected) in [(600, 200), (0, 302)] {
        let provider = provider(seconds).await;
        let backend = crate::support::backend::Backend::start().await;
        let session = format!("session: {{ secret: {secret} }}, login: {{");
        let yaml = Fixture::yaml(&provider, &backend, "", "").replace("login: {", &session);
        let proxy = crate::support::proxy::Proxy::start(&yaml).await;
        let mut browser = Browser::new(proxy.address);
        assert_eq!(browser.sign_in(&provider, "/").await.status, 303);
        drop(proxy);
        let proxy = crate::support::proxy::Proxy::start(&yaml).await;
        browser.address = proxy.address;
        let status = tokio::select! {
            answer = browser.open("/x") => answer.status,
            _ = backend.answer("served") => 200,
        };
        assert_eq!(status, expected, "a token of {seconds} s");
        assert_eq!(provider.refreshes(), 0);
    }
}

#[tokio::test]
async fn renewals_are_counted() {
    let admin = crate::support::unused_port();
    let more = format!("admin: {{ listen: \"127.0.0.1:{admin}\" }}\n");
    let (fixture, mut browser) = start(0, &more).await;
    fixture.provider.set(|conduct| conduct.tokens = json!({ "expires_in": 600 }));
    assert_eq!(fixture.user(&mut browser).await, "alice");
    let address = std::net::SocketAddr::from(([127, 0, 0, 1], admin));
    let text = crate::support::client::get(address, "/metrics", &[]).await.body;
    for line in [
        r#"vestibule_sign_ins_total{provider="oidc",outcome="accepted"} 1"#,
        r#"vestibule_sign_ins_total{provider="oidc",outcome="unavailable"} 0"#,
        r#"vestibule_session_renewals_total{provider="oidc",outcome="renewed"} 1"#,
        r#"vestibule_logouts_total{provider="oidc",outcome="backchannel"} 0"#,
    ] {
        assert!(text.lines().any(|found| found == line), "{line}\n{text}");
    }
}

#[tokio::test]
async fn a_provider_that_is_down_is_asked_again_after_two_seconds() {
    let (fixture, mut browser) = start(0, "websocket: { revalidate_grace: 0s }\n").await;
    let provider = &fixture.provider;
    provider.set(|conduct| conduct.token_reply = Some(status(502)));
    let before = std::time::Instant::now();
    let mend = async {
        provider.refreshed_times(1).await;
        provider.set(|conduct| {
            conduct.token_reply = None;
            conduct.tokens = json!({ "expires_in": 600 });
        });
        let heard = fixture.backend.answer("served").await;
        assert_eq!(heard.all("x-user-id"), ["alice"]);
    };
    let (answer, ()) = tokio::join!(browser.open("/x"), mend);
    assert_eq!(answer.status, 200, "the request waits for the second try");
    assert!(before.elapsed() >= std::time::Duration::from_secs(2));
    assert_eq!(provider.refreshes(), 2);
    let tokens: Vec<String> = provider
        .asked("/token")
        .iter()
        .filter_map(|asked| {
            let mut form = url::form_urlencoded::parse(asked.body.as_bytes());
            form.find(|(name, _)| name == "refresh_token").map(|(_, value)| value.into_owned())
        })
        .collect();
    assert_eq!(tokens, ["secret-refresh-2", "secret-refresh-2"]);
}

#[tokio::test]
async fn retry_after_is_kept_to_at_renewals() {
    let (fixture, mut browser) = start(0, "websocket: { revalidate_grace: 0s }\n").await;
    let busy = (429, "Retry-After: 60\r\n".to_owned(), "{}".to_owned());
    fixture.provider.set(|conduct| conduct.token_reply = Some(busy));
    let answer = browser.open("/x").await;
    let wait: u64 = answer.field("retry-after").expect("a wait").parse().expect("seconds");
    assert!(answer.status == 503 && (50..=60).contains(&wait), "{} {wait}", answer.status);
    fixture.proxy.logged("the failure", |line| line.contains("\"retry_in_ms\":60000")).await;
    fixture.provider.set(|conduct| conduct.token_reply = None);
    assert_eq!(browser.open("/x").await.status, 503, "not before that");
    assert_eq!(fixture.provider.refreshes(), 1, "no second try either");
}

#[tokio::test]
async fn userinfo_is_asked_again_at_renewals() {
    let more = "identity: { headers: { X-User-Id: sub, X-Role: role } }\nwebsocket: { revalidate_grace: 0s }\n";
    let fixture = Fixture::at(provider(0).await, "claims_from: userinfo", more).await;
    let claims = |role: &str| json!({ "sub": "alice", "role": role });
    fixture.provider.set(|conduct| conduct.userinfo = claims("user"));
    let mut browser = fixture.browser();
    browser.sign_in(&fixture.provider, "/").await;
    fixture.provider.set(|conduct| {
        conduct.userinfo = claims("admin");
        conduct.tokens = json!({ "expires_in": 600 });
    });
    let (answer, heard) = tokio::join!(browser.open("/x"), fixture.backend.answer("served"));
    assert_eq!((answer.status, heard.all("x-role")), (200, vec!["admin"]));
    assert_eq!(fixture.provider.asked("/userinfo").len(), 2);
}

#[tokio::test]
async fn a_renewal_without_the_user_s_claims_of_userinfo_has_failed() {
    let more = "websocket: { revalidate_grace: 0s }\n";
    let fixture = Fixture::at(provider(0).await, "claims_from: userinfo", more).await;
    fixture.provider.set(|conduct| conduct.userinfo = json!({ "sub": "alice" }));
    let mut browser = fixture.browser();
    browser.sign_in(&fixture.provider, "/").await;
    fixture.provider.set(|conduct| conduct.userinfo = json!({ "sub": "bob" }));
    let answer = browser.open("/x").await;
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert!(browser.has_session());
}

#[tokio::test]
async fn a_shorter_max_age_ends_the_sockets_that_are_open() {
    for refreshes in [true, false] {
        let provider = provider(600).await;
        provider.set(|conduct| conduct.gives_refresh_token = refreshes);
        let (fixture, browser) = {
            let fixture = Fixture::at(provider, "", "").await;
            let mut browser = fixture.browser();
            browser.sign_in(&fixture.provider, "/").await;
            (fixture, browser)
        };
        let (mut client, mut upstream) = fixture.socket(&browser).await;
        let yaml = Fixture::yaml(&fixture.provider, &fixture.backend, "", "");
        let with_max_age = |age: &str| yaml.replace("login: {", &format!("session: {{ max_age: {age} }}, login: {{"));
        fixture.proxy.rewrite(&with_max_age("1h"));
        fixture.proxy.signal("HUP");
        passes(&mut client, &mut upstream, "an hour is not over").await;
        fixture.proxy.rewrite(&with_max_age("3s"));
        fixture.proxy.signal("HUP");
        assert_eq!(ending(&mut client).await, (4401, "Session expired".to_owned()), "refresh token: {refreshes}");
    }
}

/// Checks that the logins of a rejected configuration renew no session. It is rejected because the certificates that the
/// system trusts are not read: a pipe that nobody writes is read like a file on a mount that does not answer.
#[tokio::test]
async fn after_a_rejected_reload_the_sessions_are_renewed_as_before() {
    let (provider, backend, folder) = (provider(2).await, Backend::start().await, TempFolder::new());
    let (trusted, pem) = (folder.0.join("trusted.pem"), Authority::new().pem());
    std::fs::copy(pem.path(), &trusted).expect("copied");
    let mut program = command();
    program.env("SSL_CERT_FILE", &trusted).env_remove("SSL_CERT_DIR");
    let providers = format!("providers: [{{ preset: oidc, issuer: \"{}\", audience: api }}]\n", provider.url);
    let yaml = Fixture::yaml(&provider, &backend, "", &providers);
    let proxy = Proxy::with_command(&yaml, "trace", program).await;
    let fixture = Fixture { provider, backend, proxy };
    let mut browser = fixture.browser();
    browser.sign_in(&fixture.provider, "/").await;
    let (mut client, mut upstream) = fixture.socket(&browser).await;
    std::fs::remove_file(&trusted).expect("removed");
    assert!(std::process::Command::new("mkfifo").arg(&trusted).status().expect("mkfifo").success());
    let before = fixture.proxy.log().len();
    let without_login: Vec<&str> = yaml.lines().filter(|line| !line.starts_with("browser:")).collect();
    // The client of this upstream is made with these certificates.
    let other = "routes: [{ path: /other, upstream: \"https://127.0.0.1:1\" }]\n";
    fixture.proxy.rewrite(&format!("{}\n{other}", without_login.join("\n")));
    fixture.proxy.signal("HUP");
    let said = fixture.proxy.logged_after(before, "a rejected reload", is_reload).await;
    assert!(said.contains("the certificates that the system trusts: its files are not read within 10 s"), "{said}");
    let renewed = fixture.provider.refreshes();
    within("another renewal", fixture.provider.refreshed_times(renewed + 2)).await;
    passes(&mut client, &mut upstream, "renewed").await;
}
