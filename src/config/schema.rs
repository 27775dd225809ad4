//! Makes the JSON Schema of the configuration file, for editors and for checks before a deployment. It has the shapes
//! as the code reads them, with their documentation.

use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde_json::{Value, json};

use super::read::{ONE_OR_LIST, SHORT_FORMS};
use super::shape::Config;
use super::value::{Size, Time};

impl JsonSchema for Time {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Time".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": "string", "description": "a duration: 250ms, 30s, 5m, 12h, 1d", "examples": ["30s", "5m"] })
    }
}

impl JsonSchema for Size {
    fn schema_name() -> std::borrow::Cow<'static, str> {
        "Size".into()
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({ "type": ["string", "integer"], "description": "a size: 512, 16KiB, 1MiB", "examples": ["16KiB"] })
    }
}

/// Returns the schema (draft 2020-12).
#[must_use]
pub fn schema() -> Value {
    let mut schema = SchemaSettings::draft2020_12().into_generator().into_root_schema_for::<Config>().to_value();
    widen(&mut schema);
    if let Some(definitions) = schema.get_mut("$defs").and_then(Value::as_object_mut) {
        for (name, key) in SHORT_FORMS {
            if let Some(whole) = definitions.get_mut(name) {
                let short = json!({ "type": "string", "description": format!("short for {{ {key}: … }}") });
                *whole = json!({ "anyOf": [short, whole.take()] });
            }
        }
    }
    if let Some(definitions) = schema.get_mut("$defs").and_then(Value::as_object_mut) {
        for name in ONE_OR_LIST {
            if let Some(list) = definitions.get_mut(name) {
                let one = list.pointer("/anyOf/0/items").or_else(|| list.pointer("/items")).cloned();
                *list = json!({ "anyOf": [one, list.take()] });
            }
        }
    }
    if let Some(root) = schema.as_object_mut() {
        root.insert("title".to_owned(), "Vestibule".into());
    }
    schema
}

/// Widens the schema by the forms that the reader accepts in addition to the shape: a variable for a number or a
/// boolean, one text for a list. It forbids unknown keys.
fn widen(schema: &mut Value) {
    match schema {
        Value::Object(object) => {
            object.values_mut().for_each(widen);
            if object.contains_key("properties") {
                object.insert("additionalProperties".to_owned(), false.into());
            }
            // `format` has the names of Rust's number types; a key of that name is an object.
            if object.get("format").is_some_and(Value::is_string) {
                object.remove("format");
            }
            let is = |name: &str| {
                object.get("type").is_some_and(|kind| {
                    kind == name || kind.as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind == name))
                })
            };
            // The comment of a key is broken into lines, and is joined here.
            let description = object.get("description").and_then(Value::as_str).map(|text| text.replace('\n', " "));
            if (is("integer") || is("boolean")) && !is("string") {
                let variable = json!({ "type": "string", "pattern": r"\$\{[A-Z0-9_]+(:-.*)?\}" });
                let plain = Value::Object(std::mem::take(object));
                object.insert("anyOf".to_owned(), json!([plain, variable]));
            } else if is("array") && !is("string") {
                let plain = Value::Object(std::mem::take(object));
                object.insert("anyOf".to_owned(), json!([plain, { "type": "string" }]));
            }
            if let Some(description) = description {
                object.shift_remove("description");
                if let Some(plain) = object.get_mut("anyOf").and_then(|forms| forms.get_mut(0)?.as_object_mut()) {
                    plain.shift_remove("description");
                }
                object.insert("description".to_owned(), description.into());
            }
        }
        Value::Array(items) => items.iter_mut().for_each(widen),
        _ => {}
    }
}
