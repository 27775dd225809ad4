//! Tests of `vestibule token`, and of the errors about a wrong command line.

use std::io::Write as _;
use std::process::{Output, Stdio};

use crate::support::backend::Backend;
use crate::support::client::{bearer, get};
use crate::support::issuer::{Issuer, Mood};
use crate::support::proxy::{TempFile, command};

struct State(std::path::PathBuf);

impl State {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("vestibule-state-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).expect("folder");
        Self(path)
    }
}

impl Drop for State {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

fn run(state: &State, arguments: &[&str], input: &str) -> Output {
    let mut child = command()
        .args(arguments)
        .env("XDG_STATE_HOME", &state.0)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("starts");
    child.stdin.take().expect("piped").write_all(input.as_bytes()).expect("written");
    child.wait_with_output().expect("ends")
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

#[test]
fn minted_tokens_are_accepted_by_insecure_dev_and_by_nothing_else() {
    use std::os::unix::fs::PermissionsExt as _;
    let state = State::new("mint");
    let minted = run(&state, &["token", "mint", "--user", "alice", "--claim", "role=admin", "--claim", "level=3"], "");
    assert!(minted.status.success(), "{minted:?}");
    let token = stdout(&minted).trim().to_owned();
    let key = state.0.join("vestibule/dev-key");
    assert_eq!(std::fs::metadata(&key).expect("key").permissions().mode() & 0o777, 0o600);
    let file = TempFile::new(
        "upstream: http://127.0.0.1:1\nproviders: [{ issuer: https://i.example.invalid, audience: api }]\n",
    );
    let accepted = run(&state, &["token", "inspect", "--insecure-dev", "--config", file.path()], &token);
    let text = stdout(&accepted);
    assert!(accepted.status.success(), "{text}");
    assert!(text.contains("accepted: user alice of provider dev") && text.contains("\"level\": 3"), "{text}");
    let refused = run(&state, &["token", "inspect", "--config", file.path()], &token);
    assert_eq!(refused.status.code(), Some(1));
    assert!(stdout(&refused).contains("is not a configured provider"), "{}", stdout(&refused));
    // A second mint uses the same key.
    assert_eq!(std::fs::read(&key).expect("key").len(), {
        run(&state, &["token", "mint", "--user", "bob"], "");
        std::fs::read(&key).expect("key").len()
    });
    let everyone = run(&state, &["run", "--insecure-dev", "--listen", ":8080", "--config", file.path()], "");
    assert_eq!(everyone.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&everyone.stderr).contains("listen on 127.0.0.1 only"));
}

#[test]
fn first_uses_at_once_have_one_development_key() {
    let state = State::new("first");
    let mint = |user: &str| {
        let mut mint = command();
        mint.args(["token", "mint", "--user", user]).env("XDG_STATE_HOME", &state.0);
        mint.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("starts")
    };
    let minting: Vec<_> = (0..8).map(|number| mint(&format!("user-{number}"))).collect();
    let file = TempFile::new(
        "upstream: http://127.0.0.1:1\nproviders: [{ issuer: https://i.example.invalid, audience: api }]\n",
    );
    for child in minting {
        let minted = child.wait_with_output().expect("ends");
        assert!(minted.status.success(), "{minted:?}");
        let arguments = ["token", "inspect", "--insecure-dev", "--config", file.path()];
        let inspected = run(&state, &arguments, stdout(&minted).trim());
        assert!(inspected.status.success(), "{}", stdout(&inspected));
    }
    let folder = std::fs::read_dir(state.0.join("vestibule")).expect("a folder");
    let mut files: Vec<_> = folder.map(|file| file.expect("a file").file_name()).collect();
    files.sort_unstable();
    assert_eq!(files, ["dev-key", "dev-key.pub.pem"], "nothing else is left");
}

#[test]
fn the_file_of_the_development_key_is_written_once_so_that_no_process_reloads_for_it() {
    let state = State::new("written-once");
    let mint = || assert!(run(&state, &["token", "mint", "--user", "alice"], "").status.success());
    mint();
    let public = state.0.join("vestibule/dev-key.pub.pem");
    let file = std::fs::File::options().write(true).open(&public).expect("the public key");
    file.set_modified(std::time::UNIX_EPOCH).expect("set");
    mint();
    let modified = std::fs::metadata(&public).expect("the public key").modified().expect("a time");
    assert_eq!(modified, std::time::UNIX_EPOCH);
    std::fs::write(&public, "damaged").expect("written");
    mint();
    assert!(std::fs::read_to_string(&public).expect("the public key").starts_with("-----BEGIN PUBLIC KEY-----"));
}

#[test]
fn a_published_secret_is_taken_by_insecure_dev_and_by_nothing_else() {
    let state = State::new("published");
    let file = TempFile::new(
        "upstream: http://127.0.0.1:1\nproviders: [{ preset: shared-secret, issuer: local, audience: authenticated, secret: super-secret-jwt-token-with-at-least-32-characters-long }]\n",
    );
    // A configuration that is taken refuses the token, another one is no configuration.
    let taken = run(&state, &["token", "inspect", "--insecure-dev", "--config", file.path()], "garbage");
    assert_eq!(taken.status.code(), Some(1), "{taken:?}");
    let refused = run(&state, &["token", "inspect", "--config", file.path()], "garbage");
    assert_eq!(refused.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&refused.stderr).contains("is published in documentation"), "{refused:?}");
    let everyone = run(&state, &["run", "--insecure-dev", "--listen", ":8080", "--config", file.path()], "");
    assert_eq!(everyone.status.code(), Some(2));
}

