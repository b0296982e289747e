//! Bytes on their way to a place that is slow or away: files on this machine first, so that neither a process that is
//! killed nor a place that is gone for an hour costs any of them. A machine that stops at once may: nothing waits for its
//! disk.
//!
//! Each process has a folder of its own, which it locks: `FOLDER/OWNER/NUMBER.part`. What a process that has ended left
//! behind is [`Abandoned`], and anybody's to carry on.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

const LOCK: &str = "lock";
const ENDING: &str = "part";

/// This process's files.
#[derive(Debug)]
pub struct Spool {
    folder: PathBuf,
    owner: String,
    part_bytes: u64,
    bytes_max: u64,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    open: Option<File>,
    /// Of the next file.
    number: u64,
    open_bytes: u64,
    closed_bytes: u64,
    /// What other processes have here.
    other_bytes: u64,
    /// Held while we live.
    lock: File,
}

/// A file that nobody writes to any more.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    pub number: u64,
    pub path: PathBuf,
    pub bytes: u64,
}

impl Spool {
    /// Makes a folder for `owner`, which must be new. A file is closed at `part_bytes`; all of `folder` has no more than
    /// about `bytes_max`.
    ///
    /// # Errors
    /// The folder can't be made.
    pub fn begin(folder: &Path, owner: &str, part_bytes: u64, bytes_max: u64) -> io::Result<Self> {
        let state = State {
            open: None,
            number: 0,
            open_bytes: 0,
            closed_bytes: 0,
            lock: make(folder, owner)?,
            other_bytes: others_bytes(folder, owner)?,
        };
        Ok(Self {
            folder: folder.to_owned(),
            owner: owner.to_owned(),
            part_bytes,
            bytes_max,
            state: Mutex::new(state),
        })
    }

    pub fn owner(&self) -> &str {
        &self.owner
    }

    fn own(&self) -> PathBuf {
        self.folder.join(&self.owner)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing is half changed when it panics: a file that is written to is measured afterwards.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds bytes, which stay together. They are the system's when this returns, and outlive the process.
    ///
    /// # Errors
    /// The disk or `bytes_max` is full, or the disk fails; nothing of them is kept then.
    pub fn append(&self, bytes: &[u8]) -> io::Result<()> {
        let mut state = self.state();
        let held = state.open_bytes + state.closed_bytes + state.other_bytes;
        if held + bytes.len() as u64 > self.bytes_max {
            let full = format!("{} holds {held} bytes already", self.folder.display());
            return Err(io::Error::new(io::ErrorKind::StorageFull, full));
        }
        let mut file = match state.open.take() {
            Some(file) => file,
            None => self.create(&mut state)?,
        };
        if let Err(error) = file.write_all(bytes) {
            // Without what was written of them; a file that can't be cut is closed, and its end is nobody's.
            if file.set_len(state.open_bytes).is_ok() {
                state.open = Some(file);
            } else {
                state.close();
            }
            return Err(error);
        }
        state.open_bytes += bytes.len() as u64;
        state.open = Some(file);
        if state.open_bytes >= self.part_bytes {
            state.close();
        }
        Ok(())
    }

    fn create(&self, state: &mut State) -> io::Result<File> {
        let path = self.own().join(format!("{:012}.{ENDING}", state.number));
        let create = || File::options().append(true).create_new(true).mode(0o600).open(&path);
        let file = match create() {
            // Somebody has tidied the folder away.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                drop(std::mem::replace(&mut state.lock, make(&self.folder, &self.owner)?));
                create()?
            }
            created => created?,
        };
        state.number += 1;
        Ok(file)
    }

    /// Closes the file that is open; returns all that are to be carried on, in order.
    ///
    /// # Errors
    /// The folder can't be read.
    pub fn close(&self) -> io::Result<Vec<Part>> {
        // Under one lock: what is listed is not written to any more.
        let mut state = self.state();
        state.close();
        let parts = parts(&self.own())?;
        state.closed_bytes = bytes_of(&parts);
        state.other_bytes = others_bytes(&self.folder, &self.owner)?;
        Ok(parts)
    }

