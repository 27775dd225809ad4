//! Parses YAML into a tree with the place of every key and value.
//!
//! Scalars stay text, with a mark whether they were plain: the key that reads a value decides its type. Aliases are
//! expanded up to a limit on nodes, duplicate keys are refused with their place, and the parser limits the depth.

mod variables;

use granit_parser::{Event, Options, Parser, ScalarStyle, Span};

use super::finding::{Finding, Place};

/// A value of the configuration, with its place.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
    /// The first variable that was replaced in the value, as written: `${NAME}`.
    pub(super) variable: Option<String>,
}

#[derive(Clone, Debug)]
pub(super) enum Value {
    Scalar { text: String, plain: bool },
    Sequence(Vec<Node>),
    Mapping(Vec<(Key, Node)>),
}

#[derive(Clone, Debug)]
pub(super) struct Key {
    pub(super) name: String,
    pub(super) place: Place,
}

/// The maximum number of values in a file. Aliases can multiply them.
const NODES: usize = 50_000;
const DEPTH: usize = 32;
/// The maximum number of bytes of a configuration, checked before parsing.
pub(super) const BYTES: usize = 1 << 20;

impl Node {
    pub(super) fn scalar(place: Place, text: impl Into<String>) -> Self {
        Self::new(place, Value::Scalar { text: text.into(), plain: false })
    }

    pub(super) fn empty() -> Self {
        Self::new(Place::Nowhere, Value::Mapping(Vec::new()))
    }

    pub(super) fn sequence(place: Place, items: Vec<Self>) -> Self {
        Self::new(place, Value::Sequence(items))
    }

    fn new(place: Place, value: Value) -> Self {
        Self { place, value, variable: None }
    }

    /// Returns the message for a blank text, with the variable that made it blank.
    pub(super) fn blank(&self) -> String {
        match (&self.variable, self.place) {
            (Some(variable), _) => format!("{variable} is empty; give the variable a value"),
            (None, Place::Variable(_)) => "is empty; give the variable a value, or unset it".to_owned(),
            (None, _) => "is empty; write [] for none".to_owned(),
        }
    }

    /// Returns the message for a text with a blank member where a list is expected.
    pub(super) fn blank_list(&self, text: &str) -> String {
        if text.split(',').all(|part| part.trim().is_empty()) {
            return self.blank();
        }
        let whose = self.variable.as_ref().map_or_else(String::new, |variable| format!("{variable} "));
        format!("{whose}holds an empty member; remove the extra comma")
    }

