//! A bound for calls whose server may have fallen silent.

use std::time::Duration;

use crate::{StoreError, postgres};

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
    let mut asked = std::pin::pin!(asked);
    if let Ok(answer) = tokio::time::timeout(patience, asked.as_mut()).await {
        return answer;
    }
    postgres::silence::note();
    Err(StoreError::unavailable(store, call, format!("no answer within {} s", patience.as_secs_f32())).into())
}
