//! Tests of the fields and URLs of a client that reach the upstream (docs/contract.md sections 3 and 6): none that
//! changes the request, none that names a user, and no token unless it is configured.

use serde_json::json;

use crate::fixture::{Fixture, fixture};
use crate::support::backend::Heard;
use crate::support::client::{Answer, bearer, get};
use crate::support::socket::Socket;

/// The fields by which some backend reads another path, host or scheme.
const MOVING: [&str; 29] = [
    "SCRIPT_NAME",
    "Script-Name",
    "PATH_INFO",
    "X-Script-Name",
    "X-Original-URI",
    "X-Original-URL",
    "X-Original-Path",
    "X-Original-Host",
    "X-Rewrite-URL",
    "X-Envoy-Original-Path",
    "X-Request-URI",
    "X-Forwarded-Uri",
    "X-Forwarded-Path",
    "X-Forwarded-Prefix",
    "X-Host",
    "X-HTTP-Host-Override",
    "X-Scheme",
    "X-Url-Scheme",
    "Front-End-Https",
    "X-Waws-Unencoded-Url",
    "X-ProxyContextPath",
    "X-Ingress-Path",
    "X-RStudio-Root-Path",
    "X-Vhm-Root",
    "X-Accel-Mapping",
    "X-Sendfile-Type",
    "X-Matched-Path",
    "X-Invoke-Path",
    "X-Middleware-Subrequest",
];

/// The fields by which other proxies and sign-in modules send the user, and those of client certificates.
const IDENTITIES: [&str; 44] = [
    "X-Webauth-Role",
    "X-Consumer-Groups",
    "X-Consumer-Custom-Id",
    "X-Credential-Identifier",
    "X-Authenticated-Userid",
    "Tailscale-User-Name",
    "Tailscale-App-Capabilities",
    "X-MS-Client-Principal",
    "X-MS-Client-Principal-Idp",
    "X-MS-Token-Aad-Id-Token",
    "X-authentik-username",
    "X-authentik-meta-app",
    "Impersonate-User",
    "Impersonate-Extra-Scopes",
    "X-Remote-User",
    "X-Remote-Group",
    "X-Remote-Extra-Role",
    "Remote-User-Roles",
    "X-Auth-Request-Anything",
    "X-Auth-Username",
    "X-Token-User-Name",
    "X-Vouch-User",
    "X-Amzn-Oidc-Anything",
    "X-Amzn-Request-Context",
    "X-Apigateway-Api-Userinfo",
    "X-AppEngine-User-Email",
    "X-Jwt-Claim-Sub",
    "Sf-Context-Current-User",
    "OIDC_CLAIM_sub",
    "Shib-Session-Id",
    "SM_USER",
    "iv-user",
    "$WSRU",
    "X-User-Email",
    "X-Amzn-Mtls-Clientcert",
    "X-Amzn-Mtls-Clientcert-Subject",
    "Ssl-Client-Verify",
    "Ssl-Client-Subject-Dn",
    "X-SSL-Cert",
    "X-SSL-Client-S-Dn",
    "Nginx-Client-Verify",
    "Cert-Chain-0",
    "X-ARR-ClientCert",
    "WL-Proxy-Client-Cert",
];

async fn passed(fixture: &Fixture, target: &str, fields: &[&str]) -> Heard {
    let (answer, heard) = tokio::join!(get(fixture.proxy.address, target, fields), fixture.backend.answer("ok"));
    assert_eq!(answer.status, 200, "{target} {fields:?}: {answer:?}");
    heard
}

async fn removes(fixture: &Fixture, name: &str) {
    let credential = bearer(&fixture.issuer.token("alice"));
    let long = format!("{name}-{}", "a".repeat(70));
    let mut spelled = vec![name.to_owned(), name.replace('-', "_"), name.replace('_', "-"), name.replace('-', ".")];
    if name == "X-Consumer-Groups" {
        spelled.push(long);
    }
    for name in spelled {
        let field = format!("{name}: mallory");
        for (target, fields) in [("/x", vec![field.as_str(), &credential]), ("/public/x", vec![field.as_str()])] {
            let heard = passed(fixture, target, &fields).await;
            assert!(!heard.head.contains("mallory"), "{name} to {target}: {}", heard.head);
        }
    }
}

#[tokio::test]
async fn no_request_field_moves_a_request() {
    let fixture = fixture("routes: [{ path: /public/**, auth: none }]\n").await;
    for name in MOVING {
        removes(&fixture, name).await;
    }
}

#[tokio::test]
async fn identity_headers_of_other_proxies_are_removed_by_family() {
    let fixture = fixture("routes: [{ path: /public/**, auth: none }]\n").await;
    for name in IDENTITIES {
        removes(&fixture, name).await;
    }
}

