//! The label values of metrics, which access lines share.

use std::sync::Arc;

/// A configured name: of a provider, a route, a listener.
pub type Label = Arc<str>;
