//! A server that may have fallen silent, and connections that give no answer any more.
//!
//! Postgres ends by itself what takes long; but a server whose machine is gone answers nothing for as long as its connection
//! lives, which may be a quarter of an hour. So whoever waits for it waits with an end: all of them here, since what they
//! give up has to be told before it is dropped.
//!
//! The library keeps a connection that was given back until it has answered once more, for as long as that takes: one whose
//! server is gone without a word would hold its place in the pool for ever. Asking with a bound, too, costs a round trip,
//! so it is done only after some call was not answered in time.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use sqlx::{Connection, Error, PgConnection, Row};

use super::STORE;
use crate::StoreError;

/// How long a connection may take to give a sign of life.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);
/// For how long after a call without an answer those that are given back are asked: longer than anybody waits.
const WARY: Duration = Duration::from_secs(300);

static LAST: Mutex<Option<Instant>> = Mutex::new(None);

/// Waits for an answer; `None` if none comes in time. Whether the call was carried out is not known then.
pub async fn heard_within<T>(patience: Duration, asked: impl Future<Output = T>) -> Option<T> {
    let mut asked = std::pin::pin!(asked);
    let heard = tokio::time::timeout(patience, asked.as_mut()).await.ok();
    if heard.is_none() {
        note();
    }
    heard
}

/// The same for a call with an error of its own.
///
/// # Errors
/// Those of the call; [`crate::Kind::Unavailable`] when there is no answer in time.
pub async fn within<T, E: From<StoreError>>(
    patience: Duration,
    call: &'static str,
    asked: impl Future<Output = Result<T, E>>,
) -> Result<T, E> {
    heard_within(patience, asked).await.unwrap_or_else(|| {
        let detail = format!("no answer within {} s", patience.as_secs_f32());
        Err(StoreError::unavailable(STORE, call, detail).into())
    })
}

/// Notes that a call was not answered in time. Before the call is dropped: with it goes its connection.
pub fn note() {
    *LAST.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
}

/// Whether connections that are given back have to be looked at.
pub(super) fn is_recent() -> bool {
    LAST.lock().unwrap_or_else(PoisonError::into_inner).is_some_and(|at| at.elapsed() < WARY)
}

/// Whether a connection that is given back can be kept: it answers, and is not inside a transaction that began after its
/// caller had given it up.
pub(super) async fn may_be_kept(connection: &mut PgConnection) -> Result<bool, Error> {
    // One message: in a statement by itself both are its time.
    let outside =
        sqlx::raw_sql("/* look_outside */ SELECT now() = statement_timestamp()").fetch_one(connection);
    let outside = tokio::time::timeout(SIGN_OF_LIFE, outside).await;
    outside.map_err(|_| Error::Io(std::io::ErrorKind::TimedOut.into()))??.try_get(0)
}

/// Asks a connection for a sign of life. One that gives none is closed by whoever gets the error.
pub(super) async fn sign_of_life(connection: &mut PgConnection) -> Result<(), Error> {
    let sign = tokio::time::timeout(SIGN_OF_LIFE, connection.ping()).await;
    sign.map_err(|_| Error::Io(std::io::ErrorKind::TimedOut.into()))?
}
