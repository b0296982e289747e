//! Events that a restore has set apart: the links of their batches went back with Postgres, and they stand under ids of
//! their own. They join the chain of the system's events, in groups, and are held against it as all others are.

use super::Hash;
use super::leaves::root_of;
use super::link::ClassRoot;
use super::trail::LeafList;
use crate::event::{Class, EventId};

/// The leaf of such an event. `leaf` is the one that it had in its batch; `id` is its own now, since the restore of
/// `epoch` has set it apart at a time (milliseconds since 1970).
pub fn leaf(leaf: &Hash, id: EventId, epoch: i64, at_ms: i64) -> Hash {
    Hash::of(&[&[6], &leaf.0, &id.0, &epoch.to_be_bytes(), &at_ms.to_be_bytes()])
}

/// An event that was set apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Apart {
    pub id: EventId,
    pub class: Class,
    /// In milliseconds since 1970.
    pub created_ms: i64,
    pub leaf: Hash,
}

/// What becomes one link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Group {
    pub classes: Vec<ClassRoot>,
    /// The leaves of each class.
    pub lists: Vec<(Class, LeafList)>,
    /// For each event, in their order, its place in the tree of its class.
    pub places: Vec<u32>,
}

impl Group {
    pub fn of(events: &[Apart]) -> Self {
        let mut group = Self { places: vec![0; events.len()], ..Self::default() };
        for class in Class::ALL {
            let of_class = || events.iter().filter(|event| event.class == class);
            let list = LeafList {
                ids: of_class().map(|event| event.id).collect(),
                leaves: of_class().map(|event| event.leaf).collect(),
            };
            let places = events.iter().zip(&mut group.places).filter(|(event, _)| event.class == class);
            places.zip(0..).for_each(|((_, place), number)| *place = number);
            let times = of_class().map(|event| event.created_ms);
            if let Some(root) = root_of(class, &list.ids, &list.leaves, times) {
                group.classes.push(root);
                group.lists.push((class, list));
            }
        }
        group
    }
}
