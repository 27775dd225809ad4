//! Records the steps of a verification, for `vestibule token inspect`. The unit type records nothing, so that
//! ordinary requests pay nothing for it.

use std::fmt::Arguments;

/// One step of a verification: what was checked and what was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The step's name: `header`, `key`, `signature`, `exp` …
    pub name: &'static str,
    /// What was found; never the token.
    pub finding: String,
}

/// Receives the steps of a verification as they happen.
pub(super) trait Trace {
    fn step(&mut self, name: &'static str, finding: Arguments<'_>);

    /// Reports the provider that the token names, by its index.
    fn provider(&mut self, _index: usize) {}
}

/// Records only the provider that the token names, for the metrics.
#[derive(Default)]
pub(super) struct ClaimedProvider(pub(super) Option<usize>);

impl Trace for ClaimedProvider {
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
