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

use super::timeline::History;
use crate::error::{Error, Result, Trouble};
use crate::keys::Identities;
use crate::place::Listed;
use crate::progress::Progress;
use crate::read::FileReader;
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

/// Files of an archive, by the names under which Postgres asks for them.
pub type Files = BTreeMap<String, Listed>;

/// What is needed of an archive for a restore.
pub struct Pieces {
    pub files: Files,
    /// What came long after the time that is wanted. When a file came does not say what it holds, since the archive's
    /// place may have been away, or be a copy: where Postgres does not get to its target, it needs these as well.
    pub rest: Files,
    /// The log ends before the archive's end: why nothing behind that can be reached.
    pub gap: Option<Error>,
}

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
        let form = self.vault.unlisted_form();
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
        let ending = self.vault.unlisted_form().ending();
        self.vault.place.remove(&format!("{}/{segment}{PARTIAL}{ending}", self.folder())).await
    }

    /// Everything that is there.
    pub async fn list(&self) -> Result<Vec<Listed>> {
        self.vault.place.files(&self.folder()).await
    }

    /// The history of a timeline.
    pub async fn history(&self, timeline: u32, identities: &Identities) -> Result<History> {
        let name = History::name(timeline);
        let listed = self.list().await?.into_iter().find(|listed| listed.name.starts_with(&name));
        let listed = listed.ok_or_else(|| {
            Error::new(
                Trouble::Missing,
                format!(
                    "{}/{}/{name} is not there, which tells where the timelines before {timeline} were left; take the copy \
                     in backup.second, or a base backup of timeline {timeline}",
                    self.vault.place.name(),
                    self.folder()
                ),
            )
        })?;
        let file = FileReader::unlisted(&self.vault.place, &self.folder(), &listed.name, identities);
        History::read(timeline, &String::from_utf8_lossy(&file.whole().await?))
    }

    /// What Postgres may ask for when it replays the log from `start` along timelines, up to a time if there is one.
    pub async fn pieces(
        &self,
        start: Lsn,
        reached: &Reached,
        history: &History,
        to: Option<DateTime<Utc>>,
    ) -> Result<Pieces> {
        let segment_bytes = reached.segment_bytes;
        let mut files = Files::new();
        let mut partial = Files::new();
        let from = start.0 / segment_bytes.max(1);
        for listed in self.list().await? {
            let name = listed.name.split('.').next().unwrap_or_default().to_owned();
            if listed.name.starts_with(&format!("{name}.history")) {
                files.insert(format!("{name}.history"), listed);
                continue;
            }
            let Some(segment) = Segment::from_name(&name, segment_bytes) else { continue };
            // What another timeline went on with fills no gap.
            if segment.number < from || !history.has(segment, segment_bytes) {
                continue;
            }
            if listed.name.starts_with(&format!("{name}{PARTIAL}")) {
                partial.insert(name, listed);
            } else {
                files.insert(name, listed);
            }
        }
        // The newest piece, unless it has become whole meanwhile.
        for (name, listed) in partial {
            files.entry(name).or_insert(listed);
        }
        let segment = |name: &String| Segment::from_name(name, segment_bytes);
        let missing = first_gap(from, reached, files.keys().filter_map(segment).map(|one| one.number));
        let gap = missing.map(|(first, last)| {
            let place = format!("{}/{}", self.vault.place.name(), self.folder());
            let name = |number| Segment { timeline: reached.timeline, number }.name(segment_bytes)[8..].to_owned();
            files.retain(|name, _| segment(name).is_none_or(|one| one.number < first));
            Error::new(
                Trouble::Missing,
                format!(
                    "{place}: the log of writes lacks {} to {}; take a later base backup, or a point before the gap",
                    name(first),
                    name(last)
                ),
            )
        });
        let mut rest = Files::new();
        if let Some(to) = to {
            let late = files.iter().filter(|(_, listed)| listed.at > to + CLOCKS_DIFFER);
            if let Some(first) = late.filter_map(|(name, _)| segment(name)).map(|one| one.number).min() {
                let is_late = |name: &String| segment(name).is_some_and(|one| one.number > first + 1);
                rest = files.extract_if(.., |name, _| is_late(name)).collect();
            }
        }
        Ok(Pieces { files, rest, gap })
    }

    /// Reads files to their ends and holds them against their checksums, before they are used. What is damaged ends the log
    /// as a piece that is missing does: it goes from the list with all behind it, and is told.
    pub async fn verify(
        &self,
        files: &mut Files,
        segment_bytes: u64,
        identities: &Identities,
        progress: &Progress,
    ) -> Result<Option<Error>> {
        progress.begin("verify the log of writes", files.len() as u64 * segment_bytes);
        let mut first: Option<(u64, Error)> = None;
        for (name, listed) in &*files {
            let Err(error) = self.read(listed, identities, progress).await else { continue };
            let segment = Segment::from_name(name, segment_bytes);
            let Some(segment) = segment.filter(|_| error.trouble == Trouble::Damaged) else {
                return Err(error);
            };
            if first.as_ref().is_none_or(|(number, _)| segment.number < *number) {
                let way_out = "take the copy in backup.second, a later base backup, or a point before it";
                first = Some((segment.number, Error::damaged(format!("{error}; {way_out}"))));
            }
        }
        let Some((first, error)) = first else { return Ok(None) };
        let before =
            |name: &String| Segment::from_name(name, segment_bytes).is_none_or(|one| one.number < first);
        files.retain(|name, _| before(name));
        Ok(Some(error))
    }

    async fn read(&self, listed: &Listed, identities: &Identities, progress: &Progress) -> Result<()> {
        let (mut reader, mut next) = self.open(listed, identities).await?;
        while let Some(piece) = next {
            progress.check()?;
            progress.add(piece.len() as u64);
            next = reader.next().await?;
        }
        Ok(())
    }

    /// Begins to read a file. A piece that was listed may have become whole meanwhile, under its own name.
    async fn open(&self, listed: &Listed, identities: &Identities) -> Result<(FileReader, Option<Bytes>)> {
        let read = |name: &str| FileReader::unlisted(&self.vault.place, &self.folder(), name, identities);
        let mut reader = read(&listed.name);
        match reader.next().await {
            Err(error) if error.trouble == Trouble::Missing && listed.name.contains(PARTIAL) => {
                let mut reader = read(&listed.name.replacen(PARTIAL, "", 1));
                let first = reader.next().await?;
                Ok((reader, first))
            }
            first => Ok((reader, first?)),
        }
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
        let (mut reader, mut next) = self.open(listed, identities).await?;
        while let Some(piece) = next {
            progress.check()?;
            progress.add(piece.len() as u64);
            file.write_all(&piece).await.map_err(failed)?;
            next = reader.next().await?;
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

/// The clusters whose log is archived, with how far it goes: the one that was archived last comes first.
pub async fn clusters(vault: &Vault) -> Result<Vec<(String, Reached)>> {
    let mut clusters = Vec::new();
    for system in vault.place.folders(FOLDER).await? {
        if let Some(reached) = Archive::of(vault, &system).reached().await? {
            clusters.push((system, reached));
        }
    }
    clusters.sort_by_key(|(_, reached)| std::cmp::Reverse(reached.at));
    Ok(clusters)
}

/// The first files that are missing between the one with the number `from` and the archive's end.
fn first_gap(from: u64, reached: &Reached, there: impl Iterator<Item = u64>) -> Option<(u64, u64)> {
    // A file that ends where the archive ends need not be followed by an empty one.
    let end = reached.lsn.0.div_ceil(reached.segment_bytes.max(1)).max(from + 1);
    gaps(from, there.chain([end])).into_iter().next()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 16 << 20;

    fn first(end: u64, there: &[u64]) -> Option<(u64, u64)> {
        let reached = Reached {
            lsn: Lsn(end),
            at: DateTime::UNIX_EPOCH,
            timeline: 1,
            segment_bytes: SIZE,
            since: Lsn(0),
        };
        first_gap(2, &reached, there.iter().copied())
    }

    #[test]
    fn the_log_must_go_on_to_the_archives_end() {
        let three = [2, 3, 4];
        assert_eq!(first(5 * SIZE, &three), None);
        assert_eq!(first(4 * SIZE + 9, &three), None);
        assert_eq!(first(5 * SIZE + 9, &three), Some((5, 5)));
        assert_eq!(first(4 * SIZE + 9, &[2, 4]), Some((3, 3)));
        assert_eq!(first(2 * SIZE + 9, &[]), Some((2, 2)));
        // What is there beyond the end does no harm.
        assert_eq!(first(3 * SIZE, &three), None);
    }
}
