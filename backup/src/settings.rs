//! What can be set about backups.

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::{Deserialize, Serialize};
use taskflow_core::backup::keeping::Keep;

/// Where backups go, how they are closed, and how long they are kept.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// A folder, or `s3://bucket/path`, `gs://bucket/path`, `az://container/path`. Empty: no backups are made.
    pub destination: String,
    /// Options of the destination's client, such as `aws_region`, `aws_endpoint`, `aws_access_key_id`.
    pub options: BTreeMap<String, String>,
    /// A second place that every whole backup is copied to.
    pub second: String,
    pub second_options: BTreeMap<String, String>,
    /// age recipients (`age1…`) that may read the backups. None: they are not encrypted.
    pub recipients: Vec<String>,
    /// A file with the age identities that open them, for restores and drills. Backups are made without it.
    pub identity_path: PathBuf,
    /// zstd's level, 1 to 19.
    pub compression_level: i32,
    /// How MongoDB's documents are compressed: `zstd`; `gzip` and `none` can be read by `mongorestore`.
    pub mongodb_compression: Compression,
    /// The folder of `pg_dump`, `pg_restore`, `pg_basebackup`, `pg_receivewal`. Empty: the newest that is installed.
    pub programs: PathBuf,
    /// Where WAL waits to be shipped and where drills are made. Empty: below the system's temporary folder.
    pub work_dir: PathBuf,
    /// Whether schedulers receive the log of writes (WAL) without a pause. It takes a role with REPLICATION.
    pub wal: bool,
    /// The replication slot that keeps the log of writes until it has been shipped.
    pub wal_slot: String,
    /// At most so long after a commit its part of the log is in the destination, in milliseconds.
    pub wal_every_ms: u64,
    /// The slot is given up when it keeps more than this of the log on the server, in bytes: a full disk would stop
    /// everything. A new base backup begins anew.
    pub wal_behind_max_bytes: u64,
    /// Days between two base backups.
    pub base_every_days: u32,
    /// Whether workers write the commands that they take into a journal beside the backups, for a replay after a restore.
    pub journal: bool,
    /// A part of the journal is written so often, in milliseconds: what a worker's machine may take with it.
    pub journal_every_ms: u64,
    /// Hours that the journal is kept.
    pub journal_hours: u32,
    /// What may wait on a worker's machine (below `work_dir`) while the destination is away, in bytes; what comes then is
    /// applied all the same, is not in the journal, and counts as dropped.
    pub journal_spool_max_bytes: u64,
    pub keep: Keep,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            destination: String::new(),
            options: BTreeMap::new(),
            second: String::new(),
            second_options: BTreeMap::new(),
            recipients: Vec::new(),
            identity_path: PathBuf::new(),
            compression_level: 3,
            mongodb_compression: Compression::Zstd,
            programs: PathBuf::new(),
            work_dir: PathBuf::new(),
            wal: false,
            wal_slot: "taskflow_wal".into(),
            wal_every_ms: 30_000,
            wal_behind_max_bytes: 16 << 30,
            base_every_days: 7,
            journal: true,
            journal_every_ms: 5_000,
            journal_hours: 72,
            journal_spool_max_bytes: 1 << 30,
            keep: Keep::default(),
        }
    }
}

/// How a file is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Compression {
    None,
    Gzip,
    Zstd,
}

impl Compression {
    /// The end of a file's name.
    pub fn ending(self) -> &'static str {
        match self {
            Self::None => "",
            Self::Gzip => ".gz",
            Self::Zstd => ".zst",
        }
    }
}

impl Settings {
    /// Whether backups are made at all.
    pub fn is_on(&self) -> bool {
        !self.destination.is_empty()
    }

    /// Where work is done that needs a folder.
    pub fn work_dir(&self) -> PathBuf {
        if self.work_dir.as_os_str().is_empty() {
            std::env::temp_dir().join("taskflow-backup")
        } else {
            self.work_dir.clone()
        }
    }
}
