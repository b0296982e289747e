//! The journal's records: commands as they came, one behind the other, for a replay after Postgres has gone back in time.

use std::borrow::Cow;

use chrono::{DateTime, Utc};

/// Bytes before a record's body: its length, two times, the priority.
const HEAD: usize = 4 + 8 + 8 + 1;
/// No record is longer: a message has a few megabytes at most.
const LONGEST: usize = 64 << 20;
const NEVER: i64 = i64::MIN;

/// One command as it came.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record<'b> {
    /// When its batch was applied, by the worker's clock: the order of the journal.
    pub at: DateTime<Utc>,
    /// When an intake took it.
    pub accepted_at: Option<DateTime<Utc>>,
    pub low: bool,
    /// The message, untouched.
    pub body: Cow<'b, [u8]>,
}

impl Record<'_> {
    /// Adds it to what is to be written.
    pub fn encode(&self, to: &mut Vec<u8>) {
        let length = (HEAD - 4 + self.body.len()) as u32;
        to.extend_from_slice(&length.to_le_bytes());
        to.extend_from_slice(&self.at.timestamp_micros().to_le_bytes());
        let accepted = self.accepted_at.map_or(NEVER, |at| at.timestamp_micros());
        to.extend_from_slice(&accepted.to_le_bytes());
        to.push(u8::from(self.low));
        to.extend_from_slice(&self.body);
    }

    /// The record at the beginning of some bytes, and how many it takes; `None` where its end is not there yet.
    ///
    /// # Errors
    /// These bytes are no record.
    pub fn decode(bytes: &[u8]) -> Result<Option<(Record<'static>, usize)>, String> {
        let Some((at, length)) = measure(bytes)? else { return Ok(None) };
        let accepted = number(bytes, 12);
        let record = Record {
            at,
            accepted_at: DateTime::from_timestamp_micros(accepted).filter(|_| accepted != NEVER),
            low: bytes[20] != 0,
            body: Cow::Owned(bytes[HEAD..length].to_vec()),
        };
        Ok(Some((record, length)))
    }
}

/// The time of the record at the beginning of some bytes, and how many it takes; `None` where its end is not there yet.
///
/// # Errors
/// These bytes are no record.
pub fn measure(bytes: &[u8]) -> Result<Option<(DateTime<Utc>, usize)>, String> {
    let Some(length) = bytes.first_chunk().map(|head| u32::from_le_bytes(*head)) else { return Ok(None) };
    let length = length as usize + 4;
    if !(HEAD..=LONGEST).contains(&length) {
        return Err(format!("a record of {length} bytes can't be"));
    }
    if bytes.len() < length {
        return Ok(None);
    }
    let at = number(bytes, 4);
    let at = DateTime::from_timestamp_micros(at).ok_or_else(|| format!("{at} is no time"))?;
    Ok(Some((at, length)))
}

fn number(bytes: &[u8], from: usize) -> i64 {
    let bytes = bytes.get(from..).and_then(<[u8]>::first_chunk);
    bytes.map_or(NEVER, |bytes| i64::from_le_bytes(*bytes))
}
