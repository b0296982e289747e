//! Upkeep of the stores, on real servers.

mod busy;
mod report;

use std::sync::Arc;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use serde_json::Value;
use taskflow_tests::{Cluster, Result, Site, wait};

use crate::{cluster, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    let own = vec![
        with_site("maintenance of Postgres vacuums, rebuilds only what is bloated, and reports", postgres),
        with_site("maintenance of MongoDB and Redis says plainly what a server refuses", others),
        with_site("maintenance keeps to its window and gives way to load", window),
        with_site("an index build that is cancelled leaves nothing behind", cancelled),
    ];
    [own, busy::tests(), report::tests()].into_iter().flatten().collect()
}

async fn led(site: &Site) -> Result {
    wait::until("a scheduler leads", async || Ok(site.count("SELECT count(*) FROM job_schedules").await? > 5))
        .await
}

async fn run(cluster: &Cluster<'_>, args: &[&str]) -> Result<Value> {
    let args = [&["jobs", "run"], args, &["--json"]].concat();
    let output = cluster.run(&args, &[]).await?;
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).with_context(|| format!("{text}{}", String::from_utf8_lossy(&output.stderr)))
}

/// A table with an index of twenty megabytes that is nearly empty, and one that is full.
async fn bloat(site: &Site) -> Result {
    site.sql(
        "CREATE TABLE bloated (id BIGINT, filler TEXT) WITH (autovacuum_enabled = false);
         INSERT INTO bloated SELECT n, 'x' FROM generate_series(1, 600000) AS n;
         CREATE INDEX idx_bloated ON bloated (id);
         CREATE TABLE full_one (id BIGINT) WITH (autovacuum_enabled = false);
         INSERT INTO full_one SELECT n FROM generate_series(1, 600000) AS n;
         CREATE INDEX idx_full_one ON full_one (id);
         DELETE FROM bloated WHERE id % 20 <> 0",
    )
    .await?;
    // Each is no part of a transaction.
    for statement in
        ["VACUUM ANALYZE bloated", "VACUUM ANALYZE full_one", "UPDATE full_one SET id = id WHERE id <= 20000"]
    {
        site.sql(statement).await?;
    }
    Ok(())
}

async fn postgres(site: Arc<Site>) -> Result {
    bloat(&site).await?;
    let cluster = cluster(&site)?;
    let scheduler = cluster.spawn("scheduler", &[])?;
    led(&site).await?;
    let size = "SELECT pg_relation_size('idx_bloated')";
    let (before, full) =
        (site.count(size).await?, site.count("SELECT pg_relation_size('idx_full_one')").await?);
    wait::until("the statistics know of the dead rows", async || {
        Ok(site.count("SELECT n_dead_tup FROM pg_stat_user_tables WHERE relname = 'full_one'").await?
            >= 20_000)
    })
    .await?;
    let plan = run(&cluster, &["maintenance.postgres", "--dry-run"]).await?;
    ensure!(plan["figures"]["would_rebuild"] == serde_json::json!(["idx_bloated"]), "{plan}");
    ensure!(site.count(size).await? == before, "a dry run rebuilt something");
    let done = run(&cluster, &["maintenance.postgres"]).await?;
    let figures = &done["figures"];
    ensure!(done["state"] == "completed" && figures["rebuilt"] == 1, "{done}");
    ensure!(site.count(size).await? < before / 4, "{done}");
    let (after, rebuild) = (site.count(size).await?, &figures["rebuilds"][0]);
    ensure!(
        rebuild["index"] == "idx_bloated"
            && rebuild["bytes_before"] == before
            && rebuild["bytes_after"] == after
            && rebuild["empty_before"].as_f64().is_some_and(|empty| empty > 0.8)
            && rebuild["empty_after"].as_f64().is_some_and(|empty| empty < 0.3),
        "{rebuild}"
    );
    ensure!(figures["bytes_freed"].as_i64().is_some_and(|freed| freed > before / 2), "{done}");
    ensure!(
        site.count("SELECT pg_relation_size('idx_full_one')").await? >= full,
        "an index that is full was rebuilt"
    );
    ensure!(figures["vacuumed"].as_u64() >= Some(1) && figures["analyzed"].as_u64() >= Some(1), "{done}");
    let report = &figures["report"];
    ensure!(report["unused_indexes"].is_array() && report["long_transactions"].is_array(), "{report}");
    ensure!(
        report["slow_statements"].is_array()
            || report["slow_statements"].as_str().is_some_and(|words| words.contains("pg_stat_statements")),
        "{report}"
    );
    ensure!(figures["server"]["connections_max"].as_i64() > Some(0), "{figures}");
    scheduler.stop().await
}

