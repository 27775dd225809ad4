//! Reads a [`Config`](super::Config) from the tree: a serde deserializer with places.
//!
//! Unknown keys are collected and skipped, so that all of them are reported at once. A wrong type ends reading, with
//! its place; the caller reads the rest without that value. A struct named in [`SHORT_FORMS`] may be written as the
//! single value of its main key (`upstream: http://…`).

use std::cell::RefCell;
use std::fmt;

use serde::de::value::StrDeserializer;
use serde::de::{
    self, DeserializeOwned, DeserializeSeed, Deserializer, EnumAccess, IntoDeserializer, MapAccess, SeqAccess,
    VariantAccess, Visitor,
};
use serde::forward_to_deserialize_any;

use super::diagnostic::nearest;
use super::example;
use super::finding::{Finding, Place};
use super::tree::{Key, Node, Value, join};

/// The structs that may be written as a single value, and the key of that value.
pub(super) const SHORT_FORMS: [(&str, &str); 7] = [
    ("TokenToWebSocket", "form"),
    ("Upstream", "url"),
    ("SharedState", "url"),
    ("Listen", "address"),
    ("HeaderClaim", "claim"),
    ("DialectChoice", "name"),
    ("CookieChoice", "name"),
];

/// The lists that may be written as their only member.
pub(super) const ONE_OR_LIST: [&str; 1] = ["Logins"];

/// Keys of other proxies, and keys of ours in a wrong place, with the corresponding keys here.
const ELSEWHERE: [(&str, &str); 22] = [
    ("jwks_uri", "`jwks: { url: … }`"),
    ("audiences", "`audience`"),
    ("leeway", "`clock_skew`"),
    ("claim_to_headers", "`identity: { headers: { X-User-Id: sub } }`"),
    ("from_headers", "`token_from: { header: … }`"),
    ("from_params", "`token_from: { query: { name: token } }`"),
    ("from_cookies", "`token_from: { cookie: … }`"),
    ("skip_auth_routes", "`routes: [{ path: /health, auth: none }]`"),
    ("email_domains", "`providers: [{ allow: { email_domains: […] } }]`"),
    ("upstreams", "`upstream`, and `upstream` of a route"),
    ("bind", "`listen`"),
    ("port", "`listen`, as in `listen: \":8080\"`"),
    ("address", "`listen`"),
    ("issuer", "`providers: [{ issuer: … }]`"),
    ("audience", "`providers: [{ audience: … }]`"),
    ("client_id", "`browser: { login: { client_id: … } }`, or `remote` of a provider"),
    ("client_secret", "`browser: { login: { client_secret: … } }`, or `remote` of a provider"),
    ("credential", "`upstream: { credential: { header: …, value: … } }`"),
    ("token_to", "`upstream: { token_to: … }`"),
    ("session", "`browser: { session: … }`"),
    ("login", "`browser: { login: … }`"),
    ("allowed_origins", "`origins`"),
];

/// Removed keys, each with the remedy.
const REMOVED: [(&str, &str); 1] = [("paths", "every path is checked in all its readings; delete this key")];

/// Reads a value from a tree, and the unknown keys of the tree.
///
/// # Errors
/// The first wrong value, and the unknown keys before it.
pub(super) fn read<T: DeserializeOwned>(node: &Node) -> Result<(T, Vec<Finding>), (Finding, Vec<Finding>)> {
    let unknown = RefCell::new(Vec::new());
    let reader = Reader { node, path: String::new(), unknown: &unknown };
    match T::deserialize(reader) {
        Ok(value) => Ok((value, unknown.into_inner())),
        Err(error) => Err((error.0, unknown.into_inner())),
    }
}

#[derive(Debug)]
struct ShapeError(Finding);

impl fmt::Display for ShapeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl std::error::Error for ShapeError {}

impl de::Error for ShapeError {
    fn custom<T: fmt::Display>(message: T) -> Self {
        Self(Finding::new("", message.to_string()))
    }
}

struct Reader<'a> {
    node: &'a Node,
    path: String,
    unknown: &'a RefCell<Vec<Finding>>,
}

impl<'a> Reader<'a> {
    fn error(&self, message: impl Into<String>) -> ShapeError {
        ShapeError(Finding::at(self.node.place, self.path.clone(), message))
    }

    /// Adds the place to an error that has none. The innermost reader that an error passes sets it.
    fn placed<T>(node: &Node, path: &str, result: Result<T, ShapeError>) -> Result<T, ShapeError> {
        result.map_err(|mut error| {
            if error.0.place.is_none() {
                error.0.place = Some(node.place);
                path.clone_into(&mut error.0.path);
            }
            error
        })
    }

