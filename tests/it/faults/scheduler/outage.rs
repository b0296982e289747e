//! Due times at which nobody was there, schedules that lost theirs, clocks that jumped.

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use chrono::Timelike;
use libtest_mimic::Trial;
use taskflow_tests::{Client, Result, Site, World, wait};

use super::{
    come_to_rest, completed, each_second_once, jobs, make_effects, probes, scheduler, until_completed,
};
use crate::{cluster, with_site, with_world};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_site("after a day without a scheduler each schedule does what its policy says", a_day),
        with_site(
            "a schedule that lost its next due time gets it back, and a jump of the clock fires nothing twice",
            lost,
        ),
        with_site("what was due of a schedule that is changed meanwhile is missed, and says so", changed),
        with_world("after Postgres was gone for more than a minute each due time has one row", postgres_gone),
    ]
}

async fn changed(site: Arc<Site>) -> Result {
    make_effects(&site).await?;
    let cluster = cluster(&site)?;
    probes(&cluster, &[("changes", "cron = \"* * * * * *\"")])?;
    let first = scheduler(&cluster, &[])?;
    until_completed(&site, "changes", 1).await?;
    first.stop().await?;
    let due = "SELECT count(*) FROM job_schedules WHERE name = 'changes' AND next_due_at < now() - interval '1 second'";
    wait::until("nobody looks at a due time", async || Ok(site.count(due).await? == 1)).await?;
    probes(&cluster, &[("changes", "cron = \"0 0 0 1 1 *\"")])?;
    let second = scheduler(&cluster, &[])?;
    let missed =
        "SELECT count(*) FROM job_runs WHERE schedule = 'changes' AND met = 'missed' AND state = 'not_run'";
    wait::until("its row is there", async || Ok(site.count(missed).await? == 1)).await?;
    second.stop().await
}

async fn a_day(site: Arc<Site>) -> Result {
    make_effects(&site).await?;
    let cluster = cluster(&site)?;
    // Due last half an hour ago: neither just now nor soon.
    let minute = (taskflow_stores::clock::now().minute() + 30) % 60;
    let hourly =
        |missed: &str| format!("cron = \"0 {minute} * * * *\"\nmissed = \"{missed}\"\ncatch_up_max = 10");
    let (skip, once, each) = (hourly("skip"), hourly("once"), hourly("each"));
    let often = "cron = \"*/10 * * * * *\"\nmissed = \"once\"";
    probes(&cluster, &[("skip", &skip), ("once", &once), ("each", &each), ("often", often)])?;
    let first = scheduler(&cluster, &[])?;
    wait::until("they are armed", async || {
        Ok(site.count("SELECT count(*) FROM job_schedules WHERE next_due_at IS NOT NULL").await? == 4)
    })
    .await?;
    first.stop().await?;
    site.sql("DELETE FROM job_runs; DELETE FROM probe_effects;
              UPDATE job_schedules SET next_due_at = next_due_at - interval '24 hours', next_begins_at = next_due_at - interval '24 hours'
              WHERE next_due_at IS NOT NULL")
        .await?;
    let listen = taskflow_tests::free_address()?;
    let second = scheduler(&cluster, &[("TASKFLOW_METRICS__LISTEN", listen.as_str())])?;
    until_completed(&site, "each", 10).await?;
    until_completed(&site, "once", 1).await?;
    let count = async |schedule: &str, met: &str| -> Result<i64> {
        site.count(&format!("SELECT count(*) FROM job_runs WHERE schedule = '{schedule}' AND met = '{met}'"))
            .await
    };
    // The 24 due times of a day.
    ensure!(count("skip", "missed").await? == 24, "skip: {}", jobs(&cluster, &["history", "skip"]).await?);
    ensure!(
        count("once", "coalesced").await? == 23 && count("once", "caught_up").await? == 1,
        "once: {}",
        jobs(&cluster, &["history", "once"]).await?
    );
    ensure!(
        count("each", "missed").await? == 14 && count("each", "caught_up").await? == 10,
        "each: {}",
        jobs(&cluster, &["history", "each"]).await?
    );
    let effects = "SELECT count(*) FROM probe_effects WHERE schedule <> 'often'";
    ensure!(site.count(effects).await? == 11, "other effects than runs");
    let in_order =
        "SELECT count(*) FROM (SELECT due_at, lag(due_at) OVER (ORDER BY id) AS before FROM probe_effects
                    WHERE schedule = 'each') AS e WHERE due_at < before";
    ensure!(site.count(in_order).await? == 0, "runs were made up for out of order");
    // 8,640 due times: the newest thousand one by one, one row for those before, one run.
    ensure!(
        count("often", "coalesced").await? < 1_020 && count("often", "caught_up").await? >= 1,
        "often: {}",
        jobs(&cluster, &["history", "often"]).await?
    );
    let shared = "SELECT count(*) FROM job_runs WHERE schedule = 'often' AND through IS NOT NULL";
    ensure!(site.count(shared).await? == 1, "the oldest due times do not share a row");
    let metrics = Client::new(&format!("http://{listen}"))?.get("/metrics").await?.text().await?;
    let counted = |met: &str| {
        let start = format!("taskflow_job_due_times_total{{job=\"test.probe\",met=\"{met}\"}} ");
        metrics.lines().find_map(|line| line.strip_prefix(&start)?.parse::<u64>().ok())
    };
    ensure!(counted("missed") == Some(24 + 14), "{metrics}");
    ensure!(counted("caught_up") >= Some(1 + 10 + 1), "{metrics}");
    second.stop().await
}

