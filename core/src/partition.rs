//! Partitions: which there are, whose commands each has, from which queue, and how their number changes.
//!
//! A change never puts a slot onto a queue that had commands of the old number: the partitions of the new number have
//! queues of another set of names. So what a queue holds is of one number alone, and the old queues can be emptied
//! before the new ones are touched, while publishers go on.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::command::{Command, Priority};
use crate::slot;

/// How the names of all partition queues begin.
pub const QUEUES: &str = "taskflow.commands";
/// Most partitions of one priority: each has a slot at least.
pub const PARTITIONS_MAX: u16 = slot::SLOTS;

/// One partition, with its queue. By name alone it is the same before and after a change of their number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Partition {
    /// For commands of low priority.
    pub low: bool,
    pub index: u16,
    /// Which of the two sets of names its queue is of.
    pub alternate: bool,
}

impl Partition {
    /// The name of its queue.
    pub fn queue(self) -> String {
        let low = if self.low { "low." } else { "" };
        let alternate = if self.alternate { "alt." } else { "" };
        format!("{QUEUES}.{low}{alternate}{:02}", self.index)
    }
}

/// Its name, such as `03` or `low.01`.
impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:02}", if self.low { "low." } else { "" }, self.index)
    }
}

/// Reads a name. Of which set the queue is, only the layout says.
impl FromStr for Partition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (low, digits) = text.strip_prefix("low.").map_or((false, text), |digits| (true, digits));
        let index =
            digits.parse().map_err(|_| format!("{text:?} is no partition; one looks like 03 or low.01"))?;
        Ok(Self { low, index, alternate: false })
    }
}

/// The partitions of one priority.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Side {
    pub partitions: u16,
    pub alternate: bool,
}

/// All partitions, and which slots belong to each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    pub normal: Side,
    pub low: Side,
}

impl Layout {
    /// That of a deployment that was never changed.
    pub fn new(partitions: u16, low_partitions: u16) -> Self {
        let side = |partitions| Side { partitions, alternate: false };
        Self { normal: side(partitions), low: side(low_partitions) }
    }

    /// The one with these numbers. A side whose number changes gets queues of the other names.
    #[must_use]
    pub fn changed_to(self, partitions: u16, low_partitions: u16) -> Self {
        let change = |side: Side, partitions| {
            if side.partitions == partitions { side } else { Side { partitions, alternate: !side.alternate } }
        };
        Self { normal: change(self.normal, partitions), low: change(self.low, low_partitions) }
    }

    pub fn side(&self, low: bool) -> Side {
        if low { self.low } else { self.normal }
    }

    /// The partition of a slot.
    pub fn in_slot(&self, low: bool, slot: u8) -> Partition {
        let side = self.side(low);
        Partition { low, index: u16::from(slot) % side.partitions.max(1), alternate: side.alternate }
    }

    /// The partition that a command goes to.
    pub fn of(&self, command: &Command) -> Partition {
        self.of_subject(command.priority == Priority::Low, command.subject)
    }

    /// The partition of a subject's commands of one priority.
    pub fn of_subject(&self, low: bool, subject: Uuid) -> Partition {
        self.in_slot(low, slot::of(subject))
    }

    /// All partitions, those of normal priority first.
    pub fn all(&self) -> Vec<Partition> {
        [false, true].into_iter().flat_map(|low| self.all_of(low)).collect()
    }

    fn all_of(&self, low: bool) -> impl Iterator<Item = Partition> + use<> {
        let Side { partitions, alternate } = self.side(low);
        (0..partitions).map(move |index| Partition { low, index, alternate })
    }

    /// The partition of this name, if there is one.
    pub fn named(&self, name: &str) -> Option<Partition> {
        self.all().into_iter().find(|partition| partition.to_string() == name)
    }
}

impl fmt::Display for Layout {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({} low)", self.normal.partitions, self.low.partitions)
    }
}

/// How far a change of the number of partitions is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// There is no change.
    Settled,
    /// The slots are bound to the new queues, then unbound from the old ones. Old queues are consumed. A message that
    /// is routed meanwhile may be in both; its receipt makes the second one harmless.
    Binding,
    /// Every slot has its new queue alone. Old queues are consumed until they and the outbox are empty.
    Draining,
    /// Nothing is consumed: the last batches end, the waiting room is moved.
    Stopping,
    /// New queues are consumed. The old ones are deleted.
    Clearing,
}

