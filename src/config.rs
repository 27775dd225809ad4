//! The configuration as data: what the file, the environment and the flags say, before anyone asks
//! whether it makes sense.
//!
//! Owns the shape ([`Config`]), the tree that knows the place of every key and value
//! (`tree`), variables, the order of sources, and how an error is shown. Leaves every rule
//! that needs two keys at once, and every parsed URL, to `policy`.

mod diagnostic;
mod finding;
mod read;
pub mod reference;
mod schema;
mod shape;
mod source;
mod tree;
mod value;

pub use diagnostic::Report;
pub(crate) use diagnostic::nearest;
pub use finding::Finding;
pub use schema::schema;
pub use shape::{
    Accept, Admin, Allow, Assertion, AuthMode, Browser, ClaimsFrom, ClientAuth, Config, Control, Cors, Credential,
    Dialect, DialectChoice, DialectMessage, DialectPing, DialectRefresh, Drain, Encode, Errors, Events, EventsOnExpiry,
    FieldMode, HeaderClaim, HostHeader, Identity, Jwks, Limits, Listen, ListenTls, Log, LogFormat, LogLevel, Login,
    LoginPrompt, Logins, LogoutScope, OnExpiry, OnLoss, OneOrMany, Provider, Pushed, QueryMode, QuerySource, QueryUse,
    Remote, RemoteMode, Renew, Route, RouteTokenFrom, RouteWebSocket, Session, SharedState, SubprotocolSource, Toggle,
    TokenEncoding, TokenFrom, TokenTo, TokenToHttp, TokenToWebSocket, Upstream, UpstreamTls, WebSocket,
};
pub use source::{Environment, Flags, Loaded, load, load_yaml};
pub use value::{Size, Time};
