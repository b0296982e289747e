//! Events whose time is over are told from events that somebody removed.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Document, doc};
use serde_json::Value;
use taskflow_tests::faults::process::clock_ahead;
use taskflow_tests::{Result, Site};

use super::bent::named;
use super::{Sealed, commands, run};
use crate::with_site;

pub(super) fn tests() -> Vec<Trial> {
    vec![with_site(
        "audit: what retention removes by class and age is expired, anything else is missing",
        aged,
    )]
}

/// Beyond the six months of a task's events, and below the seven years of who exists.
const DAYS: u32 = 200;

async fn aged(site: Arc<Site>) -> Result {
    let mut sealed = Sealed::start(&site, &commands()).await?;
    let all = by_class(&sealed, doc! {}).await?;
    let tasks = by_class(&sealed, doc! { "run.class": "task_events" }).await?;
    ensure!(tasks.len() >= 40 && tasks.len() < all.len(), "{} of {} are tasks'", tasks.len(), all.len());

    // Half a year later, by the scheduler's clock.
    let later = clock_ahead(DAYS)?;
    let later: Vec<_> = later.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let scheduler = sealed.cluster.spawn("scheduler", &later)?;
    std::mem::replace(&mut sealed.scheduler, scheduler).stop().await?;
    let done = run(&sealed.cluster, "retention.events").await?;
    ensure!(done["state"] == "completed", "{done}");
    let left = by_class(&sealed, doc! {}).await?;
    let gone: BTreeSet<_> = all.difference(&left).copied().collect();
    ensure!(gone == tasks, "{} went, {} of tasks were there: {done}", gone.len(), tasks.len());
    // For whoever verifies by the right clock and the newest seal, their time is not over.
    let report = sealed.verify().await?;
    let of_tasks = |one: &Value| ["event_missing", "leaves_missing"].map(Value::from).contains(&one["kind"]);
    let findings = report["findings"].as_array().context("no findings")?;
    ensure!(!findings.is_empty() && findings.iter().all(of_tasks), "{report}");

    sealed.seal().await?;
    let report = sealed.is_whole().await?;
    ensure!(report["expired"] == tasks.len(), "{report}");
    // One that is kept for longer is not excused by its age.
    let kept = sealed.events().find_one_and_delete(doc! { "run.class": "audit_logs" }).await?;
    let kept = kept.context("no event is kept for longer")?.get_object_id("_id")?;
    let report: Value = sealed.verify().await?;
    ensure!(named(&report, "event_missing")? == [kept.to_hex()], "{report}");
    sealed.stop().await
}

async fn by_class(sealed: &Sealed<'_>, filter: Document) -> Result<BTreeSet<ObjectId>> {
    let mut found = BTreeSet::new();
    let mut events = sealed.events().find(filter).await?;
    while events.advance().await? {
        found.insert(events.deserialize_current()?.get_object_id("_id")?);
    }
    Ok(found)
}
