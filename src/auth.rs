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
mod claims;
mod identify;
mod identity;
mod inspection;
mod jwt;
mod keys;
mod kind;
pub mod login;
mod outbound;
mod rejection;
mod remote;
mod revocation;
mod session_cookie;
mod stored_identity;
pub mod token;
mod trace;
mod verifier;

pub use cache::LastToken;
pub use identity::{BrowserSession, Expiry, Identity, User, VerifiedBy};
pub use inspection::Inspection;
pub use keys::{KeyFingerprint, KeyHealth, ProviderKeys, inspect as inspect_keys};
pub use rejection::Rejection;
pub use remote::{RemoteCheck, inspect as inspect_remote};
pub use revocation::{
    LimitReached, Revocation, RevocationFileError, RevocationKey, RevocationKeys, RevocationTarget, Revocations,
    SignOutLimits, issuer_or_name,
};
pub use session_cookie::{IssuedCookie, SessionCookie, SessionCookies};
pub use stored_identity::StoredIdentity;
pub use token::{Carrier, NoCredential, Token};
pub use trace::Step;
pub use verifier::{Explanation, Lookup, Revalidation, Verified, Verifier, unix_millis, unix_seconds};
