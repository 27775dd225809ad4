//! Remote checks (docs/contract.md section 5): what is asked, of whom, how often, and what each answer means at
//! the door and on open sockets.

use std::time::Duration;

use jsonwebtoken::{EncodingKey, Header};
use serde_json::{Value, json};

use crate::fixture::open_socket;
use crate::support::answerer::{Answerer, Asked, Reply, ok};
use crate::support::backend::Backend;
use crate::support::client::{Answer, bearer, get, get_served};
use crate::support::issuer::{AUDIENCE, Issuer};
use crate::support::proxy::{Proxy, TempFile, command};
use crate::support::socket::Socket;
use crate::support::{now, within};

/// An upstream that reports the admitted user, a provider that is asked, and the program between them.
struct Fixture {
    backend: Backend,
    proxy: Proxy,
    provider: Answerer,
}

impl Fixture {
    async fn start(provider: Answerer, providers: &str, more: &str) -> Self {
        let backend = Backend::start().await;
        let yaml = format!("upstream: {}\nproviders: [{providers}]\n{more}", backend.url());
        Self { proxy: Proxy::start(&yaml).await, backend, provider }
    }

    /// Returns 200 with the user that the upstream received, or the refusal.
    async fn asks(&self, token: &str) -> Answer {
        let credential = bearer(token);
        // Other fields that the client sends beside its token do not matter.
        let fields = [credential.as_str(), "Cookie: secret=1", "X-Own: 1", "User-Agent: client"];
        let (mut answer, heard) = get_served(self.proxy.address, &self.backend, "/x", &fields).await;
        if let Some(heard) = heard {
            answer.body = heard.all("x-user-id").join(",");
        }
        answer
    }

    async fn outcome(&self, token: &str) -> String {
        let answer = self.asks(token).await;
        if answer.status == 200 { answer.body } else { answer.code() }
    }

    /// The first outcome that is another than this.
    async fn outcome_after(&self, before: &str, token: &str) -> String {
        loop {
            let outcome = self.outcome(token).await;
            if outcome != before {
                return outcome;
            }
        }
    }

    /// A socket whose token came on its upgrade.
    async fn socket(&self, token: &str) -> (Socket, Socket) {
        open_socket(self.proxy.address, &self.backend, token).await
    }
}

fn introspection(provider: &Answerer, more: &str) -> String {
    format!(
        "{{ preset: introspection, audience: {AUDIENCE}, remote: {{ url: \"{}/introspect\", client_id: \"vesti bule\", client_secret: \"s:ecret\"{more} }} }}",
        provider.url
    )
}

/// Active for the user the token names, as in `alice.1`.
fn active(asked: &Asked) -> Reply {
    let user = asked.body.trim_start_matches("token=").split(['%', '&', '.']).next().unwrap_or_default();
    ok(json!({"active": true, "sub": user, "aud": AUDIENCE, "exp": now() + 60}))
}

#[tokio::test]
async fn introspection_is_asked_as_rfc_7662_says_and_nothing_of_the_client_goes_along() {
    let provider = Answerer::start(active).await;
    let rows = introspection(&provider, "");
    let fixture = Fixture::start(provider, &rows, "").await;
    assert_eq!(fixture.outcome("alice/+1==").await, "alice%2F".trim_end_matches("%2F"));
    let asked = &fixture.provider.asked()[0];
    assert_eq!(asked.line(), "POST /introspect");
    assert_eq!(asked.body, "token=alice%2F%2B1%3D%3D&token_type_hint=access_token");
    // RFC 6749 section 2.3.1: `vesti+bule:s%3Aecret`
    assert_eq!(asked.field("authorization"), Some("Basic dmVzdGkrYnVsZTpzJTNBZWNyZXQ="));
    for absent in ["cookie", "x-own", "x-request-id", "x-forwarded-for"] {
        assert_eq!(asked.field(absent), None, "{absent}");
    }
    assert!(asked.field("user-agent").is_some_and(|agent| agent.starts_with("vestibule/")));
}

/// Most servers compare the two parts of HTTP Basic as they came, so nothing may be encoded that a form does not encode.
#[tokio::test]
async fn client_ids_and_secrets_with_marks_are_sent_as_they_are() {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    let provider = Answerer::start(active).await;
    let (id, secret) = ("3f2c-a.b_c*", "Sec-ret_0.1~");
    let rows = format!(
        "{{ preset: introspection, audience: {AUDIENCE}, remote: {{ url: \"{}/introspect\", client_id: \"{id}\", client_secret: \"{secret}\" }} }}",
        provider.url
    );
    let fixture = Fixture::start(provider, &rows, "").await;
    assert_eq!(fixture.outcome("alice.a-b_c.d").await, "alice");
    let asked = &fixture.provider.asked()[0];
    assert_eq!(asked.body, "token=alice.a-b_c.d&token_type_hint=access_token");
    let sent = asked.field("authorization").and_then(|value| value.strip_prefix("Basic ")).expect("HTTP Basic");
    let sent = String::from_utf8(STANDARD.decode(sent).expect("base64")).expect("text");
    assert_eq!(sent, format!("{id}:{}", secret.replace('~', "%7E")));
}

