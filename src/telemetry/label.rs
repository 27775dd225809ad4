//! The label values of metrics, which access lines share.

use std::sync::Arc;

/// A configured name of a provider, a route or a listener.
pub type Label = Arc<str>;
