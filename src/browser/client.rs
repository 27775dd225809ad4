//! The files that front ends import: `/.vestibule/client.js`, minified, and its types, `/.vestibule/client.d.ts`.

use std::sync::LazyLock;

use aws_lc_rs::digest::{SHA256, digest};
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, IF_NONE_MATCH, X_CONTENT_TYPE_OPTIONS};
use hyper::{Response, StatusCode};

use crate::http::{Answer, ResponseBody};

/// A file that is compiled into the program and served without a credential.
pub struct ClientFile {
    content: &'static str,
    content_type: &'static str,
    tag: LazyLock<String>,
}

/// The script, built from `client.js` by `packages/client/build.mjs`.
const SCRIPT: &str = include_str!("client.min.js");
const TYPES: &str = include_str!("client.d.ts");

static SCRIPT_FILE: ClientFile = ClientFile {
    content: SCRIPT,
    content_type: "text/javascript; charset=utf-8",
    tag: LazyLock::new(|| entity_tag(SCRIPT)),
};
static TYPES_FILE: ClientFile =
    ClientFile { content: TYPES, content_type: "text/plain; charset=utf-8", tag: LazyLock::new(|| entity_tag(TYPES)) };

/// Returns the first eight bytes of the SHA-256 digest, in hexadecimal.
fn short_digest(content: &str) -> String {
    let digest = digest(&SHA256, content.as_bytes());
    digest.as_ref().iter().take(8).fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"))
}

fn entity_tag(content: &str) -> String {
    format!("\"{}\"", short_digest(content))
}

impl ClientFile {
    /// Returns the file that is served at a path, if one is.
    #[must_use]
    pub fn at(path: &str) -> Option<&'static Self> {
        match path {
            "/.vestibule/client.js" => Some(&SCRIPT_FILE),
            "/.vestibule/client.d.ts" => Some(&TYPES_FILE),
            _ => None,
        }
    }

    /// Responds with the file, or with 304 where the client has it already (RFC 9110, section 13.1.2).
    #[must_use]
    pub fn answer(&self, request: &HeaderMap) -> Answer {
        let is_current = self.is_named_in(request);
        let mut answer = Response::new(ResponseBody::from_proxy(if is_current { "" } else { self.content }));
        if is_current {
            *answer.status_mut() = StatusCode::NOT_MODIFIED;
        }
        let headers = answer.headers_mut();
        if !is_current {
            headers.insert(CONTENT_TYPE, HeaderValue::from_static(self.content_type));
            headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
        }
        // Browsers revalidate it each hour, because it changes with the program that serves it.
        headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
        if let Ok(tag) = HeaderValue::try_from(self.tag.as_str()) {
            headers.insert(ETAG, tag);
        }
        answer
    }

    /// Returns whether `If-None-Match` names this file. Its comparison is weak: a cache may have marked the tag so.
    fn is_named_in(&self, request: &HeaderMap) -> bool {
        let values = request.get_all(IF_NONE_MATCH).iter().filter_map(|value| value.to_str().ok());
        values
            .flat_map(|value| value.split(','))
            .map(str::trim)
            .any(|tag| tag == "*" || tag.strip_prefix("W/").unwrap_or(tag) == self.tag.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_minified_client_is_built_from_the_client_beside_it() {
        let expected =
            format!("/* Vestibule's client, built from client.js {} */\n", short_digest(include_str!("client.js")));
        assert!(
            SCRIPT.starts_with(&expected),
            "run `npm run build` in packages/client and commit src/browser/client.min.js"
        );
    }

    #[test]
    fn if_none_match_is_compared_weakly_and_in_lists() {
        let tag = SCRIPT_FILE.tag.as_str();
        let weak = format!("W/{tag}");
        let list = format!("\"other\", {tag}");
        for (value, is_current) in [
            (tag, true),
            (weak.as_str(), true),
            (list.as_str(), true),
            ("*", true),
            ("\"other\"", false),
            (&tag[1..], false),
        ] {
            let mut request = HeaderMap::new();
            request.insert(IF_NONE_MATCH, HeaderValue::try_from(value).expect("a value"));
            let expected = if is_current { StatusCode::NOT_MODIFIED } else { StatusCode::OK };
            assert_eq!(SCRIPT_FILE.answer(&request).status(), expected, "{value}");
        }
        assert_eq!(SCRIPT_FILE.answer(&HeaderMap::new()).status(), StatusCode::OK);
    }
}
