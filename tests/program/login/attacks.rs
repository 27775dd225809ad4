//! Tests of attempts to get another user's session, or one that continues after its end.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Browser, Fixture, OURS, provider};
use crate::support::client::request;
use crate::support::issuer::RSA;
use crate::support::now;
use crate::support::openid::CLIENT;
use crate::support::proxy::Proxy;
use crate::support::socket::Socket;
use crate::support::within;

const LOGOUT: &str = "/.vestibule/logout";
const SECRET: &str = "session: { secret: 0123456789abcdef0123456789abcdefXYZ }, login: {";

/// Opens a socket of this browser's session. Returns both ends.
async fn socket(fixture: &Fixture, browser: &Browser) -> (Socket, Socket) {
    let cookie = browser.cookie_field();
    let fields = [cookie.as_str(), OURS];
    let opening = Socket::open(fixture.proxy.address, "/ws", &fields);
    let (client, (_, upstream)) = tokio::join!(opening, fixture.backend.websocket());
    (client, upstream)
}

async fn passes(client: &mut Socket, upstream: &mut Socket, text: &str) {
    client.say(text).await;
    assert_eq!(upstream.next_text().await, text);
}

/// Returns the Close of a socket, and the proxy's error message before it, if there is one.
async fn ending(client: &mut Socket) -> (u16, String) {
    let frame = client.next().await;
    if frame.opcode == 8 {
        return frame.close();
    }
    assert!(frame.text().starts_with("{\"type\":\"error\""), "{}", frame.text());
    client.next_close().await
}

/// Returns the status of a page; 200 when the backend is reached.
pub(super) async fn page(fixture: &Fixture, browser: &mut Browser) -> u16 {
    tokio::select! {
        answer = browser.open("/x") => answer.status,
        _ = fixture.backend.answer("served") => 200,
    }
}

async fn sign_in_again(fixture: &Fixture, browser: &mut Browser) {
    let location = Browser::location(&browser.open("/.vestibule/login?prompt=login").await);
    assert_eq!(browser.come_back(&fixture.provider.authorize(&location)).await.status, 303);
}

async fn reload(proxy: &mut Proxy, yaml: &str) {
    let before = proxy.log().len();
    proxy.rewrite(yaml);
    proxy.signal("HUP");
    proxy.logged_after(before, "a reload", |line| line.contains("configuration reloaded")).await;
}

/// Reports, as the provider, that the session with this `sid` has ended.
async fn back_channel_logout(fixture: &Fixture, sid: &str) {
    let claims = json!({
        "iss": fixture.provider.url, "aud": CLIENT, "iat": now(), "exp": now() + 60, "jti": format!("of {sid}"),
        "events": { "http://schemas.openid.net/event/backchannel-logout": {} }, "sid": sid,
    });
    let form = format!("logout_token={}", RSA.sign_with(&json!({ "typ": "logout+jwt" }), &claims));
    let answer = fixture.browser().send("POST", "/.vestibule/backchannel-logout", &[], &form).await;
    assert_eq!(answer.status, 200, "{}", answer.body);
}

