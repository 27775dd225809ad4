//! The kinds of engines: behind TLS, with a password, found by Sentinels, a cluster.

use std::net::SocketAddr;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use super::fleet::{Fleet, timed};
use crate::support::authority::Authority;
use crate::support::client::get;
use crate::support::engine::{Engine, command, is_installed};
use crate::support::proxy::TempFolder;
use crate::support::{unused_port, within};

async fn works(fleet: &Fleet, shared: &str) {
    let (first, second) = (fleet.instance_at(shared, "").await, fleet.instance_at(shared, "").await);
    assert_eq!(fleet.revoke(&first, "alice").await, 204);
    let alice = fleet.early_token("alice");
    second.until("the second", || async { fleet.outcome(&second, &alice).await == "invalid_token" }).await;
}

#[tokio::test]
async fn an_engine_with_a_user_of_its_own_whose_rights_are_the_documented_ones() {
    if !is_installed() {
        return;
    }
    let written = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/shared-state.md")).expect("text");
    let line =
        written.lines().find_map(|line| line.trim().strip_prefix("user vestibule on ")).expect("the documented line");
    let rights = line.replace(">PASSWORD", ">the-password").replace("vestibule:vestibule", "vestibule:test");
    let engine = Engine::start().await;
    let mut parts: Vec<&[u8]> = vec![b"ACL", b"SETUSER", b"vestibule", b"reset", b"on"];
    parts.extend(rights.split(' ').map(str::as_bytes));
    assert_eq!(engine.command(&parts).await, b"+OK\r\n");
    engine.command(&[b"ACL", b"SETUSER", b"default", b"off"]).await;
    let fleet = Fleet::with_engine(engine).await;
    std::fs::write(fleet.folder.0.join("password"), "the-password\n").expect("written");
    let login =
        format!("url: \"{}\", username: vestibule, password_file: \"{}\"", fleet.engine.url(), fleet.file("password"));
    works(&fleet, &login).await;
    // A wrong one is said, and never written.
    std::fs::write(fleet.folder.0.join("password"), "wrong-password").expect("written");
    let wrong = fleet.starting(&login, "").await;
    let line = wrong.proxy.logged("why", |line| line.contains("shared state unavailable, retrying")).await;
    assert!(line.contains("authentication failed") && !line.contains("wrong-password"), "{line}");
    // It is read at each connect.
    std::fs::write(fleet.folder.0.join("password"), "the-password").expect("written");
    wrong.is_ready(true).await;
}

#[tokio::test]
async fn a_full_engine_is_said_to_be_full() {
    if !is_installed() {
        return;
    }
    let fleet = Fleet::start().await;
    let instance = fleet.instance("").await;
    let status = async || get(instance.admin, "/status", &[]).await.body;
    assert!(status().await.contains("The engine of the shared state answers."));
    fleet.engine.command(&[b"CONFIG", b"SET", b"maxmemory", b"1"]).await;
    // It is in force here, and told the others when there is room.
    assert_eq!(fleet.revoke(&instance, "alice").await, 503);
    let full = "cannot be used; this instance serves by its last copy";
    instance.until("a full engine", || async { status().await.contains(full) }).await;
    let page = status().await;
    assert!(page.contains("The last error: the engine is full, raise its maxmemory: "), "{page}");
    fleet.engine.command(&[b"CONFIG", b"SET", b"maxmemory", b"0"]).await;
    let is_well = || async { status().await.contains("The engine of the shared state answers.") };
    instance.until("room", is_well).await;
}

#[tokio::test]
async fn an_engine_behind_tls_of_a_private_authority() {
    if !is_installed() {
        return;
    }
    let authority = Authority::new();
    let folder = TempFolder::new();
    let file = |name: &str, text: &str| {
        let path = folder.0.join(name);
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("utf-8").to_owned()
    };
    let (certificate, key) = authority.issue("127.0.0.1");
    let (certificate, key) = (file("cert.pem", &certificate), file("key.pem", &key));
    let pem = authority.pem();
    let ca = pem.path().to_owned();
    let port = unused_port().to_string();
    let tls = [
        "--tls-port",
        &port,
        "--tls-cert-file",
        &certificate,
        "--tls-key-file",
        &key,
        "--tls-ca-cert-file",
        &ca,
        "--tls-auth-clients",
        "no",
    ];
    let fleet = Fleet::with_engine(Engine::start_with(&tls).await).await;
    works(&fleet, &format!("url: \"rediss://127.0.0.1:{port}\", ca_file: \"{ca}\"")).await;
    let stranger = fleet.starting(&format!("url: \"rediss://127.0.0.1:{port}\""), "").await;
    stranger
        .proxy
        .logged("why", |line| line.contains("shared state unavailable") && line.contains("certificate"))
        .await;
}

/// A Sentinel of its own.
pub(super) struct Sentinel {
    pub(super) address: SocketAddr,
    child: Child,
    _folder: TempFolder,
}

