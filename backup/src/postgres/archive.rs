//! The log of writes in the place of the backups: `wal/CLUSTER/SEGMENT.zst`, the newest piece under `SEGMENT.partial.zst`,
//! and `position.json`, which says how far all of it goes.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use chrono::{DateTime, TimeDelta, Utc};
use serde::{Deserialize, Serialize};
use taskflow_core::backup::wal::{Lsn, Segment, gaps};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::time::Instant;

use crate::error::{Error, Result, Trouble};
use crate::keys::Identities;
use crate::place::Listed;
use crate::progress::Progress;
use crate::read::FileReader;
use crate::settings::Compression;
use crate::vault::Vault;
use crate::write::FileWriter;

pub const FOLDER: &str = "wal";
pub(crate) const POSITION: &str = "position.json";
pub(crate) const PARTIAL: &str = ".partial";
/// Clocks of the place and of the server may differ by so much.
const CLOCKS_DIFFER: TimeDelta = TimeDelta::minutes(10);
/// The log must reach a place that it is waited for within this.
const PATIENCE: Duration = Duration::from_secs(600);
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// How far the archive goes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Reached {
    /// Everything before it is in the archive …
    pub lsn: Lsn,
    /// … and that is everything that was committed before this time, by the server's clock.
    pub at: DateTime<Utc>,
    pub timeline: u32,
    pub segment_bytes: u64,
    /// Where the archive begins without a gap.
    pub since: Lsn,
}

/// One cluster's archive.
pub struct Archive<'v> {
    vault: &'v Vault,
    system: String,
}

/// What is needed of an archive for a restore, by the names under which Postgres asks for it.
pub type Pieces = BTreeMap<String, Listed>;

impl<'v> Archive<'v> {
    pub fn of(vault: &'v Vault, system: &str) -> Self {
        Self { vault, system: system.to_owned() }
    }

    fn folder(&self) -> String {
        format!("{FOLDER}/{}", self.system)
    }

    /// How far it goes; `None` where nothing was ever archived.
    pub async fn reached(&self) -> Result<Option<Reached>> {
        let path = format!("{}/{POSITION}", self.folder());
        let Some(bytes) = self.vault.place.find(&path).await? else { return Ok(None) };
        let reached = serde_json::from_slice(&bytes);
        reached.map(Some).map_err(|error| Error::damaged(format!("{path}: it can't be read: {error}")))
    }

