//! Checks that imports in `src` point one way: between the modules listed in `lib.rs`, and between the files inside
//! each.
//!
//! At every level of the module tree the sibling modules form a graph without cycles, each taken together with its
//! submodules. A module and its own submodules may use each other. A re-export counts as an import of the file that it
//! leads to. Calls of methods are not detected.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

/// The modules from left to right. A module may import any module to its right, never one to its left.
const MODULES: [&[&str]; 12] = [
    &["main"],
    &["cli"],
    &["listen", "admin", "control", "reload", "demo"],
    &["proxy"],
    &["websocket", "browser"],
    &["authenticate"],
    &["runtime"],
    &["shared"],
    &["http"],
    &["auth"],
    &["policy"],
    &["config"],
];
/// The modules that take plain values. Any module may use them, and they use none.
const LEAVES: [&str; 12] = [
    "telemetry",
    "drain",
    "budget",
    "workers",
    "file_work",
    "json",
    "der",
    "page",
    "random",
    "small_server",
    "fuzz",
    "simulation",
];

/// The allowed imports that close a cycle. One that closes none any more must be removed from this list.
const CIRCLES: [(&str, &str); 0] = [];

/// A source file and its module: `src/auth/keys/set.rs` is `["auth", "keys", "set"]`, `src/lib.rs` is `[]`.
struct Source {
    module: Vec<String>,
    text: String,
    /// The imports of the file with their names.
    imports: Vec<Import>,
    /// The code of the file without comments, strings, tests and imports.
    code: String,
    submodules: BTreeSet<String>,
}

struct Import {
    path: Vec<String>,
    name: String,
    is_reexport: bool,
}

fn sources() -> Vec<Source> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    read(&root, &root, &mut found);
    assert!(found.len() > 150, "only {} files found", found.len());
    found
}

fn read(root: &Path, folder: &Path, found: &mut Vec<Source>) {
    for entry in std::fs::read_dir(folder).expect("src") {
        let path = entry.expect("entry").path();
        if path.is_dir() {
            read(root, &path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let relative = path.strip_prefix(root).expect("below src").with_extension("");
            let names = relative.components().map(|part| part.as_os_str().to_string_lossy().into_owned());
            let module = names.filter(|name| name != "lib").collect();
            found.push(Source::new(module, std::fs::read_to_string(&path).expect("text")));
        }
    }
}

impl Source {
    fn new(module: Vec<String>, text: String) -> Self {
        let mut source =
            Self { module, imports: Vec::new(), code: String::new(), submodules: BTreeSet::new(), text: String::new() };
        let plain = without_comments_and_strings(without_inline_tests(&text));
        let mut use_tree: Option<(bool, String)> = None;
        for line in plain.lines() {
            let (is_public, rest) = visibility(line.trim_start());
            if use_tree.is_none()
                && let Some(name) = rest.strip_prefix("mod ").and_then(|rest| rest.strip_suffix(';'))
            {
                source.submodules.insert(name.to_owned());
                continue;
            }
            if use_tree.is_none()
                && let Some(tree) = rest.strip_prefix("use ")
            {
                use_tree = Some((is_public, tree.to_owned()));
            } else if let Some((_, tree)) = &mut use_tree {
                tree.push_str(line);
            } else {
                source.code.push_str(line);
                source.code.push('\n');
            }
            if let Some((is_reexport, tree)) = use_tree.take_if(|(_, tree)| tree.trim_end().ends_with(';')) {
                let tree: String =
                    tree.trim_end().trim_end_matches(';').replace(" as ", "@").split_whitespace().collect();
                for leaf in leaves_of(&tree) {
                    let (path, alias) = leaf.split_once('@').unwrap_or((&leaf, ""));
                    let path: Vec<String> =
                        path.split("::").filter(|part| *part != "self").map(str::to_owned).collect();
                    let name =
                        if alias.is_empty() { path.last().cloned().unwrap_or_default() } else { alias.to_owned() };
                    source.imports.push(Import { path, name, is_reexport });
                }
            }
        }
        source.text = text;
        source
    }

    /// Returns every path that the file uses.
    fn used_paths(&self) -> Vec<Vec<String>> {
        let words: BTreeSet<&str> =
            self.code.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty()).collect();
        let imported = self.imports.iter().filter(|import| !import.is_reexport || words.contains(import.name.as_str()));
        let mut paths: Vec<Vec<String>> = imported.map(|import| import.path.clone()).collect();
        let is_part = |c: char| c.is_alphanumeric() || matches!(c, '_' | ':');
        for text in self.code.split(|c| !is_part(c)) {
            let path: Vec<String> = text.split("::").filter(|part| *part != "self").map(str::to_owned).collect();
            let first = path.first().map(String::as_str).unwrap_or_default();
            if path.len() > 1 && (matches!(first, "crate" | "super") || self.submodules.contains(first)) {
                paths.push(path);
            }
        }
        paths
    }

    /// Returns a path from the root of the crate, or `None` for one into another crate.
    fn absolute(&self, path: &[String]) -> Option<Vec<String>> {
        let supers = path.iter().take_while(|part| *part == "super").count();
        match path.first()?.as_str() {
            "crate" => Some(path[1..].to_vec()),
            "super" => {
                let above = &self.module[..self.module.len().checked_sub(supers)?];
                Some([above, &path[supers..]].concat())
            }
            first if self.submodules.contains(first) => Some([&self.module, path].concat()),
            _ => None,
        }
    }
}

