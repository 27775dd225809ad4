//! The way in.

use serde_json::json;

use super::{Browser, Fixture};
use crate::support::openid::{CLIENT, OpenId};

#[tokio::test]
async fn a_page_leads_to_the_provider_and_back_and_the_user_is_known() {
    let fixture = Fixture::start("", "").await;
    let mut browser = fixture.browser();
    let location = browser.reach_provider("/lab?x=1&y=a%20b").await;
    let parameters = fixture.provider.parameters(&location);
    for (name, expected) in [
        ("response_type", "code"),
        ("client_id", CLIENT),
        ("redirect_uri", "http://localhost/.vestibule/callback"),
        ("scope", "openid email"),
        ("code_challenge_method", "S256"),
    ] {
        assert_eq!(parameters[name], expected, "{name}");
    }
    assert!(!browser.has_session());
    let answer = browser.come_back(&fixture.provider.authorize(&location)).await;
    assert_eq!((answer.status, answer.field("location")), (303, Some("/lab?x=1&y=a%20b")), "{}", answer.body);
    assert_eq!(answer.field("cache-control"), Some("no-store"));
    let line = answer.head.lines().find(|line| line.contains("vestibule-80=")).expect("a session cookie");
    assert!(line.contains("; Path=/; HttpOnly; SameSite=Lax; Max-Age="), "{line}");
    let age: u64 = line.split("Max-Age=").nth(1).expect("an age").trim().parse().expect("seconds");
    assert!((43_100..=43_200).contains(&age), "{age}");
    assert_eq!(fixture.user(&mut browser).await, "alice");
    let asked = &fixture.provider.asked("/token")[0];
    assert!(asked.field("authorization").is_some_and(|value| value.starts_with("Basic ")), "{asked:?}");
    assert!(!asked.body.contains("client_secret"));
    // A user who is signed in is not sent to the provider again.
    let answer = browser.open("/.vestibule/login?return_path=/notes").await;
    assert_eq!((answer.status, answer.field("location")), (303, Some("/notes")));
    // A request that is no page navigation is answered as without sign-in.
    let answer = crate::support::client::get(fixture.proxy.address, "/x", &["Accept: application/json"]).await;
    assert_eq!((answer.status, answer.code().as_str()), (401, "missing_token"));
}

/// Entra's ID tokens have no `at_hash` and no `azp`; it gives refresh tokens for `offline_access`, which it lists, and
/// lists no code challenge methods. `user_id: oid` is one of its claims.
#[tokio::test]
async fn people_sign_in_at_entra() {
    let provider = super::provider(600).await;
    provider.set(|conduct| {
        conduct.metadata = json!({
            "scopes_supported": ["openid", "profile", "email", "offline_access"], "revocation_endpoint": null,
            "token_endpoint_auth_methods_supported": ["client_secret_post", "private_key_jwt", "client_secret_basic"],
        });
        conduct.id_token =
            json!({ "oid": "690222be", "tid": "8eaef023", "ver": "2.0", "rh": "I", "roles": ["notebook"] });
    });
    let providers = format!(
        "providers: [{{ preset: entra, issuer: \"{}\", user_id: oid, require: {{ roles: notebook }} }}]\n",
        provider.url
    );
    let fixture = Fixture::at(provider, "", &providers).await;
    let mut browser = fixture.browser();
    let location = browser.reach_provider("/lab").await;
    assert_eq!(fixture.provider.parameters(&location)["scope"], "openid email offline_access");
    let answer = browser.come_back(&fixture.provider.authorize(&location)).await;
    assert_eq!((answer.status, answer.field("location")), (303, Some("/lab")), "{}", answer.body);
    assert_eq!(fixture.user(&mut browser).await, "690222be");
    // Nobody without the role enters, also where their groups and roles did not fit into the token.
    fixture.provider.set(|conduct| {
        conduct.id_token = json!({ "oid": "690222be", "_claim_names": { "roles": "src1" } });
    });
    assert_eq!(fixture.browser().sign_in(&fixture.provider, "/").await.status, 403);
}

