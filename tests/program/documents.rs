//! Compares the documents with the program: their configurations are valid, their links exist, and the messages that
//! they explain are those of the program.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::support::authority::Authority;
use crate::support::proxy::{TempFile, command};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn files(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            files(&path, extension, found);
        } else if path.extension().is_some_and(|found| found == extension) {
            found.push(path);
        }
    }
}

/// Returns every document with its text.
fn documents() -> Vec<(PathBuf, String)> {
    let mut found = vec![root().join("README.md"), root().join("CONTRIBUTING.md")];
    for folder in ["docs", "deploy"] {
        files(&root().join(folder), "md", &mut found);
    }
    assert!(found.len() > 30, "they are found: {found:?}");
    found.into_iter().map(|path| (path.clone(), std::fs::read_to_string(path).expect("text"))).collect()
}

/// The environment variables that the documents' configurations need.
const VARIABLES: [(&str, &str); 11] = [
    ("PORT", "8081"),
    ("ADMIN_PORT", "9181"),
    ("BACKEND_SECRET", "x"),
    ("JUPYTER_TOKEN", "x"),
    ("MARIMO_BASIC", "x"),
    ("SESSION_SECRET", "0123456789abcdef0123456789abcdefXYZ"),
    ("INTROSPECTION_SECRET", "x"),
    ("CLERK_SECRET_KEY", "x"),
    ("CLIENT_SECRET", "x"),
    ("ISSUER", "https://issuer.example.com"),
    ("ORIGIN", "https://app.example.com"),
];

fn check(what: &str, yaml: &str) {
    let file = TempFile::new(yaml);
    let output = command().args(["check", "--config", file.path()]).envs(VARIABLES).output().expect("runs");
    assert!(output.status.success(), "{what}:\n{}\n{yaml}", String::from_utf8_lossy(&output.stderr));
}

/// Secrets that the platforms mount. The program reads them when it checks a configuration.
const MOUNTED_SECRETS: [&str; 4] = [
    "/run/secrets/engine-password",
    "/run/engine/password",
    "/run/secrets/vestibule/engine-password",
    "/run/secrets/vestibule/session-secret",
];
/// The engine's certificate, which is mounted too.
const MOUNTED_CERTIFICATE: &str = "/run/secrets/vestibule/engine.crt";

/// The certificate authority that Kubernetes mounts in every pod.
const CLUSTER_CERTIFICATE: &str = "/var/run/secrets/kubernetes.io/serviceaccount/ca.crt";

/// Checks a configuration of several instances, with files in place of those that the platform mounts.
fn check_with_mounted_files(what: &str, yaml: &str) {
    let secret = TempFile::new("0123456789abcdef0123456789abcdefXYZ");
    let certificate = Authority::new().pem();
    let mut yaml = yaml.replace(MOUNTED_CERTIFICATE, certificate.path());
    for path in MOUNTED_SECRETS {
        yaml = yaml.replace(path, secret.path());
    }
    assert!(yaml.contains("shared:") && yaml.contains(secret.path()), "{what} shares through an engine:\n{yaml}");
    check(what, &yaml);
}

fn read(file: &str) -> String {
    std::fs::read_to_string(root().join(file)).expect(file)
}

/// Returns a configuration of several instances without the keys that one instance does not need.
fn of_one_instance(yaml: &str) -> String {
    let (head, rest) = yaml.split_once("browser:").expect("a session secret");
    let (more, routes) = rest.split_once("routes:").expect("routes");
    assert!(more.contains("shared:"), "{yaml}");
    format!("{head}routes:{routes}")
}

#[test]
fn the_configurations_of_several_instances_are_valid() {
    let compose = read("deploy/compose/two-instances/vestibule.yaml");
    check_with_mounted_files("Compose", &compose);
    let kubernetes = read("deploy/kubernetes/two-replicas/vestibule.yaml");
    check_with_mounted_files("Kubernetes", &kubernetes);
    assert_eq!(of_one_instance(&kubernetes), read("deploy/kubernetes/example/vestibule.yaml"));

    let task = |file: &str| serde_json::from_str::<serde_json::Value>(&read(file)).expect("JSON");
    let (one, two) = (task("deploy/ecs/task-definition.json"), task("deploy/ecs/two-tasks.json"));
    let [backend, writer, vestibule] = two["containerDefinitions"].as_array().expect("a list").as_slice() else {
        panic!("backend, password and Vestibule: {two}");
    };
    let yaml = |container: &serde_json::Value| container["environment"][0]["value"].as_str().expect("text").to_owned();
    check_with_mounted_files("ECS", &yaml(vestibule));
    let vestibule_of_one = &one["containerDefinitions"][1];
    assert_eq!(of_one_instance(&yaml(vestibule)), yaml(vestibule_of_one));
    assert_eq!(*backend, one["containerDefinitions"][0]);
    let common = |container: &serde_json::Value| {
        let mut fields = container.as_object().expect("an object").clone();
        fields.retain(|name, _| !["environment", "secrets", "dependsOn", "mountPoints"].contains(&&**name));
        fields
    };
    assert_eq!(common(vestibule), common(vestibule_of_one));
    // ECS starts Vestibule when the password's file is there; the container that writes it ends before.
    assert_eq!(writer["essential"], false);
    assert_eq!(vestibule["dependsOn"][1]["containerName"], writer["name"]);
    assert_eq!(vestibule["dependsOn"][1]["condition"], "SUCCESS");
    assert_eq!(vestibule["mountPoints"][0]["sourceVolume"], two["volumes"][0]["name"]);
    assert_eq!(writer["mountPoints"][0]["sourceVolume"], two["volumes"][0]["name"]);
}

