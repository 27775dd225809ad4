//! Writes the reference of all keys, `docs/configuration.md`, from the documentation of the shapes and the values of
//! `config.example.yaml`.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use schemars::generate::SchemaSettings;
use serde_json::Value;

use super::shape::Config;
use super::tree::{self, Node};

/// The example configuration, which shows each key with its default or, where it has none, with a sample value.
pub(super) const EXAMPLE: &str = include_str!("../../config.example.yaml");

/// The shapes of a route whose keys are those of the section above with the same name.
const AS_ABOVE: [&str; 2] = ["RouteTokenFrom", "RouteWebSocket"];

/// A key of the configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Entry {
    /// The path of the key: `providers[].jwks.refresh`.
    path: String,
    /// The value in the example; empty where the example shows none, or keys below it.
    value: String,
    /// What the key does, and the values of an enumeration.
    description: String,
}

/// Returns every key once, in the order of the shapes. A shape that is used twice is described at its first use.
fn entries() -> Vec<Entry> {
    let schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<Config>().to_value();
    let example = tree::parse(EXAMPLE).ok();
    let mut collector = Collector {
        definitions: schema.get("$defs").unwrap_or(&Value::Null),
        seen: BTreeSet::new(),
        found: Vec::new(),
    };
    let examples: Vec<&Node> = example.iter().collect();
    collector.keys_of(&schema, "", &examples);
    collector.found
}

struct Collector<'s> {
    definitions: &'s Value,
    /// The shapes that have been described.
    seen: BTreeSet<&'s str>,
    found: Vec<Entry>,
}

impl<'s> Collector<'s> {
    /// Describes the keys of a mapping. `examples` are the places where the example shows such a mapping.
    fn keys_of(&mut self, mapping: &'s Value, above: &str, examples: &[&Node]) {
        for (key, property) in mapping.get("properties").and_then(Value::as_object).into_iter().flatten() {
            // This key is the short form of a value and is never written.
            if key == "form" {
                continue;
            }
            let path = if above.is_empty() { key.clone() } else { format!("{above}.{key}") };
            let values: Vec<&Node> = examples.iter().filter_map(|example| example.get(key)).collect();
            let described = property.get("description").and_then(Value::as_str).unwrap_or_default();
            let at = self.found.len();
            let (shape, suffix) = self.shape_of(property);
            let variants = shape.map(variants).unwrap_or_default();
            let description = [&described.replace('\n', " "), &variants].map(|text| text.trim()).join(" ");
            let value = values.first().map(|value| value.flow()).unwrap_or_default();
            self.found.push(Entry { path: path.clone(), value, description: description.trim().to_owned() });
            let Some(shape) = shape.filter(|shape| shape.get("properties").is_some()) else { continue };
            let inner: Vec<&Node> =
                values.iter().flat_map(|value| value.members(suffix == "[]", suffix == ".NAME")).collect();
            self.keys_of(shape, &format!("{path}{suffix}"), &inner);
            let has_example_below = self.found[at + 1..].iter().any(|entry| !entry.value.is_empty());
            if has_example_below && self.found.len() > at + 1 {
                self.found[at].value.clear();
            }
        }
    }

    /// Returns the shape inside references, optional values, lists and maps, and the suffix of its path. Returns `None`
    /// for a shape that has been described, or is described elsewhere.
    fn shape_of(&mut self, schema: &'s Value) -> (Option<&'s Value>, &'static str) {
        if let Some(name) = schema.get("$ref").and_then(Value::as_str).and_then(|path| path.rsplit('/').next()) {
            let Some(definition) = self.definitions.get(name) else { return (None, "") };
            let Some((name, _)) = self.definitions.as_object().and_then(|all| all.get_key_value(name)) else {
                return (None, "");
            };
            let is_mapping = definition.get("properties").is_some();
            if AS_ABOVE.contains(&name.as_str()) || (is_mapping && !self.seen.insert(name)) {
                return (None, "");
            }
            return self.shape_of(definition);
        }
        if let Some(members) = schema.get("anyOf").and_then(Value::as_array) {
            return members.first().map_or((None, ""), |member| self.shape_of(member));
        }
        if let Some(items) = schema.get("items") {
            return (self.shape_of(items).0, "[]");
        }
        if let Some(values) = schema.get("additionalProperties").filter(|values| values.is_object()) {
            return (self.shape_of(values).0, ".NAME");
        }
        (Some(schema), "")
    }
}

