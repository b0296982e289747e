//! A whole cluster to a point in time: a base backup, and the log of writes replayed up to there by Postgres itself.
//!
//! The files are a cluster that can be started when the restore is done; until then a note in the folder says that they
//! are not, and the next restore into it begins anew.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Instant;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use taskflow_core::backup::wal::Lsn;
use taskflow_servers::Recovered;
use taskflow_stores::postgres::backup::{Facts, Moment, Sums};
use taskflow_stores::postgres::{self, PgPool};
use tokio::sync::mpsc;

use super::course::{self, Log};
use super::postgres::{begin_epoch, must_know_schema};
use super::replay::{self, Login, TOO_EARLY, forget};
use super::{Restored, end, space};
use crate::error::{Error, Result};
use crate::keys::Identities;
use crate::manifest::Manifest;
use crate::postgres::archive::{Archive, Files, Pieces};
use crate::postgres::base::FILE;
use crate::postgres::dump::by_table;
use crate::postgres::programs::major;
use crate::progress::Progress;
use crate::read::FileReader;
use crate::vault::Vault;

/// A folder with this in it is not a cluster yet.
const NOTE: &str = "taskflow_restore_is_not_done";
/// Where Postgres finds the log.
const LOG: &str = "taskflow_wal";

/// Up to where the log is replayed.
#[derive(Debug, Clone)]
pub enum Target {
    /// As far as the archive goes.
    Newest,
    /// Everything that was committed up to then, and nothing later.
    Time(DateTime<Utc>),
    /// Everything that begins before a place in the log, behind which there is more.
    Lsn(Lsn),
    /// Up to a restore point, by its name.
    Point(String),
    /// Everything before this transaction, which was not over at a time.
    Before { transaction: String, not_before: Option<DateTime<Utc>> },
}

impl Target {
    pub(super) fn time(&self) -> Option<DateTime<Utc>> {
        match self {
            Self::Time(at) => Some(*at),
            Self::Newest | Self::Lsn(_) | Self::Point(_) | Self::Before { .. } => None,
        }
    }
}

/// What to restore and where to.
pub struct Order<'o> {
    /// `None`: the newest base backup before the target.
    pub base: Option<&'o str>,
    pub target: Target,
    /// The new cluster's folder: not there, or empty.
    pub data: &'o Path,
    /// For the look at what came of it: who logs in, and into which database.
    pub user: &'o str,
    pub database: &'o str,
}

/// A restored cluster that is still running, for whoever wants to look at it.
pub struct Running {
    pub server: Recovered,
    pub pool: PgPool,
    pub base: Manifest,
    pub facts: Facts,
    /// When the log had been replayed, in seconds from the start.
    pub replayed_s: f64,
    started: Instant,
    data: PathBuf,
}

/// Checks a cluster that [`recover`] has left running, and stops it: from then on it is whole.
pub async fn finish(running: Running, progress: &Progress) -> Result<Restored> {
    progress.begin("check what was restored", 0);
    let looked = async {
        let looked = examine(&running.pool).await?;
        begin_epoch(&running.pool).await?;
        Ok::<_, Error>(looked)
    };
    let (sums, faults) = match looked.await {
        Ok(looked) => looked,
        Err(error) => {
            running.stop().await?;
            return Err(error);
        }
    };
    let (facts, base, data) = (running.facts.clone(), running.base.clone(), running.data.clone());
    let took_s = running.started.elapsed().as_secs_f64();
    running.stop().await?;
    if !faults.is_empty() {
        return Err(Error::damaged(format!(
            "{}: what was restored is broken: {}",
            base.id,
            faults.join("; ")
        )));
    }
    std::fs::remove_file(data.join(NOTE)).map_err(|error| Error::io(data.display(), &error))?;
    let rows: i64 = sums.values().map(|(count, _)| count).sum();
    let mut checked = vec![
        format!("{} with the log behind it, replayed by Postgres to its target", base.id),
        format!("{} tables with {rows} rows read; every constraint and every index is valid", sums.len()),
    ];
    if let Some(newest) = facts.newest_receipt {
        checked.push(format!("the newest receipt is of {}", newest.format("%Y-%m-%d %H:%M:%S%.3f UTC")));
    }
    Ok(Restored {
        backups: vec![base.id],
        database: data.display().to_string(),
        counts: by_table(sums).into_iter().map(|(table, sum)| (table, sum.count)).collect(),
        checked,
        seals: None,
        took_s,
    })
}

