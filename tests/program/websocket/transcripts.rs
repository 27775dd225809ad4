//! Every case of docs/contract.md section 4.2 as a transcript. docs/websocket-protocol.md shows them, and this test
//! compares the page with the program's messages. `WRITE_TRANSCRIPTS=1 cargo test transcripts` writes them again.

use serde_json::json;

use super::{Fixture, fixture};
use crate::support::issuer::Mood;
use crate::support::now;
use crate::support::socket::Socket;

const PAGE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/docs/websocket-protocol.md");

/// A transcript of messages, with each token replaced by its name and every time by the same number.
#[derive(Default)]
struct Transcript {
    lines: Vec<String>,
    names: Vec<(String, &'static str)>,
}

impl Transcript {
    fn named(mut self, token: &str, name: &'static str) -> Self {
        self.names.push((token.to_owned(), name));
        self
    }

    fn line(&mut self, text: &str) {
        let mut text = text.to_owned();
        for (token, name) in &self.names {
            text = text.replace(token, name);
        }
        for (key, shown) in [("\"expires_at\":", "1767225600"), ("\"expires_in\":", "60")] {
            if let Some((before, rest)) = text.split_once(key) {
                let rest = rest.trim_start_matches(|c: char| c.is_ascii_digit());
                text = format!("{before}{key}{shown}{rest}");
            }
        }
        self.lines.push(text);
    }

    async fn opens(&mut self, fixture: &Fixture, target: &str) -> Socket {
        self.line(&format!("client → GET {target}, Upgrade: websocket"));
        let socket = Socket::open(fixture.proxy.address, target, &[]).await;
        self.line("server → 101");
        socket
    }

    async fn says(&mut self, client: &mut Socket, text: &str) {
        self.line(&format!("client → {text}"));
        client.say(text).await;
    }

    async fn hears(&mut self, client: &mut Socket) {
        let frame = client.next().await;
        let text = match frame.opcode {
            8 => {
                let (code, reason) = frame.close();
                format!("server → Close {code} {reason}")
            }
            _ => format!("server → {}", frame.text()),
        };
        self.line(&text);
    }