/// Returns the values of an enumeration, each with its meaning.
fn variants(schema: &Value) -> String {
    let variants = schema.get("oneOf").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let texts = variants.iter().filter_map(|variant| {
        let name = variant.get("const")?.as_str()?;
        let meaning = variant.get("description").and_then(Value::as_str).unwrap_or_default().replace('\n', " ");
        Some(format!("`{name}`: {meaning}"))
    });
    texts.collect::<Vec<_>>().join(" ")
}

/// Returns the reference as Markdown: a table for each key of the first level.
#[must_use]
pub fn markdown() -> String {
    let mut out = String::from(
        "# Configuration\n\nThis page has every key, with its default or, where it has none, an example. `vestibule schema --markdown` prints it.\n`vestibule schema` prints the JSON Schema for your editor. [`config.example.yaml`](../config.example.yaml) shows the keys in one file.\n`[]` stands for an entry of a list, and `NAME` for a name of your own.\n\nThe configuration comes from the first of these that is given: `--config FILE`; `VESTIBULE_CONFIG`, a path; `VESTIBULE_CONFIG_YAML`, the\nYAML itself; `/etc/vestibule/vestibule.yaml`, if it exists. Without any of them the flags alone are the configuration.\nA flag takes precedence over its environment variable, and the variable over the file.\n\n- `${NAME}` and `${NAME:-default}` inside a value are replaced by an environment variable. `$$` is a dollar.\n- Durations are written `250ms`, `30s`, `5m`, `12h`, `1d`; sizes `512`, `16KiB`, `1MiB`.\n- `null` switches a feature off where the key says so.\n- Where a list is expected, a single text is split at commas. `[]` is the empty list.\n- It is an error if a variable leaves a list, a member of a list, a claim's value or a secret empty.\n",
    );
    let entries = entries();
    let first = |entry: &Entry| entry.path.split(['.', '[']).next().unwrap_or_default().to_owned();
    let stands_alone = |key: &str| entries.iter().filter(|entry| first(entry) == key).count() == 1;
    let mut section = "Keys at the top level".to_owned();
    let _ = write!(out, "\n## {section}\n{HEAD}");
    entries.iter().filter(|entry| stands_alone(&first(entry))).for_each(|entry| row(&mut out, entry));
    for entry in entries.iter().filter(|entry| !stands_alone(&first(entry))) {
        if first(entry) != section {
            section = first(entry);
            let _ = write!(out, "\n## `{section}`\n{HEAD}");
        }
        row(&mut out, entry);
    }
    out
}

const HEAD: &str = "\n| key | default or example | |\n|---|---|---|\n";

fn row(out: &mut String, entry: &Entry) {
    let cell = |text: &str| text.replace('|', "\\|");
    let value = if entry.value.is_empty() { String::new() } else { format!("`{}`", cell(&entry.value)) };
    let _ = writeln!(out, "| `{}` | {value} | {} |", entry.path, cell(&entry.description));
}

#[cfg(test)]
mod tests {
    use super::super::read::SHORT_FORMS;
    use super::*;

    #[test]
    fn every_key_is_described_once_with_the_value_of_the_example() {
        let entries = entries();
        let of = |path: &str| entries.iter().find(|entry| entry.path == path).unwrap_or_else(|| panic!("{path}"));
        assert_eq!(of("errors").value, "generic");
        assert_eq!(of("providers[].jwks.refresh").value, "10m");
        assert_eq!(of("providers[].remote.client_id").value, "vestibule");
        assert_eq!(of("routes[].require").value, "{ org_role: admin }");
        assert_eq!(of("dialects.NAME.refresh.token").value, "[/token]");
        assert_eq!(of("upstream").value, "", "its keys have values");
        assert!(of("errors").description.contains("`generic`: The client learns that"), "{:?}", of("errors"));
        for entry in &entries {
            assert!(!entry.description.is_empty(), "{} is not described", entry.path);
            let first = entry.description.split(' ').next().unwrap_or_default();
            let has_no_subject = ["How", "Whether", "What", "Where", "Which", "Who", "Whom", "Whose"].contains(&first);
            assert!(!has_no_subject, "{} is described by a fragment: {}", entry.path, entry.description);
            assert!(entry.description.ends_with('.'), "{} is not described by a sentence", entry.path);
            assert_eq!(entries.iter().filter(|other| other.path == entry.path).count(), 1, "{}", entry.path);
        }
        assert!(entries.len() > 200, "{}", entries.len());
    }

    #[test]
    fn short_forms_are_keys_of_their_shapes() {
        let schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<Config>().to_value();
        for (shape, key) in SHORT_FORMS {
            assert!(schema.pointer(&format!("/$defs/{shape}/properties/{key}")).is_some(), "{shape}.{key}");
        }
    }
}
