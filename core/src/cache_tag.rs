//! What a batch has changed, as short marks beside its number: readers learn from them which cached answers are out of
//! date.
//!
//! A mark stands for one user's tasks (lists, statistics, searches). It is a hash, so two users may share one: then an
//! answer is made anew without need, and that is all.

use std::collections::BTreeSet;

use uuid::Uuid;

/// The mark of a user's tasks. Stored: never change how it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Tag(pub u32);

const BYTES: usize = 4;

impl Tag {
    /// The mark of a user's tasks.
    pub fn of(user: Uuid) -> Self {
        let (high, low) = user.as_u64_pair();
        // splitmix64's finish: ids that count up must not share marks.
        let mut mixed = high.rotate_left(32) ^ low;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        Self((mixed ^ (mixed >> 31)) as u32)
    }
}

/// The marks of the users on whose tasks something changed, as they are stored.
pub fn encode(users: &[Uuid]) -> Vec<u8> {
    let tags: BTreeSet<Tag> = users.iter().map(|user| Tag::of(*user)).collect();
    tags.into_iter().flat_map(|tag| tag.0.to_be_bytes()).collect()
}

/// The marks that were stored; `None` if this is no list of them.
pub fn decode(bytes: &[u8]) -> Option<Vec<Tag>> {
    if !bytes.len().is_multiple_of(BYTES) {
        return None;
    }
    let tags = bytes.chunks_exact(BYTES);
    Some(tags.map(|tag| Tag(tag.iter().fold(0, |number, byte| (number << 8) | u32::from(*byte)))).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_come_back_and_keep_apart() {
        let users: Vec<Uuid> = (0..1_000).map(Uuid::from_u128).collect();
        let tags = decode(&encode(&users)).expect("marks");
        assert_eq!(tags.len(), users.len());
        assert!(users.iter().all(|user| tags.contains(&Tag::of(*user))));
        assert_eq!(decode(&[1, 2, 3]), None);
    }

    #[test]
    fn a_mark_is_the_same_in_every_version() {
        let user = Uuid::from_u128(0x0193_0000_0000_7000_8000_0000_0000_0001);
        assert_eq!(Tag::of(user), Tag(0x1520_b03e));
    }
}
