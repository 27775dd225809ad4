//! JSON as readers other than the proxy's take it: with duplicate members, in any letter case, the first or the last one.
//! `serde_json` parses it, and nothing of the proxy's own reading is used.

use std::fmt;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor};

/// JSON whose objects may have duplicate members.
#[derive(Clone, Debug, PartialEq)]
pub(crate) enum Tree {
    Null,
    Bool(bool),
    Number(f64),
    Text(String),
    Array(Vec<Tree>),
    Object(Vec<(String, Tree)>),
}

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Tree;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Tree, E> {
        Ok(Tree::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Tree, E> {
        Ok(Tree::Bool(value))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Tree, E> {
        Ok(Tree::Number(value))
    }

    #[allow(clippy::cast_precision_loss, reason = "numbers are not compared exactly")]
    fn visit_i64<E>(self, value: i64) -> Result<Tree, E> {
        Ok(Tree::Number(value as f64))
    }

    #[allow(clippy::cast_precision_loss, reason = "numbers are not compared exactly")]
    fn visit_u64<E>(self, value: u64) -> Result<Tree, E> {
        Ok(Tree::Number(value as f64))
    }

    fn visit_str<E>(self, value: &str) -> Result<Tree, E> {
        Ok(Tree::Text(value.to_owned()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Tree, A::Error> {
        let mut out = Vec::new();
        while let Some(item) = items.next_element()? {
            out.push(item);
        }
        Ok(Tree::Array(out))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> Result<Tree, A::Error> {
        let mut out = Vec::new();
        while let Some(member) = members.next_entry()? {
            out.push(member);
        }
        Ok(Tree::Object(out))
    }
}

/// A way of finding a member by its name.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Reader {
    /// Whether letter case counts.
    exact: bool,
    /// Whether the last of several members counts, or the first.
    last: bool,
}

/// Python's `json` is the first, Go's `encoding/json` the second, cJSON the third.
pub(crate) const READERS: [Reader; 4] = [
    Reader { exact: true, last: true },
    Reader { exact: false, last: true },
    Reader { exact: false, last: false },
    Reader { exact: true, last: false },
];

impl Tree {
    /// Parses one value, with white space around it.
    pub(crate) fn parse(text: &[u8]) -> Option<Self> {
        serde_json::from_slice(text).ok()
    }

    /// Returns the value that a reader finds at a path of member names.
    pub(crate) fn find(&self, path: &[&str], reader: Reader) -> Option<&Self> {
        let Some((name, rest)) = path.split_first() else { return Some(self) };
        let Self::Object(members) = self else { return None };
        let mut named = members
            .iter()
            .filter(|(member, _)| if reader.exact { member == name } else { lower(member) == lower(name) })
            .map(|(_, value)| value);
        let found = if reader.last { named.next_back() } else { named.next() };
        found?.find(rest, reader)
    }

    /// Returns the values that some reader may find at a path, one of several members at each level and in any case.
    pub(crate) fn all(&self, path: &[&str]) -> Vec<&Self> {
        let Some((name, rest)) = path.split_first() else { return vec![self] };
        let Self::Object(members) = self else { return Vec::new() };
        let named = members.iter().filter(|(member, _)| lower(member) == lower(name));
        named.flat_map(|(_, value)| value.all(rest)).collect()
    }

    /// Returns whether an object in the value has two members of one name.
    pub(crate) fn has_duplicates(&self) -> bool {
        match self {
            Self::Array(items) => items.iter().any(Self::has_duplicates),
            Self::Object(members) => {
                members.iter().any(|(_, value)| value.has_duplicates())
                    || (1..members.len()).any(|at| members[..at].iter().any(|(name, _)| *name == members[at].0))
            }
            _ => false,
        }
    }

    /// Returns the depth of arrays and objects.
    pub(crate) fn depth(&self) -> usize {
        match self {
            Self::Array(items) => 1 + items.iter().map(Self::depth).max().unwrap_or(0),
            Self::Object(members) => 1 + members.iter().map(|(_, value)| value.depth()).max().unwrap_or(0),
            _ => 0,
        }
    }

    pub(crate) fn text(&self) -> Option<&str> {
        match self {
            Self::Text(text) => Some(text),
            _ => None,
        }
    }

    /// Returns whether the value, or an element of it, is a text that holds another.
    pub(crate) fn holds(&self, wanted: &str) -> bool {
        match self {
            Self::Text(text) => text.contains(wanted),
            Self::Array(items) => items.iter().any(|item| item.holds(wanted)),
            _ => false,
        }
    }
}

/// Folds letter case as Go does, for which the long s and the Kelvin sign are letters of ASCII.
pub(crate) fn lower(text: &str) -> String {
    text.chars().map(|c| if c == 'ſ' { 's' } else { c }).flat_map(char::to_lowercase).collect()
}
