//! The house: imports point one way, and nothing stands outside the picture in `lib.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// From left to right; a room may import any room to its right, never one to its left.
const ROOMS: [&[&str]; 11] = [
    &["main"],
    &["cli"],
    &["listen", "admin", "control", "reload", "demo"],
    &["proxy"],
    &["websocket", "browser"],
    &["authenticate"],
    &["runtime"],
    &["http"],
    &["auth"],
    &["policy"],
    &["config"],
];
/// Leaves take plain values; anyone may use them, they use nobody.
const LEAVES: [&str; 6] = ["telemetry", "drain", "budget", "json", "page", "small_server"];

fn sources(folder: &Path, found: &mut Vec<(String, String)>) {
    for entry in std::fs::read_dir(folder).expect("src") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
            let relative = path.strip_prefix(root).expect("below src");
            let first = relative.components().next().expect("a name").as_os_str().to_string_lossy();
            let room = first.trim_end_matches(".rs").to_owned();
            found.push((room, std::fs::read_to_string(&path).expect("text")));
        }
    }
}

/// The rooms a source file names, in code outside its tests.
fn imports(text: &str) -> BTreeSet<String> {
    let code: String = text
        .split("#[cfg(test)]")
        .next()
        .unwrap_or(text)
        .lines()
        .filter(|line| !line.trim_start().starts_with("//"))
        .collect::<Vec<_>>()
        .join("\n");
    let mut found = BTreeSet::new();
    for part in code.split("crate::").skip(1) {
        if let Some(group) = part.strip_prefix('{') {
            let group = group.split('}').next().unwrap_or_default();
            found.extend(group.split(',').map(|item| item.trim().split("::").next().unwrap_or_default().to_owned()));
        } else {
            found.insert(part.chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '_').collect());
        }
    }
    found.remove("");
    found
}

#[test]
fn imports_point_one_way() {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    let place: BTreeMap<&str, usize> =
        ROOMS.iter().enumerate().flat_map(|(index, rooms)| rooms.iter().map(move |room| (*room, index))).collect();
    for (room, text) in &files {
        for import in imports(text) {
            if room == "lib" || import == *room || LEAVES.contains(&import.as_str()) {
                continue;
            }
            assert!(!LEAVES.contains(&room.as_str()), "the leaf {room} imports {import}");
            let (Some(from), Some(to)) = (place.get(room.as_str()), place.get(import.as_str())) else {
                panic!("{room} imports {import}, and one of them is not in the picture");
            };
            assert!(from < to, "{room} imports {import}, which is not to its right");
        }
    }
}

#[test]
fn every_module_opens_with_what_it_owns() {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut files);
    for (room, text) in files {
        assert!(text.starts_with("//!"), "a file of {room} has no opening words: {}", &text[..text.len().min(60)]);
    }
}
