//! A backup that is being made. Its manifest is written last; until then nothing takes it for a backup.

use std::collections::BTreeMap;

use bytes::Bytes;
use chrono::{DateTime, Utc};
use taskflow_stores::clock;
use tokio::io::{AsyncRead, AsyncReadExt};

use crate::error::{Error, Result};
use crate::manifest::{self, FORMAT, File, Kind, Manifest, Position, Sum};
use crate::progress::Progress;
use crate::settings::Compression;
use crate::vault::Vault;
use crate::write::FileWriter;

const PIECE: usize = 256 << 10;
/// Of a stream, so much of its end is given back.
const TAIL: usize = 64 << 10;

/// What the manifest will say beside its files.
#[derive(Default)]
pub struct Facts {
    pub server: String,
    pub schema: Option<i64>,
    pub database: String,
    pub position: Position,
    pub needs: Vec<String>,
    pub sums: BTreeMap<String, Sum>,
    pub restored_bytes: u64,
    pub notes: Vec<String>,
    pub restore: Vec<String>,
}

/// A backup on its way.
pub struct Draft<'v> {
    vault: &'v Vault,
    pub id: String,
    kind: Kind,
    begun_at: DateTime<Utc>,
    files: Vec<File>,
    pub progress: Progress,
}

impl<'v> Draft<'v> {
    pub fn begin(vault: &'v Vault, kind: Kind, progress: &Progress) -> Self {
        let begun_at = clock::now();
        let id = manifest::new_id(kind, begun_at, clock::new_id());
        tracing::info!(id, "A backup begins.");
        Self { vault, id, kind, begun_at, files: Vec::new(), progress: progress.clone() }
    }

    /// Begins a file; its name gets the ending of its compression and encryption.
    pub fn file(&self, name: &str, compression: Compression) -> Result<FileWriter> {
        let form = self.vault.form(compression);
        let path = format!("{name}{}", form.ending());
        FileWriter::begin(&self.vault.place, &Vault::folder(&self.id), &path, &form)
    }

    /// A file that is whole becomes a part of the backup.
    pub fn add(&mut self, file: File) {
        self.files.push(file);
    }

    /// Bytes of the content so far.
    pub fn content_bytes(&self) -> u64 {
        self.files.iter().map(|file| file.content_bytes).sum()
    }

    /// A file of what a reader gives; returns the end of it.
    pub async fn stream(
        &mut self,
        name: &str,
        compression: Compression,
        source: &mut (dyn AsyncRead + Send + Unpin),
    ) -> Result<Vec<u8>> {
        let mut writer = self.file(name, compression)?;
        let mut tail = Vec::with_capacity(TAIL + PIECE);
        loop {
            let mut buffer = Vec::with_capacity(PIECE);
            let length = tokio::select! {
                read = source.read_buf(&mut buffer) => read.map_err(|error| Error::io(format!("read {name}"), &error))?,
                () = self.progress.stopped() => 0,
            };
            self.progress.check()?;
            if length == 0 {
                break;
            }
            self.progress.add(length as u64);
            tail.extend_from_slice(&buffer);
            if let Some(more) = tail.len().checked_sub(TAIL) {
                tail.drain(..more);
            }
            writer.write(Bytes::from(buffer)).await?;
        }
        self.files.push(writer.finish().await?);
        Ok(tail)
    }

    /// A small file.
    pub async fn bytes(&mut self, name: &str, compression: Compression, bytes: Vec<u8>) -> Result<()> {
        let mut writer = self.file(name, compression)?;
        writer.write(Bytes::from(bytes)).await?;
        self.files.push(writer.finish().await?);
        Ok(())
    }

    /// Ends the backup: from here on it is one.
    pub async fn finish(self, facts: Facts) -> Result<Manifest> {
        self.progress.check()?;
        let manifest = Manifest {
            format: FORMAT,
            id: self.id,
            kind: self.kind,
            program: env!("CARGO_PKG_VERSION").to_owned(),
            begun_at: self.begun_at,
            ended_at: clock::now(),
            server: facts.server,
            schema: facts.schema,
            database: facts.database,
            position: facts.position,
            needs: facts.needs,
            recipients: self.vault.recipients.names(),
            files: self.files,
            sums: facts.sums,
            restored_bytes: facts.restored_bytes,
            reason: self.vault.reason.clone(),
            notes: facts.notes,
            restore: facts.restore,
            seal: String::new(),
        };
        taskflow_stores::crash::point("backup_sealing");
        let path = format!("{}/{}", Vault::folder(&manifest.id), manifest::NAME);
        self.vault.place.put(&path, manifest.to_bytes()?).await?;
        tracing::info!(id = manifest.id, bytes = manifest.bytes(), "A backup is whole.");
        Ok(manifest)
    }

    /// Removes what is there of a backup that failed. What can't be removed now is by the next prune.
    pub async fn discard(self) {
        let folder = Vault::folder(&self.id);
        if let Err(error) = self.vault.place.remove_folder(&folder, manifest::NAME).await {
            tracing::warn!(%error, id = self.id, "What is left of a backup that failed can't be removed yet.");
        }
    }
}
