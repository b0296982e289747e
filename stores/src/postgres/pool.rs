//! Connections to Postgres that are used again.
//!
//! What was asked and given up leaves a connection in the middle of an answer. The library keeps such a connection until it
//! has answered, for as long as that takes: one whose server is gone without a word would hold its place for as long as
//! the kernel believes in it, which may be a quarter of an hour. So connections are given back here, with a bound.

#![expect(
    clippy::disallowed_types,
    clippy::disallowed_methods,
    reason = "the one place that knows how connections are made and given back"
)]

use std::io::{self, ErrorKind};
use std::ops::{Deref, DerefMut};
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use futures_util::stream::{self, BoxStream, StreamExt, TryStreamExt};
use sqlx::pool::PoolConnection;
use sqlx::postgres::{PgConnectOptions, PgPoolOptions, PgQueryResult, PgRow, PgStatement, PgTypeInfo};
use sqlx::{Connection as _, Describe, Either, Error, Execute, Executor, PgConnection, Postgres, SqlStr};
use tokio::runtime::Handle;
use tokio::time::{Instant, timeout, timeout_at};

use super::Settings;
use crate::seldom::Seldom;

/// A connection that was not used for so long is asked for a sign of life first.
const RESTED: Duration = Duration::from_secs(1);
/// How long it may take to give one.
const SIGN_OF_LIFE: Duration = Duration::from_secs(2);
/// How long a connection may take to be given back: to end what was given up on it, and to answer once more. Shorter than
/// anybody waits for a connection.
const GIVEN_BACK: Duration = Duration::from_secs(3);
/// How long one of its own may take to be made.
const MADE: Duration = Duration::from_secs(15);
/// The server ends a statement by itself, but for the commit of a write (a synchronous standby may be waited for there);
/// this much later its answer should have come.
const ON_ITS_WAY: Duration = Duration::from_secs(5);

/// A pool of connections. Statements can be executed on it as on one of the library's, and have an end there.
#[derive(Debug, Clone)]
pub struct PgPool {
    pool: sqlx::PgPool,
    /// After which the server ends a statement; zero: never.
    statement_timeout: Duration,
}

impl PgPool {
    /// Connections are made when they are needed, so this succeeds while the server is away.
    pub(super) fn new(settings: &Settings, options: PgConnectOptions) -> Self {
        let pool = PgPoolOptions::new()
            .max_connections(settings.connections_max)
            .acquire_timeout(Duration::from_millis(settings.acquire_timeout_ms))
            // A ping before each use would be one more round trip. Under load a dead connection shows in the next
            // statement; one that has rested may have died unseen, with the server's restart say.
            .test_before_acquire(false)
            .before_acquire(|connection, rested| {
                Box::pin(async move {
                    if rested.idle_for > RESTED {
                        // Without one a new connection is made, while there is time.
                        sign_of_life(connection).await?;
                    }
                    Ok(true)
                })
            });
        let statement_timeout = Duration::from_millis(settings.statement_timeout_ms);
        Self { pool: pool.connect_lazy_with(options), statement_timeout }
    }

    /// A pool like this one for another database of the server, with room for a few.
    pub(super) fn of_other(&self, database: &str, connections_max: u32) -> Self {
        let settings = Settings {
            connections_max,
            acquire_timeout_ms: 30_000,
            statement_timeout_ms: self.statement_timeout.as_millis() as u64,
            ..Settings::default()
        };
        Self::new(&settings, self.connect_options().as_ref().clone().database(database))
    }

    /// Waits for a statement's answer as long as the server may take for it.
    async fn answered<T>(&self, asked: impl Future<Output = Result<T, Error>>) -> Result<T, Error> {
        heard(self.longest(), asked).await
    }

    /// How long an answer may take that the server ends by itself; `None`: without end, as the settings have it.
    pub(super) fn longest(&self) -> Option<Duration> {
        (!self.statement_timeout.is_zero()).then_some(self.statement_timeout + ON_ITS_WAY)
    }

    /// A connection of its own; it is given back when it is dropped.
    ///
    /// # Errors
    /// [`Error::PoolTimedOut`] when there is none within `postgres.acquire_timeout_ms`; whatever keeps one from being made.
    pub async fn acquire(&self) -> Result<Connection, Error> {
        // In a box: all that it takes to make a connection is part of it.
        Box::pin(self.pool.acquire()).await.map(|connection| Connection(Some(connection)))
    }

    /// How its connections are made.
    pub fn connect_options(&self) -> Arc<PgConnectOptions> {
        self.pool.connect_options()
    }

    /// The number of connections it has room for.
    pub fn connections_max(&self) -> u32 {
        self.pool.options().get_max_connections()
    }

    /// Connections that nobody uses now.
    pub fn idle(&self) -> usize {
        self.pool.num_idle()
    }

    /// Ends it, when all connections are given back.
    pub async fn close(&self) {
        self.pool.close().await;
    }
}

