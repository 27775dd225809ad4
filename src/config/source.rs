//! The sources of the configuration and their order: flags, then the environment, then the file.

use std::path::{Path, PathBuf};

use super::bounded_file::read_bounded;
use super::changed::changed_keys;
use super::diagnostic::{FLAGS, Report};
use super::finding::{Finding, Place};
use super::read;
use super::shape::Config;
use super::shown::shown_file;
use super::tree::{self, Node};

/// The settings that flags can set (docs/contract.md section 9); all others are in the file.
#[derive(Clone, Debug, Default)]
#[allow(clippy::missing_docs_in_private_items, reason = "each is the flag of its name")]
pub struct Flags {
    pub config: Option<PathBuf>,
    pub listen: Option<String>,
    pub upstream: Option<String>,
    pub upstream_preset: Option<String>,
    pub preset: Option<String>,
    pub issuer: Option<String>,
    pub audience: Option<String>,
    pub origin: Vec<String>,
    pub trusted_proxy: Vec<String>,
    pub log_level: Option<String>,
    pub log_format: Option<String>,
}

/// A lookup of environment variables: those of the process, or a table in a test.
pub struct Environment<'a>(pub &'a dyn Fn(&str) -> Option<String>);

impl Environment<'_> {
    /// Reads the environment of this process.
    #[must_use]
    pub fn process() -> Environment<'static> {
        Environment(&|name| std::env::var(name).ok())
    }

    fn get(&self, name: &str) -> Option<String> {
        (self.0)(name).filter(|value| !value.is_empty())
    }
}

/// A configuration of the right shape, with the data that gives errors their places.
#[derive(Debug)]
pub struct Loaded {
    /// The keys and values.
    pub config: Config,
    /// The name of the file or of the variable; `flags` when there is neither.
    pub source: String,
    /// The path of the file, if there is one.
    pub file: Option<PathBuf>,
    /// The first bytes, in hex, of a digest of the text and the flags, to distinguish versions.
    pub digest: String,
    text: String,
    tree: Node,
    /// Errors about variables that are not set. Their values are in `config` as they were written, or left out.
    unset: Vec<Finding>,
    unknown: Vec<Finding>,
}

impl Loaded {
    /// Returns the result of validation, or all errors at once: unknown keys and the findings of validation, with their
    /// places.
    ///
    /// # Errors
    /// Returns a [`Report`] when there is any error.
    pub fn conclude<T>(self, validated: Result<T, ()>, findings: Vec<Finding>) -> Result<T, Report> {
        let mut all = self.unset;
        let places: Vec<Option<Place>> = all.iter().map(|finding| finding.place).collect();
        let follows = |finding: &Finding| {
            let place = finding.place.unwrap_or_else(|| self.tree.place_of(&finding.path));
            places.contains(&Some(place))
        };
        all.extend(self.unknown);
        all.extend(findings.into_iter().filter(|finding| !follows(finding)));
        match validated {
            Ok(value) if all.is_empty() => Ok(value),
            _ => Err(Report::new(&self.source, &self.text, &self.tree, all)),
        }
    }

    /// Returns the paths of the keys that are set to other values than their defaults.
    #[must_use]
    pub fn changed_keys(&self) -> Vec<String> {
        changed_keys(&self.tree)
    }

    /// Writes the place of its key, such as `vestibule.yaml:6:5`, in front of each warning that names a key.
    pub fn locate(&self, warnings: &mut [Finding]) {
        for warning in warnings {
            if !warning.path.is_empty() {
                let report = Report::new(&self.source, &self.text, &self.tree, vec![warning.clone()]);
                warning.line = Some(report.line());
            }
        }
    }
}

const DEFAULT_FILE: &str = "/etc/vestibule/vestibule.yaml";

