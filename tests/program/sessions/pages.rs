//! The pages that people at browsers see when a request is refused.

use super::{bearer, fixture, get};
use crate::support::client::Answer;

/// Opens a page as a browser does.
async fn open(fixture: &crate::fixture::Fixture, path: &str, fields: &[&str]) -> Answer {
    let fields: Vec<&str> = ["Sec-Fetch-Mode: navigate", "Accept: text/html"].iter().chain(fields).copied().collect();
    let page = get(fixture.proxy.address, path, &fields).await;
    assert_eq!(page.field("content-type"), Some("text/html; charset=utf-8"), "{path}: {}", page.body);
    assert_eq!(page.field("cache-control"), Some("no-store"), "{path}");
    let id = page.field("x-request-id").expect("a request id");
    for part in [
        "<html lang=\"en\">",
        "<header class=\"narrow\">Vestibule</header>",
        " · Vestibule</title>",
        &format!("<p>Status {}. Request id: <code>{id}</code></p>", page.status),
    ] {
        assert!(page.body.contains(part), "{path}: {part}\n{}", page.body);
    }
    assert_eq!(page.body.matches("<h1>").count(), 1, "{path}");
    page
}

const ROUTES: &str = "routes:\n  - { path: /closed, auth: deny }\n  - { path: /admins, require: { role: admin } }\n";

#[tokio::test]
async fn a_refused_person_reads_what_happened_and_whom_to_ask() {
    let fixture =
        fixture(&format!("browser: {{ session: {{}}, contact: \"https://help.example.com/?a=1&b\" }}\n{ROUTES}")).await;
    let contact =
        "<p>Contact: <a href=\"https://help.example.com/?a=1&amp;b\">https://help.example.com/?a=1&amp;b</a></p>";
    let field = bearer(&fixture.issuer.token("alice"));
    for (path, fields, status, title) in [
        ("/x", &[][..], 401, "Please sign in"),
        ("/closed", &[], 403, "Access denied"),
        ("/admins", &[field.as_str()], 403, "Access denied"),
        ("/.vestibule/nothing", &[], 404, "Page not found"),
        ("/x%zz", &[], 400, "The request failed"),
    ] {
        let page = open(&fixture, path, fields).await;
        assert_eq!(page.status, status, "{path}");
        assert!(page.body.contains(&format!("<h1>{title}</h1>")), "{path}: {}", page.body);
        assert!(page.body.contains(contact), "{path}: {}", page.body);
        // Nobody here has a session: nobody is told that they are signed in, nor offered to sign out.
        assert!(!page.body.contains("signed in, ") && !page.body.contains("Sign out"), "{path}: {}", page.body);
        assert!(!page.body.contains("<script"), "{path}");
    }
}

#[tokio::test]
async fn a_backend_that_is_gone_is_told_on_a_page() {
    let fixture = fixture("browser: { session: {}, contact: \"Ask <IT>, ext. 12\" }\n").await;
    let crate::fixture::Fixture { issuer, backend, proxy } = fixture;
    let field = bearer(&issuer.token("alice"));
    drop(backend);
    let page = get(proxy.address, "/x", &["Sec-Fetch-Mode: navigate", &field]).await;
    assert_eq!(page.status, 502);
    assert!(page.body.contains("<h1>The application does not answer</h1>"), "{}", page.body);
    assert!(page.body.contains("<p>Contact: Ask &lt;IT&gt;, ext. 12</p>"), "{}", page.body);
}

#[tokio::test]
async fn who_has_a_session_and_may_not_enter_can_sign_out() {
    let fixture = fixture(ROUTES).await;
    let cookie = fixture.signed_in(&fixture.issuer.token("alice")).await;
    let page = open(&fixture, "/admins", &[&cookie, "Sec-Fetch-Site: none"]).await;
    assert_eq!(page.status, 403);
    assert!(page.body.contains("<button type=\"button\" id=\"sign-out\" hidden>Sign out</button>"), "{}", page.body);
    let policy = page.field("content-security-policy").expect("a policy");
    assert!(policy.starts_with("default-src 'none'; ") && policy.contains("; script-src 'sha256-"), "{policy}");
    assert!(policy.ends_with("; connect-src 'self'") && !policy.contains("unsafe"), "{policy}");
    assert_eq!(page.field("referrer-policy"), Some("same-origin"));
    assert!(!page.body.contains("alice") && !page.body.contains("Contact:"), "{}", page.body);
    // The same cookie where nobody may enter: signing out would not help.
    let closed = open(&fixture, "/closed", &[&cookie, "Sec-Fetch-Site: none"]).await;
    assert!(!closed.body.contains("Sign out") && !closed.body.contains("<script"), "{}", closed.body);
}