    /// Removes a part that was carried on.
    ///
    /// # Errors
    /// It can't be removed.
    pub fn remove(&self, part: &Part) -> io::Result<()> {
        fs::remove_file(&part.path)?;
        let mut state = self.state();
        state.closed_bytes = state.closed_bytes.saturating_sub(part.bytes);
        Ok(())
    }

    /// What processes that have ended left, each locked until it is dropped.
    ///
    /// # Errors
    /// The folder can't be read.
    pub fn abandoned(&self) -> io::Result<Vec<Abandoned>> {
        abandoned(&self.folder)
    }

    /// Removes the folder if everything in it was carried on; what was not stays for the next process.
    pub fn end(self) {
        if parts(&self.own()).is_ok_and(|left| left.is_empty()) {
            let _ = fs::remove_dir_all(self.own());
        }
    }
}

impl State {
    fn close(&mut self) {
        self.open = None;
        self.closed_bytes += std::mem::take(&mut self.open_bytes);
    }
}

/// The files of a process that has ended.
#[derive(Debug)]
pub struct Abandoned {
    pub owner: String,
    folder: PathBuf,
    _lock: File,
}

impl Abandoned {
    /// # Errors
    /// The folder can't be read.
    pub fn parts(&self) -> io::Result<Vec<Part>> {
        parts(&self.folder)
    }

    /// Removes the folder, whose parts were carried on and removed. What else lies there stays, and so does the folder.
    pub fn end(self) {
        // Without its lock it is nobody's any more; so that comes last but one.
        if parts(&self.folder).is_ok_and(|left| left.is_empty()) {
            let _ = fs::remove_file(self.folder.join(LOCK));
            let _ = fs::remove_dir(&self.folder);
        }
    }
}

/// Makes a process's folder; it is locked as long as the file is open.
fn make(folder: &Path, owner: &str) -> io::Result<File> {
    // Those above it are others' too.
    if let Some(above) = folder.parent() {
        fs::create_dir_all(above)?;
    }
    let mut builder = fs::DirBuilder::new();
    // What is written here is what users have said.
    builder.recursive(true).mode(0o700).create(folder)?;
    // Under another name until it is locked, or somebody might take it for abandoned.
    let (hidden, own) = (folder.join(format!(".{owner}")), folder.join(owner));
    builder.create(&hidden)?;
    let lock = File::create(hidden.join(LOCK))?;
    lock.lock()?;
    fs::rename(&hidden, &own)?;
    Ok(lock)
}

/// What processes that have ended left in a folder, each locked until it is dropped.
///
/// # Errors
/// The folder can't be read.
pub fn abandoned(folder: &Path) -> io::Result<Vec<Abandoned>> {
    let mut found = Vec::new();
    for (owner, folder) in owners(folder)? {
        // Its owner lives, or somebody else is about to remove it.
        let Ok(lock) = File::open(folder.join(LOCK)) else { continue };
        if lock.try_lock().is_ok() {
            found.push(Abandoned { owner, folder, _lock: lock });
        }
    }
    Ok(found)
}

fn owners(folder: &Path) -> io::Result<Vec<(String, PathBuf)>> {
    let entries = entries(folder)?.into_iter();
    let named = entries.filter_map(|path| Some((path.file_name()?.to_str()?.to_owned(), path)));
    Ok(named.filter(|(owner, _)| !owner.starts_with('.')).collect())
}

fn others_bytes(folder: &Path, owner: &str) -> io::Result<u64> {
    let mut bytes = 0;
    for (_, folder) in owners(folder)?.iter().filter(|(other, _)| other != owner) {
        bytes += bytes_of(&parts(folder)?);
    }
    Ok(bytes)
}

fn bytes_of(parts: &[Part]) -> u64 {
    parts.iter().map(|part| part.bytes).sum()
}

fn parts(folder: &Path) -> io::Result<Vec<Part>> {
    let mut parts = Vec::new();
    for path in entries(folder)? {
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
        if let Some(number) = number.filter(|_| path.extension().is_some_and(|ending| ending == ENDING)) {
            // It may have been carried on meanwhile.
            let Ok(about) = fs::metadata(&path) else { continue };
            parts.push(Part { number, path, bytes: about.len() });
        }
    }
    parts.sort();
    Ok(parts)
}