impl Sentinel {
    pub(super) fn start(master: SocketAddr) -> Self {
        let folder = TempFolder::new();
        let port = unused_port();
        let path = folder.0.join("sentinel.conf");
        let text = format!(
            "bind 127.0.0.1\nport {port}\ndir {}\nsentinel monitor mymaster 127.0.0.1 {} 2\nsentinel down-after-milliseconds mymaster 1000\nsentinel failover-timeout mymaster 3000\nsentinel parallel-syncs mymaster 1\n",
            folder.0.display(),
            master.port()
        );
        std::fs::write(&path, text).expect("written");
        let mut command = Command::new("redis-server");
        let child = command.arg(&path).arg("--sentinel").stdout(Stdio::null()).spawn().expect("starts");
        Self { address: SocketAddr::from(([127, 0, 0, 1], port)), child, _folder: folder }
    }
}

impl Drop for Sentinel {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// What watches a master: its replica and three sentinels.
pub(super) struct Watch {
    /// The keys of `shared` by which an instance finds the master.
    pub(super) shared: String,
    _replica: Engine,
    _sentinels: [Sentinel; 3],
}

/// Starts a master that is watched, and waits until its replica would take its place.
pub(super) async fn watched_engine() -> (Engine, Watch) {
    let master = Engine::start().await;
    let replica = Engine::start_with(&["--replicaof", "127.0.0.1", &master.address.port().to_string()]).await;
    answers(replica.address, &[b"INFO", b"replication"], "master_link_status:up").await;
    let sentinels = [(); 3].map(|()| Sentinel::start(master.address));
    for sentinel in &sentinels {
        answers(sentinel.address, &[b"SENTINEL", b"MASTER", b"mymaster"], "num-other-sentinels\r\n$1\r\n2").await;
        answers(sentinel.address, &[b"SENTINEL", b"MASTER", b"mymaster"], "num-slaves\r\n$1\r\n1").await;
    }
    let urls = sentinels.iter().map(|sentinel| format!("\"redis://{}\"", sentinel.address)).collect::<Vec<_>>();
    let shared = format!("url: [{}], sentinel: mymaster", urls.join(", "));
    (master, Watch { shared, _replica: replica, _sentinels: sentinels })
}

pub(super) async fn answers(address: SocketAddr, question: &[&[u8]], wanted: &str) {
    within(wanted, async {
        loop {
            if tokio::net::TcpStream::connect(address).await.is_ok()
                && String::from_utf8_lossy(&command(address, question).await).contains(wanted)
            {
                return;
            }
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
}

#[tokio::test]
async fn after_a_failover_the_instances_follow_the_new_master() {
    after_a_failover(false).await;
}

#[tokio::test]
async fn an_instance_that_starts_after_a_failover_knows_what_was_revoked_before() {
    after_a_failover(true).await;
}

async fn after_a_failover(starts_another: bool) {
    if !is_installed() {
        return;
    }
    let (master, watch) = watched_engine().await;
    let mut fleet = Fleet::with_engine(master).await;
    let shared = &watch.shared;
    let (first, second) = (fleet.instance_at(shared, "").await, fleet.instance_at(shared, "").await);
    assert_eq!(fleet.revoke(&first, "alice").await, 204);
    fleet.engine.kill();
    // In force here, queued, and sent to the new master.
    let (status, _) = timed(fleet.revoke(&first, "bob")).await;
    assert_eq!(status, 503);
    let bob = fleet.early_token("bob");
    let begun = std::time::Instant::now();
    second.until("the second to hear of it", || async { fleet.outcome(&second, &bob).await == "invalid_token" }).await;
    println!("through the new master {:?} after the old one was killed", begun.elapsed());
    first.until("the first", || async { fleet.revoke(&first, "bob").await == 204 }).await;
    if starts_another {
        let third = fleet.instance_at(shared, "").await;
        for user in ["alice", "bob"] {
            assert_eq!(fleet.outcome(&third, &fleet.early_token(user)).await, "invalid_token");
        }
    }
}

#[tokio::test]
async fn a_cluster_of_three() {
    if !is_installed() {
        return;
    }
    // A node's second port is ten thousand above its first, where others may listen.
    let mut nodes = Vec::new();
    let mut buses = Vec::new();
    for _ in 0..3 {
        let bus = unused_port().to_string();
        let cluster = ["--cluster-enabled", "yes", "--cluster-node-timeout", "2000", "--cluster-port", &bus];
        nodes.push(Engine::start_with(&cluster).await);
        buses.push(bus);
    }
    for (index, node) in nodes.iter().enumerate() {
        let (from, to) = (index * 5_462, (index * 5_462 + 5_461).min(16_383));
        let range = [from.to_string(), to.to_string()];
        let added = node.command(&[b"CLUSTER", b"ADDSLOTSRANGE", range[0].as_bytes(), range[1].as_bytes()]).await;
        assert_eq!(added, b"+OK\r\n");
        let port = nodes[0].address.port().to_string();
        node.command(&[b"CLUSTER", b"MEET", b"127.0.0.1", port.as_bytes(), buses[0].as_bytes()]).await;
    }
    for node in &nodes {
        answers(node.address, &[b"CLUSTER", b"INFO"], "cluster_state:ok").await;
    }
    let urls = nodes.iter().map(|node| format!("\"{}\"", node.url())).collect::<Vec<_>>().join(", ");
    let fleet = Fleet::start().await;
    works(&fleet, &format!("url: [{urls}], cluster: true")).await;
}
