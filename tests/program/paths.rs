//! Tests that a path is matched in every reading (docs/contract.md section 3): no spelling bypasses a rule, none is
//! refused for its spelling, and every path is forwarded byte for byte.

use serde_json::json;

use crate::fixture::fixture;
use crate::support::backend::Backend;
use crate::support::client::{Client, bearer, get, request};
use crate::support::socket::{Socket, upgrade};

const RULES: &str = "routes:
  - { path: /public/**, auth: none }
  - { path: /api/admin/**, auth: deny }
  - { path: /api/staff/**, require: { role: staff } }
  - path: /files/{user}/notes
    require: { sub: \"{user}\" }
  - { path: /get/**, methods: [GET], auth: deny }
";

#[tokio::test]
async fn no_spelling_of_a_path_gets_past_a_rule() {
    let mut fixture = fixture(RULES).await;
    let mallory = bearer(&fixture.issuer.token("mallory"));
    for target in [
        "/api/admin",
        "/api/admin%0A",
        "/api/admin%20",
        "/api/admin%09",
        "/api/admin%C2%A0",
        "/api/admin%C2%85",
        "/api/admin%1F",
        "/api/admin%C0%AF",
        "/api/admin%FF",
        "/api/admin%00",
        "/api/admin%3Fx",
        "/api/admin%23x",
        "/api/admin/%0A",
        "/api/%20admin/x",
        "/api/adm%0Din",
        "/api/adm%FFin",
        "/api/admin;x",
        "/api;v=1/admin/x",
        "/api//admin",
        "/api\\admin",
        "/api%5Cadmin",
        "/api%2Fadmin",
        "/api%252Fadmin",
        "/api/%61dmin",
        "/api/%2561dmin",
        "/api/./admin",
        "/api/x/../admin",
        "/api/x/%2e%2e/admin",
        "/api/x/%252e%252e/admin",
        "/api/x/..;/admin",
        "/api/x/%C0%AE%C0%AE/admin",
        "//host/api/admin",
        "/\\host/api/admin",
        "///host/api/admin",
        "////host/api/admin",
        "/%2f%2fhost/api/admin",
        "/%5C%2fhost/api/admin",
        "/\\/host\\api/admin",
        "/public/../api/admin",
        "/public/..%2fapi/admin",
        "/public%2f..%2fapi/admin/users",
        "/API/Admin/",
        "/api/admin/..;/admin/x",
        "/api/staff%0A",
        "/public/%2e%2e/api/staff",
        "/files/alice/notes",
        "/files/alice/notes%0A",
        "/files/%61lice/notes",
        "/files/mallory/../alice/notes",
        "/files/mallory%2f..%2falice/notes",
        "/files/alice%20/notes",
        "/files/alice;mallory/notes",
        "/files//alice/notes",
        "/get/x",
        "/get%0A",
    ] {
        let answer = get(fixture.proxy.address, target, &[&mallory]).await;
        assert_eq!((answer.status, answer.code().as_str()), (403, "forbidden"), "{target}");
        let answer = get(fixture.proxy.address, target, &[]).await;
        assert!(matches!(answer.status, 401 | 403), "{target}, anonymously: {}", answer.status);
        let (answer, _) = Socket::try_open(fixture.proxy.address, target, &[&mallory]).await;
        assert_eq!(answer.status, 403, "{target}, upgrade");
    }
    assert!(fixture.backend.is_untouched());
}

#[tokio::test]
async fn ordinary_names_pass_byte_for_byte_beside_rules() {
    let fixture = fixture(RULES).await;
    let alice = bearer(&fixture.issuer.token("alice"));
    for target in [
        "/A%2520B.ipynb",
        "/semi%3Bcolon.txt",
        "/@scope%2fpkg",
        "/bucket//key",
        "/a;v=1",
        "/%7e%2d",
        "/caf%C3%A9/na%EFve",
        "/100%25",
        "/report%20%231%3B%20final%3F.pdf",
        "/a%00b",
        "/public%2Fx",
        "/api/administrator",
        "/files/alice/notes",
        "/files/alice/notes/",
    ] {
        let fields = [alice.as_str()];
        let (answer, heard) = tokio::join!(get(fixture.proxy.address, target, &fields), fixture.backend.answer("ok"));
        assert_eq!((answer.status, heard.target()), (200, target));
        assert_eq!(heard.all("x-user-id"), ["alice"], "{target}");
    }
    for target in ["/public/a%20b", "/public/a%2520b//c;v=1", "/public/caf%C3%A9"] {
        let (answer, heard) = tokio::join!(get(fixture.proxy.address, target, &[]), fixture.backend.answer("ok"));
        assert_eq!((answer.status, heard.target()), (200, target), "public");
    }
}

#[tokio::test]
async fn a_public_rule_opens_no_other_spelling() {
    let mut fixture = fixture(RULES).await;
    for target in
        ["/Public/x", "/public%0A", "//public/x", "/x/../public/x", "/public;x/y", "/%70ublic%2fx", "/public/../x"]
    {
        let answer = get(fixture.proxy.address, target, &[]).await;
        assert_eq!((answer.status, answer.code().as_str()), (401, "missing_token"), "{target}");
    }
    assert!(fixture.backend.is_untouched());
}

#[tokio::test]
async fn a_path_with_too_many_readings_is_refused_and_the_connection_closes() {
    let mut fixture = fixture(RULES).await;
    let target = "/a;x/%20%2520/..//b%5cc%C0%AE%FF%0A".repeat(8);
    let mut client = Client::connect(fixture.proxy.address).await;
    client.send(format!("GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n")).await;
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.code().as_str()), (400, "bad_request"));
    assert!(client.is_closed().await);
    // Under our own prefix it is ours all the same.
    let answer = get(fixture.proxy.address, &format!("{target}/%2evestibule"), &[]).await;
    assert_eq!(answer.status, 404);
    fixture.proxy.logged("the reason", |line| line.contains("a path with too many readings")).await;
    assert!(fixture.backend.is_untouched());
}

#[tokio::test]
async fn readings_that_lead_to_different_upstreams_or_settings_are_refused() {
    let other = Backend::start().await;
    let mut fixture = fixture(&format!(
        "routes:\n  - {{ path: /ui/**, upstream: \"{}\" }}\n  - {{ path: /t/**, token_from: {{ header: X-Token }} }}\n  - {{ path: /s/**, websocket: {{ dialect: none }} }}\n",
        other.url()
    ))
    .await;
    let alice = bearer(&fixture.issuer.token("alice"));
    for target in ["/x/../ui/a", "/ui/..%2fa", "/x/../t/a", "/x/%2e%2e/t"] {
        let answer = get(fixture.proxy.address, target, &[&alice]).await;
        assert_eq!((answer.status, answer.code().as_str()), (400, "bad_request"), "{target}");
    }
    let (answer, _) = Socket::try_open(fixture.proxy.address, "/x/../s/a", &[&alice]).await;
    assert_eq!(answer.status, 400);
    assert!(fixture.backend.is_untouched());
    // Settings of sockets concern no other request.
    let fields = [alice.as_str()];
    let (answer, _) = tokio::join!(get(fixture.proxy.address, "/x/../s/a", &fields), fixture.backend.answer("ok"));
    assert_eq!(answer.status, 200);
}

#[tokio::test]
async fn a_preflight_is_refused_only_where_a_reading_is_closed() {
    let mut fixture = fixture(RULES).await;
    let fields = ["Origin: https://a.example", "Access-Control-Request-Method: GET"];
    for (target, status) in [("/api/admin%0A", 403), ("/public/..%2fapi/admin", 403)] {
        let answer = request(fixture.proxy.address, "OPTIONS", target, &fields, "").await;
        assert_eq!(answer.status, status, "{target}");
    }
    assert!(fixture.backend.is_untouched());
    for target in ["/api/staff%0A", "/files/alice/notes", "/x//y"] {
        let preflight = request(fixture.proxy.address, "OPTIONS", target, &fields, "");
        let (answer, heard) = tokio::join!(preflight, fixture.backend.answer("ok"));
        assert_eq!((answer.status, heard.target()), (200, target));
    }
}

#[tokio::test]
async fn the_log_names_the_rule_that_denied_and_the_variable_that_differs() {
    let fixture = fixture(RULES).await;
    let bob = bearer(&fixture.issuer.token("bob"));
    get(fixture.proxy.address, "/public/..%2fapi%2fadmin", &[&bob]).await;
    let line = fixture.proxy.logged("a denial", |line| line.contains("auth: deny")).await;
    assert!(line.contains("\"route\":\"/api/admin/**\""), "{line}");
    get(fixture.proxy.address, "/files/bob;/notes", &[&bob]).await;
    let line = fixture.proxy.logged("a denial", |line| line.contains("claim sub")).await;
    assert!(line.contains("{user} differs between readings of the path"), "{line}");
    assert!(line.contains("\"route\":\"/files/{user}/notes\""), "{line}");
}

#[tokio::test]
async fn an_open_socket_is_judged_in_every_reading_after_a_reload() {
    let fixture = fixture("").await;
    let alice = bearer(&fixture.issuer.token("alice"));
    let mut client = Client::connect(fixture.proxy.address).await;
    client.send(upgrade("/live%0A", &[&alice])).await;
    let (_heard, _upstream) = fixture.backend.websocket().await;
    assert_eq!(client.answer().await.status, 101);
    let yaml = format!(
        "upstream: {}\nproviders: [{}]\nroutes: [{{ path: /live, auth: deny }}]\n",
        fixture.backend.url(),
        fixture.issuer.provider()
    );
    fixture.proxy.rewrite(&yaml);
    fixture.proxy.signal("HUP");
    let mut socket = Socket::new(client.stream, crate::support::socket::Side::Client, Vec::new());
    assert_eq!(socket.next_text().await, r#"{"type":"error","message":"Access denied"}"#);
    assert_eq!(socket.next_close().await, (1008, "Access denied".to_owned()));
}

#[tokio::test]
async fn rules_that_overlap_by_letter_case_only_are_named() {
    let fixture =
        fixture("routes: [{ path: /API/**, require: { role: a } }, { path: /api/x, require: { role: b } }]\n").await;
    let both = bearer(&fixture.issuer.token_with("alice", json!({"role": ["a", "b"]})));
    let one = bearer(&fixture.issuer.token_with("alice", json!({"role": ["b"]})));
    let warning = "routes /API/** and /api/x differ by letter case";
    fixture.proxy.logged(warning, |line| line.contains(warning)).await;
    assert_eq!(get(fixture.proxy.address, "/api/x", &[&one]).await.status, 403);
    let fields = [both.as_str()];
    let (answer, _) = tokio::join!(get(fixture.proxy.address, "/api/x", &fields), fixture.backend.answer("ok"));
    assert_eq!(answer.status, 200);
}
