//! Postgres's log of writes is archived by one of the schedulers, whichever is first: that is what brings the recovery
//! point down from a day to half a minute.

use taskflow_backup::postgres::receive::{self, Tell};
use taskflow_backup::{Result, Vault};
use taskflow_core::metric;
use taskflow_stores::observe::gauge;
use taskflow_stores::postgres::PgPool;
use taskflow_stores::supervise;
use tokio_util::sync::CancellationToken;

use crate::Backups;

/// Archives the log until `stop`, where the settings say so.
pub(crate) async fn run(backups: Backups, postgres: PgPool, stop: CancellationToken) {
    if !(backups.settings.is_on() && backups.settings.wal) {
        return;
    }
    supervise::forever("log of writes", &stop, || archive(backups.clone(), postgres.clone(), stop.clone()))
        .await;
}

async fn archive(backups: Backups, postgres: PgPool, stop: CancellationToken) {
    let open = || -> Result<Vault> { Vault::open(&backups.settings) };
    match open() {
        Ok(vault) => receive::run(&vault, &backups.postgres_url, &postgres, &Told, &stop).await,
        Err(error) => {
            tracing::error!(%error, "The log of writes can't be archived.");
            // A setting that is wrong stays so.
            stop.cancelled().await;
        }
    }
}

/// How far it goes is told by the leader, from what lies in the archive.
struct Told;

impl Tell for Told {
    fn kept(&self, bytes: u64) {
        gauge(&metric::WAL_KEPT, &[]).set(bytes as f64);
    }
}