#[tokio::test]
async fn inspect_says_step_by_step_and_never_prints_the_token_or_its_signature() {
    let state = State::new("inspect");
    let (backend, issuer) = (Backend::start().await, Issuer::start().await);
    let file = TempFile::new(&format!("upstream: {}\nproviders: [{}]\n", backend.url(), issuer.provider()));
    let good = issuer.token("alice");
    let mut forged = good.clone();
    forged.replace_range(good.len() - 8..good.len() - 4, "AAAA");
    for (token, code, last) in [
        (good.clone(), 0, "accepted: user alice of provider oidc"),
        (format!("Bearer {good}\n"), 0, "accepted: user alice"),
        (issuer.expired("alice"), 1, "refused: expired "),
        (forged, 1, "refused: the signature does not verify"),
        ("opaque".to_owned(), 1, "refused: not a JWT, which has three parts separated by dots; is it an opaque token?"),
        (String::new(), 1, "refused: this cannot be a token: nothing was read"),
    ] {
        let path = file.path().to_owned();
        let (state, input) = (State(state.0.clone()), token.clone());
        let output = tokio::task::spawn_blocking(move || {
            let output = run(&state, &["token", "inspect", "--config", &path], &input);
            std::mem::forget(state);
            output
        })
        .await
        .expect("ran");
        let text = format!("{}{}", stdout(&output), String::from_utf8_lossy(&output.stderr));
        assert_eq!(output.status.code(), Some(code), "{text}");
        assert!(text.contains(last), "{last}: {text}");
        for part in token.trim().split('.').filter(|part| part.len() > 20) {
            assert!(!text.contains(part), "{text}");
        }
    }
}

#[test]
fn an_argument_that_may_be_a_secret_is_never_repeated() {
    const SECRETS: [&str; 3] = [
        "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJlLXRoYXQtaXMtbG9uZy1lbm91Z2gtdG8tYmUtb25l",
        "sk_live_4eC39HqLyjWDarjtT1",
        "Bearer eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJhbGljZSJ9.c2ln",
    ];
    let state = State::new("repeated");
    let long = format!("{}{}", SECRETS[0], "x".repeat(400));
    for secret in SECRETS.iter().copied().chain([long.as_str()]) {
        for arguments in [
            &["token", "inspect", secret][..],
            &["token", "inspect", "token.txt", secret],
            &["token", "inspect", "--token", secret],
            &["token", "mint", secret],
            &["token", "mint", "--user", "a", "--claim", secret],
            &["token", "mint", "--user", "a", "--ttl", secret],
            &["revoke", secret],
            &["check", "--config", secret],
            &[
                "doctor",
                "--token-file",
                secret,
                "--upstream",
                "http://127.0.0.1:1",
                "--issuer",
                "https://i.example",
                "--audience",
                "a",
            ],
            &[secret],
        ] {
            let output = run(&state, arguments, "");
            let said = format!("{}{}", stdout(&output), String::from_utf8_lossy(&output.stderr));
            assert_eq!(output.status.code(), Some(2), "{arguments:?}: {said}");
            assert!(!said.contains(secret.trim_start_matches("Bearer ")), "{arguments:?}: {said}");
        }
    }
    let inspected = run(&state, &["token", "inspect", &long], "");
    let said = String::from_utf8_lossy(&inspected.stderr).into_owned();
    assert!(said.contains("give the token in a file or on standard input, not as an argument"), "{said}");
    // Words that are no secret are repeated, with the one that was meant.
    let misspelt = run(&state, &["chekc"], "");
    assert!(String::from_utf8_lossy(&misspelt.stderr).contains("'chekc'"), "{misspelt:?}");
}

