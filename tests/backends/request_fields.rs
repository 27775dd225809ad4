//! gunicorn and Flask as they come, which take the path of a request from its fields when a loopback peer sends them.

use std::path::Path;

use support::client::{bearer, get};
use support::issuer::Issuer;
use support::proxy::Proxy;

use crate::{Backend, provider, python, support};

/// Says which path Flask has routed, below which prefix, and what else a field could have moved.
const APP: &str = r#"
from flask import Flask, request

app = Flask(__name__)


@app.route("/", defaults={"path": ""})
@app.route("/<path:path>")
def anything(path):
    return {"path": request.path, "root": request.script_root, "host": request.host, "scheme": request.scheme}
"#;

async fn flask(python: &Path) -> Backend {
    Backend::start(
        "gunicorn",
        python,
        |port| ["-m", "gunicorn", "--bind", &format!("127.0.0.1:{port}"), "app:app"].map(str::to_owned).to_vec(),
        |folder| std::fs::write(folder.join("app.py"), APP).expect("written"),
    )
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn no_field_leads_gunicorn_and_flask_to_another_path() {
    let Some(python) = python() else { return };
    let backend = flask(python).await;
    // What there is to be kept out: its own peer on loopback is believed.
    let moved = get(backend.address, "/public/api/admin/users", &["SCRIPT_NAME: /public"]).await;
    assert_eq!((moved.status, moved.json()["path"].as_str()), (200, Some("/api/admin/users")), "{moved:?}");
    let issuer = Issuer::start().await;
    let rules = "routes:\n  - { path: /public/**, auth: none }\n  - { path: /api/admin/**, auth: deny }\n  - { path: /api/owner/**, require: { role: owner } }\n";
    let proxy = Proxy::start(&format!("upstream: http://{}\n{}{rules}", backend.address, provider(&issuer))).await;
    let credential = bearer(&issuer.token("alice"));
    for name in ["SCRIPT_NAME", "Script-Name", "script_name", "PATH_INFO", "X-Script-Name", "X-Forwarded-Prefix"] {
        for (target, value) in [
            ("/public/api/admin/users", "/public"),
            ("/public/api/admin/users", "/api/admin/users"),
            ("/zzz/api/admin/users", "/zzz"),
            ("/zzz/api/owner/users", "/zzz"),
        ] {
            let field = format!("{name}: {value}");
            let answer = get(proxy.address, target, &[&credential, &field]).await;
            let seen = answer.json();
            assert_eq!(
                (answer.status, seen["path"].as_str(), seen["root"].as_str()),
                (200, Some(target), Some("")),
                "{field}"
            );
        }
    }
    for field in
        ["X-Forwarded-Proto: https", "X-Forwarded-Protocol: ssl", "X-Forwarded-Ssl: on", "X-Host: evil.example"]
    {
        let seen = get(proxy.address, "/public/x", &[field]).await.json();
        assert_eq!((seen["scheme"].as_str(), seen["host"].as_str()), (Some("http"), Some("localhost")), "{field}");
    }
}
