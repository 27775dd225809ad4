//! Tests of real routers and the spellings of a path: whichever spelling a router maps to a guarded resource, a caller
//! that the rules refuse does not get it.

use crate::support::client::{bearer, get};
use crate::support::issuer::Issuer;
use crate::support::proxy::Proxy;
use crate::support::socket::Socket;
use crate::{Backend, provider, python};

const RULES: &str = "routes:
  - { path: /api/admin/**, auth: deny }
  - path: /files/{user}/notes
    require: { sub: \"{user}\" }
  - { path: /public/**, auth: none }
";

/// The texts around and inside the path of a guarded resource.
const ENDS: [&str; 22] = [
    "", "/", "//", "/.", "/x/..", "%0A", "%0a", "%20", "%09", "%0D%0A", "%00", "%00x", "%C0%AE", "%C0%AF", "%FF",
    "%C2%A0", "%C2%85", "%3Fx", "%23x", ";x", ";", "%2F",
];

fn spellings(path: &str) -> Vec<String> {
    let inside = path.replacen("/a", "/%61", 1);
    let mut all: Vec<String> = ENDS.iter().map(|end| format!("{path}{end}")).collect();
    all.extend([
        format!("/{path}"),
        format!("//host{path}"),
        format!("/\\host{path}"),
        format!("/public/..{path}"),
        format!("/public/%2e%2e{path}"),
        format!("/public/..%2f{}", &path[1..]),
        format!("/public/%252e%252e{path}"),
        format!("/public/..;{path}"),
        format!("/public/..%5c{}", &path[1..]),
        format!("/.{path}"),
        format!("/x/..{path}"),
        path.replacen('/', "//", 1),
        path.replacen('/', "\\", 2).replacen('\\', "/", 1),
        path.replace('/', "%2F").replacen("%2F", "/", 1),
        path.replace('/', "%252F").replacen("%252F", "/", 1),
        path.to_uppercase(),
        inside.clone(),
        inside.replace("%61", "%2561"),
        path.replacen("/a", "/%20a", 1),
        path.replacen("/a", "/a%0A", 1),
        path.replacen("/a", "/%C0%AE%C0%AE/a", 1),
    ]);
    all
}

async fn hold_against(kind: &str) {
    let Some(python) = python() else { return };
    let program = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/backends/path_servers.py");
    let arguments = |port: u16| vec![program.to_owned(), kind.to_owned(), port.to_string()];
    let backend = Backend::start(kind, python, arguments, |_| {}).await;
    let issuer = Issuer::start().await;
    let proxy = Proxy::start(&format!("upstream: http://{}\n{}{RULES}", backend.address, provider(&issuer))).await;
    let mallory = bearer(&issuer.token("mallory"));
    let alice = bearer(&issuer.token("alice"));
    for (path, guarded) in [("/api/admin", "the admin page"), ("/files/alice/notes", "notes of [alice]")] {
        let mut other_spellings_served = 0;
        for target in spellings(path) {
            let direct = get(backend.address, &target, &[]).await;
            other_spellings_served += usize::from(target != path && direct.body == guarded);
            for fields in [&[][..], &[mallory.as_str()]] {
                let answer = get(proxy.address, &target, fields).await;
                assert_ne!(answer.body, guarded, "{kind}: {target}");
                if direct.body == guarded {
                    assert!(matches!(answer.status, 400 | 401 | 403), "{kind}: {target}: {answer:?}");
                }
            }
        }
        // Without the proxy the routers do map some of these to the guarded resource.
        assert!(other_spellings_served > 0, "{kind}: {path}");
    }
    assert_eq!(get(proxy.address, "/files/alice/notes", &[&alice]).await.body, "notes of [alice]");
    for target in ["/A%2520B.ipynb", "/semi%3Bcolon.txt", "/@scope%2fpkg", "/a;v=1", "/caf%C3%A9"] {
        let (direct, through) = (get(backend.address, target, &[]).await, get(proxy.address, target, &[&alice]).await);
        assert_eq!((through.status, &through.body), (direct.status, &direct.body), "{kind}: {target}");
    }
    if kind == "fastapi" {
        for target in ["/api/admin", "/api/admin%0A", "/public/..%2fapi%2fadmin%0a"] {
            let (answer, _) = Socket::try_open(proxy.address, target, &[&mallory]).await;
            assert_eq!(answer.status, 403, "{target}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_spelling_gets_past_a_rule_before_fastapi() {
    hold_against("fastapi").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_spelling_gets_past_a_rule_before_flask_under_gunicorn() {
    hold_against("flask").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_spelling_gets_past_a_rule_before_django_under_gunicorn() {
    hold_against("django").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_spelling_gets_past_a_rule_before_aiohttp() {
    hold_against("aiohttp").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn no_spelling_gets_past_a_rule_before_jupyter_server() {
    let Some(python) = python() else { return };
    let arguments = |port: u16| -> Vec<String> {
        let port = format!("--ServerApp.port={port}");
        let fixed = ["-m", "jupyter_server", "--ServerApp.ip=127.0.0.1", "--ServerApp.open_browser=False"];
        let open = ["--IdentityProvider.token=", "--ServerApp.allow_root=True", "--ServerApp.port_retries=0"];
        fixed.into_iter().chain(open).map(str::to_owned).chain([port]).collect()
    };
    let prepare = |folder: &std::path::Path| {
        std::fs::create_dir(folder.join("alice")).expect("folder");
        std::fs::write(folder.join("alice/secret.txt"), "of alice alone").expect("file");
        std::fs::write(folder.join("A%20B;c.txt"), "an odd name").expect("file");
    };
    let backend = Backend::start("jupyter-paths", python, arguments, prepare).await;
    let issuer = Issuer::start().await;
    let rules = "routes:\n  - path: /files/{user}/**\n    require: { sub: \"{user}\" }\n  - path: /api/contents/{user}/**\n    require: { sub: \"{user}\" }\n  - { path: /static/**, auth: none }\n";
    let proxy = Proxy::start(&format!("upstream: http://{}\n{}{rules}", backend.address, provider(&issuer))).await;
    let mallory = bearer(&issuer.token("mallory"));
    let alice = bearer(&issuer.token("alice"));
    let mut other_spellings_served = 0;
    for path in ["/files/alice/secret.txt", "/api/contents/alice/secret.txt"] {
        for target in spellings(path) {
            let direct = get(backend.address, &target, &[]).await;
            let is_served = direct.status == 200 && direct.body.contains("of alice alone");
            other_spellings_served += usize::from(is_served && target != path);
            for fields in [&[][..], &[mallory.as_str()]] {
                let answer = get(proxy.address, &target, fields).await;
                assert!(!answer.body.contains("of alice alone"), "{target}: {answer:?}");
            }
        }
    }
    assert!(other_spellings_served > 0);
    let own = get(proxy.address, "/api/contents/alice/secret.txt", &[&alice]).await;
    assert_eq!(own.json()["content"], "of alice alone");
    // A name that earlier versions refused for its spelling is not this user's folder, and the refusal says so.
    let odd = get(proxy.address, "/api/contents/A%2520B%3Bc.txt", &[&alice]).await;
    assert_eq!((odd.status, odd.code().as_str()), (403, "forbidden"));
}
