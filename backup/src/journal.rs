//! The journal: every command that a worker has taken, in compressed files that lie beside the backups. After Postgres
//! has gone back in time, what was confirmed since is in no broker and in no Postgres; it is replayed from here.
//!
//! Why not a stream of RabbitMQ bound to the same exchange, which would cost the workers nothing: a message that a queue
//! takes does not come back to its publisher, and the journal's queue takes all. So a missing binding of a partition
//! would no longer show in `mandatory`, and a command would be confirmed that nobody applies. The journal also lies where
//! the backups lie, and not on the broker's disks.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use bytes::{Buf, Bytes, BytesMut};
use chrono::{DateTime, TimeDelta, Utc};
use taskflow_core::backup::journal::Record;
use taskflow_stores::backoff::Backoff;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result};
use crate::keys::Identities;
use crate::progress::Progress;
use crate::read::FileReader;
use crate::settings::Compression;
use crate::vault::Vault;
use crate::write::FileWriter;

pub const FOLDER: &str = "journal";
/// A file is written when it has so many bytes, whatever the time.
const FULL: usize = 16 << 20;
/// Between two tries to write a file, at first and at most.
const AGAIN: Duration = Duration::from_secs(1);
const AGAIN_MAX: Duration = Duration::from_secs(15);
/// Tries when the process ends.
const LAST_TRIES: u32 = 3;
/// Clocks of workers differ by no more.
const CLOCKS_DIFFER: TimeDelta = TimeDelta::minutes(2);

/// Writes what a worker has taken, until it has left (`left`). `worker` is new at every start.
pub async fn write(
    vault: &Vault,
    worker: &str,
    mut input: mpsc::Receiver<Vec<Record>>,
    left: &CancellationToken,
) {
    let every = Duration::from_millis(vault.settings.journal_every_ms.max(100));
    let mut open = true;
    while open {
        let Some(first) = next(&mut input, left).await else { return };
        let mut part = Part::default();
        part.add(&first);
        let until = Instant::now() + every;
        while open && part.bytes.len() < FULL {
            match tokio::time::timeout_at(until, next(&mut input, left)).await {
                Ok(Some(batch)) => part.add(&batch),
                Ok(None) => open = false,
                Err(_) => break,
            }
        }
        let (mut backoff, mut last) = (Backoff::new(AGAIN, AGAIN_MAX), Backoff::new(AGAIN, AGAIN));
        // Meanwhile what comes waits in the channel, and what it can't hold is counted as left out.
        while let Err(error) = part.write(vault, worker).await {
            if backoff.tries() + last.tries() == 0 {
                tracing::warn!(%error, "The journal can't be written at the moment.");
            }
            if !left.is_cancelled() {
                backoff.wait(left).await;
            } else if last.tries() < LAST_TRIES {
                last.wait(&CancellationToken::new()).await;
            } else {
                tracing::error!(%error, bytes = part.bytes.len(), "The journal's last part is lost.");
                break;
            }
        }
    }
}

/// The next batch. Once the worker has left, what waits still comes.
async fn next(input: &mut mpsc::Receiver<Vec<Record>>, left: &CancellationToken) -> Option<Vec<Record>> {
    tokio::select! {
        biased;
        batch = input.recv() => batch,
        () = left.cancelled(), if !input.is_closed() => {
            input.close();
            input.recv().await
        }
    }
}

#[derive(Default)]
struct Part {
    bytes: Vec<u8>,
    first: Option<DateTime<Utc>>,
    last: Option<DateTime<Utc>>,
}

impl Part {
    fn add(&mut self, batch: &[Record]) {
        for record in batch {
            self.first.get_or_insert(record.at);
            self.last = Some(record.at);
            record.encode(&mut self.bytes);
        }
    }

    async fn write(&self, vault: &Vault, worker: &str) -> Result<()> {
        let (Some(first), Some(last)) = (self.first, self.last) else { return Ok(()) };
        let form = vault.form(Compression::Zstd);
        let path =
            format!("{:020}-{:020}{}", first.timestamp_micros(), last.timestamp_micros(), form.ending());
        let mut writer = FileWriter::begin(&vault.place, &format!("{FOLDER}/{worker}"), &path, &form)?;
        writer.write(Bytes::copy_from_slice(&self.bytes)).await?;
        writer.finish().await.map(|_| ())
    }
}

/// The times that a file's name tells.
fn times(name: &str) -> Option<(DateTime<Utc>, DateTime<Utc>)> {
    let (first, rest) = name.split_once('-')?;
    let last = rest.split('.').next()?;
    let time = |digits: &str| DateTime::from_timestamp_micros(digits.parse().ok()?);
    Some((time(first)?, time(last)?))
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
    next: Option<Record>,
}

impl<'r> Reader<'r> {
    /// Begins with what was taken from a time on.
    pub async fn begin(vault: &'r Vault, identities: &'r Identities, from: DateTime<Utc>) -> Result<Self> {
        let mut workers: BTreeMap<String, Vec<String>> = BTreeMap::new();
        for listed in vault.place.files(FOLDER).await? {
            let Some((worker, name)) = listed.name.split_once('/') else { continue };
            if times(name).is_some_and(|(_, last)| last >= from - CLOCKS_DIFFER) {
                workers.entry(worker.to_owned()).or_default().push(name.to_owned());
            }
        }
        let mut streams = Vec::new();
        for (worker, mut files) in workers {
            files.sort();
            let folder = format!("{FOLDER}/{worker}");
            let (files, rest) = (files.into(), BytesMut::new());
            let mut stream = Stream { vault, identities, folder, files, open: None, rest, next: None };
            stream.advance().await?;
            streams.push(stream);
        }
        Ok(Self { streams })
    }

    /// The next command; none at the end.
    pub async fn next(&mut self, progress: &Progress) -> Result<Option<Record>> {
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
