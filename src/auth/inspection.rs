//! What one look at a provider found, for `vestibule check --online`.

/// Sentences about a provider.
#[derive(Debug, Default)]
pub struct Inspection {
    /// For each thing that is as it should be.
    pub found: Vec<String>,
    /// For each thing that would refuse good tokens.
    pub problems: Vec<String>,
}
