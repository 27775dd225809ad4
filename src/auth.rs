//! Authentication and authorization: extracts tokens from requests, verifies them, and decides what a verified user may
//! access.
//!
//! This module owns [`Token`] (whose text is never printed), the providers' keys, verification, [`Identity`], session
//! cookies and revocations. It works on request heads, strings and claims and never uses a connection. `http` and
//! `websocket` send refusals to clients.
//!
//! Code outside this module cannot construct an identity:
//!
//! ```compile_fail
//! let forged = vestibule::invariants::Identity { user_id: "admin".into() };
//! ```
//!
//! It can only read one:
//!
//! ```
//! fn user_id(identity: &vestibule::invariants::Identity) -> &str {
//!     identity.user_id()
//! }
//! ```

pub mod allow;
mod balancer;
mod cache;
mod claims;
mod clock;
pub mod digest;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz;
mod identify;
mod identity;
mod inspection;
mod jwt;
mod keys;
mod kind;
pub mod login;
mod outbound;
mod provider_state;
mod rejection;
mod remote;
mod revocation;
mod revocation_keys;
mod session_cookie;
mod small_file;
mod stored_identity;
pub mod token;
mod token_digest;
mod token_error;
mod trace;
mod unverified;
mod verifier;

pub use cache::LastToken;
pub use clock::{unix_millis, unix_seconds};
pub use identity::{BrowserSession, Expiry, Identity, SessionScope};
pub use inspection::Inspection;
pub use keys::{KeyFingerprint, KeyHealth, check_files as check_key_files, inspect as inspect_keys};
pub use provider_state::Lookup;
pub use rejection::Rejection;
pub use remote::{RemoteCheck, inspect as inspect_remote};
pub use revocation::{
    CopyDigest, EntryKind, NAME_BYTES, Publish, Revocation, RevocationFileError, RevocationTarget, Revocations,
    SharedEntry, SignOutLimits, TIMES_BYTES, boot_millis, issuer_or_name, log_revocation_not_saved,
};
pub use revocation_keys::RevocationKeys;
pub use session_cookie::{IssuedCookie, SessionCookies, session_owner};
pub use small_file::read_small_file;
pub use stored_identity::StoredIdentity;
pub use token::{Carrier, NoCredential, SessionCookie, Token};
pub use unverified::unverified_claims;
pub use verifier::{Explanation, OpenedSessionCookie, RejectedToken, Revalidation, Verified, Verifier};