/// Restores a cluster and leaves it running on a socket that nobody else reaches.
pub async fn recover(
    vault: &Vault,
    identities: &Identities,
    order: Order<'_>,
    progress: &Progress,
) -> Result<Running> {
    let started = Instant::now();
    let base = course::choose(vault, identities, &order).await?;
    must_know_schema("Postgres", &base, postgres::migrate::newest())?;
    if let Some(major) = major(&base.server) {
        Recovered::must_run_files_of(major)
            .map_err(|error| Error::refused(format!("{} can't be restored here: {error:#}", base.id)))?;
    }
    let position = &base.position;
    let (Some(system), Some(start), Some(end)) = (&position.system, position.start_lsn, position.lsn) else {
        return Err(Error::damaged(format!("{} does not say where its log begins", base.id)));
    };
    let archive = Archive::of(vault, system);
    let Log { mut pieces, reached, history } =
        course::log(&archive, identities, &base, (start, end), &order.target).await?;
    let segment_bytes = reached.segment_bytes;
    vault.verify(&base, Some(identities), progress).await?;
    if let Some(damage) = archive.verify(&mut pieces.files, segment_bytes, identities, progress).await? {
        pieces.rest.clear();
        pieces.gap = Some(damage);
    }
    course::must_lead_on(&pieces, end, segment_bytes, &order.target)?;
    prepare(order.data, &base, &pieces, segment_bytes).await?;
    let note = order.data.join(NOTE);
    std::fs::write(&note, &base.id).map_err(|error| Error::io(note.display(), &error))?;
    unpack(vault, identities, &base, order.data, progress).await?;
    let folder = order.data.join(LOG);
    std::fs::create_dir(&folder).map_err(|error| Error::io(folder.display(), &error))?;
    bring(&archive, &pieces.files, &folder, segment_bytes, identities, progress).await?;
    taskflow_stores::crash::point("unpacked");
    progress.begin("replay the log of writes", 0);
    let login = Login { user: order.user, database: order.database };
    let target = &order.target;
    let replay = |target| replay::replay(order.data, &folder, target, &history, &login, progress);
    let full = |error| space::explain(error, order.data);
    let mut replayed = replay(target).await.map_err(full);
    if replayed.is_err() && !pieces.rest.is_empty() {
        if let Some(damage) = archive.verify(&mut pieces.rest, segment_bytes, identities, progress).await? {
            pieces.gap = Some(damage);
        }
        bring(&archive, &pieces.rest, &folder, segment_bytes, identities, progress).await?;
        replayed = replay(target).await.map_err(full);
    }
    let mut to_end = matches!(target, Target::Newest);
    let (server, pool, facts) = match (replayed, pieces.gap) {
        // What was wanted lies behind the gap, or may.
        (Err(error), Some(gap)) => {
            return Err(Error::new(gap.trouble, format!("{gap} ({})", error.text)));
        }
        // Nothing was committed between the moment and the archive's end: all there is, is what was there then.
        (Err(error), None) if matches!(target, Target::Time(_)) && error.text.contains(TOO_EARLY) => {
            to_end = true;
            replay(&Target::Newest).await?
        }
        (Err(error), None) if error.text.contains(TOO_EARLY) => {
            let Target::Point(name) = target else { return Err(error) };
            return Err(Error::refused(format!(
                "the log from {} on has no restore point {name}; mind its spelling, or name a base backup from before \
                 it; {} is not whole, and may be restored into again",
                base.id,
                order.data.display()
            )));
        }
        (replayed, _) => replayed?,
    };
    taskflow_stores::crash::point("replayed");
    let replayed_s = started.elapsed().as_secs_f64();
    let running = Running { server, pool, base, facts, replayed_s, started, data: order.data.to_owned() };
    if to_end && let Err(error) = end::must_have_reached(order.data, &folder, &reached) {
        running.stop().await?;
        return Err(error);
    }
    Ok(running)
}

impl Running {
    /// Stops the server; its files are a cluster then.
    pub async fn stop(self) -> Result<()> {
        self.pool.close().await;
        self.server.stop().await;
        // Postgres has taken what it needs of it.
        let log = self.data.join(LOG);
        if log.is_dir() {
            std::fs::remove_dir_all(&log).map_err(|error| Error::io(log.display(), &error))?;
        }
        forget(&self.data)
    }
}

