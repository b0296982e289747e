//! A file from one place to another, as it lies there: nothing is decrypted for it.

use bytes::Bytes;

use crate::error::{Error, Result};
use crate::keys::{Identities, Recipients};
use crate::manifest::File;
use crate::place::Place;
use crate::progress::Progress;
use crate::read::FileReader;
use crate::settings::Compression;
use crate::write::{FileWriter, Form};

/// Copies `folder/file.path`; what arrives is held against the manifest before it counts.
pub(crate) async fn file(
    from: &Place,
    to: &Place,
    folder: &str,
    file: &File,
    progress: &Progress,
) -> Result<()> {
    // Read as plain bytes: what lies there is its own content.
    let stored = File {
        compression: Compression::None,
        encrypted: false,
        content_bytes: file.bytes,
        content_sha256: file.sha256.clone(),
        ..file.clone()
    };
    let mut reader = FileReader::begin(from, folder, &stored, &Identities::default());
    let form = Form { compression: Compression::None, level: 0, recipients: Recipients::default() };
    let mut writer = FileWriter::begin(to, folder, &file.path, &form)?;
    while let Some(piece) = reader.next().await? {
        progress.check()?;
        progress.add(piece.len() as u64);
        writer.write(Bytes::clone(&piece)).await?;
    }
    let written = writer.finish().await?;
    if (written.bytes, &written.sha256) != (file.bytes, &file.sha256) {
        return Err(Error::damaged(format!("{}/{folder}/{}: the copy differs", to.name(), file.path)));
    }
    Ok(())
}
