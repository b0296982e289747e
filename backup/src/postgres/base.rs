//! A base backup: the whole cluster's files (`pg_basebackup`), from which the archived log leads to any later moment.

use taskflow_core::backup::wal::Lsn;
use taskflow_stores::clock;
use taskflow_stores::postgres::backup::Moment;
use taskflow_stores::postgres::{PgPool, wal};

use super::archive::{Archive, Reached};
use super::programs::Programs;
use crate::draft::{Draft, Facts};
use crate::error::{Error, Result};
use crate::manifest::{Kind, Manifest, Position};
use crate::progress::Progress;
use crate::settings::Compression;
use crate::vault::{Found, Vault};

/// The files, one behind the other.
pub const FILE: &str = "base.tar";

/// Makes a base backup. It is whole when the archived log has reached its end.
pub async fn create(vault: &Vault, url: &str, pool: &PgPool, progress: &Progress) -> Result<Manifest> {
    let programs = Programs::find(&vault.settings, url)?;
    let place = wal::place(pool).await?;
    let archive = Archive::of(vault, &place.system);
    if archive.reached().await?.is_none() {
        return Err(Error::refused(
            "a base backup is of use only with the log of writes behind it, and none is archived yet: set backup.wal = true \
             and run a scheduler (docs/recovery.md)",
        ));
    }
    let mut moment = Moment::begin(pool).await?;
    let database = moment.facts().await;
    // It would hold up vacuum for as long as the copy takes.
    moment.end().await;
    let database = database?;
    programs.must_know(&database.server).await?;
    let mut draft = Draft::begin(vault, Kind::PostgresBase, progress);
    progress.begin("copy the cluster's files", database.bytes.unsigned_abs());
    let made = async {
        let args = [
            "--pgdata=-",
            "--format=tar",
            "--wal-method=none",
            "--checkpoint=fast",
            "--manifest-checksums=SHA256",
            "--no-password",
        ];
        let mut running = programs.start("pg_basebackup", &args.map(str::to_owned))?;
        let mut stdout = running.stdout()?;
        let streamed = draft.stream(FILE, Compression::Zstd, &mut stdout).await;
        drop(stdout);
        let ended = running.finish().await;
        let tail = streamed?;
        ended?;
        let start = told(&tail, "\"Start-LSN\": \"")?;
        let end = told(&tail, "\"End-LSN\": \"")?;
        // Before that, the backup can't be restored.
        archive.wait(end, progress).await?;
        Ok::<_, Error>((start, end))
    };
    match made.await {
        Ok((start, end)) => {
            let now = clock::now();
            let facts = Facts {
                server: database.server,
                schema: database.schema,
                database: database.database,
                position: Position {
                    from: Some(now),
                    through: Some(now),
                    exact: false,
                    lsn: Some(end),
                    start_lsn: Some(start),
                    timeline: Some(place.timeline),
                    system: Some(place.system),
                    newest_receipt: database.newest_receipt,
                },
                restored_bytes: draft.content_bytes(),
                restore: vec![
                    format!("taskflow restore {} --data FOLDER [--to TIME]", draft.id),
                    "or without it: unpack base.tar, decompress wal/CLUSTER/* into a folder, set restore_command and \
                     recovery_target_time, touch recovery.signal, start postgres"
                        .to_owned(),
                ],
                ..Facts::default()
            };
            draft.finish(facts).await
        }
        Err(error) => {
            draft.discard().await;
            Err(error)
        }
    }
}

/// The newest base backup of the cluster from which the archived log leads on without a gap.
pub async fn newest_usable(vault: &Vault, pool: &PgPool) -> Result<Option<Manifest>> {
    let place = wal::place(pool).await?;
    match Archive::of(vault, &place.system).reached().await? {
        Some(reached) => usable(vault, &place.system, &reached).await,
        None => Ok(None),
    }
}

/// The newest base backup from which a cluster's archive leads on to where it has reached. One of another timeline
/// does not count: whether that is an ancestor stands in files which only a key may open.
pub async fn usable(vault: &Vault, system: &str, reached: &Reached) -> Result<Option<Manifest>> {
    let leads_on = |manifest: &Manifest| {
        let position = &manifest.position;
        position.system.as_deref() == Some(system)
            && position.timeline == Some(reached.timeline)
            && position.start_lsn.is_some_and(|start| start >= reached.since)
    };
    vault.newest_of(Kind::PostgresBase, leads_on).await
}

/// Removes what of the log no base backup that is there needs; returns how many files.
pub async fn prune_log(vault: &Vault, pool: &PgPool) -> Result<u64> {
    let wal = wal::place(pool).await?;
    let mut removed = 0;
    for vault in vault.each_place() {
        if let Some(oldest) = oldest_start(&vault.list().await?, &wal.system) {
            removed += Archive::of(&vault, &wal.system).prune(oldest, wal.segment_bytes).await?;
        }
    }
    Ok(removed)
}

/// Where the oldest base backup of a cluster begins; `None` where that is not known.
fn oldest_start(backups: &[Found], system: &str) -> Option<Lsn> {
    let mut oldest: Option<Lsn> = None;
    for found in backups.iter().filter(|found| found.kind == Kind::PostgresBase) {
        // What one needs that can't be read is not known, so everything stays.
        let position = &found.good()?.position;
        if position.system.as_deref() == Some(system) {
            oldest = oldest.into_iter().chain(position.start_lsn).min();
        }
    }
    oldest
}

/// A place that the cluster's own manifest tells; it is the last file of the archive, and the places are its end.
fn told(tail: &[u8], what: &str) -> Result<Lsn> {
    let tail = String::from_utf8_lossy(tail);
    let place = tail.rsplit(what).next().filter(|_| tail.contains(what));
    let place = place.and_then(|rest| rest.split('"').next()?.parse().ok());
    place.ok_or_else(|| Error::failed(format!("the manifest of pg_basebackup does not tell {what}")))
}