/// Files of the log to where Postgres finds them.
async fn bring(
    archive: &Archive<'_>,
    files: &Files,
    folder: &Path,
    segment_bytes: u64,
    identities: &Identities,
    progress: &Progress,
) -> Result<()> {
    progress.begin("bring the log of writes", files.len() as u64 * segment_bytes);
    for (name, listed) in files {
        archive.fetch(listed, &folder.join(name), identities, progress).await?;
    }
    Ok(())
}

/// The folder is ours to fill, and there is room.
async fn prepare(data: &Path, base: &Manifest, pieces: &Pieces, segment_bytes: u64) -> Result<()> {
    let failed = |error: std::io::Error| Error::io(data.display(), &error);
    if data.join(NOTE).exists() {
        tracing::info!(folder = %data.display(), "A restore that was broken off begins anew.");
        // It may have been replaying: its server would go on.
        taskflow_servers::kill_left(data).await;
        empty(data).map_err(failed)?;
    }
    if data.exists() {
        if std::fs::read_dir(data).map_err(failed)?.next().is_some() {
            return Err(Error::refused(format!("{} is not empty; name a folder that is", data.display())));
        }
    } else {
        std::fs::create_dir_all(data).map_err(failed)?;
    }
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o700);
    std::fs::set_permissions(data, mode).map_err(failed)?;
    let log = (pieces.files.len() + pieces.rest.len()) as u64 * segment_bytes;
    space::must_fit(data, base.restored_bytes + log)
}

/// Removes what a restore has left; the note goes last, so that who dies here leaves what can be known again.
fn empty(data: &Path) -> std::io::Result<()> {
    for entry in std::fs::read_dir(data)? {
        let entry = entry?;
        if entry.file_name() == NOTE {
            continue;
        }
        if entry.file_type()?.is_dir() {
            std::fs::remove_dir_all(entry.path())?;
        } else {
            std::fs::remove_file(entry.path())?;
        }
    }
    std::fs::remove_file(data.join(NOTE))
}

/// The base backup's files into the folder.
async fn unpack(
    vault: &Vault,
    identities: &Identities,
    base: &Manifest,
    data: &Path,
    progress: &Progress,
) -> Result<()> {
    let file = base.files.iter().find(|file| file.path.starts_with(FILE));
    let file = file.ok_or_else(|| Error::damaged(format!("{} has no {FILE}", base.id)))?;
    progress.begin(format!("unpack {}", base.id), file.content_bytes);
    let (sender, receiver) = mpsc::channel(4);
    let (into, id) = (data.to_owned(), base.id.clone());
    let unpacking = tokio::task::spawn_blocking(move || {
        let mut archive = tar::Archive::new(Pipe { input: receiver, piece: Bytes::new() });
        archive.set_preserve_permissions(true);
        archive
            .unpack(&into)
            .map_err(|error| Error::io(format!("unpack {id} into {}", into.display()), &error))
    });
    let mut reader = FileReader::begin(&vault.place, &Vault::folder(&base.id), file, identities);
    while let Some(piece) = reader.next().await? {
        progress.check()?;
        progress.add(piece.len() as u64);
        if sender.send(piece).await.is_err() {
            // It has failed and says why, or has seen the archive's end.
            break;
        }
    }
    drop(sender);
    unpacking.await.map_err(|error| Error::failed(error.to_string()))?
}

/// Pieces of a file as something to read.
struct Pipe {
    input: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl Read for Pipe {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        while self.piece.is_empty() {
            match self.input.blocking_recv() {
                None => return Ok(0),
                Some(piece) => self.piece = piece,
            }
        }
        let taken = buffer.len().min(self.piece.len());
        buffer[..taken].copy_from_slice(&self.piece.split_to(taken));
        Ok(taken)
    }
}

/// Reads everything, and asks what is wrong.
pub async fn examine(pool: &PgPool) -> Result<(Sums, Vec<String>)> {
    let mut moment = Moment::begin(pool).await?;
    let found = async { Ok::<_, Error>((moment.sums().await?, moment.faults().await?)) };
    let found = found.await;
    moment.end().await;
    found
}
