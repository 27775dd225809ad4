//! What each capability adds to a request of Vestibule: bodies, routes, providers, TLS, session cookies, assertions, the
//! shared state, a second core. Each has an instance of its own, measured in turn with one that has none of them.

use std::path::Path;
use std::sync::Arc;

use tokio_rustls::TlsConnector;

use crate::Effort;
use crate::middle::requests::{Client, get, with_field};
use crate::middle::tokens::Issuer;
use crate::middle::vestibule::{self, Settings};
use crate::middle::work::{Ready, Target, Work};
use crate::middle::{Middle, bare, installed, page, pinned, upstream};
use crate::support::authority::Authority;
use crate::support::engine::Engine;
use crate::support::proxy::{TempFile, TempFolder};

/// What the instances are made of.
#[derive(Clone, Copy)]
pub(crate) struct Needs<'a> {
    pub(crate) folder: &'a TempFolder,
    pub(crate) issuer: &'a Issuer,
    pub(crate) key: &'a str,
    pub(crate) upstream: &'a str,
    pub(crate) many: &'a [String],
}

/// What a row is compared with.
#[derive(Clone, Copy, PartialEq)]
enum Base {
    /// A request with one token repeated.
    One,
    /// A request with many tokens in turn.
    Many,
    /// It is one of these itself.
    Itself,
}

/// What is measured.
struct Case {
    name: String,
    base: Base,
    /// The number of its instance.
    instance: usize,
    work: Work,
    tls: Option<TlsConnector>,
    /// The cores on which bare hyper does it too, to compare with.
    with_bare: Option<Cores>,
}

/// The cores of bare hyper.
#[derive(Clone, Copy, PartialEq)]
enum Cores {
    One,
    Two,
}

/// A measured row.
pub(crate) struct Added {
    name: String,
    micros: f64,
    added: Option<f64>,
    bare: Option<f64>,
}

/// All rows, and how many times as many requests two cores serve as one: of Vestibule and of bare hyper.
pub(crate) struct Table {
    rows: Vec<Added>,
    two_cores: Option<(f64, f64)>,
}

const ONE: &str = "a request, one token repeated";
const MANY: &str = "a request, 2,000 tokens in turn";
const TWO_CORES: &str = "on two cores";

/// The instances and the cases as they are made.
struct Cases<'a> {
    needs: Needs<'a>,
    instances: Vec<Middle>,
    cases: Vec<Case>,
}

