//! The seals of the audit trail: whatever is bent is found, and named; nothing else is.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use proptest::prelude::*;
use taskflow_core::audit::apart::{self, Apart, Group};
use taskflow_core::audit::chain::{self, Batch, Link};
use taskflow_core::audit::finding::{Finding, Kind};
use taskflow_core::audit::key::{PublicKey, SecretKey, Signature};
use taskflow_core::audit::leaves::Leaves;
use taskflow_core::audit::proof::{FORMAT, Proof};
use taskflow_core::audit::seal::{Head, Seal, Signed};
use taskflow_core::audit::trail::{self, LeafList, Seen, Trail};
use taskflow_core::audit::{Hash, canonical, link, tree};
use taskflow_core::command::Metadata;
use taskflow_core::event::{Class, Data, Event, EventId, Retention, TYPES};
use uuid::Uuid;

const BEGIN_MS: i64 = 1_900_000_000_000;

fn time(ms: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(ms).expect("a time")
}

fn event(number: u128, kind: usize, title: &str, skew_ms: i64) -> Event {
    let at = time(BEGIN_MS + skew_ms);
    let command = Uuid::from_u128(number);
    Event {
        id: EventId::new(at, command, 0),
        kind: TYPES[kind % TYPES.len()].into(),
        actor: Uuid::from_u128(1),
        entity: Uuid::from_u128(number % 7),
        entity_type: "task".into(),
        version: (!number.is_multiple_of(3)).then_some(number as i32),
        payload: Data::new(&serde_json::json!({ "title": title, "size": 1.5, "huge": u64::MAX })),
        metadata: Metadata { user_agent: Some(title.to_owned()), ..Metadata::default() },
        issued_at: at,
        correlation: command,
        command,
        traceparent: None,
        created_at: at,
        expires_at: at,
    }
}

/// A partition's batches, with what the stores have of them.
#[derive(Debug, Clone)]
struct World {
    batches: Vec<(i64, Vec<Event>, Leaves)>,
    links: Vec<Link>,
    head: Head,
}

const PARTITION: &str = "03";

fn world(sizes: &[Vec<(usize, String, i64)>]) -> World {
    let (mut batches, mut links) = (Vec::new(), Vec::new());
    let (mut hash, mut number) = (link::genesis(PARTITION), 0);
    let mut count = 10;
    for batch in sizes {
        // Batches without events are no links, but have their numbers.
        number += 1 + (batch.len() % 2) as i64;
        let events: Vec<Event> = batch
            .iter()
            .map(|(kind, title, skew)| {
                count += 1;
                event(count, *kind, title, *skew)
            })
            .collect();
        let leaves = Leaves::of(&events, &[number as u8; 32]);
        if let Some(classes) = leaves.link() {
            hash = link::hash(&hash, number, &classes);
            links.push(Link { partition: PARTITION.to_owned(), number, classes, hash });
        }
        batches.push((number, events, leaves));
    }
    let head = Head { partition: PARTITION.to_owned(), number, hash };
    World { batches, links, head }
}

impl World {
    fn seen(&self) -> Vec<Seen> {
        let one = |number: &i64, (event, leaf): (&Event, &taskflow_core::audit::leaves::Leaf)| Seen {
            id: event.id,
            place: trail::Place {
                partition: PARTITION.to_owned(),
                number: *number,
                class: leaf.class,
                leaf: Some(leaf.place),
            },
            created_ms: event.created_at.timestamp_millis(),
            hash: Some(leaf.hash),
            erased: false,
            undone: false,
            entity: event.entity,
            actor: event.actor,
        };
        let batches = self.batches.iter();
        batches
            .flat_map(|(number, events, leaves)| {
                events.iter().zip(&leaves.leaves).map(move |both| one(number, both))
            })
            .collect()
    }