#[test]
fn the_rights_in_the_engine_are_those_that_the_page_names() {
    let page = read("docs/shared-state.md");
    let (_, rights) = page.split_once("resetchannels ").expect("the rights");
    let rights = rights.lines().next().expect("a line");
    assert!(rights.starts_with("-@all +get "), "{rights}");
    let default_user = page.split('`').find(|code| code.starts_with("user default ")).expect("the default user");
    for file in ["deploy/compose/two-instances/users.acl", "deploy/kubernetes/two-replicas/users.acl"] {
        let user = format!("user vestibule on >PASSWORD ~{{vestibule:vestibule}}:* resetchannels {rights}");
        assert_eq!(read(file), format!("{default_user}\n{user}\n"), "{file}");
    }
    let granted: Vec<&str> = rights.split(" +").map(|right| right.split('|').next().expect("a command")).collect();
    let mut sources = Vec::new();
    files(&root().join("src/shared"), "rs", &mut sources);
    let mut count = 0;
    for source in sources {
        let text = std::fs::read_to_string(&source).expect("text");
        for (before, after) in [("cmd(\"", '"'), ("redis.call('", '\'')] {
            for command in text.split(before).skip(1).filter_map(|rest| rest.split(after).next()) {
                let is_granted = granted.contains(&&*command.to_lowercase());
                // Sentinels have users of their own.
                assert!(is_granted || command == "SENTINEL", "{}: {command} is not in {rights}", source.display());
                count += 1;
            }
        }
    }
    assert!(count > 20, "{count}");
    let access = format!("\"on ~{{vestibule:vestibule}}:* {rights}\"");
    assert!(read("deploy/ecs/README.md").contains(&access), "deploy/ecs/README.md names other rights than {rights}");
}

#[test]
fn the_configurations_in_the_documents_are_valid() {
    let mut count = 0;
    let certificate = Authority::new().pem();
    for (path, text) in documents() {
        for block in text.split("```yaml\n# vestibule.yaml\n").skip(1) {
            let yaml = block.split("```").next().expect("an end").replace(CLUSTER_CERTIFICATE, certificate.path());
            check(&path.display().to_string(), &yaml);
            count += 1;
        }
    }
    assert!(count >= 20, "{count}");
}

#[test]
fn the_configurations_of_the_deployments_are_valid() {
    for file in [
        "deploy/compose/jupyter/vestibule.yaml",
        "deploy/compose/fastapi/vestibule.yaml",
        "deploy/kubernetes/example/vestibule.yaml",
    ] {
        check(file, &std::fs::read_to_string(root().join(file)).expect(file));
    }
    let task = std::fs::read_to_string(root().join("deploy/ecs/task-definition.json")).expect("text");
    let task: serde_json::Value = serde_json::from_str(&task).expect("JSON");
    let vestibule = &task["containerDefinitions"][1];
    assert_eq!(vestibule["environment"][0]["name"], "VESTIBULE_CONFIG_YAML");
    check("ECS", vestibule["environment"][0]["value"].as_str().expect("text"));
    // The platforms wait for longer than the drain takes.
    assert!(vestibule["stopTimeout"].as_u64() > Some(25));
    // The backend requires the secret that Vestibule sends.
    let backend = &task["containerDefinitions"][0];
    assert!(backend["secrets"].is_array());
    assert_eq!(backend["secrets"], vestibule["secrets"]);
    let service = std::fs::read_to_string(root().join("deploy/ecs/service.json")).expect("text");
    let service: serde_json::Value = serde_json::from_str(&service).expect("JSON");
    let balancer = &service["loadBalancers"][0];
    assert_eq!(balancer["containerName"], vestibule["name"]);
    assert_eq!(balancer["containerPort"], vestibule["portMappings"][0]["containerPort"]);
}

