//! What leaves this process toward a provider: no redirects, no proxies from the environment, no header of
//! any client, bounded in time and size. Where it goes, and what the answer means, is `keys`' and `remote`'s.

use std::time::Duration;

use crate::config::Time;
use crate::policy::CertificateAuthority;

/// Until a connection stands.
const CONNECT: Duration = Duration::from_secs(3);
/// How long a connection is kept for the next question.
const IDLE: Duration = Duration::from_secs(20);

/// A client that keeps at most `idle` unused connections.
///
/// # Errors
/// Why it could not be made, for the log.
pub(super) fn client(
    authority: Option<&CertificateAuthority>,
    timeout: Duration,
    idle: usize,
) -> Result<reqwest::Client, String> {
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

/// The whole body, or `None` when it is longer than `limit`.
///
/// # Errors
/// When it broke off or took too long.
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

/// The innermost cause says what an operator needs: `connection refused`, `certificate expired`.
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