#[tokio::test]
async fn a_trusted_proxy_moves_no_request_either() {
    let fixture = fixture("trusted_proxies: [127.0.0.1]\nroutes: [{ path: /public/**, auth: none }]\n").await;
    for name in ["SCRIPT_NAME", "X-Forwarded-Prefix", "X-Original-URL", "X-Host", "X-Scheme"] {
        removes(&fixture, name).await;
    }
}

#[tokio::test]
async fn method_overrides_pass_only_where_no_rule_names_methods() {
    for (rule, passes) in [("{ path: /a, auth: none }", true), ("{ path: /a, methods: [POST], auth: none }", false)] {
        let fixture = fixture(&format!("routes: [{rule}]\n")).await;
        let credential = bearer(&fixture.issuer.token("alice"));
        for name in ["X-HTTP-Method-Override", "X-HTTP-Method", "X_Method_Override"] {
            let field = format!("{name}: DELETE");
            let heard = passed(&fixture, "/x", &[&credential, &field]).await;
            assert_eq!(heard.head.contains("DELETE"), passes, "{rule} {name}");
        }
    }
}

#[tokio::test]
async fn what_is_no_token_source_goes_up_in_no_spelling() {
    let fixture = fixture(
        "token_from: { header: Cf-Access-Jwt-Assertion }\nroutes: [{ path: /public/**, auth: none }, { path: /maybe, auth: optional }]\n",
    )
    .await;
    let good = format!("Cf-Access-Jwt-Assertion: {}", fixture.issuer.token("alice"));
    for forged in [
        "Authorization: Bearer forged",
        "Author_ization: Bearer forged",
        "Cf_Access_Jwt_Assertion: forged",
        "cf.access.jwt.assertion: forged",
        "Cf-Access-JwtAssertion: forged",
    ] {
        for target in ["/x", "/maybe"] {
            let heard = passed(&fixture, target, &[&good, forged]).await;
            assert_eq!(heard.all("x-user-id"), ["alice"]);
            assert!(!heard.head.contains("forged"), "{forged}: {}", heard.head);
        }
    }
    // If no token is read, a webhook's own fields pass in their exact spelling, and look-alikes do not.
    for (field, passes) in [
        ("Authorization: Basic own", true),
        ("Cf-Access-Jwt-Assertion: own", true),
        ("Cf_Access_Jwt_Assertion: own", false),
        ("Author_ization: own", false),
    ] {
        let heard = passed(&fixture, "/public/x", &[field]).await;
        assert_eq!(heard.head.contains("own"), passes, "{field}: {}", heard.head);
    }
}

#[tokio::test]
async fn the_upstreams_own_secret_comes_from_us_alone() {
    use crate::support::{backend::Backend, issuer::Issuer, proxy::Proxy};
    let (issuer, backend) = (Issuer::start().await, Backend::start().await);
    let proxy = Proxy::start(&format!(
        "upstream: {{ url: {}, credential: {{ header: X-Backend-Key, value: the-real-one }} }}\nproviders: [{}]\nroutes: [{{ path: /public/**, auth: none }}]\n",
        backend.url(),
        issuer.provider()
    ))
    .await;
    let fixture = Fixture { issuer, backend, proxy };
    let credential = bearer(&fixture.issuer.token("alice"));
    for forged in ["X-Backend-Key: forged", "X_Backend_Key: forged", "XBackendKey: forged"] {
        let heard = passed(&fixture, "/x", &[&credential, forged]).await;
        assert_eq!(heard.all("x-backend-key"), ["the-real-one"]);
        assert!(!heard.head.contains("forged"), "{forged}: {}", heard.head);
        let heard = passed(&fixture, "/public/x", &[forged]).await;
        assert!(!heard.head.contains("forged"), "{forged}: {}", heard.head);
    }
}

