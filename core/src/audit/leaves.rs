//! The leaves of a batch's events.

use std::borrow::Cow;

use sha2::{Digest, Sha256};

use super::canonical::{Fields, Personal, Salt, leaf};
use super::link::{self, ClassRoot};
use super::{Hash, tree};
use crate::event::{Class, Event, EventId};

/// Chance that the salts of a batch follow from. It goes with the batch's outbox row.
pub type Seed = [u8; 32];

/// An event's leaf, and where it stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Leaf {
    pub class: Class,
    /// Its place in the tree of its class.
    pub place: u32,
    pub salt: Salt,
    pub hash: Hash,
}

/// The leaves of a batch, in the order of its events, and its link.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Leaves {
    pub leaves: Vec<Leaf>,
    pub classes: Vec<ClassRoot>,
}

impl Leaves {
    /// The leaves of events whose salts follow from a seed.
    pub fn of(events: &[Event], seed: &Seed) -> Self {
        Self::salted(events, |index| {
            let mut hash = Sha256::new();
            hash.update(seed);
            hash.update((index as u32).to_be_bytes());
            let mut salt = Salt::default();
            salt.copy_from_slice(&hash.finalize()[..16]);
            salt
        })
    }

    /// The leaf of an event that stands alone.
    pub fn of_one(event: &Event, salt: Salt) -> Self {
        Self::salted(std::slice::from_ref(event), |_| salt)
    }

    fn salted(events: &[Event], salt_of: impl Fn(usize) -> Salt) -> Self {
        let mut buffer = Vec::with_capacity(1024);
        let mut trees: [Vec<Hash>; Class::ALL.len()] = Default::default();
        let mut leaves = Vec::with_capacity(events.len());
        for (index, event) in events.iter().enumerate() {
            let (class, salt) = (event.class(), salt_of(index));
            let data = event.personal().digest(&salt, &mut buffer);
            let hash = leaf(&event.fields(index as u32), &data, &mut buffer);
            let tree = &mut trees[class as usize];
            leaves.push(Leaf { class, place: tree.len() as u32, salt, hash });
            tree.push(hash);
        }
        let classes = Class::ALL.into_iter().zip(&trees).filter_map(|(class, tree)| {
            let of_class = events.iter().filter(|event| event.class() == class);
            let times = of_class.clone().map(|event| event.created_at.timestamp_millis());
            let ids: Vec<EventId> = of_class.map(|event| event.id).collect();
            root_of(class, &ids, tree, times)
        });
        Self { classes: classes.collect(), leaves }
    }

    /// The text of the batch's link; `None` if it has no events.
    pub fn link(&self) -> Option<String> {
        (!self.classes.is_empty()).then(|| link::text(&self.classes))
    }
}

/// What a link tells of the leaves of a class; `None` if there are none.
pub(super) fn root_of(
    class: Class,
    ids: &[EventId],
    leaves: &[Hash],
    times: impl Iterator<Item = i64> + Clone,
) -> Option<ClassRoot> {
    Some(ClassRoot {
        class,
        count: leaves.len() as u32,
        first_ms: times.clone().min()?,
        last_ms: times.max()?,
        root: tree::root(&tree::with_ids(ids, leaves))?,
        only: ids.first().copied().filter(|_| leaves.len() == 1),
    })
}

impl Event {
    /// What stays when what it tells of a person is erased.
    pub fn fields(&self, index: u32) -> Fields<'_> {
        Fields {
            id: self.id,
            kind: &self.kind,
            actor_id: self.actor,
            entity_id: self.entity,
            entity_type: &self.entity_type,
            version: self.version,
            correlation_id: self.correlation,
            command_id: self.command,
            issued_at: self.issued_at.timestamp_millis(),
            created_at: self.created_at.timestamp_millis(),
            class: self.class().as_str(),
            index,
        }
    }

    /// What may be erased.
    pub fn personal(&self) -> Personal<'_> {
        Personal {
            ip_address: self.metadata.ip_address.as_deref(),
            session_id: self.metadata.session_id.as_deref(),
            user_agent: self.metadata.user_agent.as_deref(),
            payload: Cow::Borrowed(self.payload.text()),
        }
    }
}
