//! Texts of the user in messages. A secret in the wrong place (a token as an argument, a secret where a file's name
//! belongs) is not repeated: standard error often ends in a log.

use std::path::Path;

/// The text in place of one that may be a secret.
pub(crate) const NOT_SHOWN: &str = "(not shown: it may be a secret)";

/// The longest name of a file in a folder, on the file systems in use. A longer text is no name.
const LONGEST_NAME: usize = 255;
/// The length from which a text of letters and digits may be a secret.
const SHORTEST_SECRET: usize = 20;

/// The endings of files that a configuration names. A secret may have a dot too.
const ENDINGS: [&str; 12] = ["cert", "cfg", "conf", "crt", "jwk", "jwks", "json", "key", "pem", "token", "yaml", "yml"];

/// Returns the name of a file that cannot be read, unless it may be a secret, or a file's content.
pub(crate) fn shown_file(name: &str) -> &str {
    let is_below =
        |folder: &str| name.strip_prefix(folder).is_some_and(|rest| rest.contains('/') || !may_be_secret(rest));
    let is_path = !may_be_secret(name) && ["/", "./", "../"].iter().any(|folder| is_below(folder));
    let ending = Path::new(name).extension().and_then(|ending| ending.to_str());
    let is_plain = ending.is_some_and(|ending| ENDINGS.contains(&ending)) && !name.contains("eyJ");
    let is_name = (is_path || is_plain)
        && name.split('/').all(|part| part.len() <= LONGEST_NAME)
        && !name.contains(char::is_control)
        && !name.contains("-----");
    if is_name { name } else { NOT_SHOWN }
}

/// Returns whether an argument of the command line may be a token or another secret, or hold one.
pub(crate) fn may_be_secret(text: &str) -> bool {
    text.contains("eyJ")
        || text.contains("-----BEGIN")
        || text.to_ascii_lowercase().contains("bearer ")
        || text.split_whitespace().any(may_be_random)
}

/// Returns whether a word may be of random characters.
fn may_be_random(word: &str) -> bool {
    if ["/", "./", "../"].iter().any(|start| word.starts_with(start)) {
        return word.split('/').any(may_be_base64);
    }
    let has = |kind: fn(&u8) -> bool| word.bytes().any(|byte| kind(&byte));
    word.len() >= SHORTEST_SECRET
        && !word.starts_with('-')
        && (!word.contains("://") || word.contains(['@', '?']))
        && has(u8::is_ascii_digit)
        && has(u8::is_ascii_alphabetic)
}

/// Returns whether a part of a path may be one of a secret in base64, whose alphabet has the slash. Folders have long names
/// too, but those that programs make have digits and lower case.
fn may_be_base64(part: &str) -> bool {
    let has = |kind: fn(&u8) -> bool| part.bytes().any(|byte| kind(&byte));
    part.contains(['+', '='])
        || (part.len() >= SHORTEST_SECRET
            && has(u8::is_ascii_digit)
            && has(u8::is_ascii_lowercase)
            && has(u8::is_ascii_uppercase))
}

/// Returns an argument of the command line for a message, unless it may be a secret.
pub(crate) fn shown_argument(text: &str) -> &str {
    if may_be_secret(text) { NOT_SHOWN } else { text }
}

/// Returns a URL for a message, without user, password and query.
pub(crate) fn shown_url(text: &str) -> String {
    let plain = text.split(['?', '#']).next().unwrap_or_default();
    if text.contains('@') && !plain.contains('@') {
        // The `@` may end a password with such a character in it.
        return NOT_SHOWN.to_owned();
    }
    let (scheme, rest) = plain.split_once("://").map_or(("", plain), |(scheme, rest)| (scheme, rest));
    if scheme.is_empty() && may_be_secret(plain) && !has_host(rest) {
        return NOT_SHOWN.to_owned();
    }
    // The part before the last `@` may be a password, in whatever way it is written.
    let rest = rest.rsplit_once('@').map_or(rest, |(_, rest)| rest);
    if scheme.is_empty() { rest.to_owned() } else { format!("{scheme}://{rest}") }
}

/// Returns whether a text without a scheme begins as an address does, and not as random characters do.
fn has_host(text: &str) -> bool {
    let host = text.rsplit_once('@').map_or(text, |(_, host)| host).split('/').next().unwrap_or_default();
    host.contains(['.', ':'])
        && host.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"-.:[]".contains(&byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_files_are_shown_and_secrets_are_not() {
        for name in [
            "/run/secrets/session",
            "./session",
            "tls/key.pem",
            "vestibule.yaml",
            "../x",
            "/var/lib/kubelet/pods/2f1c9a34-7c1e-4f0a-9d55-0f3b6a1c2d3e/volumes/token",
            "/run/secrets/..2026_11_28_14_46_11.123456789/session",
        ] {
            assert_eq!(shown_file(name), name);
        }
        let long = format!("/{}", "a".repeat(300));
        for secret in [
            "eyJhbGciOiJub25lIn0.e30.x",
            "Bearer eyJhbGciOiJub25lIn0.e30.x",
            "kF3x9dks0aBcDeFgHiJkLmNoPqRsTuVw",
            "kF3x/9dks+0aBc==",
            "/kF3x9dks0aBcDeFgHiJkLmNoPqRsTuVw==",
            "/kF3x9dks0aBc/eFgHiJkLmNoPqRsTuVw=",
            "/kF3/x9dks0aBceFgHiJkLmNoPqRsTuVw",
            "Sommer2024.Haus",
            "-----BEGIN PRIVATE KEY-----",
            "listen: :8080\nsecret: x.yaml",
            &long,
        ] {
            assert_eq!(shown_file(secret), NOT_SHOWN);
        }
    }

    #[test]
    fn arguments_that_may_be_secrets_are_recognized() {
        for secret in [
            "eyJhbGci.e30.x",
            "Bearer eyJhbGci",
            "bearer abc",
            "Authorization: Bearer abc",
            "--token:eyJhbGci.e30.x",
            "sk_live_4eC39HqLyjWDarjtT1",
            "-----BEGIN PRIVATE KEY-----",
            "redis://:hunter2hunter2@cache:6379",
        ] {
            assert!(may_be_secret(secret), "{secret}");
        }
        for plain in [
            "check",
            "vestibule.yaml",
            "--insecure-dev-mode-2024",
            "/etc/vestibule/2024/vestibule.yaml",
            "a sentence of 2 words or more",
            "http://127.0.0.1:8000/x",
        ] {
            assert!(!may_be_secret(plain), "{plain}");
        }
    }

    #[test]
    fn a_url_is_shown_without_user_password_and_query() {
        for (text, shown) in [
            ("http://a:8000/x", "http://a:8000/x"),
            ("http://me:pa ss@a:8000", "http://a:8000"),
            ("me:p@ss@a:8000", "a:8000"),
            ("http://me:pa#ss@a", NOT_SHOWN),
            ("http://me:pa?ss@a", NOT_SHOWN),
            ("https://a/keys?apikey=b#c", "https://a/keys"),
            ("notebook-4f2a91c0de.internal.example.com:8080/x", "notebook-4f2a91c0de.internal.example.com:8080/x"),
            ("kF3x9dks0aBcDeFgHiJkLmNoPqRsTuVw", NOT_SHOWN),
            ("kf3x9dks0abcdefghijklmnopqrstuvw", NOT_SHOWN),
        ] {
            assert_eq!(shown_url(text), shown);
        }
    }
}
