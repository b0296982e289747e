//! Holds the events that are there against the batches that the chains vouch for.
//!
//! First all events of a stretch go through [`Trail::see`], in any order; most batches are found whole by their roots
//! alone. What is not whole is a [`Suspect`]: with the list of its leaves, [`Suspect::explain`] names the events.

use std::collections::{BTreeSet, HashMap};

use serde::Serialize;
use uuid::Uuid;

use super::chain::Batch;
use super::finding::{Finding, Kind};
use super::link::ClassRoot;
use super::{Hash, tree};
use crate::event::{Class, EventId};

/// Where an event says that it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub partition: String,
    pub number: i64,
    pub class: Class,
    /// Its place in the tree of its class; `None` of an event from before there were trees.
    pub leaf: Option<u32>,
}

/// An event as the trail has it.
#[derive(Debug, Clone)]
pub struct Seen {
    pub id: EventId,
    pub place: Place,
    /// In milliseconds since 1970.
    pub created_ms: i64,
    /// Its leaf, made anew; `None` if the event has not the form in which events are written.
    pub hash: Option<Hash>,
    pub erased: bool,
    /// Whether a restore has set it apart: its place is then in the chain of the system's events.
    pub undone: bool,
    pub entity: Uuid,
    pub actor: Uuid,
}

/// What was looked at.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Counts {
    pub batches: u64,
    /// Events that are as they were sealed; those that were erased or undone since are counted too.
    pub proved: u64,
    pub erased: u64,
    /// Events that are gone, and may be by their class and age.
    pub expired: u64,
    /// Events from before there were seals: nothing can be said about them.
    pub unsealed: u64,
    /// Events of what a restore has undone, set apart with a mark.
    pub undone: u64,
}

impl Counts {
    pub fn add(&mut self, other: &Self) {
        self.batches += other.batches;
        self.proved += other.proved;
        self.erased += other.erased;
        self.expired += other.expired;
        self.unsealed += other.unsealed;
        self.undone += other.undone;
    }
}

/// An event on its place in the tree of its class.
type Found = (u32, EventId, Option<Hash>);

struct Open {
    batch: Batch,
    /// For each of the batch's classes.
    found: Vec<Vec<Found>>,
    /// Events of classes that it has not, or without a place.
    odd: Vec<EventId>,
}

/// A stretch of the trail.
#[derive(Default)]
pub struct Trail {
    open: HashMap<String, HashMap<i64, Open>>,
}

impl Trail {
    pub fn new(batches: Vec<Batch>) -> Self {
        let mut trail = Self::default();
        for batch in batches {
            let found = vec![Vec::new(); batch.classes.len()];
            let of_partition = trail.open.entry(batch.partition.clone()).or_default();
            of_partition.insert(batch.number, Open { batch, found, odd: Vec::new() });
        }
        trail
    }

    /// Takes an event; gives it back if it belongs to none of the batches.
    pub fn see(&mut self, seen: Seen) -> Option<Seen> {
        let place = &seen.place;
        let Some(open) = self.open.get_mut(&place.partition).and_then(|open| open.get_mut(&place.number))
        else {
            return Some(seen);
        };
        let class = open.batch.classes.iter().position(|root| root.class == place.class);
        match (class, place.leaf) {
            (Some(class), Some(leaf)) => open.found[class].push((leaf, seen.id, seen.hash)),
            _ => open.odd.push(seen.id),
        }
        None
    }

    /// Judges what was seen. `past` says before which time events of a class may be gone.
    pub fn end(self, past: impl Fn(Class) -> i64) -> Judged {
        let (mut counts, mut suspects) = (Counts::default(), Vec::new());
        let mut present: HashMap<String, i64> = HashMap::new();
        let mut open: Vec<Open> = self.open.into_values().flat_map(HashMap::into_values).collect();
        open.sort_by(|one, other| {
            (&one.batch.partition, one.batch.number).cmp(&(&other.batch.partition, other.batch.number))
        });
        for one in open {
            counts.batches += 1;
            let mut suspect = Suspect {
                partition: one.batch.partition,
                number: one.batch.number,
                classes: Vec::new(),
                odd: one.odd,
            };
            if one.found.iter().any(|found| !found.is_empty()) {
                let newest = present.entry(suspect.partition.clone()).or_insert(suspect.number);
                *newest = suspect.number.max(*newest);
            }
            for (root, mut found) in one.batch.classes.into_iter().zip(one.found) {
                found.sort_by_key(|(leaf, id, _)| (*leaf, *id));
                if found.is_empty() && root.first_ms < past(root.class) {
                    counts.expired += u64::from(root.count);
                } else if is_whole(&root, &found) {
                    counts.proved += u64::from(root.count);
                } else {
                    suspect.classes.push((root, found));
                }
            }
            if !(suspect.classes.is_empty() && suspect.odd.is_empty()) {
                suspects.push(suspect);
            }
        }
        Judged { counts, suspects, present }
    }
}

