//! What depends on the clock: runs that begin late, clocks that jump, daylight saving.
//!
//! The scheduler goes by Postgres's clock. So the tests bend that one, for their own database: its sessions find a
//! `now()` and a `clock_timestamp()` of ours before the server's own, and these are ahead by what a table says.

use std::sync::Arc;

use anyhow::ensure;
use libtest_mimic::Trial;
use nix::sys::signal::Signal;
use serde_json::Value;
use taskflow_core::job::outage::{LATE_AFTER, MISSED_AFTER};
use taskflow_tests::{Result, Site, wait};

use super::{
    come_to_rest, completed, each_second_once, jobs, make_effects, probes, scheduler, until_completed,
};
use crate::{cluster, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_site("a run that begins some seconds after its due time is late, and the ledger says so", late),
        with_site("nothing is removed by a clock that is far ahead, and the ledger says why", far_ahead),
        with_site("a clock that jumps ahead and back fires nothing twice and forgets nothing", jumps),
        with_site(
            "daylight saving begins and ends: a time of the day has one run, a distance is kept",
            daylight,
        ),
    ]
}

/// From now on the site's new sessions go by a clock of the tests.
async fn bend(site: &Site) -> Result {
    site.sql(
        "CREATE TABLE public.clock (ahead interval NOT NULL);
         INSERT INTO public.clock VALUES ('0 s');
         CREATE FUNCTION public.now() RETURNS timestamptz LANGUAGE sql STABLE
             AS 'SELECT pg_catalog.now() + ahead FROM public.clock';
         CREATE FUNCTION public.clock_timestamp() RETURNS timestamptz LANGUAGE sql VOLATILE
             AS 'SELECT pg_catalog.clock_timestamp() + ahead FROM public.clock';
         DO $$ BEGIN
             EXECUTE format('ALTER DATABASE %I SET search_path = public, pg_catalog', current_database());
         END $$",
    )
    .await
}

/// Lets the clock jump to so many seconds before a moment.
async fn jump_before(site: &Site, seconds: u32, moment: &str) -> Result {
    let ahead =
        format!("'{moment}'::timestamptz - {seconds} * interval '1 second' - pg_catalog.clock_timestamp()");
    site.sql(&format!("UPDATE public.clock SET ahead = {ahead}")).await
}

/// Lets the clock be so many seconds ahead of the real one.
async fn be_ahead(site: &Site, seconds: i64) -> Result {
    site.sql(&format!("UPDATE public.clock SET ahead = {seconds} * interval '1 second'")).await
}

/// Waits until the clock has passed a moment.
async fn passes(site: &Site, moment: &str) -> Result {
    let passed =
        format!("SELECT count(*) FROM public.clock WHERE pg_catalog.clock_timestamp() + ahead > {moment}");
    wait::until("the clock has passed a moment", async || Ok(site.count(&passed).await? == 1)).await
}

async fn until_armed(site: &Site, schedule: &str, moment: &str) -> Result {
    let armed = format!(
        "SELECT count(*) FROM job_schedules WHERE name = '{schedule}' AND next_due_at = '{moment}'::timestamptz"
    );
    wait::until(&format!("{schedule} is armed for {moment}"), async || Ok(site.count(&armed).await? == 1))
        .await
}

async fn late(site: Arc<Site>) -> Result {
    make_effects(&site).await?;
    bend(&site).await?;
    jump_before(&site, 3_600, "2027-05-05T12:00:00Z").await?;
    let cluster = cluster(&site)?;
    // What is late has its run, whatever becomes of what was missed.
    probes(&cluster, &[("noon", "cron = \"0 0 12 * * *\"\nmissed = \"skip\"")])?;
    let scheduler = scheduler(&cluster, &[])?;
    until_armed(&site, "noon", "2027-05-05T12:00:00Z").await?;
    scheduler.signal(Signal::SIGSTOP)?;
    jump_before(&site, 1, "2027-05-05T12:00:00Z").await?;
    let after =
        format!("'2027-05-05T12:00:00Z'::timestamptz + interval '{} seconds'", LATE_AFTER.num_seconds() + 1);
    passes(&site, &after).await?;
    scheduler.signal(Signal::SIGCONT)?;
    until_completed(&site, "noon", 1).await?;
    let rows = jobs(&cluster, &["history", "noon", "--met", "late"]).await?;
    let row = &rows[0];
    ensure!(
        rows.as_array().map(Vec::len) == Some(1)
            && row["met"] == "late"
            && row["state"] == "completed"
            && row["dueat"].as_str().is_some_and(|due| due.starts_with("2027-05-05T12:00:00")),
        "{rows}"
    );
    ensure!(site.count("SELECT count(*) FROM probe_effects").await? == 1, "it has run another time: {rows}");
    let told = cluster.run(&["jobs", "history", "noon"], &[]).await?;
    let told = String::from_utf8_lossy(&told.stdout).into_owned();
    ensure!(told.contains("late") && told.contains("completed"), "{told}");
    // The next day it is on time again.
    jump_before(&site, 1, "2027-05-06T12:00:00Z").await?;
    until_completed(&site, "noon", 2).await?;
    let rows = jobs(&cluster, &["history", "noon", "--met", "on_time"]).await?;
    ensure!(rows.as_array().map(Vec::len) == Some(1), "{rows}");
    scheduler.stop().await
}

