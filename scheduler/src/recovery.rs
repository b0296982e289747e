//! What would be lost if a server were gone now, as metrics: how old the newest whole backups are.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use taskflow_backup::postgres::archive::Archive;
use taskflow_backup::postgres::base;
use taskflow_backup::{Kind, Manifest, Result, Vault};
use taskflow_core::metric;
use taskflow_stores::clock;
use taskflow_stores::observe::gauge;
use taskflow_stores::postgres::{PgPool, job_runs, wal};

use crate::jobs::BASE;
use crate::{Backups, led};

/// The place of the backups is looked at so often; in between, what this process has made itself counts.
const LOOK_EVERY: Duration = Duration::from_secs(900);
/// After so many reports without a base backup one is asked for: whoever has just set this up may be making it.
const PATIENCE: u32 = 2;
/// One that can't be made is asked for no more often.
const ASK_EVERY: Duration = Duration::from_secs(3_600);
/// An archive that is so far behind stands still.
const STANDS_STILL: TimeDelta = TimeDelta::minutes(5);
const BY: &str = "scheduler: no base backup leads on to the archived log";

/// What is known of the newest backups.
#[derive(Clone, Default)]
pub(crate) struct Known(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    looked: Option<Instant>,
    /// By store: everything up to then is in a backup.
    through: BTreeMap<&'static str, DateTime<Utc>>,
    /// Everything in Postgres up to then can be had from a base backup and the log behind it.
    log: Option<DateTime<Utc>>,
    /// Reports in a row that found a log which leads on from no base backup.
    without_base: u32,
    base_asked: Option<Instant>,
}

impl Known {
    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Everything of a store up to `through` is in a backup.
    fn saved(&self, store: &'static str, through: DateTime<Utc>) {
        self.with(|inner| {
            let known = inner.through.entry(store).or_insert(through);
            *known = (*known).max(through);
        });
    }

    /// Takes note of a whole backup.
    pub(crate) fn note(&self, manifest: &Manifest) {
        let kind = manifest.kind.as_str();
        let begun = manifest.begun_at.timestamp_millis() as f64 / 1_000.0;
        gauge(&metric::BACKUP_LAST_SUCCESS, &[("kind", kind)]).set(begun);
        gauge(&metric::BACKUP_SIZE, &[("kind", kind)]).set(manifest.bytes() as f64);
        if let Some(store) = store(manifest.kind) {
            self.saved(store, manifest.position.through.unwrap_or(manifest.begun_at));
        }
    }
}

/// Whose recovery point a kind of backup brings forward. A base backup alone does not: it takes the log that follows.
fn store(kind: Kind) -> Option<&'static str> {
    match kind {
        Kind::Postgres => Some("postgres"),
        Kind::MongoDb | Kind::MongoDbIncremental => Some("mongodb"),
        Kind::Redis => Some("redis"),
        Kind::PostgresBase => None,
    }
}

/// Shows the age of what is saved, for each store: also where the place of the backups does not answer, since it grows.
pub(crate) async fn report(backups: &Backups, postgres: &PgPool) -> Result<()> {
    if !backups.settings.is_on() {
        return Ok(());
    }
    let looked = look(backups).await;
    let followed = follow_log(backups, postgres).await;
    backups.known.with(show);
    looked.and(followed)
}

fn show(inner: &mut Inner) {
    let now = clock::now();
    let mut through = inner.through.clone();
    if let Some(log) = inner.log {
        let known = through.entry("postgres").or_insert(log);
        *known = (*known).max(log);
    }
    for (store, through) in &through {
        let age = (now - *through).num_milliseconds().max(0) as f64 / 1_000.0;
        led::show(&metric::RECOVERY_POINT, &[("store", store)], age);
    }
    if inner.looked.is_some() && !through.contains_key("postgres") {
        // All of it would be lost, which is more than any bound: silence would look well.
        led::show(&metric::RECOVERY_POINT, &[("store", "postgres")], f64::INFINITY);
    }
}

/// Looks at what lies in the place of the backups, now and then.
async fn look(backups: &Backups) -> Result<()> {
    let known = &backups.known;
    if known.with(|inner| inner.looked.is_none_or(|looked| looked.elapsed() >= LOOK_EVERY)) {
        // The oldest first, so the newest counts at last.
        for found in Vault::open(&backups.settings)?.list().await? {
            if let Some(manifest) = found.good() {
                known.note(manifest);
            }
        }
        known.with(|inner| inner.looked = Some(Instant::now()));
    }
    Ok(())
}

/// The log may be archived by another scheduler than the one that reports: the archive itself says how far it goes. It
/// counts only with a base backup in front of it; without one, what the dumps hold is all there is.
async fn follow_log(backups: &Backups, postgres: &PgPool) -> Result<()> {
    if !backups.settings.wal {
        return Ok(());
    }
    let place = wal::place(postgres).await?;
    let vault = Vault::open(&backups.settings)?;
    let reached = Archive::of(&vault, &place.system).reached().await?;
    let base = match &reached {
        Some(reached) => base::usable(&vault, &place.system, reached).await?,
        None => None,
    };
    // It may go back: the archive has begun anew, or the base backup is gone.
    let missing = backups.known.with(|inner| {
        inner.log = reached.as_ref().filter(|_| base.is_some()).map(|reached| reached.at);
        inner.without_base = if base.is_some() { 0 } else { inner.without_base.saturating_add(1) };
        let asked = inner.base_asked.is_some_and(|asked| asked.elapsed() < ASK_EVERY);
        inner.without_base >= PATIENCE && !asked
    });
    // It can't be made before the archive goes on.
    let goes_on = reached.is_some_and(|reached| place.at - reached.at < STANDS_STILL);
    if missing && goes_on && ask_for_base(postgres).await? {
        backups.known.with(|inner| inner.base_asked = Some(Instant::now()));
    }
    Ok(())
}

/// Until the next one by plan, a day could be lost.
async fn ask_for_base(postgres: &PgPool) -> Result<bool> {
    let run = job_runs::ask_unless_paused(postgres, BASE, BY).await?;
    if let Some(run) = run {
        tracing::warn!(run, "The archived log of writes leads on from no base backup; one is asked for.");
    }
    Ok(run.is_some())
}
