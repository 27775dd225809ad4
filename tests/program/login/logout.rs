//! The way out, here and at the provider, and by the provider's word.

use std::collections::HashMap;
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use url::Url;

use super::attacks::page;
use super::{Browser, Fixture, OURS};
use crate::support::client::get;
use crate::support::issuer::{Key, RSA};
use crate::support::openid::{CLIENT, OpenId};
use crate::support::proxy::TempFolder;
use crate::support::socket::Socket;
use crate::support::{now, within};

const LOGOUT: &str = "/.vestibule/logout";
const BACKCHANNEL: &str = "/.vestibule/backchannel-logout";

async fn post(browser: &mut Browser, origin: &str, form: &str) -> crate::support::client::Answer {
    let fields = [origin, "Content-Type: application/x-www-form-urlencoded"];
    browser.send("POST", LOGOUT, &fields, form).await
}

#[tokio::test]
async fn signing_out_ends_the_session_here_and_at_the_provider() {
    let fixture = Fixture::start("", "").await;
    fixture.provider.set(|conduct| conduct.gives_refresh_token = true);
    let mut browser = fixture.browser();
    browser.sign_in(&fixture.provider, "/").await;
    let copy = browser.clone();
    let page = browser.open(LOGOUT).await;
    assert_eq!((page.status, page.field("referrer-policy")), (200, Some("same-origin")));
    let policy = page.field("content-security-policy").expect("a policy").to_owned();
    assert!(policy.contains(&format!("form-action 'self' {}", fixture.provider.url)), "{policy}");
    assert!(browser.has_session(), "a page alone ends nothing");
    let answer = post(&mut browser, OURS, "").await;
    assert_eq!(answer.status, 303, "{}", answer.body);
    let url = Url::parse(&Browser::location(&answer)).expect("a URL");
    assert_eq!(url.path(), "/end");
    let parameters: HashMap<String, String> = url.query_pairs().into_owned().collect();
    assert_eq!(parameters["client_id"], CLIENT);
    assert_eq!(parameters["post_logout_redirect_uri"], "http://localhost/.vestibule/signed-out");
    assert!(parameters["id_token_hint"].starts_with("eyJ"));
    assert!(!browser.has_session());
    assert_eq!(copy.clone().open("/x").await.status, 302, "a copy of the cookie is dead too");
    assert_eq!(fixture.provider.conduct.lock().expect("lock").revoked, ["secret-refresh-2"]);
    let page = browser.open("/.vestibule/signed-out").await;
    assert!(page.status == 200 && page.body.contains("You are signed out"), "{}", page.body);
}

