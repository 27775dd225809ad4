//! The requests that `doctor` sends, and the parts of an answer that it reads.

use std::fmt::Write as _;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use crate::cli::endpoint::{Endpoint, timed_out};
use crate::http::Socket;
use crate::proxy::DOCTOR_USER_AGENT;

/// The time limit of one request.
pub(super) const TIME_LIMIT: Duration = Duration::from_secs(5);
/// The maximum length in bytes of the head of an answer to an upgrade.
const MAX_HEAD_BYTES: usize = 16 << 10;

/// An answer to a request.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) status: u16,
    head: String,
    pub(super) body: String,
}

impl Answer {
    fn parse(bytes: &[u8]) -> Option<Self> {
        let end = bytes.windows(4).position(|window| window == b"\r\n\r\n")?;
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        let status = head.strip_prefix("HTTP/1.")?.get(2..5)?.parse().ok()?;
        let mut answer = Self { status, head, body: String::new() };
        let body = &bytes[end + 4..];
        let is_chunked =
            answer.header("transfer-encoding").is_some_and(|value| value.to_ascii_lowercase().contains("chunked"));
        let body = if is_chunked { dechunked(body) } else { body.to_vec() };
        answer.body = String::from_utf8_lossy(&body).into_owned();
        Some(answer)
    }

    /// Returns the header fields, as they came.
    pub(super) fn fields(&self) -> impl Iterator<Item = (&str, &str)> {
        let fields = self.head.lines().skip(1).filter_map(|line| line.split_once(':'));
        fields.map(|(name, value)| (name, value.trim()))
    }

    /// Returns the first value of a header.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.fields().find(|(found, _)| found.eq_ignore_ascii_case(name)).map(|(_, value)| value)
    }

    /// Returns the machine-readable code of a refusal by Vestibule (`missing_token`).
    pub(super) fn refusal_code(&self) -> Option<String> {
        let problem: serde_json::Value = serde_json::from_str(self.body.trim_end()).ok()?;
        problem["request_id"].as_str()?;
        Some(problem["code"].as_str()?.to_owned())
    }

    /// Returns whether the request was refused, by Vestibule or by the upstream.
    pub(super) fn is_refusal(&self) -> bool {
        matches!(self.status, 400..=403 | 405 | 421 | 429 | 431 | 503)
    }

    /// Returns whether the request was served.
    pub(super) fn is_success(&self) -> bool {
        matches!(self.status, 200..=299)
    }

    /// Returns whether the upstream demands a credential: 401, 403, or a redirect to a sign-in page.
    pub(super) fn demands_credential(&self) -> bool {
        match self.status {
            401 | 403 => true,
            301..=303 | 307 | 308 => self.header("location").is_some_and(leads_to_sign_in),
            _ => false,
        }
    }

    /// Returns whether the head or the body has this text.
    pub(super) fn contains(&self, text: &str) -> bool {
        self.head.contains(text) || self.body.contains(text)
    }
}

fn leads_to_sign_in(location: &str) -> bool {
    let path = location.split(['?', '#']).next().unwrap_or_default().to_ascii_lowercase();
    ["login", "signin", "sign-in", "sign_in", "auth"].iter().any(|word| path.contains(word))
}

/// Decodes a chunked body as far as it came (RFC 9112 section 7.1).
fn dechunked(mut body: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    while let Some(end) = body.windows(2).position(|window| window == b"\r\n") {
        let size = std::str::from_utf8(&body[..end]).ok().and_then(|line| line.split(';').next());
        let Some(size) = size.and_then(|size| usize::from_str_radix(size.trim(), 16).ok()).filter(|size| *size > 0)
        else {
            break;
        };
        let chunk = &body[end + 2..];
        out.extend_from_slice(&chunk[..size.min(chunk.len())]);
        body = chunk.get(size + 2..).unwrap_or_default();
    }
    out
}

/// One request; `fields` are whole lines.
#[derive(Clone, Copy, Default)]
pub(super) struct Request<'a> {
    /// The method; GET where it is empty.
    pub(super) method: &'a str,
    pub(super) target: &'a str,
    pub(super) host: &'a str,
    pub(super) fields: &'a [String],
    pub(super) body: &'a str,
}

impl Request<'_> {
    /// Sends the request and reads the answer.
    ///
    /// # Errors
    /// Returns the reason why there is no answer, for the user.
    pub(super) async fn send(self, endpoint: &Endpoint) -> Result<Answer, String> {
        let Self { method, target, host, fields, body } = self;
        let method = if method.is_empty() { "GET" } else { method };
        let mut request = format!(
            "{method} {target} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {DOCTOR_USER_AGENT}\r\nConnection: close\r\n"
        );
        if method != "GET" {
            let _ = write!(
                request,
                "Content-Type: application/x-www-form-urlencoded\r\nContent-Length: {}\r\n",
                body.len()
            );
        }
        for field in fields {
            let _ = write!(request, "{field}\r\n");
        }
        let _ = write!(request, "\r\n{body}");
        let bytes = endpoint.send_for_head(request.as_bytes(), TIME_LIMIT).await.map_err(|error| error.to_string())?;
        Answer::parse(&bytes).ok_or_else(|| "the answer is not HTTP/1.1".to_owned())
    }
}

