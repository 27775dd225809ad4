//! Tests that a session that began with a sign-in is the same at every instance, and that one instance at a time renews
//! it.

use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use super::engines::watched_engine;
use super::fleet::{Instance, SECRET, timed};
use crate::login::{Browser, Fixture, OURS, provider};
use crate::support::backend::{Backend, Heard};
use crate::support::engine::{Engine, Relay, is_installed};
use crate::support::issuer::RSA;
use crate::support::openid::{CLIENT, OpenId};
use crate::support::proxy::{Proxy, TempFile, TempFolder};
use crate::support::socket::Socket;
use crate::support::{now, unused_port, within};

/// Instances that sign people in at one provider and share one engine.
struct LoginFleet {
    provider: OpenId,
    backend: Backend,
    engine: Engine,
    folder: TempFolder,
}

impl LoginFleet {
    /// Starts a fleet whose provider gives refresh tokens, and access tokens that are valid for `seconds`.
    async fn start(seconds: u64) -> Self {
        Self::with_engine(Engine::start().await, seconds).await
    }

    async fn with_engine(engine: Engine, seconds: u64) -> Self {
        let folder = TempFolder::new();
        std::fs::write(folder.0.join("secret"), SECRET).expect("written");
        Self { provider: provider(seconds).await, backend: Backend::start().await, engine, folder }
    }

    async fn instance(&self, more: &str) -> Instance {
        self.instance_at(&format!("url: \"{}\"", self.engine.url()), more).await
    }

    async fn instance_at(&self, shared: &str, more: &str) -> Instance {
        let instance = self.starting(shared, "", more).await;
        instance.is_ready(true).await;
        instance
    }

    /// Starts an instance that may not become ready, with more keys under `login`.
    async fn starting(&self, shared: &str, login: &str, more: &str) -> Instance {
        let admin = std::net::SocketAddr::from(([127, 0, 0, 1], unused_port()));
        let proxy = Proxy::start(&self.yaml(admin, shared, login, more)).await;
        Instance { proxy, control: PathBuf::new(), admin }
    }

    fn yaml(&self, admin: std::net::SocketAddr, shared: &str, login: &str, more: &str) -> String {
        let secret = self.folder.0.join("secret");
        let more = format!("admin: {{ listen: \"{admin}\" }}\nshared: {{ name: test, {shared} }}\n{more}");
        let yaml = Fixture::yaml(&self.provider, &self.backend, login, &more);
        let session = format!("session: {{ secret_file: \"{}\" }}, login: {{", secret.display());
        let (url, upstream) = (self.backend.url(), "token_to: { http: header, websocket: header }");
        yaml.replace("login: {", &session)
            .replace(&format!("upstream: {url}"), &format!("upstream: {{ url: \"{url}\", {upstream} }}"))
    }

    /// Returns a browser that has signed in at this instance.
    async fn signed_in(&self, at: &Instance) -> Browser {
        let mut browser = Browser::new(at.proxy.address);
        let answer = browser.sign_in(&self.provider, "/").await;
        assert_eq!(answer.status, 303, "{}", answer.body);
        browser
    }

    /// Opens a page at an instance. Returns the request that the backend received, or the status of the refusal.
    async fn open(&self, browser: &Browser, at: &Instance) -> Result<Heard, u16> {
        let mut browser = browser.clone();
        browser.address = at.proxy.address;
        let opened = browser.open("/x");
        tokio::pin!(opened);
        tokio::select! {
            biased;
            answer = &mut opened => Err(answer.status),
            heard = self.backend.answer("served") => {
                assert_eq!(opened.await.status, 200);
                Ok(heard)
            }
        }
    }

    /// Returns the status of a page that is opened in the background, answered as soon as the backend answers.
    fn asking(&self, browser: &Browser, at: &Instance) -> tokio::task::JoinHandle<u16> {
        let mut browser = browser.clone();
        browser.address = at.proxy.address;
        tokio::spawn(async move { browser.open("/x").await.status })
    }

    /// Returns the access token with which a page is served.
    async fn token(&self, browser: &Browser, at: &Instance) -> String {
        let heard =
            self.open(browser, at).await.unwrap_or_else(|status| panic!("status {status}: {:#?}", at.proxy.log()));
        assert_eq!(heard.all("x-user-id"), ["alice"]);
        heard.all("authorization").join(",")
    }

    async fn status(&self, browser: &Browser, at: &Instance) -> u16 {
        self.open(browser, at).await.map_or_else(|status| status, |_| 200)
    }

    /// Makes the provider's tokens valid for a long time from now on.
    fn give_long_tokens(&self) {
        self.provider.set(|conduct| conduct.tokens = json!({ "expires_in": 600 }));
    }

    /// Returns the keys of one kind in the engine.
    async fn keys(&self, kind: &str) -> Vec<String> {
        let pattern = format!("{{vestibule:test}}:{kind}:*");
        let answer = self.engine.command(&[b"KEYS", pattern.as_bytes()]).await;
        let text = String::from_utf8(answer).expect("text");
        text.lines().filter(|line| line.starts_with('{')).map(str::to_owned).collect()
    }