#[test]
fn a_secret_in_place_of_a_files_name_is_not_repeated() {
    const SECRET: &str = "kF3x9dks0aBcDeFgHiJkLmNoPqRsTuVw";
    let state = State::new("in-place");
    let provider = format!("providers: [{{ preset: shared-secret, secret_file: \"{SECRET}\" }}]\n");
    for (yaml, place) in [
        (format!("upstream: http://127.0.0.1:1\n{provider}"), ":2:51 providers[0].secret_file: (not shown: "),
        (format!("upstream: \"http://me:{SECRET} @app:1\"\n"), ":1:11 upstream: has a user or password in it"),
        (format!("upstream: me:{SECRET}@app:1\n"), ":1:11 upstream: has a user or password in it"),
        (
            format!(
                "upstream: http://127.0.0.1:1\nproviders: [{{ issuer: https://i.example, audience: a }}]\nshared: \":{SECRET}@cache:6379\"\n"
            ),
            ":3:9 shared: \"cache:6379\" has no scheme",
        ),
    ] {
        let file = TempFile::new(&yaml);
        let output = run(&state, &["check", "--config", file.path()], "");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains(place) && !said.contains(SECRET), "{place}: {said}");
    }
    let yaml = format!("listen: \":8080\"\nupstream: http://127.0.0.1:1\n{provider}");
    let output = run(&state, &["check", "--config", &yaml], "");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("the YAML itself goes into VESTIBULE_CONFIG_YAML") && !said.contains(SECRET), "{said}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_authorized_party_that_is_refused_is_named_with_the_accepted_ones() {
    let issuer = Issuer::start().await;
    for (more, claims, expected) in [
        (
            ", authorized_parties: [spa, app]",
            r#"{"azp": "other"}"#,
            "refused: azp \"other\" is not in authorized_parties (spa, app)",
        ),
        (
            ", authorized_parties: [spa, app]",
            "{}",
            "refused: azp is missing; it must be in authorized_parties (spa, app)",
        ),
        (
            ", preset: clerk",
            r#"{"azp": "https://x.example"}"#,
            "refused: azp \"https://x.example\" is not in origins (https://app.example.com)",
        ),
    ] {
        let token = issuer.token_with("alice", serde_json::from_str(claims).expect("JSON"));
        let provider = issuer.provider().replace("preset: oidc, ", "").replace(" }", &format!("{more} }}"));
        let file = TempFile::new(&format!(
            "upstream: http://127.0.0.1:1\norigins: [https://app.example.com]\nproviders: [{provider}]\n"
        ));
        let said = tokio::task::spawn_blocking(move || {
            let state = State::new("azp");
            let output = run(&state, &["token", "inspect", "--config", file.path()], &token);
            format!("{}{}", stdout(&output), String::from_utf8_lossy(&output.stderr))
        });
        let said = said.await.expect("ran");
        assert!(said.contains(expected), "{expected}: {said}");
    }
}

#[test]
fn usage_errors_exit_2_and_help_has_examples() {
    let state = State::new("usage");
    assert_eq!(run(&state, &["--nonsense"], "").status.code(), Some(2));
    let missing = run(&state, &["run", "--config", "/nowhere/vestibule.yaml"], "");
    assert_eq!(missing.status.code(), Some(2));
    let text = String::from_utf8_lossy(&missing.stderr).into_owned();
    assert!(text.contains("/nowhere/vestibule.yaml") && text.contains("cannot be read"), "{text}");
    let help = stdout(&run(&state, &["--help"], ""));
    assert!(help.contains("Examples:") && help.contains("vestibule demo"), "{help}");
}