async fn others(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let scheduler = cluster.spawn("scheduler", &[])?;
    led(&site).await?;
    let mongodb = run(&cluster, &["maintenance.mongodb"]).await?;
    let figures = &mongodb["figures"];
    ensure!(mongodb["state"] == "completed" && mongodb["attempt"] == 1, "{mongodb}");
    for what in ["validate", "compact"] {
        let word = figures[what].as_str().unwrap_or_default();
        ensure!(word == "done" || word.starts_with("refused: "), "{what}: {mongodb}");
    }
    ensure!(
        figures["missing_indexes"] == serde_json::json!([]) && figures["statistics"].is_object(),
        "{mongodb}"
    );
    let redis = run(&cluster, &["maintenance.redis"]).await?;
    ensure!(redis["state"] == "completed" && redis["figures"]["used_memory"].is_number(), "{redis}");
    let rewritten = redis["figures"]["log_rewritten"].as_str().unwrap_or_default();
    ensure!(rewritten == "ok" || rewritten.starts_with("no: "), "{redis}");
    let report = run(&cluster, &["report.stores"]).await?;
    ensure!(
        report["state"] == "completed" && report["figures"]["postgres"]["database_bytes"].as_i64() > Some(0),
        "{report}"
    );
    scheduler.stop().await
}

async fn window(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    // A window that is over since an hour ago; one run is due each second.
    let now = taskflow_stores::clock::now();
    let at = |hours: i64| (now - chrono::TimeDelta::hours(hours)).format("%H:%M").to_string();
    cluster.write_settings(&format!(
        "[scheduler]\nmaintenance_window = \"{}-{}\"\n[scheduler.jobs.\"maintenance.redis\"]\ncron = \"* * * * * *\"\n",
        at(3),
        at(1)
    ))?;
    let scheduler = cluster.spawn("scheduler", &[])?;
    let outside =
        "SELECT count(*) FROM job_runs WHERE schedule = 'maintenance.redis' AND met = 'outside_window'";
    wait::until("due times are outside the window", async || Ok(site.count(outside).await? >= 2)).await?;
    ensure!(
        site.count(
            "SELECT count(*) FROM job_runs WHERE schedule = 'maintenance.redis' AND met <> 'outside_window'"
        )
        .await?
            == 0,
        "it ran outside its window"
    );
    // A partition that is far behind: what works in steps waits until it is not.
    site.sql("INSERT INTO partition_leases (partition, holder, expires_at, reached) VALUES ('00', gen_random_uuid(), now() + interval '1 hour', now() - interval '1 minute');
              INSERT INTO partition_heads VALUES ('00', 1, 0)")
        .await?;
    let asked = cluster.run(&["jobs", "run", "retention.receipts", "--no-wait", "--json"], &[]).await?;
    let asked: Value = serde_json::from_slice(&asked.stdout)?;
    let yielded = format!(
        "SELECT count(*) FROM job_runs WHERE id = {} AND state = 'running' AND (figures ->> 'yielded_s')::int > 0",
        asked["run"]
    );
    wait::until("it gives way", async || Ok(site.count(&yielded).await? == 1)).await?;
    site.sql("UPDATE partition_leases SET reached = now()").await?;
    let keep_up = "UPDATE partition_leases SET reached = clock_timestamp()";
    let ended = format!("SELECT count(*) FROM job_runs WHERE id = {} AND state = 'completed'", asked["run"]);
    wait::until("it goes on", async || {
        site.sql(keep_up).await?;
        Ok(site.count(&ended).await? == 1)
    })
    .await?;
    scheduler.stop().await
}

async fn cancelled(site: Arc<Site>) -> Result {
    bloat(&site).await?;
    let cluster = cluster(&site)?;
    let scheduler = cluster.spawn("scheduler", &[])?;
    led(&site).await?;
    // A transaction that sees the table keeps the build from its end.
    let mut holder = taskflow_stores::postgres::begin(&site.postgres).await?;
    sqlx::query("LOCK TABLE bloated IN ROW EXCLUSIVE MODE").execute(&mut *holder).await?;
    let asked = cluster.run(&["jobs", "run", "maintenance.postgres", "--no-wait", "--json"], &[]).await?;
    let asked: Value = serde_json::from_slice(&asked.stdout)?;
    let id = asked["run"].to_string();
    let builds = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE '/* reindex */%' AND state = 'active' AND datname = current_database()";
    wait::until("it rebuilds", async || Ok(site.count(builds).await? == 1)).await?;
    let output = cluster.run(&["jobs", "cancel", &id], &[]).await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    wait::until("the run is cancelled", async || {
        Ok(site
            .count(&format!("SELECT count(*) FROM job_runs WHERE id = {id} AND state = 'cancelled'"))
            .await?
            == 1)
    })
    .await?;
    wait::until("the server has stopped too", async || Ok(site.count(builds).await? == 0)).await?;
    holder.rollback().await?;
    // What the build left is dropped by the next run, which does it whole.
    let again = run(&cluster, &["maintenance.postgres"]).await?;
    ensure!(again["state"] == "completed" && again["figures"]["rebuilt"] == 1, "{again}");
    ensure!(
        site.count("SELECT count(*) FROM pg_index WHERE NOT indisvalid").await? == 0,
        "an invalid index is left"
    );
    // No worker has carried them to the audit trail yet: they wait in the order in which they happened.
    let told: Vec<String> = sqlx::query_scalar(
        "SELECT substring(convert_from(event, 'UTF8') FROM 'system[.]maintenance[.][a-z]+') FROM system_events ORDER BY place",
    )
    .fetch_all(&site.postgres)
    .await?;
    let deeds =
        ["started", "failed", "started", "completed"].map(|deed| format!("system.maintenance.{deed}"));
    ensure!(told == deeds, "{told:?}");
    scheduler.stop().await
}
