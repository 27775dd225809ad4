//! The configuration as data: the values of the file, the environment and the flags, before they are validated.
//!
//! This module owns the shape ([`Config`]), the tree with the place of every key and value (`tree`), variables, the order
//! of sources, and the format of errors. `policy` owns every rule that needs two keys at once, and the parsing of URLs.

mod bounded_file;
mod changed;
mod diagnostic;
mod example;
mod finding;
mod read;
pub mod reference;
mod schema;
mod shape;
mod shown;
mod source;
mod tree;
mod value;

pub use bounded_file::{FILE_BYTES, read_bounded};
pub use diagnostic::Report;
pub(crate) use diagnostic::nearest;
pub use finding::Finding;
pub use schema::schema;
pub use shape::{
    Accept, Admin, Allow, AuthMode, Browser, ClaimsFrom, ClientAuth, Config, Control, CookieChoice, CookieEncoding,
    Cors, Credential, Dialect, DialectChoice, Encode, Errors, EventsOnExpiry, FieldMode, HostHeader, Jwks, Limits,
    Listen, ListenTls, Log, LogFormat, Login, LoginPrompt, LogoutScope, OnExpiry, OnLoss, OneOrMany, ProtectedResource,
    Provider, Pushed, QueryMode, QuerySource, QueryUse, Remote, RemoteMode, Renew, RouteTokenFrom, RouteWebSocket,
    SameSite, Session, SharedState, SubprotocolSource, TokenEncoding, TokenFrom, TokenToHttp, TokenToWebSocket,
    Upstream,
};
pub(crate) use shown::{NOT_SHOWN, may_be_secret, shown_argument, shown_file, shown_url};
pub use source::{Environment, Flags, Loaded, load, load_yaml, named_file};
pub use value::Time;

#[cfg(test)]
pub use shape::Route;
