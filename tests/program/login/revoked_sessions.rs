//! Tests of sign-ins in a session of the provider whose `sid` was revoked. A provider may keep the `sid` when its user
//! authenticates again in the same browser.

use serde_json::{Value, json};

use super::attacks::page;
use super::logout::{logout_token, tell};
use super::{Browser, Fixture, OURS};
use crate::support::backend::Backend;
use crate::support::client::{Answer, get, request};
use crate::support::control::post;
use crate::support::issuer::RSA;
use crate::support::openid::OpenId;
use crate::support::proxy::{Proxy, TempFolder, is_reload};
use crate::support::socket::Socket;
use crate::support::{now, within};

/// A proxy whose provider sends one `sid` and whose clock does not differ, with a control listener.
struct Revoking {
    fixture: Fixture,
    folder: TempFolder,
    yaml: String,
}

impl Revoking {
    async fn start() -> Self {
        let (provider, backend, folder) = (OpenId::start().await, Backend::start().await, TempFolder::new());
        provider.set(|conduct| {
            conduct.gives_refresh_token = true;
            conduct.id_token = json!({ "sid": "kept" });
        });
        let more = format!(
            "providers: [{{ preset: oidc, issuer: \"{}\", audience: api, clock_skew: 0s }}]\ncontrol: {{ listen: \"unix:{}\", revocation_file: \"{}\" }}\n",
            provider.url,
            folder.0.join("control.sock").display(),
            folder.0.join("revocations").display(),
        );
        let yaml = Fixture::yaml(&provider, &backend, "", &more)
            .replace("login: {", "session: { secret: 0123456789abcdef0123456789abcdefXYZ }, login: {");
        let proxy = Proxy::with_level(&yaml, "trace").await;
        Self { fixture: Fixture { provider, backend, proxy }, folder, yaml }
    }

    /// Revokes the provider's session, and returns the second of the revocation when it has passed.
    async fn revoke(&self) -> u64 {
        let body = json!({ "issuer": self.fixture.provider.url, "sid": "kept" }).to_string();
        assert_eq!(post(&self.folder.0.join("control.sock"), "/revoke", &body).await, 204);
        later().await - 1
    }

    /// Sets members of the ID tokens of the next sign-ins.
    fn id_token(&self, more: &Value) {
        self.fixture.provider.set(|conduct| {
            conduct.id_token = json!({ "sid": "kept" });
            for (name, value) in more.as_object().expect("an object") {
                conduct.id_token[name] = value.clone();
            }
        });
    }

    /// Comes back from the provider, which sends these members of the ID token at the second time, when it was asked to
    /// let the user authenticate again. Returns the second answer.
    async fn sign_in_twice(&self, browser: &mut Browser, then: &Value) -> Answer {
        let provider = &self.fixture.provider;
        let answer = browser.sign_in(provider, "/lab").await;
        assert_eq!(answer.status, 302, "{}", answer.body);
        let location = Browser::location(&answer);
        assert_eq!(provider.parameters(&location)["prompt"], "login");
        self.id_token(then);
        browser.come_back(&provider.authorize(&location)).await
    }

    /// Signs in and returns the browser.
    async fn signed_in(&self) -> Browser {
        let mut browser = self.fixture.browser();
        let answer = browser.sign_in(&self.fixture.provider, "/").await;
        assert_eq!(answer.status, 303, "{}", answer.body);
        browser
    }

    async fn socket(&self, browser: &Browser) -> (Socket, Socket) {
        let cookie = browser.cookie_field();
        let fields = [cookie.as_str(), OURS];
        let opening = Socket::open(self.fixture.proxy.address, "/ws", &fields);
        let (client, (_, upstream)) = tokio::join!(opening, self.fixture.backend.websocket());
        (client, upstream)
    }

    /// Replaces the process by one that has no records, and knows the revocations by its file.
    async fn restart(&mut self, browsers: &mut [&mut Browser]) {
        self.fixture.proxy.signal("TERM");
        self.fixture.proxy.ended().await;
        self.fixture.proxy = Proxy::with_level(&self.yaml, "trace").await;
        for browser in browsers {
            browser.address = self.fixture.proxy.address;
        }
    }
}

