//! Timelines: a cluster that was restored to a moment begins a new one there, and what the one before went on with is
//! abandoned, though its files lie in the same archive.

use taskflow_core::backup::wal::{Lsn, Segment};

use crate::error::{Error, Result};

/// The way to a timeline: the ones before it, and where each was left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct History {
    pub timeline: u32,
    before: Vec<(u32, Lsn)>,
}

impl History {
    /// Of a timeline alone, where those before it don't matter.
    pub fn alone(timeline: u32) -> Self {
        Self { timeline, before: Vec::new() }
    }

    /// The name of the file that Postgres keeps it in.
    pub fn name(timeline: u32) -> String {
        format!("{timeline:08X}.history")
    }

    /// Reads the file: `1  0/3000110  why`, by tabs, a line for each timeline before.
    pub fn read(timeline: u32, text: &str) -> Result<Self> {
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let read = |line: &str| {
            let mut words = line.split_whitespace();
            Some((words.next()?.parse().ok()?, words.next()?.parse().ok()?))
        };
        let damaged =
            |line: &str| Error::damaged(format!("{}: {line:?} can't be read", Self::name(timeline)));
        let before = lines.map(|line| read(line).ok_or_else(|| damaged(line))).collect::<Result<_>>()?;
        Ok(Self { timeline, before })
    }

    /// Whether those before it don't matter.
    pub fn is_alone(&self) -> bool {
        self.before.is_empty()
    }

    /// Where the timeline before it was left.
    pub fn forked(&self) -> Option<(u32, Lsn)> {
        self.before.last().copied()
    }

    /// Whether what another timeline had before `lsn` belongs to it.
    pub fn holds(&self, timeline: u32, lsn: Lsn) -> bool {
        timeline == self.timeline || self.before.iter().any(|(one, left)| *one == timeline && lsn <= *left)
    }

    /// Whether a file of the log belongs to the way. The file in which a timeline was left is the next one's.
    pub fn has(&self, segment: Segment, size: u64) -> bool {
        let file = |lsn: Lsn| lsn.0 / size.max(1);
        if segment.timeline == self.timeline {
            return self.forked().is_none_or(|(_, left)| segment.number >= file(left));
        }
        let mut begins = 0;
        for (one, left) in &self.before {
            if *one == segment.timeline {
                return (begins..file(*left)).contains(&segment.number);
            }
            begins = file(*left);
        }
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 16 << 20;

    #[test]
    fn a_timeline_has_what_those_before_had_until_they_were_left() {
        let text = "# said by hand\n1\t0/5000110\tno recovery target specified\n\n3\t0/7000000\tbefore 12\n";
        let history = History::read(4, text).unwrap();
        assert_eq!(history.forked(), Some((3, Lsn(0x700_0000))));
        assert!(history.holds(1, Lsn(0x500_0110)) && !history.holds(1, Lsn(0x500_0111)));
        assert!(history.holds(4, Lsn(0x900_0000)) && !history.holds(2, Lsn(0x100_0000)));
        let has = |timeline: u32| -> Vec<u64> {
            (0..10).filter(|number| history.has(Segment { timeline, number: *number }, SIZE)).collect()
        };
        assert_eq!(has(1), [0, 1, 2, 3, 4]);
        assert!(has(2).is_empty());
        assert_eq!(has(3), [5, 6]);
        assert_eq!(has(4), [7, 8, 9]);
        assert!(History::alone(2).has(Segment { timeline: 2, number: 0 }, SIZE));
        assert!(!History::alone(2).has(Segment { timeline: 1, number: 0 }, SIZE));
        assert_eq!(History::name(26), "0000001A.history");
        assert!(History::read(2, "1 nothing").is_err());
    }
}