fn visibility(line: &str) -> (bool, &str) {
    match line.strip_prefix("pub") {
        Some(rest) if rest.starts_with(' ') => (true, rest.trim_start()),
        Some(rest) if rest.starts_with('(') => (true, rest.split_once(") ").map_or(rest, |(_, rest)| rest)),
        _ => (false, line),
    }
}

/// Returns the text before the inline module of tests. A module of tests in a file of its own is only declared, often
/// at the top.
fn without_inline_tests(text: &str) -> &str {
    let is_inline = |at: &usize| text[*at..].lines().nth(1).is_some_and(|line| line.ends_with('{'));
    let inline = text.match_indices("#[cfg(test)]\nmod ").map(|(at, _)| at).find(is_inline);
    &text[..inline.unwrap_or(text.len())]
}

fn without_comments_and_strings(text: &str) -> String {
    let mut out = String::new();
    let mut in_string = false;
    for line in text.lines() {
        let mut rest = line;
        while let Some(at) = rest.find(if in_string { &['"', '\\'][..] } else { &['"', '/', '\''][..] }) {
            let (before, from) = rest.split_at(at);
            if !in_string {
                out.push_str(before);
            }
            let skipped = match (from.as_bytes(), in_string) {
                ([b'/', b'/', ..], false) => from.len(),
                ([b'\'', b'"', b'\'', ..], false) => 3,
                ([b'\'', b'\\', _, b'\'', ..], false) => 4,
                ([b'\\', _, ..], true) => 2,
                ([b'"', ..], _) => {
                    in_string = !in_string;
                    1
                }
                _ => 1,
            };
            rest = from.get(skipped..).unwrap_or_default();
        }
        if !in_string {
            out.push_str(rest);
        }
        out.push('\n');
    }
    out
}

/// Expands `a::{b, c::{d, e}}` to `a::b`, `a::c::d`, `a::c::e`.
fn leaves_of(tree: &str) -> Vec<String> {
    let Some((before, group)) = tree.split_once('{') else { return vec![tree.to_owned()] };
    let group = group.strip_suffix('}').expect("a closed group");
    let (mut depth, mut members) = (0, vec![String::new()]);
    for character in group.chars() {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                members.push(String::new());
                continue;
            }
            _ => {}
        }
        members.last_mut().expect("one").push(character);
    }
    let members = members.iter().filter(|member| !member.is_empty());
    members.flat_map(|member| leaves_of(member)).map(|leaf| format!("{before}{leaf}")).collect()
}

/// Returns the file that defines the item of a path, through re-exports and imports.
fn file_of(path: &[String], files: &BTreeMap<&[String], &Source>, depth: usize) -> Option<Vec<String>> {
    let length = (0..=path.len()).rev().find(|length| files.contains_key(&path[..*length]))?;
    let source = files[&path[..length]];
    if let Some(name) = path.get(length).filter(|_| depth < 8)
        && let Some(import) = source.imports.iter().find(|import| import.name == *name)
        && let Some(absolute) = source.absolute(&import.path)
    {
        return file_of(&[&absolute, &path[length + 1..]].concat(), files, depth + 1);
    }
    Some(source.module.clone())
}

/// Returns the modules below a file that are compiled for tests and fuzzers alone.
fn fuzz_modules(source: &Source) -> impl Iterator<Item = Vec<String>> {
    let declared = source.text.split("#[cfg(any(test, fuzzing))]\n").skip(1);
    let names = declared.filter_map(|rest| visibility(rest.trim_start()).1.strip_prefix("mod ")?.split_once(';'));
    names.map(|(name, _)| [&source.module[..], &[name.to_owned()]].concat())
}

