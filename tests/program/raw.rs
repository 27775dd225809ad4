//! Requests and answers byte by byte: what becomes of each, and what reaches the other side. The outcomes stand in
//! `raw/*.txt`; `WRITE_OUTCOMES=1 cargo test raw` writes them anew, to be read before they are believed.

mod answers;
mod requests;

use std::fmt::Write as _;

/// Compares outcomes with those that were read and believed.
fn believe(file: &str, outcomes: &[(String, String)]) {
    let mut text = String::new();
    for (name, outcome) in outcomes {
        let _ = writeln!(text, "{name}\n    {}", outcome.replace('\n', "\n    "));
    }
    let path = format!("{}/tests/program/raw/{file}", env!("CARGO_MANIFEST_DIR"));
    if std::env::var_os("WRITE_OUTCOMES").is_some() {
        std::fs::write(&path, &text).expect("written");
    }
    let believed = std::fs::read_to_string(&path).unwrap_or_default();
    for (found, expected) in text.lines().zip(believed.lines()) {
        assert_eq!(found, expected, "{path}");
    }
    assert_eq!(text.lines().count(), believed.lines().count(), "{path}");
}