    async fn until_keys(&self, kind: &str, count: usize) -> Vec<String> {
        within(kind, async {
            loop {
                let keys = self.keys(kind).await;
                if keys.len() == count {
                    return keys;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
    }
}

/// The cookie says when its user authenticated, so every instance decides the same.
#[tokio::test]
async fn every_instance_knows_which_session_of_one_sid_is_newer_than_its_revocation() {
    if !is_installed() {
        return;
    }
    let fleet = LoginFleet::start(600).await;
    let more =
        format!("providers: [{{ preset: oidc, issuer: \"{}\", audience: api, clock_skew: 0s }}]\n", fleet.provider.url);
    let (first, second) = (fleet.instance(&more).await, fleet.instance(&more).await);
    fleet.provider.set(|conduct| conduct.id_token = json!({ "sid": "kept" }));
    let former = fleet.signed_in(&first).await;
    assert_eq!(fleet.status(&former, &second).await, 200);
    let token = RSA.sign_with(
        &json!({ "typ": "logout+jwt" }),
        &json!({
            "iss": fleet.provider.url, "aud": CLIENT, "iat": now(), "exp": now() + 60, "jti": "j", "sid": "kept",
            "events": { "http://schemas.openid.net/event/backchannel-logout": {} },
        }),
    );
    let form = format!("logout_token={token}");
    let mut provider = Browser::new(first.proxy.address);
    assert_eq!(provider.send("POST", "/.vestibule/backchannel-logout", &[], &form).await.status, 200);
    let told = async {
        while fleet.status(&former, &second).await == 200 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within("the second instance to know", told).await;
    // The revocation covers its own second.
    tokio::time::sleep(Duration::from_millis(1_100)).await;
    let newer = fleet.signed_in(&first).await;
    let third = fleet.instance(&more).await;
    for instance in [&first, &second, &third] {
        assert_eq!(fleet.status(&former, instance).await, 302);
        assert_eq!(fleet.status(&newer, instance).await, 200);
    }
}

#[tokio::test]
async fn a_session_is_the_same_at_every_instance_and_after_a_restart() {
    if !is_installed() {
        return;
    }
    let fleet = LoginFleet::start(1).await;
    let (first, second) = (fleet.instance("").await, fleet.instance("").await);
    let browser = fleet.signed_in(&first).await;
    assert_eq!(fleet.token(&browser, &second).await, "Bearer secret-access-2", "by the record of the first");
    fleet.give_long_tokens();
    drop(first);
    // The token has expired, and the instance where its user signed in has stopped.
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(fleet.token(&browser, &second).await, "Bearer secret-access-3", "renewed at the second");
    assert_eq!(fleet.provider.refreshes(), 1);
    drop(second);
    let third = fleet.instance("").await;
    assert_eq!(fleet.token(&browser, &third).await, "Bearer secret-access-3", "after a restart");
    assert_eq!(fleet.provider.refreshes(), 1);
    // Nothing of the record can be read in the engine, and it ends with the session.
    let keys = fleet.keys("session").await;
    assert_eq!(keys.len(), 1, "{keys:?}");
    let kept = fleet.engine.command(&[b"HGETALL", keys[0].as_bytes()]).await;
    for secret in ["secret", "alice", "eyJ"] {
        assert!(!kept.windows(secret.len()).any(|part| part == secret.as_bytes()), "{secret}");
    }
    let left = fleet.engine.command(&[b"TTL", keys[0].as_bytes()]).await;
    let left: u64 = String::from_utf8_lossy(&left).trim().trim_start_matches(':').parse().expect("seconds");
    assert!((12 * 3_600 - 60..=12 * 3_600).contains(&left), "{left}");
}

#[tokio::test]
async fn while_the_engine_is_away_known_sessions_are_served_and_others_are_503() {
    if !is_installed() {
        return;
    }
    let mut fleet = LoginFleet::start(600).await;
    let (first, second) = (fleet.instance("").await, fleet.instance("").await);
    let browser = fleet.signed_in(&first).await;
    fleet.engine.kill();
    second.until_metric("vestibule_shared_up", |up| up < 0.5).await;
    assert_eq!(fleet.status(&browser, &first).await, 200, "by its own copy");
    assert_eq!(fleet.status(&browser, &second).await, 503);
    // People can sign in. The other instances learn of the session later, from those that have its record.
    let later = fleet.signed_in(&first).await;
    assert_eq!(fleet.status(&later, &first).await, 200);
    fleet.engine.start_again().await;
    fleet.until_keys("session", 2).await;
    for browser in [&browser, &later] {
        second.until("the second", || async { fleet.status(browser, &second).await == 200 }).await;
    }
}

#[tokio::test]
async fn a_record_that_is_not_the_last_or_is_forged_is_not_taken() {
    if !is_installed() {
        return;
    }
    let fleet = LoginFleet::start(0).await;
    let (first, second) = (fleet.instance("").await, fleet.instance("").await);
    let browser = fleet.signed_in(&first).await;
    let key = fleet.keys("session").await.remove(0);
    fleet.engine.command(&[b"COPY", key.as_bytes(), b"before"]).await;
    fleet.give_long_tokens();
    assert_eq!(fleet.token(&browser, &first).await, "Bearer secret-access-3");
    assert_eq!(fleet.token(&browser, &second).await, "Bearer secret-access-3");
    // A user of the engine restores the former record, with its generation or with another.
    for generation in [None, Some("9")] {
        fleet.engine.command(&[b"COPY", b"before", key.as_bytes(), b"REPLACE"]).await;
        if let Some(generation) = generation {
            fleet.engine.command(&[b"HSET", key.as_bytes(), b"g", generation.as_bytes()]).await;
        }
        for at in [&first, &second] {
            assert_eq!(fleet.token(&browser, at).await, "Bearer secret-access-3", "generation {generation:?}");
        }
    }
    // An instance without the session accepts no forged record either, and sends no request to the provider.
    let third = fleet.instance("").await;
    assert_eq!(fleet.status(&browser, &third).await, 302);
    third.until_metric("vestibule_shared_entries_refused_total", |count| count > 0.5).await;
    assert_eq!(fleet.provider.refreshes(), 1);
}

#[tokio::test]
async fn a_flushed_engine_gets_its_sessions_back() {
    if !is_installed() {
        return;
    }
    let fleet = LoginFleet::start(600).await;
    let (first, second) = (fleet.instance("").await, fleet.instance("").await);
    let browser = fleet.signed_in(&first).await;
    let key = fleet.keys("session").await.remove(0);
    fleet.engine.command(&[b"FLUSHALL"]).await;
    assert_eq!(fleet.until_keys("session", 1).await, [key]);
    assert_eq!(fleet.token(&browser, &second).await, "Bearer secret-access-2");
}

#[tokio::test]
async fn a_damaged_record_keeps_no_other_from_being_written_back() {
    if !is_installed() {
        return;
    }
    let fleet = LoginFleet::start(600).await;
    let (first, second) = (fleet.instance("").await, fleet.instance("").await);
    let damaged_browser = fleet.signed_in(&first).await;
    let damaged = fleet.keys("session").await.remove(0);
    let browser = fleet.signed_in(&first).await;
    fleet.engine.command(&[b"FLUSHALL"]).await;
    fleet.engine.command(&[b"HSET", damaged.as_bytes(), b"g", b"\xff\xfe", b"r", b"x"]).await;
    fleet.until_keys("session", 2).await;
    assert!(fleet.token(&browser, &second).await.starts_with("Bearer secret-access-"));
    assert!(fleet.token(&damaged_browser, &second).await.starts_with("Bearer secret-access-"));
}

#[tokio::test]
async fn two_instances_renew_a_session_once() {
    if !is_installed() {
        return;
    }
    let fleet = LoginFleet::start(0).await;
    let (first, second) = (fleet.instance("").await, fleet.instance("").await);
    for turn in 1..=5 {
        fleet.provider.set(|conduct| conduct.tokens = json!({ "expires_in": 0 }));
        let browser = fleet.signed_in(&first).await;
        fleet.give_long_tokens();
        fleet.provider.answerer.hold();
        let before = fleet.provider.refreshes();
        let serve = async {
            fleet.provider.refreshed_times(before + 1).await;
            fleet.provider.answerer.open();
            let heard = [fleet.backend.answer("served").await, fleet.backend.answer("served").await];
            assert_eq!(heard[0].all("authorization"), heard[1].all("authorization"));
        };
        let (one, other, ()) = tokio::join!(fleet.asking(&browser, &first), fleet.asking(&browser, &second), serve);
        assert_eq!((one.expect("done"), other.expect("done"), fleet.provider.refreshes()), (200, 200, turn));
    }
}

#[tokio::test]
async fn without_the_engine_there_is_no_renewal_but_the_grace_and_then_503() {
    if !is_installed() {
        return;
    }
    let mut fleet = LoginFleet::start(2).await;
    let first = fleet.instance("websocket: { revalidate_grace: 3s }\n").await;
    let browser = fleet.signed_in(&first).await;
    fleet.give_long_tokens();
    fleet.engine.kill();
    first.until_metric("vestibule_shared_up", |up| up < 0.5).await;
    assert_eq!(fleet.status(&browser, &first).await, 200, "within the token's life or the grace");
    first.until("the end of the grace", || async { fleet.status(&browser, &first).await == 503 }).await;
    assert_eq!(fleet.provider.refreshes(), 0, "none without the lock");
    fleet.engine.start_again().await;
    first.until("the renewal", || async { fleet.status(&browser, &first).await == 200 }).await;
    assert_eq!(fleet.provider.refreshes(), 1);
}

/// The instance waits between the lock and the request, for an assertion that its platform has not written yet.
#[tokio::test]
async fn an_instance_whose_turn_is_over_does_not_send_the_token() {
    if !is_installed() {
        return;
    }
    let fleet = LoginFleet::start(0).await;
    let (pipe, file) = (fleet.folder.0.join("pipe"), fleet.folder.0.join("assertion"));
    std::fs::write(&file, "an.assertion.x").expect("written");
    std::os::unix::fs::symlink(&file, fleet.folder.0.join("link")).expect("made");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().expect("mkfifo").success());
    let url = format!("url: \"{}\"", fleet.engine.url());
    let login = |path: &str| format!("client_assertion_file: \"{}\"", fleet.folder.0.join(path).display());
    let first = fleet.starting(&url, &login("link"), "").await;
    let second = fleet.starting(&url, &login("assertion"), "").await;
    for at in [&first, &second] {
        at.is_ready(true).await;
    }
    let browser = fleet.signed_in(&first).await;
    fleet.give_long_tokens();
    std::fs::rename(&pipe, fleet.folder.0.join("link")).expect("renamed");
    let asking = fleet.asking(&browser, &first);
    let lock = fleet.until_keys("lock", 1).await.remove(0);
    // The pause is so long that the rest of the lock is shorter than the timeout of a request; then the lock ends, too.
    tokio::time::sleep(Duration::from_secs(6)).await;
    fleet.engine.command(&[b"DEL", lock.as_bytes()]).await;
    assert_eq!(fleet.token(&browser, &second).await, "Bearer secret-access-3", "the other one does not wait for it");
    let written = fleet.folder.0.join("link");
    tokio::task::spawn_blocking(move || std::fs::write(written, "an.assertion.x"))
        .await
        .expect("done")
        .expect("written");
    let heard = fleet.backend.answer("served").await;
    assert_eq!(heard.all("authorization"), ["Bearer secret-access-3"]);
    assert_eq!((asking.await.expect("done"), fleet.provider.refreshes()), (200, 1));
    assert!(!first.proxy.log().iter().any(|line| line.contains("renewal_failed")), "{:#?}", first.proxy.log());
}

#[tokio::test]
async fn what_a_stopped_instance_renewed_is_refused_once_another_has() {
    if !is_installed() {
        return;
    }
    let fleet = LoginFleet::start(0).await;
    fleet.provider.set(|conduct| conduct.has_fixed_refresh_tokens = true);
    let (first, second) = (fleet.instance("").await, fleet.instance("").await);
    let browser = fleet.signed_in(&first).await;
    fleet.give_long_tokens();
    fleet.provider.answerer.hold();
    let before = fleet.provider.refreshes();
    let asking = fleet.asking(&browser, &first);
    fleet.provider.refreshed_times(before + 1).await;
    first.proxy.signal("STOP");
    fleet.provider.answerer.open();
    let lock = fleet.until_keys("lock", 1).await.remove(0);
    fleet.engine.command(&[b"DEL", lock.as_bytes()]).await;
    let renewed = fleet.token(&browser, &second).await;
    first.proxy.signal("CONT");
    let heard = fleet.backend.answer("served").await;
    assert_eq!(heard.all("authorization"), [renewed.as_str()], "what the other one wrote");
    assert_eq!(asking.await.expect("done"), 200);
    assert_eq!(fleet.provider.refreshes(), 2, "one of each");
    first.proxy.logged("why", |line| line.contains("another instance renewed a session meanwhile")).await;
    for at in [&first, &second] {
        assert_eq!(fleet.token(&browser, at).await, renewed);
    }
}

#[tokio::test]
async fn a_sign_in_is_completed_at_one_instance_alone() {
    if !is_installed() {
        return;
    }
    let mut fleet = LoginFleet::start(600).await;
    let (first, second) = (fleet.instance("").await, fleet.instance("").await);
    let mut browser = Browser::new(first.proxy.address);
    let query = fleet.provider.authorize(&browser.reach_provider("/").await);
    let mut copy = browser.clone();
    copy.address = second.proxy.address;
    assert_eq!(browser.come_back(&query).await.status, 303);
    assert_eq!(copy.come_back(&query).await.status, 302, "it starts again");
    assert_eq!(fleet.provider.asked("/token").len(), 1, "the code was not sent again");
    // Without the engine the code, the cookie and PKCE protect it.
    let mut browser = Browser::new(first.proxy.address);
    let query = fleet.provider.authorize(&browser.reach_provider("/").await);
    fleet.engine.kill();
    assert_eq!(browser.come_back(&query).await.status, 303);
    assert!(browser.has_session());
}

#[tokio::test]
async fn a_sign_out_at_one_instance_ends_the_session_everywhere() {
    if !is_installed() {
        return;
    }
    let fleet = LoginFleet::start(600).await;
    let (first, second) = (fleet.instance("").await, fleet.instance("").await);
    // The session is ended at the instance that made it, at one that has its record, and at one that has not.
    for (name, is_known, at) in [("first", true, &first), ("second", true, &second), ("unknown", false, &second)] {
        let mut browser = fleet.signed_in(&first).await;
        if is_known {
            fleet.token(&browser, at).await;
        }
        fleet.until_keys("session", 1).await;
        let copy = browser.clone();
        browser.address = at.proxy.address;
        let revoked = fleet.provider.conduct.lock().expect("lock").revoked.len();
        let answer = browser.send("POST", "/.vestibule/logout", &[OURS], "").await;
        assert_eq!(answer.status, 303, "{name}: {}", answer.body);
        assert!(Browser::location(&answer).contains("id_token_hint=eyJ"), "{name}");
        assert_eq!(fleet.provider.conduct.lock().expect("lock").revoked.len(), revoked + 1, "{name}: once");
        for at in [&first, &second] {
            at.until("the copy to be refused", || async { fleet.status(&copy, at).await == 302 }).await;
        }
        let again = fleet.instance("").await;
        assert_eq!(fleet.status(&copy, &again).await, 302, "{name}: after a restart");
        let key = fleet.keys("session").await.remove(0);
        let kept = fleet.engine.command(&[b"HKEYS", key.as_bytes()]).await;
        assert_eq!(kept, b"*1\r\n$1\r\nx\r\n", "{name}: the record is gone");
        fleet.engine.command(&[b"DEL", key.as_bytes()]).await;
    }
    assert_eq!(fleet.provider.refreshes(), 0);
}

/// Two tabs come back from the provider at once, each to another instance.
#[tokio::test]
async fn a_sign_out_at_one_instance_revokes_the_refresh_token_that_only_another_has() {
    if !is_installed() {
        return;
    }
    let fleet = LoginFleet::start(600).await;
    let (first, second) = (fleet.instance("").await, fleet.instance("").await);
    let mut browser = Browser::new(first.proxy.address);
    let mut tabs = Vec::new();
    for path in ["/one", "/two"] {
        tabs.push(fleet.provider.authorize(&browser.reach_provider(path).await));
    }
    let mut other = browser.clone();
    other.address = second.proxy.address;
    assert_eq!(browser.come_back(&tabs[0]).await.status, 303);
    assert_eq!(other.come_back(&tabs[1]).await.status, 303);
    fleet.until_keys("session", 2).await;
    let answer = browser.send("POST", "/.vestibule/logout", &[OURS], "").await;
    assert_eq!(answer.status, 303, "{}", answer.body);
    second.until("the other tab to be refused", || async { fleet.status(&other, &second).await == 302 }).await;
    let revoked = || fleet.provider.conduct.lock().expect("lock").revoked.clone();
    second.until("both refresh tokens to be revoked", || async { revoked().len() >= 2 }).await;
    for key in fleet.keys("session").await {
        let kept = fleet.engine.command(&[b"HKEYS", key.as_bytes()]).await;
        assert_eq!(kept, b"*1\r\n$1\r\nx\r\n", "the record is gone");
    }
    let mut tokens = revoked();
    tokens.sort();
    tokens.dedup();
    assert_eq!((tokens.len(), revoked().len()), (2, 2), "each once: {:?}", revoked());
}

/// The other instance has received a new refresh token, and asks for the claims of its user.
#[tokio::test]
async fn a_sign_out_at_one_instance_revokes_the_refresh_token_of_a_renewal_at_another() {
    if !is_installed() {
        return;
    }
    let fleet = LoginFleet::start(2).await;
    fleet.provider.set(|conduct| conduct.userinfo = json!({ "sub": "alice" }));
    let shared = format!("url: \"{}\"", fleet.engine.url());
    let first = fleet.starting(&shared, "claims_from: userinfo", "").await;
    let second = fleet.starting(&shared, "claims_from: userinfo", "").await;
    for instance in [&first, &second] {
        instance.is_ready(true).await;
    }
    // It has the provider's discovery document, so that a renewal begins with the refresh token.
    Browser::new(second.proxy.address).reach_provider("/").await;
    let mut browser = fleet.signed_in(&first).await;
    fleet.until_keys("session", 1).await;
    let cookie = browser.cookie_field();
    let fields = [cookie.as_str(), OURS];
    let opening = Socket::open(second.proxy.address, "/ws", &fields);
    let (mut client, _upstream) = tokio::join!(opening, fleet.backend.websocket());
    let provider = &fleet.provider.answerer;
    provider.hold();
    let before = provider.count();
    provider.asked_times(before + 1).await;
    let held = provider.answer_later_ones();
    provider.hold();
    held.add_permits(100);
    provider.asked_times(before + 2).await;
    assert!(provider.asked().last().expect("a request").line().contains("/userinfo"));
    let is_known = async {
        while client.next().await.opcode != 8 {}
        provider.open();
    };
    let (answer, ()) = tokio::join!(browser.send("POST", "/.vestibule/logout", &[OURS], ""), is_known);
    assert_eq!(answer.status, 303, "{}", answer.body);
    let is_none_left = || async { fleet.provider.valid_refresh_tokens().is_empty() };
    second.until("every refresh token to be revoked", is_none_left).await;
}

#[tokio::test]
async fn an_end_that_other_instances_do_not_have_yet_is_said_on_a_page_and_is_an_event() {
    if !is_installed() {
        return;
    }
    let mut fleet = LoginFleet::start(600).await;
    let first = fleet.instance("").await;
    let (mut browser, other) = (fleet.signed_in(&first).await, fleet.signed_in(&first).await);
    fleet.engine.kill();
    first.until_metric("vestibule_shared_up", |up| up < 0.5).await;
    let fields = [OURS, "Sec-Fetch-Mode: navigate"];
    let answer = browser.send("POST", "/.vestibule/logout", &fields, "").await;
    assert_eq!((answer.status, answer.field("content-type")), (503, Some("text/html; charset=utf-8")));
    assert!(answer.body.contains("You are signed out in this browser"), "{}", answer.body);
    assert!(!browser.has_session());
    let claims = json!({
        "iss": fleet.provider.url, "aud": CLIENT, "iat": now(), "exp": now() + 60, "jti": "a", "sub": "alice",
        "events": { "http://schemas.openid.net/event/backchannel-logout": {} },
    });
    let form = format!("logout_token={}", RSA.sign_with(&json!({ "typ": "logout+jwt" }), &claims));
    let answer = browser.send("POST", "/.vestibule/backchannel-logout", &[], &form).await;
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert_eq!(fleet.status(&other, &first).await, 302, "it is in force here");
    first.proxy.logged("the event", |line| line.contains("\"event\":\"backchannel_logout\"")).await;
}

#[tokio::test]
async fn an_instance_that_stops_ends_its_renewals_before() {
    if !is_installed() {
        return;
    }
    let fleet = LoginFleet::start(2).await;
    let (mut first, second) = (fleet.instance("").await, fleet.instance("").await);
    let browser = fleet.signed_in(&first).await;
    let cookie = browser.cookie_field();
    let fields = [cookie.as_str(), OURS];
    let opening = Socket::open(first.proxy.address, "/ws", &fields);
    let (client, (_, upstream)) = tokio::join!(opening, fleet.backend.websocket());
    fleet.give_long_tokens();
    fleet.provider.answerer.hold();
    let before = fleet.provider.refreshes();
    fleet.provider.refreshed_times(before + 1).await;
    drop((client, upstream));
    first.proxy.signal("TERM");
    let early = tokio::time::timeout(Duration::from_secs(2), first.proxy.ended()).await;
    assert!(early.is_err(), "the provider has taken the refresh token and not answered");
    fleet.provider.answerer.open();
    assert_eq!(first.proxy.ended().await, Some(0));
    assert_eq!(fleet.token(&browser, &second).await, "Bearer secret-access-3");
    assert_eq!(fleet.provider.refreshes(), 1);
}

#[tokio::test]
async fn an_instance_that_stops_ends_the_sessions_that_newer_ones_have_replaced() {
    if !is_installed() {
        return;
    }
    let fleet = LoginFleet::start(600).await;
    let (mut first, second) = (fleet.instance("").await, fleet.instance("").await);
    let mut browser = fleet.signed_in(&first).await;
    let former = browser.clone();
    let location = Browser::location(&browser.open("/.vestibule/login?prompt=login").await);
    assert_eq!(browser.come_back(&fleet.provider.authorize(&location)).await.status, 303);
    assert_eq!(fleet.status(&former, &second).await, 200, "requests of other tabs are under way");
    first.proxy.signal("TERM");
    assert_eq!(first.proxy.ended().await, Some(0));
    second.until("the end of the former session", || async { fleet.status(&former, &second).await != 200 }).await;
    assert_eq!(fleet.status(&browser, &second).await, 200);
}

/// Both sessions may be one session at the provider, so the former one's refresh token is not revoked there.
#[tokio::test]
async fn the_end_of_a_session_that_another_instance_has_replaced_revokes_nothing() {
    if !is_installed() {
        return;
    }
    let fleet = LoginFleet::start(600).await;
    let (first, mut second) = (fleet.instance("").await, fleet.instance("").await);
    let mut browser = fleet.signed_in(&first).await;
    let former = browser.clone();
    let key = fleet.keys("session").await.remove(0);
    let location = Browser::location(&browser.open("/.vestibule/login?prompt=login").await);
    browser.address = second.proxy.address;
    assert_eq!(browser.come_back(&fleet.provider.authorize(&location)).await.status, 303);
    // It ends the former session before it stops, and does not have its record.
    second.proxy.signal("TERM");
    assert_eq!(second.proxy.ended().await, Some(0));
    first
        .until("the record of the former session to be removed", || async {
            fleet.engine.command(&[b"HKEYS", key.as_bytes()]).await == b"*1\r\n$1\r\nx\r\n"
        })
        .await;
    browser.address = first.proxy.address;
    assert_eq!((fleet.status(&former, &first).await, fleet.status(&browser, &first).await), (302, 200));
    let answer = browser.send("POST", "/.vestibule/logout", &[OURS], "").await;
    assert_eq!(answer.status, 303, "{}", answer.body);
    assert_eq!(
        fleet.provider.conduct.lock().expect("lock").revoked.len(),
        1,
        "that of the session that was signed out"
    );
}

#[tokio::test]
async fn check_says_when_the_engine_s_user_may_not_keep_sessions() {
    if !is_installed() {
        return;
    }
    let fleet = LoginFleet::start(600).await;
    let admin = std::net::SocketAddr::from(([127, 0, 0, 1], unused_port()));
    let file = TempFile::new(&fleet.yaml(admin, &format!("url: \"{}\"", fleet.engine.url()), "", ""));
    let check = || async {
        let path = file.path().to_owned();
        let run = move || crate::support::proxy::command().args(["check", "--online", "--config", &path]).output();
        let output = tokio::task::spawn_blocking(run).await.expect("done").expect("runs");
        (output.status.code(), String::from_utf8(output.stdout).expect("text"))
    };
    let (code, text) = check().await;
    assert!(code == Some(0) && text.contains("shared: keeps sessions that begin with a sign-in"), "{text}");
    fleet.engine.command(&[b"ACL", b"SETUSER", b"default", b"-eval"]).await;
    let (code, text) = check().await;
    assert!(code == Some(1) && text.contains("sessions that begin with a sign-in cannot be kept"), "{text}");
    assert!(text.contains("no permissions to run the 'eval' command"), "{text}");
}

/// What holds while the engine is in some condition.
struct Row {
    /// The status of a page at another instance than the one where its user has just signed in.
    elsewhere: u16,
    /// The renewals of a session that is due.
    renewals: usize,
    /// The answer to a sign-out. 503: it is in force at that instance, and at others later.
    sign_out: u16,
}

const WORKS: Row = Row { elsewhere: 200, renewals: 1, sign_out: 303 };
const AWAY: Row = Row { elsewhere: 503, renewals: 0, sign_out: 503 };

/// Brings the engine into a condition, signs in, renews and signs out, and looks what holds once it is as before.
async fn under<F: Future<Output = ()>>(
    fleet: &LoginFleet,
    (first, second): (&Instance, &Instance),
    (begin, row, end): (impl FnOnce() -> F, Row, impl AsyncFnOnce()),
) {
    fleet.provider.set(|conduct| conduct.tokens = json!({ "expires_in": 0 }));
    let due = fleet.signed_in(first).await;
    fleet.give_long_tokens();
    let mut leaving = fleet.signed_in(first).await;
    assert_eq!(fleet.status(&leaving, second).await, 200, "known at both");
    begin().await;
    let (new, took) = timed(fleet.signed_in(first)).await;
    assert!(took < Duration::from_secs(5), "a sign-in waits for the engine twice at most: {took:?}");
    assert_eq!(fleet.status(&new, first).await, 200);
    assert_eq!(fleet.status(&new, second).await, row.elsewhere, "just signed in, at another instance");
    assert_eq!(fleet.status(&due, first).await, 200, "renewed, or within the grace");
    assert_eq!(fleet.provider.refreshes(), row.renewals);
    let copy = leaving.clone();
    let answer = leaving.send("POST", "/.vestibule/logout", &[OURS], "").await;
    assert_eq!(answer.status, row.sign_out, "{}", answer.body);
    assert!(!leaving.has_session());
    assert_eq!(fleet.status(&copy, first).await, 302, "in force here");
    end().await;
    second.until("the other instance to refuse", || async { fleet.status(&copy, second).await == 302 }).await;
    second.until("the new session", || async { fleet.status(&new, second).await == 200 }).await;
    second.until("the session that was due", || async { fleet.status(&due, second).await == 200 }).await;
    within("the refresh token to be revoked", async {
        while fleet.provider.conduct.lock().expect("lock").revoked.is_empty() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    assert_eq!(fleet.provider.conduct.lock().expect("lock").revoked.len(), 1);
    first
        .until("both to have the renewed token", || async {
            let tokens = [fleet.token(&due, first).await, fleet.token(&due, second).await];
            fleet.provider.refreshes() > 0 && tokens[0] == tokens[1]
        })
        .await;
    assert_eq!(fleet.provider.refreshes(), 1, "at one of them alone");
}

/// Two instances that reach the engine through a relay.
async fn relayed() -> (LoginFleet, Relay, [Instance; 2]) {
    let fleet = LoginFleet::start(600).await;
    let relay = Relay::start(fleet.engine.address).await;
    let url = format!("url: \"{}\"", relay.url());
    let instances = [fleet.instance_at(&url, "").await, fleet.instance_at(&url, "").await];
    (fleet, relay, instances)
}

#[tokio::test]
async fn sessions_with_the_engine_up() {
    if is_installed() {
        let (fleet, _relay, [first, second]) = relayed().await;
        under(&fleet, (&first, &second), (|| async {}, WORKS, async || {})).await;
    }
}

#[tokio::test]
async fn sessions_with_an_engine_that_is_slow() {
    if is_installed() {
        let (fleet, relay, [first, second]) = relayed().await;
        under(&fleet, (&first, &second), (|| async { relay.delay(100) }, WORKS, async || {})).await;
    }
}

#[tokio::test]
async fn sessions_with_an_engine_that_is_too_slow() {
    if is_installed() {
        let (fleet, relay, [first, second]) = relayed().await;
        under(&fleet, (&first, &second), (|| async { relay.delay(3_000) }, AWAY, async || relay.delay(0))).await;
    }
}

#[tokio::test]
async fn sessions_with_an_engine_that_is_flushed() {
    if is_installed() {
        let (fleet, _relay, [first, second]) = relayed().await;
        let flush = || async {
            fleet.engine.command(&[b"FLUSHALL"]).await;
        };
        under(&fleet, (&first, &second), (flush, WORKS, async || {})).await;
    }
}

#[tokio::test]
async fn sessions_with_an_engine_that_is_down() {
    if is_installed() {
        let (fleet, _relay, [first, second]) = relayed().await;
        let stop = || async {
            fleet.engine.signal("STOP");
            // Until both know it, a request waits for `timeout`.
            first.until_metric("vestibule_shared_up", |up| up < 0.5).await;
            second.until_metric("vestibule_shared_up", |up| up < 0.5).await;
        };
        under(&fleet, (&first, &second), (stop, AWAY, async || fleet.engine.signal("CONT"))).await;
    }
}

#[tokio::test]
async fn sessions_after_a_failover() {
    if !is_installed() {
        return;
    }
    let (master, watch) = watched_engine().await;
    let fleet = LoginFleet::with_engine(master, 600).await;
    let (first, second) = (fleet.instance_at(&watch.shared, "").await, fleet.instance_at(&watch.shared, "").await);
    let fail_over = || async {
        fleet.engine.signal("KILL");
        let one = first.until_metric("vestibule_shared_up", |up| up < 0.5);
        let other = second.until_metric("vestibule_shared_up", |up| up < 0.5);
        tokio::join!(one, other);
        first.until_metric("vestibule_shared_up", |up| up > 0.5).await;
        second.until_metric("vestibule_shared_up", |up| up > 0.5).await;
    };
    under(&fleet, (&first, &second), (fail_over, WORKS, async || {})).await;
}

#[tokio::test]
async fn a_renewal_that_cannot_be_written_is_written_later_and_nobody_uses_the_spent_token() {
    if !is_installed() {
        return;
    }
    let fleet = LoginFleet::start(0).await;
    fleet.engine.command(&[b"ACL", b"SETUSER", b"first", b"on", b"nopass", b"~*", b"&*", b"+@all"]).await;
    std::fs::write(fleet.folder.0.join("password"), "any").expect("written");
    let password = fleet.folder.0.join("password");
    let url = fleet.engine.url();
    let user = format!("url: \"{url}\", username: first, password_file: \"{}\"", password.display());
    let (first, second) = (fleet.instance_at(&user, "").await, fleet.instance("").await);
    let browser = fleet.signed_in(&first).await;
    fleet.give_long_tokens();
    fleet.provider.answerer.hold();
    let before = fleet.provider.refreshes();
    let asking = fleet.asking(&browser, &first);
    fleet.provider.refreshed_times(before + 1).await;
    // The engine takes no record from it while it has the answer of the provider.
    fleet.engine.command(&[b"ACL", b"SETUSER", b"first", b"-hset"]).await;
    fleet.provider.answerer.open();
    assert_eq!(fleet.backend.answer("served").await.all("authorization"), ["Bearer secret-access-3"]);
    assert_eq!(asking.await.expect("done"), 200);
    let waiting = fleet.asking(&browser, &second);
    // So long that the second would have taken a lock that is free.
    tokio::time::sleep(Duration::from_secs(1)).await;
    fleet.engine.command(&[b"ACL", b"SETUSER", b"first", b"+hset"]).await;
    assert_eq!(fleet.backend.answer("served").await.all("authorization"), ["Bearer secret-access-3"]);
    assert_eq!((waiting.await.expect("done"), fleet.provider.refreshes()), (200, 1));
}

#[tokio::test]
async fn claims_that_do_not_fit_a_cookie_are_known_at_every_instance() {
    if !is_installed() {
        return;
    }
    let fleet = LoginFleet::start(600).await;
    let more = "routes: [{ path: /x, require: { groups: staff } }]\nidentity: { headers: { X-User-Id: sub } }\n";
    let (first, second) = (fleet.instance(more).await, fleet.instance(more).await);
    let mut groups: Vec<String> = (0..400).map(|number| format!("a-group-with-a-long-name-{number}")).collect();
    groups.push("staff".to_owned());
    fleet.provider.set(|conduct| conduct.id_token = json!({ "groups": groups }));
    let browser = fleet.signed_in(&first).await;
    assert_eq!(fleet.token(&browser, &second).await, "Bearer secret-access-2");
}

/// `limits.login_requests` bounds the reads that are under way at once.
#[tokio::test]
async fn reads_beyond_the_limit_wait_and_are_503_after_the_timeout() {
    if !is_installed() {
        return;
    }
    let fleet = LoginFleet::start(600).await;
    let relay = Relay::start(fleet.engine.address).await;
    let first = fleet.instance("").await;
    let shared = format!("url: \"{}\", timeout: 2s", relay.url());
    let second = fleet.instance_at(&shared, "limits: { login_requests: 1 }\n").await;
    let mut browsers = Vec::new();
    for _ in 0..4 {
        browsers.push(fleet.signed_in(&first).await);
    }
    relay.delay(1_200);
    let mut asking = tokio::task::JoinSet::new();
    for mut browser in browsers {
        browser.address = second.proxy.address;
        asking.spawn(async move { browser.open("/x").await.status });
    }
    let mut statuses = Vec::new();
    let answers = async {
        while let Some(status) = asking.join_next().await {
            statuses.push(status.expect("done"));
        }
    };
    let serve = async {
        loop {
            fleet.backend.answer("served").await;
        }
    };
    tokio::select! {
        () = answers => {}
        () = serve => {}
    }
    statuses.sort_unstable();
    assert_eq!((statuses[0], statuses[3]), (200, 503), "{statuses:?}");
}

#[tokio::test]
async fn values_that_others_write_in_place_of_ours_give_way() {
    if !is_installed() {
        return;
    }
    let fleet = LoginFleet::start(0).await;
    let (first, second) = (fleet.instance("").await, fleet.instance("").await);
    let browser = fleet.signed_in(&first).await;
    fleet.give_long_tokens();
    let record = fleet.keys("session").await.remove(0);
    let lock = record.replace(":session:", ":lock:");
    // A lock that never ends, and of another type; a record of another type.
    fleet.engine.command(&[b"LPUSH", lock.as_bytes(), b"x"]).await;
    fleet.engine.command(&[b"DEL", record.as_bytes()]).await;
    fleet.engine.command(&[b"LPUSH", record.as_bytes(), b"x"]).await;
    assert_eq!(fleet.token(&browser, &first).await, "Bearer secret-access-3", "renewed, and written again");
    assert_eq!(fleet.token(&browser, &second).await, "Bearer secret-access-3");
    // A record that is too long, at an instance that does not know the session.
    let third = fleet.instance("").await;
    let long = vec![b'x'; 300 << 10];
    fleet.engine.command(&[b"HSET", record.as_bytes(), b"r", &long]).await;
    assert_eq!(fleet.status(&browser, &third).await, 302);
    third.until_metric("vestibule_shared_entries_refused_total", |count| count > 0.5).await;
    assert_eq!(fleet.token(&browser, &first).await, "Bearer secret-access-3");
    // The instances that know it write it again within a minute.
    assert_eq!(fleet.provider.refreshes(), 1);
}

#[tokio::test]
async fn an_older_record_is_not_taken_for_a_session_that_gave_way() {
    if !is_installed() {
        return;
    }
    let fleet = LoginFleet::start(0).await;
    let first = fleet.instance("limits: { login_sessions: 1 }\n").await;
    let second = fleet.instance("").await;
    let browser = fleet.signed_in(&first).await;
    let key = fleet.keys("session").await.remove(0);
    fleet.engine.command(&[b"COPY", key.as_bytes(), b"before"]).await;
    fleet.give_long_tokens();
    assert_eq!(fleet.token(&browser, &first).await, "Bearer secret-access-3");
    assert_eq!(fleet.token(&browser, &second).await, "Bearer secret-access-3");
    // It gives way at the first to another session, and comes back.
    let another = fleet.signed_in(&first).await;
    assert_eq!(fleet.token(&browser, &first).await, "Bearer secret-access-3", "read again");
    assert_eq!(fleet.status(&another, &first).await, 200);
    fleet.engine.command(&[b"COPY", b"before", key.as_bytes(), b"REPLACE"]).await;
    assert_eq!(fleet.status(&browser, &first).await, 302, "there is no record with a token that it may take");
    assert_eq!(fleet.token(&browser, &second).await, "Bearer secret-access-3");
    assert_eq!(fleet.provider.refreshes(), 1, "the spent token was not sent");
}
