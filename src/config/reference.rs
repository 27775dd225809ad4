//! The reference: what `config.example.yaml` says of each key, for the JSON Schema and for `docs/configuration.md`.
//! One text says it all, and a test holds its keys and defaults to the code.

use std::fmt::Write as _;

/// The commented example.
const EXAMPLE: &str = include_str!("../../config.example.yaml");

/// A key of the example.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where it stands: `providers[].jwks.refresh`.
    pub path: String,
    /// Its default, or an example; empty where keys stand below it.
    pub value: String,
    /// What is said of it.
    pub comment: String,
}

/// Every key once, in the order of the example.
#[must_use]
pub fn entries() -> Vec<Entry> {
    let mut found: Vec<Entry> = Vec::new();
    // Indentation and path of what the line stands under.
    let mut above: Vec<(usize, String)> = Vec::new();
    for line in EXAMPLE.lines() {
        let indent = line.len() - line.trim_start().len();
        let text = line.trim_start();
        if let Some(comment) = text.strip_prefix('#') {
            let comment = comment.trim();
            // A line of comment alone belongs to the key above it, or shows a key that is not set.
            match key_of(comment).filter(|_| indent > 0 && indent < 12) {
                Some((key, value, comment)) => {
                    above.retain(|(at, _)| *at < indent);
                    add(&mut found, path(&above, key), value, comment);
                }
                None if indent >= 12 => {
                    if let Some(last) = found.last_mut() {
                        let so_far = std::mem::take(&mut last.comment);
                        last.comment = [so_far.as_str(), comment].join(" ").trim_start().into();
                    }
                }
                None => {}
            }
            continue;
        }
        let (indent, text) = match text.strip_prefix("- ") {
            Some(item) => {
                above.retain(|(at, _)| *at < indent + 1);
                (indent + 2, item)
            }
            None => (indent, text),
        };
        let Some((key, value, comment)) = key_of(text) else { continue };
        above.retain(|(at, _)| *at < indent);
        let is_item = line.trim_start().starts_with("- ") || above.last().is_some_and(|(at, _)| at % 2 == 1);
        if is_item && let Some((at, under)) = above.last_mut() {
            if !under.ends_with("[]") {
                under.push_str("[]");
            }
            *at |= 1;
        }
        let here = path(&above, key);
        add(&mut found, here.clone(), value, comment);
        above.push((indent, here));
    }
    found
}

fn path(above: &[(usize, String)], key: &str) -> String {
    above.last().map_or_else(|| key.to_owned(), |(_, under)| format!("{under}.{key}"))
}

fn add(found: &mut Vec<Entry>, path: String, value: &str, comment: &str) {
    // What is shown again in another example of the same list says nothing new.
    if found.iter().any(|known| known.path == path) {
        return;
    }
    found.push(Entry { path, value: value.to_owned(), comment: comment.to_owned() });
}

/// `key: value   # comment`.
fn key_of(line: &str) -> Option<(&str, &str, &str)> {
    let (key, rest) = line.split_once(':')?;
    let is_key = !key.is_empty() && key.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-');
    if !is_key || !(rest.is_empty() || rest.starts_with(' ')) {
        return None;
    }
    let (value, comment) = match rest.split_once(" #") {
        Some((value, comment)) => (value, comment),
        None => (rest, ""),
    };
    Some((key, value.trim(), comment.trim()))
}

/// The reference as Markdown: a table for each key of the first level.
#[must_use]
pub fn markdown() -> String {
    let mut out = String::from(
        "# Configuration\n\nEvery key, with its default or, where it has none, an example. Made by `vestibule schema --markdown` from\n[`config.example.yaml`](../config.example.yaml); `vestibule schema` prints the JSON Schema for your editor. `[]` stands for\nan entry of a list.\n\nWhere the configuration comes from: `--config FILE`, else `VESTIBULE_CONFIG` (a path), else `VESTIBULE_CONFIG_YAML` (the YAML\nitself), else `/etc/vestibule/vestibule.yaml` if it exists, else flags alone. A flag stands above its environment variable,\nand that above the file. `${NAME}` and `${NAME:-default}` are replaced inside values, after parsing; `$$` is a dollar.\nDurations are written `250ms`, `30s`, `5m`, `12h`, `1d`; sizes `512`, `16KiB`, `1MiB`. `null` switches a feature off where the key says so.\nWhere a list is expected one text is split at commas. A list, a member of one, a claim's value or a secret that a variable leaves empty is an\nerror; `[]` is the empty list.\n",
    );
    let entries = entries();
    let first = |entry: &Entry| entry.path.split(['.', '[']).next().unwrap_or_default().to_owned();
    let stands_alone = |key: &str| entries.iter().filter(|entry| first(entry) == key).count() == 1;
    let mut section = "Keys that stand alone".to_owned();
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
    let _ = writeln!(out, "| `{}` | {value} | {} |", entry.path, cell(&entry.comment));
}

/// What is said of a key.
pub(super) fn comment<'a>(entries: &'a [Entry], path: &str) -> Option<&'a str> {
    let entry = entries.iter().find(|entry| entry.path == path)?;
    Some(entry.comment.as_str()).filter(|comment| !comment.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_found_with_their_values_and_comments() {
        let entries = entries();
        let of = |path: &str| entries.iter().find(|entry| entry.path == path).unwrap_or_else(|| panic!("{path}"));
        assert_eq!(of("errors").value, "generic");
        assert_eq!(of("providers[].jwks.refresh").value, "10m");
        assert_eq!(of("providers[].region").comment, "cognito, with");
        assert_eq!(of("providers[].remote.client_id").value, "vestibule");
        assert_eq!(of("routes[].require").value, "{ org_role: admin }");
        assert_eq!(of("dialects.my-app.refresh.token").value, "[/token]");
        assert!(of("hosts").comment.ends_with("elsewhere any"), "{:?}", of("hosts"));
        assert!(of("limits.connections_per_address").comment.starts_with("IPv6 by /64"));
        let mut paths: Vec<_> = entries.iter().map(|entry| &entry.path).collect();
        let count = paths.len();
        paths.sort();
        paths.dedup();
        assert_eq!(paths.len(), count, "each once");
    }
}
