//! The programs that are compared: how each is configured and started, and its version.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::middle::requests::{Client, get};
use crate::middle::tokens::{ISSUER, Issuer, USER};
use crate::middle::vestibule::{self, Settings};
use crate::middle::{Middle, bare, installed, pinned, requests};
use crate::support::proxy::TempFolder;

/// The core that the programs run on.
const CORE: &str = "0";

/// A program that can be in the middle.
pub(crate) struct Peer {
    pub(crate) name: &'static str,
    pub(crate) version: String,
    /// Whether it verifies tokens.
    pub(crate) verifies: bool,
    make: Box<dyn Fn(&str) -> Command>,
}

impl Peer {
    /// Starts it. A program that verifies must refuse a request without a token and send the user of one with it.
    pub(crate) async fn start(&self, token: &str) -> Result<Middle, String> {
        let middle = Middle::start(&self.make)?;
        let address = &middle.address;
        if self.verifies {
            let (status, _, _) = once(address, requests::with_field("GET", "/whoami", "X-User-Id: bob", 0)).await?;
            let (_, _, user) = once(address, get("/whoami", token)).await?;
            let spoofed = get("/whoami", &format!("{token}\r\nX-User-Id: bob"));
            let (_, _, still) = once(address, spoofed).await?;
            if status != 401 || user != USER.as_bytes() || still != USER.as_bytes() {
                return Err(format!(
                    "it does not verify: {status} without a token, {} with it, {} beside a forged header",
                    String::from_utf8_lossy(&user),
                    String::from_utf8_lossy(&still)
                ));
            }
        }
        Ok(middle)
    }
}

async fn once(address: &str, request: Vec<u8>) -> Result<(u16, String, Vec<u8>), String> {
    let mut client = Client::connect(address, None, &std::sync::Arc::new(vec![request])).await;
    client.exchange().await.map_err(|error| error.to_string())
}

/// Returns the programs that are installed. Each that is not is named on the standard output.
pub(crate) fn all(folder: &std::rc::Rc<TempFolder>, issuer: &Issuer, upstream: &str, key_file: &str) -> Vec<Peer> {
    let mut peers = vec![{
        let upstream = upstream.to_owned();
        let make = move |listen: &str| bare::command("0", listen, &upstream);
        Peer { name: "bare hyper", version: hyper_version(), verifies: false, make: Box::new(make) }
    }];
    let jwks = issuer.jwks.clone();
    let others: [(&str, &str, bool, Configured); 3] = [
        ("nginx", "nginx", false, Box::new(nginx)),
        ("HAProxy", "haproxy", true, {
            let key_file = key_file.to_owned();
            Box::new(move |listen, upstream, _| haproxy(listen, upstream, &key_file))
        }),
        ("Envoy", "envoy", true, Box::new(move |listen, upstream, _| envoy(listen, upstream, &jwks))),
    ];
    for (name, program, verifies, configured) in others {
        let Some(path) = installed(program) else {
            println!("skipped: {name}, since {program} is not installed");
            continue;
        };
        let version = version(&path);
        let (upstream, folder) = (upstream.to_owned(), std::rc::Rc::clone(folder));
        let make = move |listen: &str| {
            let text = configured(listen, &upstream, &folder.0);
            let port = listen.rsplit_once(':').map_or(listen, |(_, port)| port);
            // Envoy tells its format by the end of the name.
            let file = folder.0.join(format!("{program}-{port}.yaml"));
            std::fs::write(&file, text).expect("written");
            let mut command = pinned(CORE, &path);
            match program {
                "haproxy" => command.args(["-db", "-f"]).arg(file),
                "envoy" => command
                    .args(["--concurrency", "1", "--disable-hot-restart", "--log-level", "error", "-c"])
                    .arg(file),
                _ => command.arg("-p").arg(&folder.0).arg("-c").arg(file),
            };
            command
        };
        peers.push(Peer { name, version, verifies, make: Box::new(make) });
    }
    peers.push({
        let (upstream, folder) = (format!("http://{upstream}"), std::rc::Rc::clone(folder));
        let providers = vestibule::provider(key_file);
        let make = move |listen: &str| {
            let settings = Settings { upstream: &upstream, providers: providers.clone(), limits: "", more: "" };
            vestibule::run(pinned(CORE, vestibule::program()), &folder, listen, &settings)
        };
        let build = if vestibule::named().is_some() { " as `deploy/build` makes it" } else { "" };
        let version = format!("{}{build}", env!("CARGO_PKG_VERSION"));
        Peer { name: "Vestibule", version, verifies: true, make: Box::new(make) }
    });
    peers
}

/// Writes a configuration for an address, an upstream and a folder.
type Configured = Box<dyn Fn(&str, &str, &Path) -> String>;