/// Strapi, Laravel and others number their users.
#[tokio::test]
async fn a_numeric_user_is_its_decimal_text_in_every_answer() {
    let provider = Answerer::start(active).await;
    let rows = introspection(&provider, "").replacen("{ ", "{ user_id: user_id, ", 1);
    let fixture = Fixture::start(provider, &rows, "").await;
    for (index, (user, expected)) in [
        (json!(1), "1"),
        (json!(-7), "-7"),
        (json!(u64::MAX), "18446744073709551615"),
        (json!("1"), "1"),
        (json!(1.0), "invalid_token"),
        (json!(1e3), "invalid_token"),
        (json!([1]), "invalid_token"),
        (json!(true), "invalid_token"),
    ]
    .into_iter()
    .enumerate()
    {
        let answer = json!({"active": true, "user_id": user, "aud": AUDIENCE, "exp": now() + 60});
        fixture.provider.answers(move |_| ok(answer.clone()));
        assert_eq!(fixture.outcome(&format!("token-{index}")).await, expected, "{user}");
    }
    // Beside a signature, an answer may write the number of the token as text.
    let (provider, issuer) = (Answerer::start(active).await, Issuer::start().await);
    let rows = format!(
        "{{ preset: oidc, issuer: \"{}\", audience: {AUDIENCE}, remote: {{ mode: also, url: \"{}/introspect\", client_id: v, client_secret: s }} }}",
        issuer.url, provider.url
    );
    let fixture = Fixture::start(provider, &rows, "").await;
    for (index, (sub, expected)) in
        [(json!(42), "42"), (json!("42"), "42"), (json!("042"), "no_session"), (json!(43), "no_session")]
            .into_iter()
            .enumerate()
    {
        let answer = json!({"active": true, "sub": sub});
        fixture.provider.answers(move |_| ok(answer.clone()));
        let token = issuer.token_with("", json!({"sub": 42, "jti": index}));
        assert_eq!(fixture.outcome(&token).await, expected, "{sub}");
    }
}

#[tokio::test]
async fn what_introspection_answers_decides() {
    let provider = Answerer::start(active).await;
    let issuer = "https://as.example.com";
    let rows =
        format!("{{ issuer: \"{issuer}\", clock_skew: 0s, {}", introspection(&provider, "").trim_start_matches('{'));
    let fixture = Fixture::start(provider, &rows, "").await;
    let good = json!({"active": true, "sub": "alice", "aud": [AUDIENCE], "iss": issuer, "exp": now() + 60, "token_type": "Bearer"});
    for (index, (differ, expected)) in [
        (json!({}), "alice"),
        (json!({"iss": null}), "alice"),
        (json!({"exp": null}), "alice"),
        (json!({"active": false}), "no_session"),
        (json!({"iss": "https://other.example.com"}), "invalid_token"),
        (json!({"iss": 7}), "invalid_token"),
        (json!({"aud": "other"}), "invalid_token"),
        (json!({"aud": null}), "invalid_token"),
        (json!({"exp": now() - 1}), "token_expired"),
        (json!({"exp": "soon"}), "invalid_token"),
        (json!({"nbf": now() + 60}), "invalid_token"),
        (json!({"sub": null}), "missing_user"),
        (json!({"sub": "a b"}), "invalid_token"),
        (json!({"token_type": "refresh"}), "invalid_token"),
        (json!({"typ": "Refresh"}), "invalid_token"),
        (json!({"token_type": "refresh_token"}), "invalid_token"),
        (json!({"token_use": "refresh_token"}), "invalid_token"),
        (json!({"token_use": "REFRESH-TOKEN"}), "invalid_token"),
        (json!({"token_use": "id_token"}), "invalid_token"),
        (json!({"Token_Use": "idToken"}), "invalid_token"),
        (json!({"token_type": "urn:ietf:params:oauth:token-type:refresh_token"}), "invalid_token"),
        (json!({"token_type": "urn:ietf:params:oauth:token-type:id_token"}), "invalid_token"),
        (json!({"issued_token_type": "urn:ietf:params:oauth:token-type:refresh_token"}), "invalid_token"),
        (json!({"token_type_hint": "refresh_token"}), "invalid_token"),
        (json!({"tokenName": "refresh_token"}), "invalid_token"),
        (json!({"type": "refresh"}), "invalid_token"),
        (json!({"typ": ["Bearer", "Offline"]}), "invalid_token"),
        (json!({"typ": "logout+jwt"}), "invalid_token"),
        (json!({"token_use": "access_token"}), "alice"),
        (json!({"token_type": "urn:ietf:params:oauth:token-type:access_token"}), "alice"),
        (json!({"type": "user", "kind": "refreshing"}), "alice"),
        (json!({"active": "true"}), "auth_unavailable"),
        (json!({"active": null}), "auth_unavailable"),
    ]
    .into_iter()
    .enumerate()
    {
        let mut answer = good.clone();
        for (name, value) in differ.as_object().expect("object") {
            if value.is_null() {
                answer.as_object_mut().expect("object").remove(name);
            } else {
                answer[name] = value.clone();
            }
        }
        fixture.provider.answers(move |_| ok(answer.clone()));
        assert_eq!(fixture.outcome(&format!("token-{index}")).await, expected, "{differ}");
    }
}

