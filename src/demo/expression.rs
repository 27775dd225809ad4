//! The language of the demo's notebook: numbers, `+ - * /`, brackets, names and `name = …`. It is not Python, so that
//! no cell runs code on this machine.

use std::collections::BTreeMap;

/// The maximum length of a cell in bytes.
const MAX_LENGTH: usize = 200;
/// The maximum depth of brackets.
const MAX_DEPTH: usize = 32;
/// The maximum number of names per user.
const MAX_NAMES: usize = 50;

/// Evaluates a cell with the names of its user, and returns the value as text.
///
/// # Errors
/// Returns the message for the person who wrote the cell.
pub(super) fn evaluate(cell: &str, names: &mut BTreeMap<String, f64>) -> Result<String, String> {
    if cell.len() > MAX_LENGTH {
        return Err(format!("a cell has at most {MAX_LENGTH} characters"));
    }
    let (name, text) = match cell.split_once('=') {
        Some((name, text)) => (Some(name.trim()), text),
        None => (None, cell),
    };
    let mut parser = Parser { rest: text.trim_start(), names, depth: 0 };
    let value = parser.sum()?;
    if !parser.rest.is_empty() {
        return Err(format!("what is `{}`?", parser.rest.chars().take(20).collect::<String>()));
    }
    if let Some(name) = name {
        let is_name = !name.is_empty() && name.chars().all(|c| c.is_ascii_alphabetic());
        if !is_name || name.len() > 20 {
            return Err("a name is made of letters".to_owned());
        }
        if names.len() >= MAX_NAMES && !names.contains_key(name) {
            return Err(format!("at most {MAX_NAMES} names"));
        }
        names.insert(name.to_owned(), value);
    }
    Ok(format!("{value}"))
}

struct Parser<'a> {
    rest: &'a str,
    names: &'a BTreeMap<String, f64>,
    depth: usize,
}

impl Parser<'_> {
    fn skip(&mut self, character: char) -> bool {
        let Some(rest) = self.rest.strip_prefix(character) else { return false };
        self.rest = rest.trim_start();
        true
    }

    fn sum(&mut self) -> Result<f64, String> {
        let mut value = self.product()?;
        loop {
            if self.skip('+') {
                value += self.product()?;
            } else if self.skip('-') {
                value -= self.product()?;
            } else {
                return Ok(value);
            }
        }
    }

    fn product(&mut self) -> Result<f64, String> {
        let mut value = self.factor()?;
        loop {
            if self.skip('*') {
                value *= self.factor()?;
            } else if self.skip('/') {
                value /= self.factor()?;
            } else {
                return Ok(value);
            }
        }
    }

    fn factor(&mut self) -> Result<f64, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err("too many brackets".to_owned());
        }
        let value = if self.skip('(') {
            let value = self.sum()?;
            if !self.skip(')') {
                return Err("a bracket is open".to_owned());
            }
            value
        } else if self.skip('-') {
            -self.factor()?
        } else {
            self.atom()?
        };
        self.depth -= 1;
        Ok(value)
    }

    fn atom(&mut self) -> Result<f64, String> {
        let end = self.rest.find(|c: char| !c.is_ascii_alphanumeric() && c != '.').unwrap_or(self.rest.len());
        let (word, rest) = self.rest.split_at(end);
        self.rest = rest.trim_start();
        if let Ok(number) = word.parse::<f64>()
            && word.starts_with(|c: char| c.is_ascii_digit())
        {
            return Ok(number);
        }
        match self.names.get(word) {
            Some(value) => Ok(*value),
            None if word.is_empty() => Err("a number or a name is missing".to_owned()),
            None => Err(format!("`{word}` has no value yet")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cells_are_sums_over_names() {
        let mut names = BTreeMap::new();
        for (cell, expected) in [
            ("21*2", Ok("42")),
            ("a = 2 + 3 * (4 - 1)", Ok("11")),
            ("a / 2", Ok("5.5")),
            ("-a", Ok("-11")),
            ("b", Err("`b` has no value yet")),
            ("1 +", Err("a number or a name is missing")),
            ("(1", Err("a bracket is open")),
            ("import os", Err("`import` has no value yet")),
            ("__x", Err("a number or a name is missing")),
        ] {
            assert_eq!(evaluate(cell, &mut names).as_deref().map_err(String::as_str), expected, "{cell}");
        }
        assert!(evaluate(&"(".repeat(150), &mut names).is_err());
    }
}