#[test]
fn the_sample_backend_is_the_one_that_compose_runs() {
    let app = std::fs::read_to_string(root().join("deploy/compose/fastapi/app.py")).expect("the app");
    let page = std::fs::read_to_string(root().join("docs/backends/fastapi-notebook.md")).expect("the page");
    assert!(page.contains(&format!("```python\n{app}```\n")), "docs/backends/fastapi-notebook.md shows another app");
}

#[test]
fn the_file_for_jupyter_is_the_one_that_compose_uses_and_can_be_pasted() {
    let used = std::fs::read_to_string(root().join("deploy/compose/jupyter/jupyter_server_config.py")).expect("text");
    assert!(used.contains("PR_SET_DUMPABLE"), "kernels cannot read the server's first environment");
    let flags = ["check", "--upstream", "http://127.0.0.1:8888", "--upstream-preset", "jupyter"];
    let provider = ["--issuer", "https://issuer.example.com", "--audience", "api"];
    let output = command().args(flags).args(provider).output().expect("runs");
    let said = String::from_utf8(output.stdout).expect("text");
    let (_, printed) = said.split_once("\n# jupyter_server_config.py\n").expect("a file");
    assert_eq!(printed, used);
}

/// The values of `outcome` that a file writes: the second argument of each refusal, or what each arm returns.
fn outcomes_in(file: &str) -> Vec<String> {
    let text = std::fs::read_to_string(root().join(file)).expect("text");
    let text = text.split("#[cfg(test)]").next().expect("the code");
    let quoted = |part: &str| part.split('"').nth(1).unwrap_or_default().to_owned();
    let found: Vec<String> = if file.ends_with("refusal.rs") {
        text.split("Self::new(").skip(1).map(quoted).collect()
    } else {
        let function = text.split("fn outcome(").nth(1).expect("outcome").split("\n    }\n").next().expect("its end");
        function.split("=> \"").skip(1).map(|part| part.split('"').next().unwrap_or_default().to_owned()).collect()
    };
    assert!(found.len() > 15 && found.iter().all(|name| !name.is_empty()), "{file}: {found:?}");
    found
}

#[test]
fn each_outcome_is_in_the_table_and_nothing_else() {
    let text = std::fs::read_to_string(root().join("docs/operation.md")).expect("text");
    let table = text.split("## Read the outcome of a request\n").nth(1).expect("the section");
    let table = table.split("\n## ").next().expect("its end");
    let rows: Vec<&str> = table.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next()).collect();
    let source = std::fs::read_to_string(root().join("src/telemetry/outcome.rs")).expect("text");
    let listed_in = |list: &str| -> Vec<String> {
        let list = source.split(&format!("const {list}: [&str; ")).nth(1).expect("the list").split("];").next();
        list.expect("its end").split('"').skip(1).step_by(2).map(str::to_owned).collect()
    };
    let of_tokens = listed_in("TOKEN_OUTCOMES");
    let listed: BTreeSet<_> = of_tokens.iter().cloned().chain(listed_in("OTHER_OUTCOMES")).collect();
    let described: BTreeSet<_> = rows[1..].iter().map(|name| (*name).to_owned()).collect();
    assert_eq!(described, listed, "docs/operation.md has another table than the program");
    assert_eq!(described.len(), rows.len() - 1, "docs/operation.md has an outcome twice");
    let mut reasons = outcomes_in("src/auth/rejection.rs");
    reasons.push("accepted".to_owned());
    assert_eq!(BTreeSet::from_iter(reasons), BTreeSet::from_iter(of_tokens), "the metrics have other outcomes");
    for file in ["src/http/refusal.rs", "src/websocket/close_reason.rs"] {
        for name in outcomes_in(file) {
            // The refusal of an expired token is counted as `expired`, and one over a limit as what its token is.
            let is_code = ["token_expired", "too_many_failures"].contains(&name.as_str());
            assert!(is_code || rows.contains(&name.as_str()), "{file}: {name} is not in docs/operation.md");
        }
    }
}

/// Returns the anchor of a heading as GitHub forms it.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().to_lowercase();
    kept.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_')).collect::<String>().replace(' ', "-")
}

/// Returns the anchors of a page. A comment in a block of code is no heading.
fn anchors(page: &str) -> Vec<String> {
    let mut is_code = false;
    let mut found = Vec::new();
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            is_code = !is_code;
        } else if !is_code && let Some(heading) = line.strip_prefix('#') {
            found.push(anchor(heading.trim_start_matches('#')));
        }
    }
    found
}