#[tokio::test]
async fn beside_a_signature_the_answer_s_kind_counts_too() {
    let provider = Answerer::start(active).await;
    let issuer = Issuer::start().await;
    let rows = format!(
        "{{ preset: oidc, issuer: \"{}\", audience: {AUDIENCE}, remote: {{ mode: also, url: \"{}/introspect\", client_id: v, client_secret: s }} }}",
        issuer.url, provider.url
    );
    let fixture = Fixture::start(provider, &rows, "").await;
    for (index, (kind, expected)) in
        [("access_token", "alice"), ("refresh_token", "invalid_token"), ("id_token", "invalid_token")]
            .into_iter()
            .enumerate()
    {
        fixture.provider.answers(move |_| ok(json!({"active": true, "sub": "alice", "token_use": kind})));
        let token = issuer.token_with("alice", json!({"jti": index}));
        // The second time by the answer that was kept.
        for _ in 0..2 {
            assert_eq!(fixture.outcome(&token).await, expected, "{kind}");
        }
    }
}

#[tokio::test]
async fn a_provider_that_cannot_answer_is_503_and_never_401() {
    let provider = Answerer::start(active).await;
    let rows = introspection(&provider, ", timeout: 2s");
    let fixture = Fixture::start(provider, &rows, "").await;
    let status = |code: u16| (code, String::new(), "{}".to_owned());
    let elsewhere = format!("Location: {}/elsewhere\r\n", fixture.provider.url);
    let endless = format!("{{\"active\":true,\"sub\":\"x\",\"pad\":\"{}\"}}", "x".repeat(100 << 10));
    let twice = r#"{"active":false,"active":true,"sub":"alice"}"#.to_owned();
    for (index, reply) in [
        status(500),
        status(503),
        // About us: our secret is refused.
        status(401),
        status(403),
        status(400),
        (302, elsewhere, String::new()),
        (200, String::new(), "<html>maintenance</html>".to_owned()),
        (200, String::new(), "[]".to_owned()),
        (200, String::new(), endless),
        (200, String::new(), twice),
    ]
    .into_iter()
    .enumerate()
    {
        let shown = format!("{} {}", reply.0, &reply.2[..reply.2.len().min(40)]);
        fixture.provider.answers(move |_| reply.clone());
        let answer = fixture.asks(&format!("token-{index}")).await;
        assert_eq!((answer.status, answer.code()), (503, "auth_unavailable".into()), "{shown}");
        assert!(answer.field("retry-after").is_some(), "{shown}");
    }
    assert!(fixture.provider.asked().iter().all(|asked| asked.line() == "POST /introspect"), "a redirect was followed");
    // The provider does not respond, or cannot be reached.
    fixture.provider.answers(active);
    fixture.provider.hold();
    assert_eq!(fixture.outcome("alice.silent").await, "auth_unavailable");
    fixture.provider.open();
    // An outage is not remembered.
    assert_eq!(fixture.outcome("alice.silent").await, "alice");
}

/// Makes a request with `alice.1` that gives up in the middle of its check. `earlier` checks, which no answer ends, are all
/// that may be under way, and `remote.timeout` is 2 s: the request waits for its turn until they end, and half of its time
/// is over then.
async fn gives_up_amid_its_check(fixture: &Fixture, earlier: usize) {
    fixture.provider.asked_times(earlier).await;
    // The time is what this is about: the request begins later than they by half of the limit.
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(fixture.outcome("alice.1").await, "auth_unavailable");
    fixture.provider.asked_times(earlier + 1).await;
}

/// Waits until the metrics have one answer of this kind, `yes` or `no`.
async fn first_answer_is_counted(fixture: &Fixture, answer: &str) {
    let series = format!("outcome=\"{answer}\"}} 1\n");
    let counted = async { while !get(fixture.proxy.admin(), "/metrics", &[]).await.body.contains(&series) {} };
    within("the count of the answer", counted).await;
}