/// What a stretch has shown.
#[derive(Debug, Default)]
pub struct Judged {
    pub counts: Counts,
    pub suspects: Vec<Suspect>,
    /// The newest batch of each partition of which anything is there.
    pub present: HashMap<String, i64>,
}

fn is_whole(root: &ClassRoot, found: &[Found]) -> bool {
    let in_place = found.iter().enumerate().all(|(place, (leaf, _, _))| place == *leaf as usize);
    let ids: Vec<EventId> = found.iter().map(|(_, id, _)| *id).collect();
    let leaves: Option<Vec<Hash>> = found.iter().map(|(_, _, hash)| *hash).collect();
    in_place && leaves.is_some_and(|leaves| LeafList { ids, leaves }.root() == Some(root.root))
}

/// A batch that is not whole.
#[derive(Debug)]
pub struct Suspect {
    pub partition: String,
    pub number: i64,
    classes: Vec<(ClassRoot, Vec<Found>)>,
    odd: Vec<EventId>,
}

/// The leaves of one class of a batch, as they were written down beside the events.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LeafList {
    pub ids: Vec<EventId>,
    pub leaves: Vec<Hash>,
}

impl LeafList {
    /// All leaves of the tree.
    pub fn tree(&self) -> Vec<Hash> {
        tree::with_ids(&self.ids, &self.leaves)
    }

    /// The root; `None` if it is no list of anything.
    pub fn root(&self) -> Option<Hash> {
        if self.ids.len() == self.leaves.len() { tree::root(&self.tree()) } else { None }
    }
}

impl Suspect {
    /// Names what is wrong. `lists` are the leaves as they were written down: they count only if they have the root.
    pub fn explain(
        &self,
        lists: &HashMap<Class, LeafList>,
        past: impl Fn(Class) -> i64,
    ) -> (Counts, Vec<Finding>) {
        let (mut counts, mut findings) = (Counts::default(), Vec::new());
        let finding = |kind, detail: String| Finding::new(kind, detail).batch(&self.partition, self.number);
        for id in &self.odd {
            let detail = "its batch has no place for it".to_owned();
            findings.push(finding(Kind::EventInserted, detail).event(*id));
        }
        for (root, found) in &self.classes {
            let only = root.only.map(|id| LeafList { ids: vec![id], leaves: vec![root.root] });
            let sound = |list: &&LeafList| list.root() == Some(root.root);
            match only.as_ref().or(lists.get(&root.class)).filter(sound) {
                Some(list) => {
                    let gone = self.compare(list, found, root, &mut counts, &mut findings);
                    if root.first_ms < past(root.class) {
                        counts.expired += gone.len() as u64;
                        continue;
                    }
                    let detail = || format!("it is gone, and {} are kept for longer", root.class.as_str());
                    findings.extend(gone.iter().map(|id| finding(Kind::EventMissing, detail()).event(*id)));
                }
                None => findings.push(self.unnamed(root, found)),
            }
        }
        (counts, findings)
    }

    /// Holds what was found against the leaves; returns whose place is empty.
    fn compare(
        &self,
        list: &LeafList,
        found: &[Found],
        root: &ClassRoot,
        counts: &mut Counts,
        findings: &mut Vec<Finding>,
    ) -> Vec<EventId> {
        let mut gone: BTreeSet<usize> = (0..list.leaves.len()).collect();
        let finding = |kind, detail: &str| Finding::new(kind, detail).batch(&self.partition, self.number);
        for (leaf, id, hash) in found {
            let place = *leaf as usize;
            let right = list.leaves.get(place).is_some_and(|right| Some(right) == hash.as_ref());
            if right && gone.remove(&place) {
                counts.proved += 1;
            } else if let Some(own) = list.ids.iter().position(|one| one == id) {
                gone.remove(&own);
                findings.push(finding(Kind::EventChanged, "it is not what was sealed").event(*id));
            } else {
                let detail = format!("no leaf of {} in its batch is its own", root.class.as_str());
                findings.push(finding(Kind::EventInserted, &detail).event(*id));
            }
        }
        // A changed event may stand before the true one of another place: who is there is not gone.
        gone.into_iter().map(|place| list.ids[place]).collect()
    }