/// Waits for the next second of the clock: a revocation covers its own.
async fn later() -> u64 {
    let second = now();
    within("the next second", async {
        while now() == second {
            tokio::time::sleep(std::time::Duration::from_millis(20)).await;
        }
    })
    .await;
    now()
}

async fn passes(client: &mut Socket, upstream: &mut Socket, text: &str) {
    client.say(text).await;
    assert_eq!(upstream.next_text().await, text);
}

#[tokio::test]
async fn a_user_who_authenticates_again_is_signed_in_although_the_provider_keeps_its_sid() {
    let mut revoking = Revoking::start().await;
    let before = now();
    let mut former = revoking.signed_in().await;
    assert_eq!(page(&revoking.fixture, &mut former).await, 200);
    revoking.revoke().await;
    assert_eq!(page(&revoking.fixture, &mut former).await, 302);
    // The provider's own session goes on, so it first answers without asking its user.
    revoking.id_token(&json!({ "auth_time": before }));
    revoking.fixture.provider.set(|conduct| conduct.tokens = json!({ "expires_in": 2 }));
    let mut browser = revoking.fixture.browser();
    let answer = revoking.sign_in_twice(&mut browser, &json!({})).await;
    assert_eq!((answer.status, Browser::location(&answer)), (303, "/lab".to_owned()));
    assert_eq!(page(&revoking.fixture, &mut browser).await, 200);
    let (mut client, mut upstream) = revoking.socket(&browser).await;
    // A renewal does not change which session it is, whatever time it brings.
    for (number, renewed) in [json!({ "auth_time": null }), json!({ "auth_time": before })].into_iter().enumerate() {
        revoking.fixture.provider.set(|conduct| conduct.renewed = renewed);
        let count = revoking.fixture.provider.refreshes() + 1;
        within("a renewal", revoking.fixture.provider.refreshed_times(count)).await;
        passes(&mut client, &mut upstream, &format!("renewal {number}")).await;
        assert_eq!(page(&revoking.fixture, &mut browser).await, 200, "{number}");
    }
    // Nor does a reload that changes the provider's settings.
    revoking.yaml = revoking.yaml.replace("audience: api", "audience: another, allow: { users: [alice] }");
    let lines = revoking.fixture.proxy.log().len();
    revoking.fixture.proxy.rewrite(&revoking.yaml);
    revoking.fixture.proxy.signal("HUP");
    revoking.fixture.proxy.logged_after(lines, "a reload", |line| line.contains("configuration reloaded")).await;
    passes(&mut client, &mut upstream, "reloaded").await;
    assert_eq!(page(&revoking.fixture, &mut browser).await, 200);
    // The next revocation ends it as any other.
    revoking.revoke().await;
    assert!(client.next_text().await.contains("Session ended"));
    assert_eq!(client.next_close().await.0, 1008);
    assert_eq!(page(&revoking.fixture, &mut browser).await, 302);
}

#[tokio::test]
async fn without_a_later_authentication_the_sign_in_is_refused_and_the_page_says_what_to_do() {
    let revoking = Revoking::start().await;
    let revoked = revoking.revoke().await;
    let no_times = [
        json!({ "auth_time": null }),
        json!({ "auth_time": 0 }),
        json!({ "auth_time": revoked }),
        json!({ "auth_time": now() * 1_000 }),
        json!({ "auth_time": now() + 3_600 }),
        json!({ "auth_time": u64::MAX }),
    ];
    for more in no_times {
        revoking.id_token(&more);
        let mut browser = revoking.fixture.browser();
        let answer = revoking.sign_in_twice(&mut browser, &more).await;
        assert_eq!((answer.status, answer.field("retry-after")), (503, Some("1")), "{more}");
        assert!(answer.body.contains("Your session was ended") && answer.body.contains("again in 1 second."));
        assert!(answer.body.contains("sign out at your provider first"), "{}", answer.body);
        assert!(!browser.has_session(), "{more}");
    }
    for wrong in [json!("1800000000"), json!(-1)] {
        revoking.id_token(&json!({ "auth_time": wrong }));
        let answer = revoking.fixture.browser().sign_in(&revoking.fixture.provider, "/").await;
        assert_eq!(answer.status, 502, "{wrong}");
    }
    // Another session of the provider is none of these.
    revoking.id_token(&json!({ "sid": "another", "auth_time": revoked }));
    revoking.signed_in().await;
}

