//! The contact that pages show to people who need help (`browser.contact`).

use url::Url;

use super::check::Check;

/// The maximum length of a contact in bytes: it is one line of a small page.
const MAX_BYTES: usize = 200;

/// A line of text, and the URL that it links to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Contact {
    text: String,
    href: Option<String>,
}

impl Contact {
    /// Returns the line of text, not escaped.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    /// Returns the `http:`, `https:` or `mailto:` URL of the contact, if it is a URL or an address.
    #[must_use]
    pub fn href(&self) -> Option<&str> {
        self.href.as_deref()
    }

    /// Reads an `http:`, `https:` or `mailto:` URL, a mail address, or any other line of text.
    fn parse(written: &str) -> Result<Self, String> {
        const EXPECTED: &str = "write a mail address, an https URL, or a line of text";
        if written.is_empty() || written.trim() != written {
            return Err(format!("is empty, or begins or ends with a space; {EXPECTED}"));
        }
        if written.len() > MAX_BYTES {
            return Err(format!("has {} bytes, and at most {MAX_BYTES} are shown; {EXPECTED}", written.len()));
        }
        if written.chars().any(char::is_control) {
            return Err(format!("holds a line break or another control character; {EXPECTED}"));
        }
        if written.contains(char::is_whitespace) {
            return Ok(Self { text: written.to_owned(), href: None });
        }
        if is_mail_address(written) {
            return Ok(Self { text: written.to_owned(), href: Some(format!("mailto:{written}")) });
        }
        let Some((scheme, rest)) = written.split_once(':') else {
            return Ok(Self { text: written.to_owned(), href: None });
        };
        if scheme.eq_ignore_ascii_case("mailto") {
            let address = rest.split('?').next().unwrap_or(rest);
            if !is_mail_address(address) {
                return Err(format!("\"{written}\" names no mail address; write mailto:help@example.com"));
            }
            return Ok(Self { text: address.to_owned(), href: Some(written.to_owned()) });
        }
        let is_page = |url: &Url| {
            matches!(url.scheme(), "http" | "https") && url.username().is_empty() && url.password().is_none()
        };
        match Url::parse(written) {
            Ok(url) if is_page(&url) => Ok(Self { text: written.to_owned(), href: Some(url.into()) }),
            Ok(url) if matches!(url.scheme(), "http" | "https") => {
                Err("is a URL with a user name or password, which everyone would read; remove it".to_owned())
            }
            _ => Err(format!("\"{written}\" is neither an http or https URL nor a mail address; {EXPECTED}")),
        }
    }
}

/// Returns whether a text is `local@domain`, without spaces, quotes or brackets.
fn is_mail_address(text: &str) -> bool {
    let is_part = |part: &str, further: &[char]| {
        !part.is_empty() && part.chars().all(|c| c.is_ascii_alphanumeric() || further.contains(&c))
    };
    text.split_once('@').is_some_and(|(local, domain)| {
        is_part(local, &['.', '-', '_', '+']) && is_part(domain, &['.', '-']) && !domain.starts_with(['.', '-'])
    })
}

impl Check {
    pub(super) fn contact(&mut self, written: Option<&String>) -> Option<Contact> {
        written.and_then(|written| self.ok_or_report("browser.contact", Contact::parse(written)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_contact_is_a_line_an_address_or_a_url() {
        for (written, text, href) in [
            ("help@example.com", "help@example.com", Some("mailto:help@example.com")),
            (
                "mailto:help@example.com?subject=Access",
                "help@example.com",
                Some("mailto:help@example.com?subject=Access"),
            ),
            ("https://help.example.com", "https://help.example.com", Some("https://help.example.com/")),
            ("Ask in #platform, or ext. 123: <IT>", "Ask in #platform, or ext. 123: <IT>", None),
            ("#platform", "#platform", None),
        ] {
            let contact = Contact::parse(written).expect(written);
            assert_eq!((contact.text(), contact.href()), (text, href), "{written}");
        }
        for (written, expected) in [
            ("", "is empty"),
            (" x", "begins or ends with a space"),
            ("a\nb", "control character"),
            ("javascript:alert(1)", "is neither an http or https URL nor a mail address"),
            ("JavaScript:alert(1)", "is neither an http or https URL nor a mail address"),
            ("data:text/html,x", "is neither an http or https URL nor a mail address"),
            ("mailto:x", "names no mail address"),
            ("https://user:secret@example.com/", "with a user name or password"),
            (&"x".repeat(201), "has 201 bytes"),
        ] {
            let error = Contact::parse(written).expect_err(written);
            assert!(error.contains(expected), "{written}: {error}");
            assert!(!error.contains("secret"), "{error}");
        }
    }
}