    /// Without the leaves only this can be said.
    fn unnamed(&self, root: &ClassRoot, found: &[Found]) -> Finding {
        const SHOWN: usize = 20;
        let ids: Vec<String> = found.iter().take(SHOWN).map(|(_, id, _)| id.to_string()).collect();
        let detail = format!(
            "{} of {} events ({}) are there and do not make the root that was sealed; the list of their leaves is gone \
             or changed, so which is wrong can't be told; there are {}{}",
            found.len(),
            root.count,
            root.class.as_str(),
            ids.join(", "),
            if found.len() > SHOWN { " …" } else { "" },
        );
        Finding::new(Kind::LeavesMissing, detail).batch(&self.partition, self.number)
    }
}

/// What is known of the batch that a stray event names.
#[derive(Debug, Clone, Copy)]
pub struct Known<'k> {
    /// Up to which batch its partition is sealed.
    pub sealed: i64,
    /// Up to which batch its chain goes now; 0 if Postgres knows no such partition. Seals go no further, whatever links
    /// stand beyond.
    pub head: i64,
    /// Up to which batch its partition had no leaves, and when the first seal was made, in milliseconds since 1970: only
    /// what is older may be without a leaf.
    pub begun: (i64, i64),
    /// Whether the links are older than the trail, as those of a Postgres that was set back are: then the trail may have
    /// batches of which they know nothing.
    pub set_back: bool,
    /// The classes of the batch, if it has a link.
    pub classes: Option<&'k [ClassRoot]>,
}

/// Judges an event that belongs to no batch of the stretch that was looked at, though its time lies in it.
pub fn stray(seen: &Seen, known: Known<'_>, counts: &mut Counts) -> Option<Finding> {
    let Place { partition, number, class, leaf } = &seen.place;
    let inserted = |detail: &str| {
        let finding = Finding::new(Kind::EventInserted, detail).batch(partition, *number);
        Some(finding.event(seen.id))
    };
    let Some(classes) = known.classes else {
        if *number > known.sealed {
            // A batch has its link before its events are told.
            return if known.set_back { None } else { inserted("there is no such batch") };
        }
        if leaf.is_none() && (1..=known.begun.0).contains(number) && seen.created_ms <= known.begun.1 {
            counts.unsealed += 1;
            return None;
        }
        return inserted("its batch had no events");
    };
    // A chain is walked from its beginning to its head: nobody ever comes to a link that stands beside it.
    if !(1..=known.head.max(known.sealed)).contains(number) {
        return inserted("the link of its batch stands beside the chain");
    }
    let root = classes.iter().find(|root| root.class == *class);
    let within = root.is_some_and(|root| (root.first_ms..=root.last_ms).contains(&seen.created_ms));
    // Where its batch is looked at, it will be seen: with its seal, or with what none has sealed yet.
    if within { None } else { inserted("it was not made when its batch was") }
}

/// Draws the conclusions that take all findings: an event that is missed in one place and found in another was changed;
/// where the newest batches of a partition have no events any more, the collection was set back. `present` is the newest
/// batch of each partition of which anything is there.
pub fn conclude(findings: &mut Vec<Finding>, present: &HashMap<String, i64>) {
    let of = |findings: &[Finding], kind| -> BTreeSet<EventId> {
        findings.iter().filter(|one| one.kind == kind).filter_map(|one| one.event).collect()
    };
    let moved: BTreeSet<EventId> = &of(findings, Kind::EventMissing) & &of(findings, Kind::EventInserted);
    findings.retain(|one| one.kind != Kind::EventMissing || one.event.is_none_or(|id| !moved.contains(&id)));
    for one in findings.iter_mut().filter(|one| one.kind == Kind::EventInserted) {
        if one.event.is_some_and(|id| moved.contains(&id)) {
            one.kind = Kind::EventChanged;
            one.detail = format!("it says that it stands elsewhere than where it was sealed: {}", one.detail);
        }
    }
    // One that is changed where it stands is no stranger where its time says that it was made.
    let changed = of(findings, Kind::EventChanged);
    findings
        .retain(|one| one.kind != Kind::EventInserted || one.event.is_none_or(|id| !changed.contains(&id)));
    let mut ends: HashMap<String, BTreeSet<i64>> = HashMap::new();
    for one in findings.iter().filter(|one| one.kind == Kind::EventMissing) {
        if let (Some(partition), Some(batch)) = (&one.partition, one.batch)
            && present.get(partition).is_none_or(|newest| batch > *newest)
        {
            ends.entry(partition.clone()).or_default().insert(batch);
        }
    }
    let mut ends: Vec<_> = ends.into_iter().filter(|(_, batches)| batches.len() > 1).collect();
    ends.sort();
    for (partition, batches) in ends {
        let (Some(first), Some(last)) = (batches.first(), batches.last()) else { continue };
        let detail = format!(
            "nothing is there of its {} newest batches with events, {first} to {last}: the collection was set back",
            batches.len()
        );
        findings.push(Finding::new(Kind::TrailSetBack, detail).batch(&partition, *first));
    }
}