/// Loads the configuration from its sources in their order.
///
/// # Errors
/// Returns a [`Report`] when the file cannot be read, is not YAML, or has values of a wrong type, with its unknown keys.
/// Without such a value, unknown keys and variables that are not set are reported by [`Loaded::conclude`], together with
/// the other errors.
pub fn load(flags: &Flags, environment: &Environment<'_>) -> Result<Loaded, Report> {
    let file = named_file(flags, environment);
    let (source, text) = text(file.as_deref(), environment)?;
    let mut tree = tree::parse(&text).map_err(|finding| Report::single(&source, &text, finding))?;
    let mut unset = Vec::new();
    tree.substitute(environment.0, "", &mut unset);
    overlay(&mut tree, flags, environment).map_err(|finding| Report::single(&source, &text, finding))?;
    // A wrong value, or a variable that is not set, is one error, not the only one: the rest is read without the value.
    let (mut readable, mut wrong) = (tree.clone(), Vec::<Finding>::new());
    loop {
        let (finding, unknown) = match read::read::<Config>(&readable) {
            Ok((config, unknown)) if wrong.is_empty() => {
                let digest = digest(&text, flags);
                return Ok(Loaded { config, source, file, digest, text, tree, unset, unknown });
            }
            Ok((_, unknown)) => (None, unknown),
            Err((finding, unknown)) => (Some(finding), unknown),
        };
        let place = finding.as_ref().and_then(|finding| finding.place);
        if let Some(mut finding) = finding {
            let is_unset = place.is_some() && unset.iter().any(|unset| unset.place == place);
            // A key that is missing now because its value was wrong.
            let follows = wrong.iter().any(|former| former.path.starts_with(&finding.path));
            if !is_unset && !follows {
                // Entries of a list before this one may have been left out.
                finding.path = place.and_then(|place| tree.path_of(place)).unwrap_or(finding.path);
                wrong.push(finding);
            }
        }
        if wrong.len() >= MOST_WRONG_VALUES || !place.is_some_and(|place| readable.remove_at(place)) {
            unset.extend(wrong);
            unset.extend(unknown);
            return Err(Report::new(&source, &text, &tree, unset));
        }
    }
}

/// The number of wrong values after which the rest is not read: each is another pass over the file.
const MOST_WRONG_VALUES: usize = 20;

/// Loads a configuration from a text, without flags and variables.
///
/// # Errors
/// Returns the errors of [`load`].
pub fn load_yaml(yaml: &str) -> Result<Loaded, Report> {
    let environment = |name: &str| (name == "VESTIBULE_CONFIG_YAML").then(|| yaml.to_owned());
    load(&Flags::default(), &Environment(&environment))
}

/// Returns the path of the configuration file, if one is named or the usual one exists.
#[must_use]
pub fn named_file(flags: &Flags, environment: &Environment<'_>) -> Option<PathBuf> {
    let named = flags.config.clone().or_else(|| environment.get("VESTIBULE_CONFIG").map(PathBuf::from));
    let usual = || {
        let usual = PathBuf::from(DEFAULT_FILE);
        (environment.get("VESTIBULE_CONFIG_YAML").is_none() && usual.exists()).then_some(usual)
    };
    named.or_else(usual)
}

fn text(file: Option<&Path>, environment: &Environment<'_>) -> Result<(String, String), Report> {
    match (file, environment.get("VESTIBULE_CONFIG_YAML")) {
        (Some(path), _) => read_file(path),
        (None, Some(yaml)) => Ok(("VESTIBULE_CONFIG_YAML".to_owned(), yaml)),
        (None, None) => Ok((FLAGS.to_owned(), String::new())),
    }
}

fn read_file(path: &Path) -> Result<(String, String), Report> {
    let source = path.display().to_string();
    let failed = |message: String| Report::single(shown_file(&source), "", Finding::new("", message));
    match read_bounded(path, tree::BYTES) {
        Ok(None) => Err(failed("larger than 1 MiB; is this the right file?".to_owned())),
        Ok(Some(bytes)) => match String::from_utf8(bytes) {
            Ok(text) => Ok((source, text)),
            Err(_) => Err(failed("is not UTF-8 text; save it as UTF-8".to_owned())),
        },
        // The YAML itself, with its secrets, is a usual mistake in place of a file's name.
        Err(error) if shown_file(&source) != source => Err(failed(format!(
            "cannot be read: {error}; --config and VESTIBULE_CONFIG name a file, and the YAML itself goes into VESTIBULE_CONFIG_YAML"
        ))),
        Err(error) => Err(failed(format!("cannot be read: {error}"))),
    }
}