#[tokio::test]
async fn a_return_path_never_leads_elsewhere() {
    let fixture = Fixture::start("", "").await;
    for path in [
        "//evil.example",
        "%2F%2Fevil.example",
        "https://evil.example/",
        "/%5Cevil.example",
        "/a%0d%0aSet-Cookie:x",
        "/.vestibule/logout",
    ] {
        let mut browser = fixture.browser();
        let answer = browser.open(&format!("/.vestibule/login?return_path={path}")).await;
        assert_eq!(answer.status, 302, "{path}");
        let query = fixture.provider.authorize(&Browser::location(&answer));
        let answer = browser.come_back(&query).await;
        assert_eq!((answer.status, answer.field("location")), (303, Some("/")), "{path}");
    }
    for target in ["?return_path=/a&return_path=/b", "?prompt=none", "?prompt=consent", "?provider=other"] {
        assert_eq!(fixture.browser().open(&format!("/.vestibule/login{target}")).await.status, 400, "{target}");
    }
    let posted = fixture.browser().send("POST", "/.vestibule/login", &[], "").await;
    assert_eq!((posted.status, posted.field("allow")), (405, Some("GET, HEAD")));
}

#[tokio::test]
async fn the_host_of_a_request_builds_no_url() {
    let fixture = Fixture::start("", "hosts: any\n").await;
    let mut client = crate::support::client::Client::connect(fixture.proxy.address).await;
    client.send("GET /.vestibule/login HTTP/1.1\r\nHost: localhost.evil.example\r\n\r\n").await;
    // Plain http under a name that is not this machine's: no cookie could follow.
    assert_eq!(client.answer().await.status, 400);
    client.send("GET /.vestibule/login HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Forwarded-Host: evil.example\r\n\r\n").await;
    let answer = client.answer().await;
    let parameters = fixture.provider.parameters(&Browser::location(&answer));
    assert_eq!(parameters["redirect_uri"], "http://localhost/.vestibule/callback");
}

#[tokio::test]
async fn parallel_tabs_all_arrive_and_leave_one_small_cookie() {
    let fixture = Fixture::start("", "").await;
    let mut browser = fixture.browser();
    let mut tabs = Vec::new();
    for tab in 0..10 {
        // Opened at once: each was sent off before any cookie came.
        let mut fresh = fixture.browser();
        let location = fresh.reach_provider(&format!("/tab/{tab}")).await;
        browser.cookies.extend(fresh.cookies);
        tabs.push((tab, fixture.provider.authorize(&location)));
    }
    assert_eq!(browser.cookies.len(), 1);
    // The last tab fits the cookie and signs in; the others find its session.
    tabs.reverse();
    for (tab, query) in tabs {
        let mut answer = browser.come_back(&query).await;
        if answer.status == 302 {
            answer = browser.come_back(&fixture.provider.authorize(&Browser::location(&answer))).await;
        }
        let path = format!("/tab/{tab}");
        assert_eq!((answer.status, answer.field("location")), (303, Some(path.as_str())), "{}", answer.body);
    }
    assert_eq!(browser.cookies.len(), 2, "{:?}", browser.cookies.keys());
    assert!(browser.cookies.values().all(|value| value.len() < 1_500), "{:?}", browser.cookies);
}

#[tokio::test]
async fn a_tab_whose_cookie_another_overwrote_starts_again_silently() {
    let fixture = Fixture::start("", "").await;
    let mut browser = fixture.browser();
    let first = browser.reach_provider("/first").await;
    browser.cookies = {
        let mut other = fixture.browser();
        other.reach_provider("/second").await;
        other.cookies
    };
    let answer = browser.come_back(&fixture.provider.authorize(&first)).await;
    assert_eq!(answer.status, 302, "to the provider again: {}", answer.body);
    let answer = browser.come_back(&fixture.provider.authorize(&Browser::location(&answer))).await;
    assert_eq!((answer.status, answer.field("location")), (303, Some("/first")));
}

#[tokio::test]
async fn a_state_is_good_once_and_in_its_browser_only() {
    let fixture = Fixture::start("", "").await;
    let mut browser = fixture.browser();
    let location = browser.reach_provider("/lab").await;
    let query = fixture.provider.authorize(&location);
    // Someone else is sent this callback: a login by another's account.
    let mut other = fixture.browser();
    let answer = other.come_back(&query).await;
    assert_eq!(answer.status, 302, "{}", answer.body);
    assert!(!other.has_session());
    let tokens = fixture.provider.asked("/token").len();
    assert_eq!(tokens, 0, "the code of another's browser is dropped");
    assert_eq!(browser.come_back(&query).await.status, 303, "and its own is not used up by that");
    // The back button, with a session.
    let answer = browser.come_back(&query).await;
    assert_eq!((answer.status, answer.field("location")), (303, Some("/lab")));
    // And without one: once more to the provider, then a page.
    browser.cookies.remove("vestibule-80");
    let answer = browser.come_back(&query).await;
    assert_eq!(answer.status, 302, "{}", answer.body);
    assert_eq!(fixture.provider.asked("/token").len(), 1);
}

