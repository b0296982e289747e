//! The journal: every command that a worker has taken, in compressed files that lie beside the backups. After Postgres
//! has gone back in time, what was confirmed since is in no broker and in no Postgres; it is replayed from here.
//!
//! Why not a stream of RabbitMQ bound to the same exchange, which would cost the workers nothing: a message that a queue
//! takes does not come back to its publisher, and the journal's queue takes all. So a missing binding of a partition
//! would no longer show in `mandatory`, and a command would be confirmed that nobody applies. The journal also lies where
//! the backups lie, and not on the broker's disks.
//!
//! A command is on the worker's disk before it is acknowledged ([`spool`]), and goes to the journal from there: a worker
//! that is killed leaves it to the next one on its machine, and a place that is away costs disk, not commands.

use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use chrono::{DateTime, TimeDelta, Utc};
use sha2::{Digest, Sha256};
use taskflow_core::backup::journal::{Record, measure};
use taskflow_core::hex;
use taskflow_stores::backoff::Backoff;
use taskflow_stores::clock;
use taskflow_stores::spool::{self, Part, Spool};
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result, Trouble};
use crate::keys::Identities;
use crate::progress::Progress;
use crate::read::FileReader;
use crate::settings::Settings;
use crate::vault::Vault;
use crate::write::FileWriter;

pub const FOLDER: &str = "journal";
/// A part is closed when it has so many bytes, whatever the time.
const FULL: u64 = 16 << 20;
/// Between two tries to write a part, at first and at most.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(15);
/// The last try, when the process ends; the next one on this machine carries on what is left then.
const LAST_LONGEST: Duration = Duration::from_secs(8);
/// Clocks of workers differ by no more.
const CLOCKS_DIFFER: TimeDelta = TimeDelta::minutes(2);

/// Where this machine keeps commands until they are in the journal: a folder for each journal, since the next worker
/// carries on what it finds there.
pub fn spool_dir(settings: &Settings) -> PathBuf {
    let journal = Sha256::digest(settings.destination.as_bytes());
    settings.work_dir().join(FOLDER).join(hex::of(&journal[..8]))
}

/// For one process, whose name is new.
///
/// # Errors
/// The folder can't be made.
pub fn spool(settings: &Settings) -> Result<Spool> {
    let folder = spool_dir(settings);
    let owner = clock::new_id().to_string();
    Spool::begin(&folder, &owner, FULL, settings.journal_spool_max_bytes)
        .map_err(|error| Error::io(folder.display(), &error))
}

