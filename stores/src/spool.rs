//! Bytes on their way to a place that is slow or away: files on this machine first, so that neither a process that is
//! killed nor a place that is gone for an hour costs any of them. Only a machine that is lost with its disk does.
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
    _lock: File,
}

#[derive(Debug, Default)]
struct State {
    open: Option<File>,
    /// Of the file that is open, or of the next one.
    number: u64,
    open_bytes: u64,
    closed_bytes: u64,
}

/// A file that nobody writes to any more.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Part {
    pub number: u64,
    pub path: PathBuf,
}

impl Spool {
    /// Makes a folder for `owner`, which must be new. A file is closed at `part_bytes`; all of them have no more than
    /// `bytes_max`.
    pub fn begin(folder: &Path, owner: &str, part_bytes: u64, bytes_max: u64) -> io::Result<Self> {
        let mut builder = fs::DirBuilder::new();
        // What is written here is what users have said.
        builder.recursive(true).mode(0o700).create(folder)?;
        // Under another name until it is locked, or somebody might take it for abandoned.
        let (hidden, own) = (folder.join(format!(".{owner}")), folder.join(owner));
        builder.create(&hidden)?;
        let lock = File::create(hidden.join(LOCK))?;
        lock.lock()?;
        fs::rename(&hidden, &own)?;
        Ok(Self {
            folder: folder.to_owned(),
            owner: owner.to_owned(),
            part_bytes,
            bytes_max,
            state: Mutex::default(),
            _lock: lock,
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
        if state.open_bytes + state.closed_bytes + bytes.len() as u64 > self.bytes_max {
            let full = format!("{} holds {} bytes already", self.own().display(), self.bytes_max);
            return Err(io::Error::new(io::ErrorKind::StorageFull, full));
        }
        let mut file = match state.open.take() {
            Some(file) => file,
            None => {
                let path = self.own().join(format!("{:012}.{ENDING}", state.number));
                File::options().append(true).create_new(true).mode(0o600).open(path)?
            }
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

    /// Closes the file that is open; returns all that are to be carried on, in order.
    ///
    /// # Errors
    /// The folder can't be read.
    pub fn close(&self) -> io::Result<Vec<Part>> {
        self.state().close();
        parts(&self.own())
    }

    /// Removes a part that was carried on.
    ///
    /// # Errors
    /// It can't be removed.
    pub fn remove(&self, part: &Part) -> io::Result<()> {
        let bytes = fs::metadata(&part.path)?.len();
        fs::remove_file(&part.path)?;
        let mut state = self.state();
        state.closed_bytes = state.closed_bytes.saturating_sub(bytes);
        Ok(())
    }

    /// What processes that have ended left, each locked until it is dropped.
    ///
    /// # Errors
    /// The folder can't be read.
    pub fn abandoned(&self) -> io::Result<Vec<Abandoned>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.folder)? {
            let entry = entry?;
            let Ok(owner) = entry.file_name().into_string() else { continue };
            if owner == self.owner || owner.starts_with('.') {
                continue;
            }
            // Its owner lives, or somebody else is about to remove it.
            let Ok(lock) = File::open(entry.path().join(LOCK)) else { continue };
            if lock.try_lock().is_ok() {
                found.push(Abandoned { owner, folder: entry.path(), _lock: lock });
            }
        }
        Ok(found)
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
        if self.open.take().is_some() || self.open_bytes > 0 {
            self.number += 1;
            self.closed_bytes += std::mem::take(&mut self.open_bytes);
        }
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

    /// Removes everything.
    ///
    /// # Errors
    /// It can't be removed.
    pub fn remove(self) -> io::Result<()> {
        fs::remove_dir_all(&self.folder)
    }
}

fn parts(folder: &Path) -> io::Result<Vec<Part>> {
    let mut parts = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let number = path.file_stem().and_then(|stem| stem.to_str()?.parse().ok());
        if let Some(number) = number.filter(|_| path.extension().is_some_and(|ending| ending == ENDING)) {
            parts.push(Part { number, path });
        }
    }
    parts.sort();
    Ok(parts)
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
        one.remove().unwrap();
        assert!(second.abandoned().unwrap().is_empty());
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
