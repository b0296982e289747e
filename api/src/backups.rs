//! Backups, as admins see them. How they are made and where they lie is not this crate's business: whoever starts the
//! API gives it a way to look at them.

use futures_util::future::BoxFuture;
use serde_json::Value;

/// A look at the backups. What can't be looked at is told in words that an admin understands.
pub trait Backups: Send + Sync {
    /// All of them, the oldest first: what there is, how old, how large, whether a drill has restored it.
    fn list(&self) -> BoxFuture<'_, Result<Vec<Value>, String>>;

    /// One with its manifest; `None` if there is none of this id.
    fn show<'b>(&'b self, id: &'b str) -> BoxFuture<'b, Result<Option<Value>, String>>;
}
