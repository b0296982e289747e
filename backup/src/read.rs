//! One file on its way out of a place: hashed, decrypted, decompressed, hashed again. What is not as the manifest says
//! is an error that names the file; the content before it may have been handed out by then, so whoever must not act on
//! half a file checks it first ([`check`]).

use std::io::{self, BufReader, Read};

use bytes::Bytes;
use futures_util::StreamExt;
use object_store::ObjectStoreExt;
use tokio::sync::mpsc;

use crate::checksum::Tail;
use crate::error::{Error, Result, Trouble};
use crate::keys::Identities;
use crate::manifest::File;
use crate::place::Place;
use crate::progress::Progress;
use crate::settings::Compression;
use crate::write::{SEALED, Tally};

const PIECE: usize = 256 << 10;
const WAITING: usize = 4;

/// A file that is being read.
pub struct FileReader {
    output: mpsc::Receiver<Result<Bytes>>,
}

impl FileReader {
    /// Begins to read a file that no manifest speaks of: its own name says how it is kept.
    pub fn unlisted(place: &Place, folder: &str, path: &str, identities: &Identities) -> Self {
        let inner = path.strip_suffix(SEALED);
        let (encrypted, inner) = (inner.is_some(), inner.unwrap_or(path));
        let compression =
            [Compression::Zstd, Compression::Gzip].into_iter().find(|one| inner.ends_with(one.ending()));
        let file = File {
            path: path.to_owned(),
            compression: compression.unwrap_or(Compression::None),
            encrypted,
            bytes: 0,
            sha256: String::new(),
            content_bytes: 0,
            content_sha256: String::new(),
        };
        Self::begin(place, folder, &file, identities)
    }

    /// Begins to read `folder/file.path`; its content comes as it went in.
    pub fn begin(place: &Place, folder: &str, file: &File, identities: &Identities) -> Self {
        let (stored, input) = mpsc::channel(WAITING);
        let (content, output) = mpsc::channel(WAITING);
        let (place, at) = (place.clone(), format!("{folder}/{}", file.path));
        tokio::spawn(fetch(place, at.clone(), stored));
        let (file, identities) = (file.clone(), identities.clone());
        tokio::task::spawn_blocking(move || {
            let raw = Raw { input, piece: Bytes::new(), tally: Tally::default(), failed: None };
            if let Err(error) = decode(raw, &at, &file, &identities, &content) {
                let _ = content.blocking_send(Err(error));
            }
        });
        Self { output }
    }

    /// The next piece of the content; `None` at its end, when all of it was as the manifest says.
    pub async fn next(&mut self) -> Result<Option<Bytes>> {
        self.output.recv().await.transpose()
    }

    /// All of it, for what is small.
    pub async fn whole(mut self) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        while let Some(piece) = self.next().await? {
            all.extend_from_slice(&piece);
        }
        Ok(all)
    }
}

/// Reads a file and holds it against its manifest; with identities, what is in it too.
pub async fn check(
    place: &Place,
    folder: &str,
    file: &File,
    identities: Option<&Identities>,
    progress: &Progress,
) -> Result<()> {
    let at = format!("{folder}/{}", file.path);
    let size = place.size(&at).await?;
    if size != file.bytes {
        return Err(Error::damaged(format!(
            "{at} has {size} bytes and not the {} of its manifest: it was cut off or changed; {OTHER}",
            file.bytes
        )));
    }
    if let Some(identities) = identities {
        let mut reader = FileReader::begin(place, folder, file, identities);
        while let Some(piece) = reader.next().await? {
            progress.check()?;
            progress.add(piece.len() as u64);
        }
        return Ok(());
    }
    let mut tally = Tally::default();
    let mut stream = place.store().get(&place.path(&at)?).await.map_err(place.failed(&at))?.into_stream();
    while let Some(piece) = stream.next().await {
        let piece = piece.map_err(place.failed(&at))?;
        progress.check()?;
        progress.add(piece.len() as u64);
        tally.add(&piece);
    }
    must_be(&at, file, &tally)
}

/// What can be done about a file that is damaged.
const OTHER: &str = "take the copy in the other place, if there is one, or another backup";

fn must_be(at: &str, file: &File, tally: &Tally) -> Result<()> {
    if file.sha256.is_empty() {
        // No manifest speaks of it: its checksum goes with its content, or the compression's own has to do.
        return Ok(());
    }
    if tally.bytes != file.bytes {
        return Err(Error::damaged(format!(
            "{at} has {} bytes and not the {} of its manifest: it was cut off or changed; {OTHER}",
            tally.bytes, file.bytes
        )));
    }
    let found = tally.sha256();
    if found != file.sha256 {
        return Err(Error::damaged(format!(
            "{at}: its SHA-256 is {found}, its manifest says {}: it was changed since; {OTHER}",
            file.sha256
        )));
    }
    Ok(())
}

