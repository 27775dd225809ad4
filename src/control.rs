//! The control listener: revocations and the drain, asked for from outside.
//!
//! Owns who may ask (the mode of a Unix socket, or a token on loopback), the two endpoints and their answers. What
//! a revocation does is `auth`'s and everything that listens to the bell.

use std::convert::Infallible;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use aws_lc_rs::constant_time::verify_slices_are_equal;
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, AUTHORIZATION, CACHE_CONTROL, CONTENT_TYPE, HeaderValue, WWW_AUTHENTICATE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use serde_json::Value;
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use tokio_util::task::AbortOnDropHandle;

use crate::auth::{self, Kept, Target, now};
use crate::json;
use crate::policy::{ControlAddress, ControlSpec, Policy, Secret};
use crate::runtime::Shared;

/// Callers at once.
const CONNECTIONS: usize = 16;
/// For a whole request.
const TIME: Duration = Duration::from_secs(10);
/// No issuer and no id is longer.
const BODY_BYTES: usize = 16 << 10;
/// How long accepting rests when the system has no file descriptor left.
const REST: Duration = Duration::from_millis(100);

/// Why the control listener could not be had.
#[derive(Debug, thiserror::Error)]
#[error("control.listen: {address}: {source}")]
pub struct ControlError {
    address: String,
    source: io::Error,
}

/// Bound, not answering yet.
#[derive(Debug)]
pub struct Control {
    listener: Listener,
    token: Option<Secret>,
}

#[derive(Debug)]
enum Listener {
    Unix { listener: UnixListener, _file: SocketFile },
    Tcp(TcpListener),
}

/// A socket's file, which goes with it.
#[derive(Debug)]
struct SocketFile(PathBuf);

impl Drop for SocketFile {
    fn drop(&mut self) {
        // Gone already is as good.
        let _ = std::fs::remove_file(&self.0);
    }
}

impl Control {
    /// Binds it.
    ///
    /// # Errors
    /// When the address cannot be had.
    pub fn bind(spec: &ControlSpec) -> Result<Self, ControlError> {
        let listener = match &spec.address {
            ControlAddress::Unix(path) => {
                unix(path).map_err(|source| ControlError { address: format!("unix:{}", path.display()), source })
            }
            ControlAddress::Tcp(address) => std::net::TcpListener::bind(address)
                .and_then(|listener| {
                    listener.set_nonblocking(true)?;
                    TcpListener::from_std(listener).map(Listener::Tcp)
                })
                .map_err(|source| ControlError { address: address.to_string(), source }),
        }?;
        Ok(Self { listener, token: spec.token.clone() })
    }

    /// Answers until the handle is dropped.
    pub fn serve(self, shared: &Arc<Shared>) -> AbortOnDropHandle<()> {
        let desk = Desk { shared: Arc::clone(shared), token: self.token.map(Arc::new) };
        AbortOnDropHandle::new(tokio::spawn(accept(self.listener, desk)))
    }
}

/// Nobody connects before it listens, and it listens only once its mode is set.
fn unix(path: &Path) -> io::Result<Listener> {
    if std::fs::symlink_metadata(path).is_ok_and(|meta| meta.file_type().is_socket()) {
        // Left over from a process that was killed, or still in use?
        if std::os::unix::net::UnixStream::connect(path).is_ok() {
            return Err(io::Error::new(io::ErrorKind::AddrInUse, "another process answers there"));
        }
        std::fs::remove_file(path)?;
    }
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.bind(&SockAddr::unix(path)?)?;
    let file = SocketFile(path.to_owned());
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    socket.listen(i32::try_from(CONNECTIONS).unwrap_or(i32::MAX))?;
    socket.set_nonblocking(true)?;
    let listener = std::os::unix::net::UnixListener::from(std::os::fd::OwnedFd::from(socket));
    Ok(Listener::Unix { listener: UnixListener::from_std(listener)?, _file: file })
}

async fn accept(listener: Listener, desk: Desk) {
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        // Never closed, so there is always a permit to come.
        let Ok(permit) = Arc::clone(&room).acquire_owned().await else { return };
        let accepted = match &listener {
            Listener::Unix { listener, .. } => listener.accept().await.map(|(stream, _)| Stream::Unix(stream)),
            Listener::Tcp(listener) => listener.accept().await.map(|(stream, _)| Stream::Tcp(stream)),
        };
        let desk = desk.clone();
        match accepted {
            Ok(stream) => {
                tokio::spawn(async move {
                    match stream {
                        Stream::Unix(stream) => serve(stream, desk).await,
                        Stream::Tcp(stream) => serve(stream, desk).await,
                    }
                    drop(permit);
                });
            }
            // A full table of file descriptors needs a moment.
            Err(error) => {
                tracing::warn!("control: accepting failed, resting a moment: {error}");
                tokio::time::sleep(REST).await;
            }
        }
    }
}

enum Stream {
    Unix(tokio::net::UnixStream),
    Tcp(tokio::net::TcpStream),
}

/// One request a connection: nobody holds a place.
async fn serve(stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static, desk: Desk) {
    let service = service_fn(move |request| {
        let desk = desk.clone();
        async move { Ok::<_, Infallible>(desk.answer(request).await) }
    });
    let mut server = http1::Builder::new();
    server.timer(TokioTimer::new()).header_read_timeout(TIME).keep_alive(false).max_buf_size(BODY_BYTES);
    // A caller that is too slow or breaks off hears nothing.
    let _ = tokio::time::timeout(TIME, server.serve_connection(TokioIo::new(stream), service)).await;
}