#[tokio::test]
async fn whoever_asks_after_a_request_that_gave_up_gets_an_answer_of_its_own() {
    // One check at a time; while one waits, the next waits for its turn.
    let provider = Answerer::start(|_| (500, String::new(), "{}".to_owned())).await;
    let rows = introspection(&provider, ", timeout: 2s, concurrency: 2");
    let fixture = Fixture::start(provider, &rows, "").await;
    fixture.provider.hold();
    let alice = async {
        gives_up_amid_its_check(&fixture, 1).await;
        fixture.provider.answers(active);
        let again = fixture.outcome("alice.1");
        let opened = async {
            fixture.provider.asked_times(3).await;
            fixture.provider.open();
        };
        assert_eq!(tokio::join!(again, opened).0, "alice");
    };
    let (bob, ()) = tokio::join!(fixture.outcome("bob.1"), alice);
    assert_eq!(bob, "auth_unavailable");
}

#[tokio::test]
async fn an_answer_for_which_nobody_waited_replaces_no_later_one() {
    // Two checks at a time; while two wait, the third waits for its turn.
    let provider = Answerer::start(active).await;
    let rows = introspection(&provider, ", timeout: 2s, concurrency: 4");
    let fixture = Fixture::start(provider, &rows, "admin: { listen: \"127.0.0.1:0\" }\n").await;
    fixture.provider.hold();
    let alice = async {
        gives_up_amid_its_check(&fixture, 2).await;
        let held = fixture.provider.answer_later_ones();
        fixture.provider.answers(|_| ok(json!({"active": false})));
        assert_eq!(fixture.outcome("alice.1").await, "no_session");
        held.add_permits(3);
        // The first answer, which says that the token is active, has arrived.
        first_answer_is_counted(&fixture, "yes").await;
        assert_eq!(fixture.outcome("alice.1").await, "no_session");
        assert_eq!(fixture.provider.count(), 4, "the later answer was cached");
    };
    tokio::join!(fixture.outcome("bob.1"), fixture.outcome("bob.2"), alice);
}