#[tokio::test]
async fn query_tokens_leave_every_url_of_a_protected_route() {
    let fixture = fixture("token_from: { query: { name: [token, access_token] } }\nroutes: [{ path: /public/**, auth: none }, { path: /maybe, auth: optional }]\n").await;
    let (token, other) = (fixture.issuer.token("alice"), fixture.issuer.unsigned());
    let foreign = fixture.issuer.token_with("alice", json!({"iss": "https://elsewhere.example"}));
    let credential = bearer(&token);
    for target in ["/x", "/maybe"] {
        for (value, stays) in [
            (token.as_str(), false),
            (&other, false),
            (&foreign, true),
            ("vite-1f2e3d", true),
            ("a-signed-link.of.the-backend", true),
            ("", true),
        ] {
            for name in ["token", "access_token", "%74oken"] {
                let referer = format!("Referer: http://localhost/page?{name}={value}");
                let fields = [credential.as_str(), referer.as_str()];
                let heard = passed(&fixture, &format!("{target}?a=%7e&{name}={value}&b"), &fields).await;
                let left = if stays { format!("{target}?a=%7e&{name}={value}&b") } else { format!("{target}?a=%7e&b") };
                assert_eq!(heard.target(), left);
                let page = if stays { format!("?{name}={value}") } else { String::new() };
                assert_eq!(heard.all("referer"), [format!("http://localhost/page{page}")]);
            }
        }
    }
    // Nothing is removed where no token is read.
    let target = format!("/public/x?token={token}");
    assert_eq!(passed(&fixture, &target, &[]).await.target(), target);
}

#[tokio::test]
async fn a_query_value_that_is_no_token_of_ours_is_no_credential() {
    let fixture = fixture("token_from: { cookie: __session }\n").await;
    let alice = fixture.issuer.token("alice");
    let foreign = fixture.issuer.token_with("bob", json!({"iss": "https://elsewhere.example"}));
    let cookie = format!("Cookie: __session={alice}");
    let fields = [cookie.as_str(), "Origin: http://localhost"];
    for query in
        ["token=vite".to_owned(), "token=a&token=b".to_owned(), "token=".to_owned(), format!("token={foreign}")]
    {
        let target = format!("/ws?{query}");
        // The cookie is the credential, and the first message where there is none.
        let (_client, (heard, _)) =
            tokio::join!(Socket::open(fixture.proxy.address, &target, &fields), fixture.backend.websocket());
        assert_eq!((heard.target(), heard.all("x-user-id")), (target.as_str(), vec!["alice"]));
        let mut client = Socket::open(fixture.proxy.address, &target, &[]).await;
        let (said, (heard, _)) = tokio::join!(client.authenticate(&alice), fixture.backend.websocket());
        assert_eq!((said["type"].as_str(), heard.target()), (Some("authenticated"), target.as_str()));
    }
    // Beside a token of a configured issuer, that one alone counts.
    let target = format!("/ws?token=vite&token={alice}");
    let (_client, (heard, _)) =
        tokio::join!(Socket::open(fixture.proxy.address, &target, &[]), fixture.backend.websocket());
    assert_eq!((heard.target(), heard.all("x-user-id")), ("/ws?token=vite", vec!["alice"]));
}

#[tokio::test]
async fn where_opaque_tokens_are_taken_any_value_that_is_no_jwt_is_one() {
    use crate::support::{backend::Backend, issuer::Issuer, proxy::Proxy};
    let (issuer, backend) = (Issuer::start().await, Backend::start().await);
    let proxy = Proxy::start(&format!(
        "upstream: {}\nproviders: [{}, {{ preset: introspection, audience: any, remote: {{ url: \"http://127.0.0.1:1/x\", client_id: c, client_secret: s }} }}]\nshared_user_ids: true\n",
        backend.url(),
        issuer.provider(),
    ))
    .await;
    let fixture = Fixture { issuer, backend, proxy };
    let credential = bearer(&fixture.issuer.token("alice"));
    let foreign = fixture.issuer.token_with("alice", json!({"iss": "https://elsewhere.example"}));
    for (value, left) in [("opaque-1", "/x"), ("", "/x?token="), (foreign.as_str(), "")] {
        let target = format!("/x?token={value}");
        let left = if left.is_empty() { target.as_str() } else { left };
        assert_eq!(passed(&fixture, &target, &[&credential]).await.target(), left);
    }
}

#[tokio::test]
async fn the_way_back_from_signing_in_carries_no_token() {
    let fixture = fixture("browser: { sign_in_url: \"https://id.example.com/in?back={return_path}\" }\n").await;
    let token = fixture.issuer.token("alice");
    let navigates =
        async |target: String| -> Answer { get(fixture.proxy.address, &target, &["Sec-Fetch-Mode: navigate"]).await };
    let answer = navigates(format!("/lab?a=1&token={token}")).await;
    assert_eq!(answer.field("location"), Some("https://id.example.com/in?back=%2Flab%3Fa%3D1"));
    let answer = navigates("/lab?a=1&token=vite".to_owned()).await;
    assert_eq!(answer.field("location"), Some("https://id.example.com/in?back=%2Flab%3Fa%3D1%26token%3Dvite"));
}