async fn lost(site: Arc<Site>) -> Result {
    make_effects(&site).await?;
    let cluster = cluster(&site)?;
    probes(
        &cluster,
        &[("each second", "cron = \"* * * * * *\"\noverlap = \"queue\""), ("far", "cron = \"0 0 4 * * *\"")],
    )?;
    let first = scheduler(&cluster, &[])?;
    until_completed(&site, "each second", 2).await?;
    site.sql("UPDATE job_schedules SET next_due_at = NULL, next_begins_at = NULL WHERE name = 'far'").await?;
    let armed = "SELECT count(*) FROM job_schedules WHERE name = 'far' AND next_due_at > now()";
    wait::until("it is armed again", async || Ok(site.count(armed).await? == 1)).await?;
    wait::until("that is reported", async || Ok(first.log().contains("from the reconciler"))).await?;
    first.stop().await?;
    // As if the clock had been an hour ahead for a moment, and the next ten seconds' due times had been fired then.
    site.sql(
        "UPDATE job_schedules SET next_due_at = next_due_at + interval '1 hour', next_begins_at = next_begins_at + interval '1 hour'
         WHERE name = 'each second';
         INSERT INTO job_runs (schedule, job, due_at, met, state, begins_at, epoch, ended_at)
         SELECT 'each second', 'test.probe', date_trunc('second', now()) + n * interval '1 second', 'on_time', 'completed', now(), 1, now()
         FROM generate_series(-3, 10) AS n ON CONFLICT DO NOTHING;
         INSERT INTO probe_effects (schedule, due_at, epoch) SELECT schedule, due_at, 1 FROM job_runs r
         WHERE state = 'completed' AND NOT EXISTS (SELECT FROM probe_effects e WHERE e.due_at = r.due_at)",
    )
    .await?;
    let before = completed(&site, "each second").await?;
    let second = scheduler(&cluster, &[])?;
    until_completed(&site, "each second", before + 3).await?;
    ensure!(second.log().contains("too far away"), "{}", second.log());
    come_to_rest(&cluster, &site, "each second").await?;
    let twice =
        "SELECT count(*) FROM (SELECT FROM probe_effects GROUP BY due_at HAVING count(*) > 1) AS twice";
    ensure!(site.count(twice).await? == 0, "a due time was fired twice");
    second.stop().await
}

/// More than a minute, and longer than whatever the scheduler waits for: its lead (2 s here), a connection (5 s), a
/// statement under its fence (4 s), a run's time to stop (5 s), the lead's goodbye (12 s), with their pauses (a second
/// at most). So all of them have run out several times, and what comes after is what would come after an hour.
const OUTAGE: Duration = Duration::from_secs(65);

async fn postgres_gone(world: &World) -> Result {
    let site = Site::new(world).await?;
    make_effects(&site).await?;
    let cluster = cluster(&site)?;
    let policy = "cron = \"* * * * * *\"\noverlap = \"queue\"\nmissed = \"each\"\ncatch_up_max = 100";
    probes(&cluster, &[("each second", policy)])?;
    let (one, two) = (scheduler(&cluster, &[])?, scheduler(&cluster, &[])?);
    until_completed(&site, "each second", 3).await?;
    let mut servers = world.servers.lock().await;
    servers.postgres.kill().await;
    let gone = Instant::now();
    let lost = async || Ok(one.log().contains("The lead is lost") || two.log().contains("The lead is lost"));
    wait::until("the lead is lost", lost).await?;
    wait::until("Postgres was gone for more than a minute", async || Ok(gone.elapsed() > OUTAGE)).await?;
    servers.postgres.restart().await?;
    drop(servers);
    let before = loop {
        if let Ok(count) = completed(&site, "each second").await {
            break count;
        }
    };
    until_completed(&site, "each second", before + 5).await?;
    come_to_rest(&cluster, &site, "each second").await?;
    each_second_once(&site, "each second").await?;
    let rows = site.count("SELECT count(*) FROM job_runs WHERE schedule = 'each second'").await?;
    ensure!(rows > OUTAGE.as_secs() as i64, "{rows} rows are fewer than the seconds that Postgres was gone");
    // What ran when Postgres went has failed: nobody knows how far it got. Everything else was made up for.
    let failed = site.count("SELECT count(*) FROM job_runs WHERE state = 'failed'").await?;
    let unrun = "SELECT count(*) FROM job_runs WHERE schedule = 'each second' AND state NOT IN ('completed', 'failed')";
    ensure!(
        failed <= 1 && site.count(unrun).await? == 0,
        "{failed} runs failed, or some were not made up for"
    );
    one.stop().await?;
    two.stop().await
}
