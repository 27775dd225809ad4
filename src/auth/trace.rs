//! What verification says of its steps, for `vestibule token inspect`; the unit type hears nothing and costs
//! nothing.

use std::fmt::Arguments;

/// One step of an explanation: what was looked at and what was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// `header`, `key`, `signature`, `exp` …
    pub name: &'static str,
    /// What was found; never the token.
    pub finding: String,
}

/// Hears what verification finds on its way.
pub(super) trait Trace {
    fn step(&mut self, name: &'static str, finding: Arguments<'_>);

    /// Whose token it claims to be: the number of a provider.
    fn provider(&mut self, _index: usize) {}
}

/// Hears only whose token it claims to be, for the count of verdicts.
#[derive(Default)]
pub(super) struct Claimed(pub(super) Option<usize>);

impl Trace for Claimed {
    fn step(&mut self, _name: &'static str, _finding: Arguments<'_>) {}

    fn provider(&mut self, index: usize) {
        self.0 = Some(index);
    }
}

impl Trace for () {
    fn step(&mut self, _name: &'static str, _finding: Arguments<'_>) {}
}

impl Trace for Vec<Step> {
    fn step(&mut self, name: &'static str, finding: Arguments<'_>) {
        self.push(Step { name, finding: finding.to_string() });
    }
}
