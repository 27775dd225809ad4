//! Records the steps of a verification, for `vestibule token inspect`. The unit type records nothing, so that ordinary
//! requests have no cost.

use std::fmt::Arguments;

/// A step of a verification: the check and its finding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// The step's name: `header`, `key`, `signature`, `exp` …
    pub name: &'static str,
    /// The finding; never the token.
    pub finding: String,
}

/// A receiver of the steps of a verification, in order.
pub(super) trait Trace {
    fn step(&mut self, name: &'static str, finding: Arguments<'_>);

    /// Records the provider that the token names, by its index.
    fn provider(&mut self, _index: usize) {}
}

/// A receiver that records only the provider that the token names, for the metrics.
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
