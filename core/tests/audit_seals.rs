//! Seals: copies that are bent are found where they are; nothing is sealed over that was set back.

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use proptest::prelude::*;
use taskflow_core::audit::Hash;
use taskflow_core::audit::copies::{self, Place};
use taskflow_core::audit::finding::{Finding, Kind};
use taskflow_core::audit::key::{PublicKey, SecretKey};
use taskflow_core::audit::seal::{Head, Restored, Seal, Signed};
use taskflow_core::event::{Class, Retention};

const BEGIN_MS: i64 = 1_900_000_000_000;
const PARTITION: &str = "03";

fn time(ms: i64) -> DateTime<Utc> {
    DateTime::from_timestamp_millis(ms).expect("a time")
}

fn key() -> SecretKey {
    SecretKey::new([3; 32])
}

fn head(number: i64) -> Head {
    Head { partition: PARTITION.to_owned(), number, hash: Hash([number as u8; 32]) }
}

/// Seals one behind the other, each over a chain that has grown.
fn sealed(count: i64) -> Vec<Signed> {
    let (mut seals, mut last): (Vec<Signed>, Option<(Seal, Hash)>) = (Vec::new(), None);
    for number in 1..=count {
        let before = last.as_ref().map(|(seal, hash)| (seal, *hash));
        let at = time(BEGIN_MS + number * 60_000);
        let seal =
            Seal::next(before, at, vec![head(number)], &Retention::default(), None).expect("it follows");
        let signed = Signed::new(&seal, &key());
        last = Some((seal, signed.hash()));
        seals.push(signed);
    }
    seals
}

fn place(name: &'static str, seals: &[Signed]) -> Place {
    Place { name, seals: (1..).zip(seals.iter().cloned()).collect::<BTreeMap<_, _>>() }
}

proptest! {
    #[test]
    fn any_bent_seal_is_found_where_it_is(count in 2_i64..9, which in any::<prop::sample::Index>(), how in 0..5, where_ in 0..2_usize) {
        let seals = sealed(count);
        let keys = [key().public()];
        let mut places = vec![place("postgres", &seals), place("mongodb", &seals)];
        let number = which.index(count as usize) as i64 + 1;
        let bent = &mut places[where_];
        let one = bent.seals.get_mut(&number).expect("a seal");
        let kind = match how {
            0 => {
                one.seal = one.seal.replacen("taskflow", "Taskflow", 1);
                Kind::SealChanged
            }
            1 => {
                one.signature.0[5] ^= 1;
                Kind::SealChanged
            }
            2 => {
                // Somebody signs with a key of their own.
                let other = SecretKey::new([4; 32]);
                *one = Signed { signature: other.sign(&one.seal), key: other.public(), seal: one.seal.clone() };
                Kind::SealChanged
            }
            3 => {
                bent.seals.remove(&number);
                if number == count { Kind::SealsSetBack } else { Kind::SealMissing }
            }
            _ => {
                // The key itself is in wrong hands: another seal with this number.
                let mut seal = one.open(&keys).expect("a seal");
                seal.heads[0].hash = Hash([99; 32]);
                *one = Signed::new(&seal, &key());
                Kind::SealForked
            }
        };
        let name = bent.name;
        let (_, findings) = copies::compare(&places, &keys, 1, None);
        prop_assert!(findings.iter().any(|one| one.kind == kind && one.seal == Some(number)), "{findings:?}");
        let in_place = |one: &Finding| one.place.is_none_or(|place| place == name || kind == Kind::SealForked);
        prop_assert!(findings.iter().all(in_place), "{findings:?}");
        if kind != Kind::SealForked {
            let (trusted, _) = copies::compare(&places, &keys, 1, None);
            prop_assert_eq!(trusted.len() as i64, count, "the other place has it");
        }
    }

    #[test]
    fn seals_may_be_compared_in_pieces(count in 1_i64..9, cut in 1_i64..9) {
        let seals = sealed(count);
        let keys = [key().public()];
        let cut = cut.min(count);
        let piece = |from: i64, to: i64| Place {
            name: "postgres",
            seals: (1..).zip(seals.iter().cloned()).filter(|(number, _)| (from..=to).contains(number)).collect(),
        };
        let (mut front, findings) = copies::compare(&[piece(1, cut)], &keys, 1, None);
        let (back, more) = copies::compare(&[piece(cut + 1, count)], &keys, cut + 1, front.last());
        prop_assert!(findings.is_empty() && more.is_empty());
        front.extend(back);
        prop_assert_eq!(front, copies::compare(&[piece(1, count)], &keys, 1, None).0);
    }
}

