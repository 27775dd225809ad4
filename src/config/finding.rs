//! An error or warning about the configuration, with the place of the key or value.

/// The source of a value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Place {
    /// A line and column of the YAML.
    At {
        /// The line, from 1.
        line: usize,
        /// The column in characters, from 1.
        column: usize,
    },
    /// A command-line flag.
    Flag(&'static str),
    /// An environment variable.
    Variable(&'static str),
    /// No source: a default.
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

/// An error or warning at a key path such as `providers[0].audience`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Finding {
    /// The path of the key.
    pub(crate) path: String,
    /// The error and its remedy.
    pub(crate) message: String,
    /// The place of the key; `None` if it is not looked up yet.
    pub(crate) place: Option<Place>,
    /// The text in which it is written, where that begins with the place in the file.
    pub(super) line: Option<String>,
}

impl Finding {
    /// Makes a finding at `path`. Its place is looked up in the tree when it is shown.
    pub fn new(path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into(), place: None, line: None }
    }

    /// Makes a finding with a known place.
    pub(crate) fn at(place: Place, path: impl Into<String>, message: impl Into<String>) -> Self {
        Self { path: path.into(), message: message.into(), place: Some(place), line: None }
    }

    /// Returns the line and the column, where it is a place in the text.
    #[cfg(any(test, fuzzing))]
    pub(crate) fn position(&self) -> Option<(usize, usize)> {
        match self.place {
            Some(Place::At { line, column }) => Some((line, column)),
            _ => None,
        }
    }

    /// Returns whether it says the same of the same key, wherever in the file that is.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        (&self.path, &self.message) == (&other.path, &other.message)
    }

    /// Returns the path of the key.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Returns the error and its remedy.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }
}

/// Writes the key and the message, behind the place where that is known.
impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if let Some(line) = &self.line {
            return f.write_str(line);
        }
        if self.path.is_empty() {
            return f.write_str(&self.message);
        }
        write!(f, "{}: {}", self.path, self.message)
    }
}