/// A flag, its environment variable, and the key that both set.
struct Setting {
    flag: &'static str,
    variable: &'static str,
    path: &'static [&'static str],
}

const SETTINGS: [Setting; 8] = [
    Setting { flag: "--listen", variable: "VESTIBULE_LISTEN", path: &["listen"] },
    Setting { flag: "--upstream", variable: "VESTIBULE_UPSTREAM", path: &["upstream", "url"] },
    Setting { flag: "--upstream-preset", variable: "VESTIBULE_UPSTREAM_PRESET", path: &["upstream", "preset"] },
    Setting { flag: "--preset", variable: "VESTIBULE_PRESET", path: &["preset"] },
    Setting { flag: "--issuer", variable: "VESTIBULE_ISSUER", path: &["issuer"] },
    Setting { flag: "--audience", variable: "VESTIBULE_AUDIENCE", path: &["audience"] },
    Setting { flag: "--log-level", variable: "VESTIBULE_LOG_LEVEL", path: &["log", "level"] },
    Setting { flag: "--log-format", variable: "VESTIBULE_LOG_FORMAT", path: &["log", "format"] },
];

fn overlay(tree: &mut Node, flags: &Flags, environment: &Environment<'_>) -> Result<(), Finding> {
    if let Some(listen) = environment.get("VESTIBULE_DEFAULT_LISTEN")
        && tree.get("listen").is_none()
    {
        tree.set(&["listen"], Node::scalar(Place::Variable("VESTIBULE_DEFAULT_LISTEN"), listen));
    }
    let given = |name: &str| match name {
        "--listen" => flags.listen.clone(),
        "--upstream" => flags.upstream.clone(),
        "--upstream-preset" => flags.upstream_preset.clone(),
        "--preset" => flags.preset.clone(),
        "--issuer" => flags.issuer.clone(),
        "--audience" => flags.audience.clone(),
        "--log-level" => flags.log_level.clone(),
        "--log-format" => flags.log_format.clone(),
        _ => None,
    };
    let mut provider = Node::empty();
    let mut provider_place = None;
    for setting in &SETTINGS {
        let node = match (given(setting.flag), environment.get(setting.variable)) {
            (Some(value), _) => Node::scalar(Place::Flag(setting.flag), value),
            (None, Some(value)) => Node::scalar(Place::Variable(setting.variable), value),
            (None, None) => continue,
        };
        if matches!(setting.path, ["preset" | "issuer" | "audience"]) {
            provider_place.get_or_insert(node.place);
            provider.set(setting.path, node);
        } else {
            tree.set(setting.path, node);
        }
    }
    if let Some(place) = provider_place {
        if tree.get("providers").is_some() {
            return Err(Finding::at(
                place,
                "",
                "describes a provider, and the file has `providers`; write it there, or leave `providers` out",
            ));
        }
        provider.place = place;
        tree.set(&["providers"], Node::sequence(place, vec![provider]));
    }
    for (flag, variable, key, values) in [
        ("--origin", "VESTIBULE_ORIGIN", "origins", &flags.origin),
        ("--trusted-proxy", "VESTIBULE_TRUSTED_PROXY", "trusted_proxies", &flags.trusted_proxy),
    ] {
        if !values.is_empty() {
            let place = Place::Flag(flag);
            let items = values.iter().map(|value| Node::scalar(place, value.clone())).collect();
            tree.set(&[key], Node::sequence(place, items));
        } else if let Some(value) = environment.get(variable) {
            tree.set(&[key], Node::scalar(Place::Variable(variable), value));
        }
    }
    Ok(())
}