async fn jumps(site: Arc<Site>) -> Result {
    make_effects(&site).await?;
    bend(&site).await?;
    let cluster = cluster(&site)?;
    probes(&cluster, &[("each second", "cron = \"* * * * * *\"\noverlap = \"queue\"\nmissed = \"once\"")])?;
    let (one, two) = (scheduler(&cluster, &[])?, scheduler(&cluster, &[])?);
    until_completed(&site, "each second", 3).await?;
    let count = async |what: &str| {
        site.count(&format!("SELECT count(*) FROM job_runs WHERE schedule = 'each second' AND {what}")).await
    };

    // Ahead: nobody was there at the due times between, and one run stands for them all.
    let ahead = MISSED_AFTER.num_seconds() + 10;
    be_ahead(&site, ahead).await?;
    wait::until("what was missed is made up for", async || {
        Ok(count("met = 'caught_up' AND state = 'completed'").await? == 1)
    })
    .await?;
    let before = completed(&site, "each second").await?;
    until_completed(&site, "each second", before + 3).await?;

    // Back: each due time that comes again has its row already.
    be_ahead(&site, 0).await?;
    let lead = "epoch = (SELECT epoch FROM scheduler_leader)";
    let armed = "SELECT count(*) FROM job_schedules WHERE name = 'each second'
                 AND next_due_at < pg_catalog.clock_timestamp() + interval '5 seconds'";
    wait::until("it is armed for the next second", async || Ok(site.count(armed).await? == 1)).await?;
    let unfinished = "state IN ('waiting', 'running')";
    wait::until("nothing of before is under way", async || Ok(count(unfinished).await? == 0)).await?;
    let (rows, effects) = (count("true").await?, site.count("SELECT count(*) FROM probe_effects").await?);
    let next =
        "SELECT (extract(epoch FROM next_due_at))::bigint FROM job_schedules WHERE name = 'each second'";
    let now = site.count(next).await?;
    wait::until("due times go by", async || Ok(site.count(next).await? >= now + 5)).await?;
    ensure!(count("true").await? == rows, "due times got a second row");
    let now = site.count("SELECT count(*) FROM probe_effects").await?;
    ensure!(now == effects, "{} due times were fired twice", now - effects);

    // Ahead once more: it goes on behind what was fired the first time.
    be_ahead(&site, 2 * ahead).await?;
    wait::until("what is new is made up for", async || {
        Ok(count("met = 'caught_up' AND state = 'completed'").await? == 2)
    })
    .await?;
    let before = completed(&site, "each second").await?;
    until_completed(&site, "each second", before + 3).await?;
    ensure!(count(lead).await? > 0, "whoever leads has written nothing");
    come_to_rest(&cluster, &site, "each second").await?;
    each_second_once(&site, "each second").await?;
    one.stop().await?;
    two.stop().await?;

    // A leader that died while the clock was ahead: its lead would last until the clock is there again.
    site.sql("UPDATE scheduler_leader SET holder = gen_random_uuid(), expires_at = public.now() + interval '1 hour'")
        .await?;
    let epoch = site.count("SELECT epoch FROM scheduler_leader").await?;
    let third = scheduler(&cluster, &[])?;
    wait::until("another one leads all the same", async || {
        Ok(site.count("SELECT epoch FROM scheduler_leader").await? > epoch)
    })
    .await?;
    third.stop().await
}

