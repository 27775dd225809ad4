//! The reason why a text cannot be a token; a reason for rejecting a token contains it.

/// The reason why a text cannot be a token, with a text for the log that does not contain it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// The text is empty.
    #[error("the token is empty")]
    Empty,
    /// The text is longer than `limits.token_bytes`.
    #[error("the token has {bytes} bytes, and limits.token_bytes allows {limit}")]
    TooLong {
        /// The length of the text.
        bytes: usize,
        /// The value of `limits.token_bytes`.
        limit: usize,
    },
    /// The text has other than token68 characters (RFC 9110 section 11.2).
    #[error("the token has characters that no token has")]
    Characters,
}