#[derive(Clone)]
struct Desk {
    shared: Arc<Shared>,
    token: Option<Arc<Secret>>,
}

type Answer = Response<Full<Bytes>>;

impl Desk {
    async fn answer(&self, request: Request<Incoming>) -> Answer {
        if !self.may_ask(&request) {
            let mut answer = said(StatusCode::UNAUTHORIZED, "the token of control.token_file is missing or another\n");
            let challenge = HeaderValue::from_static("Bearer realm=\"vestibule control\"");
            answer.headers_mut().insert(WWW_AUTHENTICATE, challenge);
            return answer;
        }
        let (path, method) = (request.uri().path().to_owned(), request.method().clone());
        match (path.as_str(), method) {
            ("/revoke", Method::POST) => match Limited::new(request.into_body(), BODY_BYTES).collect().await {
                Ok(body) => self.revoke(body.to_bytes()).await,
                Err(_) => said(StatusCode::BAD_REQUEST, "the body is too long or broke off\n"),
            },
            ("/drain", Method::POST) => {
                tracing::info!("a drain was asked for on the control listener");
                self.shared.drain.ask();
                said(StatusCode::ACCEPTED, "draining\n")
            }
            ("/revoke" | "/drain", _) => {
                let mut answer = said(StatusCode::METHOD_NOT_ALLOWED, "POST only\n");
                answer.headers_mut().insert(ALLOW, HeaderValue::from_static("POST"));
                answer
            }
            _ => said(StatusCode::NOT_FOUND, "POST /revoke or POST /drain\n"),
        }
    }

    fn may_ask(&self, request: &Request<Incoming>) -> bool {
        let Some(token) = &self.token else { return true };
        let mut presented = request.headers().get_all(AUTHORIZATION).iter();
        let (Some(presented), None) = (presented.next(), presented.next()) else { return false };
        let value = presented.as_bytes();
        let (scheme, rest) = value.split_at(value.len().min(b"Bearer ".len()));
        scheme.eq_ignore_ascii_case(b"Bearer ") && verify_slices_are_equal(rest, token.expose()).is_ok()
    }

    async fn revoke(&self, body: Bytes) -> Answer {
        let policy = &self.shared.current().policy;
        let (issuer, target) = match read(&body, policy) {
            Ok(read) => read,
            Err(problem) => return said(StatusCode::BAD_REQUEST, &format!("{problem}; nothing was revoked\n")),
        };
        let Some(keep) = policy.control.as_ref().map(|control| control.revocation_keep) else {
            return said(StatusCode::NOT_FOUND, "control is switched off\n");
        };
        let limit = policy.limits.revocations;
        let (shared, shown) = (Arc::clone(&self.shared), target.clone());
        let said_issuer = issuer.clone();
        // It may write and sync a file.
        let revoked =
            tokio::task::spawn_blocking(move || shared.revocations.revoke(&issuer, &target, now(), keep, limit)).await;
        match revoked {
            Ok(Ok(kept)) => {
                self.shared.bell.ring();
                tracing::info!(issuer = %said_issuer, "revoked: {shown:?}");
                match kept {
                    Kept::AsConfigured => {
                        let mut answer = Response::new(Full::default());
                        *answer.status_mut() = StatusCode::NO_CONTENT;
                        answer
                    }
                    Kept::NotInFile(error) => {
                        tracing::error!("control.revocation_file: {error}");
                        let text = "in force until this process ends; control.revocation_file could not be written\n";
                        said(StatusCode::INTERNAL_SERVER_ERROR, text)
                    }
                }
            }
            Ok(Err(full)) => {
                tracing::error!("a revocation was refused: {full}");
                said(StatusCode::INSUFFICIENT_STORAGE, "limits.revocations are in force; nothing was revoked\n")
            }
            Err(_) => said(StatusCode::INTERNAL_SERVER_ERROR, "it could not be tried; nothing was revoked\n"),
        }
    }
}

/// `issuer`, and one of `sub`, `sid` and `jti`; nothing else.
fn read(body: &[u8], policy: &Policy) -> Result<(String, Target), String> {
    const FORM: &str = r#"write {"issuer": "…", "sub": "…"}, or sid or jti instead of sub"#;
    let object = json::object(body).map_err(|_| format!("not a JSON object with each member once; {FORM}"))?;
    let text = |value: &Value| value.as_str().filter(|text| !text.is_empty()).map(str::to_owned);
    let mut issuer = None;
    let mut target = None;
    for (name, value) in &object {
        let value = text(value).ok_or_else(|| format!("{name} is not a text, or empty; {FORM}"))?;
        let read = match name.as_str() {
            "issuer" => {
                issuer = Some(value);
                continue;
            }
            "sub" => Target::User(value),
            "sid" => Target::Session(value),
            "jti" => Target::Token(value),
            _ => return Err(format!("{name:?} means nothing here; {FORM}")),
        };
        if target.replace(read).is_some() {
            return Err(format!("more than one of sub, sid and jti; {FORM}"));
        }
    }
    let (Some(issuer), Some(target)) = (issuer, target) else { return Err(FORM.to_owned()) };
    if !policy.providers.iter().any(|provider| auth::named(provider) == issuer) {
        let known: Vec<&str> = policy.providers.iter().map(|provider| auth::named(provider)).collect();
        return Err(format!("{issuer:?} is no configured issuer; there is {}", known.join(", ")));
    }
    Ok((issuer, target))
}

fn said(status: StatusCode, text: &str) -> Answer {
    let mut answer = Response::new(Full::new(Bytes::copy_from_slice(text.as_bytes())));
    *answer.status_mut() = status;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    answer.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}
