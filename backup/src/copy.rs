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
    // How far the log goes is read before the pieces are looked at, and written behind them: it goes on meanwhile, and
    // the copy must not claim what it lacks.
    let ends = ends(from, folder).await?;
    let (ours, theirs) = (from.files(folder).await?, to.files(folder).await?);
    let by_name: HashMap<&str, &Listed> = theirs.iter().map(|their| (their.name.as_str(), their)).collect();
    let mut copied = 0;
    for one in ours.iter().filter(|one| !one.name.ends_with(archive::POSITION)) {
        // The newest piece still changes, perhaps while it was copied, and the places' clocks are two.
        let same = |their: &&Listed| {
            their.bytes == one.bytes && their.at >= one.at && !one.name.contains(archive::PARTIAL)
        };
        if by_name.get(one.name.as_str()).is_some_and(same) {
            continue;
        }
        copied += u64::from(piece(from, to, folder, one, progress).await?);
    }
    for (path, bytes) in ends {
        if to.find(&path).await?.as_ref() != Some(&bytes) {
            to.put(&path, bytes.into()).await?;
            copied += 1;
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

/// What says how far the log of each cluster goes, by its path.
async fn ends(from: &Place, folder: &str) -> Result<Vec<(String, Bytes)>> {
    let mut ends = Vec::new();
    if folder == archive::FOLDER {
        for system in from.folders(folder).await? {
            let path = format!("{folder}/{system}/{}", archive::POSITION);
            if let Some(bytes) = from.find(&path).await? {
                ends.push((path, bytes));
            }
        }
    }
    Ok(ends)
}

/// Copies one file that no manifest speaks of; `false` where it was removed since it was listed.
async fn piece(from: &Place, to: &Place, folder: &str, one: &Listed, progress: &Progress) -> Result<bool> {
    let listed = |name: &str| File {
        path: name.to_owned(),
        compression: Compression::None,
        encrypted: false,
        bytes: one.bytes,
        sha256: String::new(),
        content_bytes: one.bytes,
        content_sha256: String::new(),
    };
    let gone = |copied: Result<()>| match copied {
        Err(error) if error.trouble == Trouble::Missing => Ok(false),
        copied => copied.map(|()| true),
    };
    if gone(file(from, to, folder, &listed(&one.name), progress).await)? {
        return Ok(true);
    }
    // The newest piece of the log may have become whole meanwhile, under its own name.
    let whole = one.name.replacen(archive::PARTIAL, "", 1);
    if whole == one.name {
        return Ok(false);
    }
    gone(file(from, to, folder, &listed(&whole), progress).await)
}