/// A connection that belongs to no pool.
///
/// # Errors
/// Whatever keeps one from being made, also that the server gives no answer within 15 s.
pub async fn connect_alone(options: &PgConnectOptions) -> Result<PgConnection, Error> {
    heard(MADE, Box::pin(PgConnection::connect_with(options))).await
}

/// Waits for an answer of the server; without an end where there is none.
pub(super) async fn heard<T>(
    longest: impl Into<Option<Duration>>,
    asked: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    let Some(longest) = longest.into() else {
        return asked.await;
    };
    timeout(longest, asked).await.unwrap_or_else(|_| {
        let said = format!("no answer within {longest:?}; whether it was carried out is not known");
        Err(Error::Io(io::Error::new(ErrorKind::TimedOut, said)))
    })
}

async fn sign_of_life(connection: &mut PgConnection) -> Result<(), Error> {
    heard(SIGN_OF_LIFE, connection.ping()).await
}

/// A connection out of a pool.
#[derive(Debug)]
pub struct Connection(Option<PoolConnection<Postgres>>);

pub(super) const NEVER_EMPTY: &str = "emptied only by what ends it";

impl Connection {
    /// Closes it without a word to anybody: nobody knows what it is in the middle of.
    pub(super) fn abandon(mut self) {
        if let Some(connection) = self.0.take() {
            drop(connection.detach());
        }
    }

    /// Gives it back when what was given up on it has ended, and this statement is done.
    pub(super) fn give_back(mut self, last: Option<&'static str>) {
        if let Some(connection) = self.0.take() {
            give_back(connection, last);
        }
    }
}

/// One line for all that fall silent together.
static SILENT: Seldom = Seldom::new();

fn give_back(mut connection: PoolConnection<Postgres>, last: Option<&'static str>) {
    let Ok(runtime) = Handle::try_current() else {
        drop(connection.detach());
        return;
    };
    runtime.spawn(async move {
        let end = Instant::now() + GIVEN_BACK;
        if let Some(last) = last {
            let done = timeout_at(end, sqlx::raw_sql(last).execute(&mut *connection)).await;
            if !matches!(done, Ok(Ok(_))) {
                // Ended by the server, or in the middle of an answer that is an error: whatever it was, it ends here.
                tracing::debug!(?done, "A connection to postgres is closed: {last} was not carried out.");
                drop(connection.detach());
                return;
            }
        }
        // It is dropped with what is given up here, and its place is free.
        if timeout_at(end, connection.return_to_pool()).await.is_err()
            && let Some(unsaid) = SILENT.due()
        {
            let more = if unsaid > 0 { format!("; {unsaid} more before it") } else { String::new() };
            tracing::warn!("A connection to postgres is closed: no answer within {GIVEN_BACK:?}{more}.");
        }
    });
}

impl Deref for Connection {
    type Target = PgConnection;

    fn deref(&self) -> &PgConnection {
        self.0.as_ref().expect(NEVER_EMPTY)
    }
}

impl DerefMut for Connection {
    fn deref_mut(&mut self) -> &mut PgConnection {
        self.0.as_mut().expect(NEVER_EMPTY)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(connection) = self.0.take() {
            give_back(connection, None);
        }
    }
}

impl<'p> Executor<'p> for &'p PgPool {
    type Database = Postgres;

    fn execute<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<PgQueryResult, Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        Box::pin(async move {
            let mut connection = self.acquire().await?;
            self.answered(connection.execute(query)).await
        })
    }

    /// Its rows are gathered first.
    fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, Result<Either<PgQueryResult, PgRow>, Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        let gathered = async move {
            let mut connection = self.acquire().await?;
            let gathered: Vec<_> = self.answered(connection.fetch_many(query).try_collect()).await?;
            Ok::<_, Error>(stream::iter(gathered.into_iter().map(Ok)))
        };
        stream::once(gathered).try_flatten().boxed()
    }

    fn fetch_all<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Vec<PgRow>, Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        Box::pin(async move {
            let mut connection = self.acquire().await?;
            self.answered(connection.fetch_all(query)).await
        })
    }

    fn fetch_optional<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, Result<Option<PgRow>, Error>>
    where
        'p: 'e,
        E: 'q + Execute<'q, Postgres>,
    {
        Box::pin(async move {
            let mut connection = self.acquire().await?;
            self.answered(connection.fetch_optional(query)).await
        })
    }

    fn prepare_with<'e>(
        self,
        sql: SqlStr,
        parameters: &'e [PgTypeInfo],
    ) -> BoxFuture<'e, Result<PgStatement, Error>>
    where
        'p: 'e,
    {
        Box::pin(async move {
            let mut connection = self.acquire().await?;
            self.answered(connection.prepare_with(sql, parameters)).await
        })
    }

    fn describe<'e>(self, sql: SqlStr) -> BoxFuture<'e, Result<Describe<Postgres>, Error>>
    where
        'p: 'e,
    {
        Box::pin(async move {
            let mut connection = self.acquire().await?;
            self.answered(connection.describe(sql)).await
        })
    }
}