#[tokio::test]
async fn a_token_that_ended_its_socket_is_refused_at_once() {
    let provider = Answerer::start(active).await;
    let rows = introspection(&provider, ", cache: 300s");
    let fixture = Fixture::start(provider, &rows, "websocket: { revalidate_every: 1s }\n").await;
    let (mut client, _upstream) = fixture.socket("alice.1").await;
    fixture.provider.answers(|_| ok(json!({"active": false})));
    assert_eq!(client.next_text().await, r#"{"type":"error","message":"Session ended"}"#);
    assert_eq!(fixture.outcome("alice.1").await, "no_session");
}

#[tokio::test]
async fn a_clerk_token_that_ended_its_socket_is_refused_at_once() {
    let issuer = Issuer::start().await;
    let provider = Answerer::start(two_users("active")).await;
    let rows = clerk(&issuer, &provider, "instead").replace("secret_key:", "cache: 300s, secret_key:");
    let fixture = Fixture::start(provider, &rows, "websocket: { revalidate_every: 1s }\n").await;
    let (mut client, _upstream) = fixture.socket("opaque").await;
    let gone = |_: &Asked| (404, String::new(), json!({"errors": [{"code": "resource_not_found"}]}).to_string());
    fixture.provider.answers(gone);
    assert_eq!(client.next_text().await, r#"{"type":"error","message":"Session ended"}"#);
    assert_eq!(fixture.outcome("opaque").await, "no_session");
}

#[tokio::test]
async fn an_answer_that_comes_after_its_caller_is_kept_for_the_next() {
    // One check at a time; while one waits, the next waits for its turn.
    let provider = Answerer::start(active).await;
    let rows = introspection(&provider, ", timeout: 2s, concurrency: 2");
    let fixture = Fixture::start(provider, &rows, "admin: { listen: \"127.0.0.1:0\" }\n").await;
    fixture.provider.hold();
    fixture.provider.answers(|_| ok(json!({"active": false})));
    let alice = async {
        gives_up_amid_its_check(&fixture, 1).await;
        fixture.provider.open();
        first_answer_is_counted(&fixture, "no").await;
        assert_eq!(fixture.outcome("alice.1").await, "no_session");
        assert_eq!(fixture.provider.count(), 2, "the answer was kept");
    };
    tokio::join!(fixture.outcome("bob.1"), alice);
}

#[tokio::test]
async fn a_provider_that_has_had_enough_is_left_alone_for_as_long_as_it_says() {
    let provider = Answerer::start(active).await;
    let rows = introspection(&provider, "");
    let fixture = Fixture::start(provider, &rows, "").await;
    assert_eq!(fixture.outcome("alice.known").await, "alice");
    fixture.provider.answers(|_| (429, "Retry-After: 100\r\n".to_owned(), "{}".to_owned()));
    for token in ["bob.1", "bob.2", "bob.3"] {
        let answer = fixture.asks(token).await;
        assert_eq!((answer.status, answer.code()), (503, "auth_unavailable".into()));
        let seconds: u64 = answer.field("retry-after").and_then(|text| text.parse().ok()).expect("seconds");
        assert!((90..=100).contains(&seconds), "{seconds}");
    }
    assert_eq!(fixture.provider.count(), 2, "the first and the one that got 429");
    assert_eq!(fixture.outcome("alice.known").await, "alice", "what is known is served meanwhile");
}

#[tokio::test]
async fn one_question_for_one_token_however_many_wait_and_its_answer_is_kept() {
    let provider =
        Answerer::start(|asked| if asked.body.contains("gone") { ok(json!({"active": false})) } else { active(asked) })
            .await;
    let rows = introspection(&provider, "");
    let fixture = Fixture::start(provider, &rows, "").await;
    fixture.provider.hold();
    let token = bearer("gone.1");
    let waiting: Vec<_> = (0..50)
        .map(|_| {
            let (address, token) = (fixture.proxy.address, token.clone());
            tokio::spawn(async move { get(address, "/x", &[&token]).await.code() })
        })
        .collect();
    fixture.provider.asked_times(1).await;
    fixture.provider.open();
    for answer in waiting {
        assert_eq!(answer.await.expect("answered"), "no_session");
    }
    assert_eq!(fixture.outcome("gone.1").await, "no_session");
    assert_eq!(fixture.provider.count(), 1);
    // The same for a good one.
    assert_eq!(fixture.outcome("alice.1").await, "alice");
    assert_eq!(fixture.outcome("alice.1").await, "alice");
    assert_eq!(fixture.provider.count(), 2);
}

#[tokio::test]
async fn no_more_questions_than_half_of_concurrency_are_under_way_at_the_door() {
    let provider = Answerer::start(|_| ok(json!({"active": false}))).await;
    let rows = introspection(&provider, ", concurrency: 8, timeout: 20s");
    let fixture = Fixture::start(provider, &rows, "limits: { failed_tokens_per_minute: null }\n").await;
    fixture.provider.hold();
    let waiting: Vec<_> = (0..100)
        .map(|index| {
            let (address, token) = (fixture.proxy.address, bearer(&format!("token-{index}")));
            tokio::spawn(async move { get(address, "/x", &[&token]).await.code() })
        })
        .collect();
    fixture.provider.asked_times(4).await;
    fixture.provider.open();
    for answer in waiting {
        assert_eq!(answer.await.expect("answered"), "no_session");
    }
    assert_eq!((fixture.provider.count(), fixture.provider.most()), (100, 4));
}

/// Checks that clients that send tokens and disconnect cannot fill the queue.
#[tokio::test]
async fn questions_whose_callers_have_all_left_are_not_asked() {
    let provider = Answerer::start(active).await;
    let rows = introspection(&provider, ", concurrency: 2, timeout: 20s");
    let fixture = Fixture::start(provider, &rows, "").await;
    fixture.provider.hold();
    let (address, first) = (fixture.proxy.address, bearer("alice.1"));
    let first = tokio::spawn(async move { get(address, "/x", &[&first]).await.status });
    fixture.provider.asked_times(1).await;
    for index in 0..20 {
        let path = format!("/gone/{index}");
        let mut client = Socket::open(address, &path, &[]).await;
        client.say(&json!({"type": "authenticate", "token": format!("token-{index}")}).to_string()).await;
        drop(client);
        let path = format!("\"path\":\"{path}\"");
        fixture.proxy.logged("that it left", |line| line.contains(&path) && line.contains("\"left\"")).await;
    }
    let last = bearer("bob.1");
    let last = tokio::spawn(async move { get(address, "/x", &[&last]).await.status });
    fixture.provider.open();
    for _ in 0..2 {
        fixture.backend.answer("served").await;
    }
    assert_eq!((first.await.expect("answered"), last.await.expect("answered")), (200, 200));
    assert_eq!(fixture.provider.count(), 2);
}

#[tokio::test]
async fn an_admission_does_not_wait_behind_the_sockets_that_are_asked_about_again() {
    let provider = Answerer::start(|asked| {
        let user = asked.body.trim_start_matches("token=").split(['%', '&', '.']).next();
        ok(json!({"active": true, "sub": user, "aud": AUDIENCE, "exp": now() + 600}))
    })
    .await;
    let rows = introspection(&provider, ", concurrency: 2, timeout: 3s, cache: 1s");
    let fixture = Fixture::start(provider, &rows, "websocket: { revalidate_every: 2s }\n").await;
    let mut sockets = Vec::new();
    for index in 0..4 {
        sockets.push(fixture.socket(&format!("user{index}.1")).await);
    }
    // From now on no request is answered. When the second one comes, `timeout` after the first, all sockets have been due
    // for long, and those of the others wait for their turn.
    fixture.provider.hold();
    fixture.provider.asked_times(6).await;
    // A request with a token about which a socket is waiting to ask has its turn.
    let coming: Vec<_> = (0..4)
        .map(|index| {
            let (address, token) = (fixture.proxy.address, bearer(&format!("user{index}.1")));
            let begun = std::time::Instant::now();
            tokio::spawn(async move { (get(address, "/x", &[&token]).await.status, begun.elapsed()) })
        })
        .collect();
    for answer in coming {
        let (status, took) = answer.await.expect("answered");
        assert_eq!(status, 503);
        assert!(took < std::time::Duration::from_secs(5), "beyond `timeout`: {took:?}");
    }
    drop(sockets);
}

#[tokio::test]
async fn an_opaque_token_goes_to_the_one_provider_that_is_asked_and_a_jwt_never() {
    let issuer = Issuer::start().await;
    let provider = Answerer::start(active).await;
    let opaque = introspection(&provider, "").replacen('{', "{ user_prefix: \"o:\",", 1);
    let signed = issuer.provider().replacen('{', "{ user_prefix: \"s:\",", 1);
    let fixture = Fixture::start(provider, &format!("{signed}, {opaque}"), "").await;
    assert_eq!(fixture.outcome(&issuer.token("alice")).await, "s:alice");
    assert_eq!(fixture.outcome(&issuer.token_with("alice", json!({"iss": "https://unknown"}))).await, "invalid_token");
    assert_eq!(fixture.outcome(&issuer.expired("alice")).await, "token_expired");
    assert_eq!(fixture.provider.count(), 0);
    assert_eq!(fixture.outcome("alice.1").await, "o:alice");
    assert_eq!(fixture.provider.count(), 1);
}

#[tokio::test]
async fn a_proxy_whose_only_provider_is_asked_about_every_token_is_ready() {
    let provider = Answerer::start(active).await;
    let rows = introspection(&provider, "");
    let fixture = Fixture::start(provider, &rows, "").await;
    fixture.proxy.ready().await;
    assert_eq!(get(fixture.proxy.address, "/.vestibule/readyz", &[]).await.status, 200);
}

fn clerk(issuer: &Issuer, provider: &Answerer, mode: &str) -> String {
    format!(
        "{{ preset: clerk, issuer: \"{}\", jwks: {{ url: \"{}/jwks\" }}, remote: {{ mode: {mode}, url: \"{}\", secret_key: sk_test_x }} }}",
        issuer.url, issuer.url, provider.url
    )
}

/// Clerk's documented client object with sessions of two users.
fn two_users(alice: &'static str) -> impl Fn(&Asked) -> Reply {
    move |asked| match asked.line() {
        "POST /v1/clients/verify" => ok(json!({
            "object": "client", "id": "client_1", "session_ids": ["sess_bob", "sess_alice"],
            "sessions": [
                {"object": "session", "id": "sess_bob", "user_id": "bob", "status": "active"},
                {"object": "session", "id": "sess_alice", "user_id": "alice", "status": alice},
            ],
            "last_active_session_id": "sess_bob",
        })),
        "GET /v1/sessions/sess_alice" => ok(json!({"id": "sess_alice", "user_id": "alice", "status": alice})),
        _ => (404, String::new(), json!({"errors": [{"code": "resource_not_found"}]}).to_string()),
    }
}

fn session(issuer: &Issuer, user: &str, sid: &str) -> String {
    issuer.token_with(user, json!({"sid": sid, "aud": null}))
}

#[tokio::test]
async fn of_two_users_in_one_clerk_client_each_is_who_the_token_says() {
    let issuer = Issuer::start().await;
    let provider = Answerer::start(two_users("active")).await;
    let rows = clerk(&issuer, &provider, "also");
    let fixture = Fixture::start(provider, &rows, "").await;
    let alice = session(&issuer, "alice", "sess_alice");
    assert_eq!(fixture.outcome(&alice).await, "alice");
    assert_eq!(fixture.outcome(&session(&issuer, "bob", "sess_bob")).await, "bob");
    // A session of the other user, and one that is not the client's.
    assert_eq!(fixture.outcome(&session(&issuer, "alice", "sess_bob")).await, "no_session");
    assert_eq!(fixture.outcome(&session(&issuer, "alice", "sess_x")).await, "no_session");
    let asked = fixture.provider.asked();
    assert_eq!(asked[0].field("authorization"), Some("Bearer sk_test_x"));
    let body: Value = serde_json::from_str(&asked[0].body).expect("json");
    assert_eq!(body, json!({ "token": alice }));
    // What is no good here is not asked about.
    let before = fixture.provider.count();
    assert_eq!(
        fixture.outcome(&issuer.token_with("alice", json!({"sid": "s", "exp": now() - 60}))).await,
        "token_expired"
    );
    assert_eq!(fixture.provider.count(), before);
}

#[tokio::test]
async fn also_never_falls_back_to_the_signature_alone() {
    let issuer = Issuer::start().await;
    let provider = Answerer::start(two_users("active")).await;
    let rows = clerk(&issuer, &provider, "also").replace("secret_key:", "cache: 1ms, secret_key:");
    let fixture = Fixture::start(provider, &rows, "").await;
    let token = session(&issuer, "alice", "sess_alice");
    assert_eq!(fixture.outcome(&token).await, "alice");
    fixture.provider.answers(|_| (500, String::new(), String::new()));
    // The answers that are kept are over after a millisecond.
    assert_eq!(fixture.outcome_after("alice", &token).await, "auth_unavailable");
    fixture.provider.answers(two_users("ended"));
    assert_eq!(fixture.outcome(&token).await, "no_session");
    fixture.provider.answers(two_users("active"));
    assert_eq!(fixture.outcome_after("no_session", &token).await, "alice");
}

#[tokio::test]
async fn clerk_instead_verifies_what_is_signed_here_and_asks_about_the_rest() {
    let issuer = Issuer::start().await;
    let provider = Answerer::start(two_users("active")).await;
    let rows = clerk(&issuer, &provider, "instead");
    let fixture = Fixture::start(provider, &rows, "").await;
    assert_eq!(fixture.outcome(&session(&issuer, "alice", "sess_gone")).await, "alice");
    assert_eq!(fixture.provider.count(), 0);
    // One without a session of its own: the one that was active last.
    assert_eq!(fixture.outcome("opaque").await, "bob");
    assert_eq!(fixture.provider.count(), 1);
}

#[tokio::test]
async fn supabase_s_user_endpoint_and_projects_of_old() {
    let issuer = Issuer::start().await;
    let provider = Answerer::start(|asked| match asked.line() {
        "GET /auth/v1/user" if asked.field("apikey") != Some("anon") => {
            (401, String::new(), json!({"message": "Invalid API key"}).to_string())
        }
        "GET /auth/v1/user" => match asked.field("authorization").and_then(|value| value.strip_prefix("Bearer ")) {
            Some(token) if token.contains('.') => ok(json!({"id": "alice", "role": "authenticated"})),
            _ => (403, String::new(), json!({"code": 403, "error_code": "bad_jwt", "msg": "x"}).to_string()),
        },
        _ => (404, String::new(), String::new()),
    })
    .await;
    let supabase = |mode: &str, key: &str| {
        format!(
            "{{ preset: supabase, issuer: \"{}\", jwks: {{ url: \"{}/jwks\" }}, remote: {{ mode: {mode}, url: \"{}\", secret_key: {key} }} }}",
            issuer.url, issuer.url, provider.url
        )
    };
    let claims = |user: &str| json!({"aud": "authenticated", "role": "authenticated", "sub": user});
    let also = Fixture::start(provider.clone(), &supabase("also", "anon"), "").await;
    assert_eq!(also.outcome(&issuer.token_with("alice", claims("alice"))).await, "alice");
    assert_eq!(also.outcome(&issuer.token_with("bob", claims("bob"))).await, "no_session");
    // Signed with a secret that only the provider has.
    let mut old = issuer.claims("alice");
    old["aud"] = json!("authenticated");
    old["role"] = json!("authenticated");
    let by_secret = |claims: &Value| {
        jsonwebtoken::encode(&Header::default(), claims, &EncodingKey::from_secret(b"secret")).expect("signs")
    };
    assert_eq!(also.outcome(&by_secret(&old)).await, "invalid_token", "beside a signature there must be one");
    let instead = Fixture::start(provider.clone(), &supabase("instead", "anon"), "").await;
    let before = provider.count();
    assert_eq!(instead.outcome(&issuer.token_with("bob", claims("bob"))).await, "bob", "by its key, unasked");
    assert_eq!(provider.count(), before);
    assert_eq!(instead.outcome(&by_secret(&old)).await, "alice");
    for (name, value) in [("aud", "anon"), ("role", "anon"), ("sub", "bob")] {
        let mut other = old.clone();
        other[name] = json!(value);
        let expected = if name == "sub" { "no_session" } else { "invalid_token" };
        assert_eq!(instead.outcome(&by_secret(&other)).await, expected, "{name}");
    }
    let wrong_key = Fixture::start(provider.clone(), &supabase("also", "wrong"), "").await;
    assert_eq!(wrong_key.outcome(&issuer.token_with("alice", claims("alice"))).await, "auth_unavailable");
}

#[tokio::test]
async fn an_open_socket_ends_when_its_user_signed_out() {
    let issuer = Issuer::start().await;
    let provider = Answerer::start(two_users("active")).await;
    let rows = clerk(&issuer, &provider, "instead");
    let fixture = Fixture::start(provider, &rows, "websocket: { revalidate_every: 1s }\n").await;
    let (mut client, mut upstream) = fixture.socket(&session(&issuer, "alice", "sess_alice")).await;
    fixture.provider.asked_times(2).await;
    assert_eq!(fixture.provider.asked()[0].line(), "GET /v1/sessions/sess_alice");
    client.say("still here").await;
    assert_eq!(upstream.next_text().await, "still here");
    fixture.provider.answers(two_users("ended"));
    assert_eq!(client.next_text().await, r#"{"type":"error","message":"Session ended"}"#);
    assert_eq!(client.next_close().await, (1008, "Session ended".into()));
}

#[tokio::test]
async fn a_silent_provider_is_borne_for_revalidate_grace() {
    let issuer = Issuer::start().await;
    let provider = Answerer::start(two_users("active")).await;
    let rows = clerk(&issuer, &provider, "instead").replace("secret_key:", "timeout: 200ms, secret_key:");
    let more = "websocket: { revalidate_every: 500ms, revalidate_grace: 2s }\n";
    let fixture = Fixture::start(provider, &rows, more).await;
    let (mut client, mut upstream) = fixture.socket(&session(&issuer, "alice", "sess_alice")).await;
    fixture.provider.answers(|_| (500, String::new(), String::new()));
    fixture.provider.asked_times(2).await;
    client.say("still here").await;
    assert_eq!(upstream.next_text().await, "still here");
    assert_eq!(client.next_text().await, r#"{"type":"error","message":"Authentication service unavailable"}"#);
    assert_eq!(client.next_close().await, (1013, "Try again later".into()));
}

#[tokio::test]
async fn a_token_without_an_end_is_asked_about_again_on_its_socket() {
    let provider = Answerer::start(|_| ok(json!({"active": true, "sub": "alice", "aud": AUDIENCE}))).await;
    let rows = introspection(&provider, ", cache: 1s");
    let fixture = Fixture::start(provider, &rows, "websocket: { grace: 0s }\n").await;
    let (mut client, mut upstream) = fixture.socket("opaque").await;
    fixture.provider.asked_times(3).await;
    client.say("still here").await;
    assert_eq!(upstream.next_text().await, "still here");
    fixture.provider.answers(|_| ok(json!({"active": false})));
    assert_eq!(client.next_text().await, r#"{"type":"error","message":"Session ended"}"#);
    assert_eq!(client.next_close().await, (1008, "Session ended".into()));
}

#[tokio::test]
async fn a_first_message_and_a_refresh_are_asked_about_too() {
    let issuer = Issuer::start().await;
    let provider = Answerer::start(two_users("active")).await;
    let rows = clerk(&issuer, &provider, "also");
    let fixture = Fixture::start(provider, &rows, "").await;
    let good = session(&issuer, "alice", "sess_alice");
    let mut client = Socket::open(fixture.proxy.address, "/ws", &[]).await;
    let (said, (_, _upstream)) = tokio::join!(client.authenticate(&good), fixture.backend.websocket());
    assert_eq!(said["user_id"], "alice");
    client.say(&format!(r#"{{"type":"refresh_auth","token":"{}"}}"#, session(&issuer, "alice", "sess_x"))).await;
    let refused = r#"{"type":"error","message":"Token refresh failed: Invalid authentication token"}"#;
    assert_eq!(client.next_text().await, refused);
    fixture.provider.answers(|_| (500, String::new(), String::new()));
    client.say(&format!(r#"{{"type":"refresh_auth","token":"{}"}}"#, session(&issuer, "alice", "sess_y"))).await;
    let refused = r#"{"type":"error","message":"Token refresh failed: Authentication service unavailable"}"#;
    assert_eq!(client.next_text().await, refused);
    let mut stranger = Socket::open(fixture.proxy.address, "/ws", &[]).await;
    assert_eq!(
        stranger.authenticate(&session(&issuer, "bob", "sess_z")).await["message"],
        "Authentication service unavailable"
    );
    assert_eq!(stranger.next_close().await, (1013, "Try again later".into()));
}

#[tokio::test]
async fn check_online_and_token_inspect_speak_of_it() {
    let provider = Answerer::start(|asked| {
        if asked.body.contains("vestibule-check") { ok(json!({"active": false})) } else { active(asked) }
    })
    .await;
    let yaml = format!("upstream: http://127.0.0.1:1\nproviders: [{}]\n", introspection(&provider, ""));
    let file = TempFile::new(&yaml);
    let run = |arguments: Vec<String>| {
        tokio::task::spawn_blocking(move || {
            let output = command().args(arguments).output().expect("runs");
            (output.status.code(), String::from_utf8_lossy(&output.stdout).into_owned())
        })
    };
    let arguments = |rest: &[&str]| rest.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let check = arguments(&["check", "--online", "--config", file.path()]);
    let (code, said) = run(check.clone()).await.expect("runs");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("opaque tokens are checked at") && said.contains("answers remote checks"), "{said}");
    let token = TempFile::new("alice.1\n");
    let (code, said) =
        run(arguments(&["token", "inspect", "--config", file.path(), token.path()])).await.expect("runs");
    assert_eq!(code, Some(0), "{said}");
    assert!(said.contains("remote") && said.contains("the provider confirms it") && said.contains("alice"), "{said}");
    provider.answers(|_| (401, String::new(), "{}".to_owned()));
    let (code, said) = run(check).await.expect("runs");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("it does not accept our credential"), "{said}");
}
