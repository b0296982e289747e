//! One file on its way into a place: hashed, compressed, encrypted, hashed again, uploaded in parts. Memory is bounded:
//! a few parts, whatever the file's size.

use std::io::{self, Write};

use bytes::Bytes;
use futures_util::stream::{FuturesUnordered, StreamExt};
use object_store::{ObjectStoreExt, PutPayload};
use sha2::{Digest, Sha256};
use taskflow_core::hex;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::checksum;
use crate::error::{Error, Result, Trouble};
use crate::keys::Recipients;
use crate::manifest::File;
use crate::place::Place;
use crate::settings::Compression;

/// The first parts' size; more than the five megabytes that object stores ask for.
const PART: usize = 8 << 20;
/// After so many parts they become larger: object stores take ten thousand at most.
const GROW_AFTER: usize = 1_000;
/// Parts of one file on their way at once.
const AT_ONCE: usize = 2;
/// Pieces that wait to be compressed.
const WAITING: usize = 4;

/// The end of an encrypted file's name.
pub(crate) const SEALED: &str = ".age";

/// How files are written.
#[derive(Clone)]
pub struct Form {
    pub compression: Compression,
    /// Of zstd.
    pub level: i32,
    pub recipients: Recipients,
    /// The SHA-256 of the content goes with it, for files that no manifest speaks of ([`checksum`]). Only with zstd.
    pub checksum: bool,
}

impl Form {
    /// What is behind a file's own name.
    pub fn ending(&self) -> String {
        let sealed = if self.recipients.is_empty() { "" } else { SEALED };
        format!("{}{sealed}", self.compression.ending())
    }
}

enum Piece {
    Bytes(Bytes),
    End,
}

enum Part {
    More(Bytes),
    Last(Bytes),
}

/// A file that is being written. Dropped before [`FileWriter::finish`], nothing of it is left under its name.
pub struct FileWriter {
    input: mpsc::Sender<Piece>,
    work: JoinHandle<Result<File>>,
}

impl FileWriter {
    /// Begins a file at `folder/path`.
    pub fn begin(place: &Place, folder: &str, path: &str, form: &Form) -> Result<Self> {
        let (input, pieces) = mpsc::channel(WAITING);
        let (parts, uploads) = mpsc::channel(1);
        let encryptor = form.recipients.encryptor()?;
        let how = form.clone();
        let encoder = tokio::task::spawn_blocking(move || encode(pieces, parts, &how, encryptor));
        let compression = form.compression;
        let (place, at, path) = (place.clone(), format!("{folder}/{path}"), path.to_owned());
        let work = tokio::spawn(async move {
            let uploaded = upload(&place, &at, uploads).await;
            let encoded = encoder.await.map_err(|error| Error::failed(format!("{at}: {error}")))?;
            // An upload that failed has ended the encoder too.
            uploaded?;
            let (stored, content) = encoded?;
            Ok(File {
                path,
                compression,
                encrypted: !content.plain,
                bytes: stored.bytes,
                sha256: stored.sha256(),
                content_bytes: content.tally.bytes,
                content_sha256: content.tally.sha256(),
            })
        });
        Ok(Self { input, work })
    }

    /// Adds to the file; waits while its place is slower than its source.
    pub async fn write(&mut self, bytes: Bytes) -> Result<()> {
        if self.input.send(Piece::Bytes(bytes)).await.is_err() {
            return Err(self.cause().await);
        }
        Ok(())
    }

    /// Ends the file: it lies there whole.
    pub async fn finish(self) -> Result<File> {
        // Whoever has stopped taking pieces says why.
        let _ = self.input.send(Piece::End).await;
        self.work.await.map_err(|error| Error::failed(error.to_string()))?
    }

    async fn cause(&mut self) -> Error {
        match (&mut self.work).await {
            Ok(Err(error)) => error,
            Ok(Ok(file)) => Error::failed(format!("{}: it ended too early", file.path)),
            Err(error) => Error::failed(error.to_string()),
        }
    }
}

/// Bytes that have gone by, and their digest.
#[derive(Default)]
pub(crate) struct Tally {
    pub bytes: u64,
    hash: Sha256,
}

impl Tally {
    pub(crate) fn add(&mut self, bytes: &[u8]) {
        self.bytes += bytes.len() as u64;
        self.hash.update(bytes);
    }

    pub(crate) fn sha256(&self) -> String {
        hex::of(&self.digest())
    }

    pub(crate) fn digest(&self) -> [u8; 32] {
        self.hash.clone().finalize().into()
    }
}

struct Content {
    tally: Tally,
    plain: bool,
}

/// What is encoded, cut into parts.
struct Parts {
    tally: Tally,
    buffer: Vec<u8>,
    sent: usize,
    output: mpsc::Sender<Part>,
}

impl Parts {
    /// How long the part is that is being filled.
    fn size(&self) -> usize {
        PART * (1 + self.sent / GROW_AFTER)
    }
}