    fn lists(&self, number: i64) -> HashMap<Class, LeafList> {
        let batch = self.batches.iter().find(|(one, _, _)| *one == number);
        let mut lists: HashMap<Class, LeafList> = HashMap::new();
        for (event, leaf) in
            batch.into_iter().flat_map(|(_, events, leaves)| events.iter().zip(&leaves.leaves))
        {
            let list =
                lists.entry(leaf.class).or_insert_with(|| LeafList { ids: Vec::new(), leaves: Vec::new() });
            list.ids.push(event.id);
            list.leaves.push(leaf.hash);
        }
        lists
    }

    fn walk(&self) -> (Vec<Batch>, Vec<Finding>) {
        chain::walk(&Seal::beginning(PARTITION), &self.head, &self.links)
    }

    /// What a verification of these events finds.
    fn verify(&self, seen: Vec<Seen>, past: i64) -> (trail::Counts, Vec<Finding>) {
        let (batches, mut findings) = self.walk();
        let mut trail = Trail::new(batches);
        let strays: Vec<Seen> = seen.into_iter().filter_map(|seen| trail.see(seen)).collect();
        let judged = trail.end(|_| past);
        let mut counts = judged.counts;
        for suspect in judged.suspects {
            let (more, found) = suspect.explain(&self.lists(suspect.number), |_| past);
            counts.add(&more);
            findings.extend(found);
        }
        for stray in strays {
            let texts: HashMap<i64, _> = self
                .links
                .iter()
                .map(|one| (one.number, link::read(&one.classes).expect("classes")))
                .collect();
            let known = trail::Known {
                set_back: false,
                sealed: self.head.number,
                head: self.head.number,
                begun: (0, 0),
                classes: texts.get(&stray.place.number).map(Vec::as_slice),
            };
            findings.extend(trail::stray(&stray, known, &mut counts));
        }
        trail::conclude(&mut findings, &judged.present);
        (counts, findings)
    }
}

fn worlds() -> impl Strategy<Value = World> {
    let event = (0..TYPES.len(), ".{0,12}", 0_i64..3);
    prop::collection::vec(prop::collection::vec(event, 0..9), 1..7).prop_map(|sizes| world(&sizes))
}

/// A world that has events.
fn told() -> impl Strategy<Value = World> {
    worlds().prop_filter("it has events", |world| !world.links.is_empty())
}

