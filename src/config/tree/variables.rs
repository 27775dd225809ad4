//! Replaces variables in the values of a tree.

use super::{Node, Value, join};
use crate::config::finding::Finding;

impl Node {
    /// Replaces `${NAME}`, `${NAME:-default}` and `$$` in every value, never in keys.
    pub(in crate::config) fn substitute(
        &mut self,
        variable: &dyn Fn(&str) -> Option<String>,
        path: &str,
        findings: &mut Vec<Finding>,
    ) {
        match &mut self.value {
            Value::Scalar { text, plain } => {
                if !text.contains('$') {
                    return;
                }
                // An empty part makes a secret shorter than it looks, and can change an address.
                let is_given = |value: &str, has_default: bool| {
                    !value.trim().is_empty() || !must_not_be_empty(path) || (has_default && !is_secret(path))
                };
                match expand(text, variable, &is_given, is_secret(path)) {
                    Ok(expanded) => {
                        if text.contains("${") {
                            self.variable = Some(shown_variable(text));
                        }
                        if expanded.trim().is_empty() && must_not_be_empty(path) {
                            let message = format!("{} is empty; give the variable a value", shown_variable(text));
                            findings.push(Finding::at(self.place, path, message));
                        }
                        // The value of a variable is never `null` by accident.
                        *plain = *plain && !expanded.is_empty();
                        *text = expanded;
                    }
                    Err(message) => findings.push(Finding::at(self.place, path, message)),
                }
            }
            Value::Sequence(items) => {
                for (index, item) in items.iter_mut().enumerate() {
                    item.substitute(variable, &format!("{path}[{index}]"), findings);
                }
            }
            Value::Mapping(entries) => {
                for (key, item) in entries {
                    item.substitute(variable, &join(path, &key.name), findings);
                }
            }
        }
    }
}

/// Returns whether an empty value at this path would grant access, or make a secret that anyone can guess.
fn must_not_be_empty(path: &str) -> bool {
    let key = key_of(path);
    is_secret(path) || key.contains("file") || ["issuer", "audience", "origins", "url", "upstream"].contains(&key)
}

/// Returns whether the value at this path is a secret, which must not be short.
fn is_secret(path: &str) -> bool {
    let key = key_of(path);
    (key.contains("secret") && !key.contains("file")) || ["value", "token"].contains(&key)
}

/// Returns the last key of a path, without the index of a list's entry.
fn key_of(path: &str) -> &str {
    let path = path.trim_end_matches(|c: char| c == ']' || c == '[' || c.is_ascii_digit());
    path.rsplit('.').next().unwrap_or(path)
}

fn shown_variable(text: &str) -> String {
    text.find("${")
        .and_then(|start| text[start..].find('}').map(|end| text[start..=start + end].to_owned()))
        .unwrap_or_default()
}

/// Expands the variables of a text. `is_given` returns whether the value of a variable is acceptable, by the value and
/// by whether it has a default. Of a secret nothing is repeated but names of variables, and no default is proposed: it
/// would be published with the file.
fn expand(
    text: &str,
    variable: &dyn Fn(&str) -> Option<String>,
    is_given: &dyn Fn(&str, bool) -> bool,
    is_secret: bool,
) -> Result<String, String> {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
            continue;
        }
        let Some(after) = rest.strip_prefix('{') else {
            return Err("a lone `$` begins no variable; write `$$` for a dollar, ${NAME} for a variable".to_owned());
        };
        let Some(end) = after.find('}') else {
            return Err("`${` without `}`; write ${NAME}, or `$$` for a dollar".to_owned());
        };
        let (name, default) = match after[..end].split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (&after[..end], None),
        };
        let named = !name.is_empty()
            && name.bytes().all(|b| b.is_ascii_uppercase() || b.is_ascii_digit() || b == b'_')
            && !name.as_bytes()[0].is_ascii_digit();
        if !named && is_secret {
            return Err(
                "`${` without the name of a variable (capitals, digits and _); write `$$` for a dollar".to_owned()
            );
        }
        if !named {
            return Err(format!("${{{name}}} is not a variable name: capitals, digits and _"));
        }
        let value = variable(name).filter(|value| !value.is_empty() || default.is_none());
        let Some(value) = value.or_else(|| default.map(str::to_owned)) else {
            return Err(if is_secret {
                format!("${{{name}}} is not set; set the variable")
            } else {
                format!("${{{name}}} is not set; set it, or write ${{{name}:-default}}")
            });
        };
        if !is_given(&value, default.is_some()) {
            return Err(format!("${{{name}}} is empty; give the variable a value"));
        }
        out.push_str(&value);
        rest = &after[end + 1..];
    }
    out.push_str(rest);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::super::parse;
    use super::*;

    fn expanded(text: &str) -> Result<String, String> {
        expand(
            text,
            &|name| match name {
                "HOST" => Some("example.com".to_owned()),
                "EMPTY" => Some(String::new()),
                _ => None,
            },
            &|_, _| true,
            false,
        )
    }

    #[test]
    fn of_a_secret_nothing_is_repeated_and_no_default_is_proposed() {
        let errors = |yaml: &str| {
            let mut findings = Vec::new();
            parse(yaml).expect("yaml").substitute(&|_| None, "", &mut findings);
            findings.into_iter().map(|finding| finding.message).collect::<Vec<_>>()
        };
        for (yaml, expected) in [
            ("secret: ${SESSION_SECRET}\n", "${SESSION_SECRET} is not set; set the variable"),
            ("client_secret: ${CLIENT}\n", "${CLIENT} is not set; set the variable"),
            ("audience: ${AUD}\n", "${AUD} is not set; set it, or write ${AUD:-default}"),
            (
                "secret: pa${ss}word\n",
                "`${` without the name of a variable (capitals, digits and _); write `$$` for a dollar",
            ),
            ("audience: ${aud}\n", "${aud} is not a variable name: capitals, digits and _"),
        ] {
            assert_eq!(errors(yaml), [expected], "{yaml}");
        }
    }

    #[test]
    fn variables_are_replaced_inside_values() {
        assert_eq!(expanded("https://${HOST}/x").as_deref(), Ok("https://example.com/x"));
        assert_eq!(expanded("${PORT:-8080}").as_deref(), Ok("8080"));
        assert_eq!(expanded("${EMPTY:-x}").as_deref(), Ok("x"));
        assert_eq!(expanded("a$$b").as_deref(), Ok("a$b"));
        assert_eq!(expanded("$${HOST}").as_deref(), Ok("${HOST}"));
        for broken in ["${MISSING}", "$HOST", "${host}", "${HOST", "${}"] {
            assert!(expanded(broken).is_err(), "{broken}");
        }
    }

    #[test]
    fn a_secret_cannot_add_keys() {
        let mut tree = parse("a: ${INJECT}\n").expect("yaml");
        let mut findings = Vec::new();
        tree.substitute(&|_| Some("x\nb: y".to_owned()), "", &mut findings);
        assert!(findings.is_empty());
        assert!(tree.get("b").is_none());
    }
}