/// The cookie says which of two sessions of one `sid` is the newer one: no record is left.
#[tokio::test]
async fn after_a_restart_the_former_session_stays_ended_and_the_newer_one_goes_on() {
    let mut revoking = Revoking::start().await;
    let mut former = revoking.signed_in().await;
    let mut undated = {
        revoking.id_token(&json!({ "auth_time": null }));
        revoking.signed_in().await
    };
    // A time that is ahead of the clock is later than a revocation to come, and must not count.
    let mut ahead = {
        revoking.id_token(&json!({ "auth_time": now() + 2 }));
        revoking.signed_in().await
    };
    revoking.revoke().await;
    later().await;
    later().await;
    revoking.id_token(&json!({}));
    let mut browser = revoking.signed_in().await;
    revoking.restart(&mut [&mut former, &mut undated, &mut ahead, &mut browser]).await;
    for (name, ended) in [("former", &mut former), ("undated", &mut undated), ("ahead", &mut ahead)] {
        assert_eq!(page(&revoking.fixture, ended).await, 302, "{name}");
    }
    assert_eq!(page(&revoking.fixture, &mut browser).await, 200);
    revoking.revoke().await;
    assert_eq!(page(&revoking.fixture, &mut browser).await, 302);
}

#[tokio::test]
async fn a_renewal_lifts_no_revocation() {
    let revoking = Revoking::start().await;
    revoking.fixture.provider.set(|conduct| {
        conduct.tokens = json!({ "expires_in": 2 });
        conduct.renewed = json!({ "auth_time": now() + 3_600 });
    });
    let mut browser = revoking.signed_in().await;
    let (mut client, mut upstream) = revoking.socket(&browser).await;
    within("a renewal", revoking.fixture.provider.refreshed_times(1)).await;
    passes(&mut client, &mut upstream, "renewed").await;
    assert_eq!(page(&revoking.fixture, &mut browser).await, 200);
    revoking.revoke().await;
    assert!(client.next_text().await.contains("Session ended"));
    for _ in 0..2 {
        assert_eq!(page(&revoking.fixture, &mut browser).await, 302);
    }
}

/// Such tokens are issued anew within a session that was revoked, so nothing in them makes them newer.
#[tokio::test]
async fn bearer_tokens_and_their_session_cookies_stay_revoked_whatever_they_say() {
    let revoking = Revoking::start().await;
    let address = revoking.fixture.proxy.address;
    let bearer = |auth_time: u64| {
        let claims = json!({
            "iss": revoking.fixture.provider.url, "aud": "api", "sub": "alice", "sid": "kept", "iat": now(),
            "exp": now() + 600, "auth_time": auth_time,
        });
        format!("Authorization: Bearer {}", RSA.sign(&claims))
    };
    let token = bearer(now() + 3_600);
    let answer = request(address, "POST", "/.vestibule/session", &[&token, OURS], "").await;
    assert_eq!(answer.status, 200, "{}", answer.body);
    let cookie = answer.field("set-cookie").and_then(|line| line.split(';').next()).expect("a cookie");
    let cookie = format!("Cookie: {cookie}");
    let fields = [cookie.as_str()];
    let asking = get(address, "/x", &fields);
    let (answer, _) = tokio::join!(asking, revoking.fixture.backend.answer("served"));
    assert_eq!(answer.status, 200);
    revoking.revoke().await;
    for field in [&cookie, &token, &bearer(now())] {
        assert_eq!(get(address, "/x", &[field]).await.status, 401, "{field}");
    }
    let answer = request(address, "POST", "/.vestibule/session", &[&bearer(now()), OURS], "").await;
    assert_eq!(answer.status, 401, "{}", answer.body);
}

