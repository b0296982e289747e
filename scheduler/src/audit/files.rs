//! The files of the audit trail: the keys, and the copy of the seals that no database has.
//!
//! A seal is a line of JSON at the end of its month's file, which is only ever added to. A line that a crash has cut off
//! is no seal; the next one begins on a line of its own.

use std::fs::{File, OpenOptions};
use std::io::{BufRead, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use taskflow_core::audit::copies::Newest;
use taskflow_core::audit::key::{PublicKey, SecretKey};
use taskflow_core::audit::seal::Signed;

/// Bytes of a seal's line: far more than 513 heads take.
const LINE_MAX: usize = 1 << 20;

/// A file that could not be used: which, and why.
#[derive(Debug, thiserror::Error)]
#[error("{}: {why}", path.display())]
pub struct FileError {
    pub path: PathBuf,
    pub why: String,
}

fn failed(path: &Path) -> impl Fn(std::io::Error) -> FileError {
    move |error| wrong(path, error)
}

fn wrong(path: &Path, why: impl ToString) -> FileError {
    FileError { path: path.to_owned(), why: why.to_string() }
}

/// Reads the secret key; `None` if there is none.
///
/// # Errors
/// It can't be read, is no key, or others than its owner may read it.
pub fn secret_key(path: &Path) -> Result<Option<SecretKey>, FileError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(wrong(path, error)),
    };
    let mode = file.metadata().map_err(failed(path))?.permissions().mode() & 0o777;
    if mode & 0o077 != 0 {
        let why = format!("others than its owner may read or change it (mode {mode:o}); `chmod 600` it");
        return Err(wrong(path, why));
    }
    let mut text = String::new();
    file.read_to_string(&mut text).map_err(failed(path))?;
    SecretKey::from_file(&text).map(Some).map_err(|why| wrong(path, why))
}

/// Writes a new secret key, readable by its owner alone, and adds its public one to the public ones.
///
/// # Errors
/// There is a key already, or a file can't be written.
pub fn make_keys(secret: &Path, public: &Path, key: &SecretKey) -> Result<(), FileError> {
    for folder in [secret, public].into_iter().filter_map(Path::parent) {
        std::fs::create_dir_all(folder).map_err(failed(folder))?;
    }
    let mut file =
        OpenOptions::new().write(true).create_new(true).mode(0o600).open(secret).map_err(|error| {
            let there = error.kind() == std::io::ErrorKind::AlreadyExists;
            wrong(
                secret,
                if there {
                    "there is a key already; move it away to make another".to_owned()
                } else {
                    error.to_string()
                },
            )
        })?;
    file.write_all(key.to_file().as_bytes()).and_then(|()| file.sync_all()).map_err(failed(secret))?;
    let mut file = OpenOptions::new().append(true).create(true).open(public).map_err(failed(public))?;
    file.write_all(key.public().to_line().as_bytes()).and_then(|()| file.sync_all()).map_err(failed(public))
}

