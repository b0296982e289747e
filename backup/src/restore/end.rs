//! Whether a replay "as far as the log goes" went as far as the archive says that it goes. Postgres takes whatever it
//! can't read for the log's end, and is content.

use std::io::{Read, Seek, SeekFrom};
use std::path::Path;

use taskflow_core::backup::wal::{Lsn, Segment};

use crate::error::{Error, Result};
use crate::postgres::archive::Reached;

/// A page of the log, its head, and the longer head of the first one of a file.
const PAGE: u64 = 8_192;
const HEAD: u64 = 24;
const FIRST_HEAD: u64 = 40;
/// The head of a record; its length stands first.
const RECORD_HEAD: u64 = 24;

/// Holds the end of a replay against the archive. `log` is where Postgres found the log.
pub(super) fn must_have_reached(data: &Path, log: &Path, reached: &Reached) -> Result<()> {
    let end = replayed(data)?;
    if end >= reached.lsn || is_cut(log, end, reached) {
        return Ok(());
    }
    Err(Error::damaged(format!(
        "the log of writes breaks off at {end}, and its archive says that it goes to {} ({}): a piece there is not what was \
         received; take the copy in backup.second, or name a moment before it with --to; {} is not whole, and may be \
         restored into again",
        reached.lsn,
        reached.at.format("%Y-%m-%d %H:%M:%S%.3f UTC"),
        data.display()
    )))
}

/// Where the replay has ended: the history of the timeline that Postgres has begun there ends with that place.
fn replayed(data: &Path) -> Result<Lsn> {
    let folder = data.join("pg_wal");
    let failed = |error: std::io::Error| Error::io(folder.display(), &error);
    let mut newest: Option<String> = None;
    for entry in std::fs::read_dir(&folder).map_err(failed)? {
        let name = entry.map_err(failed)?.file_name().into_string().unwrap_or_default();
        if name.ends_with(".history") {
            newest = newest.max(Some(name));
        }
    }
    let unknown = || Error::failed(format!("{}: no history tells where the replay ended", folder.display()));
    let text = std::fs::read_to_string(folder.join(newest.ok_or_else(unknown)?)).map_err(failed)?;
    let last = text.lines().rfind(|line| !line.trim().is_empty() && !line.starts_with('#'));
    last.and_then(|line| line.split_whitespace().nth(1)?.parse().ok()).ok_or_else(unknown)
}

/// Whether all that is missing is the rest of one record. The archive's end may lie in the middle of one: a server writes
/// whole pages when it is busy, and what was committed before that ends before it.
fn is_cut(log: &Path, end: Lsn, reached: &Reached) -> bool {
    let size = reached.segment_bytes.max(PAGE);
    let start = Lsn(end.0 + if end.0.is_multiple_of(PAGE) { head(end.0, size) } else { 0 });
    let file = log.join(Segment::holding(reached.timeline, start, size).name(size));
    let length = || -> std::io::Result<u64> {
        let mut bytes = [0; 4];
        let mut file = std::fs::File::open(file)?;
        file.seek(SeekFrom::Start(start.0 % size))?;
        file.read_exact(&mut bytes)?;
        // As the server's processor has it, which is ours: its files would not run here otherwise.
        Ok(u32::from_ne_bytes(bytes).into())
    };
    length().is_ok_and(|length| length >= RECORD_HEAD && behind(start, length, size) > reached.lsn)
}

/// The place behind a record that begins at `start`.
fn behind(start: Lsn, length: u64, size: u64) -> Lsn {
    let (mut at, mut left) = (start.0, length);
    loop {
        let room = PAGE - at % PAGE;
        if left <= room {
            return Lsn(at + left);
        }
        left -= room;
        at += room;
        at += head(at, size);
    }
}

/// Bytes of the head of the page that begins at `page`.
fn head(page: u64, size: u64) -> u64 {
    if page.is_multiple_of(size) { FIRST_HEAD } else { HEAD }
}

#[cfg(test)]
mod tests {
    use chrono::DateTime;

    use super::*;

    const SIZE: u64 = 1 << 20;

    fn reached(lsn: u64) -> Reached {
        Reached { lsn: Lsn(lsn), at: DateTime::UNIX_EPOCH, timeline: 1, segment_bytes: SIZE, since: Lsn(0) }
    }

    #[test]
    fn a_record_goes_on_behind_the_heads_of_pages() {
        assert_eq!(behind(Lsn(SIZE + 8_000), 192, SIZE), Lsn(SIZE + PAGE));
        assert_eq!(behind(Lsn(SIZE + 8_000), 200, SIZE), Lsn(SIZE + PAGE + HEAD + 8));
        assert_eq!(behind(Lsn(2 * SIZE - 100), 200, SIZE), Lsn(2 * SIZE + FIRST_HEAD + 100));
    }

    #[test]
    fn the_end_may_lie_in_a_record_and_nowhere_else() {
        let (data, log) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir(data.path().join("pg_wal")).unwrap();
        let history = |name: &str, text: &str| std::fs::write(data.path().join("pg_wal").join(name), text);
        history("00000002.history", "1\t0/200000\tan earlier one\n").unwrap();
        history("00000003.history", "1\t0/200000\tone\n\n2\t0/301F00\tno recovery target specified\n")
            .unwrap();
        let end = 0x30_1F00;
        let ended = |lsn: u64| must_have_reached(data.path(), log.path(), &reached(lsn));
        ended(end).unwrap();
        ended(end - 1).unwrap();
        // There is nothing where the next record should be.
        let mut file = vec![0; SIZE as usize];
        let path = log.path().join(Segment { timeline: 1, number: 3 }.name(SIZE));
        std::fs::write(&path, &file).unwrap();
        let error = ended(end + 8).unwrap_err();
        assert!(error.text.contains("0/301F00") && error.text.contains("0/301F08"), "{error}");
        // A record of a thousand bytes, which goes on on the next page.
        file[0x1F00..0x1F04].copy_from_slice(&1_000_u32.to_ne_bytes());
        std::fs::write(&path, &file).unwrap();
        ended(end + 1_000 + HEAD - 1).unwrap();
        assert!(ended(end + 1_000 + HEAD).is_err());
    }
}