async fn far_ahead(site: Arc<Site>) -> Result {
    bend(&site).await?;
    site.sql("UPDATE public.clock SET ahead = interval '400 days'").await?;
    let cluster = cluster(&site)?;
    probes(&cluster, &[])?;
    let scheduler = scheduler(&cluster, &[])?;
    let known = "SELECT count(*) FROM job_schedules";
    wait::until("a scheduler leads", async || Ok(site.count(known).await? > 5)).await?;
    for job in ["events", "receipts", "dead_letters", "tasks", "ledger"] {
        site.sql(&format!(
            "INSERT INTO job_runs (schedule, job, due_at, met, state, begins_at, epoch)
             VALUES ('retention.{job}', 'retention.{job}', now(), 'by_hand', 'waiting', now(), 0)"
        ))
        .await?;
        // It may be tried again later.
        let refused = format!(
            "SELECT count(*) FROM job_runs WHERE job = 'retention.{job}' AND state IN ('waiting', 'failed')
             AND detail LIKE '%nothing is removed until they agree%'"
        );
        wait::until(&format!("{job} are not removed"), async || Ok(site.count(&refused).await? == 1)).await?;
    }
    scheduler.stop().await
}

/// A change of a zone's clocks: the moment at which a time of the day is due, and the one at which it would be due too if
/// nobody looked at the clocks. A distance of half an hour is due at both.
struct Change {
    zone: &'static str,
    what: &'static str,
    /// The time of the day.
    cron: &'static str,
    due: &'static str,
    not_due: &'static str,
}

const CHANGES: [Change; 4] = [
    // 2:00 to 3:00 is left out: 2:30 is due when the clocks jump, not half an hour later too.
    Change {
        zone: "Europe/Berlin",
        what: "begins",
        cron: "0 30 2 * * *",
        due: "2027-03-28T01:00:00Z",
        not_due: "2027-03-28T01:30:00Z",
    },
    // 2:00 to 3:00 comes twice: 2:30 is due the first time.
    Change {
        zone: "Europe/Berlin",
        what: "ends",
        cron: "0 30 2 * * *",
        due: "2027-10-31T00:30:00Z",
        not_due: "2027-10-31T01:30:00Z",
    },
    Change {
        zone: "America/New_York",
        what: "begins",
        cron: "0 30 2 * * *",
        due: "2027-03-14T07:00:00Z",
        not_due: "2027-03-14T07:30:00Z",
    },
    Change {
        zone: "America/New_York",
        what: "ends",
        cron: "0 30 1 * * *",
        due: "2027-11-07T05:30:00Z",
        not_due: "2027-11-07T06:30:00Z",
    },
];

async fn daylight(site: Arc<Site>) -> Result {
    make_effects(&site).await?;
    bend(&site).await?;
    let cluster = cluster(&site)?;
    for Change { zone, what, cron, due, not_due } in CHANGES {
        jump_before(&site, 600, due).await?;
        let in_zone = |cron: &str| format!("cron = \"{cron}\"\ntime_zone = \"{zone}\"\nmissed = \"skip\"");
        let (time, distance) = (format!("{zone} {what} time"), format!("{zone} {what} distance"));
        probes(&cluster, &[(&time, &in_zone(cron)), (&distance, &in_zone("0 */30 * * * *"))])?;
        let scheduler = scheduler(&cluster, &[])?;
        for schedule in [&time, &distance] {
            until_armed(&site, schedule, due).await?;
        }
        let run_at = async |schedule: &str, moment: &str| {
            let run = format!(
                "SELECT count(*) FROM job_runs WHERE schedule = '{schedule}' AND due_at = '{moment}'::timestamptz
                 AND state = 'completed'"
            );
            wait::until(&format!("{schedule} has run at {moment}"), async || Ok(site.count(&run).await? == 1))
                .await
        };
        jump_before(&site, 1, due).await?;
        run_at(&time, due).await?;
        run_at(&distance, due).await?;
        jump_before(&site, 1, not_due).await?;
        run_at(&distance, not_due).await?;
        let rows: Value = jobs(&cluster, &["history", &time]).await?;
        ensure!(rows.as_array().map(Vec::len) == Some(1), "{time}: other than one due time: {rows}");
        let effects = format!("SELECT count(*) FROM probe_effects WHERE schedule = '{time}'");
        ensure!(site.count(&effects).await? == 1, "{time}: other than one run: {rows}");
        scheduler.stop().await?;
    }
    Ok(())
}
