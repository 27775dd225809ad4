//! Paths with one reading: which ones could mean something else to a backend, and which are ours.

use percent_encoding::percent_decode;

/// The prefix of our own endpoints.
const OWN: &[u8] = b".vestibule";

/// A `%` that is not followed by two hex digits: no two programs agree on what it means.
pub(super) fn has_broken_escape(path: &str) -> bool {
    let bytes = path.as_bytes();
    (0..bytes.len()).any(|at| {
        bytes[at] == b'%'
            && !(bytes.get(at + 1).is_some_and(u8::is_ascii_hexdigit)
                && bytes.get(at + 2).is_some_and(u8::is_ascii_hexdigit))
    })
}

/// Whether a backend might read this path as another one (CVE-2021-29492, CVE-2026-33494):
/// dot segments in any spelling, `\`, `//`, `;`, encoded slashes, NUL, unreserved characters that
/// need no encoding, double encoding, bytes that need one.
pub(super) fn is_ambiguous(path: &str) -> bool {
    let bytes = path.as_bytes();
    if bytes.first() != Some(&b'/') {
        return true;
    }
    let mut previous = 0;
    for (at, byte) in bytes.iter().enumerate() {
        match byte {
            b'\\' | b';' => return true,
            // RFC 3986 knows none of these unencoded; what a backend makes of them is its own affair.
            0x80.. => return true,
            b'/' if previous == b'/' => return true,
            b'%' if encodes_what_needs_none(&bytes[at + 1..]) => return true,
            _ => {}
        }
        previous = *byte;
    }
    // Encoded dots are caught above.
    path.split('/').any(|segment| segment == "." || segment == "..")
}

fn encodes_what_needs_none(after_percent: &[u8]) -> bool {
    let Some(byte) = hex_pair(after_percent) else { return true };
    match byte {
        b'/' | b'\\' | 0 | b';' => true,
        // RFC 3986 section 2.3: unreserved characters mean the same encoded or not.
        b'.' | b'-' | b'_' | b'~' => true,
        b'%' => hex_pair(&after_percent[2..]).is_some(),
        byte => byte.is_ascii_alphanumeric(),
    }
}

fn hex_pair(bytes: &[u8]) -> Option<u8> {
    let digit = |at: usize| bytes.get(at).and_then(|b| char::from(*b).to_digit(16)).and_then(|d| u8::try_from(d).ok());
    Some(digit(0)? << 4 | digit(1)?)
}

/// Whether any reader could take this path for one under our prefix: nothing there is ever routed
/// upstream, whatever the spelling.
pub(super) fn is_own(path: &str) -> bool {
    // The usual path has neither an escape nor our name in it, and is not taken apart.
    let bytes = path.as_bytes();
    if !bytes.contains(&b'%') && !bytes.windows(OWN.len()).any(|window| window.eq_ignore_ascii_case(OWN)) {
        return false;
    }
    let once: Vec<u8> = percent_decode(bytes).collect();
    let twice: Vec<u8> = percent_decode(&once).collect();
    [bytes, &once, &twice].into_iter().any(reads_as_own)
}

