//! The checksum of a file that no manifest speaks of: a piece of the log of writes, or of the journal.
//!
//! It lies in the file itself, behind its content, in a frame that everybody who reads zstd skips. So it can't be parted
//! from what it is of: such files are written anew under their names, and copied one by one while that goes on. A file
//! without one was written by an earlier version; the compression's own checksum has to do for it.

use std::io::{self, Read};

use taskflow_core::hex;

use crate::error::{Error, Result};
use crate::write::Tally;

/// A frame to be skipped, with so many bytes behind this head.
const MAGIC: [u8; 4] = 0x184D_2A5A_u32.to_le_bytes();
const LABEL: &[u8; 16] = b"taskflow sha256:";
/// Label, length of the content, digest.
const BODY: usize = 16 + 8 + 32;
const FRAME: usize = 8 + BODY;

fn head() -> [u8; 8] {
    let mut head = [0; 8];
    head[..4].copy_from_slice(&MAGIC);
    head[4..].copy_from_slice(&(BODY as u32).to_le_bytes());
    head
}

/// What is written behind the content that has gone by.
pub(crate) fn frame(content: &Tally) -> Vec<u8> {
    [head().as_slice(), LABEL, &content.bytes.to_le_bytes(), &content.digest()].concat()
}

/// Bytes on their way to the decoder, of which the last are kept.
pub(crate) struct Tail<'r> {
    inner: &'r mut dyn Read,
    kept: Vec<u8>,
}

impl<'r> Tail<'r> {
    pub(crate) fn of(inner: &'r mut dyn Read) -> Self {
        Self { inner, kept: Vec::with_capacity(2 * FRAME) }
    }

    /// Holds the content against the checksum behind it, if there is one. All must have been read.
    pub(crate) fn check(&self, at: &str, content: &Tally) -> Result<()> {
        let Some(frame) = self.kept.len().checked_sub(FRAME).map(|start| &self.kept[start..]) else {
            return Ok(());
        };
        if !frame.starts_with(&head()) {
            return Ok(());
        }
        if frame == self::frame(content).as_slice() {
            return Ok(());
        }
        Err(Error::damaged(format!(
            "{at}: its content has the SHA-256 {}, and {} is noted in it: it was changed since; take the copy in backup.second",
            content.sha256(),
            hex::of(&frame[FRAME - 32..])
        )))
    }
}

impl Read for Tail<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let length = self.inner.read(buffer)?;
        let new = &buffer[..length];
        self.kept.extend_from_slice(&new[length.saturating_sub(FRAME)..]);
        let more = self.kept.len().saturating_sub(FRAME);
        self.kept.drain(..more);
        Ok(length)
    }
}
