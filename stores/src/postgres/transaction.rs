//! Transactions.
//!
//! Those of the library count only when the server has said that they have begun: whoever goes away before gives back a
//! connection inside a transaction that nobody knows of, and what the next one writes on it is never committed (sqlx 0.9.0;
//! its issue 4385).

use std::ops::{Deref, DerefMut};
use std::time::Duration;

use sqlx::{AssertSqlSafe, Error, PgConnection, SqlSafeStr, SqlStr};

use super::pool::{Connection, NEVER_EMPTY, PgPool, heard};

/// How long Postgres may take to begin one: it waits for nothing there.
const BEGINNING: Duration = Duration::from_secs(10);

/// A transaction on a connection of its own. It is rolled back when it is dropped.
#[derive(Debug)]
pub struct Transaction {
    connection: Option<Connection>,
    state: State,
    /// How long its end may take.
    longest: Option<Duration>,
}

#[derive(Debug)]
enum State {
    Beginning,
    Open,
    Ended,
}

/// Begins a transaction.
///
/// # Errors
/// As [`PgPool::acquire`]; whatever keeps Postgres from beginning, also that it gives no answer within ten seconds.
pub async fn begin(pool: &PgPool) -> Result<Transaction, Error> {
    begin_with(pool, SqlStr::from_static("BEGIN")).await
}

/// The same of a transaction that the server ends when nothing is heard of it for so long: whoever sleeps in the middle of
/// it must not hold its rows for longer than others can wait. In the round trip of its beginning.
pub(super) async fn begin_awake(pool: &PgPool, idle: Duration) -> Result<Transaction, Error> {
    let idle_ms = idle.as_millis().max(1);
    let begin = format!("BEGIN; SET LOCAL idle_in_transaction_session_timeout = {idle_ms}");
    begin_with(pool, AssertSqlSafe(begin).into_sql_str()).await
}

async fn begin_with(pool: &PgPool, statement: SqlStr) -> Result<Transaction, Error> {
    let connection = Some(pool.acquire().await?);
    let mut beginning = Transaction { connection, state: State::Beginning, longest: pool.longest() };
    heard(BEGINNING, sqlx::raw_sql(statement).execute(&mut *beginning)).await?;
    beginning.state = State::Open;
    Ok(beginning)
}

impl Transaction {
    /// Makes it last. If this fails it may have lasted all the same.
    ///
    /// # Errors
    /// Whatever keeps Postgres from it, also that it gives no answer some seconds after `postgres.statement_timeout_ms`.
    pub async fn commit(self) -> Result<(), Error> {
        self.end("COMMIT").await
    }

    /// Undoes it, and waits until that is done.
    pub async fn rollback(self) -> Result<(), Error> {
        self.end("ROLLBACK").await
    }

    async fn end(mut self, statement: &'static str) -> Result<(), Error> {
        let longest = self.longest;
        heard(longest, sqlx::raw_sql(statement).execute(&mut *self)).await?;
        self.state = State::Ended;
        Ok(())
    }
}

impl Deref for Transaction {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.connection.as_ref().expect(NEVER_EMPTY)
    }
}

impl DerefMut for Transaction {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.connection.as_mut().expect(NEVER_EMPTY)
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        let Some(connection) = self.connection.take() else {
            return;
        };
        match self.state {
            // Whether it has begun by now is not known.
            State::Beginning => connection.abandon(),
            State::Open => connection.give_back(Some("ROLLBACK")),
            State::Ended => connection.give_back(None),
        }
    }
}