/// Every command's arguments, as `--help` is asked of it.
const COMMANDS: [&[&str]; 12] = [
    &[],
    &["run"],
    &["demo"],
    &["check"],
    &["healthcheck"],
    &["doctor"],
    &["token"],
    &["token", "mint"],
    &["token", "inspect"],
    &["token", "assertion-key"],
    &["schema"],
    &["completions"],
];

fn help_of(arguments: &[&str]) -> String {
    let output = command().args(arguments).arg("--help").output().expect("runs");
    assert!(output.status.success(), "{output:?}");
    stdout(&output)
}

#[test]
fn help_is_plain_text_of_which_no_terminal_breaks_an_example() {
    for arguments in COMMANDS {
        let help = help_of(arguments);
        assert!(!help.contains("`VESTIBULE") && !help.contains("<http"), "{help}");
        let examples = help.lines().skip_while(|line| *line != "Examples:");
        for line in examples {
            assert!(line.chars().count() < 80, "{line}");
        }
    }
}

#[test]
fn the_settings_of_the_configuration_are_listed_by_run_alone_and_taken_by_all() {
    for setting in ["--listen", "--upstream <", "--upstream-preset", "--issuer", "--log-format"] {
        for arguments in COMMANDS {
            let expected = match arguments {
                ["run"] => true,
                ["demo"] => !matches!(setting, "--issuer" | "--log-format"),
                _ => false,
            };
            let options = help_of(arguments);
            let options = options.split_once("Options:").expect("options").1;
            let options = options.split("Examples:").next().expect("options");
            assert_eq!(options.contains(setting), expected, "{arguments:?} {setting}: {options}");
        }
    }
    let preset = ["check", "--upstream", "http://127.0.0.1:8888", "--upstream-preset", "jupyter"];
    let provider = ["--issuer", "https://issuer.example.com", "--audience", "api"];
    let checked = command().args(preset).args(provider).output().expect("runs");
    assert!(stdout(&checked).contains("jupyter lab"), "{checked:?}");
    let misspelt = command()
        .args(["check", "--upstream", "http://127.0.0.1:1", "--upstream-preset", "jupiter"])
        .args(provider)
        .output()
        .expect("runs");
    let said = String::from_utf8_lossy(&misspelt.stderr).into_owned();
    assert!(said.contains("--upstream-preset upstream.preset: \"jupiter\""), "{said}");
}

#[test]
fn help_is_a_command_too() {
    let asked = |arguments: &[&str]| stdout(&command().args(arguments).output().expect("runs"));
    assert_eq!(asked(&["help"]), asked(&["--help"]));
    assert_eq!(asked(&["help", "run"]), asked(&["run", "--help"]));
}

#[test]
fn the_examples_of_the_help_run_when_pasted_into_a_shell() {
    let folder = State::new("examples");
    let mut count = 0;
    for arguments in COMMANDS {
        let help = help_of(arguments);
        let Some((_, examples)) = help.split_once("Examples:\n") else { continue };
        let examples = examples.split("\n\n").next().expect("a block");
        // Each command is parsed in full, and then prints its help instead of running.
        let script = format!(
            "set -eu -o pipefail\nvestibule() {{ \"$PROGRAM\" \"$@\" --help; }}\nkubectl() {{ :; }}\ncurl() {{ :; }}\npbpaste() {{ :; }}\ncat() {{ :; }}\n{examples}\n"
        );
        for path in [".local/share/bash-completion/completions", ".zfunc", ".config/fish/completions"] {
            std::fs::create_dir_all(folder.0.join(path)).expect("folder");
        }
        let output = std::process::Command::new("bash")
            .args(["-c", &script])
            .env("PROGRAM", command().get_program())
            .env("HOME", &folder.0)
            .current_dir(&folder.0)
            .output()
            .expect("bash");
        assert!(output.status.success() && output.stderr.is_empty(), "{arguments:?}: {output:?}\n{examples}");
        count += examples.matches("vestibule ").count();
    }
    assert!(count > 20, "{count}");
}

