//! A Postgres that gives no answer, seen from a pool: what was asked over such a connection is given up, and the connection
//! with it.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use taskflow_stores::StoreError;
use taskflow_stores::postgres::{self, PgPool, begin, silence};
use taskflow_tests::proxy::Wire;
use taskflow_tests::{Result, Site, wait};

use crate::with_site;

/// Shorter than a connection rests before it is asked for a sign of life: what is used next is what was used last.
const SOON: Duration = Duration::from_millis(300);

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_site("silence: a connection that gives no answer leaves its pool", leaves),
        with_site("silence: a beginning that gets no answer has an end", beginning),
        with_site("silence: a transaction that nobody knows of does not stay in the pool", unknown),
    ]
}

async fn leaves(site: Arc<Site>) -> Result {
    let (wire, pool) = one_connection(&site).await?;
    wire.forget();
    let asked = silence::within(SOON, "ask", ask(&pool));
    let error = asked.await.err().context("somebody answered")?;
    ensure!(error.to_string().contains("no answer within 0.3 s"), "{error}");
    is_well_again(&wire, &pool).await
}

async fn beginning(site: Arc<Site>) -> Result {
    let (wire, pool) = one_connection(&site).await?;
    wire.forget();
    // Whoever wanted it is gone at once; it goes on in a task of its own.
    ensure!(tokio::time::timeout(SOON, begin(&pool)).await.is_err(), "it has begun");
    is_well_again(&wire, &pool).await
}

async fn unknown(site: Arc<Site>) -> Result {
    site.sql("CREATE TABLE marks (n BIGINT)").await?;
    let (wire, pool) = one_connection(&site).await?;
    silence::note();
    // As one that began after its caller had given it up.
    sqlx::raw_sql("BEGIN").execute(&pool).await?;
    sqlx::query("INSERT INTO marks VALUES (1)").execute(&pool).await?;
    ensure!(site.count("SELECT count(*) FROM marks").await? == 1, "what was written there is not committed");
    ensure!(wire.made() == 2, "{} connections were made", wire.made());
    // Others are kept.
    for _ in 0..10 {
        ask(&pool).await?;
    }
    ensure!(wire.made() == 2, "{} connections were made", wire.made());
    Ok(())
}

/// A pool with room for one, whose connection is well.
async fn one_connection(site: &Site) -> Result<(Wire, PgPool)> {
    let url = site.env.iter().find(|(name, _)| name == "TASKFLOW_POSTGRES__URL").context("no address")?;
    let (wire, through) = Wire::to_url(&url.1).await?;
    let settings = postgres::Settings { url: through, connections_max: 1, ..postgres::Settings::default() };
    let pool = postgres::connect(&settings, "taskflow test")?;
    ask(&pool).await?;
    ensure!(wire.made() == 1, "{} connections were made", wire.made());
    Ok((wire, pool))
}

async fn ask(pool: &PgPool) -> std::result::Result<(), StoreError> {
    let asked = sqlx::query("SELECT 1").execute(pool).await;
    asked.map(drop).map_err(|error| StoreError::unavailable("postgres", "ask", error))
}

async fn is_well_again(wire: &Wire, pool: &PgPool) -> Result {
    wait::until("the pool has room for another one", async || {
        Ok(tokio::time::timeout(SOON, ask(pool)).await.is_ok_and(|answer| answer.is_ok()))
    })
    .await?;
    ensure!(wire.made() > 1, "the same connection has answered");
    Ok(())
}
