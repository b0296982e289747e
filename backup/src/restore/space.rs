//! Room, looked at before anything is written.

use std::path::Path;

use crate::error::{Error, Result, Trouble};

/// What a restore needs beyond the data itself: the log of writes, sorting for indexes.
const MARGIN: f64 = 1.2;
/// Bytes below which a disk counts as full: a file of the log of writes does not fit.
const FULL: u64 = 16 * 1024 * 1024;

/// Bytes that are free where a folder lies.
pub fn free(folder: &Path) -> Result<u64> {
    let stat = nix::sys::statvfs::statvfs(folder)
        .map_err(|error| Error::failed(format!("look at the room of {}: {error}", folder.display())))?;
    Ok(stat.blocks_available() * stat.fragment_size())
}

/// Says that there is not enough before the disk does.
pub fn must_fit(folder: &Path, bytes: u64) -> Result<()> {
    must_have(&folder.display().to_string(), free(folder)?, bytes)
}

/// What broke where a disk is full by now, said as what it is: programs that meet a full disk often tell something else.
pub fn explain(error: Error, folder: &Path) -> Error {
    match free(folder) {
        Ok(free) if free < FULL => Error::new(
            Trouble::Full,
            format!(
                "{} has only {} MiB free by now: make room, and restore again ({})",
                folder.display(),
                free >> 20,
                error.text
            ),
        ),
        _ => error,
    }
}

/// The same for a place of which somebody has told how much is free.
pub fn must_have(place: &str, free: u64, bytes: u64) -> Result<()> {
    let wanted = (bytes as f64 * MARGIN) as u64;
    if free < wanted {
        return Err(Error::new(
            Trouble::Full,
            format!(
                "{place} has {} MiB free and the restore takes about {}: make room, or restore elsewhere",
                free >> 20,
                wanted >> 20
            ),
        ));
    }
    Ok(())
}