impl Phase {
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Settled => "settled",
            Self::Binding => "binding",
            Self::Draining => "draining",
            Self::Stopping => "stopping",
            Self::Clearing => "clearing",
        }
    }
}

/// The partitions of a moment: what they are, or what they change from and to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Course {
    /// Raised by every step. A lease is given only to who knows the newest.
    pub step: i64,
    pub phase: Phase,
    pub from: Layout,
    /// Where the slots are bound, from the first step on.
    pub to: Layout,
}

impl Course {
    pub fn settled(step: i64, layout: Layout) -> Self {
        Self { step, phase: Phase::Settled, from: layout, to: layout }
    }

    pub fn is_settled(&self) -> bool {
        self.phase == Phase::Settled
    }

    /// The layout by which commands are applied: in the phase in which nothing is, still the old one.
    pub fn layout(&self) -> Layout {
        match self.phase {
            Phase::Binding | Phase::Draining | Phase::Stopping => self.from,
            Phase::Settled | Phase::Clearing => self.to,
        }
    }

    fn moves(&self, low: bool) -> bool {
        self.from.side(low) != self.to.side(low)
    }

    /// The partitions that may be consumed.
    pub fn consumed(&self) -> Vec<Partition> {
        let mut all = self.layout().all();
        all.retain(|partition| self.phase != Phase::Stopping || !self.moves(partition.low));
        all
    }

    /// The partitions whose queues are given up.
    pub fn leaving(&self) -> Vec<Partition> {
        self.from.all().into_iter().filter(|partition| self.moves(partition.low)).collect()
    }

    /// The partitions whose queues must be there: those that are consumed, and those that take what comes.
    pub fn declared(&self) -> Vec<Partition> {
        let mut all = self.consumed();
        all.extend(self.to.all());
        all.sort();
        all.dedup();
        all
    }

    /// Partitions that are no more after the change, by name.
    pub fn vanishing(&self) -> Vec<String> {
        let stays = |partition: &Partition| self.to.named(&partition.to_string()).is_some();
        self.from.all().iter().filter(|partition| !stays(partition)).map(ToString::to_string).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_known_by_its_name() {
        for low in [false, true] {
            let partition = Partition { low, index: 11, alternate: false };
            assert_eq!(partition.to_string().parse(), Ok(partition));
        }
        let partition = Partition { low: true, index: 1, alternate: false };
        assert_eq!(partition.queue(), "taskflow.commands.low.01");
        assert_eq!(Partition { alternate: true, ..partition }.queue(), "taskflow.commands.low.alt.01");
    }

    #[test]
    fn a_change_never_reuses_a_queue_that_has_old_commands() {
        let phases = [Phase::Binding, Phase::Draining, Phase::Stopping, Phase::Clearing];
        let mut layout = Layout::new(4, 2);
        for (partitions, low) in [(6, 2), (6, 5), (2, 1), (256, 1), (256, 2), (1, 1)] {
            let to = layout.changed_to(partitions, low);
            for phase in phases {
                let course = Course { step: 1, phase, from: layout, to };
                let (consumed, leaving) = (course.consumed(), course.leaving());
                assert!(leaving.iter().all(|old| !to.all().contains(old)), "{course:?}");
                // Of a side that moves, old and new are never consumed at a time.
                for side in [false, true] {
                    let on = |layout: &Layout| {
                        consumed.iter().any(|one| one.low == side && layout.all().contains(one))
                    };
                    let unmoved = layout.side(side) == to.side(side);
                    assert!(unmoved || !(on(&layout) && on(&to)), "{course:?}");
                    assert!(!unmoved || on(&to), "a side that does not move goes on: {course:?}");
                }
                // Every slot is bound to a queue that is there.
                for slot in 0..=255 {
                    assert!(course.declared().contains(&to.in_slot(false, slot)));
                }
            }
            layout = to;
        }
    }

    #[test]
    fn a_change_that_changes_nothing_moves_nothing() {
        let layout = Layout::new(4, 2);
        assert_eq!(layout.changed_to(4, 2), layout);
        assert!(Course::settled(1, layout).leaving().is_empty());
        let course = Course { step: 2, phase: Phase::Draining, from: layout, to: layout.changed_to(2, 2) };
        assert_eq!(course.vanishing(), ["02", "03"]);
        assert_eq!(course.leaving().len(), 4);
    }
}
