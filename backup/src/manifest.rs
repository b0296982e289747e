//! A backup's manifest: what it is, what is in it, and how it is restored. It is written last, so a backup without one
//! is not whole, whatever else lies there.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest, Sha256};
use taskflow_core::backup::keeping::Count;
use taskflow_core::backup::wal::Lsn;
use taskflow_core::hex;

use crate::error::{Error, Result, Trouble};
use crate::settings::Compression;

/// The newest form of manifests that this program reads.
pub const FORMAT: u32 = 1;
/// The manifest's name in its backup's folder.
pub const NAME: &str = "manifest.json";

/// What is in a backup.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Kind {
    /// A dump of Postgres's database (`pg_dump`, custom format).
    #[serde(rename = "postgres")]
    Postgres,
    /// The whole cluster's files, from which the log of writes leads to any later moment.
    #[serde(rename = "postgres-base")]
    PostgresBase,
    #[serde(rename = "mongodb")]
    MongoDb,
    /// What has come since another backup of MongoDB.
    #[serde(rename = "mongodb-incremental")]
    MongoDbIncremental,
    #[serde(rename = "redis")]
    Redis,
}

impl Kind {
    pub const ALL: [Self; 5] =
        [Self::Postgres, Self::PostgresBase, Self::MongoDb, Self::MongoDbIncremental, Self::Redis];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Postgres => "postgres",
            Self::PostgresBase => "postgres-base",
            Self::MongoDb => "mongodb",
            Self::MongoDbIncremental => "mongodb-incremental",
            Self::Redis => "redis",
        }
    }

    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }

    /// How the rules count it.
    pub fn count(self) -> Count {
        match self {
            Self::Postgres | Self::MongoDb | Self::Redis => Count::Calendar,
            Self::PostgresBase => Count::Newest,
            Self::MongoDbIncremental => Count::Age,
        }
    }
}

impl std::fmt::Display for Kind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One file of a backup.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    /// Below the backup's folder.
    pub path: String,
    pub compression: Compression,
    pub encrypted: bool,
    /// As it lies there, compressed and encrypted.
    pub bytes: u64,
    pub sha256: String,
    /// What is in it.
    pub content_bytes: u64,
    pub content_sha256: String,
}

/// Rows of a table, or documents of a collection.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sum {
    pub count: u64,
    /// A checksum of all rows that does not depend on their order.
    pub sum: String,
}

/// What point in time a backup stands for.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Position {
    /// Everything up to here is in it. With `exact` nothing later is.
    pub from: Option<DateTime<Utc>>,
    pub through: Option<DateTime<Utc>>,
    /// Whether it is one moment (a snapshot); else what changed between `from` and `through` may be in it or not.
    pub exact: bool,
    /// Postgres: the place in the log of writes, and from where on a base backup needs the log.
    pub lsn: Option<Lsn>,
    pub start_lsn: Option<Lsn>,
    pub timeline: Option<u32>,
    /// The cluster's own number: a log of another cluster does not fit.
    pub system: Option<String>,
    /// When the newest receipt was written.
    pub newest_receipt: Option<DateTime<Utc>>,
}

/// A backup's manifest.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    pub format: u32,
    pub id: String,
    pub kind: Kind,
    /// Of the program that made it.
    pub program: String,
    pub begun_at: DateTime<Utc>,
    pub ended_at: DateTime<Utc>,
    /// The server's version.
    pub server: String,
    /// The schema's version.
    #[serde(default)]
    pub schema: Option<i64>,
    /// The database's name.
    #[serde(default)]
    pub database: String,
    pub position: Position,
    /// Ids of the backups without which this one can't be restored.
    #[serde(default)]
    pub needs: Vec<String>,
    /// age recipients; none where it is not encrypted.
    #[serde(default)]
    pub recipients: Vec<String>,
    pub files: Vec<File>,
    /// By table or collection.
    #[serde(default)]
    pub sums: BTreeMap<String, Sum>,
    /// About how much room it takes on a server, in bytes.
    #[serde(default)]
    pub restored_bytes: u64,
    /// Why it was made, if not by the plan: before live data was replaced. [`Keep::safety_days`] holds it then.
    ///
    /// [`Keep::safety_days`]: taskflow_core::backup::keeping::Keep::safety_days
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What should be known: what was left out, and why.
    #[serde(default)]
    pub notes: Vec<String>,
    /// How it is restored, with this program and without.
    pub restore: Vec<String>,
    /// SHA-256 of this document with this field empty.
    pub seal: String,
}