    fn child(&self, node: &'a Node, path: String) -> Self {
        Self { node, path, unknown: self.unknown }
    }

    /// Rejects a text that a variable left blank, where a member of a list or the value of a claim is expected.
    fn given(&self) -> Result<(), ShapeError> {
        match &self.node.value {
            Value::Scalar { text, .. } if self.node.variable.is_some() && text.trim().is_empty() => {
                Err(self.error(self.node.blank()))
            }
            _ => Ok(()),
        }
    }

    /// Describes the null where a value is expected: an explicit `null` or an empty value.
    fn absent(&self) -> &'static str {
        match &self.node.value {
            Value::Scalar { text, .. } if !text.is_empty() => "cannot be switched off with null",
            _ => "is empty",
        }
    }

    /// Describes the value where a mapping is expected. A text may be a secret, and is not repeated.
    fn found(&self) -> &'a str {
        match &self.node.value {
            Value::Scalar { .. } if self.node.is_null() => "nothing",
            Value::Scalar { text, .. } if matches!(text.as_str(), "true" | "on" | "yes") => text,
            Value::Scalar { .. } => "a text",
            Value::Sequence(_) => "a list",
            Value::Mapping(_) => "a mapping",
        }
    }

    /// Makes the error of a value where a mapping with these keys is expected.
    fn no_mapping(&self, name: &str, keys: &[&str]) -> ShapeError {
        let (example, keys) = (example::shown(name), listed(keys));
        if self.node.is_null() {
            return self.error(format!("{}; expected a mapping{example}; its keys are {keys}", self.absent()));
        }
        self.error(format!("expected a mapping, found {}{example}; its keys are {keys}", self.found()))
    }

    fn text(&self, expected: &str) -> Result<&'a str, ShapeError> {
        match &self.node.value {
            Value::Scalar { text, .. } if !self.node.is_null() => Ok(text),
            Value::Scalar { .. } => Err(self.error(format!("{}; expected {expected}", self.absent()))),
            Value::Sequence(_) => Err(self.error(format!("expected {expected}, found a list"))),
            Value::Mapping(_) => Err(self.error(format!("expected {expected}, found a mapping"))),
        }
    }

    fn parsed<T: std::str::FromStr>(&self, expected: &str) -> Result<T, ShapeError> {
        let text = self.text(expected)?;
        text.trim().parse().map_err(|_| self.error(format!("\"{text}\" is not {expected}")))
    }

    fn visit_entries<'de, V: Visitor<'de>>(self, entries: &[(Key, Node)], visitor: V) -> Result<V::Value, ShapeError> {
        let (node, path) = (self.node, self.path.clone());
        Self::placed(node, &path, visitor.visit_map(Entries { reader: self, entries: entries.iter(), value: None }))
    }
}

macro_rules! numbers {
    ($($method:ident $visit:ident $kind:ty, $expected:literal;)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ShapeError> {
            let value: $kind = self.parsed($expected)?;
            Self::placed(self.node, &self.path, visitor.$visit(value))
        }
    )*};
}