/// The answer to a WebSocket upgrade.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Upgrade {
    /// The proxy answered with this status instead of 101.
    Refused(u16),
    /// The proxy answered with 101, then sent a Close.
    Closed,
    /// The proxy answered with 101, then a message of the upstream came.
    Message,
    /// The proxy answered with 101, and nothing else came until the time limit.
    Silent,
}

/// Sends a WebSocket upgrade and, after a 101, a text message; reads up to the first frame that decides.
///
/// # Errors
/// Returns the reason why there is no answer to the upgrade, for the user.
pub(super) async fn upgrade(
    endpoint: &Endpoint,
    host: &str,
    target: &str,
    message: Option<&str>,
) -> Result<Upgrade, String> {
    upgrade_within(TIME_LIMIT, endpoint, host, target, message).await
}

async fn upgrade_within(
    limit: Duration,
    endpoint: &Endpoint,
    host: &str,
    target: &str,
    message: Option<&str>,
) -> Result<Upgrade, String> {
    let handshake = async {
        let mut socket = endpoint.connect(limit).await?;
        let request = format!(
            "GET {target} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: {DOCTOR_USER_AGENT}\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dmVzdGlidWxlLWRvY3Rvcg==\r\n\r\n"
        );
        socket.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") && head.len() < MAX_HEAD_BYTES {
            head.push(socket.read_u8().await?);
        }
        let status = std::str::from_utf8(&head).ok().and_then(|head| head.get(9..12)?.parse().ok()).unwrap_or(0);
        Ok((status, socket))
    };
    let handshake = timeout(limit, handshake).await.unwrap_or_else(|_| Err(timed_out(limit)));
    let (status, mut socket) = handshake.map_err(|error: std::io::Error| error.to_string())?;
    if status != 101 {
        return Ok(Upgrade::Refused(status));
    }
    let frame = async {
        if let Some(text) = message {
            // A masked text frame whose masking key is zero (RFC 6455 section 5.2); texts are shorter than 126 bytes.
            let mut frame = vec![0x81, 0x80 | u8::try_from(text.len()).unwrap_or(125), 0, 0, 0, 0];
            frame.extend_from_slice(text.as_bytes());
            socket.write_all(&frame).await?;
        }
        first_decisive_frame(&mut socket).await
    };
    match timeout(limit, frame).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Ok(Upgrade::Silent),
    }
}

/// Skips pings, and the error message that Vestibule sends before its Close.
async fn first_decisive_frame(socket: &mut Socket) -> std::io::Result<Upgrade> {
    const TEXT: u8 = 1;
    const CLOSE: u8 = 8;
    const PING: u8 = 9;
    const PONG: u8 = 10;
    loop {
        let opcode = socket.read_u8().await? & 0x0f;
        let length = match socket.read_u8().await? & 0x7f {
            126 => usize::from(socket.read_u16().await?),
            127 => return Ok(Upgrade::Message),
            short => usize::from(short),
        };
        let mut payload = vec![0; length];
        socket.read_exact(&mut payload).await?;
        match opcode {
            CLOSE => return Ok(Upgrade::Closed),
            PING | PONG => continue,
            _ => {}
        }
        if opcode != TEXT || !payload.windows(7).any(|window| window == b"\"error\"") {
            return Ok(Upgrade::Message);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn chunked_and_broken_off_answers_are_read_as_far_as_they_came() {
        let answer = |text: &str| Answer::parse(text.as_bytes());
        let chunked =
            answer("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3;x=y\r\nabc\r\n2\r\nde\r\n0\r\n\r\n");
        assert_eq!(chunked.expect("an answer").body, "abcde");
        let cut = answer("HTTP/1.1 200 OK\r\ntransfer-encoding: Chunked\r\n\r\n5\r\nab");
        assert_eq!(cut.expect("an answer").body, "ab");
        for none in ["", "HTTP/1.1 200 OK\r\n", "SSH-2.0\r\n\r\n"] {
            assert!(answer(none).is_none(), "{none}");
        }
    }

    #[tokio::test]
    async fn an_upgrade_without_an_answer_is_not_a_silent_socket() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("bound");
        let endpoint = Endpoint::Http(listener.local_addr().expect("address"));
        let limit = Duration::from_millis(300);
        let upgrade = || upgrade_within(limit, &endpoint, "localhost", "/ws", None);
        assert_eq!(upgrade().await, Err("no answer within 0 s".to_owned()));
        let (_unanswered, _) = listener.accept().await.expect("accepted");
        let answer = async {
            let (mut socket, _) = listener.accept().await.expect("accepted");
            socket.write_all(b"HTTP/1.1 101 Switching Protocols\r\n\r\n").await.expect("sent");
            socket
        };
        let (upgraded, _socket) = tokio::join!(upgrade(), answer);
        assert_eq!(upgraded, Ok(Upgrade::Silent));
    }

    #[test]
    fn a_redirect_to_a_sign_in_page_demands_a_credential_and_another_one_does_not() {
        for (head, expected) in [
            ("302 Found\r\nLocation: /login?next=%2Flab", true),
            ("307 Temporary Redirect\r\nlocation: /auth/login", true),
            ("302 Found\r\nLocation: /lab?next=/login", false),
            ("401 Unauthorized", true),
            ("404 Not Found", false),
            ("200 OK\r\nLocation: /login", false),
        ] {
            let answer = Answer::parse(format!("HTTP/1.1 {head}\r\n\r\n").as_bytes()).expect("an answer");
            assert_eq!(answer.demands_credential(), expected, "{head}");
        }
    }
}
