//! The format of configuration errors: place, key, error, remedy, and the line itself.

use std::fmt::{self, Write as _};

use super::finding::{Finding, Place};
use super::tree::Node;

/// The text in place of the file's name where there is none.
pub(super) const FLAGS: &str = "flags";

/// The keys in messages, and the flags that set them.
const FLAGS_OF_KEYS: [(&str, &str); 5] = [
    ("upstream: http://127.0.0.1:8000", "--upstream http://127.0.0.1:8000"),
    ("providers[0].audience", "--audience"),
    ("`audience: any`", "`--audience any`"),
    ("issuer: https://issuer.example.com", "--issuer https://issuer.example.com"),
    (
        "providers: [{ preset: oidc, issuer: \"https://issuer.example.com\", audience: my-api }]",
        "--issuer https://issuer.example.com --audience my-api",
    ),
];

/// Replaces keys by the flags that set them.
fn name_flags(finding: &mut Finding) {
    for (key, flag) in FLAGS_OF_KEYS {
        if finding.message.contains(key) {
            finding.message = finding.message.replace(key, flag);
        }
    }
}

/// All findings about a configuration, in a form for people. Nothing was started.
#[derive(Debug)]
pub struct Report {
    source: String,
    text: String,
    findings: Vec<Finding>,
}

/// The maximum number of findings that are shown. More would scroll the first one, which is often the cause of the
/// rest, off the screen.
const SHOWN: usize = 20;
/// The maximum length of a line that is shown. A longer one, such as a PEM in a value, does not help.
const SNIPPET_WIDTH: usize = 120;

impl Report {
    /// Makes a report of the findings about a text, in the order of their places.
    pub(crate) fn new(source: &str, text: &str, tree: &Node, mut findings: Vec<Finding>) -> Self {
        // Without a file there are no keys: a missing value is that of a flag.
        let provider = tree.place_of("providers[0]");
        let by_flags =
            matches!(provider, Place::Flag(_) | Place::Variable(_)) || (source == FLAGS && provider == Place::Nowhere);
        for finding in &mut findings {
            if by_flags {
                name_flags(finding);
            }
            if finding.place.is_none() {
                finding.place = Some(tree.place_of(&finding.path));
                finding.path = tree.written_path(&finding.path).to_owned();
            }
        }
        findings.sort_by_key(|finding| finding.place.unwrap_or(Place::Nowhere).order());
        Self { source: source.to_owned(), text: text.to_owned(), findings }
    }

    /// Makes a report of one finding.
    pub(crate) fn single(source: &str, text: &str, finding: Finding) -> Self {
        Self { source: source.to_owned(), text: text.to_owned(), findings: vec![finding] }
    }

    /// Returns the findings, in the order of the file.
    #[must_use]
    pub fn findings(&self) -> &[Finding] {
        &self.findings
    }

    /// Returns all findings as one line, for a log: place, key and message, without the lines of the file.
    #[must_use]
    pub fn line(&self) -> String {
        let said = self.findings.iter().take(SHOWN).map(|finding| {
            let place = self.place(finding.place.unwrap_or(Place::Nowhere));
            let colon = if finding.path.is_empty() { "" } else { ": " };
            format!("{place} {}{colon}{}", finding.path, finding.message.replace('\n', " "))
        });
        said.collect::<Vec<_>>().join("; ")
    }

    fn place(&self, place: Place) -> String {
        match place {
            Place::At { line, column } => format!("{}:{line}:{column}", self.source),
            Place::Flag(name) | Place::Variable(name) => name.to_owned(),
            Place::Nowhere => self.source.clone(),
        }
    }

    fn snippet(&self, finding: &Finding) -> Option<String> {
        let Some(Place::At { line, column }) = finding.place else { return None };
        let source = self.text.lines().nth(line.checked_sub(1)?)?;
        let start = source.char_indices().nth(column.checked_sub(1)?).map(|(at, _)| at)?;
        let rest = source.get(start..)?;
        let width = rest
            .find([' ', ':', ',', ']', '}', '\t'])
            .map_or(rest.chars().count(), |end| rest[..end].chars().count())
            .max(1);
        if source.chars().count() > SNIPPET_WIDTH || may_hold_a_secret(source) {
            return None;
        }
        let number = line.to_string();
        let margin = " ".repeat(number.len());
        let indent = " ".repeat(column - 1);
        Some(format!("  {number} | {source}\n  {margin} | {indent}{}", "^".repeat(width)))
    }
}

/// Returns whether a line may hold a secret. Such a line is never shown, also not for an error of another kind.
fn may_hold_a_secret(line: &str) -> bool {
    let line = line.to_ascii_lowercase();
    ["secret", "token", "password", "key", "credential", "value", "bearer"].iter().any(|word| line.contains(word))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let places: Vec<String> =
            self.findings.iter().map(|finding| self.place(finding.place.unwrap_or(Place::Nowhere))).collect();
        let width = places.iter().take(SHOWN).map(String::len).max().unwrap_or(0);
        for (finding, place) in self.findings.iter().zip(&places).take(SHOWN) {
            let mut line = format!("{place:width$} ");
            if finding.path.is_empty() {
                let _ = write!(line, "{}", finding.message);
            } else {
                let _ = write!(line, "{}: {}", finding.path, finding.message);
            }
            // Continuation lines are indented to the text of the first.
            writeln!(f, "{}", line.replace('\n', &format!("\n{:width$} ", "")))?;
            if finding.message.starts_with("unknown key")
                && let Some(snippet) = self.snippet(finding)
            {
                writeln!(f, "{snippet}")?;
            }
        }
        match self.findings.len() {
            0 => Ok(()),
            1 => f.write_str("1 error. Nothing was started."),
            many if many > SHOWN => {
                write!(f, "{} more errors. Nothing was started.", many - SHOWN)
            }
            many => write!(f, "{many} errors. Nothing was started."),
        }
    }
}

impl std::error::Error for Report {}

/// Returns the nearest of `names` to `word`, if it is near enough to have been meant.
pub(crate) fn nearest<'a>(word: &str, names: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    let word = word.to_ascii_lowercase();
    names
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&word, name), name))
        .filter(|(distance, name)| *distance <= (name.len().max(word.len()) / 3).max(1))
        .min_by_key(|(distance, _)| *distance)
        .map(|(_, name)| name)
}