impl<'de> Deserializer<'de> for Reader<'_> {
    type Error = ShapeError;

    /// Reads a value whose type the file decides (`require: { admin: true }`), by the YAML 1.2 core schema.
    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ShapeError> {
        let (node, path) = (self.node, self.path.clone());
        match &node.value {
            Value::Scalar { .. } if node.variable.is_some() && self.given().is_err() => Err(self.error(node.blank())),
            Value::Scalar { text, plain: true } => {
                let result = if node.is_null() {
                    visitor.visit_unit()
                } else if let "true" | "True" | "TRUE" = text.as_str() {
                    visitor.visit_bool(true)
                } else if let "false" | "False" | "FALSE" = text.as_str() {
                    visitor.visit_bool(false)
                } else if let Ok(number) = text.parse::<i64>() {
                    visitor.visit_i64(number)
                } else if let Some(number) = decimal(text) {
                    visitor.visit_f64(number)
                } else {
                    visitor.visit_str(text)
                };
                Self::placed(node, &path, result)
            }
            Value::Scalar { text, plain: false } => Self::placed(node, &path, visitor.visit_str(text)),
            Value::Sequence(_) => self.deserialize_seq(visitor),
            Value::Mapping(entries) => self.visit_entries(entries, visitor),
        }
    }

    numbers! {
        deserialize_u8 visit_u8 u8, "a whole number from 0 to 255";
        deserialize_u16 visit_u16 u16, "a whole number from 0 to 65535";
        deserialize_u32 visit_u32 u32, "a whole number";
        deserialize_u64 visit_u64 u64, "a whole number";
    }

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ShapeError> {
        let value = match self.text("true or false")? {
            "true" | "True" | "TRUE" | "on" | "yes" => true,
            "false" | "False" | "FALSE" | "off" | "no" => false,
            other => return Err(self.error(format!("\"{other}\" is not true or false"))),
        };
        visitor.visit_bool(value)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ShapeError> {
        let text = self.text("text")?;
        Self::placed(self.node, &self.path, visitor.visit_str(text))
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ShapeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ShapeError> {
        // `off` means `false` in older YAML. Both switch a feature off, as `null` does.
        let off =
            matches!(&self.node.value, Value::Scalar { text, plain: true } if matches!(text.as_str(), "off" | "false"));
        if off || self.node.is_null() {
            return visitor.visit_none();
        }
        visitor.visit_some(self)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> Result<V::Value, ShapeError> {
        if ONE_OR_LIST.contains(&name) && matches!(self.node.value, Value::Mapping(_)) {
            return visitor.visit_newtype_struct(OnlyMember(self));
        }
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ShapeError> {
        let (node, path) = (self.node, self.path.clone());
        let result = match &node.value {
            Value::Sequence(items) => visitor.visit_seq(Items { reader: self, items: items.iter(), index: 0 }),
            Value::Scalar { .. } if node.is_null() => Err(self.error("is empty; write [] for none")),
            // A single string where a list is expected is split at commas: `${ALLOWED_ORIGINS}`. An empty member, or an
            // empty list, would mean every user in `allow`, and is a mistake elsewhere.
            Value::Scalar { text, .. } if text.split(',').any(|part| part.trim().is_empty()) => {
                Err(self.error(node.blank_list(text)))
            }
            Value::Scalar { text, .. } => {
                let parts: Vec<Node> = text.split(',').map(|part| Node::scalar(node.place, part.trim())).collect();
                let unknown = self.unknown;
                return Self::placed(
                    node,
                    &path,
                    visitor.visit_seq(Parts { parts: parts.into_iter(), path: path.clone(), unknown, index: 0 }),
                );
            }
            Value::Mapping(_) => Err(self.error("expected a list, found a mapping; write `- ` before each entry")),
        };
        Self::placed(node, &path, result)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ShapeError> {
        match &self.node.value {
            Value::Mapping(entries) => self.visit_entries(entries, visitor),
            _ => Err(self.error(format!("expected a mapping (key: value), found {}", self.found()))),
        }
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ShapeError> {
        let (node, path) = (self.node, self.path.clone());
        match &node.value {
            Value::Mapping(entries) => {
                for (key, _) in entries {
                    if !fields.contains(&key.name.as_str()) {
                        let message = unknown_key(&key.name, fields);
                        self.unknown.borrow_mut().push(Finding::at(key.place, join(&path, &key.name), message));
                    }
                }
                self.visit_entries(entries, visitor)
            }
            Value::Scalar { .. } if !node.is_null() => {
                let Some((_, field)) = SHORT_FORMS.iter().find(|(short, _)| *short == name) else {
                    return Err(self.no_mapping(name, fields));
                };
                let short = Short { reader: Some(self), field };
                Self::placed(node, &path, visitor.visit_map(short))
            }
            Value::Scalar { .. } | Value::Sequence(_) => Err(self.no_mapping(name, fields)),
        }
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, ShapeError> {
        let text = self.text(&format!("one of {}", listed(variants)))?;
        if !variants.contains(&text) {
            let hint =
                nearest(text, variants.iter().copied()).map_or(String::new(), |name| format!(". Did you mean {name}?"));
            return Err(self.error(format!("\"{text}\" is not one of {}{hint}", listed(variants))));
        }
        Self::placed(self.node, &self.path, visitor.visit_enum(Variant(text)))
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ShapeError> {
        self.deserialize_str(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ShapeError> {
        visitor.visit_unit()
    }

    forward_to_deserialize_any! { i8 i16 i32 i64 i128 u128 f32 f64 char bytes byte_buf unit unit_struct tuple tuple_struct }
}

fn decimal(text: &str) -> Option<f64> {
    let numeric = text.bytes().all(|b| b.is_ascii_digit() || matches!(b, b'.' | b'-' | b'+' | b'e' | b'E'))
        && text.bytes().any(|b| b.is_ascii_digit())
        && text.contains(['.', 'e', 'E']);
    if numeric { text.parse().ok().filter(|number: &f64| number.is_finite()) } else { None }
}

fn listed(names: &[&str]) -> String {
    names.join(", ")
}

fn unknown_key(name: &str, known: &[&str]) -> String {
    // Words such as `address` are keys here in one place and another proxy's keys in the next.
    if let Some((_, ours)) = ELSEWHERE.iter().find(|(word, _)| *word == name) {
        return format!("unknown key; here it is {ours}");
    }
    if let Some((_, remedy)) = REMOVED.iter().find(|(word, _)| *word == name) {
        return format!("unknown key; {remedy}");
    }
    match nearest(name, known.iter().copied()) {
        Some(near) => format!("unknown key; did you mean `{near}`?"),
        None => format!("unknown key; known here: {}", listed(known)),
    }
}

struct Entries<'a> {
    reader: Reader<'a>,
    entries: std::slice::Iter<'a, (Key, Node)>,
    value: Option<(&'a Key, &'a Node)>,
}

impl<'de> MapAccess<'de> for Entries<'_> {
    type Error = ShapeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ShapeError> {
        let Some((key, node)) = self.entries.next() else { return Ok(None) };
        self.value = Some((key, node));
        let key: StrDeserializer<'_, ShapeError> = key.name.as_str().into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, ShapeError> {
        let Some((key, node)) = self.value.take() else {
            return Err(self.reader.error("a value without a key"));
        };
        let path = join(&self.reader.path, &key.name);
        let result = seed.deserialize(self.reader.child(node, path.clone()));
        Reader::placed(node, &path, result)
    }
}

struct Short<'a> {
    reader: Option<Reader<'a>>,
    field: &'static str,
}

impl<'de> MapAccess<'de> for Short<'_> {
    type Error = ShapeError;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>, ShapeError> {
        if self.reader.is_none() {
            return Ok(None);
        }
        let key: StrDeserializer<'_, ShapeError> = self.field.into_deserializer();
        seed.deserialize(key).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value, ShapeError> {
        match self.reader.take() {
            Some(reader) => seed.deserialize(reader),
            None => Err(de::Error::custom("a value without a key")),
        }
    }
}

struct Items<'a> {
    reader: Reader<'a>,
    items: std::slice::Iter<'a, Node>,
    index: usize,
}

impl<'de> SeqAccess<'de> for Items<'_> {
    type Error = ShapeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, ShapeError> {
        let Some(node) = self.items.next() else { return Ok(None) };
        let path = format!("{}[{}]", self.reader.path, self.index);
        self.index += 1;
        let reader = self.reader.child(node, path.clone());
        reader.given()?;
        let result = seed.deserialize(reader);
        Reader::placed(node, &path, result).map(Some)
    }
}

/// A deserializer that reads a mapping as a list of one member.
struct OnlyMember<'a>(Reader<'a>);

impl<'de> Deserializer<'de> for OnlyMember<'_> {
    type Error = ShapeError;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, ShapeError> {
        visitor.visit_seq(de::value::SeqDeserializer::new(std::iter::once(self.0)))
    }

    forward_to_deserialize_any! {
        bool i8 i16 i32 i64 i128 u8 u16 u32 u64 u128 f32 f64 char str string bytes byte_buf option unit unit_struct
        newtype_struct seq tuple tuple_struct map struct enum identifier ignored_any
    }
}

impl IntoDeserializer<'_, ShapeError> for Reader<'_> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

struct Parts<'u> {
    parts: std::vec::IntoIter<Node>,
    path: String,
    unknown: &'u RefCell<Vec<Finding>>,
    index: usize,
}

impl<'de> SeqAccess<'de> for Parts<'_> {
    type Error = ShapeError;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>, ShapeError> {
        let Some(node) = self.parts.next() else { return Ok(None) };
        let path = format!("{}[{}]", self.path, self.index);
        self.index += 1;
        let reader = Reader { node: &node, path: path.clone(), unknown: self.unknown };
        Reader::placed(&node, &path, seed.deserialize(reader)).map(Some)
    }
}

struct Variant<'a>(&'a str);

impl<'de> EnumAccess<'de> for Variant<'_> {
    type Error = ShapeError;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self), ShapeError> {
        let name: StrDeserializer<'_, ShapeError> = self.0.into_deserializer();
        Ok((seed.deserialize(name)?, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'_> {
    type Error = ShapeError;

    fn unit_variant(self) -> Result<(), ShapeError> {
        Ok(())
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, _seed: T) -> Result<T::Value, ShapeError> {
        Err(de::Error::custom("expected a name"))
    }

    fn tuple_variant<V: Visitor<'de>>(self, _len: usize, _visitor: V) -> Result<V::Value, ShapeError> {
        Err(de::Error::custom("expected a name"))
    }

    fn struct_variant<V: Visitor<'de>>(
        self,
        _fields: &'static [&'static str],
        _visitor: V,
    ) -> Result<V::Value, ShapeError> {
        Err(de::Error::custom("expected a name"))
    }
}

impl Place {
    /// Returns the line, which is the order in which findings are shown.
    #[cfg(test)]
    pub(super) fn line(self) -> usize {
        self.order().0
    }
}
