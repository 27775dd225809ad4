//! Requirements on an identity: claims by name or pointer, and the values that satisfy each.

use std::fmt;

use serde_json::Value;

use super::check::Check;
use super::{BoundAudience, Pattern, bound_audience};

/// The name of a claim.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Claim {
    /// The user id with the provider's prefix; `sub` in the configuration.
    UserId,
    /// A literal top-level member.
    Name(String),
    /// An RFC 6901 pointer into the claims.
    Pointer(String),
}

impl Claim {
    /// Parses a claim as it is in the configuration.
    ///
    /// # Errors
    /// Returns an error when the text is empty, or a pointer with a broken escape.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.is_empty() {
            return Err("an empty claim name".to_owned());
        }
        if text == "sub" {
            return Ok(Self::UserId);
        }
        if !text.starts_with('/') {
            return Ok(Self::Name(text.to_owned()));
        }
        let mut rest = text;
        while let Some(at) = rest.find('~') {
            if !matches!(rest.as_bytes().get(at + 1), Some(b'0' | b'1')) {
                return Err(format!("\"{text}\" is not an RFC 6901 pointer: `~` is written `~0`"));
            }
            rest = &rest[at + 2..];
        }
        Ok(Self::Pointer(text.to_owned()))
    }

    /// Returns whether it is the e-mail address, which counts only when it is verified.
    #[must_use]
    pub fn is_email(&self) -> bool {
        match self {
            Self::UserId => false,
            Self::Name(name) => name == "email",
            Self::Pointer(pointer) => pointer == "/email",
        }
    }

    /// Returns whether users of common providers can write this claim, or a part of it, themselves: the metadata of
    /// Supabase and Clerk, also below the namespace that Auth0 demands, and the attributes that an application of
    /// Cognito defines.
    #[must_use]
    pub fn is_written_by_users(&self) -> bool {
        let text = match self {
            Self::UserId => return false,
            Self::Name(text) | Self::Pointer(text) => text.as_str(),
        };
        text.split(['/', '.']).any(|part| {
            ["user_metadata", "unsafe_metadata", "raw_user_meta_data"].contains(&part) || part.starts_with("custom:")
        })
    }

    /// Returns whether it is one of the claims of OpenID Connect Core section 5.1 that people choose themselves and
    /// that several users can share. Such a claim is no user id.
    #[must_use]
    pub fn is_chosen_by_users(&self) -> bool {
        let text = match self {
            Self::UserId => return false,
            Self::Name(name) => name.as_str(),
            Self::Pointer(pointer) => pointer.trim_start_matches('/'),
        };
        ["name", "given_name", "family_name", "middle_name", "nickname", "preferred_username", "profile", "website"]
            .contains(&text)
    }
}

impl fmt::Display for Claim {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::UserId => f.write_str("sub"),
            Self::Name(text) | Self::Pointer(text) => f.write_str(text),
        }
    }
}

/// A value that satisfies a requirement.
#[derive(Clone, Debug, PartialEq)]
pub enum Expected {
    /// Exactly this JSON value, or an array that contains it.
    Value(Value),
    /// The value of this path variable.
    Variable(String),
    /// Any value but null: `{ present: true }`.
    Present,
}

/// A set of claims that must each have one of the given values, and the audiences that count. Empty: nothing is required.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Requirement {
    /// The claims, each with the values that satisfy it.
    pub claims: Vec<(Claim, Vec<Expected>)>,
    /// The audiences that count; `None`: every one that the provider accepts.
    pub audience: Option<BoundAudience>,
}

impl Requirement {
    /// Returns whether nothing is required.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.claims.is_empty() && self.audience.is_none()
    }

    /// Returns the scopes that it asks for by name: of each claim `scope` or `scp` the first that would do.
    pub fn scopes(&self) -> impl Iterator<Item = &str> {
        let is_scope = |claim: &Claim| matches!(claim, Claim::Name(name) if name == "scope" || name == "scp");
        self.claims.iter().filter(move |(claim, _)| is_scope(claim)).filter_map(|(_, expected)| {
            match expected.first() {
                Some(Expected::Value(Value::String(scope))) if bound_audience::is_scope(scope) => Some(scope.as_str()),
                _ => None,
            }
        })
    }
}

impl Check {
    pub(super) fn requirement(
        &mut self,
        path: &str,
        written: &std::collections::BTreeMap<String, serde_json::Value>,
        pattern: Option<&Pattern>,
    ) -> Requirement {
        let mut claims = Vec::new();
        for (name, value) in written {
            let at = format!("{path}.{name}");
            let Some(claim) = self.ok_or_report(&at, Claim::parse(name)) else { continue };
            if claim.is_written_by_users() {
                self.warn_at(&at, format!("users can write the claim {claim} themselves"));
            }
            let values = match value {
                serde_json::Value::Array(values) if values.is_empty() => {
                    self.error(&at, "an empty list: nothing could satisfy it");
                    continue;
                }
                serde_json::Value::Array(values) => values.clone(),
                value => vec![value.clone()],
            };
            let mut expected = Vec::new();
            for value in values {
                match value {
                    serde_json::Value::String(text) if text.starts_with('{') && text.ends_with('}') => {
                        let variable = &text[1..text.len() - 1];
                        if !pattern.is_some_and(|pattern| pattern.variables().any(|name| name == variable)) {
                            self.error(&at, format!("{text} is not a variable of the path"));
                        }
                        expected.push(Expected::Variable(variable.to_owned()));
                    }
                    serde_json::Value::Object(object)
                        if object.len() == 1 && object.get("present") == Some(&serde_json::Value::Bool(true)) =>
                    {
                        expected.push(Expected::Present);
                    }
                    serde_json::Value::Object(_) | serde_json::Value::Null => {
                        self.error(&at, "must be text, a number, true or false, a list of these, or { present: true }");
                    }
                    value => expected.push(Expected::Value(value)),
                }
            }
            claims.push((claim, expected));
        }
        Requirement { claims, audience: None }
    }
}
