//! Connections beyond a limit: each client reads a whole response, however many there are at one moment and whatever the
//! others do, and they hold few descriptors.

use tokio::task::JoinSet;

use crate::fixture::{Fixture, fixture};
use crate::support::client::Client;
use crate::support::within;

const REFUSED: usize = 300;
/// The number of connections of one listener that may linger, and some descriptors that are open in passing.
const MOST_DESCRIPTORS: usize = 64 + 8;

const LIMITS: [&str; 2] = ["limits: { connections: 1 }\n", "limits: { connections_per_address: 1 }\n"];

/// Takes the only place of the limit.
async fn at_its_limit(limit: &str) -> (Fixture, Client) {
    let fixture = fixture(limit).await;
    let mut first = Client::connect(fixture.proxy.address).await;
    first.send("GET /.vestibule/healthz HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
    assert_eq!(first.answer().await.status, 200);
    (fixture, first)
}

async fn reads_a_whole_503(client: &mut Client) {
    let answer = client.answer().await;
    assert_eq!((answer.status, answer.code().as_str(), answer.field("retry-after")), (503, "busy", Some("5")));
    assert_eq!(answer.json()["detail"], "Too many connections.");
}

#[tokio::test]
async fn all_that_ask_at_one_moment_read_a_whole_503() {
    for limit in LIMITS {
        let (fixture, _first) = at_its_limit(limit).await;
        let address = fixture.proxy.address;
        let mut clients = JoinSet::new();
        for _ in 0..REFUSED {
            clients.spawn(async move {
                let mut client = Client::connect(address).await;
                client.send("GET /x HTTP/1.1\r\nHost: localhost\r\n\r\n").await;
                reads_a_whole_503(&mut client).await;
                assert!(client.is_closed().await);
            });
        }
        while let Some(ended) = clients.join_next().await {
            ended.unwrap_or_else(|error| panic!("{limit}: {error}"));
        }
        let is_about_it = |line: &str| line.contains("connections rejected at a limit");
        let line = fixture.proxy.logged("the warning", is_about_it).await;
        let key = limit.split([' ', ':']).nth(3).expect("a key");
        assert!(line.contains(&format!("\"limit\":\"limits.{key}\"")) && line.contains("\"most\":1"), "{line}");
        let lines = fixture.proxy.log().into_iter().filter(|line| is_about_it(line)).count();
        assert!(lines <= 2, "one in a minute, not one for each connection: {lines}");
    }
}

#[tokio::test]
async fn those_that_stay_keep_no_further_one_from_its_503_and_hold_few_descriptors() {
    for limit in LIMITS {
        let (fixture, _first) = at_its_limit(limit).await;
        let before = fixture.proxy.descriptors();
        let mut staying = Vec::new();
        for _ in 0..REFUSED {
            let mut client = Client::connect(fixture.proxy.address).await;
            reads_a_whole_503(&mut client).await;
            staying.push(client);
            let held = fixture.proxy.descriptors() - before;
            assert!(held <= MOST_DESCRIPTORS, "{limit}: {held} descriptors");
        }
        // None of them has closed its side.
        within("the proxy to close them", async {
            for mut client in staying {
                assert!(client.is_closed().await);
            }
        })
        .await;
    }
}
