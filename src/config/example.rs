//! An example of each key that expects a mapping, for the message about a value that is none.

/// The structs of the shape, each with an example of a key that holds one. A struct that is in `SHORT_FORMS` needs none.
const EXAMPLES: [(&str, &str); 28] = [
    ("Admin", "admin: { listen: \"127.0.0.1:9180\" }"),
    ("Allow", "allow: { email_domains: [example.com] }"),
    ("Assertion", "assertion: {}"),
    ("Browser", "browser: { session: {} }"),
    ("Control", "control: { listen: \"unix:/run/vestibule.sock\" }"),
    ("Cors", "cors: {}"),
    ("Credential", "credential: { header: X-Backend-Secret, value_file: /run/secrets/backend }"),
    ("Dialect", "dialects: { mine: { authenticate: { match: { /type: auth }, token: [/token] } } }"),
    ("DialectMessage", "authenticate: { match: { /type: auth }, token: [/token] }"),
    ("DialectPing", "ping: { match: { /type: ping }, reply: { type: pong } }"),
    ("DialectRefresh", "refresh: { match: { /type: refresh }, token: [/token] }"),
    ("Drain", "drain: { timeout: 25s }"),
    ("Events", "events: { on_expiry: close }"),
    ("Identity", "identity: { headers: { X-User-Id: sub } }"),
    ("Jwks", "jwks: { url: \"https://issuer.example.com/keys\" }"),
    ("Limits", "limits: { connections: 10000 }"),
    ("ListenTls", "tls: { certificate_file: /run/tls/tls.crt, key_file: /run/tls/tls.key }"),
    ("Log", "log: { level: debug }"),
    ("Login", "login: { client_id: my-client, client_secret_file: /run/secrets/client }"),
    ("ProtectedResource", "protected_resource: {}"),
    ("Provider", "providers: [{ preset: oidc, issuer: \"https://issuer.example.com\", audience: my-api }]"),
    ("QuerySource", "query: { name: token, mode: move }"),
    ("Remote", "remote: { mode: also }"),
    ("Route", "routes: [{ path: /health, auth: none }]"),
    ("Session", "session: {}"),
    ("SubprotocolSource", "subprotocol: [{ prefix: bearer., encoding: plain }]"),
    ("TokenTo", "token_to: { http: header }"),
    ("UpstreamTls", "tls: { ca_file: /run/tls/ca.crt }"),
];
/// The structs whose keys may be at the top level and in a route.
const ALSO_OF_ROUTES: [([&str; 2], &str); 2] = [
    (["TokenFrom", "RouteTokenFrom"], "token_from: { header: Authorization }"),
    (["WebSocket", "RouteWebSocket"], "websocket: { dialect: vestibule }"),
];

/// Returns the part of a message that shows how a mapping of this struct is written.
pub(super) fn shown(name: &str) -> String {
    let of_routes = ALSO_OF_ROUTES.iter().find(|(names, _)| names.contains(&name)).map(|(_, example)| *example);
    let example = of_routes.or_else(|| EXAMPLES.iter().find(|(found, _)| *found == name).map(|(_, example)| *example));
    example.map_or_else(String::new, |example| format!(", as in `{example}`"))
}

#[cfg(test)]
mod tests {
    use super::super::load_yaml;
    use super::*;

    /// Returns a configuration that has a key of this struct in its place.
    fn around(name: &str, line: &str) -> String {
        match name {
            "Allow" | "Jwks" | "Remote" => format!("providers: [{{ {line} }}]\n"),
            "Assertion" => format!("identity: {{ {line} }}\n"),
            "Credential" | "TokenTo" | "UpstreamTls" => format!("upstream: {{ {line} }}\n"),
            "DialectMessage" | "DialectPing" | "DialectRefresh" => format!("dialects: {{ mine: {{ {line} }} }}\n"),
            "ListenTls" => format!("listen: [{{ address: \":8443\", {line} }}]\n"),
            "Login" | "Session" => format!("browser: {{ {line} }}\n"),
            "QuerySource" | "SubprotocolSource" => format!("token_from: {{ {line} }}\n"),
            "RouteTokenFrom" | "RouteWebSocket" => format!("routes: [{{ path: /x, {line} }}]\n"),
            _ => format!("{line}\n"),
        }
    }

    #[test]
    fn each_example_is_shown_in_place_of_a_wrong_value_and_loads() {
        let of_routes = ALSO_OF_ROUTES.iter().flat_map(|(names, example)| names.map(|name| (name, *example)));
        for (name, example) in EXAMPLES.into_iter().chain(of_routes) {
            let key = example.split(':').next().expect("a key");
            let value = if name == "Dialect" { "{ mine: true }" } else { "true" };
            let wrong = load_yaml(&around(name, &format!("{key}: {value}"))).expect_err(name).to_string();
            assert!(wrong.contains(&format!("expected a mapping, found true, as in `{example}`")), "{name}: {wrong}");
            let right = around(name, example);
            let loaded = load_yaml(&right).unwrap_or_else(|report| panic!("{right}{report}"));
            loaded.conclude(Ok(()), Vec::new()).unwrap_or_else(|report| panic!("{right}{report}"));
        }
    }
}
