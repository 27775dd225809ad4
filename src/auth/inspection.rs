//! The result of asking a provider once, for `vestibule check --online`.

/// The findings at a provider, one sentence each.
#[derive(Debug, Default)]
pub struct Inspection {
    /// Checks that passed.
    pub found: Vec<String>,
    /// Problems that would cause valid tokens to be rejected.
    pub problems: Vec<String>,
}
