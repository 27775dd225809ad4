//! One thing wrong with the configuration, and the place of the key or value that it is about.

/// Where a value came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// Line and column of the YAML, both from 1.
    At {
        /// Line, from 1.
        line: usize,
        /// Column in characters, from 1.
        column: usize,
    },
    /// A command-line flag.
    Flag(&'static str),
    /// An environment variable.
    Variable(&'static str),
    /// A default.
    Nowhere,
}

impl Place {
    pub(super) fn order(self) -> (usize, usize) {
        match self {
            Self::At { line, column } => (line, column),
            Self::Flag(_) | Self::Variable(_) => (0, 0),
            Self::Nowhere => (usize::MAX, 0),
        }
    }
}

/// Something wrong with the configuration, found at a key path such as `providers[0].audience`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The path of the key.
    pub(crate) path: String,
    /// What is wrong, and what to do.
    pub(crate) message: String,
    /// The line, flag or variable of the key; `None`: not looked up yet.
    pub(crate) place: Option<Place>,
}

impl Finding {
    /// A finding at `path`; its place is looked up in the tree when it is shown.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into(), place: None }
    }

    /// A finding whose place is known.
    pub(crate) fn at(place: Place, path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into(), place: Some(place) }
    }

    /// The key path this is about.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What is wrong and what to do.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }
}