#[test]
fn no_seal_follows_a_chain_that_was_set_back_unless_somebody_says_why() {
    let retention = Retention::default();
    let keys = [key().public()];
    let last = sealed(5).pop().expect("a seal");
    let seal = last.open(&keys).expect("it is ours");
    let next = |heads: Vec<Head>, restored| {
        Seal::next(Some((&seal, last.hash())), time(BEGIN_MS), heads, &retention, restored)
    };
    assert!(next(vec![head(5)], None).is_ok());
    assert!(next(vec![head(6)], None).is_ok());
    let other = Head { hash: Hash([77; 32]), ..head(5) };
    for bent in [vec![head(4)], vec![other], vec![]] {
        let refused = next(bent.clone(), None).expect_err("it was set back");
        assert_eq!((refused.partition.as_str(), refused.seal), (PARTITION, 5));
        let told = Restored { by: "an operator".into(), why: "a restore".into() };
        let after = next(bent, Some(told)).expect("somebody says why");
        assert_eq!((after.number, after.previous), (6, last.hash()));
        assert!(after.at_ms >= seal.at_ms, "time does not go back");
    }
}

#[test]
fn what_may_be_gone_follows_from_the_policies_that_were_sealed() {
    let days = |days| Retention { task_events_days: days, ..Retention::default() };
    let at = |day: i64| time(BEGIN_MS) + TimeDelta::days(day);
    let past = |seal: &Seal, day| seal.past_ms(Class::TaskEvents, at(day));
    let long = Seal::next(None, at(0), vec![], &days(100), None).expect("a seal");
    assert_eq!(past(&long, 0), at(-100).timestamp_millis());
    assert_eq!(past(&long, 3), at(-97).timestamp_millis());
    assert!(long.says_more(&[], &days(50)), "another policy is sealed at once");
    let short = Seal::next(Some((&long, Hash([0; 32]))), at(1), vec![], &days(50), None).expect("a seal");
    // What was removed under the short policy stays explained when it is long again.
    let again = Seal::next(Some((&short, Hash([0; 32]))), at(2), vec![], &days(100), None).expect("a seal");
    assert_eq!(past(&again, 2), at(-49).timestamp_millis());
    assert!(!again.says_more(&[], &days(100)));
}

#[test]
fn a_type_in_another_class_shortens_what_must_be_there() {
    let mut retention = Retention { task_events_days: 180, system_events_days: 90, ..Retention::default() };
    assert_eq!(retention.least_days(Class::TaskEvents), 180);
    retention.classes.set("task.created", Class::SystemEvents).expect("a type");
    assert_eq!(retention.least_days(Class::TaskEvents), 90);
}

#[test]
fn keys_come_back_from_their_files() {
    let key = key();
    let again = SecretKey::from_file(&key.to_file()).expect("a key");
    assert_eq!(again.public(), key.public());
    assert!(SecretKey::from_file(&key.public().to_line()).is_err(), "a public key is no secret one");
    let file = format!("# of 2026\n{}\n{}", key.public().to_line(), SecretKey::new([9; 32]).public());
    assert_eq!(PublicKey::from_file(&file).expect("keys").len(), 2);
    assert!(PublicKey::from_file("nonsense").is_err());
    assert!(!format!("{key:?}").contains(key.to_file().split(' ').nth(1).expect("digits").trim()));
}