/// What lies in a folder; nothing where it is gone.
fn entries(folder: &Path) -> io::Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Ok(entries) => entries.map(|entry| Ok(entry?.path())).collect(),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            Ok(Vec::new())
        }
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn content(parts: &[Part]) -> Vec<Vec<u8>> {
        parts.iter().map(|part| fs::read(&part.path).unwrap()).collect()
    }

    #[test]
    fn what_a_process_leaves_is_carried_on_by_another_one() {
        let folder = tempfile::tempdir().unwrap();
        let first = Spool::begin(folder.path(), "first", 4, 100).unwrap();
        first.append(b"one").unwrap();
        first.append(b"two").unwrap();
        first.append(b"three").unwrap();
        first.append(b"!").unwrap();
        let second = Spool::begin(folder.path(), "second", 4, 100).unwrap();
        assert!(second.abandoned().unwrap().is_empty(), "its owner lives");
        // As if it were killed.
        drop(first);
        let third = Spool::begin(folder.path(), "third", 4, 100).unwrap();
        let left = second.abandoned().unwrap();
        assert!(third.abandoned().unwrap().is_empty(), "two carry it on");
        let [one] = <[Abandoned; 1]>::try_from(left).unwrap();
        assert_eq!(one.owner, "first");
        assert_eq!(content(&one.parts().unwrap()), [b"onetwo".to_vec(), b"three".to_vec(), b"!".to_vec()]);
        one.parts().unwrap().iter().for_each(|part| fs::remove_file(&part.path).unwrap());
        one.end();
        assert!(second.abandoned().unwrap().is_empty());
    }

    #[test]
    fn nothing_is_lost_between_one_who_writes_and_one_who_carries_on() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::begin(folder.path(), "own", 64, 1 << 20).unwrap();
        let written = std::sync::atomic::AtomicBool::new(false);
        let mut found = Vec::new();
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for number in 0..20_000_u32 {
                    while spool.append(&number.to_be_bytes()).is_err() {
                        std::thread::yield_now();
                    }
                }
                written.store(true, std::sync::atomic::Ordering::SeqCst);
            });
            loop {
                let last = written.load(std::sync::atomic::Ordering::SeqCst);
                for part in spool.close().unwrap() {
                    found.extend(fs::read(&part.path).unwrap());
                    spool.remove(&part).unwrap();
                }
                if last {
                    break;
                }
            }
        });
        assert_eq!(found, (0..20_000_u32).flat_map(u32::to_be_bytes).collect::<Vec<u8>>());
        let state = spool.state();
        assert_eq!((state.open_bytes, state.closed_bytes, state.other_bytes), (0, 0, 0));
    }

    #[test]
    fn a_folder_that_is_tidied_away_is_made_again() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::begin(folder.path(), "own", 4, 100).unwrap();
        spool.append(b"lost").unwrap();
        fs::remove_dir_all(folder.path().join("own")).unwrap();
        spool.append(b"kept").unwrap();
        assert_eq!(content(&spool.close().unwrap()), [b"kept".to_vec()]);
        assert!(abandoned(folder.path()).unwrap().is_empty(), "its owner lives");
    }

    #[test]
    fn a_spool_is_bounded_and_has_room_again() {
        let folder = tempfile::tempdir().unwrap();
        let spool = Spool::begin(folder.path(), "own", 4, 8).unwrap();
        spool.append(b"12345").unwrap();
        spool.append(b"678").unwrap();
        let error = spool.append(b"9").unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
        let parts = spool.close().unwrap();
        assert_eq!(content(&parts), [b"12345".to_vec(), b"678".to_vec()]);
        spool.remove(&parts[0]).unwrap();
        spool.append(b"9").unwrap();
        assert_eq!(content(&spool.close().unwrap()), [b"678".to_vec(), b"9".to_vec()]);
        spool.end();
        // Not everything was carried on.
        assert!(folder.path().join("own").exists());
        let other = Spool::begin(folder.path(), "other", 4, 8).unwrap();
        assert!(other.close().unwrap().is_empty());
        other.end();
        assert!(!folder.path().join("other").exists());
    }
}