/// Checks a link in a file: the page exists, and has the heading.
fn follow(from: &Path, link: &str, target: &Path, heading: &str) {
    assert!(target.exists(), "{}: {link}", from.display());
    if !heading.is_empty() {
        let page = std::fs::read_to_string(target).expect("text");
        assert!(anchors(&page).iter().any(|found| found == heading), "{}: {link}", from.display());
    }
}

#[test]
fn links_lead_somewhere() {
    let mut count = 0;
    let others =
        ["CHANGELOG.md", "SECURITY.md", "packages/client/README.md"].map(|name| (root().join(name), read(name)));
    for (path, text) in documents().into_iter().chain(others) {
        for link in text.split("](").skip(1).filter_map(|rest| rest.split(')').next()) {
            // The latter is a page of the site that shows the repository.
            if link.contains("://") || link == "../../security/advisories/new" {
                continue;
            }
            let (file, heading) = link.split_once('#').unwrap_or((link, ""));
            let target = if file.is_empty() { path.clone() } else { path.parent().expect("a folder").join(file) };
            follow(&path, link, &target, heading);
            count += 1;
        }
    }
    assert!(count > 300, "{count}");
}

#[test]
fn the_pages_that_the_program_and_its_files_name_exist() {
    let mut sources = vec![root().join("config.example.yaml"), root().join("Cargo.toml")];
    for (folder, extension) in
        [("src", "rs"), ("tests", "rs"), ("deploy", "yaml"), ("deploy", "tf"), ("packages", "ts")]
    {
        files(&root().join(folder), extension, &mut sources);
    }
    let mut count = 0;
    for source in sources {
        let text = std::fs::read_to_string(&source).expect("text");
        for rest in text.split("docs/").skip(1) {
            let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '/' | '.' | '-' | '#');
            let link = rest.split(|c| !is_part(c)).next().unwrap_or_default();
            let Some((page, heading)) = link.split_once(".md") else { continue };
            let heading = heading.strip_prefix('#').unwrap_or_default().trim_end_matches('.');
            follow(&source, link, &root().join(format!("docs/{page}.md")), heading);
            count += 1;
        }
    }
    assert!(count > 50, "{count}");
}

#[test]
fn the_messages_that_are_explained_are_the_ones_that_are_said() {
    let mut sources = Vec::new();
    files(&root().join("src"), "rs", &mut sources);
    let said: String = sources.iter().map(|path| std::fs::read_to_string(path).expect("text")).collect();
    let text = std::fs::read_to_string(root().join("docs/troubleshooting.md")).expect("text");
    let mut count = 0;
    for row in text.lines().filter(|line| line.starts_with("| ")) {
        let cell = row.trim_start_matches("| ").split(" |").next().expect("a cell");
        for message in cell.split('`').skip(1).step_by(2).filter(|message| message.contains(' ')) {
            assert!(said.contains(message), "nobody says: {message}");
            count += 1;
        }
    }
    assert!(count > 30, "{count}");
}

/// Returns the crates in the first cells of the table rows of a text.
fn crates_of_rows(text: &str) -> Vec<&str> {
    let cells = text.lines().filter_map(|line| line.strip_prefix("| `")?.split(" | ").next());
    cells.flat_map(|cell| cell.split('`').filter(|part| !part.trim_matches([',', ' ']).is_empty())).collect()
}

#[test]
fn every_dependency_has_a_row_that_says_why_it_is_there() {
    let (manifest, lock, page) = (read("Cargo.toml"), read("Cargo.lock"), read("docs/dependencies.md"));
    let mut is_table_of_crates = false;
    let mut direct = Vec::new();
    for line in manifest.lines() {
        if line.starts_with('[') {
            is_table_of_crates = line.ends_with("dependencies]");
        } else if is_table_of_crates && let Some((name, _)) = line.split_once(" = ") {
            direct.push(name);
        }
    }
    // A crate of the program may be named once more, with a feature for the tests.
    direct.sort_unstable();
    direct.dedup();
    assert!(direct.len() > 30, "they are found: {direct:?}");

    let (direct_rows, indirect_rows) = page.split_once("## What comes with them").expect("both parts");
    let mut rows = crates_of_rows(direct_rows);
    rows.sort_unstable();
    assert_eq!(rows, direct, "docs/dependencies.md has one row for each dependency in Cargo.toml");
    for name in crates_of_rows(indirect_rows) {
        assert!(lock.contains(&format!("name = \"{name}\"\n")), "{name} is not a dependency any more; remove its row");
        assert!(!direct.contains(&name), "{name} is in Cargo.toml, so its row belongs into a table above");
    }
}