/// Whether this machine still has commands of workers that have ended, which are not in the journal yet.
///
/// # Errors
/// The folder can't be read.
pub fn lacks_what_ended_workers_left(settings: &Settings) -> Result<bool> {
    let folder = spool_dir(settings);
    let failed = |error: std::io::Error| Error::io(folder.display(), &error);
    for left in spool::abandoned(&folder).map_err(failed)? {
        if !left.parts().map_err(failed)?.is_empty() {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Carries on what a worker has taken, until it has left (`left`), and what killed workers of this machine left behind.
pub async fn write(vault: &Vault, spool: Arc<Spool>, left: &CancellationToken) {
    let every = Duration::from_millis(vault.settings.journal_every_ms.max(100));
    let mut backoff = Backoff::new(AGAIN, AGAIN_MAX);
    while !left.is_cancelled() {
        let carried = async {
            carry_on(vault, &spool).await?;
            adopt(vault, &spool).await
        };
        match carried.await {
            Ok(()) => {
                backoff = Backoff::new(AGAIN, AGAIN_MAX);
                tokio::select! {
                    () = tokio::time::sleep(every) => {}
                    () = left.cancelled() => {}
                }
            }
            Err(error) => {
                if backoff.tries() == 0 {
                    tracing::warn!(%error, "The journal can't be written at the moment.");
                }
                backoff.wait(left).await;
            }
        }
    }
    let last = tokio::time::timeout(LAST_LONGEST, carry_on(vault, &spool)).await;
    let late = || Err(Error::failed(format!("it took longer than {} s", LAST_LONGEST.as_secs())));
    if let Err(error) = last.unwrap_or_else(|_| late()) {
        tracing::error!(
            %error, folder = %spool_dir(&vault.settings).display(),
            "The journal's last part waits on this machine for the next worker."
        );
    }
    if let Some(spool) = Arc::into_inner(spool) {
        spool.end();
    }
}

/// What this process has taken.
async fn carry_on(vault: &Vault, spool: &Spool) -> Result<()> {
    for part in spool.close().map_err(unreadable)? {
        if ship(vault, spool.owner(), &part).await? == Shipped::Whole {
            spool.remove(&part).map_err(unreadable)?;
        }
    }
    Ok(())
}

/// What others left that have ended.
async fn adopt(vault: &Vault, spool: &Spool) -> Result<()> {
    for left in spool.abandoned().map_err(unreadable)? {
        let parts = left.parts().map_err(unreadable)?;
        for part in &parts {
            if ship(vault, &left.owner, part).await? == Shipped::Whole {
                std::fs::remove_file(&part.path).map_err(unreadable)?;
            }
        }
        if !parts.is_empty() {
            tracing::info!(
                worker = left.owner,
                parts = parts.len(),
                "What an ended worker left of the journal is in it."
            );
        }
        left.end();
    }
    Ok(())
}

fn unreadable(error: std::io::Error) -> Error {
    Error::io("the journal's parts on this machine", &error)
}

#[derive(PartialEq)]
enum Shipped {
    Whole,
    /// Up to where it is damaged; it was laid aside.
    Damaged,
}

/// Writes a part into the journal; once more is the same file.
async fn ship(vault: &Vault, owner: &str, part: &Part) -> Result<Shipped> {
    let failed = |error: std::io::Error| Error::io(part.path.display(), &error);
    let mut bytes = tokio::fs::read(&part.path).await.map_err(failed)?;
    let (mut span, mut whole, mut damage) = (None, 0, None);
    loop {
        match measure(&bytes[whole..]) {
            Ok(Some((at, length))) => {
                let (first, last) = span.unwrap_or((at, at));
                span = Some((at.min(first), at.max(last)));
                whole += length;
            }
            // The worker was killed as it wrote what follows, so it has not acknowledged it.
            Ok(None) => break,
            Err(error) => {
                damage = Some(error);
                break;
            }
        }
    }
    bytes.truncate(whole);
    if let Some((first, last)) = span {
        let form = vault.unlisted_form();
        let (first, last) = (first.timestamp_micros(), last.timestamp_micros());
        let path = format!("{first:020}-{last:020}.{}{}", part.number, form.ending());
        let mut writer = FileWriter::begin(&vault.place, &format!("{FOLDER}/{owner}"), &path, &form)?;
        writer.write(Bytes::from(bytes)).await?;
        writer.finish().await?;
    }
    let Some(error) = damage else { return Ok(Shipped::Whole) };
    let aside = part.path.with_extension("damaged");
    std::fs::rename(&part.path, &aside).map_err(failed)?;
    tracing::error!(error, path = %aside.display(), from = whole, "The rest of a part of the journal is damaged.");
    Ok(Shipped::Damaged)
}

/// A worker's files in the order in which it has written them: its clock may have been set back meanwhile.
fn number(name: &str) -> Option<u64> {
    name.split('.').nth(1)?.parse().ok()
}

/// The times that a file's name tells.
fn times(name: &str) -> Option<(DateTime<Utc>, DateTime<Utc>)> {
    let (first, rest) = name.split_once('-')?;
    let last = rest.split('.').next()?;
    let time = |digits: &str| DateTime::from_timestamp_micros(digits.parse().ok()?);
    Some((time(first)?, time(last)?))
}

/// By worker, the files with what was taken from a time on.
async fn files_from(vault: &Vault, from: DateTime<Utc>) -> Result<BTreeMap<String, Vec<String>>> {
    let mut workers: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for listed in vault.place.files(FOLDER).await? {
        let Some((worker, name)) = listed.name.split_once('/') else { continue };
        if times(name).is_some_and(|(_, last)| last >= from - CLOCKS_DIFFER) {
            workers.entry(worker.to_owned()).or_default().push(name.to_owned());
        }
    }
    Ok(workers)
}

/// Reads every file that [`Reader::begin`] would read to its end, and holds it against its checksum: before the first
/// command is published, not in the middle.
pub async fn verify(
    vault: &Vault,
    identities: &Identities,
    from: DateTime<Utc>,
    progress: &Progress,
) -> Result<()> {
    progress.begin("verify the journal", 0);
    for (worker, files) in files_from(vault, from).await? {
        for name in files {
            let folder = format!("{FOLDER}/{worker}");
            let mut reader = FileReader::unlisted(&vault.place, &folder, &name, identities);
            let read = async {
                while let Some(piece) = reader.next().await? {
                    progress.check()?;
                    progress.add(piece.len() as u64);
                }
                Ok(())
            };
            read.await.map_err(|mut error: Error| {
                if error.trouble == Trouble::Damaged {
                    error.text.push_str("; or move it away, to replay the rest without its commands");
                }
                error
            })?;
        }
    }
    Ok(())
}

/// Reads the journal in the order in which the commands were taken.
pub struct Reader<'r> {
    streams: Vec<Stream<'r>>,
}

/// One worker's files.
struct Stream<'r> {
    vault: &'r Vault,
    identities: &'r Identities,
    folder: String,
    files: VecDeque<String>,
    open: Option<(String, FileReader)>,
    rest: BytesMut,
    next: Option<Record<'static>>,
}

impl<'r> Reader<'r> {
    /// Begins with what was taken from a time on.
    pub async fn begin(vault: &'r Vault, identities: &'r Identities, from: DateTime<Utc>) -> Result<Self> {
        let mut streams = Vec::new();
        for (worker, mut files) in files_from(vault, from).await? {
            files.sort_by_cached_key(|name| (number(name), name.clone()));
            let folder = format!("{FOLDER}/{worker}");
            let (files, rest) = (files.into(), BytesMut::new());
            let mut stream = Stream { vault, identities, folder, files, open: None, rest, next: None };
            stream.advance().await?;
            streams.push(stream);
        }
        Ok(Self { streams })
    }

    /// The next command; none at the end.
    pub async fn next(&mut self, progress: &Progress) -> Result<Option<Record<'static>>> {
        progress.check()?;
        // As many as there were starts of workers: few.
        let first = self.streams.iter_mut().filter(|stream| stream.next.is_some());
        let Some(stream) = first.min_by_key(|stream| stream.next.as_ref().map(|record| record.at)) else {
            return Ok(None);
        };
        let record = stream.next.take();
        if let Some(record) = &record {
            progress.add(record.body.len() as u64);
        }
        stream.advance().await?;
        Ok(record)
    }
}

