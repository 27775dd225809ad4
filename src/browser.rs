//! People at browsers: sessions by cookie, since a page load, an image or an event stream cannot carry a header, and
//! pages instead of JSON where someone looks at them.
//!
//! Owns the session endpoint and what a navigation is answered. The seal is `auth`'s, the rule about origins `http`'s.

mod client;
mod login;
mod pages;
mod session_end;
mod session_endpoint;

pub use client::ClientFile;
pub use login::{is_login_path, serve as serve_login};
pub use pages::{Navigation, answer_navigation};
pub use session_endpoint::serve as serve_session_endpoint;