impl Manifest {
    /// Bytes of all files as they lie there.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.bytes).sum()
    }

    pub fn content_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.content_bytes).sum()
    }

    pub fn file(&self, path: &str) -> Result<&File> {
        self.files.iter().find(|file| file.path == path).ok_or_else(|| {
            Error::damaged(format!(
                "{}/{NAME} names no file {path}; it is not a manifest of this kind",
                self.id
            ))
        })
    }

    /// The manifest as it is written.
    pub fn to_bytes(&self) -> Result<Vec<u8>> {
        let mut manifest = self.clone();
        manifest.seal = String::new();
        manifest.seal = digest(&manifest)?;
        let mut bytes = serde_json::to_vec_pretty(&manifest).map_err(|error| unreadable(&self.id, &error))?;
        bytes.push(b'\n');
        Ok(bytes)
    }

    /// Reads a manifest that lies in the folder `id`.
    ///
    /// # Errors
    /// It is damaged, of a newer form, or another backup's.
    pub fn from_bytes(id: &str, bytes: &[u8]) -> Result<Self> {
        // The form is looked at first: a newer one may have anything else in it.
        let value: Value = serde_json::from_slice(bytes).map_err(|error| unreadable(id, &error))?;
        let format = value["format"].as_u64().unwrap_or(0);
        if format > FORMAT.into() {
            let by = value["program"].as_str().unwrap_or("?");
            return Err(Error::new(
                Trouble::Newer,
                format!(
                    "{id}/{NAME} has form {format}, written by taskflow {by}; this program reads up to {FORMAT}: \
                     restore with that version or a later one"
                ),
            ));
        }
        let manifest: Self = serde_json::from_value(value).map_err(|error| unreadable(id, &error))?;
        let unsealed = Self { seal: String::new(), ..manifest.clone() };
        if digest(&unsealed)? != manifest.seal {
            return Err(Error::damaged(format!(
                "{id}/{NAME}: it is not as it was written (its own SHA-256 differs); take the copy in backup.second, or \
                 another backup"
            )));
        }
        if manifest.id != id {
            return Err(Error::damaged(format!("{id}/{NAME} is that of the backup {}", manifest.id)));
        }
        Ok(manifest)
    }
}

fn digest(manifest: &Manifest) -> Result<String> {
    let bytes = serde_json::to_vec(manifest).map_err(|error| unreadable(&manifest.id, &error))?;
    Ok(hex::of(&Sha256::digest(bytes)))
}

fn unreadable(id: &str, error: &serde_json::Error) -> Error {
    Error::damaged(format!("{id}/{NAME}: it can't be read: {error}"))
}

/// A backup's id: the time, the kind, and some digits that tell two of one second apart.
pub fn new_id(kind: Kind, at: DateTime<Utc>, unique: uuid::Uuid) -> String {
    let bytes = unique.as_bytes();
    format!("{}-{kind}-{}", at.format("%Y%m%dT%H%M%SZ"), hex::of(&bytes[12..]))
}

/// What an id says without its manifest.
pub fn read_id(id: &str) -> Option<(DateTime<Utc>, Kind)> {
    let (at, rest) = id.split_once('-')?;
    let (kind, _) = rest.rsplit_once('-')?;
    let at = chrono::NaiveDateTime::parse_from_str(at, "%Y%m%dT%H%M%SZ").ok()?;
    Some((at.and_utc(), Kind::from_word(kind)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let at = DateTime::from_timestamp(1_900_000_000, 5_000).unwrap();
        Manifest {
            format: FORMAT,
            id: "20300317T174640Z-postgres-00000001".into(),
            kind: Kind::Postgres,
            program: "0.1.0".into(),
            begun_at: at,
            ended_at: at,
            server: "15.18".into(),
            schema: Some(36),
            database: "taskflow".into(),
            position: Position { lsn: Some(Lsn(7)), exact: true, ..Position::default() },
            needs: Vec::new(),
            recipients: Vec::new(),
            files: Vec::new(),
            sums: BTreeMap::from([("tasks".to_owned(), Sum { count: 1, sum: "-5".into() })]),
            restored_bytes: 0,
            reason: None,
            notes: Vec::new(),
            restore: vec!["taskflow restore".into()],
            seal: String::new(),
        }
    }

    #[test]
    fn a_manifest_is_read_as_it_was_written_and_any_other_byte_is_noticed() {
        let manifest = manifest();
        let bytes = manifest.to_bytes().unwrap();
        let read = Manifest::from_bytes(&manifest.id, &bytes).unwrap();
        assert_eq!(Manifest { seal: String::new(), ..read }, manifest);
        for index in 0..bytes.len() {
            let mut other = bytes.clone();
            other[index] ^= 1;
            if let Ok(read) = Manifest::from_bytes(&manifest.id, &other) {
                // A byte between two fields.
                assert_eq!(Manifest { seal: String::new(), ..read }, manifest, "byte {index}");
            }
        }
        assert!(Manifest::from_bytes(&manifest.id, &bytes[..bytes.len() / 2]).is_err());
    }

    #[test]
    fn a_manifest_from_before_there_were_reasons_is_sealed_as_it_was() {
        let plain = manifest();
        assert!(!String::from_utf8(plain.to_bytes().unwrap()).unwrap().contains("reason"));
        let told = Manifest { reason: Some("before a restore".into()), ..plain };
        let read = Manifest::from_bytes(&told.id, &told.to_bytes().unwrap()).unwrap();
        assert_eq!(read.reason, told.reason);
    }

    #[test]
    fn a_newer_form_is_named_before_anything_else() {
        let error = Manifest::from_bytes("x", br#"{"format": 2, "program": "9.0", "files": 7}"#).unwrap_err();
        assert_eq!(error.trouble, Trouble::Newer);
        assert!(error.text.contains("x/manifest.json") && error.text.contains("9.0"), "{error}");
    }

    #[test]
    fn ids_tell_time_and_kind() {
        let at = DateTime::from_timestamp(1_900_000_000, 0).unwrap();
        for kind in Kind::ALL {
            assert_eq!(read_id(&new_id(kind, at, uuid::Uuid::from_u128(7))), Some((at, kind)));
        }
        assert_eq!(read_id("notes.txt"), None);
    }
}