#[tokio::test]
async fn a_browser_without_cookies_gets_a_page_that_says_so() {
    let fixture = Fixture::start("", "").await;
    let mut browser = fixture.browser();
    let mut location = browser.reach_provider("/lab").await;
    for turn in 0..2 {
        browser.cookies.clear();
        let answer = browser.come_back(&fixture.provider.authorize(&location)).await;
        if turn == 0 {
            assert_eq!(answer.status, 302, "{}", answer.body);
            location = Browser::location(&answer);
        } else {
            assert_eq!(answer.status, 400);
            assert!(answer.body.contains("did not send our cookie back"), "{}", answer.body);
        }
    }
}

#[tokio::test]
async fn a_state_that_nobody_sealed_starts_again_once() {
    let fixture = Fixture::start("", "").await;
    let mut browser = fixture.browser();
    let answer = browser.come_back("code=x&state=garbage").await;
    assert_eq!((answer.status, answer.field("location")), (303, Some("/.vestibule/login")));
    let answer = browser.open("/.vestibule/login").await;
    assert_eq!(answer.status, 302);
    let answer = browser.come_back("code=x&state=garbage").await;
    assert_eq!(answer.status, 400);
    assert!(answer.body.contains("This sign-in is over"), "{}", answer.body);
    assert!(fixture.provider.asked("/token").is_empty());
}

#[tokio::test]
async fn a_browser_that_drops_the_session_cookie_is_told_at_the_third_turn() {
    let fixture = Fixture::start("", "").await;
    let mut browser = fixture.browser();
    for _ in 0..3 {
        assert_eq!(browser.sign_in(&fixture.provider, "/lab").await.status, 303);
        browser.cookies.remove("vestibule-80");
    }
    let answer = browser.open("/.vestibule/login?return_path=/lab").await;
    assert_eq!(answer.status, 400, "{}", answer.body);
    assert!(answer.body.contains("did not keep our cookie"), "{}", answer.body);
    assert_eq!(browser.open("/.vestibule/login?return_path=/lab").await.status, 302, "and may try again");
}

#[tokio::test]
async fn another_user_s_sign_in_ends_the_former_session_at_once() {
    let fixture = Fixture::start("", "").await;
    let mut browser = fixture.browser();
    browser.sign_in(&fixture.provider, "/").await;
    let former = browser.clone();
    fixture.provider.set(|conduct| conduct.user = "bob".to_owned());
    let answer = browser.open("/.vestibule/login?prompt=select_account").await;
    let location = Browser::location(&answer);
    assert_eq!(fixture.provider.parameters(&location)["prompt"], "select_account");
    assert_eq!(browser.come_back(&fixture.provider.authorize(&location)).await.status, 303);
    assert_eq!(fixture.user(&mut browser).await, "bob");
    assert_eq!(former.clone().open("/x").await.status, 302, "the former session has ended");
}

#[tokio::test]
async fn whoever_may_not_enter_gets_a_page_and_no_session() {
    let provider = OpenId::start().await;
    let providers = format!(
        "providers: [{{ preset: oidc, issuer: \"{}\", allow: {{ users: [bob] }}, require: {{ team: [a] }} }}]\n",
        provider.url
    );
    let fixture = Fixture::at(provider, "", &providers).await;
    for (user, claims, status) in [
        ("alice", json!({ "team": "a" }), 403),
        ("bob", json!({ "team": "b" }), 403),
        ("bob", json!({}), 403),
        ("bob", json!({ "team": "a" }), 303),
    ] {
        fixture.provider.set(|conduct| {
            conduct.user = user.to_owned();
            conduct.id_token = claims.clone();
        });
        let mut browser = fixture.browser();
        let answer = browser.sign_in(&fixture.provider, "/").await;
        assert_eq!((answer.status, browser.has_session()), (status, status == 303), "{user} {claims}");
        if status == 403 {
            assert!(answer.body.contains("Sign in as someone else"), "{}", answer.body);
            assert_eq!(answer.field("referrer-policy"), Some("same-origin"));
        }
    }
}

