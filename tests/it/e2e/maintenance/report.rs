//! What Postgres tells of itself, as metrics and as a report: connections, sizes, indexes, transactions, statements.

use std::sync::Arc;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use sqlx::Connection;
use taskflow_tests::{Client, Result, Site, wait};

use super::{led, run};
use crate::{cluster, with_site};

pub(super) fn tests() -> Vec<Trial> {
    vec![with_site(
        "unused indexes, slow statements and long transactions of Postgres show as metrics and in a report",
        everything,
    )]
}

/// What keeps dead rows from going, under a name of its own.
const HOLDER: &str = "a test that holds on";

async fn everything(site: Arc<Site>) -> Result {
    // Apart from the pool, whose sessions end a transaction that stands still for so long.
    let options = site.postgres.connect_options().as_ref().clone().application_name(HOLDER);
    let options = options.options([("idle_in_transaction_session_timeout", "0")]);
    let mut holder = taskflow_stores::postgres::connect_alone(&options).await?;
    sqlx::raw_sql("BEGIN; CREATE TABLE held (id BIGINT)").execute(&mut holder).await?;

    let cluster = cluster(&site)?;
    let listen = taskflow_tests::free_address()?;
    let scheduler = cluster.spawn("scheduler", &[("TASKFLOW_METRICS__LISTEN", listen.as_str())])?;
    led(&site).await?;
    let uncounted = run(&cluster, &["report.stores"]).await?;
    let words = uncounted["figures"]["slow_statements"].as_str().unwrap_or_default();
    ensure!(words.contains("CREATE EXTENSION pg_stat_statements"), "{uncounted}");

    site.sql(
        "CREATE EXTENSION pg_stat_statements;
         CREATE TABLE wide (id BIGINT PRIMARY KEY, read BIGINT, unread BIGINT);
         INSERT INTO wide SELECT n, n, n FROM generate_series(1, 10000) AS n;
         CREATE INDEX idx_read ON wide (read);
         CREATE INDEX idx_never_read ON wide (unread);
         ANALYZE wide",
    )
    .await?;
    site.sql("/* a_slow_one */ SELECT pg_sleep(1.2)").await?;
    for number in 0..60 {
        // Each takes a transaction's number, which the holder's transaction is behind then.
        site.sql(&format!("UPDATE wide SET id = -id WHERE read = {number}")).await?;
    }
    let scans = "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'idx_read'";
    wait::until("the statistics know of the index's use", async || Ok(site.count(scans).await? >= 60))
        .await?;
    let lasts = format!(
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = '{HOLDER}'
         AND xact_start < clock_timestamp() - interval '31 seconds'"
    );
    wait::until("the transaction lasts long", async || Ok(site.count(&lasts).await? == 1)).await?;

    let done = run(&cluster, &["report.stores"]).await?;
    ensure!(done["state"] == "completed", "{done}");
    let client = Client::new(&format!("http://{listen}"))?;
    let text = client.get("/metrics").await?.text().await?;
    let metric = |series: &str| -> Result<f64> {
        let value = text.lines().find_map(|line| line.strip_prefix(series)?.strip_prefix(' '));
        Ok(value.with_context(|| format!("there is no {series}:\n{text}"))?.parse()?)
    };
    for (series, least) in [
        ("taskflow_postgres_connections{state=\"active\"}", 0.0),
        ("taskflow_postgres_connections{state=\"idle\"}", 1.0),
        ("taskflow_postgres_connections{state=\"idle_in_transaction\"}", 1.0),
        ("taskflow_postgres_connections{state=\"max\"}", 100.0),
        ("taskflow_postgres_oldest_transaction_seconds", 30.0),
        ("taskflow_postgres_long_transactions", 1.0),
        ("taskflow_postgres_oldest_xmin_age", 60.0),
        ("taskflow_postgres_wraparound_age", 1.0),
        ("taskflow_postgres_table_bytes{table=\"wide\"}", 500_000.0),
        ("taskflow_postgres_index_scans{index=\"idx_read\"}", 60.0),
        ("taskflow_postgres_index_scans{index=\"idx_never_read\"}", 0.0),
        ("taskflow_postgres_unused_indexes{figure=\"count\"}", 1.0),
        ("taskflow_postgres_unused_indexes{figure=\"bytes\"}", 100_000.0),
        ("taskflow_postgres_statement_seconds{statement=\"a_slow_one\"}", 1.2),
        ("taskflow_postgres_statement_seconds{statement=\"other\"}", 0.0),
        ("taskflow_postgres_statement_calls{statement=\"a_slow_one\"}", 1.0),
        ("taskflow_postgres_slow_statements", 1.0),
    ] {
        let value = metric(series)?;
        ensure!(value >= least, "{series} is {value}, less than {least}");
    }
    ensure!(metric("taskflow_postgres_index_scans{index=\"idx_never_read\"}")? == 0.0, "{text}");
    ensure!(
        !text.contains("idx_never_read_ccnew")
            && text.matches("taskflow_postgres_statement_calls{").count() < 50,
        "more series than the program has names"
    );

    let done = run(&cluster, &["maintenance.postgres", "--dry-run"]).await?;
    let (report, server) = (&done["figures"]["report"], &done["figures"]["server"]);
    let has = |list: &str, is: &dyn Fn(&Value) -> bool| -> Result {
        let rows = report[list].as_array().with_context(|| format!("no {list}: {done}"))?;
        ensure!(rows.iter().any(is), "{list}: {}", report[list]);
        Ok(())
    };
    has("connections", &|row| row["application"] == HOLDER && row["state"] == "idle in transaction")?;
    has("unused_indexes", &|row| row["index"] == "idx_never_read" && row["bytes"].as_i64() > Some(100_000))?;
    has("most_used_indexes", &|row| row["index"] == "idx_read" && row["scans"].as_i64() >= Some(60))?;
    has("long_transactions", &|row| row["application"] == HOLDER && row["seconds"].as_f64() >= Some(30.0))?;
    has("oldest_xmin", &|row| {
        row["what"] == "session"
            && row["name"].as_str().is_some_and(|name| name.ends_with(HOLDER))
            && row["age"].as_i64() >= Some(60)
    })?;
    has("slow_statements", &|row| {
        row["statement"].as_str().is_some_and(|text| text.starts_with("/* a_slow_one */"))
            && row["slow"] == true
            && row["calls"] == 1
    })?;
    let unused = report["unused_indexes"].as_array().context("no list")?;
    ensure!(
        unused.iter().all(|row| row["needed"] == false),
        "an index that a constraint needs is called unused: {report}"
    );
    ensure!(
        server["long_transactions"].as_i64() >= Some(1) && server["oldest_xmin_age"].as_i64() >= Some(60),
        "{server}"
    );
    holder.close().await?;
    // Who does not lead any more shows none of it: it would stand still.
    site.sql(
        "UPDATE scheduler_leader SET epoch = epoch + 1, holder = gen_random_uuid(), host = 'another',
                expires_at = now() + interval '1 hour'",
    )
    .await?;
    wait::until("it shows what it saw no more", async || {
        let text = client.get("/metrics").await?.text().await?;
        Ok(["taskflow_postgres_connections{state=\"active\"} NaN", "taskflow_postgres_slow_statements NaN"]
            .iter()
            .all(|series| text.contains(series)))
    })
    .await?;
    scheduler.stop().await
}