    /// Waits until everything before a place is in the archive.
    pub(crate) async fn wait(&self, place: Lsn, progress: &Progress) -> Result<()> {
        progress.begin("wait for the log of writes", 0);
        let since = Instant::now();
        while self.reached().await?.is_none_or(|reached| reached.lsn < place) {
            progress.check()?;
            if since.elapsed() > PATIENCE {
                return Err(Error::new(
                    Trouble::Away,
                    format!(
                        "the archived log has not reached {place} within {} s; does a scheduler run with backup.wal?",
                        PATIENCE.as_secs()
                    ),
                ));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    pub(crate) async fn set_reached(&self, reached: &Reached) -> Result<()> {
        let bytes = serde_json::to_vec_pretty(reached).map_err(|error| Error::failed(error.to_string()))?;
        self.vault.place.put(&format!("{}/{POSITION}", self.folder()), bytes).await
    }

    /// Puts a file of the log into the archive.
    pub(crate) async fn ship(&self, file: &Path, name: &str) -> Result<()> {
        let failed = |error: std::io::Error| Error::io(file.display(), &error);
        let mut source = tokio::fs::File::open(file).await.map_err(failed)?;
        let form = self.vault.form(Compression::Zstd);
        let path = format!("{name}{}", form.ending());
        let mut writer = FileWriter::begin(&self.vault.place, &self.folder(), &path, &form)?;
        loop {
            let mut buffer = Vec::with_capacity(1 << 20);
            if source.read_buf(&mut buffer).await.map_err(failed)? == 0 {
                break;
            }
            writer.write(Bytes::from(buffer)).await?;
        }
        writer.finish().await.map(|_| ())
    }

    /// Removes the piece that has become whole.
    pub(crate) async fn forget_partial(&self, segment: &str) -> Result<()> {
        let ending = self.vault.form(Compression::Zstd).ending();
        self.vault.place.remove(&format!("{}/{segment}{PARTIAL}{ending}", self.folder())).await
    }

    /// Everything that is there.
    pub async fn list(&self) -> Result<Vec<Listed>> {
        self.vault.place.files(&self.folder()).await
    }

    /// What Postgres may ask for when it replays the log from `start` up to a time; a gap is an error.
    pub async fn pieces(&self, start: Lsn, segment_bytes: u64, to: Option<DateTime<Utc>>) -> Result<Pieces> {
        let mut pieces = Pieces::new();
        let mut partial = Pieces::new();
        let from = start.0 / segment_bytes.max(1);
        for listed in self.list().await? {
            let name = listed.name.split('.').next().unwrap_or_default().to_owned();
            if listed.name.starts_with(&format!("{name}.history")) {
                pieces.insert(format!("{name}.history"), listed);
                continue;
            }
            let Some(segment) = Segment::from_name(&name, segment_bytes) else { continue };
            if segment.number < from {
                continue;
            }
            if listed.name.starts_with(&format!("{name}{PARTIAL}")) {
                partial.insert(name, listed);
            } else {
                pieces.insert(name, listed);
            }
        }
        // The newest piece, unless it has become whole meanwhile.
        for (name, listed) in partial {
            pieces.entry(name).or_insert(listed);
        }
        let numbers = |pieces: &Pieces| -> Vec<u64> {
            pieces
                .keys()
                .filter_map(|name| Segment::from_name(name, segment_bytes))
                .map(|one| one.number)
                .collect()
        };
        if let Some(to) = to {
            // A file that was whole long after the time holds nothing from before it, but for the first of them.
            let late = pieces.iter().filter(|(name, listed)| {
                Segment::from_name(name, segment_bytes).is_some() && listed.at > to + CLOCKS_DIFFER
            });
            let late =
                late.filter_map(|(name, _)| Segment::from_name(name, segment_bytes)).map(|one| one.number);
            if let Some(last) = late.min() {
                pieces.retain(|name, _| {
                    Segment::from_name(name, segment_bytes).is_none_or(|one| one.number <= last + 1)
                });
            }
        }
        let missing = gaps(from, numbers(&pieces));
        if let Some((first, last)) = missing.first() {
            let name = |number: u64| Segment { timeline: 1, number }.name(segment_bytes)[8..].to_owned();
            return Err(Error::new(
                Trouble::Missing,
                format!(
                    "{}/{}: the log of writes lacks {} to {}; take a later base backup, or a point before the gap",
                    self.vault.place.name(),
                    self.folder(),
                    name(*first),
                    name(*last)
                ),
            ));
        }
        if numbers(&pieces).is_empty() {
            return Err(Error::new(
                Trouble::Missing,
                format!("{}/{} has no log of writes from {start} on", self.vault.place.name(), self.folder()),
            ));
        }
        Ok(pieces)
    }

    /// Brings a piece to where Postgres finds it.
    pub async fn fetch(
        &self,
        listed: &Listed,
        to: &Path,
        identities: &Identities,
        progress: &Progress,
    ) -> Result<()> {
        let failed = |error: std::io::Error| Error::io(to.display(), &error);
        let mut file = tokio::fs::File::create(to).await.map_err(failed)?;
        let mut reader = FileReader::unlisted(&self.vault.place, &self.folder(), &listed.name, identities);
        while let Some(piece) = reader.next().await? {
            progress.check()?;
            progress.add(piece.len() as u64);
            file.write_all(&piece).await.map_err(failed)?;
        }
        file.sync_all().await.map_err(failed)
    }

    /// Removes what lies before `keep`; returns how many files.
    pub async fn prune(&self, keep: Lsn, segment_bytes: u64) -> Result<u64> {
        let first = keep.0 / segment_bytes.max(1);
        let mut removed = 0;
        for listed in self.list().await? {
            let name = listed.name.split('.').next().unwrap_or_default();
            if Segment::from_name(name, segment_bytes).is_some_and(|segment| segment.number < first) {
                self.vault.place.remove(&format!("{}/{}", self.folder(), listed.name)).await?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}