#[tokio::test]
async fn the_provider_s_own_refusals_are_pages() {
    let fixture = Fixture::start("", "").await;
    for (code, status, shown) in [
        ("access_denied", 403, "access_denied"),
        ("login_required", 400, "login_required"),
        ("%3Cscript%3E%0aalert(1)", 400, "&lt;script&gt;?alert(1)"),
    ] {
        let mut browser = fixture.browser();
        let location = browser.reach_provider("/lab").await;
        let state = &fixture.provider.parameters(&location)["state"];
        let answer = browser.come_back(&format!("error={code}&error_description=evil&state={state}")).await;
        assert_eq!(answer.status, status, "{code}");
        assert!(answer.body.contains(shown) && answer.body.contains("Try again"), "{}", answer.body);
        assert!(!answer.body.contains("evil") && !answer.body.contains("<script>"), "{}", answer.body);
    }
}

#[tokio::test]
async fn a_provider_that_cannot_let_people_choose_is_asked_to_ask_who_it_is() {
    let fixture = Fixture::start("", "").await;
    let mut browser = fixture.browser();
    let answer = browser.open("/.vestibule/login?prompt=select_account").await;
    let state = fixture.provider.parameters(&Browser::location(&answer))["state"].clone();
    let answer = browser.come_back(&format!("error=invalid_request&state={state}")).await;
    assert_eq!(answer.status, 302, "{}", answer.body);
    let parameters = fixture.provider.parameters(&Browser::location(&answer));
    assert_eq!(parameters["prompt"], "login");
    let answer = browser.come_back(&format!("error=invalid_request&state={}", parameters["state"])).await;
    assert_eq!(answer.status, 400, "once");
}

#[tokio::test]
async fn a_provider_that_is_down_is_a_503_and_sessions_live_on() {
    let fixture = Fixture::start("", "").await;
    let mut signed_in = fixture.browser();
    signed_in.sign_in(&fixture.provider, "/").await;
    let mut browser = fixture.browser();
    for reply in [(500, String::new(), "{}".to_owned()), (503, "Retry-After: 7\r\n".to_owned(), "{}".to_owned())] {
        let retry_after = if reply.0 == 503 { "7" } else { "5" };
        fixture.provider.set(|conduct| conduct.token_reply = Some(reply));
        let answer = browser.sign_in(&fixture.provider, "/").await;
        assert_eq!((answer.status, answer.field("retry-after")), (503, Some(retry_after)), "{}", answer.body);
    }
    assert_eq!(fixture.user(&mut signed_in).await, "alice");
}

#[tokio::test]
async fn a_provider_that_was_down_at_the_start_stops_the_sign_in_alone() {
    let provider = OpenId::start().await;
    provider.set(|conduct| conduct.metadata = json!({ "issuer": "https://other.example" }));
    let fixture = Fixture::at(provider, "", "").await;
    let mut browser = fixture.browser();
    let answer = browser.open("/.vestibule/login").await;
    assert_eq!(answer.status, 503, "{}", answer.body);
    assert!(answer.field("retry-after").is_some());
    assert_eq!(browser.open("/.vestibule/healthz").await.status, 200);
}

