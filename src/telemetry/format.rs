//! Formats `tracing` events as log lines.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::sync::OnceLock;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::filter::{LevelFilter, Targets};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::{Registry, reload};

use super::access::{Observed, observed};
use super::output::{self, Format};
use super::request_id::current_request_id;
use super::text::{MAX_VALUE_BYTES, escape, quote, since_1970, time, value as write_value};

/// Upper bound on a message and on an error, in bytes.
const MAX_MESSAGE_BYTES: usize = 1024;

/// Starts logging for this process; a second call has no effect.
///
/// `format` is pretty on a terminal and JSON elsewhere if it is `None`. `level` is `error` to `trace`, for the proxy's
/// own events; those of libraries stay at `warn`, since more verbose ones may contain secrets.
pub fn start(format: Option<Format>, level: &str) {
    let format = format.unwrap_or_else(|| if std::io::stdout().is_terminal() { Format::Pretty } else { Format::Json });
    output::start(format);
    let (filter, handle) = reload::Layer::new(filter(level));
    let subscriber = tracing_subscriber::registry().with(filter).with(Lines);
    // It fails on a second call, which happens in tests.
    if tracing::subscriber::set_global_default(subscriber).is_ok() {
        let _ = FILTER.set(handle);
    }
}

static FILTER: OnceLock<reload::Handle<Targets, Registry>> = OnceLock::new();

/// Changes the level. It has no effect before [`start`].
pub fn set_level(level: &str) {
    if let Some(handle) = FILTER.get() {
        // It fails only if the subscriber was dropped.
        let _ = handle.reload(filter(level));
    }
}

fn filter(level: &str) -> Targets {
    let level = level.parse().unwrap_or(LevelFilter::INFO);
    Targets::new().with_default(LevelFilter::WARN).with_target("vestibule", level)
}

struct Lines;

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
        if let Some(id) = current_request_id().filter(|_| !fields.has("request_id")) {
            fields.others.insert(0, Value { name: "request_id", text: id.to_string(), is_json: false });
        }
        let level = *event.metadata().level();
        observed(Observed::Message(&fields.message));
        match output::format() {
            Format::Json => output::line(&json(level, &fields)),
            Format::Pretty => output::line(&pretty(level, &fields)),
            Format::Silent => {}
        }
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    others: Vec<Value>,
}

/// The value of one field.
struct Value {
    name: &'static str,
    text: String,
    /// Whether the text is a JSON number or boolean.
    is_json: bool,
}

impl Value {
    /// Returns the maximum length in bytes. Errors and warnings are longer than other values: they name a key, a place
    /// in a file and a remedy.
    fn limit(&self) -> usize {
        if matches!(self.name, "error" | "warning") { MAX_MESSAGE_BYTES } else { MAX_VALUE_BYTES }
    }
}

impl Fields {
    fn has(&self, name: &str) -> bool {
        self.others.iter().any(|value| value.name == name)
    }

    fn take(&mut self, field: &Field, value: String) {
        if field.name() == "message" {
            self.message = value;
        } else {
            self.others.push(Value { name: field.name(), text: value, is_json: false });
        }
    }
}

impl Visit for Fields {
    fn record_u64(&mut self, field: &Field, value: u64) {
        self.others.push(Value { name: field.name(), text: value.to_string(), is_json: true });
    }

    fn record_i64(&mut self, field: &Field, value: i64) {
        self.others.push(Value { name: field.name(), text: value.to_string(), is_json: true });
    }

    fn record_bool(&mut self, field: &Field, value: bool) {
        self.others.push(Value { name: field.name(), text: value.to_string(), is_json: true });
    }

    fn record_str(&mut self, field: &Field, value: &str) {
        self.take(field, value.to_owned());
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        self.take(field, format!("{value:?}"));
    }
}

fn json(level: Level, fields: &Fields) -> String {
    let mut out = String::with_capacity(160);
    out.push_str("{\"time\":\"");
    time(&mut out, since_1970());
    let _ = write!(out, "\",\"level\":\"{}\",\"msg\":", level.as_str().to_ascii_lowercase());
    // Messages may be longer than values: warnings at start name keys and remedies.
    quote(&mut out, &fields.message, MAX_MESSAGE_BYTES);
    for value in &fields.others {
        let _ = write!(out, ",\"{}\":", value.name);
        if value.is_json {
            out.push_str(&value.text);
        } else {
            quote(&mut out, &value.text, value.limit());
        }
    }
    out.push('}');
    out
}

fn pretty(level: Level, fields: &Fields) -> String {
    let mut out = String::with_capacity(160);
    time(&mut out, since_1970());
    let _ = write!(out, " {:<5} ", level.as_str().to_ascii_lowercase());
    escape(&mut out, &fields.message, MAX_MESSAGE_BYTES);
    for value in &fields.others {
        let _ = write!(out, "  {}=", value.name);
        write_value(&mut out, &value.text, value.limit());
    }
    out
}