#[test]
fn a_reader_that_goes_early_is_no_error() {
    let file = TempFile::new("upstream: http://127.0.0.1:1\nproviders: [{ issuer: https://i.example, audience: a }]\n");
    let state = State::new("pipe");
    for arguments in
        ["check", "doctor", "schema", "schema --markdown", "completions bash", "token mint --user a", "help"]
    {
        let (reader, writer) = std::io::pipe().expect("a pipe");
        drop(reader);
        let mut command = command();
        command.args(arguments.split(' ')).env("XDG_STATE_HOME", &state.0).stdout(writer).stderr(Stdio::piped());
        if matches!(arguments, "check" | "doctor") {
            command.args(["--config", file.path()]);
        }
        let output = command.spawn().and_then(std::process::Child::wait_with_output).expect("ends");
        assert_eq!(String::from_utf8_lossy(&output.stderr), "", "{arguments}");
        assert_eq!(output.status.code(), Some(i32::from(arguments == "doctor")), "{arguments}");
    }
}

#[test]
fn a_full_disk_is_said_and_exits_1() {
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("/dev/full");
    let output = command().arg("schema").stdout(full).stderr(Stdio::piped()).output().expect("runs");
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).starts_with("standard output: "), "{output:?}");
}

#[tokio::test]
async fn a_taken_port_says_so_and_exits_1() {
    let state = State::new("port");
    let taken = Backend::start().await;
    let file = TempFile::new(&format!(
        "listen: {}\nupstream: http://127.0.0.1:1\nproviders: [{{ preset: shared-secret, secret: 0123456789abcdef0123456789abcdeX }}]\n",
        taken.address()
    ));
    let output = run(&state, &["run", "--config", file.path()], "");
    assert_eq!(output.status.code(), Some(1));
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(text.contains("another program listens there"), "{text}");
}