    fn note(&mut self, text: &str) {
        self.lines.push(format!("         ({text})"));
    }
}

fn authenticate(token: &str) -> String {
    json!({"type": "authenticate", "token": token}).to_string()
}

/// Sends one message on a pending socket, which ends it.
async fn refused_first(fixture: &Fixture, target: &str, message: &str, transcript: Transcript) -> Transcript {
    let mut transcript = transcript;
    let mut client = transcript.opens(fixture, target).await;
    transcript.says(&mut client, message).await;
    transcript.hears(&mut client).await;
    transcript.hears(&mut client).await;
    transcript
}

/// Opens a socket, without a transcript of its handshake.
async fn open(fixture: &Fixture, transcript: &mut Transcript) -> (Socket, Socket) {
    transcript.note("authenticated as alice");
    fixture.session(&fixture.issuer.token_with("alice", json!({"role": "dev", "team": "red"}))).await
}

async fn transcripts() -> Vec<(&'static str, Transcript)> {
    let plain = fixture("routes: [{ path: /admin, require: { role: admin } }, { path: /deny, token_from: { query: { mode: deny } } }]\n").await;
    let plain = &plain;
    let (good, expired, bob) = (plain.issuer.token("alice"), plain.issuer.expired("alice"), plain.issuer.token("bob"));
    let start = || Transcript::default().named(&good, "<token>").named(&expired, "<expired>").named(&bob, "<bob's>");
    let mut out = Vec::new();

    let mut t = start();
    let mut client = t.opens(plain, "/ws").await;
    t.says(&mut client, &authenticate(&good)).await;
    let (_, mut upstream) = plain.backend.websocket().await;
    t.hears(&mut client).await;
    t.says(&mut client, r#"{"run":"cell 1"}"#).await;
    assert_eq!(upstream.next_text().await, r#"{"run":"cell 1"}"#);
    upstream.say(r#"{"output":42}"#).await;
    t.hears(&mut client).await;
    t.says(&mut client, &json!({"type": "refresh_auth", "token": good}).to_string()).await;
    t.hears(&mut client).await;
    t.says(&mut client, &authenticate(&good)).await;
    t.hears(&mut client).await;
    out.push(("a session", t));

    let mut t = start();
    let target = format!("/ws?token={good}");
    let (mut client, (heard, mut upstream)) = tokio::join!(t.opens(plain, &target), plain.backend.websocket());
    t.note(&format!("the upstream is asked for {}, with X-User-Id: alice", heard.target()));
    upstream.say(r#"{"output":42}"#).await;
    t.hears(&mut client).await;
    out.push(("a token in the URL", t));

    let mut t = start();
    let mut client = t.opens(plain, &format!("/deny?token={good}")).await;
    t.hears(&mut client).await;
    t.hears(&mut client).await;
    out.push(("token_in_url", t));

    for (name, target, message) in [
        ("invalid_message", "/ws", "hello".to_owned()),
        ("unexpected_message", "/ws", r#"{"type":"hello"}"#.to_owned()),
        ("missing_token", "/ws", r#"{"type":"authenticate"}"#.to_owned()),
        ("invalid_token", "/ws", authenticate("garbage")),
        ("expired on arrival", "/ws", authenticate(&expired)),
        ("forbidden", "/admin", authenticate(&good)),
    ] {
        out.push((name, refused_first(plain, target, &message, start()).await));
    }

    for (name, first, bytes) in [
        ("too large", 0x81, vec![b' '; 17_000]),
        ("not UTF-8", 0x81, vec![0xff]),
        ("against RFC 6455", 0xc1, b"{}".to_vec()),
    ] {
        let mut t = start();
        let mut client = t.opens(plain, "/ws").await;
        t.note(name);
        client.send(first, bytes).await;
        t.hears(&mut client).await;
        out.push((name, t));
    }
    let mut t = start();
    let mut client = t.opens(plain, "/ws").await;
    t.note("17 pongs");
    for _ in 0..17 {
        client.send(0x8a, "").await;
    }
    t.hears(&mut client).await;
    out.push(("too many control frames", t));

    for (name, answer) in [
        ("upstream_refused", "HTTP/1.1 403 X\r\nContent-Length: 0\r\n\r\n"),
        ("upstream_not_found", "HTTP/1.1 404 X\r\nContent-Length: 0\r\n\r\n"),
        ("upstream_failed", "HTTP/1.1 500 X\r\nContent-Length: 0\r\n\r\n"),
        ("unavailable: upstream 503", "HTTP/1.1 503 X\r\nContent-Length: 0\r\n\r\n"),
    ] {
        let mut t = start();
        let mut client = t.opens(plain, "/ws").await;
        t.says(&mut client, &authenticate(&good)).await;
        let mut conn = plain.backend.accept().await;
        conn.request().await;
        conn.write(answer).await;
        t.note(&format!("the upstream answers {}", &answer[9..12]));
        t.hears(&mut client).await;
        t.hears(&mut client).await;
        out.push((name, t));
    }

    let mut t = start();
    let (mut client, _upstream) = open(plain, &mut t).await;
    t.says(&mut client, r#"{"type":"refresh_auth"}"#).await;
    t.hears(&mut client).await;
    t.says(&mut client, &json!({"type": "refresh_auth", "token": expired}).to_string()).await;
    t.hears(&mut client).await;
    t.says(&mut client, &json!({"type": "refresh_auth", "token": bob}).to_string()).await;
    t.hears(&mut client).await;
    t.says(&mut client, &json!({"type": "refresh_auth", "token": "garbage"}).to_string()).await;
    t.hears(&mut client).await;
    t.says(&mut client, r#"{"type":"refresh_auth"}"#).await;
    t.hears(&mut client).await;
    t.hears(&mut client).await;
    out.push(("too_many", t));

    let mut t = start();
    let (mut client, upstream) = open(plain, &mut t).await;
    drop(upstream);
    t.note("the upstream goes without a Close");
    t.hears(&mut client).await;
    out.push(("upstream_lost", t));

    let strict = fixture("identity: { headers: { X-User-Id: sub, X-Team: team } }\nroutes: [{ path: /ws, require: { role: dev } }]\nwebsocket: { auth_timeout: 1s }\nlimits: { websockets_per_user: 3 }\n").await;
    let token = |role: &str, team: &str| strict.issuer.token_with("alice", json!({"role": role, "team": team}));
    let (unprivileged, blue) = (token("none", "red"), token("dev", "blue"));
    for (name, token, label, frames) in [
        ("forbidden on a refresh", &unprivileged, "<token without the role>", 2),
        ("identity_changed", &blue, "<token of another team>", 1),
    ] {
        let mut t = Transcript::default().named(token, label);
        let (mut client, _upstream) = open(&strict, &mut t).await;
        t.says(&mut client, &json!({"type": "refresh_auth", "token": token}).to_string()).await;
        for _ in 0..frames {
            t.hears(&mut client).await;
        }
        out.push((name, t));
    }
    let mut t = Transcript::default();
    let mut client = t.opens(&strict, "/ws").await;
    t.note("nothing for 10 s");
    t.hears(&mut client).await;
    t.hears(&mut client).await;
    out.push(("timeout", t));
    let right = token("dev", "red");
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(strict.session(&right).await);
    }
    let t = Transcript::default().named(&right, "<token>");
    out.push(("unavailable: a limit", refused_first(&strict, "/ws", &authenticate(&right), t).await));

    let short = fixture("websocket: { grace: 0s, max_lifetime: 1h }\nroutes: [{ path: /life, websocket: { max_lifetime: 1s } }, { path: /idle, websocket: { idle_timeout: 1s } }]\n").await;
    let mut t = Transcript::default();
    t.note("authenticated as alice");
    let (mut client, _upstream) = short.session(&short.issuer.token_with("alice", json!({"exp": now() - 3}))).await;
    t.note("its token's end, and grace, pass");
    t.hears(&mut client).await;
    t.hears(&mut client).await;
    out.push(("expired", t));
    for (name, target, note, frames) in
        [("lifetime", "/life", "max_lifetime passes", 2), ("idle", "/idle", "idle_timeout passes", 1)]
    {
        let mut t = Transcript::default();
        t.note("authenticated as alice");
        let mut client = Socket::open(short.proxy.address, target, &[]).await;
        let token = short.issuer.token("alice");
        let (_, (_, _upstream)) = tokio::join!(client.authenticate(&token), short.backend.websocket());
        t.note(note);
        for _ in 0..frames {
            t.hears(&mut client).await;
        }
        out.push((name, t));
    }

    let blind = super::Fixture::started("", |issuer| issuer.set_mood(Mood::Rude)).await;
    let token = blind.issuer.token("alice");
    let t = Transcript::default().named(&token, "<token>");
    out.push(("unavailable: keys", refused_first(&blind, "/ws", &authenticate(&token), t).await));

    let mut t = start();
    let (mut client, _upstream) = open(plain, &mut t).await;
    t.note("the process is told to stop");
    plain.proxy.signal("TERM");
    t.hears(&mut client).await;
    out.push(("shutdown", t));
    out
}

#[tokio::test]
async fn transcripts_on_the_page_are_what_the_program_says() {
    let mut page = std::fs::read_to_string(PAGE).expect("the page");
    let original = page.clone();
    let mut shown = 0;
    for (name, transcript) in transcripts().await {
        let begin = format!("<!-- transcript: {name} -->\n```text\n");
        let Some(at) = page.find(&begin).map(|at| at + begin.len()) else { panic!("the page does not show: {name}") };
        let end = at + page[at..].find("```").expect("the end of the transcript");
        let text = transcript.lines.join("\n") + "\n";
        page.replace_range(at..end, &text);
        shown += 1;
    }
    assert_eq!(original.matches("<!-- transcript:").count(), shown, "each transcript on the page is one of these");
    if std::env::var_os("WRITE_TRANSCRIPTS").is_some() {
        std::fs::write(PAGE, &page).expect("written");
    } else {
        assert!(
            page == original,
            "docs/websocket-protocol.md shows another transcript; WRITE_TRANSCRIPTS=1 writes it anew:\n{page}"
        );
    }
}
