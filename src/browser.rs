//! Browsers: session cookies, since a page load, an image or an event stream cannot carry a header, and pages instead
//! of JSON for people.
//!
//! This module owns the session endpoint, the sign-in endpoints and their pages, and the response to a refused
//! navigation. `auth` owns the encryption of cookies, `http` the rule about origins.

mod client;
mod login;
mod pages;
mod session_endpoint;
mod set_cookie;
mod sign_out;

pub use client::ClientFile;
#[cfg(fuzzing)]
pub use login::fuzz::state;
pub use login::{is_login_path, serve as serve_login};
pub use pages::{Navigation, render_for_navigation};
pub use session_endpoint::serve as serve_session_endpoint;