/// Reads the public keys; none if there is no file.
pub fn public_keys(path: &Path) -> Result<Vec<PublicKey>, FileError> {
    match std::fs::read_to_string(path) {
        Ok(text) => PublicKey::from_file(&text).map_err(|why| wrong(path, why)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(wrong(path, error)),
    }
}

/// A line of a file of seals.
#[derive(Serialize, Deserialize)]
struct Line {
    number: i64,
    #[serde(flatten)]
    signed: Signed,
}

/// The folder of the seals.
#[derive(Debug, Clone)]
pub struct Outside {
    folder: PathBuf,
}

impl Outside {
    pub fn new(folder: &Path) -> Self {
        Self { folder: folder.to_owned() }
    }

    /// Whether there is one: who verifies on another machine may not have it.
    pub fn is_there(&self) -> bool {
        self.folder.is_dir()
    }

    /// Adds seals, each with its time, and waits until the disk has them.
    pub fn append(&self, seals: &[(i64, DateTime<Utc>, Signed)]) -> Result<(), FileError> {
        std::fs::create_dir_all(&self.folder).map_err(failed(&self.folder))?;
        for month in seals.chunk_by(|one, other| name(one.1) == name(other.1)) {
            let Some((_, at, _)) = month.first() else { continue };
            let path = self.folder.join(name(*at));
            let mut text = String::new();
            if is_cut_off(&path)? {
                text.push('\n');
            }
            for (number, _, signed) in month {
                let line = Line { number: *number, signed: signed.clone() };
                text += &serde_json::to_string(&line).map_err(|error| wrong(&path, error))?;
                text.push('\n');
            }
            let mut file = OpenOptions::new().append(true).create(true).open(&path).map_err(failed(&path))?;
            file.write_all(text.as_bytes()).and_then(|()| file.sync_data()).map_err(failed(&path))?;
        }
        Ok(())
    }

    /// The newest seal that one of the keys has signed, by its number.
    pub fn newest(&self, keys: &[PublicKey]) -> Result<Option<(i64, Signed)>, FileError> {
        for path in self.files()?.into_iter().rev() {
            let mut newest: Option<Line> = None;
            each_line(&path, |line| {
                let is_newer = newest.as_ref().is_none_or(|newest| line.number > newest.number);
                if is_newer && line.signed.is_seal(line.number, keys) {
                    newest = Some(line);
                }
            })?;
            if let Some(line) = newest {
                return Ok(Some((line.number, line.signed)));
            }
        }
        Ok(None)
    }

    /// How far the seals go.
    pub fn extent(&self, keys: &[PublicKey]) -> Result<Newest, FileError> {
        let mut newest =
            Newest { believed: self.newest(keys)?.map_or(0, |(number, _)| number), forged: None };
        for path in self.files()? {
            each_line(&path, |line| {
                let is_above = line.number > newest.forged.unwrap_or(newest.believed);
                if is_above && !line.signed.is_seal(line.number, keys) {
                    newest.forged = Some(line.number);
                }
            })?;
        }
        Ok(newest)
    }

    /// The seals with numbers from `first` to `last`. Where a number is there twice, the first one counts: what was
    /// added later is no better.
    pub fn read(&self, first: i64, last: i64) -> Result<std::collections::BTreeMap<i64, Signed>, FileError> {
        let mut seals = std::collections::BTreeMap::new();
        for path in self.files()? {
            each_line(&path, |line| {
                if (first..=last).contains(&line.number) {
                    seals.entry(line.number).or_insert(line.signed);
                }
            })?;
        }
        Ok(seals)
    }

    /// The files, the oldest first.
    fn files(&self) -> Result<Vec<PathBuf>, FileError> {
        let entries = match std::fs::read_dir(&self.folder) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(wrong(&self.folder, error)),
        };
        let mut files = Vec::new();
        for entry in entries {
            let path = entry.map_err(failed(&self.folder))?.path();
            let name = path.file_name().and_then(|name| name.to_str());
            let is_ours = name.is_some_and(|name| name.starts_with("seals-"))
                && path.extension().is_some_and(|extension| extension == "jsonl");
            if is_ours {
                files.push(path);
            }
        }
        files.sort();
        Ok(files)
    }
}

fn name(at: DateTime<Utc>) -> String {
    at.format("seals-%Y-%m.jsonl").to_string()
}

/// Whether a file's last line has no end.
fn is_cut_off(path: &Path) -> Result<bool, FileError> {
    let mut file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(wrong(path, error)),
    };
    if file.metadata().map_err(failed(path))?.len() == 0 {
        return Ok(false);
    }
    let mut last = [0];
    file.seek(SeekFrom::End(-1)).and_then(|_| file.read_exact(&mut last)).map_err(failed(path))?;
    Ok(last != *b"\n")
}

/// Goes through a file's lines. What is no seal is passed over: the seal of its number is then missing.
fn each_line(path: &Path, mut take: impl FnMut(Line)) -> Result<(), FileError> {
    let mut file = BufReader::new(File::open(path).map_err(failed(path))?);
    let mut line = Vec::new();
    loop {
        line.clear();
        let read = file.by_ref().take(LINE_MAX as u64).read_until(b'\n', &mut line).map_err(failed(path))?;
        if read == 0 {
            return Ok(());
        }
        if let Ok(line) = serde_json::from_slice(&line) {
            take(line);
        }
    }
}