    pub(super) fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar { text, plain: true } if matches!(text.as_str(), "" | "~" | "null" | "Null" | "NULL"))
    }

    pub(super) fn get(&self, key: &str) -> Option<&Self> {
        match &self.value {
            Value::Mapping(entries) => entries.iter().find(|(k, _)| k.name == key).map(|(_, node)| node),
            _ => None,
        }
    }

    /// Returns the entries of a list or the values of a map; the node itself if it is neither.
    pub(super) fn members(&self, is_list: bool, is_map: bool) -> Vec<&Self> {
        match &self.value {
            Value::Sequence(items) if is_list => items.iter().collect(),
            Value::Mapping(entries) if is_map => entries.iter().map(|(_, value)| value).collect(),
            _ => vec![self],
        }
    }

    /// Returns the value on one line, in YAML's flow style.
    pub(super) fn flow(&self) -> String {
        match &self.value {
            Value::Scalar { text, plain: true } => text.clone(),
            Value::Scalar { text, plain: false } => format!("\"{text}\""),
            Value::Sequence(items) => format!("[{}]", items.iter().map(Self::flow).collect::<Vec<_>>().join(", ")),
            Value::Mapping(entries) if entries.is_empty() => "{}".to_owned(),
            Value::Mapping(entries) => {
                let members = entries.iter().map(|(key, value)| format!("{}: {}", key.name, value.flow()));
                format!("{{ {} }}", members.collect::<Vec<_>>().join(", "))
            }
        }
    }

    /// Sets the value at a path of keys, and creates the mappings on the path. A flag replaces the value of the file.
    pub(super) fn set(&mut self, path: &[&str], node: Self) {
        let Some((first, rest)) = path.split_first() else {
            *self = node;
            return;
        };
        if !matches!(self.value, Value::Mapping(_)) {
            // With `upstream: URL` and `--upstream-preset` the short form becomes the long one.
            let short = std::mem::replace(self, Self::empty());
            if matches!(short.value, Value::Scalar { .. }) && !short.is_null() {
                let key = Key { name: "url".to_owned(), place: short.place };
                self.value = Value::Mapping(vec![(key, short)]);
            }
        }
        let Value::Mapping(entries) = &mut self.value else { return };
        if let Some((_, child)) = entries.iter_mut().find(|(k, _)| k.name == *first) {
            child.set(rest, node);
        } else {
            let place = node.place;
            let mut child = Self::empty();
            child.place = place;
            child.set(rest, node);
            entries.push((Key { name: (*first).to_owned(), place }, child));
        }
    }

    /// Removes the value at `place` below this node, as if it had not been written. Returns whether there was one.
    pub(super) fn remove_at(&mut self, place: Place) -> bool {
        match &mut self.value {
            Value::Scalar { .. } => false,
            Value::Sequence(items) => {
                let before = items.len();
                items.retain(|item| item.place != place);
                items.len() < before || items.iter_mut().any(|item| item.remove_at(place))
            }
            Value::Mapping(entries) => {
                let before = entries.len();
                entries.retain(|(_, item)| item.place != place);
                entries.len() < before || entries.iter_mut().any(|(_, item)| item.remove_at(place))
            }
        }
    }

    /// Returns the path of the value at a place: `providers[0].audience`.
    pub(super) fn path_of(&self, place: Place) -> Option<String> {
        let found = |step: String, node: &Self| {
            let rest = if node.place == place { Some(String::new()) } else { node.path_of(place) };
            rest.map(
                |rest| if rest.is_empty() || rest.starts_with('[') { step + &rest } else { format!("{step}.{rest}") },
            )
        };
        match &self.value {
            Value::Scalar { .. } => None,
            Value::Sequence(items) => {
                items.iter().enumerate().find_map(|(index, item)| found(format!("[{index}]"), item))
            }
            Value::Mapping(entries) => entries.iter().find_map(|(key, item)| found(key.name.clone(), item)),
        }
    }

    /// Returns the child for one step of a path: a key, or the index of an entry, with or without its closing bracket.
    fn step(&self, step: &str) -> Option<&Self> {
        match &self.value {
            // A list of one member may be written without the list.
            Value::Mapping(_) if step == "0]" => Some(self),
            Value::Mapping(_) => self.get(step),
            Value::Sequence(items) => items.get(step.trim_end_matches(']').parse::<usize>().ok()?),
            Value::Scalar { .. } => None,
        }
    }

    /// Returns the place of the value at `path` (`providers[0].audience`), or of its nearest ancestor.
    pub(super) fn place_of(&self, path: &str) -> Place {
        let mut node = self;
        let mut place = Place::Nowhere;
        for step in path.split(['.', '[']).filter(|step| !step.is_empty()) {
            let Some(next) = node.step(step) else { break };
            node = next;
            place = next.place;
        }
        place
    }

    /// Returns the path as it is written: `upstream.url` is `upstream` where the short form is used.
    pub(super) fn written_path<'p>(&self, path: &'p str) -> &'p str {
        let mut node = self;
        for (at, step) in path.split('.').scan(0, |at, step| {
            let here = *at;
            *at += step.len() + 1;
            Some((here, step))
        }) {
            if matches!(node.value, Value::Scalar { .. }) && !node.is_null() && at > 0 {
                return &path[..at - 1];
            }
            for part in step.split('[').filter(|part| !part.is_empty()) {
                match node.step(part) {
                    Some(next) => node = next,
                    None => return path,
                }
            }
        }
        path
    }
}

pub(super) fn join(path: &str, key: &str) -> String {
    if path.is_empty() { key.to_owned() } else { format!("{path}.{key}") }
}

/// Parses one YAML document.
///
/// # Errors
/// Returns the first error: invalid YAML, a duplicate key, a second document, or a limit that is exceeded.
pub(super) fn parse(text: &str) -> Result<Node, Finding> {
    if text.len() > BYTES {
        return Err(Finding::new("", "larger than 1 MiB; is this the right file?"));
    }
    let mut options = Options::default();
    options.set_emit_comments(false);
    let mut builder = Builder {
        parser: Parser::new_from_str_with_options(text, options),
        text,
        anchors: std::collections::HashMap::new(),
        nodes: 0,
    };
    builder.document()
}

struct Builder<'input> {
    parser: Parser<'input, granit_parser::StrInput<'input>>,
    /// The whole text, for errors.
    text: &'input str,
    anchors: std::collections::HashMap<usize, Node>,
    nodes: usize,
}

/// Returns the likely cause of a YAML error on this line.
fn hint(line: &str) -> &'static str {
    let unquoted = |(at, _): (usize, &str)| {
        let before = line[..at].trim_end_matches(|c: char| !c.is_whitespace());
        at > before.len() && !line[before.len()..].starts_with(['"', '\'', '{'])
    };
    if line.trim_start_matches(' ').starts_with('\t') {
        "; indent with spaces"
    } else if line.match_indices('{').skip(1).any(unquoted) {
        "; inside { } a text with braces needs quotes: path: \"/files/{user}/**\""
    } else {
        ""
    }
}

fn place(span: Span) -> Place {
    Place::At { line: span.start.line(), column: span.start.col() + 1 }
}