#[tokio::test]
async fn a_socket_that_moved_to_a_newer_session_outlives_others_sign_outs_and_ends_with_its_own() {
    let fixture = Fixture::at(provider(600).await, "", "").await;
    let mut browser = fixture.browser();
    browser.sign_in(&fixture.provider, "/").await;
    let mut former = browser.clone();
    let (mut client, mut upstream) = socket(&fixture, &browser).await;
    sign_in_again(&fixture, &mut browser).await;
    within("the former session to end", async {
        while page(&fixture, &mut former).await == 200 {
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    })
    .await;
    fixture.provider.set(|conduct| conduct.user = "bob".to_owned());
    for turn in ["first", "second"] {
        let mut other = fixture.browser();
        other.sign_in(&fixture.provider, "/").await;
        assert_eq!(other.send("POST", LOGOUT, &[OURS], "").await.status, 303);
        passes(&mut client, &mut upstream, turn).await;
    }
    assert_eq!(browser.send("POST", LOGOUT, &[OURS], "").await.status, 303);
    assert_eq!(ending(&mut client).await, (1008, "Session ended".to_owned()));
}

#[tokio::test]
async fn a_newer_session_s_end_is_that_of_the_sockets_of_the_one_it_replaces() {
    for by_provider in [false, true] {
        let fixture = Fixture::at(provider(600).await, "", "").await;
        let mut browser = fixture.browser();
        browser.sign_in(&fixture.provider, "/").await;
        let (mut client, _upstream) = socket(&fixture, &browser).await;
        fixture.provider.set(|conduct| conduct.id_token = json!({ "sid": "newer" }));
        // The former session ends ten seconds later, which this does not await.
        let since = Instant::now();
        sign_in_again(&fixture, &mut browser).await;
        if by_provider {
            back_channel_logout(&fixture, "newer").await;
        } else {
            assert_eq!(browser.send("POST", LOGOUT, &[OURS], "").await.status, 303);
        }
        assert_eq!(ending(&mut client).await, (1008, "Session ended".to_owned()));
        assert!(since.elapsed() < Duration::from_secs(9), "by_provider {by_provider}: {:?}", since.elapsed());
    }
}

#[tokio::test]
async fn a_session_whose_sid_a_renewal_changed_ends_by_the_new_one_with_its_sockets() {
    let fixture = Fixture::at(provider(2).await, "", "").await;
    let mut browser = fixture.browser();
    browser.sign_in(&fixture.provider, "/").await;
    let (mut client, mut upstream) = socket(&fixture, &browser).await;
    fixture.provider.set(|conduct| {
        conduct.renewed = json!({ "sid": "renewed" });
        conduct.tokens = json!({ "expires_in": 600 });
    });
    fixture.provider.refreshed_times(1).await;
    passes(&mut client, &mut upstream, "after the renewal").await;
    back_channel_logout(&fixture, "renewed").await;
    assert_eq!(ending(&mut client).await, (1008, "Session ended".to_owned()));
    for _ in 0..2 {
        assert_eq!(page(&fixture, &mut browser).await, 302);
    }
}

/// A provider may send the member without a value at renewals, and its logout then names the session of the sign-in.
#[tokio::test]
async fn a_renewal_whose_sid_names_no_session_leaves_the_session_its_own() {
    for sid in [json!(""), json!(7)] {
        let fixture = Fixture::at(provider(2).await, "", "").await;
        fixture.provider.set(|conduct| conduct.id_token = json!({ "sid": "first" }));
        let mut browser = fixture.browser();
        browser.sign_in(&fixture.provider, "/").await;
        let (mut client, mut upstream) = socket(&fixture, &browser).await;
        fixture.provider.set(|conduct| {
            conduct.renewed = json!({ "sid": sid });
            conduct.tokens = json!({ "expires_in": 600 });
        });
        fixture.provider.refreshed_times(1).await;
        passes(&mut client, &mut upstream, "after the renewal").await;
        back_channel_logout(&fixture, "first").await;
        assert_eq!(ending(&mut client).await, (1008, "Session ended".to_owned()));
        assert_eq!(page(&fixture, &mut browser).await, 302, "{sid}");
    }
}

#[tokio::test]
async fn sockets_of_a_session_that_could_not_be_written_down_as_ended_end_too() {
    let fixture = Fixture::at(provider(2).await, "", "limits: { sign_outs: 1, sign_outs_per_user: 1 }\n").await;
    let mut browser = fixture.browser();
    browser.sign_in(&fixture.provider, "/").await;
    let (mut client, _upstream) = socket(&fixture, &browser).await;
    fixture.provider.set(|conduct| conduct.user = "bob".to_owned());
    let mut other = fixture.browser();
    other.sign_in(&fixture.provider, "/").await;
    assert_eq!(other.send("POST", LOGOUT, &[OURS], "").await.status, 303);
    fixture.provider.set(|conduct| {
        conduct.token_reply = Some((400, String::new(), json!({ "error": "invalid_grant" }).to_string()));
    });
    assert_eq!(ending(&mut client).await, (1008, "Session ended".to_owned()));
    assert_eq!(page(&fixture, &mut browser).await, 302);
}

#[tokio::test]
async fn a_socket_of_a_login_session_ends_when_what_seals_it_is_another() {
    let provider = provider(600).await;
    let backend = crate::support::backend::Backend::start().await;
    let yaml = Fixture::yaml(&provider, &backend, "", "").replace("login: {", SECRET);
    let proxy = Proxy::start(&yaml).await;
    let mut fixture = Fixture { provider, backend, proxy };
    let mut browser = fixture.browser();
    browser.sign_in(&fixture.provider, "/").await;
    let (mut client, mut upstream) = socket(&fixture, &browser).await;
    reload(&mut fixture.proxy, &format!("{yaml}limits: {{ login_requests: 5 }}\n")).await;
    passes(&mut client, &mut upstream, "the same secret").await;
    reload(&mut fixture.proxy, &yaml.replace("XYZ", "ABC")).await;
    assert_eq!(ending(&mut client).await, (1008, "Access denied".to_owned()));
    assert_eq!(page(&fixture, &mut browser).await, 302);
}

#[tokio::test]
async fn a_reload_that_changes_or_removes_the_login_ends_its_sessions_and_sockets() {
    let provider = provider(600).await;
    let backend = crate::support::backend::Backend::start().await;
    let yaml = Fixture::yaml(&provider, &backend, "", "").replace("login: {", SECRET);
    let without = yaml.lines().filter(|line| !line.starts_with("browser:")).collect::<Vec<_>>().join("\n");
    let without = without.replace("preset: oidc,", "preset: oidc, audience: api,");
    let proxy = Proxy::start(&yaml).await;
    let mut fixture = Fixture { provider, backend, proxy };
    let session = "browser: { session: { secret: 0123456789abcdef0123456789abcdefXYZ } }";
    for (other, expected) in [
        (yaml.replace(&format!("client_id: {CLIENT}"), "client_id: another"), 302),
        (format!("{without}\n"), 401),
        (format!("{without}\n{session}\n"), 401),
        (yaml.replace("preset: oidc,", "preset: oidc, allow: { users: [bob] },"), 403),
        (yaml.replace("preset: oidc,", "preset: oidc, require: { plan: paid },"), 302),
    ] {
        let mut browser = fixture.browser();
        assert_eq!(browser.sign_in(&fixture.provider, "/").await.status, 303);
        let (mut client, _upstream) = socket(&fixture, &browser).await;
        reload(&mut fixture.proxy, &other).await;
        assert_eq!(ending(&mut client).await, (1008, "Access denied".to_owned()), "{other}");
        assert_eq!(page(&fixture, &mut browser).await, expected, "{other}");
        reload(&mut fixture.proxy, &yaml).await;
    }
}

#[tokio::test]
async fn a_provider_that_takes_another_s_place_hears_none_of_its_tokens() {
    let (first, second) = (provider(0).await, provider(600).await);
    let backend = crate::support::backend::Backend::start().await;
    let yaml = Fixture::yaml(&first, &backend, "", "").replace("login: {", SECRET);
    let proxy = Proxy::start(&yaml).await;
    let mut fixture = Fixture { provider: first, backend, proxy };
    let mut browser = fixture.browser();
    browser.sign_in(&fixture.provider, "/").await;
    reload(&mut fixture.proxy, &yaml.replace(&fixture.provider.url, &second.url)).await;
    assert_eq!(page(&fixture, &mut browser).await, 302);
    let answer = browser.send("POST", LOGOUT, &[OURS], "").await;
    assert_eq!(answer.status, 303);
    assert!(!Browser::location(&answer).contains("id_token_hint"), "{answer:?}");
    for asked in second.answerer.asked() {
        assert!(!asked.body.contains("secret-"), "{}", asked.body);
    }
}

#[tokio::test]
async fn a_sign_in_begun_before_its_provider_became_another_begins_anew_there() {
    let (first, second) = (provider(600).await, provider(600).await);
    let backend = crate::support::backend::Backend::start().await;
    let yaml = Fixture::yaml(&first, &backend, "", "").replace("login: {", SECRET);
    let proxy = Proxy::start(&yaml).await;
    let mut fixture = Fixture { provider: first, backend, proxy };
    let mut browser = fixture.browser();
    let location = browser.reach_provider("/lab").await;
    let callback = fixture.provider.authorize(&location);
    reload(&mut fixture.proxy, &yaml.replace(&fixture.provider.url, &second.url)).await;
    let answer = browser.come_back(&callback).await;
    assert_eq!(answer.status, 302, "{}", answer.body);
    assert!(second.asked("/token").is_empty(), "neither code nor verifier is for it");
    let location = Browser::location(&answer);
    assert!(location.starts_with(&second.url), "{location}");
    let answer = browser.come_back(&second.authorize(&location)).await;
    assert_eq!((answer.status, answer.field("location")), (303, Some("/lab")));
    assert!(fixture.provider.asked("/token").is_empty());
}

#[tokio::test]
async fn a_renewed_token_of_someone_who_is_not_allowed_any_more_opens_nothing() {
    let provider = provider(2).await;
    let providers = format!(
        "providers: [{{ preset: oidc, issuer: \"{}\", allow: {{ email_domains: [ours.example] }} }}]\n",
        provider.url
    );
    provider.set(|conduct| conduct.id_token = json!({ "email": "a@ours.example", "email_verified": true }));
    let fixture = Fixture::at(provider, "", &providers).await;
    let mut browser = fixture.browser();
    assert_eq!(browser.sign_in(&fixture.provider, "/").await.status, 303);
    let (mut client, _upstream) = socket(&fixture, &browser).await;
    fixture.provider.set(|conduct| {
        conduct.renewed = json!({ "email_verified": false });
        conduct.tokens = json!({ "expires_in": 600 });
    });
    assert_eq!(ending(&mut client).await, (1008, "Access denied".to_owned()));
    assert_eq!(page(&fixture, &mut browser).await, 403);
}

#[tokio::test]
async fn what_is_sealed_for_one_purpose_is_good_for_no_other() {
    let fixture = Fixture::start("", "").await;
    let mut browser = fixture.browser();
    let location = browser.reach_provider("/x").await;
    let state = fixture.provider.parameters(&location)["state"].clone();
    assert_eq!(browser.come_back(&fixture.provider.authorize(&location)).await.status, 303);
    let login = browser.cookies.keys().find(|name| name.contains("login")).expect("a login cookie").clone();
    let session = "vestibule-80".to_owned();
    let sealed_login = browser.cookies[&login].split_once('.').expect("a count").1.to_owned();
    let sealed_session = browser.cookies[&session].strip_prefix("login.").expect("a login session").to_owned();
    for (value, what) in [
        (browser.cookies[&login].clone(), "the login cookie"),
        (format!("login.{sealed_login}"), "the sealed login cookie"),
        (format!("login.{state}"), "the state"),
        (state.clone(), "the state alone"),
        (sealed_session.clone(), "the session without its mark"),
    ] {
        let mut other = fixture.browser();
        other.cookies.insert(session.clone(), value);
        assert_eq!(page(&fixture, &mut other).await, 302, "{what} as a session");
    }
    for (value, what) in [
        (format!("0.{sealed_session}"), "the session"),
        (format!("0.{state}"), "the state"),
        (sealed_login.clone(), "the login cookie without its count"),
    ] {
        let mut other = fixture.browser();
        let location = other.reach_provider("/x").await;
        let query = fixture.provider.authorize(&location);
        other.cookies.insert(login.clone(), value);
        let answer = other.come_back(&query).await;
        assert!(answer.status == 302 && !other.has_session(), "{what} as a login cookie: {}", answer.status);
    }
    for (value, what) in [(sealed_session, "the session"), (sealed_login, "the login cookie")] {
        let mut other = fixture.browser();
        let answer = other.come_back(&format!("code=x&state={value}")).await;
        assert_eq!(answer.field("location"), Some("/.vestibule/login"), "{what} as a state");
    }
}

#[tokio::test]
async fn two_callbacks_of_one_state_at_once_begin_one_session() {
    let fixture = Fixture::start("", "").await;
    let mut browser = fixture.browser();
    let location = browser.reach_provider("/x").await;
    let query = fixture.provider.authorize(&location);
    let mut calls = tokio::task::JoinSet::new();
    for _ in 0..8 {
        let (mut browser, query) = (browser.clone(), query.clone());
        calls.spawn(async move {
            browser.come_back(&query).await;
            usize::from(browser.has_session())
        });
    }
    assert_eq!(calls.join_all().await.iter().sum::<usize>(), 1);
    assert_eq!(fixture.provider.asked("/token").len(), 1, "the code goes up once");
}

#[tokio::test]
async fn another_browser_s_code_or_state_signs_nobody_in() {
    let fixture = Fixture::start("", "").await;
    let (mut victim, mut attacker) = (fixture.browser(), fixture.browser());
    let ours = attacker.reach_provider("/x").await;
    let query = fixture.provider.authorize(&ours);
    // The victim opens the attacker's callback, with a login cookie of their own and without one.
    let theirs = victim.reach_provider("/x").await;
    for victim in [&mut victim.clone(), &mut fixture.browser()] {
        let answer = victim.come_back(&query).await;
        assert!(answer.status == 302 && !victim.has_session(), "{}", answer.status);
    }
    assert!(fixture.provider.asked("/token").is_empty(), "the code goes nowhere");
    // The attacker's code in the victim's own state: PKCE and nonce are of another attempt.
    let code = query.split('&').next().expect("a code");
    let state = fixture.provider.parameters(&theirs)["state"].clone();
    let answer = victim.come_back(&format!("{code}&state={state}")).await;
    assert!(answer.status != 303 && !victim.has_session(), "{}", answer.status);
}

#[tokio::test]
async fn an_id_token_of_a_sign_in_ends_nothing_and_a_logout_token_begins_nothing() {
    let fixture = Fixture::start("", "").await;
    let mut browser = fixture.browser();
    browser.sign_in(&fixture.provider, "/").await;
    let claims = |more: Value| {
        let mut claims = json!({
            "iss": fixture.provider.url, "aud": CLIENT, "iat": now(), "exp": now() + 60, "jti": "j", "sid": "sid-1",
            "sub": "alice",
        });
        claims.as_object_mut().expect("object").extend(more.as_object().expect("object").clone());
        claims
    };
    let events = json!({ "http://schemas.openid.net/event/backchannel-logout": {} });
    for token in [
        RSA.sign(&claims(json!({ "nonce": "n" }))),
        RSA.sign(&claims(json!({}))),
        RSA.sign(&claims(json!({ "events": events, "nonce": null }))),
    ] {
        let form = format!("logout_token={token}");
        let answer = fixture.browser().send("POST", "/.vestibule/backchannel-logout", &[], &form).await;
        assert_eq!(answer.status, 400);
    }
    assert_eq!(fixture.user(&mut browser).await, "alice");
    let logout = RSA.sign_with(&json!({ "typ": "logout+jwt" }), &claims(json!({ "events": events })));
    fixture.provider.set(|conduct| conduct.raw_id_token = Some(logout.clone()));
    let mut other = fixture.browser();
    assert_eq!(other.sign_in(&fixture.provider, "/").await.status, 502);
    assert!(!other.has_session());
    let field = crate::support::client::bearer(&logout);
    assert_eq!(request(fixture.proxy.address, "GET", "/x", &[&field], "").await.status, 401);
}
