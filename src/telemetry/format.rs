//! `tracing` events as our lines.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::sync::OnceLock;

use tracing::field::{Field, Visit};
use tracing::{Event, Level, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::{EnvFilter, Registry, reload};

use super::access::{Observed, observed};
use super::output::{self, Format};
use super::text::{CUT, escape, quote, time};

/// Starts logging for this process; a second call changes nothing.
///
/// `format`: `None` is pretty on a terminal, JSON elsewhere. `level`: `error` to `trace`, for our own
/// events; libraries stay at `warn`, since theirs may print what we must not.
pub fn start(format: Option<Format>, level: &str) {
    let format = format.unwrap_or_else(|| if std::io::stdout().is_terminal() { Format::Pretty } else { Format::Json });
    output::start(format);
    let (filter, handle) = reload::Layer::new(filter(level));
    let subscriber = tracing_subscriber::registry().with(filter).with(Lines);
    // A second start, in a test, keeps the first.
    if tracing::subscriber::set_global_default(subscriber).is_ok() {
        let _ = FILTER.set(handle);
    }
}

static FILTER: OnceLock<reload::Handle<EnvFilter, Registry>> = OnceLock::new();

/// Another level from now on; before [`start`] nothing happens.
pub fn set_level(level: &str) {
    if let Some(handle) = FILTER.get() {
        // It fails only where the subscriber has gone.
        let _ = handle.reload(filter(level));
    }
}

fn filter(level: &str) -> EnvFilter {
    EnvFilter::new(format!("warn,vestibule={level}"))
}

struct Lines;

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
        let mut fields = Fields::default();
        event.record(&mut fields);
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
    others: Vec<(&'static str, String)>,
}

impl Fields {
    fn take(&mut self, field: &Field, value: String) {
        if field.name() == "message" {
            self.message = value;
        } else {
            self.others.push((field.name(), value));
        }
    }
}

impl Visit for Fields {
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
    time(&mut out);
    let _ = write!(out, "\",\"level\":\"{}\",\"msg\":", level.as_str().to_ascii_lowercase());
    // A message of ours may quote what came from outside, at length a start-up text has no bound.
    quote(&mut out, &fields.message, 4 * CUT);
    for (name, value) in &fields.others {
        let _ = write!(out, ",\"{name}\":");
        quote(&mut out, value, CUT);
    }
    out.push('}');
    out
}

fn pretty(level: Level, fields: &Fields) -> String {
    let mut out = String::with_capacity(160);
    time(&mut out);
    let _ = write!(out, " {:<5} ", level.as_str().to_ascii_lowercase());
    escape(&mut out, &fields.message, 4 * CUT);
    for (name, value) in &fields.others {
        let _ = write!(out, "  {name}=");
        escape(&mut out, value, CUT);
    }
    out
}