impl Stream<'_> {
    async fn advance(&mut self) -> Result<()> {
        loop {
            let decoded = Record::decode(&self.rest);
            let broken = |error: String, at: &str| Error::damaged(format!("{}/{at}: {error}", self.folder));
            let at = self.open.as_ref().map_or("?", |(name, _)| name);
            if let Some((record, length)) = decoded.map_err(|error| broken(error, at))? {
                self.rest.advance(length);
                self.next = Some(record);
                return Ok(());
            }
            let Some((name, reader)) = &mut self.open else {
                let Some(name) = self.files.pop_front() else { return Ok(()) };
                let reader = FileReader::unlisted(&self.vault.place, &self.folder, &name, self.identities);
                self.open = Some((name, reader));
                continue;
            };
            match reader.next().await? {
                Some(piece) => self.rest.extend_from_slice(&piece),
                None if self.rest.is_empty() => self.open = None,
                None => {
                    return Err(Error::damaged(format!("{}/{name}: it ends within a record", self.folder)));
                }
            }
        }
    }
}

/// Removes what is older than `backup.journal_hours`, in both places; returns how many files.
pub async fn prune(vault: &Vault, now: DateTime<Utc>) -> Result<u64> {
    let oldest = now - TimeDelta::hours(vault.settings.journal_hours.into());
    let mut removed = 0;
    for Vault { place, .. } in vault.each_place() {
        for listed in place.files(FOLDER).await? {
            let name = listed.name.rsplit('/').next().unwrap_or_default();
            if times(name).is_some_and(|(_, last)| last < oldest) {
                place.remove(&format!("{FOLDER}/{}", listed.name)).await?;
                removed += 1;
            }
        }
    }
    Ok(removed)
}
