//! The keys that a configuration sets to other values than their defaults.

use super::reference::EXAMPLE;
use super::tree::{self, Node, Value, join};

/// Returns the paths of the keys with other values than in the example file, which shows the defaults. A key without a
/// default is there with a sample, or not at all, and counts as changed unless it has the sample's value.
pub(super) fn changed_keys(tree: &Node) -> Vec<String> {
    let mut found = Vec::new();
    let example = tree::parse(EXAMPLE).ok();
    collect(tree, example.as_ref(), "", &mut found);
    found
}

fn collect(node: &Node, example: Option<&Node>, path: &str, found: &mut Vec<String>) {
    match &node.value {
        Value::Mapping(entries) if !entries.is_empty() => {
            for (key, child) in entries {
                collect(child, example.and_then(|example| example.get(&key.name)), &join(path, &key.name), found);
            }
        }
        Value::Sequence(items) if items.iter().any(|item| !matches!(item.value, Value::Scalar { .. })) => {
            // Every entry has the defaults that the example shows in its first one.
            let first = example.and_then(|example| example.members(true, false).into_iter().next());
            for (index, item) in items.iter().enumerate() {
                collect(item, first, &format!("{path}[{index}]"), found);
            }
        }
        _ if example.is_some_and(|example| texts(example) == texts(node)) => {}
        _ => found.push(path.to_owned()),
    }
}

/// Returns a value, or the values of a list, without regard to quotes.
fn texts(node: &Node) -> Vec<&str> {
    match &node.value {
        Value::Scalar { text, .. } => vec![text],
        Value::Sequence(items) => items.iter().flat_map(texts).collect(),
        Value::Mapping(_) => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_that_differ_from_the_example_are_named() {
        let yaml = "limits: { token_bytes: 16KiB, header_bytes: 64KiB }\nlog: { quiet: [/health], level: debug }\nproviders:\n  - { cache_ttl: 5m }\n  - { cache_ttl: \"1m\" }\nroutes: [{ path: /x }]\n";
        let tree = tree::parse(yaml).expect("yaml");
        assert_eq!(
            changed_keys(&tree),
            ["limits.header_bytes", "log.level", "providers[1].cache_ttl", "routes[0].path"]
        );
    }
}
