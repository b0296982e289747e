//! A file from one place to another, as it lies there: nothing is decrypted for it.

use std::collections::HashMap;

use bytes::Bytes;

use crate::error::{Error, Result, Trouble};
use crate::keys::{Identities, Recipients};
use crate::manifest::File;
use crate::place::{Listed, Place};
use crate::postgres::archive;
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
    let form =
        Form { compression: Compression::None, level: 0, recipients: Recipients::default(), checksum: false };
    let mut writer = FileWriter::begin(to, folder, &file.path, &form)?;
    while let Some(piece) = reader.next().await? {
        progress.check()?;
        progress.add(piece.len() as u64);
        writer.write(Bytes::clone(&piece)).await?;
    }
    let written = writer.finish().await?;
    if !file.sha256.is_empty() && (written.bytes, &written.sha256) != (file.bytes, &file.sha256) {
        return Err(Error::damaged(format!("{}/{folder}/{}: the copy differs", to.name(), file.path)));
    }
    Ok(())
}

/// Brings what no manifest speaks of, the log of writes and the journal, in the second place up to that in the first;
/// returns how many files were copied.
///
/// What the first place no longer has stays: each place is pruned by what lies in it, and a first place that was lost
/// must not take the copies with it.
pub(crate) async fn log(from: &Place, to: &Place, folder: &str, progress: &Progress) -> Result<u64> {
    let (ours, theirs) = (from.files(folder).await?, to.files(folder).await?);
    let by_name: HashMap<&str, &Listed> = theirs.iter().map(|their| (their.name.as_str(), their)).collect();
    let mut copied = 0;
    // What says how far the log goes comes last.
    let (ends, pieces): (Vec<_>, Vec<_>) = ours.iter().partition(|one| one.name.ends_with(archive::POSITION));
    for one in pieces.into_iter().chain(ends) {
        let same = |their: &&Listed| their.bytes == one.bytes && their.at >= one.at;
        if by_name.get(one.name.as_str()).is_some_and(same) {
            continue;
        }
        // No manifest speaks of it; it may have been replaced or removed since it was listed.
        let listed = File {
            path: one.name.clone(),
            compression: Compression::None,
            encrypted: false,
            bytes: one.bytes,
            sha256: String::new(),
            content_bytes: one.bytes,
            content_sha256: String::new(),
        };
        match file(from, to, folder, &listed, progress).await {
            Err(error) if error.trouble == Trouble::Missing => {}
            done => {
                done?;
                copied += 1;
            }
        }
    }
    // Only a piece that has become whole goes.
    for piece in theirs.iter().filter(|their| their.name.contains(archive::PARTIAL)) {
        let whole = piece.name.replacen(archive::PARTIAL, "", 1);
        if ours.iter().any(|one| one.name == whole) {
            to.remove(&format!("{folder}/{}", piece.name)).await?;
        }
    }
    Ok(copied)
}