proptest! {
    #[test]
    fn what_was_not_bent_is_whole_in_any_order(world in worlds(), chance in any::<u64>()) {
        let mut seen = world.seen();
        let all = seen.len();
        // Any order: by a hash of the id and some chance.
        seen.sort_by_key(|one| Hash::of(&[&one.id.0, &chance.to_be_bytes()]));
        let (counts, findings) = world.verify(seen, i64::MIN);
        prop_assert!(findings.is_empty(), "{findings:?}");
        prop_assert_eq!(counts.proved, all as u64);
    }

    #[test]
    fn any_bent_event_is_named(world in told(), which in any::<prop::sample::Index>(), how in 0..5) {
        let mut seen = world.seen();
        let which = which.index(seen.len());
        let id = seen[which].id;
        let kind = match how {
            0 => {
                seen[which].hash = Some(Hash([7; 32]));
                Kind::EventChanged
            }
            1 => {
                seen[which].hash = None;
                Kind::EventChanged
            }
            2 => {
                drop(seen.remove(which));
                Kind::EventMissing
            }
            3 => {
                // It says that it stands elsewhere.
                seen[which].place.number = 1_000_000;
                seen[which].place.leaf = None;
                let (_, findings) = world.verify(seen, i64::MIN);
                prop_assert!(findings.iter().any(|one| one.event == Some(id)), "{findings:?}");
                return Ok(());
            }
            _ => {
                let mut forged = seen[which].clone();
                forged.id = EventId([9; 12]);
                forged.hash = Some(Hash([8; 32]));
                seen.push(forged);
                let (_, findings) = world.verify(seen, i64::MIN);
                let forged: Vec<_> = findings.iter().filter(|one| one.event == Some(EventId([9; 12]))).collect();
                prop_assert_eq!(forged.len(), 1, "{:?}", findings);
                prop_assert_eq!(forged[0].kind, Kind::EventInserted);
                return Ok(());
            }
        };
        let (counts, findings) = world.verify(seen, i64::MIN);
        prop_assert_eq!(findings.len(), 1, "{:?}", findings);
        prop_assert_eq!((findings[0].kind, findings[0].event), (kind, Some(id)));
        let others = world.seen().len() as u64 - 1;
        prop_assert_eq!(counts.proved, others, "what is beside it is proved all the same");
    }

    #[test]
    fn what_is_past_its_time_may_be_gone(world in told(), keep in any::<u64>()) {
        let kept: Vec<Seen> = world.seen().into_iter().filter(|one| Hash::of(&[&one.id.0, &keep.to_be_bytes()]).0[0] < 60).collect();
        let (all, left) = (world.seen().len(), kept.len());
        let (counts, findings) = world.verify(kept.clone(), BEGIN_MS + 1_000_000);
        prop_assert!(findings.is_empty(), "{findings:?}");
        prop_assert_eq!((counts.proved, counts.expired), (left as u64, (all - left) as u64));
        // Before its time nothing may.
        let (_, findings) = world.verify(kept, BEGIN_MS);
        let missing = findings.iter().filter(|one| one.kind == Kind::EventMissing).count();
        prop_assert_eq!(missing, all - left);
    }

    #[test]
    fn any_bent_link_is_found(world in told(), which in any::<prop::sample::Index>(), how in 0..4) {
        let mut bent = world.clone();
        let which = which.index(bent.links.len());
        match how {
            0 => bent.links[which].hash = Hash([1; 32]),
            1 => drop(bent.links.remove(which)),
            2 => bent.links[which].number += 1,
            _ => bent.links[which].classes = bent.links[which].classes.replacen("19", "18", 1),
        }
        let (_, findings) = bent.walk();
        prop_assert!(!findings.is_empty());
        prop_assert!(findings.iter().all(|one| one.kind == Kind::ChainBroken));
        prop_assert!(world.walk().1.is_empty());
    }

    #[test]
    fn a_chain_may_be_walked_in_pieces(world in told(), cut in any::<prop::sample::Index>()) {
        let cut = cut.index(world.links.len() + 1);
        let (front, back) = world.links.split_at(cut);
        let middle = front.last().map_or(Seal::beginning(PARTITION), |one| Head {
            partition: PARTITION.to_owned(), number: one.number, hash: one.hash,
        });
        let (mut batches, mut findings) = chain::walk(&Seal::beginning(PARTITION), &middle, front);
        let (more, found) = chain::walk(&middle, &world.head, back);
        batches.extend(more);
        findings.extend(found);
        prop_assert_eq!((batches, findings), world.walk());
    }

    #[test]
    fn each_leaf_has_its_path(leaves in prop::collection::vec(any::<[u8; 32]>(), 1..70)) {
        let leaves: Vec<Hash> = leaves.into_iter().map(Hash).collect();
        let root = tree::root(&leaves).expect("a root");
        for (index, leaf) in leaves.iter().enumerate() {
            let path = tree::path(&leaves, index).expect("a path");
            prop_assert_eq!(tree::climb(*leaf, &path), root);
            prop_assert!(tree::climb(Hash([0; 32]), &path) != root);
        }
        prop_assert_eq!(tree::path(&leaves, leaves.len()), None);
    }

    #[test]
    fn a_batch_of_leaves_is_its_events_one_by_one(world in told()) {
        for (_, events, leaves) in &world.batches {
            for (index, (event, leaf)) in events.iter().zip(&leaves.leaves).enumerate() {
                let mut buffer = Vec::new();
                let data = canonical::data_digest(&leaf.salt, event.personal().text().as_bytes());
                prop_assert_eq!(data, event.personal().digest(&leaf.salt, &mut buffer));
                let alone = canonical::leaf_of(event.fields(index as u32).text().as_bytes(), &data);
                prop_assert_eq!(alone, leaf.hash);
            }
        }
    }
}

fn key() -> SecretKey {
    SecretKey::new([3; 32])
}

