//! Events whose time is over are told from events that somebody removed.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{Document, doc};
use serde_json::Value;
use taskflow_stores::mongo::events::COLLECTION;
use taskflow_tests::faults::process::clock_ahead;
use taskflow_tests::{Result, Site};

use super::bent::named;
use super::{Sealed, commands, ok, run};
use crate::with_site;

pub(super) fn tests() -> Vec<Trial> {
    vec![with_site(
        "audit: what retention removes by class and age is expired, anything else is missing",
        aged,
    )]
}

/// Hours ago: beyond the six months of a task's events, and below the seven years of who exists.
const OLD: i32 = 200 * 24;
/// Hours ago: not yet beyond them.
const NEARLY_OLD: i32 = 180 * 24 - 6;
/// Hours by which a scheduler's clock is ahead: by that one more would be old. It is not so far that nothing is removed.
const AHEAD: i32 = 11;

async fn aged(site: Arc<Site>) -> Result {
    let mut sealed = Sealed::without_events(&site, None).await?;
    // MongoDB's own reaper would be faster.
    site.mongo.run_command(doc! { "dropIndexes": COLLECTION, "index": "expiresAt_ttl" }).await?;
    // Half a year ago, by the clock of the worker that made them.
    let (ago, later) = (clock_ahead(-OLD)?, clock_ahead(-NEARLY_OLD)?);
    sealed.apply_with(&commands(), &settings(&ago)).await?;
    sealed.seal().await?;
    let old = by_class(&sealed, doc! { "run.class": "task_events" }).await?;
    sealed.apply_with(&commands(), &settings(&later)).await?;
    let seals = "SELECT count(*) FROM audit_seals";
    let before = site.count(seals).await?;
    let plan: Value = serde_json::from_str(
        &ok(&sealed.cluster, &["jobs", "run", "audit.seal", "--dry-run", "--json"]).await?,
    )?;
    ensure!(plan["figures"]["would_seal"] == true && plan["figures"]["seal"] == before, "{plan}");
    ensure!(site.count(seals).await? == before, "a dry run has sealed");
    sealed.seal().await?;
    let all = by_class(&sealed, doc! {}).await?;
    let tasks = by_class(&sealed, doc! { "run.class": "task_events" }).await?;
    ensure!(
        old.len() >= 40 && tasks.len() >= 2 * old.len() && tasks.len() < all.len(),
        "{} {}",
        old.len(),
        tasks.len()
    );
    sealed.is_whole().await?;

    // A scheduler whose clock is ahead removes nothing that is too young: it goes by Postgres's.
    let scheduler = sealed.cluster.spawn("scheduler", &settings(&clock_ahead(AHEAD)?))?;
    std::mem::replace(&mut sealed.scheduler, scheduler).stop().await?;
    let done = run(&sealed.cluster, "retention.events").await?;
    ensure!(done["state"] == "completed", "{done}");
    let left = by_class(&sealed, doc! {}).await?;
    let gone: BTreeSet<_> = all.difference(&left).copied().collect();
    ensure!(gone == old, "{} went, {} of tasks were old: {done}", gone.len(), old.len());
    let scheduler = sealed.cluster.spawn("scheduler", &[])?;
    std::mem::replace(&mut sealed.scheduler, scheduler).stop().await?;
    let report = sealed.is_whole().await?;
    ensure!(report["expired"] == old.len(), "{report}");
    // Neither one that is young nor one that is kept for longer is excused.
    let mut missing = BTreeSet::new();
    let young = tasks.difference(&old).next().context("no event is young")?;
    sealed.events().delete_one(doc! { "_id": young }).await?;
    missing.insert(young.to_hex());
    let kept = sealed.events().find_one_and_delete(doc! { "run.class": "audit_logs" }).await?;
    missing.insert(kept.context("no event is kept for longer")?.get_object_id("_id")?.to_hex());
    let report: Value = sealed.verify().await?;
    let named: BTreeSet<String> = named(&report, "event_missing")?.into_iter().collect();
    ensure!(named == missing, "{report}");
    sealed.stop().await
}

fn settings<'s>(clock: &'s [(&'static str, String)]) -> Vec<(&'static str, &'s str)> {
    clock.iter().map(|(name, value)| (*name, value.as_str())).collect()
}

async fn by_class(sealed: &Sealed<'_>, filter: Document) -> Result<BTreeSet<ObjectId>> {
    let mut found = BTreeSet::new();
    let mut events = sealed.events().find(filter).await?;
    while events.advance().await? {
        found.insert(events.deserialize_current()?.get_object_id("_id")?);
    }
    Ok(found)
}