fn nginx(listen: &str, upstream: &str, folder: &Path) -> String {
    let port = listen.rsplit_once(':').map_or(listen, |(_, port)| port);
    let pid = folder.join(format!("nginx-{port}.pid"));
    format!(
        "daemon off;
worker_processes 1;
pid {};
error_log /dev/stderr;
events {{ worker_connections 50000; }}
http {{
  access_log /dev/stdout;
  client_body_temp_path body; proxy_temp_path proxy; fastcgi_temp_path fastcgi; uwsgi_temp_path uwsgi; scgi_temp_path scgi;
  keepalive_requests 1000000000;
  upstream backend {{ server {upstream}; keepalive 64; keepalive_requests 1000000000; }}
  map $http_upgrade $connection_upgrade {{ default upgrade; '' ''; }}
  server {{
    listen {listen} backlog=4096;
    location / {{
      proxy_pass http://backend;
      proxy_http_version 1.1;
      proxy_set_header Host $host;
      proxy_set_header Upgrade $http_upgrade;
      proxy_set_header Connection $connection_upgrade;
      proxy_read_timeout 1h;
    }}
  }}
}}
",
        pid.display()
    )
}

fn haproxy(listen: &str, upstream: &str, key_file: &str) -> String {
    format!(
        "global
  nbthread 1
  log stdout format raw local0
defaults
  mode http
  log global
  option httplog
  timeout connect 5s
  timeout client 75s
  timeout server 75s
  timeout tunnel 1h
listen bench
  bind {listen} backlog 4096
  http-request set-var(txn.token) http_auth_bearer
  http-request set-var(txn.alg) var(txn.token),jwt_header_query('$.alg')
  http-request deny deny_status 401 unless {{ var(txn.alg) -m str RS256 }}
  http-request set-var(txn.iss) var(txn.token),jwt_payload_query('$.iss')
  http-request set-var(txn.aud) var(txn.token),jwt_payload_query('$.aud')
  http-request set-var(txn.exp) var(txn.token),jwt_payload_query('$.exp','int')
  http-request set-var(txn.now) date()
  http-request deny deny_status 401 unless {{ var(txn.iss) -m str {ISSUER} }}
  http-request deny deny_status 401 unless {{ var(txn.aud) -m str bench }}
  http-request deny deny_status 401 if {{ var(txn.exp),sub(txn.now) -m int lt 0 }}
  http-request deny deny_status 401 unless {{ var(txn.token),jwt_verify(txn.alg,\"{key_file}\") 1 }}
  http-request set-header X-User-Id %[var(txn.token),jwt_payload_query('$.sub')]
  server backend {upstream}
"
    )
}

fn envoy(listen: &str, upstream: &str, jwks: &str) -> String {
    let address = |address: &str| {
        let (host, port) = address.rsplit_once(':').unwrap_or((address, "0"));
        format!("{{ socket_address: {{ address: {host}, port_value: {port} }} }}")
    };
    let kind = "\"@type\": type.googleapis.com/envoy.extensions";
    format!(
        "static_resources:
  listeners:
  - address: {}
    filter_chains:
    - filters:
      - name: envoy.filters.network.http_connection_manager
        typed_config:
          {kind}.filters.network.http_connection_manager.v3.HttpConnectionManager
          stat_prefix: bench
          access_log: [{{ name: log, typed_config: {{ {kind}.access_loggers.file.v3.FileAccessLog, path: /dev/stdout }} }}]
          upgrade_configs: [{{ upgrade_type: websocket }}]
          route_config: {{ virtual_hosts: [{{ name: all, domains: [\"*\"], routes: [{{ match: {{ prefix: / }}, route: {{ cluster: backend, timeout: 0s }} }}] }}] }}
          http_filters:
          - name: envoy.filters.http.jwt_authn
            typed_config:
              {kind}.filters.http.jwt_authn.v3.JwtAuthentication
              providers:
                bench:
                  issuer: {ISSUER}
                  audiences: [bench]
                  local_jwks: {{ inline_string: '{jwks}' }}
                  claim_to_headers: [{{ header_name: x-user-id, claim_name: sub }}]
                  jwt_cache_config: {{ jwt_cache_size: 10000 }}
              rules: [{{ match: {{ prefix: / }}, requires: {{ provider_name: bench }} }}]
          - name: envoy.filters.http.router
            typed_config: {{ {kind}.filters.http.router.v3.Router }}
  clusters:
  - name: backend
    type: STATIC
    connect_timeout: 5s
    circuit_breakers: {{ thresholds: [{{ max_connections: 50000, max_pending_requests: 50000, max_requests: 50000 }}] }}
    load_assignment: {{ cluster_name: backend, endpoints: [{{ lb_endpoints: [{{ endpoint: {{ address: {} }} }}] }}] }}
",
        address(listen),
        address(upstream)
    )
}

/// The version of an installed program: the first word of what it says that has a digit and two dots.
fn version(path: &PathBuf) -> String {
    let argument = if path.ends_with("envoy") { "--version" } else { "-v" };
    let Ok(output) = Command::new(path).arg(argument).output() else { return String::new() };
    let text = String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).into_owned();
    let mut words = text.split(|sign: char| sign.is_whitespace() || "/-+".contains(sign));
    let is_version = |word: &&str| {
        let parts: Vec<_> = word.split('.').collect();
        parts.len() == 3 && parts.iter().all(|part| part.parse::<u32>().is_ok())
    };
    words.find(is_version).unwrap_or_default().to_owned()
}

/// The version of hyper that this program is built with.
fn hyper_version() -> String {
    let lock = include_str!("../../Cargo.lock");
    let rest = lock.split_once("name = \"hyper\"\nversion = \"").map_or("", |(_, rest)| rest);
    rest.split('"').next().unwrap_or_default().to_owned()
}
