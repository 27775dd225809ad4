//! The copy of a request's head that is kept while the request is sent on a connection that was used before, and from
//! which it is sent again if that connection turns out to be closed.

use hyper::header::{HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::{Method, Request, Uri};

use crate::http::admitted::RequestMessage;
use crate::http::{BodyEnd, ClientBody};

/// The bytes that most heads fit in, so that the copy is one allocation.
const USUAL_BYTES: usize = 1024;

/// The head of a request without a body, in one piece of memory. A clone of the header map took a twentieth of a
/// request's instructions to make and to drop, and hardly one is ever used.
pub(super) struct RetryableHead {
    method: Method,
    /// The target, then each field's name and value. In front of each text is twice its length, and one more where it is
    /// sensitive.
    bytes: Vec<u8>,
}

impl RetryableHead {
    /// Copies the head of a request that may be sent a second time although the upstream may have processed the first:
    /// it is idempotent (RFC 9110 section 9.2.2) and has no body.
    pub(super) fn of(head: &Parts, end: &BodyEnd) -> Option<Self> {
        let is_idempotent =
            matches!(head.method, Method::GET | Method::HEAD | Method::OPTIONS | Method::PUT | Method::DELETE);
        if !is_idempotent || !end.is_complete() {
            return None;
        }
        let mut bytes = Vec::with_capacity(USUAL_BYTES);
        let mut push = |text: &[u8], is_sensitive: bool| {
            bytes.extend_from_slice(&(text.len() << 1 | usize::from(is_sensitive)).to_le_bytes());
            bytes.extend_from_slice(text);
        };
        // `rebuilt` has made the target a path, with or without a query.
        push(head.uri.path_and_query()?.as_str().as_bytes(), false);
        for (name, value) in &head.headers {
            push(name.as_str().as_bytes(), false);
            push(value.as_bytes(), value.is_sensitive());
        }
        Some(Self { method: head.method.clone(), bytes })
    }

    /// Returns the request again, with an empty body.
    pub(super) fn into_message(self) -> Option<Box<RequestMessage>> {
        let mut rest = self.bytes.as_slice();
        let mut next = || {
            let (length, behind) = rest.split_first_chunk()?;
            let length = usize::from_le_bytes(*length);
            let (text, behind) = behind.split_at_checked(length >> 1)?;
            rest = behind;
            Some((text, length & 1 == 1))
        };
        let mut request = Request::new(ClientBody::empty());
        *request.method_mut() = self.method;
        *request.uri_mut() = Uri::try_from(next()?.0).ok()?;
        while let Some((name, _)) = next() {
            let (value, is_sensitive) = next()?;
            let mut value = HeaderValue::from_bytes(value).ok()?;
            value.set_sensitive(is_sensitive);
            request.headers_mut().append(HeaderName::from_bytes(name).ok()?, value);
        }
        Some(request.into())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_is_the_same_again() {
        let mut request = Request::new(ClientBody::empty());
        *request.method_mut() = Method::PUT;
        *request.uri_mut() = Uri::from_static("/a%20b?q=1&q=2");
        for (name, value) in [
            ("host", "localhost:8080".as_bytes()),
            ("cookie", b"a=1"),
            ("x-user-id", b"alice"),
            ("cookie", b"b=2"),
            ("x-empty", b""),
            ("x-bytes", b"caf\xe9\t!"),
            ("via", b"1.1 vestibule"),
        ] {
            request.headers_mut().append(name, HeaderValue::from_bytes(value).expect("a value"));
        }
        request.headers_mut().get_mut("x-user-id").expect("it").set_sensitive(true);
        let message = Box::<RequestMessage>::from(request);
        let again = RetryableHead::of(&message.parts, &message.body.end()).and_then(RetryableHead::into_message);
        let request = Request::from(message);
        let again = Request::from(again.expect("a request"));
        assert_eq!((again.method(), again.uri()), (request.method(), request.uri()));
        assert_eq!(again.headers(), request.headers());
        let order = |request: &Request<ClientBody>| format!("{:?}", request.headers());
        assert_eq!(order(&again), order(&request), "the order, and what is sensitive");
    }

    #[test]
    fn what_is_not_idempotent_is_not_sent_again() {
        for (method, is_retried) in [(Method::GET, true), (Method::POST, false), (Method::PATCH, false)] {
            let mut request = Request::new(ClientBody::empty());
            *request.method_mut() = method.clone();
            let message = Box::<RequestMessage>::from(request);
            assert_eq!(RetryableHead::of(&message.parts, &message.body.end()).is_some(), is_retried, "{method}");
        }
    }
}
