//! `/.vestibule/client.js`: the module that front ends import, as it stands in the source.

use std::sync::LazyLock;

use aws_lc_rs::digest::{SHA256, digest};
use hyper::Response;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderValue, X_CONTENT_TYPE_OPTIONS};

use crate::http::{Answer, ResponseBody};

const CLIENT: &str = include_str!("client.js");

static TAG: LazyLock<Option<HeaderValue>> = LazyLock::new(|| {
    let digest = digest(&SHA256, CLIENT.as_bytes());
    let hex: String = digest.as_ref().iter().take(8).fold(String::new(), |hex, byte| format!("{hex}{byte:02x}"));
    HeaderValue::try_from(format!("\"{hex}\"")).ok()
});

/// The module. It holds nothing of anyone's, and is for every page.
#[must_use]
pub fn answer() -> Answer {
    let mut answer = Response::new(ResponseBody::ours(CLIENT));
    let headers = answer.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/javascript; charset=utf-8"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    // Asked about again each hour: it goes with the program that serves it.
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("public, max-age=3600"));
    if let Some(tag) = TAG.as_ref() {
        headers.insert(ETAG, tag.clone());
    }
    answer
}