proptest! {
    #[test]
    fn no_list_of_leaves_names_another(world in told(), which in any::<prop::sample::Index>()) {
        for (number, events, _) in &world.batches {
            for (class, mut list) in world.lists(*number) {
                let root = list.root();
                let which = which.index(list.ids.len());
                list.ids[which] = EventId([9; 12]);
                // The id of a single event stands in its link.
                prop_assert!(list.ids.len() == 1 || list.root() != root, "{} events, {class:?}", events.len());
            }
        }
    }
}

#[test]
fn a_proof_holds_and_a_bent_one_does_not() {
    let made: Vec<(usize, String, i64)> = (0..5).map(|kind| (0, format!("task {kind}"), 0)).collect();
    let world = world(&[made.clone(), made.clone(), made]);
    let seal = Seal::next(None, time(BEGIN_MS), vec![world.head.clone()], &Retention::default(), None)
        .expect("a seal");
    let (_, events, leaves) = &world.batches[1];
    let list = LeafList {
        ids: events.iter().map(|event| event.id).collect(),
        leaves: leaves.leaves.iter().map(|leaf| leaf.hash).collect(),
    };
    let leaf = leaves.leaves[3];
    let data = events[3].personal().text();
    let proof = Proof {
        format: FORMAT.to_owned(),
        fields: events[3].fields(3).text(),
        data_digest: canonical::data_digest(&leaf.salt, data.as_bytes()),
        data: Some(data),
        salt: Some(taskflow_core::hex::of(&leaf.salt)),
        path: tree::path(&list.tree(), 3).expect("a path"),
        partition: PARTITION.to_owned(),
        before: world.links[0].hash,
        links: world.links[1..].iter().map(|one| (one.number, one.classes.clone())).collect(),
        seal: Signed::new(&seal, &key()),
    };
    let keys = [key().public()];
    let again: Proof = serde_json::from_str(&serde_json::to_string(&proof).expect("JSON")).expect("a proof");
    assert_eq!(again, proof);
    assert_eq!(proof.check(&keys), Ok(BEGIN_MS));
    assert!(proof.check(&[PublicKey([1; 32])]).is_err());
    let erased = Proof { data: None, salt: None, ..proof.clone() };
    assert_eq!(erased.check(&keys), Ok(BEGIN_MS));
    let bent = [
        Proof { fields: proof.fields.replace("task.", "user."), ..proof.clone() },
        Proof { data: Some("{}".into()), ..proof.clone() },
        Proof { before: Hash([0; 32]), ..proof.clone() },
        Proof { links: proof.links[..1].to_vec(), ..proof.clone() },
        Proof { partition: "04".into(), ..proof.clone() },
        Proof { path: proof.path[1..].to_vec(), ..proof.clone() },
        Proof { seal: Signed { signature: Signature([0; 64]), ..proof.seal.clone() }, ..proof.clone() },
    ];
    for bent in bent {
        assert!(bent.check(&keys).is_err(), "{bent:?}");
    }
}

#[test]
fn a_collection_that_was_set_back_is_told_as_such() {
    let made = || vec![(0_usize, "a task".to_owned(), 0_i64); 3];
    let world = world(&[made(), made(), made(), made()]);
    let second = world.batches[1].0;
    let seen: Vec<Seen> = world.seen().into_iter().filter(|one| one.place.number <= second).collect();
    let (_, findings) = world.verify(seen, i64::MIN);
    let set_back: Vec<_> = findings.iter().filter(|one| one.kind == Kind::TrailSetBack).collect();
    assert_eq!(set_back.len(), 1, "{findings:?}");
    assert_eq!(set_back[0].batch, Some(world.batches[2].0));
    assert_eq!(findings.iter().filter(|one| one.kind == Kind::EventMissing).count(), 6);
}