/// Returns the imports between sibling modules, by the module above them.
fn sibling_imports(sources: &[Source]) -> BTreeMap<Vec<String>, BTreeSet<(String, String)>> {
    let files: BTreeMap<&[String], &Source> = sources.iter().map(|source| (&*source.module, source)).collect();
    let mut graphs: BTreeMap<Vec<String>, BTreeSet<(String, String)>> = BTreeMap::new();
    // What fuzz targets import is not the program's.
    let fuzz_only: Vec<Vec<String>> = sources.iter().flat_map(fuzz_modules).collect();
    for source in sources.iter().filter(|source| !fuzz_only.iter().any(|module| source.module.starts_with(module))) {
        let absolute = source.used_paths().into_iter().filter_map(|path| source.absolute(&path));
        for target in absolute.filter_map(|path| file_of(&path, &files, 0)) {
            let shared = source.module.iter().zip(&target).take_while(|(one, other)| one == other).count();
            if let (Some(from), Some(to)) = (source.module.get(shared), target.get(shared)) {
                let above = source.module[..shared].to_vec();
                graphs.entry(above).or_default().insert((from.clone(), to.clone()));
            }
        }
    }
    graphs
}

fn leads_to<'g>(graph: &'g BTreeSet<(String, String)>, from: &'g str, to: &str) -> bool {
    let (mut seen, mut waiting) = (BTreeSet::new(), vec![from]);
    while let Some(module) = waiting.pop() {
        if module == to {
            return true;
        }
        if seen.insert(module) {
            waiting.extend(graph.iter().filter(|(from, _)| from == module).map(|(_, to)| to.as_str()));
        }
    }
    false
}

#[test]
fn modules_import_only_what_is_to_their_right_in_the_picture() {
    let place: BTreeMap<&str, usize> =
        MODULES.iter().enumerate().flat_map(|(index, names)| names.iter().map(move |name| (*name, index))).collect();
    for (from, to) in &sibling_imports(&sources())[&Vec::new()] {
        if LEAVES.contains(&to.as_str()) {
            continue;
        }
        assert!(!LEAVES.contains(&from.as_str()), "the leaf {from} imports {to}");
        let (Some(at), Some(target)) = (place.get(from.as_str()), place.get(to.as_str())) else {
            panic!("{from} imports {to}, and one of them is not in the picture");
        };
        assert!(at < target, "{from} imports {to}, which is not to its right");
    }
}

#[test]
fn files_of_a_module_import_each_other_without_circles() {
    let mut excepted = BTreeSet::new();
    let mut circles = Vec::new();
    for (above, graph) in sibling_imports(&sources()) {
        let named = |name: &str| [&above[..], &[name.to_owned()]].concat().join("::");
        let is_excepted = |(from, to): &(String, String)| CIRCLES.contains(&(&named(from), &named(to)));
        let (listed, kept): (BTreeSet<_>, BTreeSet<_>) = graph.iter().cloned().partition(is_excepted);
        for (from, to) in &listed {
            assert!(leads_to(&graph, to, from), "{} imports {} in no circle; remove it", named(from), named(to));
            excepted.insert((named(from), named(to)));
        }
        circles.extend(
            kept.iter().filter(|(from, to)| leads_to(&kept, to, from)).map(|(from, to)| (named(from), named(to))),
        );
    }
    for (from, to) in CIRCLES {
        assert!(excepted.contains(&(from.to_owned(), to.to_owned())), "{from} does not import {to}; remove it");
    }
    assert!(circles.is_empty(), "imports that close a circle:\n{circles:#?}");
}

#[test]
fn imports_are_read_from_the_text_of_a_file() {
    let text = "//! use crate::no;\n#[cfg(test)]\nmod cases;\nuse std::fmt;\npub(super) use below::Gone;\npub use below::Kept;\nmod below;\n\
                use super::{self as above, one::{Two, three}};\nfn f(k: Kept) { crate::a::b(\"crate::no\", '\"', below::call()); }\n\
                #[cfg(test)]\nmod tests {\n    use crate::no;\n}\n";
    let source = Source::new(vec!["x".to_owned(), "y".to_owned()], text.to_owned());
    let absolute = source.used_paths().into_iter().filter_map(|path| source.absolute(&path));
    let mut found: Vec<String> = absolute.map(|path| path.join("::")).collect();
    found.sort();
    assert_eq!(found, ["a::b", "x", "x::one::Two", "x::one::three", "x::y::below::Kept", "x::y::below::call"]);
}

#[test]
fn every_module_starts_with_a_module_comment() {
    for source in sources() {
        let beginning = source.text.lines().next().unwrap_or_default();
        assert!(
            beginning.starts_with("//!"),
            "{} does not start with a module comment: {beginning}",
            source.module.join("::")
        );
    }
}
