//! Credentials: where a token may stand, what makes it good, and whose it is.
//!
//! Owns [`Token`] (cannot be printed), keys, verification, [`Identity`] (only the verifier makes
//! one) and the question whether an identity may enter. Sees request heads, strings and claims;
//! never a socket. What a refusal looks like to a client is `http`'s and `websocket`'s.
//!
//! An identity cannot be made up:
//!
//! ```compile_fail
//! let forged = vestibule::auth::Identity { user_id: "admin".into() };
//! ```
//! (it can only be looked at:
//!
//! ```
//! fn looks(identity: &vestibule::auth::Identity) -> &str {
//!     identity.user_id()
//! }
//! ```
//! )

pub mod allow;
mod cache;
mod identity;
mod jwt;
mod keys;
mod kind;
mod rejection;
pub mod token;
mod verifier;

pub use identity::{Identity, User};
pub use keys::{Health, Inspection, KeyPrint, ProviderKeys, inspect};
pub use rejection::Rejection;
pub use token::{Carrier, NoCredential, Token};
pub use verifier::{Explanation, Step, Verified, Verifier, now};