#[tokio::test]
async fn an_upstream_sets_no_cookie_of_ours_in_any_spelling() {
    let fixture = fixture("routes: [{ path: /public/**, auth: none }]\n").await;
    let lines = [
        "=vestibule-8080=x",
        " = vestibule-8080=x",
        "==vestibule-8080=x",
        "vestibule-8080",
        "vestibule-8080; Path=/",
        "vestibule-8080 =x",
        "\tvestibule-8080=x",
        "=__Host-vestibule=x",
        "__HOST-vestibule=x",
    ];
    let fields = lines.iter().fold(String::new(), |all, line| format!("{all}Set-Cookie: {line}\r\n"));
    let upstream = async {
        let mut conn = fixture.backend.accept().await;
        conn.request().await;
        conn.write(format!("HTTP/1.1 200 OK\r\n{fields}Set-Cookie: theirs=1\r\nContent-Length: 0\r\n\r\n")).await;
    };
    let (answer, ()) = tokio::join!(get(fixture.proxy.address, "/public/x", &[]), upstream);
    assert!(answer.head.contains("theirs=1") && !answer.head.contains("estibule-"), "{}", answer.head);
    assert!(!answer.head.to_ascii_lowercase().contains("host-vestibule"), "{}", answer.head);
    // Nor are they in its 101.
    let upstream = async { fixture.backend.accept().await.switch(&format!("{fields}Set-Cookie: theirs=1\r\n")).await };
    let ((answer, _client), _) = tokio::join!(Socket::try_open(fixture.proxy.address, "/public/ws", &[]), upstream);
    assert_eq!(answer.status, 101);
    assert!(
        answer.head.contains("theirs=1") && !answer.head.to_ascii_lowercase().contains("vestibule"),
        "{}",
        answer.head
    );
}

#[tokio::test]
async fn written_origins_are_checked_on_public_routes_too() {
    let mut fixture = fixture(
        "websocket: { allowed_origins: [\"https://app.example.com\"] }\nroutes: [{ path: /public/**, auth: none }, { path: /maybe, auth: optional }]\n",
    )
    .await;
    for target in ["/public/ws", "/maybe"] {
        let (answer, _) = Socket::try_open(fixture.proxy.address, target, &["Origin: https://evil.example"]).await;
        assert_eq!((answer.status, answer.code().as_str()), (403, "foreign_origin"), "{target}");
        assert!(fixture.backend.is_untouched());
        for fields in [&["Origin: https://app.example.com"][..], &[]] {
            let ((answer, _client), _) =
                tokio::join!(Socket::try_open(fixture.proxy.address, target, fields), fixture.backend.websocket());
            assert_eq!(answer.status, 101, "{target} {fields:?}");
        }
    }
}

#[tokio::test]
async fn a_list_of_schemes_from_a_trusted_proxy_is_read_by_its_hops() {
    let fixture = fixture("trusted_proxies: [127.0.0.1, 10.0.0.0/8]\nroutes: [{ path: /**, auth: none }]\n").await;
    for (fields, client, scheme) in [
        (&["X-Forwarded-Proto: https,http"][..], "127.0.0.1", "https"),
        (&["X-Forwarded-Proto: https, http"], "127.0.0.1", "https"),
        (&["X-Forwarded-Proto: https", "X-Forwarded-Proto: http"], "127.0.0.1", "https"),
        (&["X-Forwarded-Proto: https, http", "X-Forwarded-For: 192.0.2.1, 10.0.0.1"], "192.0.2.1", "https"),
        (&["X-Forwarded-Proto: https, http", "X-Forwarded-For: 192.0.2.1"], "192.0.2.1", "https"),
        // The client wrote the left ones itself.
        (&["X-Forwarded-Proto: https, http", "X-Forwarded-For: 192.0.2.9, 192.0.2.1"], "192.0.2.1", "http"),
        (&["X-Forwarded-Proto: http,https", "X-Forwarded-For: 192.0.2.9, 192.0.2.1"], "192.0.2.1", "https"),
        (&["X-Forwarded-Proto: ,", "X-Forwarded-For: 192.0.2.1,"], "192.0.2.1", "http"),
        (&["X_Forwarded_Proto: https"], "127.0.0.1", "http"),
    ] {
        let heard = passed(&fixture, "/x", fields).await;
        let first = heard.all("x-forwarded-for")[0].split(',').next().expect("a hop");
        assert_eq!((first, heard.all("x-forwarded-proto")), (client, vec![scheme]), "{fields:?}");
    }
    // Two hosts in one field are none.
    let mut client = crate::support::client::Client::connect(fixture.proxy.address).await;
    client.send("GET /x HTTP/1.1\r\nHost: a.example,b.example\r\n\r\n").await;
    assert_eq!(client.answer().await.code(), "bad_request");
}
