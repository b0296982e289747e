//! Merkle trees as RFC 6962 has them: neighbours are joined, and who has no neighbour goes up alone.

use serde::{Deserialize, Serialize};

use super::Hash;
use crate::event::EventId;

/// On which side of a path its next digest stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Side {
    Left,
    Right,
}

/// The way from a leaf to the root: the digests that it is joined with.
pub type Path = Vec<(Side, Hash)>;

fn node(left: &Hash, right: &Hash) -> Hash {
    Hash::of(&[&[1], &left.0, &right.0])
}

/// The level above.
fn joined(level: &[Hash]) -> Vec<Hash> {
    let join = |pair: &[Hash]| match pair {
        [left, right] => node(left, right),
        alone => alone[0],
    };
    level.chunks(2).map(join).collect()
}

/// The root over some leaves; `None` over none.
pub fn root(leaves: &[Hash]) -> Option<Hash> {
    let mut level = joined(leaves);
    while level.len() > 1 {
        level = joined(&level);
    }
    // One leaf is its own root.
    if leaves.len() == 1 { leaves.first().copied() } else { level.first().copied() }
}

/// The path of a leaf; `None` if there is no such leaf.
pub fn path(leaves: &[Hash], mut index: usize) -> Option<Path> {
    if index >= leaves.len() {
        return None;
    }
    let mut path = Path::new();
    let mut level = leaves.to_vec();
    while level.len() > 1 {
        let neighbour = index ^ 1;
        if let Some(hash) = level.get(neighbour) {
            path.push((if neighbour < index { Side::Left } else { Side::Right }, *hash));
        }
        level = joined(&level);
        index /= 2;
    }
    Some(path)
}

/// The root to which a path leads from a leaf.
pub fn climb(leaf: Hash, path: &Path) -> Hash {
    path.iter().fold(leaf, |below, (side, hash)| match side {
        Side::Left => node(hash, &below),
        Side::Right => node(&below, hash),
    })
}

/// The leaves of a class of a batch. Of several, one more stands at the end, over their ids: so whoever has the list of
/// them can't be told false names.
pub fn with_ids(ids: &[EventId], leaves: &[Hash]) -> Vec<Hash> {
    let mut all = leaves.to_vec();
    if leaves.len() > 1 {
        let ids: Vec<u8> = ids.iter().flat_map(|id| id.0).collect();
        all.push(Hash::of(&[&[5], &ids]));
    }
    all
}