/// The provider's keys are fetched in the background, with pauses that grow to 30 s. A sign-in does not wait for that.
#[tokio::test]
async fn a_provider_that_is_back_is_found_by_the_next_sign_in() {
    let provider = OpenId::start().await;
    provider.set(|conduct| conduct.metadata = json!({ "issuer": "https://first.example" }));
    let fixture = Fixture::at(provider, "", "").await;
    let answer = fixture.browser().open("/.vestibule/login").await;
    assert_eq!((answer.status, answer.field("retry-after")), (503, Some("1")), "{}", answer.body);
    let is_cause = |line: &str, cause: &str| line.contains("sign_in_failed") && line.contains(cause);
    fixture.proxy.logged("the cause", |line| is_cause(line, "https://first.example")).await;
    // The cause that it reports is the present one.
    fixture.provider.set(|conduct| conduct.metadata = json!({ "issuer": "https://second.example" }));
    let since = std::time::Instant::now();
    while !fixture.proxy.log().iter().any(|line| is_cause(line, "https://second.example")) {
        assert_eq!(fixture.browser().open("/.vestibule/login").await.status, 503);
        assert!(since.elapsed() < std::time::Duration::from_secs(4), "an old cause");
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    fixture.provider.set(|conduct| conduct.metadata = json!({}));
    let mut browser = fixture.browser();
    let location = loop {
        let answer = browser.open("/.vestibule/login?return_path=/lab").await;
        if answer.status == 302 {
            break Browser::location(&answer);
        }
        assert!(since.elapsed() < std::time::Duration::from_secs(6), "{}", answer.body);
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    };
    let answer = browser.come_back(&fixture.provider.authorize(&location)).await;
    assert_eq!((answer.status, answer.field("location")), (303, Some("/lab")), "{}", answer.body);
}

#[tokio::test]
async fn pushed_requests_keep_their_parameters_from_the_browser() {
    let provider = OpenId::start().await;
    let endpoint = format!("{}/par", provider.url);
    provider.set(|conduct| conduct.metadata = json!({ "pushed_authorization_request_endpoint": endpoint }));
    let fixture = Fixture::at(provider, "", "").await;
    let mut browser = fixture.browser();
    let location = browser.reach_provider("/lab").await;
    assert!(location.contains("request_uri=urn%3Apushed") && !location.contains("state="), "{location}");
    assert_eq!(browser.come_back(&fixture.provider.authorize(&location)).await.status, 303);
    assert!(fixture.provider.asked("/par")[0].field("authorization").is_some(), "as this client");
    fixture.provider.set(|conduct| {
        conduct.push_reply = Some((400, String::new(), json!({ "error": "invalid_request" }).to_string()));
    });
    let answer = fixture.browser().open("/.vestibule/login").await;
    assert_eq!(answer.status, 503, "no fallback: {}", answer.body);
}

#[tokio::test]
async fn pushed_required_without_such_an_endpoint_is_a_503() {
    let fixture = Fixture::start("pushed: required", "").await;
    assert_eq!(fixture.browser().open("/.vestibule/login").await.status, 503);
}

#[tokio::test]
async fn userinfo_adds_claims_and_speaks_of_the_same_user() {
    let provider = OpenId::start().await;
    let more = "routes: [{ path: /x, require: { team: a } }]\n";
    let fixture = Fixture::at(provider, "claims_from: userinfo", more).await;
    fixture.provider.set(|conduct| conduct.userinfo = json!({ "sub": "alice", "team": "a", "iss": "x", "aud": "y" }));
    let mut browser = fixture.browser();
    assert_eq!(browser.sign_in(&fixture.provider, "/").await.status, 303);
    assert_eq!(fixture.user(&mut browser).await, "alice");
    let asked = &fixture.provider.asked("/userinfo")[0];
    assert!(asked.field("authorization").is_some_and(|value| value.starts_with("Bearer secret-access-")));
    for userinfo in [json!({ "sub": "bob", "team": "a" }), json!({ "team": "a" })] {
        fixture.provider.set(|conduct| conduct.userinfo = userinfo.clone());
        assert_eq!(fixture.browser().sign_in(&fixture.provider, "/").await.status, 502, "{userinfo}");
    }
}

#[tokio::test]
async fn a_fragment_is_kept_where_that_is_wanted() {
    let fixture = Fixture::start("keep_fragment: true", "").await;
    let mut browser = fixture.browser();
    let answer = browser.open("/.vestibule/login?return_path=/lab").await;
    assert_eq!(answer.status, 200);
    let policy = answer.field("content-security-policy").expect("a policy");
    assert!(policy.contains("script-src 'sha256-") && policy.contains("default-src 'none'"), "{policy}");
    assert!(answer.body.contains("href=\"/.vestibule/login?return_path=%2Flab&amp;provider=oidc&amp;fragment=\""));
    let answer = browser.open("/.vestibule/login?return_path=/lab&provider=oidc&fragment=cell%2F3").await;
    let query = fixture.provider.authorize(&Browser::location(&answer));
    let answer = browser.come_back(&query).await;
    assert_eq!(answer.field("location"), Some("/lab#cell/3"));
}

#[tokio::test]
async fn with_several_providers_a_page_lets_people_choose() {
    let (one, two) = (OpenId::start().await, OpenId::start().await);
    let backend = crate::support::backend::Backend::start().await;
    let yaml = format!(
        "upstream: {}\npublic_url: http://localhost\nproviders:\n  - {{ name: one, preset: oidc, issuer: \"{}\", user_prefix: \"one:\" }}\n  - {{ name: two, preset: oidc, issuer: \"{}\", user_prefix: \"two:\" }}\nbrowser:\n  login:\n    - {{ provider: one, client_id: {CLIENT}, label: \"First & foremost\" }}\n    - {{ provider: two, client_id: {CLIENT} }}\n",
        backend.url(),
        one.url,
        two.url
    );
    let proxy = crate::support::proxy::Proxy::start(&yaml).await;
    let mut browser = Browser::new(proxy.address);
    let answer = browser.open("/.vestibule/login?return_path=/lab").await;
    assert_eq!(answer.status, 200);
    assert!(answer.body.contains("First &amp; foremost") && !answer.body.contains("last used"), "{}", answer.body);
    let answer = browser.open("/.vestibule/login?return_path=/lab&provider=two").await;
    let location = Browser::location(&answer);
    assert_eq!(two.parameters(&location)["redirect_uri"], "http://localhost/.vestibule/callback/two");
    let query = two.authorize(&location);
    // A mix-up: the answer of one provider at the callback of another.
    let answer = browser.open(&format!("/.vestibule/callback/one?{query}")).await;
    assert_eq!(answer.status, 502, "{}", answer.body);
    // The callback of a single login, before a reload: the code is bound to that address, so the sign-in starts again.
    let answer = browser.open(&format!("/.vestibule/callback?{query}")).await;
    assert!(answer.status == 302 && Browser::location(&answer).starts_with(&format!("{}/authorize?", two.url)));
    assert!(two.asked("/token").is_empty());
    assert_eq!(browser.open("/.vestibule/callback").await.status, 404);
    let answer = browser.open(&format!("/.vestibule/callback/two?{query}")).await;
    assert_eq!((answer.status, answer.field("location")), (303, Some("/lab")));
    let (answer, heard) = tokio::join!(browser.open("/x"), backend.answer("served"));
    assert_eq!((answer.status, heard.all("x-user-id")), (200, vec!["two:alice"]));
    browser.cookies.remove("vestibule-80");
    let answer = browser.open("/.vestibule/login").await;
    assert!(answer.body.contains("last used"), "marked, never chosen: {}", answer.body);
}

#[tokio::test]
async fn nothing_secret_is_logged_even_at_trace() {
    let fixture = Fixture::start("", "").await;
    fixture.provider.set(|conduct| conduct.gives_refresh_token = true);
    let mut browser = fixture.browser();
    let location = browser.reach_provider("/lab").await;
    let state = fixture.provider.parameters(&location)["state"].clone();
    let nonce = fixture.provider.parameters(&location)["nonce"].clone();
    browser.come_back(&fixture.provider.authorize(&location)).await;
    fixture.user(&mut browser).await;
    browser.come_back("code=secret-code-x&state=secret-state-y").await;
    browser.open("/.vestibule/signed-out").await;
    fixture.proxy.logged("the last request", |line| line.contains("/.vestibule/signed-out")).await;
    let log = fixture.proxy.log().join("\n");
    let cookies: Vec<String> = browser.cookies.values().cloned().collect();
    let secrets = ["secret-code", "secret-access", "secret-refresh", "secret-state", "a secret: with", &state, &nonce];
    for secret in secrets.into_iter().chain(cookies.iter().map(String::as_str)) {
        assert!(!log.contains(secret), "{secret} in the log:\n{log}");
    }
    assert!(log.contains("\"event\":\"sign_in\""), "{log}");
}

#[tokio::test]
async fn behind_https_both_cookies_are_host_cookies() {
    let provider = OpenId::start().await;
    let backend = crate::support::backend::Backend::start().await;
    let yaml = Fixture::yaml(&provider, &backend, "", "trusted_proxies: [127.0.0.1]\n");
    let yaml = yaml.replace("public_url: http://localhost", "public_url: https://localhost");
    let proxy = crate::support::proxy::Proxy::start(&yaml).await;
    let mut browser = Browser::new(proxy.address);
    let fields = ["X-Forwarded-Proto: https", "Sec-Fetch-Mode: navigate"];
    let answer = browser.send("GET", "/.vestibule/login?return_path=/lab", &fields, "").await;
    let is_host_cookie = |answer: &crate::support::client::Answer, name: &str| {
        let line = answer.field("set-cookie").expect("a cookie").to_owned();
        assert!(line.starts_with(&format!("{name}=")), "{line}");
        for attribute in ["; Path=/", "; HttpOnly", "; SameSite=Lax", "; Secure"] {
            assert!(line.contains(attribute), "{line}");
        }
        assert!(!line.contains("Domain"), "{line}");
    };
    is_host_cookie(&answer, "__Host-vestibule-login");
    let location = Browser::location(&answer);
    assert_eq!(provider.parameters(&location)["redirect_uri"], "https://localhost/.vestibule/callback");
    let query = provider.authorize(&location);
    let answer = browser.send("GET", &format!("/.vestibule/callback?{query}"), &fields, "").await;
    assert_eq!((answer.status, answer.field("location")), (303, Some("/lab")), "{}", answer.body);
    assert_eq!(browser.cookies.keys().collect::<Vec<_>>(), ["__Host-vestibule", "__Host-vestibule-login"]);
    let lines = answer.head.lines().filter(|line| line.to_ascii_lowercase().starts_with("set-cookie: "));
    let lines: Vec<&str> = lines.collect();
    assert!(lines.len() == 2 && lines.iter().all(|line| line.ends_with("; Secure")), "{lines:?}");
    let fetch = browser.send("GET", "/x", &fields, "");
    let (answer, heard) = tokio::join!(fetch, backend.answer("served"));
    assert_eq!((answer.status, heard.all("x-user-id")), (200, vec!["alice"]));
}

/// With `limits.login_sessions` the bound on one session bounds the memory.
#[tokio::test]
async fn a_session_of_more_than_64_kib_does_not_begin() {
    let fixture = Fixture::start("", "").await;
    let groups = |count: usize| json!({ "groups": vec!["g".repeat(48); count] });
    fixture.provider.set(|conduct| conduct.id_token = groups(600));
    let mut browser = fixture.browser();
    assert_eq!(browser.sign_in(&fixture.provider, "/").await.status, 502);
    let line = fixture.proxy.logged("the reason", |line| line.contains("are kept of a session")).await;
    assert!(line.contains("sign_in_failed") && line.contains("at most 65536"), "{line}");
    fixture.provider.set(|conduct| conduct.id_token = groups(300));
    assert_eq!(browser.sign_in(&fixture.provider, "/").await.status, 303, "more than fits a cookie is in the record");
    assert_eq!(fixture.user(&mut browser).await, "alice");
}

#[tokio::test]
async fn one_client_cannot_take_every_place_at_a_slow_provider() {
    let provider = OpenId::start().await;
    let url = provider.url.clone();
    provider.set(|conduct| conduct.metadata = json!({ "pushed_authorization_request_endpoint": format!("{url}/par") }));
    let more = "trusted_proxies: [127.0.0.1]\nlimits: { login_requests: 4 }\n";
    let fixture = Fixture::at(provider, "", more).await;
    let address = fixture.proxy.address;
    let login = |client: &'static str| async move {
        let from = format!("X-Forwarded-For: {client}");
        let fields = [from.as_str(), "Sec-Fetch-Mode: navigate"];
        Browser::new(address).send("GET", "/.vestibule/login", &fields, "").await.status
    };
    // A host with IPv6 has all addresses of its /64.
    for (client, same_client, other_client) in
        [("203.0.113.1", "203.0.113.1", "203.0.113.2"), ("2001:db8::1", "2001:db8::ffff:2", "2001:db8:0:1::1")]
    {
        assert_eq!(login(client).await, 302);
        fixture.provider.answerer.hold();
        let before = fixture.provider.answerer.count();
        let first = tokio::spawn(login(client));
        fixture.provider.answerer.asked_times(before + 1).await;
        assert_eq!(login(same_client).await, 503, "a quarter of them is under way for this client");
        let other = tokio::spawn(login(other_client));
        fixture.provider.answerer.asked_times(before + 2).await;
        fixture.provider.answerer.open();
        assert_eq!((first.await.expect("ends"), other.await.expect("ends")), (302, 302));
        assert_eq!(login(client).await, 302, "its place is free again");
    }
}