async fn fetch(place: Place, at: String, output: mpsc::Sender<Result<Bytes>>) {
    let read = async {
        let mut stream = place.store().get(&place.path(&at)?).await.map_err(place.failed(&at))?.into_stream();
        while let Some(piece) = stream.next().await {
            if output.send(Ok(piece.map_err(place.failed(&at))?)).await.is_err() {
                // Nobody reads on.
                break;
            }
        }
        Ok(())
    };
    if let Err(error) = read.await {
        let _ = output.send(Err(error)).await;
    }
}

/// The bytes as they lie there.
struct Raw {
    input: mpsc::Receiver<Result<Bytes>>,
    piece: Bytes,
    tally: Tally,
    failed: Option<Error>,
}

impl Read for Raw {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() {
            match self.input.blocking_recv() {
                None => return Ok(0),
                Some(Ok(piece)) => {
                    self.tally.add(&piece);
                    self.piece = piece;
                }
                Some(Err(error)) => {
                    let text = error.to_string();
                    self.failed = Some(error);
                    return Err(io::Error::other(text));
                }
            }
        }
        let taken = buffer.len().min(self.piece.len());
        buffer[..taken].copy_from_slice(&self.piece.split_to(taken));
        Ok(taken)
    }
}

/// What reads the content, over the bytes as they lie there.
fn decode(
    mut raw: Raw,
    at: &str,
    file: &File,
    identities: &Identities,
    output: &mpsc::Sender<Result<Bytes>>,
) -> Result<()> {
    let read = read_all(&mut raw, at, file, identities, output);
    if let Err(error) = &read
        && error.trouble == Trouble::Stopped
    {
        return read.map(|_| ());
    }
    if let Some(error) = raw.failed.take() {
        return Err(error);
    }
    // The rest, so that a damaged file is called that and not by what its damage did to the decoder.
    let mut buffer = vec![0; PIECE];
    loop {
        match raw.read(&mut buffer) {
            Ok(0) => break,
            Ok(_) => {}
            Err(_) => {
                return Err(raw
                    .failed
                    .take()
                    .unwrap_or_else(|| Error::failed(format!("{at}: it can't be read"))));
            }
        }
    }
    must_be(at, file, &raw.tally)?;
    let content = read?;
    if !file.sha256.is_empty()
        && (content.bytes, content.sha256()) != (file.content_bytes, file.content_sha256.clone())
    {
        return Err(Error::damaged(format!("{at}: what is in it is not what its manifest says; {OTHER}")));
    }
    Ok(())
}

fn read_all(
    raw: &mut Raw,
    at: &str,
    file: &File,
    identities: &Identities,
    output: &mpsc::Sender<Result<Bytes>>,
) -> Result<Tally> {
    if !file.encrypted {
        return unpack(raw, at, file.compression, output);
    }
    if identities.is_empty() {
        return Err(Error::new(
            Trouble::Key,
            format!("{at} is encrypted; set backup.identity_path to the age identity that opens it"),
        ));
    }
    let broken = |error: age::DecryptError| match error {
        age::DecryptError::NoMatchingKeys => Error::new(
            Trouble::Key,
            format!(
                "{at}: none of the identities in backup.identity_path opens it; the manifest names its recipients"
            ),
        ),
        other => Error::damaged(format!("{at}: it can't be decrypted: {other}")),
    };
    let decryptor = age::Decryptor::new_buffered(BufReader::new(raw)).map_err(broken)?;
    let mut opened = decryptor.decrypt(identities.all()).map_err(broken)?;
    unpack(&mut opened, at, file.compression, output)
}

fn unpack(
    input: &mut dyn Read,
    at: &str,
    compression: Compression,
    output: &mpsc::Sender<Result<Bytes>>,
) -> Result<Tally> {
    let broken =
        |error: io::Error| Error::damaged(format!("{at}: it can't be decompressed or decrypted: {error}"));
    let mut tail = Tail::of(input);
    let mut reader: Box<dyn Read + '_> = match compression {
        Compression::None => Box::new(&mut tail),
        Compression::Gzip => Box::new(flate2::read::MultiGzDecoder::new(&mut tail)),
        Compression::Zstd => Box::new(zstd::stream::read::Decoder::new(&mut tail).map_err(broken)?),
    };
    let mut tally = Tally::default();
    loop {
        let mut buffer = vec![0; PIECE];
        let length = reader.read(&mut buffer).map_err(broken)?;
        if length == 0 {
            drop(reader);
            if compression == Compression::Zstd {
                tail.check(at, &tally)?;
            }
            return Ok(tally);
        }
        buffer.truncate(length);
        tally.add(&buffer);
        output
            .blocking_send(Ok(Bytes::from(buffer)))
            .map_err(|_| Error::new(Trouble::Stopped, "nobody reads on"))?;
    }
}