#[test]
fn a_link_beside_the_chain_vouches_for_nothing() {
    let world = world(&[vec![(0, "a task".to_owned(), 0)]]);
    let mut seen = world.seen().remove(0);
    let classes = world.batches[0].2.classes.clone();
    let mut of = |head, number, classes| {
        seen.place.number = number;
        let known = trail::Known { sealed: 1, head, begun: (0, 0), set_back: false, classes };
        trail::stray(&seen, known, &mut trail::Counts::default()).map(|found| found.kind)
    };
    let inserted = Some(Kind::EventInserted);
    // Behind the newest seal and within the chain its turn comes; not so beyond both, nor before the chain begins.
    assert_eq!(of(5, 4, Some(&classes[..])), None);
    assert_eq!(of(5, 5, Some(&classes[..])), None);
    for (head, number) in [(5, 6), (0, 2), (5, 0), (5, -3)] {
        assert_eq!(of(head, number, Some(&classes[..])), inserted, "batch {number} of a chain up to {head}");
    }
    assert_eq!(of(5, 4, None), inserted);
    // One that says another time than its batch's has no turn.
    let mut late = world.seen().remove(0);
    (late.place.number, late.created_ms) = (4, BEGIN_MS - 1);
    let known = trail::Known { sealed: 1, head: 5, begun: (0, 0), set_back: false, classes: Some(&classes) };
    let found = trail::stray(&late, known, &mut trail::Counts::default());
    assert_eq!(found.map(|found| found.kind), inserted);
}

proptest! {
    #[test]
    fn events_that_were_set_apart_are_whole_under_their_link_and_bent_ones_are_named(
        world in told(), which in any::<prop::sample::Index>()
    ) {
        let of = |seen: &Seen| Apart {
            id: EventId(Hash::of(&[&seen.id.0]).0[..12].try_into().expect("twelve bytes")),
            class: seen.place.class,
            created_ms: seen.created_ms,
            leaf: apart::leaf(&seen.hash.expect("a leaf"), seen.id, 1, BEGIN_MS),
        };
        let events: Vec<Apart> = world.seen().iter().map(of).collect();
        let group = Group::of(&events);
        let place = |(event, leaf): (&Apart, &u32)| Seen {
            id: event.id,
            hash: Some(event.leaf),
            created_ms: event.created_ms,
            undone: true,
            place: trail::Place {
                partition: "system".to_owned(), number: 7, class: event.class, leaf: Some(*leaf),
            },
            ..world.seen().remove(0)
        };
        let mut seen: Vec<Seen> = events.iter().zip(&group.places).map(place).collect();
        let classes = link::read(&link::text(&group.classes)).expect("classes");
        let judge = |seen: Vec<Seen>| {
            let batch = Batch { partition: "system".to_owned(), number: 7, classes: classes.clone() };
            let mut trail = Trail::new(vec![batch]);
            assert!(seen.into_iter().all(|one| trail.see(one).is_none()));
            trail.end(|_| i64::MIN)
        };
        let whole = judge(seen.clone());
        prop_assert_eq!((whole.counts.proved, whole.suspects.len()), (events.len() as u64, 0));
        let which = which.index(seen.len());
        // As if another restore had set it apart.
        seen[which].hash = Some(apart::leaf(&world.seen()[which].hash.expect("a leaf"), events[which].id, 2, BEGIN_MS));
        let lists: HashMap<Class, LeafList> = group.lists.into_iter().collect();
        let (_, found) = judge(seen).suspects.remove(0).explain(&lists, |_| i64::MIN);
        prop_assert_eq!(found.len(), 1, "{:?}", found);
        prop_assert_eq!((found[0].kind, found[0].event), (Kind::EventChanged, Some(events[which].id)));
    }
}

#[test]
fn an_event_that_is_changed_where_it_stands_is_no_stranger_elsewhere() {
    let id = EventId([7; 12]);
    let found = |kind| Finding::new(kind, "").event(id).batch(PARTITION, 3);
    let mut findings = vec![found(Kind::EventInserted), found(Kind::EventChanged)];
    trail::conclude(&mut findings, &HashMap::new());
    assert_eq!(findings, vec![found(Kind::EventChanged)]);
}
