//! Tests with real WebSocket clients, each the published package with its default options and its own reconnect,
//! through the built program to an upstream without token checks. The tests themselves are the `.mjs` files in this
//! folder.
//!
//! The packages are installed once into `target/clients`, those of Python into `target/clients/python`. On a machine
//! without `npm` these tests say so and pass, except where `CI` is set.

#![allow(clippy::missing_docs_in_private_items, reason = "modules of one test program")]
#![allow(clippy::expect_used, reason = "in a test a failed expectation is the answer")]
#![allow(clippy::print_stderr)]

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// Returns the folder of the packages and the tests; `None` on a machine without Node.js.
fn folder() -> Option<&'static Path> {
    static FOLDER: OnceLock<Option<PathBuf>> = OnceLock::new();
    FOLDER
        .get_or_init(|| {
            let there = Command::new("npm").arg("--version").output().is_ok_and(|output| output.status.success());
            if !there {
                assert!(std::env::var_os("CI").is_none(), "npm is needed for the tests with real clients");
                eprintln!("skipped: these tests need npm");
                return None;
            }
            Some(installed())
        })
        .as_deref()
}

fn installed() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let (source, folder) = (root.join("tests/clients"), root.join("target/clients"));
    std::fs::create_dir_all(&folder).expect("folder");
    for entry in std::fs::read_dir(&source).expect("tests") {
        let path = entry.expect("entry").path();
        if path.extension().is_some_and(|extension| extension == "mjs") {
            std::fs::copy(&path, folder.join(path.file_name().expect("a name"))).expect("copied");
        }
    }
    // The file is copied as the program serves it, next to a package that declares itself a module.
    std::fs::copy(root.join("src/browser/client.js"), folder.join("client.js")).expect("copied");
    let wanted = std::fs::read_to_string(source.join("package.json")).expect("package.json");
    let marker = folder.join("installed.txt");
    if std::fs::read_to_string(&marker).is_ok_and(|installed| installed == wanted) {
        return folder;
    }
    std::fs::write(folder.join("package.json"), &wanted).expect("written");
    let output = Command::new("npm")
        .args(["install", "--no-audit", "--no-fund", "--ignore-scripts"])
        .current_dir(&folder)
        .output()
        .expect("npm runs");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    std::fs::write(&marker, wanted).expect("written");
    folder
}

/// Returns the Python of an environment with `requirements.txt`; `None` if it cannot be made.
fn python() -> Option<&'static Path> {
    static PYTHON: OnceLock<Option<PathBuf>> = OnceLock::new();
    PYTHON
        .get_or_init(|| {
            let installed = install_python();
            if let Err(error) = &installed {
                assert!(
                    std::env::var_os("CI").is_none(),
                    "tests/clients/requirements.txt cannot be installed: {error}"
                );
                eprintln!("skipped: tests/clients/requirements.txt cannot be installed: {error}");
            }
            installed.ok()
        })
        .as_deref()
}

fn install_python() -> Result<PathBuf, String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let requirements = root.join("tests/clients/requirements.txt");
    let folder = root.join("target/clients/python");
    let python = folder.join("bin/python");
    let wanted = std::fs::read_to_string(&requirements).expect("requirements");
    let marker = folder.join("installed.txt");
    if std::fs::read_to_string(&marker).is_ok_and(|installed| installed == wanted) {
        return Ok(python);
    }
    let run = |command: &mut Command| {
        let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
        let errors = String::from_utf8_lossy(&output.stderr);
        if output.status.success() { Ok(()) } else { Err(format!("{command:?}: {errors}")) }
    };
    run(Command::new("python3").args(["-m", "venv"]).arg(&folder))?;
    run(Command::new(&python).args(["-m", "pip", "install", "--quiet", "--requirement"]).arg(&requirements))?;
    std::fs::write(&marker, wanted).expect("written");
    Ok(python)
}

fn passes(file: &str) {
    passes_with(file, &[]);
}

fn passes_with(file: &str, variables: &[(&str, &Path)]) {
    let Some(folder) = folder() else { return };
    let output = Command::new("node")
        // Connections that a failed test leaves open do not keep the process running.
        .args(["--test", "--test-force-exit", "--test-timeout=300000", file])
        .current_dir(folder)
        .env("VESTIBULE", env!("CARGO_BIN_EXE_vestibule"))
        .env("ROOT", env!("CARGO_MANIFEST_DIR"))
        .env("EXAMPLES", concat!(env!("CARGO_MANIFEST_DIR"), "/docs/dialects"))
        .envs(variables.iter().copied())
        .output()
        .expect("node runs");
    assert!(output.status.success(), "{file}: {}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn graphql_ws() {
    passes("graphql_ws.test.mjs");
}

#[test]
fn our_own() {
    passes("client.test.mjs");
}

#[test]
fn our_own_sockets_on_a_clock_of_the_test() {
    passes("client_sockets.test.mjs");
}

#[test]
fn our_own_as_a_package_and_with_types() {
    passes("package.test.mjs");
}

/// Returns the path of a browser: `CHROMIUM`, or the system's.
fn chromium() -> Option<PathBuf> {
    let named = std::env::var_os("CHROMIUM").map(PathBuf::from);
    let found = named.or_else(|| {
        ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"]
            .map(PathBuf::from)
            .into_iter()
            .find(|path| path.exists())
    });
    if found.is_none() {
        assert!(std::env::var_os("CI").is_none(), "Chromium is needed for the tests with a real browser");
        eprintln!("skipped: these tests need Chromium");
    }
    found
}

#[test]
fn a_real_browser() {
    let Some(chromium) = chromium() else { return };
    passes_with("browser.test.mjs", &[("CHROMIUM", chromium.as_path())]);
}

#[test]
fn sign_in_at_a_real_provider() {
    let Some(chromium) = chromium() else { return };
    passes_with("sign_in.test.mjs", &[("CHROMIUM", chromium.as_path())]);
}

#[test]
fn the_pages_of_sign_in() {
    let Some(chromium) = chromium() else { return };
    passes_with("sign_in_pages.test.mjs", &[("CHROMIUM", chromium.as_path())]);
}

#[test]
fn sign_in_at_a_provider_of_another_make() {
    let (Some(chromium), Some(python)) = (chromium(), python()) else { return };
    passes_with("canaille.test.mjs", &[("CHROMIUM", chromium.as_path()), ("PYTHON", python)]);
}

#[test]
fn jupyterlab_with_sign_in() {
    let (Some(chromium), Some(python)) = (chromium(), python()) else { return };
    passes_with("jupyterlab.test.mjs", &[("CHROMIUM", chromium.as_path()), ("PYTHON", python)]);
}

#[test]
fn front_ends_that_people_have() {
    let Some(chromium) = chromium() else { return };
    passes_with("front_ends.test.mjs", &[("CHROMIUM", chromium.as_path())]);
}

#[test]
fn centrifuge() {
    passes("centrifuge.test.mjs");
}

#[test]
fn phoenix_and_supabase_realtime() {
    passes("phoenix.test.mjs");
}

#[test]
fn home_assistant() {
    passes("home_assistant.test.mjs");
}

#[test]
fn mcp_from_discovery_to_a_tool_call() {
    passes("mcp.test.mjs");
}

#[test]
fn socket_io() {
    passes("socket_io.test.mjs");
}