impl<'input> Builder<'input> {
    fn next(&mut self) -> Result<(Event<'input>, Span), Finding> {
        match self.parser.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => {
                let marker = error.marker();
                let place = Place::At { line: marker.line(), column: marker.col() + 1 };
                let line = self.text.lines().nth(marker.line().saturating_sub(1)).unwrap_or_default();
                Err(Finding::at(place, "", format!("not valid YAML: {}{}", error.info(), hint(line))))
            }
            None => Err(Finding::new("", "not valid YAML: it ends early")),
        }
    }

    fn document(&mut self) -> Result<Node, Finding> {
        let mut root = None;
        loop {
            let (event, span) = self.next()?;
            match event {
                Event::StreamStart | Event::DocumentStart(..) | Event::DocumentEnd => {}
                Event::StreamEnd => return Ok(root.unwrap_or_else(Node::empty)),
                event => {
                    if root.is_some() {
                        return Err(Finding::at(
                            place(span),
                            "",
                            "a second document; one file holds one configuration",
                        ));
                    }
                    let node = self.node(event, span, 0)?;
                    root = Some(if node.is_null() { Node::empty() } else { node });
                }
            }
        }
    }

    fn count(&mut self, span: Span, more: usize) -> Result<(), Finding> {
        self.nodes += more;
        if self.nodes > NODES {
            return Err(Finding::at(place(span), "", format!("more than {NODES} values, aliases counted in full")));
        }
        Ok(())
    }

    fn node(&mut self, event: Event<'input>, span: Span, depth: usize) -> Result<Node, Finding> {
        self.count(span, 1)?;
        if depth > DEPTH {
            return Err(Finding::at(place(span), "", format!("nested deeper than {DEPTH}")));
        }
        let (anchor, node) = match event {
            Event::Scalar(text, style, anchor, _) => {
                let value = Value::Scalar { text: text.into_owned(), plain: style == ScalarStyle::Plain };
                (anchor, Node::new(place(span), value))
            }
            Event::SequenceStart(_, anchor, _) => {
                let mut items = Vec::new();
                loop {
                    match self.next()? {
                        (Event::SequenceEnd, _) => break,
                        (event, span) => items.push(self.node(event, span, depth + 1)?),
                    }
                }
                (anchor, Node::new(place(span), Value::Sequence(items)))
            }
            Event::MappingStart(_, anchor, _) => (anchor, Node::new(place(span), Value::Mapping(self.entries(depth)?))),
            Event::Alias(id) => {
                let Some(node) = self.anchors.get(&id).cloned() else {
                    return Err(Finding::at(place(span), "", "an alias inside its own anchor"));
                };
                self.count(span, size(&node))?;
                return Ok(node);
            }
            _ => return Err(Finding::at(place(span), "", "not valid YAML here")),
        };
        if anchor != 0 {
            self.anchors.insert(anchor, node.clone());
        }
        Ok(node)
    }

    fn entries(&mut self, depth: usize) -> Result<Vec<(Key, Node)>, Finding> {
        let mut entries: Vec<(Key, Node)> = Vec::new();
        loop {
            let (event, span) = self.next()?;
            let name = match event {
                Event::MappingEnd => return Ok(entries),
                Event::Scalar(name, ..) => name.into_owned(),
                _ => {
                    return Err(Finding::at(
                        place(span),
                        "",
                        "a key must be a word; quote \"{name}\" and \"${NAME}\" inside { } and [ ]",
                    ));
                }
            };
            if entries.iter().any(|(key, _)| key.name == name) {
                return Err(Finding::at(place(span), name, "duplicate key; keep one"));
            }
            let key = Key { name, place: place(span) };
            let (event, span) = self.next()?;
            let node = self.node(event, span, depth + 1)?;
            entries.push((key, node));
        }
    }
}

fn size(node: &Node) -> usize {
    1 + match &node.value {
        Value::Scalar { .. } => 0,
        Value::Sequence(items) => items.iter().map(size).sum(),
        Value::Mapping(entries) => entries.iter().map(|(_, item)| size(item)).sum(),
    }
}

#[cfg(test)]
mod tests {
    use std::fmt::Write as _;

    use super::*;

    #[test]
    fn doubled_keys_are_refused_with_their_place() {
        let error = parse("a: 1\nb: 2\na: 3\n").expect_err("twice");
        assert_eq!(error.place, Some(Place::At { line: 3, column: 1 }));
    }

    #[test]
    fn alias_bombs_and_deep_nesting_end_in_an_error() {
        let mut bomb = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n".to_owned();
        for level in 1..8 {
            let previous = level - 1;
            let items = vec![format!("*a{previous}"); 10].join(", ");
            let _ = writeln!(bomb, "a{level}: &a{level} [{items}]");
        }
        assert!(parse(&bomb).expect_err("bomb").message.contains("values"));
        let deep = "[".repeat(5_000) + &"]".repeat(5_000);
        assert!(parse(&deep).is_err());
    }

    #[test]
    fn places_are_found_by_path_or_nearest_ancestor() {
        let tree = parse("providers:\n  - issuer: x\n    jwks: { url: y }\n").expect("yaml");
        assert_eq!(tree.place_of("providers[0].jwks.url"), Place::At { line: 3, column: 18 });
        assert_eq!(tree.place_of("providers[0].audience"), Place::At { line: 2, column: 5 });
        assert_eq!(tree.place_of("nothing"), Place::Nowhere);
    }
}