impl Cases<'_> {
    /// Starts an instance and returns its number.
    fn start(&mut self, cores: &str, settings: &Settings<'_>) -> usize {
        self.start_program(vestibule::program(), cores, settings)
    }

    fn start_program(&mut self, program: &Path, cores: &str, settings: &Settings<'_>) -> usize {
        let make = |listen: &str| vestibule::run(pinned(cores, program), self.needs.folder, listen, settings);
        self.instances.push(Middle::start(make).expect("starts"));
        self.instances.len() - 1
    }

    /// Starts an instance with more keys.
    fn with(&mut self, more: &str) -> usize {
        let upstream = format!("http://{}", self.needs.upstream);
        let providers = vestibule::provider(self.needs.key);
        self.start("0", &Settings { upstream: &upstream, providers, limits: "", more })
    }

    fn add(&mut self, name: &str, base: Base, instance: usize, requests: Vec<Vec<u8>>) -> &mut Case {
        let work = Work::Requests(Arc::new(requests));
        self.cases.push(Case { name: name.to_owned(), base, instance, work, tls: None, with_bare: None });
        self.cases.last_mut().expect("just added")
    }

    fn bodies(&mut self, plain: usize) {
        let field = format!("Authorization: Bearer {}", self.needs.many[0]);
        for (size, words) in [(1 << 10, "1 KiB"), (100 << 10, "100 KiB"), (1 << 20, "1 MiB")] {
            let upload = vec![with_field("POST", "/api/cells", &field, size)];
            self.add(&format!("{words} sent by the client"), Base::One, plain, upload).with_bare = Some(Cores::One);
            let download = vec![get(&format!("/bytes/{size}"), &self.needs.many[0])];
            self.add(&format!("{words} answered"), Base::One, plain, download).with_bare = Some(Cores::One);
        }
    }

    fn routes(&mut self) {
        for (count, words) in
            [(1, "1 route"), (100, "100 routes, the last one matches"), (10_000, "10,000 routes, the last one matches")]
        {
            let rules =
                (0..count).fold(String::new(), |rules, number| rules + &format!("  - {{ path: /r{number}/** }}\n"));
            let instance = self.with(&format!("routes:\n{rules}"));
            self.add(words, Base::One, instance, vec![get(&format!("/r{}/x", count - 1), &self.needs.many[0])]);
        }
    }

    fn providers(&mut self) {
        let upstream = format!("http://{}", self.needs.upstream);
        for count in [10, 50] {
            let issuer = |number: usize| format!("https://bench{number}.example");
            let provider = |number: usize| {
                format!(
                    "{{ name: p{number}, user_prefix: \"p{number}:\", preset: jwt, issuer: \"{}\", audience: bench, jwks: {{ pem_file: \"{}\" }} }}",
                    issuer(number),
                    self.needs.key
                )
            };
            let providers = (0..count).map(provider).collect::<Vec<_>>().join(", ");
            let instance = self.start("0", &Settings { upstream: &upstream, providers, limits: "", more: "" });
            let token = |number: usize| get("/api/cells", &self.needs.issuer.token_of(&issuer(number % count), number));
            let requests = (0..self.needs.many.len()).map(token).collect();
            self.add(&format!("2,000 tokens of {count} providers"), Base::Many, instance, requests);
        }
    }

    /// Returns what must live as long as the instances.
    async fn tls(&mut self) -> Vec<TempFile> {
        let authority = Authority::new();
        let (certificate, key) = authority.issue("localhost");
        let files = vec![TempFile::new(&certificate), TempFile::new(&key), authority.pem()];
        let listener = format!(
            "listen: [{{ address: \"{{listen}}\", tls: {{ certificate_file: \"{}\", key_file: \"{}\" }} }}]\n",
            files[0].path(),
            files[1].path()
        );
        let request = || vec![get("/api/cells", &self.needs.many[0])];
        let requests = [request(), request()];
        let [here, there] = requests;
        let instance = self.with(&listener);
        self.add("TLS on the listener", Base::One, instance, here).tls = Some(authority.connector(&[]));
        let address = upstream::start(Some(authority.acceptor("localhost"))).await;
        let port = address.rsplit_once(':').map_or("", |(_, port)| port);
        let url = format!("{{ url: \"https://localhost:{port}\", tls: {{ ca_file: \"{}\" }} }}", files[2].path());
        let providers = vestibule::provider(self.needs.key);
        let instance = self.start("0", &Settings { upstream: &url, providers, limits: "", more: "" });
        self.add("TLS to the upstream", Base::One, instance, there);
        files
    }

    async fn session(&mut self) {
        let instance = self.with("browser: { session: {} }\n");
        let field = format!("Authorization: Bearer {}", self.needs.many[0]);
        let request = Arc::new(vec![with_field("POST", "/.vestibule/session", &field, 0)]);
        let mut client = Client::connect(&self.instances[instance].address, None, &request).await;
        let (status, head, _) = client.exchange().await.expect("an answer");
        let name = "set-cookie:";
        let line = head.split("\r\n").find(|line| line.to_ascii_lowercase().starts_with(name));
        let cookie = line.and_then(|line| line[name.len()..].split(';').next()).map(str::trim);
        let Some(cookie) = cookie else { panic!("no session: {status} {head}") };
        let field = format!("Cookie: {cookie}\r\nSec-Fetch-Site: same-origin");
        self.add(
            "a session cookie instead of a token",
            Base::One,
            instance,
            vec![with_field("GET", "/api/cells", &field, 0)],
        );
    }

    /// Returns what must live as long as the instance.
    async fn shared(&mut self) -> Option<(Engine, TempFile)> {
        if installed("redis-server").is_none() {
            println!("skipped: shared, since redis-server is not installed");
            return None;
        }
        let (engine, secret) = (Engine::start().await, TempFile::new("0123456789abcdefghijklmnopqrstuvwxyz-bench"));
        let more =
            format!("shared: {{ url: \"{}\", name: bench, secret_file: \"{}\" }}\n", engine.url(), secret.path());
        let instance = self.with(&more);
        vestibule::ready(&self.instances[instance].address).await;
        self.add("shared state", Base::One, instance, vec![get("/api/cells", &self.needs.many[0])]);
        Some((engine, secret))
    }

    /// Never seen tokens, the assertion, and a second core.
    fn others(&mut self) {
        let upstream = format!("http://{}", self.needs.upstream);
        let request = || vec![get("/api/cells", &self.needs.many[0])];
        let requests = [request(), request()];
        let [assertion, two] = requests;
        let instance = self.with("identity: { assertion: {} }\n");
        self.add("a signed assertion", Base::One, instance, assertion);
        let turn = self.needs.many.iter().map(|token| get("/api/cells", token)).collect();
        let providers = vestibule::provider(self.needs.key);
        let limits = ", token_cache: 0";
        let instance = self.start("0", &Settings { upstream: &upstream, providers, limits, more: "" });
        self.add("a token never seen before (RS256)", Base::Many, instance, turn);
        let providers = vestibule::provider(self.needs.key);
        let instance = self.start("0,1", &Settings { upstream: &upstream, providers, limits: "", more: "" });
        self.add(TWO_CORES, Base::One, instance, two).with_bare = Some(Cores::Two);
        if vestibule::named().is_some() {
            let providers = vestibule::provider(self.needs.key);
            let settings = Settings { upstream: &upstream, providers, limits: "", more: "" };
            let instance = self.start_program(vestibule::cargos(), "0", &settings);
            let one = vec![get("/api/cells", &self.needs.many[0])];
            self.add("as `cargo build --release` alone makes the program", Base::One, instance, one);
        }
    }
}