#[tokio::test]
async fn the_demo_answers_as_its_welcome_says_and_moves_off_a_taken_port() {
    use std::io::{BufRead as _, BufReader};
    let taken = Backend::start().await;
    let mut child = command()
        .args(["demo", "--listen", &taken.address().to_string()])
        .stdout(Stdio::piped())
        .spawn()
        .expect("starts");
    let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
    let mut next = |wanted: &str| {
        let line = lines.by_ref().find(|line| line.contains(wanted)).expect("a line");
        line.split_once(wanted).expect("found").1.trim().to_owned()
    };
    let url = next("Open");
    let token = next("TOKEN=");
    // The lines that need it come after it.
    assert!(next("curl -i ").starts_with(&url));
    let address: std::net::SocketAddr = url.strip_prefix("http://").expect("a URL").parse().expect("an address");
    assert_ne!(address, taken.address());
    let credential = bearer(&token);
    assert_eq!(get(address, "/api/whoami", &[]).await.status, 401);
    assert_eq!(get(address, "/api/whoami", &[&credential]).await.body, "alice\n");
    assert_eq!(get(address, "/api/whoami", &[&credential, "X-User-Id: bob"]).await.body, "alice\n");
    let page = get(address, "/", &[]).await;
    assert!(page.body.contains("Vestibule") && page.field("content-security-policy").is_some());
    assert_eq!(get(address, "/api/other", &[]).await.status, 401);
    crate::support::signal(&child, "INT");
    let ended = tokio::task::spawn_blocking(move || child.wait().expect("ends"));
    assert_eq!(crate::support::within("the demo to end", ended).await.expect("joined").code(), Some(0));
    let everyone = command().args(["demo", "--listen", "0.0.0.0:0"]).output().expect("runs");
    assert_eq!(everyone.status.code(), Some(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn check_online_says_what_each_provider_answers() {
    let issuer = Issuer::start().await;
    let check = |yaml: String| async move {
        let file = TempFile::new(&format!("upstream: http://127.0.0.1:1\n{yaml}"));
        let output = tokio::task::spawn_blocking(move || {
            command().args(["check", "--online", "--config", file.path()]).output().expect("runs")
        });
        let output = output.await.expect("ends");
        (output.status.code(), stdout(&output))
    };
    let (code, said) = check(format!("providers: [{}]\n", issuer.provider())).await;
    assert_eq!(code, Some(0), "{said}");
    for line in [
        "oidc: 1 usable keys, RSA",
        "oidc: names the configured issuer in its discovery document",
        "oidc: its clock agrees with this machine's",
    ] {
        assert!(said.contains(line), "{line}: {said}");
    }
    // Presets whose keys are not found by discovery are looked at all the same.
    issuer.calls_itself(&format!("{}/", issuer.url));
    for provider in [issuer.provider(), issuer.provider().replace("oidc", "auth0")] {
        let (code, said) = check(format!("providers: [{provider}]\n")).await;
        assert_eq!(code, Some(1), "{said}");
        let expected = format!("the provider calls itself \"{}/\"; write exactly that", issuer.url);
        assert_eq!(said.matches(&expected).count(), 1, "{said}");
    }
    issuer.clock_is_ahead(120);
    let (code, said) = check(format!("providers: [{}]\n", issuer.provider())).await;
    assert_eq!(code, Some(1));
    assert!(said.contains("its clock is 1") && said.contains(" s ahead of this machine's"), "{said}");
    issuer.set_mood(Mood::Html);
    let (code, said) = check(format!("providers: [{}]\n", issuer.provider())).await;
    assert_eq!(code, Some(1));
    assert!(said.contains("PROBLEM     oidc: ") && said.contains("is not an OIDC discovery document"), "{said}");
    let gone = "providers: [{ issuer: \"http://127.0.0.1:1\", audience: a }]\n".to_owned();
    let (code, said) = check(gone).await;
    assert_eq!(code, Some(1));
    assert!(said.to_lowercase().contains("connection refused"), "{said}");
}

#[test]
fn the_file_for_the_backend_is_the_last_that_check_prints() {
    // With a provider that does not answer.
    let flags = ["check", "--online", "--upstream", "http://127.0.0.1:8888", "--upstream-preset", "jupyter"];
    let output =
        command().args(flags).args(["--issuer", "http://127.0.0.1:1", "--audience", "api"]).output().expect("runs");
    let said = stdout(&output);
    assert_eq!(output.status.code(), Some(1), "{said}");
    let file = said.find("\n# jupyter_server_config.py\n").expect("the file");
    let problem = said.rfind("  PROBLEM     ").expect("a problem");
    assert!(
        problem < file
            && said
                .trim_end()
                .ends_with(std::include_str!("../../deploy/compose/jupyter/jupyter_server_config.py").trim_end()),
        "{said}"
    );
}

#[test]
fn completions_are_scripts_that_know_every_command() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let output = command().args(["completions", shell]).output().expect("runs");
        let script = stdout(&output);
        assert!(output.status.success(), "{output:?}");
        for name in ["run", "demo", "check", "healthcheck", "token", "inspect", "--insecure-dev"] {
            assert!(script.contains(name), "{shell}: {name}");
        }
    }
    let script = TempFile::new(&stdout(&command().args(["completions", "bash"]).output().expect("runs")));
    let checked = std::process::Command::new("bash").args(["-n", script.path()]).status().expect("bash");
    assert!(checked.success());
    let unknown = command().args(["completions", "tcsh"]).output().expect("runs");
    assert_eq!(unknown.status.code(), Some(2));
}

#[test]
fn the_packages_have_one_version_and_the_changelog_has_the_next_one() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let package = std::fs::read_to_string(root.join("packages/client/package.json")).expect("the npm package");
    let package: serde_json::Value = serde_json::from_str(&package).expect("json");
    assert_eq!(package["version"], env!("CARGO_PKG_VERSION"));
    let changelog = std::fs::read_to_string(root.join("CHANGELOG.md")).expect("the changelog");
    assert_eq!(changelog.matches("\n## Unreleased\n").count(), 1);
    // A kind of change twice in a section is found by nobody.
    for section in changelog.split("\n## ").skip(1) {
        let kinds: Vec<&str> = section.lines().filter_map(|line| line.strip_prefix("### ")).collect();
        let distinct: std::collections::BTreeSet<&str> = kinds.iter().copied().collect();
        assert_eq!(kinds.len(), distinct.len(), "{kinds:?}");
    }
}
