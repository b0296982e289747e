//! A bound for calls whose server may have fallen silent.

use std::time::Duration;

use crate::StoreError;

/// Makes a call with a bound. Postgres ends what takes long by itself; but a server whose machine is gone answers nothing
/// for as long as its connection lives, which may be a quarter of an hour.
///
/// # Errors
/// Those of the call; [`crate::Kind::Unavailable`] when there is no answer in time.
pub async fn within<T, E: From<StoreError>>(
    patience: Duration,
    store: &'static str,
    call: &'static str,
    asked: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    let late =
        || StoreError::unavailable(store, call, format!("no answer within {} s", patience.as_secs_f32()));
    tokio::time::timeout(patience, asked).await.unwrap_or_else(|_| Err(late().into()))
}