fn reads_as_own(path: &[u8]) -> bool {
    let mut stack: Vec<&[u8]> = Vec::new();
    for segment in path.split(|byte| matches!(byte, b'/' | b'\\')) {
        // Some backends cut matrix parameters off a segment, some stop at NUL.
        let name = segment.split(|byte| matches!(byte, b';' | 0)).next().unwrap_or(segment);
        match name {
            b"" | b"." => {}
            b".." => {
                stack.pop();
            }
            name => stack.push(name),
        }
        // At any point: `/.vestibule/../x` is ours too, so that no reader disagrees.
        if stack.first().is_some_and(|first| first.eq_ignore_ascii_case(OWN)) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ambiguous_paths_are_recognised() {
        for (path, ambiguous) in [
            ("/", false),
            ("/a/b.c/d-e_f~g", false),
            ("/a/", false),
            ("/a%20b/%C3%A9/%23", false),
            ("/a:b@c!$&'()*+,=", false),
            ("/...", false),
            ("/a/../b", true),
            ("/a/..", true),
            ("/./a", true),
            ("/a/%2e%2e/b", true),
            ("/a/.%2E/b", true),
            ("//a", true),
            ("/a//b", true),
            ("/a\\b", true),
            ("/a;b", true),
            ("/a/..;/b", true),
            ("/a%2Fb", true),
            ("/a%5cb", true),
            ("/a%00", true),
            ("/%61dmin", true),
            ("/%5F", true),
            ("/%252e", true),
            ("/%25", false),
            ("*", true),
        ] {
            assert_eq!(is_ambiguous(path), ambiguous, "{path}");
        }
    }

    #[test]
    fn our_prefix_is_recognised_in_every_spelling() {
        for (path, own) in [
            ("/.vestibule", true),
            ("/.vestibule/session", true),
            ("/.VESTIBULE/x", true),
            ("//.vestibule/x", true),
            ("/./.vestibule/x", true),
            ("/a/../.vestibule/x", true),
            ("/%2evestibule/x", true),
            ("/%252evestibule/x", true),
            ("/.vest%69bule", true),
            ("/\\.vestibule", true),
            ("/.vestibule;x/y", true),
            ("/.vestibule/../x", true),
            ("/a/.vestibule", false),
            ("/.vestibulex", false),
            ("/vestibule", false),
        ] {
            assert_eq!(is_own(path), own, "{path}");
        }
    }

    #[test]
    fn escapes_are_two_hex_digits() {
        for (path, broken) in [("/a%20", false), ("/a%", true), ("/a%2", true), ("/a%zz", true), ("/a%2g", true)] {
            assert_eq!(has_broken_escape(path), broken, "{path}");
        }
    }

    mod properties {
        use proptest::prelude::*;

        use super::*;
        use crate::policy::{AuthMode, Policy};

        fn policy() -> Policy {
            let yaml = "upstream: http://127.0.0.1:1\nproviders: [{ preset: shared-secret, secret: 0123456789abcdef0123456789abcdefX }]\nroutes:\n  - { path: /admin/**, auth: deny }\n  - { path: /open/**, auth: none }\n  - { path: \"/a/{x}/b\", require: { sub: nobody } }\n";
            crate::policy::validate(&crate::config::load_yaml(yaml).expect("loads").config).expect("valid")
        }

        /// What a lenient backend makes of a path: decoded, back slashes turned, parameters cut, dots resolved,
        /// slashes merged, in small letters.
        fn as_a_backend_reads(path: &str) -> String {
            let decoded =
                String::from_utf8_lossy(&percent_decode(path.as_bytes()).collect::<Vec<u8>>()).replace('\\', "/");
            let mut stack: Vec<String> = Vec::new();
            for segment in decoded.split('/') {
                match segment.split(';').next().unwrap_or_default() {
                    "" | "." => {}
                    ".." => {
                        stack.pop();
                    }
                    name => stack.push(name.to_ascii_lowercase()),
                }
            }
            format!("/{}", stack.join("/"))
        }

        proptest! {
            #![proptest_config(ProptestConfig { max_global_rejects: 1_000_000, ..ProptestConfig::with_cases(2_000) })]

            #[test]
            fn what_is_let_through_falls_under_one_rule_however_it_is_read(
                path in "(/|/open|/admin|/a|/b|/x|/\\.|/\\.\\.|%2e|%2F|%5c|//|;|\\\\|%61|%41|%20|ADMIN|Open|/admin/|%25|%2525|\u{e9}){0,8}"
            ) {
                prop_assume!(path.starts_with('/') && !has_broken_escape(&path) && !is_ambiguous(&path));
                let policy = policy();
                let sent = policy.route("GET", &path);
                let read = policy.route("GET", &as_a_backend_reads(&path));
                // A rule that closes does so in every reading; one that opens only where every reading is opened.
                if read.route.auth == AuthMode::Deny || !read.route.require.claims.is_empty() {
                    prop_assert_eq!(&sent.route.label, &read.route.label, "{}", path);
                }
                if sent.route.auth == AuthMode::None {
                    prop_assert_eq!(read.route.auth, AuthMode::None, "{}", path);
                }
            }
        }
    }
}
