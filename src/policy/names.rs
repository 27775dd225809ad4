//! Names that no client may set, compared by their letters and digits alone.
//!
//! `X_USER.ID` is `X-User-Id` to a backend that turns header names into CGI or WSGI variables
//! (CVE-2025-64484, CVE-2026-39858, CVE-2026-52845), so one folding serves every comparison.

use std::collections::HashSet;

/// Identity headers of other proxies, taken from clients whatever is configured.
pub(super) const WELL_KNOWN: [&str; 30] = [
    "X-Forwarded-User",
    "X-Forwarded-Email",
    "X-Forwarded-Groups",
    "X-Forwarded-Preferred-Username",
    "X-Forwarded-Access-Token",
    "X-Auth-Request-User",
    "X-Auth-Request-Email",
    "X-Auth-Request-Groups",
    "X-Auth-Request-Preferred-Username",
    "X-Auth-Request-Access-Token",
    "Remote-User",
    "Remote-Email",
    "Remote-Groups",
    "Remote-Name",
    "X-Remote-User",
    "X-Webauth-User",
    "X-Token-Subject",
    "X-Token-User-Name",
    "X-Token-User-Email",
    "X-Token-User-Roles",
    "X-Consumer-Username",
    "X-Userinfo",
    "X-Amzn-Oidc-Identity",
    "X-Amzn-Oidc-Data",
    "X-Amzn-Oidc-Accesstoken",
    "X-Goog-Authenticated-User-Email",
    "X-Goog-Authenticated-User-Id",
    "Cf-Access-Authenticated-User-Email",
    "Tailscale-User-Login",
    "X-User-Id",
];

/// Families: every name that starts like this.
const FAMILIES: [&[u8]; 1] = [b"xpomeriumclaim"];

/// Names whose look-alikes are removed, while the name itself is ours to handle.
pub(super) const PROTECTED: [&str; 6] =
    ["Host", "Content-Length", "Transfer-Encoding", "Authorization", "Cookie", "Forwarded"];

/// Longer names cannot be any of ours: `validate` refuses to configure them.
pub(super) const LONGEST: usize = 64;

/// Letters and digits of a header name, in lower case; `None` when longer than any reserved name.
#[must_use]
pub fn fold(name: &str) -> Option<Folded> {
    let mut folded = Folded { bytes: [0; LONGEST], length: 0 };
    for byte in name.bytes().filter(u8::is_ascii_alphanumeric) {
        *folded.bytes.get_mut(folded.length)? = byte.to_ascii_lowercase();
        folded.length += 1;
    }
    Some(folded)
}

/// A folded name, on the stack: every header of every request is folded once.
#[derive(Clone, Copy, Debug)]
pub struct Folded {
    bytes: [u8; LONGEST],
    length: usize,
}

impl Folded {
    /// The letters and digits.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// What a header of a client is to us.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reserved {
    /// An identity header or its look-alike: removed and counted.
    Identity,
    /// Looks like a name that decides about framing, credentials or forwarding, but is not it.
    LookAlike,
    /// A forwarding field: removed, ours are made anew.
    Forwarding,
    /// A name that makes some backends see another request: never passed on.
    Override,
}

/// The set of reserved names of one policy.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReservedNames {
    identity: HashSet<Box<[u8]>>,
    method_override: bool,
}

impl ReservedNames {
    pub(crate) fn new<'a>(configured: impl IntoIterator<Item = &'a str>, method_override: bool) -> Self {
        let identity =
            WELL_KNOWN.into_iter().chain(configured).filter_map(fold).map(|folded| folded.as_bytes().into()).collect();
        Self { identity, method_override }
    }

    /// What `name`, as a client sent it, is; `None` for an ordinary header.
    #[must_use]
    pub fn classify(&self, name: &str) -> Option<Reserved> {
        let folded = fold(name)?;
        let letters = folded.as_bytes();
        if self.identity.contains(letters) || FAMILIES.iter().any(|family| letters.starts_with(family)) {
            return Some(Reserved::Identity);
        }
        match letters {
            b"host" | b"contentlength" | b"transferencoding" | b"authorization" | b"cookie" => {
                let plain = PROTECTED.iter().any(|protected| protected.eq_ignore_ascii_case(name));
                (!plain).then_some(Reserved::LookAlike)
            }
            b"forwarded" | b"xrealip" | b"trueclientip" | b"cfconnectingip" | b"xclientip" | b"xclusterclientip"
            | b"fastlyclientip" | b"sslclientcert" | b"xsslclientcert" | b"xclientcert" | b"clientcert"
            | b"clientcertchain" | b"xsslclientverify" | b"xsslclientsdn" | b"xarrclientcert" => {
                Some(Reserved::Forwarding)
            }
            _ if letters.starts_with(b"xforwarded") => Some(Reserved::Forwarding),
            b"proxy" | b"xoriginalurl" | b"xrewriteurl" | b"xoriginalmethod" => Some(Reserved::Override),
            b"xhttpmethodoverride" | b"xhttpmethod" | b"xmethodoverride" if self.method_override => {
                Some(Reserved::Override)
            }
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn look_alikes_fold_onto_the_configured_name() {
        let reserved = ReservedNames::new(["x-team-MEMBER"], false);
        for name in ["X-User-Id", "x_user_id", "X.USER.ID", "xuserid", "X-Team_Member", "X-Pomerium-Claim-Foo"] {
            assert_eq!(reserved.classify(name), Some(Reserved::Identity), "{name}");
        }
    }

    #[test]
    fn framing_names_pass_in_their_own_spelling_only() {
        let reserved = ReservedNames::default();
        assert_eq!(reserved.classify("Content-Length"), None);
        assert_eq!(reserved.classify("content_length"), Some(Reserved::LookAlike));
        assert_eq!(reserved.classify("Transfer.Encoding"), Some(Reserved::LookAlike));
        assert_eq!(reserved.classify("Authorization"), None);
        assert_eq!(reserved.classify("X_Forwarded_For"), Some(Reserved::Forwarding));
        assert_eq!(reserved.classify("X-Forwarded-Prefix"), Some(Reserved::Forwarding));
        assert_eq!(reserved.classify("Accept"), None);
        assert_eq!(reserved.classify(&"x".repeat(200)), None);
    }

    #[test]
    fn method_overrides_go_only_where_a_rule_names_methods() {
        assert_eq!(ReservedNames::new([], false).classify("X-HTTP-Method-Override"), None);
        assert_eq!(ReservedNames::new([], true).classify("X-HTTP-Method-Override"), Some(Reserved::Override));
    }
}
