//! The HTTP client for requests to providers: follows no redirects, uses no proxy from the environment, sends no
//! header of any client, and limits time and size. `keys` and `remote` choose the URL and interpret the response.

use std::time::Duration;

use crate::config::Time;
use crate::policy::CertificateAuthority;

/// The timeout for opening a connection.
const CONNECT: Duration = Duration::from_secs(3);
/// The time that an idle connection is kept open.
const IDLE: Duration = Duration::from_secs(20);

/// Creates a client that keeps at most `idle` idle connections.
///
/// # Errors
/// Returns the reason why the client could not be created, for the log.
pub(super) fn client(
    authority: Option<&CertificateAuthority>,
    timeout: Duration,
    idle: usize,
) -> Result<reqwest::Client, String> {
    // A simulated provider is asked without a connection, and reading the system's certificate authorities takes longer
    // than all of a simulated connection.
    #[cfg(test)]
    if crate::simulation::unix_millis().is_some() {
        thread_local! {
            static CLIENT: reqwest::Client = reqwest::Client::new();
        }
        return Ok(CLIENT.with(Clone::clone));
    }
    let mut builder = reqwest::Client::builder()
        .redirect(reqwest::redirect::Policy::none())
        .no_proxy()
        .timeout(timeout)
        .connect_timeout(CONNECT.min(timeout))
        .pool_max_idle_per_host(idle)
        .pool_idle_timeout(IDLE)
        .user_agent(concat!("vestibule/", env!("CARGO_PKG_VERSION")));
    if let Some(CertificateAuthority { file, pem }) = authority {
        let unusable = |error: reqwest::Error| format!("{}: {error}", file.display());
        for certificate in reqwest::Certificate::from_pem_bundle(pem).map_err(unusable)? {
            builder = builder.add_root_certificate(certificate);
        }
    }
    builder.build().map_err(|error| error.to_string())
}

/// Reads the whole body, or returns `None` when it is longer than `limit`.
///
/// # Errors
/// Returns an error when the connection failed or timed out.
pub(super) async fn body(mut response: reqwest::Response, limit: usize) -> Result<Option<Vec<u8>>, reqwest::Error> {
    let mut body = Vec::new();
    while let Some(chunk) = response.chunk().await? {
        if body.len() + chunk.len() > limit {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body))
}

/// Formats an error by its innermost cause, which is what an operator needs: `connection refused`, `certificate
/// expired`.
pub(super) fn reason(error: &reqwest::Error, timeout: Duration) -> String {
    if error.is_timeout() {
        return format!("no answer within {}", Time(timeout));
    }
    let mut cause: &dyn std::error::Error = error;
    while let Some(source) = cause.source() {
        cause = source;
    }
    cause.to_string()
}
