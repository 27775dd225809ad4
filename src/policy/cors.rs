//! The fields of preflight responses that the proxy makes itself.

use hyper::Method;
use hyper::header::{HeaderName, HeaderValue};

use super::check::Check;
use crate::config::{self, Config};

/// The header fields of a preflight response, ready to be sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CorsSpec {
    /// The value of `Access-Control-Allow-Methods`.
    pub allowed_methods: HeaderValue,
    /// The value of `Access-Control-Allow-Headers`.
    pub allowed_headers: HeaderValue,
    /// Further headers that pages may read, for `Access-Control-Expose-Headers`.
    pub exposed_headers: Vec<HeaderName>,
    /// The value of `Access-Control-Max-Age`, in whole seconds.
    pub max_age: HeaderValue,
}

impl Check {
    pub(super) fn cors(&mut self, config: &Config, cors: &config::Cors) -> Option<CorsSpec> {
        if config.origins.is_empty() {
            self.error(
                "cors",
                "answers the pages of `origins`, and there are none; write origins: [https://app.example.com]",
            );
        }
        for (index, method) in cors.allowed_methods.iter().enumerate() {
            if method.parse::<Method>().is_err() || method.to_ascii_uppercase() != *method {
                self.error(
                    format!("cors.allowed_methods[{index}]"),
                    format!("\"{method}\" is not a method; write it in capitals, as in GET"),
                );
            }
        }
        for (index, header) in cors.allowed_headers.iter().enumerate() {
            if HeaderName::try_from(header.as_str()).is_err() || header == "*" {
                self.error(
                    format!("cors.allowed_headers[{index}]"),
                    format!("\"{header}\" is not a header name; a request with a credential needs each by name"),
                );
            }
        }
        let mut exposed_headers = Vec::new();
        for (index, header) in cors.exposed_headers.iter().enumerate() {
            match HeaderName::try_from(header.as_str()) {
                Ok(name) if header != "*" => exposed_headers.push(name),
                _ => self.error(
                    format!("cors.exposed_headers[{index}]"),
                    format!("\"{header}\" is not a header name; a request with a credential needs each by name"),
                ),
            }
        }
        let value = |text: String| HeaderValue::try_from(text).ok();
        Some(CorsSpec {
            allowed_methods: value(cors.allowed_methods.join(", "))?,
            allowed_headers: value(cors.allowed_headers.join(", "))?,
            exposed_headers,
            max_age: HeaderValue::from(cors.max_age.0.as_secs()),
        })
    }
}
