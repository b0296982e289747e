//! Places in Postgres's log of writes (WAL), and the names of its files.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A place in the log: a count of bytes, written as Postgres writes it (`16/B374D848`).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

impl FromStr for Lsn {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let parse = |half: &str| {
            ((1..=8).contains(&half.len()) && half.bytes().all(|byte| byte.is_ascii_hexdigit()))
                .then(|| u64::from_str_radix(half, 16).ok())
                .flatten()
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Self((parse(high)? << 32) | parse(low)?)))
            .ok_or_else(|| format!("{text:?} is no place in the log of writes; an example is 16/B374D848"))
    }
}

impl Serialize for Lsn {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Lsn {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// One file of the log: which timeline, and which of its pieces.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Segment {
    pub timeline: u32,
    /// Counted from the log's beginning.
    pub number: u64,
}

impl Segment {
    /// The file that holds the byte at `lsn`. `size` is the server's `wal_segment_size`, in bytes.
    pub fn holding(timeline: u32, lsn: Lsn, size: u64) -> Self {
        Self { timeline, number: lsn.0 / size.max(1) }
    }

    /// The file's name: 24 hexadecimal digits.
    pub fn name(self, size: u64) -> String {
        let a_log = per_log(size);
        format!("{:08X}{:08X}{:08X}", self.timeline, self.number / a_log, self.number % a_log)
    }

    /// Reads a name; `None` for whatever else lies there.
    pub fn from_name(name: &str, size: u64) -> Option<Self> {
        if name.len() != 24 || !name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'A'..=b'F')) {
            return None;
        }
        let part = |from: usize| u64::from_str_radix(&name[from..from + 8], 16).ok();
        let (timeline, log, piece) = (part(0)?, part(8)?, part(16)?);
        let a_log = per_log(size);
        (piece < a_log).then_some(Self { timeline: timeline as u32, number: log * a_log + piece })
    }

    /// Where it begins.
    pub fn start(self, size: u64) -> Lsn {
        Lsn(self.number * size)
    }

    /// Where the next one begins.
    pub fn end(self, size: u64) -> Lsn {
        Lsn((self.number + 1) * size)
    }
}

/// Files with one middle part of the name.
fn per_log(size: u64) -> u64 {
    0x1_0000_0000 / size.clamp(1 << 20, 1 << 30)
}

/// Which numbers are missing between `from` and the newest one that is there, as ranges that include both ends. A
/// timeline's files go on with the numbers of the one before, so timelines don't matter here.
pub fn gaps(from: u64, there: impl IntoIterator<Item = u64>) -> Vec<(u64, u64)> {
    let mut numbers: Vec<u64> = there.into_iter().filter(|number| *number >= from).collect();
    numbers.sort_unstable();
    numbers.dedup();
    let mut next = from;
    let mut gaps = Vec::new();
    for number in numbers {
        if number > next {
            gaps.push((next, number - 1));
        }
        next = number + 1;
    }
    gaps
}