#[tokio::test]
async fn signing_out_ends_every_session_that_the_browser_has_begun() {
    let fixture = Fixture::start("", "").await;
    fixture.provider.set(|conduct| conduct.gives_refresh_token = true);
    let mut browser = fixture.browser();
    // Two tabs come back from the provider before either has the other's cookie.
    let mut tabs = Vec::new();
    for path in ["/one", "/two"] {
        tabs.push(fixture.provider.authorize(&browser.reach_provider(path).await));
    }
    let (mut first, mut second) = (browser.clone(), browser);
    assert_eq!(first.come_back(&tabs[0]).await.status, 303);
    assert_eq!(second.come_back(&tabs[1]).await.status, 303);
    assert_eq!((page(&fixture, &mut first).await, page(&fixture, &mut second).await), (200, 200));
    // The browser has kept the second cookie.
    let before = second.clone();
    assert_eq!(post(&mut second, OURS, "").await.status, 303);
    assert_eq!(page(&fixture, &mut first).await, 302, "the first tab's session has ended too");
    within("both refresh tokens to be revoked", async {
        while fixture.provider.conduct.lock().expect("lock").revoked.len() < 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    // The same browser may sign in again, also one that has not received the answer to its sign-out.
    for mut again in [second, before] {
        again.cookies.remove("vestibule-80");
        again.sign_in(&fixture.provider, "/").await;
        assert_eq!(page(&fixture, &mut again).await, 200);
    }
}

#[tokio::test]
async fn signing_out_ends_the_sessions_of_tabs_that_had_no_cookie_in_common() {
    let fixture = Fixture::start("", "").await;
    fixture.provider.set(|conduct| conduct.id_token = json!({ "sid": "of one browser" }));
    // They were opened at once: each was sent off before any cookie came.
    let (mut first, mut second) = (fixture.browser(), fixture.browser());
    first.sign_in(&fixture.provider, "/").await;
    second.sign_in(&fixture.provider, "/").await;
    fixture.provider.set(|conduct| conduct.id_token = json!({ "sid": "of another browser" }));
    let mut other = fixture.browser();
    other.sign_in(&fixture.provider, "/").await;
    assert_eq!(post(&mut second, OURS, "").await.status, 303);
    assert_eq!(page(&fixture, &mut first).await, 302);
    assert_eq!(page(&fixture, &mut other).await, 200);
}

#[tokio::test]
async fn signing_out_at_cognito_takes_its_own_parameters() {
    let provider = OpenId::start().await;
    provider.set(|conduct| conduct.id_token = json!({ "token_use": "id" }));
    let url = provider.url.clone();
    let providers = format!("providers: [{{ preset: cognito, issuer: \"{url}\", jwks: {{ url: \"{url}/jwks\" }} }}]\n");
    let fixture = Fixture::at(provider, "", &providers).await;
    let mut browser = fixture.browser();
    browser.sign_in(&fixture.provider, "/").await;
    let answer = post(&mut browser, OURS, "").await;
    assert_eq!(answer.status, 303, "{}", answer.body);
    let signed_out = "http%3A%2F%2Flocalhost%2F.vestibule%2Fsigned-out";
    let expected = format!("{url}/end?client_id={CLIENT}&logout_uri={signed_out}");
    assert_eq!(Browser::location(&answer), expected);
    assert!(!browser.has_session());
}

#[tokio::test]
async fn a_refresh_token_that_comes_after_the_sign_out_is_revoked_too() {
    let fixture = Fixture::start("", "").await;
    fixture.provider.set(|conduct| {
        conduct.gives_refresh_token = true;
        conduct.tokens = json!({ "expires_in": 0 });
    });
    let mut browser = fixture.browser();
    browser.sign_in(&fixture.provider, "/").await;
    let provider = &fixture.provider;
    provider.answerer.hold();
    let before = provider.answerer.count();
    let mut waiting = browser.clone();
    let sign_out = async {
        provider.answerer.asked_times(before + 1).await;
        let revoked = async {
            provider.answerer.asked_times(before + 2).await;
            assert_eq!(provider.asked("/revoke").len(), 1, "the renewal has no answer yet");
            provider.answerer.open();
        };
        tokio::join!(post(&mut browser, OURS, ""), revoked).0
    };
    let (renewing, signed_out) = tokio::join!(waiting.open("/x"), sign_out);
    assert_eq!((renewing.status, signed_out.status), (302, 303));
    provider.answerer.asked_times(before + 3).await;
    assert_eq!(provider.conduct.lock().expect("lock").revoked, ["secret-refresh-2", "secret-refresh-3"]);
    assert_eq!(provider.refreshes(), 1);
}

#[tokio::test]
async fn a_person_whose_sign_out_fails_reads_it_on_a_page() {
    let fixture = Fixture::start("", "limits: { sign_outs: 1, sign_outs_per_user: 1 }\n").await;
    let (mut first, mut second) = (fixture.browser(), fixture.browser());
    first.sign_in(&fixture.provider, "/").await;
    fixture.provider.set(|conduct| conduct.user = "bob".to_owned());
    second.sign_in(&fixture.provider, "/").await;
    assert_eq!(post(&mut first, OURS, "").await.status, 303);
    let answer = second.send("POST", LOGOUT, &[OURS, "Sec-Fetch-Mode: navigate"], "").await;
    assert_eq!((answer.status, answer.field("retry-after")), (503, Some("5")));
    assert_eq!(answer.field("content-type"), Some("text/html; charset=utf-8"));
    assert!(answer.body.contains("You may still be signed in"), "{}", answer.body);
    let answer = second.send("POST", LOGOUT, &[OURS, "Sec-Fetch-Mode: same-origin"], "").await;
    assert_eq!((answer.status, answer.code().as_str()), (503, "auth_unavailable"), "a script reads JSON");
}

#[tokio::test]
async fn only_our_own_pages_sign_out() {
    let fixture = Fixture::start("logout: local", "").await;
    let mut browser = fixture.browser();
    browser.sign_in(&fixture.provider, "/").await;
    for origin in ["Origin: null", "Origin: https://evil.example", "Sec-Fetch-Site: cross-site"] {
        assert_eq!(post(&mut browser, origin, "").await.status, 403, "{origin}");
    }
    for form in ["then=/evil", "then=select_account&then=select_account"] {
        assert_eq!(post(&mut browser, OURS, form).await.status, 400, "{form}");
    }
    assert_eq!(fixture.user(&mut browser).await, "alice");
    let answer = post(&mut browser, OURS, "").await;
    assert_eq!((answer.status, answer.field("location")), (303, Some("/.vestibule/signed-out")));
    // Without a session there is nothing to end.
    assert_eq!(post(&mut browser, OURS, "").await.status, 303);
}

#[tokio::test]
async fn someone_else_is_asked_for_at_the_provider() {
    let fixture = Fixture::start("", "routes: [{ path: /x, require: { sub: bob } }]\n").await;
    let mut browser = fixture.browser();
    browser.sign_in(&fixture.provider, "/x").await;
    let page = browser.open("/x").await;
    assert_eq!(page.status, 403);
    let link = "href=\"/.vestibule/logout?then=select_account\"";
    assert!(page.body.contains(link), "{}", page.body);
    let page = browser.open("/.vestibule/logout?then=select_account").await;
    assert!(page.body.contains("name=\"then\" value=\"select_account\""), "{}", page.body);
    let answer = post(&mut browser, OURS, "then=select_account").await;
    let location = Browser::location(&answer);
    assert_eq!((answer.status, location.as_str()), (303, "/.vestibule/login?prompt=select_account"));
    let location = Browser::location(&browser.open(&location).await);
    assert_eq!(fixture.provider.parameters(&location)["prompt"], "select_account");
}

#[tokio::test]
async fn delete_is_the_same_without_the_redirect() {
    let fixture = Fixture::start("", "").await;
    fixture.provider.set(|conduct| conduct.gives_refresh_token = true);
    let mut browser = fixture.browser();
    browser.sign_in(&fixture.provider, "/").await;
    let copy = browser.clone();
    assert_eq!(browser.send("DELETE", "/.vestibule/session", &[OURS], "").await.status, 204);
    assert_eq!(copy.clone().open("/x").await.status, 302);
    assert_eq!(fixture.provider.conduct.lock().expect("lock").revoked.len(), 1);
}

pub(super) fn logout_token(fixture: &Fixture, overrides: &Value) -> String {
    let mut claims = json!({
        "iss": fixture.provider.url, "aud": CLIENT, "iat": now(), "exp": now() + 60, "jti": format!("{overrides}"),
        "events": { "http://schemas.openid.net/event/backchannel-logout": {} }, "sid": "sid-1",
    });
    for (name, value) in overrides.as_object().expect("object") {
        if value.is_null() {
            claims.as_object_mut().expect("object").remove(name);
        } else {
            claims[name] = value.clone();
        }
    }
    RSA.sign_with(&json!({ "typ": "logout+jwt" }), &claims)
}

pub(super) async fn tell(fixture: &Fixture, token: &str) -> u16 {
    let form = format!("logout_token={token}");
    let answer = fixture.browser().send("POST", BACKCHANNEL, &[], &form).await;
    assert_eq!(answer.field("cache-control"), Some("no-store"));
    answer.status
}

#[tokio::test]
async fn the_provider_ends_a_session_by_its_sid_or_all_by_sub() {
    for claims in [json!({}), json!({ "sid": null, "sub": "alice" }), json!({ "sub": "alice" })] {
        let fixture = Fixture::start("", "").await;
        let mut browser = fixture.browser();
        browser.sign_in(&fixture.provider, "/").await;
        assert_eq!(tell(&fixture, &logout_token(&fixture, &json!({ "sid": "another", "jti": "x" }))).await, 200);
        assert_eq!(fixture.user(&mut browser).await, "alice", "another session has ended");
        let token = logout_token(&fixture, &claims);
        assert_eq!(tell(&fixture, &token).await, 200, "{claims}");
        assert_eq!(browser.open("/x").await.status, 302, "{claims}");
        assert_eq!(tell(&fixture, &token).await, 400, "used before");
    }
}

#[tokio::test]
async fn a_logout_token_that_comes_late_ends_no_session_that_began_since() {
    let fixture = Fixture::start("", "").await;
    let mut browser = fixture.browser();
    browser.sign_in(&fixture.provider, "/").await;
    // Another instance may have had this one before. It is older than the clocks may differ.
    let late = logout_token(&fixture, &json!({ "sid": null, "sub": "alice", "iat": now() - 120 }));
    assert_eq!(tell(&fixture, &late).await, 200);
    assert_eq!(fixture.user(&mut browser).await, "alice");
    assert_eq!(tell(&fixture, &logout_token(&fixture, &json!({ "sub": "alice", "jti": "now" }))).await, 200);
    assert_eq!(browser.open("/x").await.status, 302);
}

#[tokio::test]
async fn a_logout_is_remembered_as_long_as_a_bearer_token_may_live() {
    let hour = 3_600;
    for (audience, keep, expected) in [
        ("audience: api", "", 30 * 24 * hour),
        ("audience: api", ", revocation_keep: 2d", 48 * hour),
        ("audience: api", ", revocation_keep: 1h", 12 * hour + 60),
        ("", "", 12 * hour + 60),
    ] {
        let (provider, folder) = (OpenId::start().await, TempFolder::new());
        let (socket, file) = (folder.0.join("control.sock"), folder.0.join("revocations"));
        let more = format!(
            "providers: [{{ preset: oidc, issuer: \"{}\", {audience} }}]\ncontrol: {{ listen: \"unix:{}\", revocation_file: \"{}\"{keep} }}\n",
            provider.url,
            socket.display(),
            file.display()
        );
        let fixture = Fixture::at(provider, "", &more).await;
        let claims = json!({ "iss": fixture.provider.url, "aud": "api", "sub": "alice", "sid": "sid-1" });
        let bearer = format!("Authorization: Bearer {}", RSA.sign(&with_times(claims, 60 * 24 * hour)));
        if !audience.is_empty() {
            let fields = [bearer.as_str()];
            let asking = get(fixture.proxy.address, "/x", &fields);
            let (answer, _) = tokio::join!(asking, fixture.backend.answer("served"));
            assert_eq!(answer.status, 200, "{answer:?}");
        }
        let before = now();
        assert_eq!(tell(&fixture, &logout_token(&fixture, &json!({}))).await, 200);
        assert_eq!(get(fixture.proxy.address, "/x", &[&bearer]).await.status, 401);
        let written = std::fs::read_to_string(&file).expect("written");
        let record: Value = serde_json::from_str(written.lines().last().expect("a line")).expect("JSON");
        assert_eq!(record["sid"], "sid-1");
        let until = record["until"].as_u64().expect("a time");
        assert!((before + expected..=now() + expected).contains(&until), "{audience} {keep}: {until} at {before}");
    }
}

fn with_times(mut claims: Value, seconds: u64) -> Value {
    claims["iat"] = now().into();
    claims["exp"] = (now() + seconds).into();
    claims
}

#[tokio::test]
async fn a_user_whose_id_is_another_claim_is_found_by_the_raw_sub() {
    let provider = OpenId::start().await;
    let providers = format!("providers: [{{ preset: oidc, issuer: \"{}\", user_id: upn }}]\n", provider.url);
    let fixture = Fixture::at(provider, "", &providers).await;
    fixture.provider.set(|conduct| conduct.id_token = json!({ "upn": "alice-at-work" }));
    let mut browser = fixture.browser();
    browser.sign_in(&fixture.provider, "/").await;
    assert_eq!(fixture.user(&mut browser).await, "alice-at-work");
    let token = logout_token(&fixture, &json!({ "sid": null, "sub": "alice-at-work" }));
    assert_eq!(tell(&fixture, &token).await, 200);
    assert_eq!(fixture.user(&mut browser).await, "alice-at-work", "that is nobody's sub");
    let token = logout_token(&fixture, &json!({ "sid": null, "sub": "alice" }));
    assert_eq!(tell(&fixture, &token).await, 200);
    assert_eq!(browser.open("/x").await.status, 302);
}

#[tokio::test]
async fn a_logout_token_that_is_none_ends_nothing() {
    let fixture = Fixture::start("", "").await;
    let mut browser = fixture.browser();
    browser.sign_in(&fixture.provider, "/").await;
    for claims in [
        json!({ "iss": "https://other.example" }),
        json!({ "aud": "another-client" }),
        json!({ "aud": null }),
        json!({ "iat": now() - 600 }),
        json!({ "iat": now() + 600 }),
        json!({ "iat": null }),
        json!({ "exp": now() - 60 }),
        json!({ "exp": null }),
        json!({ "jti": null }),
        json!({ "events": null }),
        json!({ "events": { "other": {} } }),
        json!({ "events": "http://schemas.openid.net/event/backchannel-logout" }),
        json!({ "nonce": "x" }),
        json!({ "sid": null }),
        json!({ "sid": 7 }),
    ] {
        assert_eq!(tell(&fixture, &logout_token(&fixture, &claims)).await, 400, "{claims}");
    }
    let good = json!({
        "iss": fixture.provider.url, "aud": CLIENT, "iat": now(), "exp": now() + 60, "jti": "j", "sid": "sid-1",
        "events": { "http://schemas.openid.net/event/backchannel-logout": {} },
    });
    for token in [
        RSA.sign_with(&json!({ "typ": "at+jwt" }), &good),
        RSA.sign_with(&json!({ "typ": "secevent+jwt" }), &good),
        Key::rsa("rsa-1").sign_with(&json!({ "typ": "logout+jwt" }), &good),
        "garbage".to_owned(),
        String::new(),
    ] {
        assert_eq!(tell(&fixture, &token).await, 400);
    }
    let answer = fixture.browser().open(BACKCHANNEL).await;
    assert_eq!((answer.status, answer.field("allow")), (405, Some("POST")));
    assert_eq!(fixture.user(&mut browser).await, "alice");
}

#[tokio::test]
async fn a_sign_in_in_a_revoked_session_of_the_provider_asks_for_a_new_one() {
    let fixture = Fixture::start("", "").await;
    // The provider continues to send the session that it has ended.
    fixture.provider.set(|conduct| conduct.id_token = json!({ "sid": "ended" }));
    assert_eq!(tell(&fixture, &logout_token(&fixture, &json!({ "sid": "ended" }))).await, 200);
    let mut browser = fixture.browser();
    let answer = browser.sign_in(&fixture.provider, "/lab").await;
    assert_eq!(answer.status, 302, "{}", answer.body);
    let location = Browser::location(&answer);
    assert_eq!(fixture.provider.parameters(&location)["prompt"], "login");
    let answer = browser.come_back(&fixture.provider.authorize(&location)).await;
    // The default of clock_skew, and a second.
    assert_eq!((answer.status, answer.field("retry-after")), (503, Some("6")));
    assert!(answer.body.contains("Your session was ended") && answer.body.contains("again in 6 seconds."));
    fixture.provider.set(|conduct| conduct.id_token = json!({ "sid": "anew" }));
    assert_eq!(browser.sign_in(&fixture.provider, "/lab").await.status, 303);
}

/// The provider repeats what is answered 503; a logout that is answered 200 must be in force.
#[tokio::test]
async fn a_provider_s_logout_that_cannot_be_recorded_is_503() {
    let folder = TempFolder::new();
    let socket = folder.0.join("control.sock");
    let more = format!("control: {{ listen: \"unix:{}\" }}\nlimits: {{ revocations: 1 }}\n", socket.display());
    let fixture = Fixture::start("", &more).await;
    let body = json!({ "issuer": fixture.provider.url, "sub": "mallory" }).to_string();
    assert_eq!(crate::support::control::post(&socket, "/revoke", &body).await, 204);
    let form = format!("logout_token={}", logout_token(&fixture, &json!({})));
    let answer = fixture.browser().send("POST", BACKCHANNEL, &[], &form).await;
    assert_eq!((answer.status, answer.field("retry-after")), (503, Some("5")), "{}", answer.body);
    // The same token again: it was not used up.
    assert_eq!(fixture.browser().send("POST", BACKCHANNEL, &[], &form).await.status, 503);
}

/// A logout token may name a session and a user. The session ends although there is no room for the user.
#[tokio::test]
async fn the_part_of_a_logout_that_was_recorded_ends_sockets_and_is_saved() {
    let folder = TempFolder::new();
    let (socket, file) = (folder.0.join("control.sock"), folder.0.join("revocations"));
    let more = format!(
        "control: {{ listen: \"unix:{}\", revocation_file: \"{}\" }}\nlimits: {{ revocations: 1 }}\n",
        socket.display(),
        file.display()
    );
    let fixture = Fixture::start("", &more).await;
    let mut browser = fixture.browser();
    browser.sign_in(&fixture.provider, "/").await;
    let cookie = browser.cookie_field();
    let fields = [cookie.as_str(), OURS];
    let opening = Socket::open(fixture.proxy.address, "/ws", &fields);
    let (mut client, _upstream) = tokio::join!(opening, fixture.backend.websocket());
    assert_eq!(tell(&fixture, &logout_token(&fixture, &json!({ "sub": "alice" }))).await, 503);
    assert!(client.next_text().await.contains("Session ended"));
    let written = std::fs::read_to_string(&file).expect("written");
    let record: Value = serde_json::from_str(written.lines().last().expect("a line")).expect("JSON");
    assert_eq!(record["sid"], "sid-1");
}

#[tokio::test]
async fn a_slow_revocation_endpoint_holds_the_sign_out_for_three_seconds() {
    let fixture = Fixture::start("", "").await;
    fixture.provider.set(|conduct| conduct.gives_refresh_token = true);
    let mut browser = fixture.browser();
    browser.sign_in(&fixture.provider, "/").await;
    let copy = browser.clone();
    fixture.provider.answerer.hold();
    let began = std::time::Instant::now();
    let answer = post(&mut browser, OURS, "").await;
    let took = began.elapsed();
    assert_eq!(answer.status, 303, "{}", answer.body);
    assert!(Browser::location(&answer).starts_with(&format!("{}/end?", fixture.provider.url)), "it goes on there");
    assert!((3.0..6.0).contains(&took.as_secs_f64()), "{took:?}");
    assert_eq!(fixture.provider.asked("/revoke").len(), 1);
    assert_eq!(copy.clone().open("/x").await.status, 302);
    // A revocation that takes longer continues in the background.
    fixture.provider.answerer.open();
}

/// Checks that nobody holds a connection by a form of which a byte arrives now and then: the sender need not be a user.
#[tokio::test]
async fn a_form_that_trickles_in_is_refused_when_its_time_is_over() {
    let fixture = Fixture::start("", "limits: { body_idle_timeout: 1s }\n").await;
    let stream = tokio::net::TcpStream::connect(fixture.proxy.address).await.expect("connects");
    let (mut read, mut write) = stream.into_split();
    let head = format!(
        "POST {BACKCHANNEL} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/x-www-form-urlencoded\r\nContent-Length: 4000\r\n\r\n"
    );
    write.write_all(head.as_bytes()).await.expect("sent");
    let trickle = async {
        // Each byte comes long before the limit, counted from the one before it.
        while write.write_all(b"a").await.is_ok() {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
        std::future::pending::<()>().await;
    };
    let mut answer = vec![0; 12];
    tokio::select! {
        () = trickle => {}
        read = within("an answer", read.read_exact(&mut answer)) => { read.expect("an answer"); }
    }
    assert_eq!(String::from_utf8_lossy(&answer), "HTTP/1.1 408");
}