/// The provider has ended that session, and its clocks may differ from each other.
#[tokio::test]
async fn a_provider_s_logout_by_sid_ends_what_was_authenticated_before_it_came() {
    let revoking = Revoking::start().await;
    revoking.id_token(&json!({ "auth_time": now() - 30 }));
    let mut browser = revoking.signed_in().await;
    let late = logout_token(&revoking.fixture, &json!({ "sid": "kept", "iat": now() - 60 }));
    assert_eq!(tell(&revoking.fixture, &late).await, 200);
    assert_eq!(page(&revoking.fixture, &mut browser).await, 302);
    later().await;
    revoking.id_token(&json!({}));
    let mut browser = revoking.signed_in().await;
    assert_eq!(page(&revoking.fixture, &mut browser).await, 200);
}

/// A session may last longer than any token, and nobody may present its cookie before the revocation of a token would end.
#[tokio::test]
async fn an_operator_s_revocation_is_kept_until_the_sessions_that_it_concerns_have_ended() {
    let (minute, hour) = (60, 3_600);
    for (session, keep, expected) in [
        ("", "1m", 12 * hour + minute),
        ("session: { max_age: 20h }, ", "1m", 20 * hour + minute),
        ("session: { max_age: 20h }, ", "30h", 30 * hour),
    ] {
        let (provider, backend, folder) = (OpenId::start().await, Backend::start().await, TempFolder::new());
        let (socket, file) = (folder.0.join("control.sock"), folder.0.join("revocations"));
        let more = format!(
            "control: {{ listen: \"unix:{}\", revocation_file: \"{}\", revocation_keep: {keep} }}\n",
            socket.display(),
            file.display()
        );
        let yaml = Fixture::yaml(&provider, &backend, "", &more).replace("login: {", &format!("{session}login: {{"));
        let _proxy = Proxy::start(&yaml).await;
        let body = json!({ "issuer": provider.url, "sub": "alice" }).to_string();
        assert_eq!(post(&socket, "/revoke", &body).await, 204);
        let written = std::fs::read_to_string(&file).expect("written");
        let record: Value = serde_json::from_str(written.lines().last().expect("a line")).expect("JSON");
        let kept = record["until"].as_u64().expect("a time") - record["at"].as_u64().expect("a time");
        assert_eq!(kept, expected, "{session}{keep}");
    }
}

/// A reload that makes sessions shorter ends those that are older, and the next reload may make them longer again. What was
/// revoked between the two stays revoked.
#[tokio::test]
async fn a_revocation_is_kept_for_the_sessions_of_an_earlier_configuration() {
    let (provider, backend, folder) = (OpenId::start().await, Backend::start().await, TempFolder::new());
    let (socket, file) = (folder.0.join("control.sock"), folder.0.join("revocations"));
    let more = format!(
        "control: {{ listen: \"unix:{}\", revocation_file: \"{}\", revocation_keep: 1m }}\n",
        socket.display(),
        file.display()
    );
    let yaml = Fixture::yaml(&provider, &backend, "", &more);
    let with_max_age = |age: &str| yaml.replace("login: {", &format!("session: {{ max_age: {age} }}, login: {{"));
    let proxy = Proxy::start(&with_max_age("20h")).await;
    let fixture = Fixture { provider, backend, proxy };
    let before = fixture.proxy.log().len();
    fixture.proxy.rewrite(&with_max_age("1h"));
    fixture.proxy.signal("HUP");
    let said = fixture.proxy.logged_after(before, "a reload", is_reload).await;
    assert!(said.contains("configuration reloaded"), "{said}");
    let body = json!({ "issuer": fixture.provider.url, "sub": "alice" }).to_string();
    assert_eq!(post(&socket, "/revoke", &body).await, 204);
    assert_eq!(tell(&fixture, &logout_token(&fixture, &json!({ "sid": "kept" }))).await, 200);
    let written = std::fs::read_to_string(&file).expect("written");
    let kept: Vec<u64> = (written.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")))
        .map(|record| record["until"].as_u64().expect("a time") - record["at"].as_u64().expect("a time"))
        .collect();
    assert_eq!(kept, [20 * 3_600 + 60; 2]);
}
