//! Waiting for Postgres with an end.
//!
//! Postgres ends by itself what takes long; but a server whose machine is gone answers nothing for as long as its connection
//! lives, which may be a quarter of an hour. What is given up here is dropped, and its connection given back or closed
//! within seconds (see [`super::PgPool`]). What takes hours by its nature, on a connection of its own, has no end but its
//! caller's.

use std::time::Duration;

use super::STORE;
use crate::StoreError;

/// How long the answer to a question about a few rows may take where nobody else has set an end: longer than anybody waits
/// for a connection (`postgres.acquire_timeout_ms`, 5 s) and a lock (`postgres.lock_timeout_ms`, 10 s) together.
pub const ANSWER: Duration = Duration::from_secs(17);

/// Waits for an answer. Whether a call without one was carried out is not known.
///
/// # Errors
/// Those of the call; [`crate::Kind::Unavailable`] when there is no answer in time.
pub async fn within<T, E: From<StoreError>>(
    patience: Duration,
    call: &'static str,
    asked: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    tokio::time::timeout(patience, asked).await.unwrap_or_else(|_| {
        let detail = format!("no answer within {} s", patience.as_secs_f32());
        Err(StoreError::unavailable(STORE, call, detail).into())
    })
}
