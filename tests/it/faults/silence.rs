//! A Postgres that gives no answer, seen from a pool: what was asked over such a connection is given up, and the connection
//! with it.

use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use libtest_mimic::Trial;
use sqlx::{AssertSqlSafe, Error, PgExecutor};
use taskflow_stores::StoreError;
use taskflow_stores::postgres::{self, PgPool, begin, silence};
use taskflow_tests::proxy::{Flow, Wire};
use taskflow_tests::{Result, Site, wait};

use crate::with_site;

/// Shorter than a connection rests before it is asked for a sign of life: what is used next is what was used last.
const SOON: Duration = Duration::from_millis(300);

/// After which the server ends a statement.
const STATEMENT: Duration = Duration::from_secs(5);
/// Long enough for a connection to be made on a busy machine.
const TRY: Duration = Duration::from_secs(10);
/// Longer than anything may take that has an end.
const LONG: Duration = Duration::from_secs(120);

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_site("silence: a connection that gives no answer leaves its pool", asked),
        with_site("silence: so does one that falls silent while it is given back", given_back),
        with_site("silence: so does one whose socket takes nothing more", full),
        with_site("silence: so does one with a transaction that is dropped", inside),
        with_site("silence: a beginning that gets no answer has an end", beginning),
        with_site("silence: so does one whose caller is gone", left),
        with_site("silence: a statement on a pool has an end", statement),
        with_site("silence: a commit has an end", ending),
        with_site("silence: making a connection has an end", made),
        with_site("silence: the server ends a statement that was given up with its connection", ended),
    ]
}

async fn asked(site: Arc<Site>) -> Result {
    let (wire, pool) = one_connection(&site).await?;
    let mut taken = pool.acquire().await?;
    wire.forget();
    let asked = silence::within(SOON, "ask", ask(&mut *taken));
    let error = asked.await.err().context("somebody answered")?;
    ensure!(error.to_string().contains("no answer within 0.3 s"), "{error}");
    drop(taken);
    is_well_again(&wire, &pool).await
}

async fn given_back(site: Arc<Site>) -> Result {
    let (wire, pool) = one_connection(&site).await?;
    let taken = pool.acquire().await?;
    wire.forget();
    drop(taken);
    is_well_again(&wire, &pool).await
}

/// More than sockets and the wire have room for.
const LARGE: usize = 64 << 20;

async fn full(site: Arc<Site>) -> Result {
    let (wire, pool) = one_connection(&site).await?;
    let mut taken = pool.acquire().await?;
    wire.forget();
    let large = format!("SELECT length('{}')", "x".repeat(LARGE));
    let sent = sqlx::raw_sql(AssertSqlSafe(large)).execute(&mut *taken);
    ensure!(tokio::time::timeout(SOON, sent).await.is_err(), "somebody answered");
    drop(taken);
    is_well_again(&wire, &pool).await
}

async fn inside(site: Arc<Site>) -> Result {
    let (wire, pool) = one_connection(&site).await?;
    let begun = begin(&pool).await?;
    wire.forget();
    drop(begun);
    is_well_again(&wire, &pool).await
}

async fn beginning(site: Arc<Site>) -> Result {
    for _ in 0..5 {
        let (wire, pool) = one_connection(&site).await?;
        idle(&pool).await?;
        wire.forget();
        let begun = tokio::time::timeout(LONG, begin(&pool)).await.context("it has no end")?;
        let Err(error) = begun else {
            // Here it took so long that the connection was asked for a sign of life first.
            continue;
        };
        ensure!(is_late(&error), "{error:?}");
        return is_well_again(&wire, &pool).await;
    }
    bail!("all connections had rested")
}

fn is_late(error: &Error) -> bool {
    matches!(error, Error::Io(error) if error.kind() == ErrorKind::TimedOut && error.to_string().contains("no answer within"))
}