/// Returns the digest of a text and of the flags that change what it says. One file is the same configuration by whatever
/// path it is named.
fn digest(text: &str, flags: &Flags) -> String {
    let flags = Flags { config: None, ..flags.clone() };
    let everything = format!("{text}\0{flags:?}");
    let digest = aws_lc_rs::digest::digest(&aws_lc_rs::digest::SHA256, everything.as_bytes());
    let [a, b, c, ..] = digest.as_ref() else { return String::new() };
    format!("{a:02x}{b:02x}{c:02x}")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn load_with(yaml: &str, flags: &Flags, variables: &[(&str, &str)]) -> Result<Loaded, Report> {
        let environment = |name: &str| {
            if name == "VESTIBULE_CONFIG_YAML" {
                return Some(yaml.to_owned());
            }
            variables.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned())
        };
        load(flags, &Environment(&environment))
    }

    #[test]
    fn the_digest_is_of_the_text_and_of_the_flags_that_change_it() {
        let of = |flags: Flags| digest("listen: 127.0.0.1:1\n", &flags);
        let named = |path: &str| of(Flags { config: Some(path.into()), ..Flags::default() });
        assert_eq!(named("vestibule.yaml"), named("/etc/vestibule.yaml"));
        assert_ne!(named("vestibule.yaml"), of(Flags { listen: Some("127.0.0.1:2".into()), ..Flags::default() }));
    }

    #[test]
    fn flag_beats_environment_beats_file() {
        let flags = Flags { listen: Some("127.0.0.1:1".into()), ..Flags::default() };
        let variables = [("VESTIBULE_LISTEN", "127.0.0.1:2"), ("VESTIBULE_UPSTREAM", "http://e:1")];
        let loaded = load_with("listen: 127.0.0.1:3\nupstream: http://f:1\n", &flags, &variables).expect("loads");
        assert_eq!(loaded.config.listen[0].address, "127.0.0.1:1");
        assert_eq!(loaded.config.upstream.and_then(|u| u.url).as_deref(), Some("http://e:1"));
    }

    #[test]
    fn the_images_default_listen_stands_below_the_file() {
        let variables = [("VESTIBULE_DEFAULT_LISTEN", ":8080")];
        let loaded = load_with("listen: 127.0.0.1:3\n", &Flags::default(), &variables).expect("loads");
        assert_eq!(loaded.config.listen[0].address, "127.0.0.1:3");
        let loaded = load_with("{}", &Flags::default(), &variables).expect("loads");
        assert_eq!(loaded.config.listen[0].address, ":8080");
    }

    #[test]
    fn provider_flags_beside_providers_are_an_error() {
        let flags = Flags { issuer: Some("https://i.example".into()), ..Flags::default() };
        let report = load_with("providers: []\n", &flags, &[]).expect_err("both");
        assert!(report.to_string().starts_with("--issuer "), "{report}");
    }

    #[test]
    fn variables_may_stand_for_numbers_durations_and_lists() {
        let yaml = "limits: { connections: \"${N}\", header_timeout: \"${T}\" }\norigins: ${O}\n";
        let variables = [("N", "7"), ("T", "3s"), ("O", "https://a.example, https://b.example")];
        let config = load_with(yaml, &Flags::default(), &variables).expect("loads").config;
        assert_eq!(config.limits.connections, 7);
        assert_eq!(config.limits.header_timeout, std::time::Duration::from_secs(3));
        assert_eq!(config.origins, ["https://a.example", "https://b.example"]);
    }

    #[test]
    fn unknown_keys_come_all_at_once_with_their_places() {
        let yaml =
            "listn: x\nproviders:\n  - issuer: https://i.example\n    audiences: [api]\nlimits:\n  conections: 3\n";
        let report = load_yaml(yaml).expect("shape is right").conclude(Ok(()), Vec::new()).expect_err("unknown");
        let places: Vec<usize> = report.findings().iter().map(|f| f.place.map_or(0, Place::line)).collect();
        assert_eq!(places, [1, 4, 6]);
        let shown = report.to_string();
        assert!(shown.contains("providers[0].audiences: unknown key; here it is `audience`"), "{shown}");
        assert!(shown.contains("  4 |     audiences: [api]\n    |     ^^^^^^^^^\n"), "{shown}");
        assert!(shown.contains("did you mean `connections`?"), "{shown}");
        assert!(shown.ends_with("3 errors. Nothing was started."), "{shown}");
    }

    #[test]
    fn a_key_in_the_wrong_mapping_is_told_where_it_belongs() {
        let yaml = "credential: { value: x }\nproviders:\n  - { issuer: https://i.example, client_secret: x }\n";
        let report = load_yaml(yaml).expect("shape is right").conclude(Ok(()), Vec::new()).expect_err("unknown");
        let shown = report.to_string();
        assert!(shown.contains("credential: unknown key; here it is `upstream: { credential:"), "{shown}");
        assert!(shown.contains("client_secret: unknown key; here it is `browser: { login:"), "{shown}");
    }

    #[test]
    fn a_wrong_type_stands_alone_and_says_what_was_expected() {
        for (yaml, expected) in [
            ("limits: { connections: many }\n", "limits.connections: \"many\" is not a whole number"),
            ("drain: { timeout: 30 }\n", "drain.timeout: \"30\" is not a duration such as 30s, 5m or 12h"),
            ("routes: { path: /x }\n", "routes: expected a list, found a mapping"),
            (
                "routes: [{ path: /x, auth: nobody }]\n",
                "routes[0].auth: \"nobody\" is not one of required, optional, none, deny",
            ),
            (
                "log: loud\n",
                "log: expected a mapping, found a text, as in `log: { level: debug }`; its keys are format, level, access, query, quiet",
            ),
            ("cors: true\n", "cors: expected a mapping, found true, as in `cors: {}`; its keys are allowed_methods"),
            ("cors: [GET]\n", "cors: expected a mapping, found a list, as in `cors: {}`"),
            (
                "routes: [{ path: /x, require: true }]\n",
                "routes[0].require: expected a mapping (key: value), found true",
            ),
        ] {
            let report = load_yaml(yaml).expect_err(yaml).to_string();
            assert!(report.contains(expected), "{yaml}: {report}");
        }
    }

    #[test]
    fn a_secret_is_never_quoted() {
        let yaml = "providers: [{ preset: shared-secret, secrte: hunter2hunter2 }]\n";
        let report = load_yaml(yaml).expect("shape").conclude(Ok(()), Vec::new()).expect_err("unknown").to_string();
        assert!(!report.contains("hunter2"), "{report}");
        assert!(report.contains("did you mean `secret`?"), "{report}");
    }

    #[test]
    fn short_forms_read_like_long_ones() {
        for yaml in ["upstream: http://a:1\n", "upstream: { url: http://a:1 }\n"] {
            let config = load_yaml(yaml).expect("loads").config;
            assert_eq!(config.upstream.and_then(|u| u.url).as_deref(), Some("http://a:1"));
        }
        let config = load_yaml("listen: [\":1\", { address: \":2\" }]\n").expect("loads").config;
        assert_eq!(config.listen.iter().map(|l| l.address.as_str()).collect::<Vec<_>>(), [":1", ":2"]);
    }

    #[test]
    fn null_switches_a_source_off_and_absence_leaves_it() {
        let config = load_yaml("token_from: { query: null }\n").expect("loads").config;
        assert!(config.token_from.query.is_none());
        assert!(config.token_from.header.is_some());
        let config = load_yaml("token_from: { query: off }\nroutes: [{ path: /x, token_from: { header: null } }]\n")
            .expect("loads")
            .config;
        assert!(config.token_from.query.is_none());
        assert_eq!(config.routes[0].token_from.header, Some(None));
        assert!(config.routes[0].token_from.query.is_none());
    }
}