pub(crate) async fn table(needs: Needs<'_>, effort: Effort) -> Table {
    let mut made = Cases { needs, instances: Vec::new(), cases: Vec::new() };
    let plain = made.with("");
    made.add(ONE, Base::Itself, plain, vec![get("/api/cells", &needs.many[0])]).with_bare = Some(Cores::One);
    let turn = needs.many.iter().map(|token| get("/api/cells", token)).collect();
    made.add(MANY, Base::Itself, plain, turn);
    made.bodies(plain);
    made.routes();
    made.providers();
    let _files = made.tls().await;
    made.session().await;
    let _engine = made.shared().await;
    made.others();
    let bare = |cores: &str| Middle::start(|listen| bare::command(cores, listen, needs.upstream)).expect("starts");
    let (bare_on_one, bare_on_two) = (bare("0"), bare("0,1"));

    let warm_up = effort.length * 3;
    let mut loads = Vec::new();
    for case in &made.cases {
        let middle = &made.instances[case.instance];
        let target = Target { middle, address: &middle.address, tls: case.tls.as_ref() };
        let own = Ready::new(target, &case.work, warm_up).await;
        let bare = match case.with_bare {
            Some(cores) => {
                let bare = if cores == Cores::One { &bare_on_one } else { &bare_on_two };
                let target = Target { middle: bare, address: &bare.address, tls: None };
                Some(Ready::new(target, &case.work, warm_up).await)
            }
            None => None,
        };
        loads.push((own, bare));
    }
    let mut values: Vec<Values> = made.cases.iter().map(|_| Values::default()).collect();
    for _ in 0..effort.rounds {
        for ((own, bare), values) in loads.iter_mut().zip(&mut values) {
            values.own.push(own.measure(effort.length).await.micros);
            if let Some(bare) = bare {
                values.bare.push(bare.measure(effort.length).await.micros);
            }
        }
    }
    let of = |name: &str| made.cases.iter().position(|case| case.name == name).map(|at| &values[at]);
    let (one, many) = (of(ONE), of(MANY));
    let rows = made.cases.iter().zip(&values).map(|(case, values)| {
        println!("{:<52} {} µs", case.name, crate::quartiles(&values.own));
        let base = match case.base {
            Base::One => one,
            Base::Many => many,
            Base::Itself => None,
        };
        let added = base.map(|base| paired(&values.own, &base.own, |own, base| own - base));
        let bare = case.with_bare.map(|_| page::median(&values.bare));
        Added { name: case.name.clone(), micros: page::median(&values.own), added, bare }
    });
    let rows = rows.collect();
    let two_cores = one.zip(of(TWO_CORES)).map(|(one, two)| {
        let times = |one: &[f64], two: &[f64]| paired(one, two, |one, two| 2.0 * one / two);
        (times(&one.own, &two.own), times(&one.bare, &two.bare))
    });
    Table { rows, two_cores }
}

/// What was measured for a case, turn by turn.
#[derive(Default)]
struct Values {
    own: Vec<f64>,
    bare: Vec<f64>,
}

/// Returns the median of what two values of the same turn make.
fn paired(these: &[f64], those: &[f64], make: impl Fn(f64, f64) -> f64) -> f64 {
    let made: Vec<f64> = these.iter().zip(those).map(|(this, that)| make(*this, *that)).collect();
    page::median(&made)
}

/// Returns the rows as a table of Markdown, and the sentence about two cores.
pub(crate) fn markdown(table: &Table) -> String {
    let mut text = "| | CPU time | added | bare hyper |\n|---|---|---|---|".to_owned();
    for row in &table.rows {
        let added = row.added.map_or_else(String::new, |added| format!("{added:+.1} µs").replace('-', "−"));
        let bare = row.bare.map_or_else(String::new, |bare| format!("{bare:.1} µs"));
        text += &format!("\n| {} | {:.1} µs | {added} | {bare} |", row.name, row.micros);
    }
    if let Some((times, bare)) = table.two_cores {
        text +=
            &format!("\n\nTwo cores serve {times:.2} times as many requests as one; of bare hyper, {bare:.2} times.");
    }
    text
}
