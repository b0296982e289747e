//! Whether an answer that was made a while ago still holds.
//!
//! Every batch that commits raises the number of its partition's head by one. The sum of these numbers is the
//! *position* of the database: whoever reads it in the statement that also reads the tasks knows how much that statement
//! has seen. Of two statements the one with the higher position has seen all that the other has, and more.
//!
//! A window follows the batches and remembers, for as far back as it reaches, at which position a user's tasks were
//! changed last. An answer holds if it was made at that position or later. What lies before the window is not known,
//! so older answers never hold: a window may forget at any time, that costs work and never truth.
//!
//! Relied on: rows of `partition_heads` are never removed and their numbers never fall.

use std::collections::{BTreeMap, HashMap, VecDeque};

use crate::cache_tag::{Tag, decode};

/// The sum of the partitions' newest batches.
pub type Position = i64;

/// Marks that are remembered: at ten thousand commands a second of as many users, some ten seconds of them.
const TAGS_MAX: usize = 100_000;

/// What one statement has seen.
#[derive(Debug, Default, Clone)]
pub struct Seen {
    /// Every partition with its newest batch.
    pub heads: BTreeMap<String, i64>,
    /// Batches after those that the window knew, with their marks. `None`: a batch that was written by a version that
    /// makes no marks.
    pub batches: Vec<Option<Vec<u8>>>,
}

/// The changes since a while ago.
#[derive(Debug, Default)]
pub struct Window {
    heads: BTreeMap<String, i64>,
    position: Position,
    /// Nothing is known of changes up to here.
    floor: Position,
    /// When any task was changed last.
    any: Position,
    tags: HashMap<Tag, Position>,
    /// The same in the order of the positions, to forget the oldest first. A tag may be here more than once.
    order: VecDeque<(Tag, Position)>,
}

impl Window {
    /// The newest batch of each partition that the window knows.
    pub fn heads(&self) -> &BTreeMap<String, i64> {
        &self.heads
    }

    /// Takes in what a statement has seen that began after the last one had ended.
    pub fn advance(&mut self, seen: Seen) {
        let position = seen.heads.values().sum();
        let mut missing: i64 = 0;
        let mut complete = self.heads.keys().all(|partition| seen.heads.contains_key(partition));
        for (partition, newest) in &seen.heads {
            match self.heads.get(partition) {
                Some(known) if known <= newest => missing += newest - known,
                _ => complete = false,
            }
        }
        complete &= missing == seen.batches.len() as i64;
        let marks: Option<Vec<Vec<Tag>>> =
            seen.batches.iter().map(|bytes| bytes.as_deref().and_then(decode)).collect();
        self.heads = seen.heads;
        self.position = position;
        match marks {
            Some(marks) if complete => marks.into_iter().flatten().for_each(|tag| self.note(tag)),
            _ => self.forget(),
        }
    }

    fn note(&mut self, tag: Tag) {
        self.any = self.position;
        if self.tags.insert(tag, self.position) == Some(self.position) {
            return;
        }
        self.order.push_back((tag, self.position));
        while self.order.len() > TAGS_MAX
            && let Some((oldest, at)) = self.order.pop_front()
        {
            self.floor = self.floor.max(at);
            if self.tags.get(&oldest) == Some(&at) {
                self.tags.remove(&oldest);
            }
        }
    }

    /// Begins anew: whatever was made before now does not hold.
    fn forget(&mut self) {
        self.tags.clear();
        self.order.clear();
        self.floor = self.position;
        self.any = self.position;
    }

    /// The lowest position at which an answer that depends on a user's tasks holds.
    pub fn tasks_of(&self, tag: Tag) -> Position {
        self.tags.get(&tag).copied().unwrap_or(self.floor).max(self.floor)
    }

    /// The same for an answer that depends on anybody's tasks.
    pub fn all_tasks(&self) -> Position {
        self.any.max(self.floor)
    }
}
