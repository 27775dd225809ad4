//! Vestibule in the middle: its configuration, with everything on that is on by default, and the command that runs it.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use crate::middle::free_port;
use crate::middle::requests::{Client, get};
use crate::middle::tokens::ISSUER;
use crate::support::proxy::TempFolder;

/// Limits that the load of one address and one user does not reach.
const LIMITS: &str = "connections: 30000, connections_per_address: 30000, websockets_per_user: 30000, waiting_websockets: 30000, waiting_websockets_per_address: 30000";

/// What differs between instances.
pub(crate) struct Settings<'a> {
    /// The value of `upstream`.
    pub(crate) upstream: &'a str,
    /// The members of `providers`.
    pub(crate) providers: String,
    /// More keys of `limits`, each with a comma before it.
    pub(crate) limits: &'a str,
    /// More keys, each on a line of its own. A `listen` here replaces the usual one; `{listen}` is the address.
    pub(crate) more: &'a str,
}

/// The provider of the tokens of [`ISSUER`], as a member of `providers`.
pub(crate) fn provider(key_file: &str) -> String {
    format!("{{ preset: jwt, issuer: \"{ISSUER}\", audience: bench, jwks: {{ pem_file: \"{key_file}\" }} }}")
}

/// Returns the whole configuration of an instance. The admin listener, and so the metrics, are on.
pub(crate) fn configuration(listen: &str, settings: &Settings<'_>) -> String {
    let usual = if settings.more.contains("listen:") { String::new() } else { format!("listen: \"{listen}\"\n") };
    format!(
        "{usual}admin: {{ listen: \"127.0.0.1:{}\" }}\nupstream: {}\nproviders: [{}]\nlimits: {{ {LIMITS}{} }}\nlog: {{ format: json }}\n{}",
        free_port(),
        settings.upstream,
        settings.providers,
        settings.limits,
        settings.more.replace("{listen}", listen)
    )
}

/// Writes the configuration into a file of this folder, since a variable of the environment holds at most 128 KiB, and
/// adds the arguments to a command of the program.
pub(crate) fn run(mut command: Command, folder: &TempFolder, listen: &str, settings: &Settings<'_>) -> Command {
    let port = listen.rsplit_once(':').map_or(listen, |(_, port)| port);
    let file = folder.0.join(format!("vestibule-{port}.yaml"));
    std::fs::write(&file, configuration(listen, settings)).expect("written");
    for (name, _) in std::env::vars().filter(|(name, _)| name.starts_with("VESTIBULE_")) {
        command.env_remove(name);
    }
    command.arg("run").arg("--config").arg(file);
    command
}

/// The program that is measured: the one that cargo has built, or the one that `VESTIBULE_PROGRAM` names.
pub(crate) fn program() -> &'static Path {
    static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| named().unwrap_or_else(|| cargos().to_owned()));
    &PROGRAM
}

/// The program that cargo has built.
pub(crate) fn cargos() -> &'static Path {
    Path::new(env!("CARGO_BIN_EXE_vestibule"))
}

/// The program that `VESTIBULE_PROGRAM` names: one that deploy/build has built.
pub(crate) fn named() -> Option<PathBuf> {
    std::env::var_os("VESTIBULE_PROGRAM").map(PathBuf::from)
}

/// Waits until an instance is ready: the shared state's first copy is there.
pub(crate) async fn ready(address: &str) {
    let request = Arc::new(vec![get("/.vestibule/readyz", "")]);
    let until = Instant::now() + Duration::from_secs(20);
    let mut client = Client::connect(address, None, &request).await;
    while !client.exchange().await.is_ok_and(|(status, ..)| status == 200) {
        assert!(Instant::now() < until, "it does not become ready");
        tokio::time::sleep(Duration::from_millis(50)).await;
        client = Client::connect(address, None, &request).await;
    }
}
