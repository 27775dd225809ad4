//! Presets of upstreams: the settings that each needs at the proxy, and its own setup as `check` prints it
//! (docs/contract.md section 8). Each is one row. The upstream keeps its own secret.

/// The preset of a known upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UpstreamPreset {
    /// The name in the configuration.
    pub name: &'static str,
    /// The path of its health check, which needs no token.
    pub health: &'static str,
    /// A path that it serves only with its own credential.
    pub guarded: &'static str,
    /// The credential that carries its own secret, in the form of the configuration.
    pub credential: &'static str,
    /// The command and settings with which it is started, as `check` prints them.
    pub setup: &'static str,
    /// The name and the text of the file that configures it; `check` prints it so that it can be pasted.
    pub file: Option<(&'static str, &'static str)>,
}

/// All presets. Each of these upstreams runs its users' code, and its page opens sockets by itself (so the credential
/// comes on the upgrade) and reconnects after 1012.
const PRESETS: [UpstreamPreset; 2] = [
    UpstreamPreset {
        name: "jupyter",
        health: "/api",
        guarded: "/api/status",
        credential: "credential: { header: Authorization, value: \"token ${JUPYTER_TOKEN}\" }",
        setup: "JUPYTER_TOKEN=… jupyter lab --no-browser --ServerApp.ip=127.0.0.1 --ServerApp.allow_remote_access=True --config jupyter_server_config.py
with the file jupyter_server_config.py that `vestibule check` prints at its end: users have their own names there, the token
is in no page, kernels cannot read it, and X-User-Id counts only beside the token",
        file: Some(("jupyter_server_config.py", include_str!("upstream_preset/jupyter_server_config.py"))),
    },
    UpstreamPreset {
        name: "marimo",
        health: "/health",
        guarded: "/api/version",
        credential: "credential: { header: Authorization, value: \"Basic ${MARIMO_BASIC}\" }, MARIMO_BASIC being base64 of vestibule:<password>",
        setup: "marimo edit --headless --host 127.0.0.1 --token-password \"$MARIMO_PASSWORD\" --proxy <the host that browsers see>",
        file: None,
    },
];

/// Returns the preset of this name.
///
/// # Errors
/// Returns a sentence with the existing names.
pub(super) fn upstream_preset(name: &str) -> Result<UpstreamPreset, String> {
    let known = || PRESETS.iter().map(|preset| preset.name);
    PRESETS.into_iter().find(|preset| preset.name == name).ok_or_else(|| {
        let meant =
            crate::config::nearest(name, known()).map_or_else(String::new, |name| format!(". Did you mean {name}?"));
        format!("\"{name}\" is not one of {}{meant}", known().collect::<Vec<_>>().join(", "))
    })
}
