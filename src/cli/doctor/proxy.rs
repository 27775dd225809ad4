//! What the running proxy must withstand, asked as any stranger asks.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::time::timeout;

use super::{LIMIT, Line, MARK, Patient, Verdict};
use crate::http::Socket;
use crate::policy::{AuthMode, Hosts, ListenPlace, QueryMode, Route};

/// Signed by nobody, in every way that some verifier once took.
const FORGED: [(&str, &str); 4] = [
    (r#"{"alg":"none"}"#, ""),
    (r#"{"alg":"NonE","typ":"JWT"}"#, "AAAA"),
    (r#"{"alg":"HS256","typ":"JWT"}"#, "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"),
    (
        r#"{"alg":"ES256","typ":"JWT"}"#,
        "AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
    ),
];
/// Names that proxies and their backends give an identity, beside our own.
const SPOOFED: [&str; 6] = [
    "Remote-User",
    "X-Forwarded-User",
    "X-Forwarded-Email",
    "X-Auth-Request-User",
    "X-Remote-User",
    "Cf-Access-Authenticated-User-Email",
];

pub(super) async fn examined(patient: &Patient<'_>) -> Vec<Line> {
    let mut lines = Vec::new();
    let lives = lives(patient).await;
    let dead = matches!(lives, Verdict::Red(_));
    lines.push(("lives".to_owned(), lives));
    if dead {
        return lines;
    }
    for (name, verdict) in [
        ("configuration", configuration(patient).await),
        ("anonymous", anonymous(patient).await),
        ("forged tokens", forged(patient).await),
        ("path spellings", spellings(patient).await),
        ("own prefix", own_prefix(patient).await),
        ("socket", socket(patient).await),
        ("token in URL", token_in_url(patient).await),
        ("foreign host", foreign_host(patient).await),
        ("spoofed identity", spoofed(patient).await),
    ] {
        lines.push((name.to_owned(), verdict));
    }
    lines
}

async fn lives(patient: &Patient<'_>) -> Verdict {
    match patient.proxy.get("/.vestibule/readyz", "localhost", &[]).await {
        Ok(answer) if answer.status == 200 => Verdict::Good("answers, and is ready".to_owned()),
        Ok(answer) if answer.status == 503 => {
            Verdict::Good("answers, and is not ready: no provider has keys yet, or it drains".to_owned())
        }
        Ok(answer) => Verdict::Red(format!(
            "{} answers {} to /.vestibule/readyz: that is no Vestibule, or one behind another proxy",
            patient.proxy, answer.status
        )),
        Err(problem) => Verdict::Red(format!("{}: {problem}; start it with this configuration", patient.proxy)),
    }
}

/// Whether the process serves what stands in the file.
async fn configuration(patient: &Patient<'_>) -> Verdict {
    let Some(admin) = &patient.policy.admin else {
        return Verdict::Skipped("admin is off, so nobody can say which configuration is in force".to_owned());
    };
    let Ok(place) = super::Place::of(ListenPlace::Tcp(vec![admin.address]), false) else {
        return Verdict::Skipped("admin.listen has no fixed port".to_owned());
    };
    match place.get("/metrics", "localhost", &[]).await {
        Ok(answer) if answer.text.contains(&format!("vestibule_config_info{{digest=\"{}\"}} 1", patient.digest)) => {
            Verdict::Good(format!("{} is in force", patient.digest))
        }
        Ok(answer) if answer.text.contains("vestibule_config_info{") => Verdict::Red(
            "the process serves another configuration than this one: its log says why a reload was refused, or which flags and variables it has".to_owned(),
        ),
        Ok(_) => Verdict::Skipped(format!("{place} is not this proxy's admin listener")),
        Err(problem) => Verdict::Skipped(format!("admin: {place}: {problem}")),
    }
}

/// A path that falls under this rule, by GET.
fn example(patient: &Patient<'_>, route: &Route) -> Option<String> {
    let path = route.pattern.as_ref().map_or_else(|| format!("/{MARK}"), |pattern| pattern.example(MARK));
    let found = patient.policy.judge_path("GET", &path)?.route;
    (found.label == route.label && std::ptr::eq(&raw const *found, route)).then_some(path)
}

/// Rules that demand something, with a path each.
fn closed<'a>(patient: &'a Patient<'_>) -> Vec<(&'a Route, String)> {
    let demanding =
        patient.policy.routes.iter().filter(|route| matches!(route.auth, AuthMode::Required | AuthMode::Deny));
    demanding.filter_map(|route| Some((&**route, example(patient, route)?))).collect()
}

async fn anonymous(patient: &Patient<'_>) -> Verdict {
    let closed = closed(patient);
    for (route, path) in &closed {
        match patient.proxy.get(path, "localhost", &[]).await {
            Ok(answer) if matches!(answer.code().as_deref(), Some("missing_token" | "forbidden")) => {}
            Ok(answer) => {
                return Verdict::Red(format!(
                    "GET {path} without a token is answered {}: the rule {} is not what is in force there",
                    answer.status, route.label
                ));
            }
            Err(problem) => return Verdict::Red(format!("GET {path}: {problem}")),
        }
    }
    match closed.len() {
        0 => Verdict::Skipped("no rule demands anything of a GET".to_owned()),
        count => Verdict::Good(format!("{count} rules tried without a token, all refuse")),
    }
}

/// Where a token is demanded, and nothing else.
fn demanding(patient: &Patient<'_>) -> Option<String> {
    closed(patient).into_iter().rev().find(|(route, _)| route.auth == AuthMode::Required).map(|(_, path)| path)
}

fn token_nobody_signed(issuer: Option<&str>, header: &str, signature: &str) -> String {
    let issuer = issuer.unwrap_or("x");
    let claims =
        serde_json::json!({"iss": issuer, "sub": MARK, "aud": MARK, "azp": MARK, "exp": 4_102_444_800_u64, "iat": 0});
    format!("{}.{}.{signature}", URL_SAFE_NO_PAD.encode(header), URL_SAFE_NO_PAD.encode(claims.to_string()))
}

async fn forged(patient: &Patient<'_>) -> Verdict {
    let Some(path) = demanding(patient) else { return Verdict::Skipped("no rule demands a token".to_owned()) };
    for provider in &patient.policy.providers {
        for (header, signature) in FORGED {
            let token = token_nobody_signed(provider.issuer.as_deref(), header, signature);
            match patient.proxy.get(&path, "localhost", &[format!("Authorization: Bearer {token}")]).await {
                Ok(answer) if answer.refuses() => {}
                Ok(answer) => {
                    return Verdict::Red(format!(
                        "GET {path} with a token that nobody signed ({header}) is answered {}",
                        answer.status
                    ));
                }
                Err(problem) => return Verdict::Red(format!("GET {path} with a forged token: {problem}")),
            }
        }
    }
    Verdict::Good(format!("{} kinds for each provider, all refused", FORGED.len()))
}

/// Other ways to write the paths of rules that close.
async fn spellings(patient: &Patient<'_>) -> Verdict {
    let mut tried = 0;
    for (route, path) in closed(patient).iter().filter(|(route, _)| route.pattern.is_some()) {
        // Where the plain one is open already, that is said elsewhere.
        if !patient.proxy.get(path, "localhost", &[]).await.is_ok_and(|answer| answer.refuses()) {
            continue;
        }
        let tail = path.trim_start_matches('/');
        let encoded = tail
            .chars()
            .next()
            .map_or_else(String::new, |first| format!("/%{:02x}{}", u32::from(first), &tail[first.len_utf8()..]));
        for spelling in [
            path.to_ascii_uppercase(),
            format!("{path}/"),
            format!("/{path}"),
            format!("/./{tail}"),
            format!("/{MARK}/../{tail}"),
            format!("/{MARK}/%2e%2e/{tail}"),
            format!("{path};x=y"),
            path.replacen('/', "/%2f", 1),
            encoded,
        ] {
            tried += 1;
            match patient.proxy.get(&spelling, "localhost", &[]).await {
                Ok(answer) if answer.refuses() => {}
                Ok(answer) => {
                    return Verdict::Red(format!(
                        "GET {spelling} is answered {}, and the rule {} should close it",
                        answer.status, route.label
                    ));
                }
                Err(problem) => return Verdict::Red(format!("GET {spelling}: {problem}")),
            }
        }
    }
    if tried == 0 {
        return Verdict::Skipped("no rule closes a path".to_owned());
    }
    Verdict::Good(format!("{tried} ways to write paths that a rule closes, all refused"))
}

async fn own_prefix(patient: &Patient<'_>) -> Verdict {
    for path in [
        "/.vestibule/vestibule-doctor",
        "/.VESTIBULE/vestibule-doctor",
        "/%2evestibule/x",
        "//.vestibule/x",
        "/.vestibule/../.vestibule/x",
    ] {
        match patient.proxy.get(path, "localhost", &[]).await {
            Ok(answer) if matches!(answer.code().as_deref(), Some("not_found" | "bad_request")) => {}
            Ok(answer) => {
                return Verdict::Red(format!(
                    "GET {path} is answered {}, and should never leave Vestibule",
                    answer.status
                ));
            }
            Err(problem) => return Verdict::Red(format!("GET {path}: {problem}")),
        }
    }
    Verdict::Good("nothing under /.vestibule goes to the backend".to_owned())
}

/// An upgrade. Returns its status, and the first frame's opcode and payload behind a 101; opcode 0: none came.
async fn upgraded(patient: &Patient<'_>, target: &str, say: Option<&[u8]>) -> Result<(u16, u8, Vec<u8>), String> {
    let attempt = async {
        let mut socket = patient.proxy.connect().await?;
        let request = format!(
            "GET {target} HTTP/1.1\r\nHost: localhost\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dmVzdGlidWxlLWRvY3Rvcg==\r\n\r\n"
        );
        socket.write_all(request.as_bytes()).await?;
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") && head.len() < 16 << 10 {
            head.push(socket.read_u8().await?);
        }
        let status = std::str::from_utf8(&head).ok().and_then(|head| head.get(9..12)?.parse().ok()).unwrap_or(0);
        if status != 101 {
            return Ok((status, 0, Vec::new()));
        }
        if let Some(text) = say {
            let mut frame = vec![0x81, 0x80 | u8::try_from(text.len()).unwrap_or(125), 0, 0, 0, 0];
            frame.extend_from_slice(text);
            socket.write_all(&frame).await?;
        }
        let (opcode, payload) = first_close_or_data(&mut socket).await?;
        Ok::<_, std::io::Error>((status, opcode, payload))
    };
    match timeout(LIMIT, attempt).await {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(_) => Ok((101, 0, Vec::new())),
    }
}

/// Skips what is only said: the frame that counts is the Close, or anything that is not of ours.
async fn first_close_or_data(socket: &mut Socket) -> std::io::Result<(u8, Vec<u8>)> {
    loop {
        let opcode = socket.read_u8().await? & 0x0f;
        let length = match socket.read_u8().await? & 0x7f {
            126 => usize::from(socket.read_u16().await?),
            127 => return Ok((opcode, Vec::new())),
            short => usize::from(short),
        };
        let mut payload = vec![0; length];
        socket.read_exact(&mut payload).await?;
        // A refusal is said as an error before its Close.
        if opcode == 1 && payload.windows(7).any(|window| window == b"\"error\"") {
            continue;
        }
        return Ok((opcode, payload));
    }
}

/// A socket that says anything but who it is must not reach the backend.
async fn socket(patient: &Patient<'_>) -> Verdict {
    let Some(path) = demanding(patient) else { return Verdict::Skipped("no rule demands a token".to_owned()) };
    match upgraded(patient, &path, Some(MARK.as_bytes())).await {
        Ok((101, 8, _)) => Verdict::Good("one that does not say who it is is closed".to_owned()),
        Ok((101, 0, _)) => {
            Verdict::Red(format!("a socket on {path} that said something else than its token stays open"))
        }
        Ok((101, ..)) => Verdict::Red(format!("a socket on {path} hears the backend without a token")),
        Ok((401 | 403 | 429 | 503, ..)) => Verdict::Good("refused without a credential on the upgrade".to_owned()),
        Ok((status, ..)) => Verdict::Red(format!("an upgrade on {path} without a token is answered {status}")),
        Err(problem) => Verdict::Red(format!("an upgrade on {path}: {problem}")),
    }
}

/// A query token is taken out, or refused; else it stands in the backend's log.
async fn token_in_url(patient: &Patient<'_>) -> Verdict {
    let Some(path) = demanding(patient) else { return Verdict::Skipped("no rule demands a token".to_owned()) };
    let Some(route) = patient.policy.judge_path("GET", &path).map(|judgement| judgement.route) else {
        return Verdict::Skipped("no rule demands a token".to_owned());
    };
    let Some(query) = &route.token_from.query else {
        return Verdict::Red(
            "token_from.query is off: a page that still sends ?token= sends it on into the backend's log; write query: { name: token, mode: deny }".to_owned(),
        );
    };
    // What could not be a token of ours is the backend's own parameter, and passes.
    let issuer = patient.policy.providers.first().and_then(|provider| provider.issuer.as_deref());
    let (header, signature) = FORGED[0];
    let token = token_nobody_signed(issuer, header, signature);
    let name = query.names.first().map_or("token", String::as_str);
    match upgraded(patient, &format!("{path}?{name}={token}"), None).await {
        Ok((101, 8, _)) => Verdict::Good(match query.mode {
            QueryMode::Move => "taken out of a socket's URL before anything logs or forwards it".to_owned(),
            QueryMode::Deny => "refused".to_owned(),
        }),
        Ok((400..=499 | 503, ..)) => Verdict::Good("refused on the upgrade".to_owned()),
        Ok((status, ..)) => Verdict::Red(format!(
            "an upgrade with ?{name}= is answered {status} as if it were not there: it goes on to the backend"
        )),
        Err(problem) => Verdict::Red(format!("an upgrade with ?{name}=: {problem}")),
    }
}

/// On a loopback listener a website that points its name here must hear nothing.
async fn foreign_host(patient: &Patient<'_>) -> Verdict {
    let is_loopback = patient.policy.listen.iter().any(|listen| match &listen.place {
        ListenPlace::Tcp(addresses) => addresses.iter().any(|address| address.ip().is_loopback()),
        ListenPlace::Unix(_) => false,
    });
    if !is_loopback && matches!(patient.policy.hosts, Hosts::Any) {
        return Verdict::Skipped(
            "any host is answered; list yours in hosts where the load balancer does not".to_owned(),
        );
    }
    match patient.proxy.get("/", "vestibule-doctor.example", &[]).await {
        Ok(answer) if answer.status == 421 => Verdict::Good("hears 421".to_owned()),
        Ok(answer) => Verdict::Red(format!(
            "Host: vestibule-doctor.example is answered {}: a website that points its name at this machine reads along; leave hosts unset, or list yours",
            answer.status
        )),
        Err(problem) => Verdict::Red(problem),
    }
}

/// Whatever a client sends as an identity must not show in what the backend answers.
async fn spoofed(patient: &Patient<'_>) -> Verdict {
    let configured = patient.policy.trusted_headers.iter().map(|header| header.written.as_str());
    let mut fields = Vec::new();
    for name in configured.chain(SPOOFED) {
        for name in [name.to_owned(), name.replace('-', "_"), name.replace('-', ".")] {
            fields.push(format!("{name}: {MARK}"));
        }
    }
    let mut tried = Vec::new();
    if let Some(token) = &patient.token {
        let mut fields = fields.clone();
        fields.push(format!("Authorization: Bearer {token}"));
        match patient.proxy.get(patient.whoami, "localhost", &fields).await {
            Ok(answer) if answer.refuses() => {
                return Verdict::Skipped(format!(
                    "the token of --token-file is refused there: {} {}",
                    answer.status,
                    answer.code().unwrap_or_default()
                ));
            }
            Ok(answer) if answer.text.contains(MARK) => return arrived(patient.whoami),
            Ok(_) => tried.push(patient.whoami.to_owned()),
            Err(problem) => return Verdict::Red(format!("GET {}: {problem}", patient.whoami)),
        }
    }
    for route in patient.policy.routes.iter().filter(|route| matches!(route.auth, AuthMode::None | AuthMode::Optional))
    {
        let Some(path) = example(patient, route) else { continue };
        match patient.proxy.get(&path, "localhost", &fields).await {
            // What it answers with the path in it says nothing.
            Ok(answer) if answer.text.replace(&path, "").contains(MARK) => return arrived(&path),
            Ok(_) => tried.push(path),
            Err(problem) => return Verdict::Red(format!("GET {path}: {problem}")),
        }
    }
    if tried.is_empty() {
        return Verdict::Skipped(
            "needs a valid token: --token-file, and --whoami for where the backend shows its caller".to_owned(),
        );
    }
    Verdict::Good(format!("{} names do not show in the answers of {}", fields.len(), tried.join(" ")))
}

fn arrived(path: &str) -> Verdict {
    Verdict::Red(format!(
        "GET {path} shows an identity that the client made up: the backend believes a header that is neither in identity.headers nor in identity.strip, or the process serves another configuration"
    ))
}
