//! Beginning a transaction.

use std::io::ErrorKind;
use std::time::Duration;

use sqlx::{AssertSqlSafe, Error, PgPool, Postgres, Transaction};

use super::silence;

/// How long a beginning may take, the wait for a connection included: callers may be gone by then, and nobody else would
/// ever give it up.
const LONGEST: Duration = Duration::from_secs(15);

/// Begins a transaction. It is rolled back when it is dropped, also by a caller that goes away before it has it.
pub async fn begin(pool: &PgPool) -> Result<Transaction<'static, Postgres>, Error> {
    begin_with(pool, "BEGIN".to_owned()).await
}

/// The same of a transaction that the server ends when nothing is heard of it for so long: whoever sleeps in the middle of
/// it must not hold its rows for longer than others can wait. In the round trip of its beginning.
pub(super) async fn begin_awake(
    pool: &PgPool,
    idle: Duration,
) -> Result<Transaction<'static, Postgres>, Error> {
    let idle_ms = idle.as_millis().max(1);
    begin_with(pool, format!("BEGIN; SET LOCAL idle_in_transaction_session_timeout = {idle_ms}")).await
}

/// In a task of its own: the library counts a transaction only when the server has said that it has begun. A connection
/// whose caller is gone by then goes back to its pool inside a transaction that nobody knows of, and what the next one
/// writes on it is never committed (sqlx 0.9.0; its issue 4385).
async fn begin_with(pool: &PgPool, statement: String) -> Result<Transaction<'static, Postgres>, Error> {
    let pool = pool.clone();
    let begun = tokio::spawn(async move {
        #[expect(clippy::disallowed_methods, reason = "what is given up here is told of")]
        let begun = pool.begin_with(AssertSqlSafe(statement));
        // What is given back then is looked at, and closed if it is inside a transaction or says nothing.
        let heard = silence::heard_within(LONGEST, begun).await;
        heard.unwrap_or_else(|| Err(Error::Io(ErrorKind::TimedOut.into())))
    });
    begun.await.unwrap_or(Err(Error::WorkerCrashed))
}