async fn statement(site: Arc<Site>) -> Result {
    for _ in 0..5 {
        let (wire, pool) = one_connection(&site).await?;
        idle(&pool).await?;
        wire.forget();
        let asked = sqlx::query("SELECT 1").execute(&pool);
        let Err(error) = tokio::time::timeout(LONG, asked).await.context("it has no end")? else { continue };
        ensure!(is_late(&error), "{error:?}");
        return is_well_again(&wire, &pool).await;
    }
    bail!("all connections had rested")
}

async fn ending(site: Arc<Site>) -> Result {
    let (wire, pool) = one_connection(&site).await?;
    let begun = begin(&pool).await?;
    wire.forget();
    let ended = tokio::time::timeout(LONG, begun.commit()).await.context("it has no end")?;
    let error = ended.err().context("somebody answered")?;
    ensure!(is_late(&error), "{error:?}");
    is_well_again(&wire, &pool).await
}

async fn made(site: Arc<Site>) -> Result {
    let (wire, pool) = one_connection(&site).await?;
    wire.behave(Flow { silent: true, ..Flow::default() }, Flow::default());
    let made = tokio::time::timeout(LONG, postgres::connect_alone(&pool.connect_options())).await;
    let error = made.context("it has no end")?.err().context("somebody answered")?;
    ensure!(is_late(&error), "{error:?}");
    Ok(())
}

async fn ended(site: Arc<Site>) -> Result {
    // By itself the server would end it only then.
    let (_wire, pool) = connection_with(&site, 2 * LONG).await?;
    let slept = sqlx::query("SELECT pg_sleep(601)").execute(&pool);
    let at_work =
        "SELECT count(*) FROM pg_stat_activity WHERE state = 'active' AND query = 'SELECT pg_sleep(601)'";
    tokio::select! {
        _ = slept => bail!("it has slept"),
        begun = wait::until("it sleeps", async || Ok(site.count(at_work).await? == 1)) => begun?,
    }
    let gone = wait::until("the server has noticed", async || Ok(site.count(at_work).await? == 0));
    tokio::time::timeout(LONG, gone).await.context("the server goes on though nobody waits")?
}

async fn left(site: Arc<Site>) -> Result {
    let (wire, pool) = one_connection(&site).await?;
    idle(&pool).await?;
    wire.forget();
    ensure!(tokio::time::timeout(SOON, begin(&pool)).await.is_err(), "it has begun");
    is_well_again(&wire, &pool).await
}

async fn idle(pool: &PgPool) -> Result {
    wait::until("the connection is in the pool", async || Ok(pool.idle() == 1)).await
}

/// A pool with room for one, whose connection is well.
async fn one_connection(site: &Site) -> Result<(Wire, PgPool)> {
    connection_with(site, STATEMENT).await
}

async fn connection_with(site: &Site, statement: Duration) -> Result<(Wire, PgPool)> {
    let url = site.env.iter().find(|(name, _)| name == "TASKFLOW_POSTGRES__URL").context("no address")?;
    let (wire, through) = Wire::to_url(&url.1).await?;
    let settings = postgres::Settings {
        url: through,
        connections_max: 1,
        statement_timeout_ms: statement.as_millis() as u64,
        ..postgres::Settings::default()
    };
    let pool = postgres::connect(&settings, "taskflow test")?;
    ask(&pool).await?;
    ensure!(wire.made() == 1, "{} connections were made", wire.made());
    Ok((wire, pool))
}

async fn ask(whom: impl PgExecutor<'_>) -> std::result::Result<(), StoreError> {
    let asked = sqlx::query("SELECT 1").execute(whom).await;
    asked.map(drop).map_err(|error| StoreError::unavailable("postgres", "ask", error))
}

async fn is_well_again(wire: &Wire, pool: &PgPool) -> Result {
    let well = wait::until("the pool has room for another one", async || {
        Ok(tokio::time::timeout(TRY, ask(pool)).await.is_ok_and(|answer| answer.is_ok()))
    });
    tokio::time::timeout(LONG, well).await.context("the pool has no room for another one")??;
    ensure!(wire.made() > 1, "the same connection has answered");
    Ok(())
}