impl Write for Parts {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(self.size() - self.buffer.len());
        let bytes = &bytes[..taken];
        self.tally.add(bytes);
        self.buffer.extend_from_slice(bytes);
        if self.buffer.len() >= self.size() {
            let part = Bytes::from(std::mem::take(&mut self.buffer));
            self.sent += 1;
            self.output
                .blocking_send(Part::More(part))
                .map_err(|_| io::Error::other("the upload has ended"))?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Sealed {
    Plain(Parts),
    Age(Box<age::stream::StreamWriter<Parts>>),
}

impl Write for Sealed {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(writer) => writer.write(bytes),
            Self::Age(writer) => writer.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

enum Packed {
    Plain(Sealed),
    Gzip(flate2::write::GzEncoder<Sealed>),
    Zstd(zstd::stream::write::Encoder<'static, Sealed>),
}

impl Packed {
    fn new(compression: Compression, level: i32, inner: Sealed) -> io::Result<Self> {
        Ok(match compression {
            Compression::None => Self::Plain(inner),
            Compression::Gzip => {
                Self::Gzip(flate2::write::GzEncoder::new(inner, flate2::Compression::default()))
            }
            Compression::Zstd => {
                let mut encoder = zstd::stream::write::Encoder::new(inner, level.clamp(1, 19))?;
                encoder.include_checksum(true)?;
                Self::Zstd(encoder)
            }
        })
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Plain(writer) => writer.write_all(bytes),
            Self::Gzip(writer) => writer.write_all(bytes),
            Self::Zstd(writer) => writer.write_all(bytes),
        }
    }

    fn finish(self) -> io::Result<Sealed> {
        match self {
            Self::Plain(writer) => Ok(writer),
            Self::Gzip(writer) => writer.finish(),
            Self::Zstd(writer) => writer.finish(),
        }
    }
}

fn encode(
    mut pieces: mpsc::Receiver<Piece>,
    output: mpsc::Sender<Part>,
    form: &Form,
    encryptor: Option<age::Encryptor>,
) -> Result<(Tally, Content)> {
    let failed = |error: io::Error| Error::failed(format!("compress or encrypt: {error}"));
    let plain = encryptor.is_none();
    let parts = Parts { tally: Tally::default(), buffer: Vec::new(), sent: 0, output };
    let sealed = match encryptor {
        None => Sealed::Plain(parts),
        Some(encryptor) => Sealed::Age(Box::new(encryptor.wrap_output(parts).map_err(failed)?)),
    };
    let mut packed = Packed::new(form.compression, form.level, sealed).map_err(failed)?;
    let mut tally = Tally::default();
    loop {
        match pieces.blocking_recv() {
            Some(Piece::Bytes(bytes)) => {
                tally.add(&bytes);
                packed.write_all(&bytes).map_err(failed)?;
            }
            Some(Piece::End) => break,
            // The source has failed and says so itself.
            None => return Err(Error::new(Trouble::Stopped, "its source has ended before its end")),
        }
    }
    let mut sealed = packed.finish().map_err(failed)?;
    if form.checksum && form.compression == Compression::Zstd {
        sealed.write_all(&checksum::frame(&tally)).map_err(failed)?;
    }
    let mut parts = match sealed {
        Sealed::Plain(parts) => parts,
        Sealed::Age(writer) => writer.finish().map_err(failed)?,
    };
    let last = Part::Last(Bytes::from(std::mem::take(&mut parts.buffer)));
    parts.output.blocking_send(last).map_err(|_| Error::failed("the upload has ended"))?;
    Ok((parts.tally, Content { tally, plain }))
}

/// Takes the parts to their place. Without a last one, nothing shows under the name.
async fn upload(place: &Place, at: &str, mut parts: mpsc::Receiver<Part>) -> Result<()> {
    let path = place.path(at)?;
    let first = match parts.recv().await {
        None => return Ok(()),
        // A small file is one request.
        Some(Part::Last(bytes)) => {
            place.store().put(&path, PutPayload::from(bytes)).await.map_err(place.failed(at))?;
            return Ok(());
        }
        Some(Part::More(bytes)) => bytes,
    };
    let mut upload = place.store().put_multipart(&path).await.map_err(place.failed(at))?;
    let mut on_their_way = FuturesUnordered::new();
    on_their_way.push(upload.put_part(PutPayload::from(first)));
    let sent = async {
        loop {
            while on_their_way.len() >= AT_ONCE {
                on_their_way.next().await.transpose().map_err(place.failed(at))?;
            }
            let part = parts.recv().await;
            taskflow_stores::crash::point("backup_part");
            match part {
                Some(Part::More(bytes)) => on_their_way.push(upload.put_part(PutPayload::from(bytes))),
                Some(Part::Last(bytes)) => {
                    if !bytes.is_empty() {
                        on_their_way.push(upload.put_part(PutPayload::from(bytes)));
                    }
                    break;
                }
                None => {
                    return Err(Error::new(
                        Trouble::Stopped,
                        format!("{at}: its source has ended before its end"),
                    ));
                }
            }
        }
        while let Some(one) = on_their_way.next().await {
            one.map_err(place.failed(at))?;
        }
        Ok(())
    };
    let sent = sent.await;
    drop(on_their_way);
    match sent {
        Ok(()) => {
            upload.complete().await.map_err(place.failed(at))?;
            Ok(())
        }
        Err(error) => {
            // What came of it is found and removed by the next prune, if this fails too.
            let _ = upload.abort().await;
            Err(error)
        }
    }
}
