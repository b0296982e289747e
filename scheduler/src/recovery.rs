//! What would be lost if a server were gone now, as metrics: how old the newest whole backups are.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use taskflow_backup::postgres::archive::Archive;
use taskflow_backup::{Kind, Manifest, Result, Vault};
use taskflow_core::metric;
use taskflow_stores::clock;
use taskflow_stores::observe::gauge;
use taskflow_stores::postgres::{PgPool, wal};

use crate::Backups;

/// The place of the backups is looked at so often; in between, what this process has made itself counts.
const LOOK_EVERY: Duration = Duration::from_secs(900);

/// What is known of the newest backups.
#[derive(Clone, Default)]
pub(crate) struct Known(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    looked: Option<Instant>,
    /// By store: everything up to then is in a backup.
    through: BTreeMap<&'static str, DateTime<Utc>>,
}

impl Known {
    fn with<T>(&self, work: impl FnOnce(&mut Inner) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Everything of a store up to `through` is saved.
    pub(crate) fn saved(&self, store: &'static str, through: DateTime<Utc>) {
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

/// Who does not lead any more shows no age: it would stand still, and look well, while the new leader's grows. Metrics
/// can't be taken back; one that is no number counts in no `max`.
pub(crate) fn hide() {
    for store in ["postgres", "mongodb", "redis"] {
        gauge(&metric::RECOVERY_POINT, &[("store", store)]).set(f64::NAN);
    }
}

/// Shows the age of what is saved, for each store.
pub(crate) async fn report(backups: &Backups, postgres: &PgPool) -> Result<()> {
    if !backups.settings.is_on() {
        return Ok(());
    }
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
    // The log may be archived by another scheduler than the one that reports: the archive itself says how far it goes.
    let log = async {
        if backups.settings.wal {
            let place = wal::place(postgres).await?;
            let vault = Vault::open(&backups.settings)?;
            if let Some(reached) = Archive::of(&vault, &place.system).reached().await? {
                known.saved("postgres", reached.at);
            }
        }
        Ok(())
    };
    let log = log.await;
    let now = clock::now();
    known.with(|inner| {
        for (store, through) in &inner.through {
            let age = (now - *through).num_milliseconds().max(0) as f64 / 1_000.0;
            gauge(&metric::RECOVERY_POINT, &[("store", store)]).set(age);
        }
    });
    log
}
