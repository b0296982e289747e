//! Keeping of backups and places in the log of writes, by properties.

#![expect(clippy::unwrap_used, reason = "a test that can't go on has failed")]

use std::collections::BTreeMap;

use chrono::{DateTime, TimeDelta, Utc};
use proptest::prelude::*;
use taskflow_core::backup::journal::Record;
use taskflow_core::backup::keeping::{Count, Item, Keep, Verdict, decide, patience};
use taskflow_core::backup::wal::{Lsn, Segment, gaps};

fn now() -> DateTime<Utc> {
    DateTime::from_timestamp(1_900_000_000, 0).unwrap()
}

fn count_of(kind: usize) -> Count {
    [Count::Calendar, Count::Newest, Count::Age][kind]
}

/// Kind, hours of age, whole, proven, saved before something replaced live data, what it needs.
type Made = (usize, i64, bool, bool, bool, [u8; 2]);

/// Backups of three kinds over three years; each may need some that are older.
fn items() -> impl Strategy<Value = Vec<Item>> {
    let one = (
        0..3_usize,
        0..1_100_i64 * 24,
        prop::bool::weighted(0.9),
        prop::bool::weighted(0.2),
        prop::bool::weighted(0.1),
        any::<[u8; 2]>(),
    );
    prop::collection::vec(one, 0..60).prop_map(|made| {
        let mut made = made;
        made.sort_by_key(|(_, hours, ..)| std::cmp::Reverse(*hours));
        let item = |(index, (kind, hours, good, proven, safety, needs)): (usize, &Made)| Item {
            id: format!("b{index}"),
            kind: format!("k{kind}"),
            count: count_of(*kind),
            taken_at: now() - TimeDelta::hours(*hours),
            good: *good,
            proven: *good && *proven,
            safety: *safety,
            needs: needs
                .iter()
                .filter(|need| **need % 2 == 0 && index > 0)
                .map(|need| format!("b{}", usize::from(*need) % index))
                .collect(),
        };
        made.iter().enumerate().map(item).collect()
    })
}

fn rules() -> impl Strategy<Value = Keep> {
    (0..9_u32, 0..6_u32, 0..14_u32, 0..4_u32, 0..5_u32, 0..30_u32, 0..400_u32).prop_map(
        |(daily, weekly, monthly, yearly, bases, incremental_days, safety_days)| Keep {
            daily,
            weekly,
            monthly,
            yearly,
            bases,
            incremental_days,
            safety_days,
        },
    )
}

proptest! {
    #[test]
    fn the_last_good_one_and_what_is_needed_always_stay(items in items(), rules in rules()) {
        let verdicts = decide(&items, &rules, now());
        prop_assert_eq!(verdicts.len(), items.len());
        let kept = |id: &str| verdicts.get(id).is_none_or(Verdict::keeps);
        for kind in ["k0", "k1", "k2"] {
            let good = || items.iter().filter(|item| item.good && item.kind == kind);
            if let Some(newest) = good().map(|item| item.taken_at).max() {
                prop_assert!(good().any(|item| item.taken_at == newest && kept(&item.id)), "the newest {} goes", kind);
            }
            if let Some(newest) = good().filter(|item| item.proven).map(|item| item.taken_at).max() {
                prop_assert!(good().any(|item| item.proven && item.taken_at == newest && kept(&item.id)));
            }
        }
        for item in items.iter().filter(|item| kept(&item.id)) {
            for need in &item.needs {
                prop_assert!(kept(need), "{} stays and needs {}, which goes", item.id, need);
            }
        }
        for item in items.iter().filter(|item| item.good && item.safety) {
            let young = now() - item.taken_at <= TimeDelta::days(rules.safety_days.into());
            prop_assert!(!young || kept(&item.id), "{} was made before live data was replaced, and goes", item.id);
        }
        for item in items.iter().filter(|item| !item.good) {
            let on_its_way = now() - item.taken_at < patience();
            let needed = items.iter().any(|other| kept(&other.id) && other.needs.contains(&item.id));
            prop_assert_eq!(kept(&item.id), on_its_way || needed, "{}", item.id);
        }
    }

    #[test]
    fn more_generous_rules_remove_nothing_more(items in items(), rules in rules(), more in 1..3_u32) {
        let generous = Keep {
            daily: rules.daily + more,
            weekly: rules.weekly + more,
            monthly: rules.monthly + more,
            yearly: rules.yearly + more,
            bases: rules.bases + more,
            incremental_days: rules.incremental_days + more,
            safety_days: rules.safety_days + more,
        };
        let (before, after) = (decide(&items, &rules, now()), decide(&items, &generous, now()));
        for (id, verdict) in before {
            prop_assert!(!verdict.keeps() || after[&id].keeps(), "{}", id);
        }
    }

    #[test]
    fn after_the_removal_nothing_more_is_to_be_removed(items in items(), rules in rules()) {
        let verdicts = decide(&items, &rules, now());
        let left: Vec<Item> = items.into_iter().filter(|item| verdicts[&item.id].keeps()).collect();
        let again: BTreeMap<_, _> = decide(&left, &rules, now());
        prop_assert!(again.values().all(Verdict::keeps));
    }

    #[test]
    fn names_of_the_log_are_read_as_they_are_written(timeline in 1..u32::MAX, number in 0..1_u64 << 32, power in 20..31_u32) {
        let size = 1_u64 << power;
        let segment = Segment { timeline, number };
        let name = segment.name(size);
        prop_assert_eq!(Segment::from_name(&name, size), Some(segment));
        let start = segment.start(size);
        prop_assert_eq!(Segment::holding(timeline, start, size), segment);
        prop_assert_eq!(Segment::holding(timeline, Lsn(segment.end(size).0 - 1), size), segment);
        prop_assert_eq!(start.to_string().parse::<Lsn>(), Ok(start));
    }

    #[test]
    fn records_come_out_as_they_went_in_and_a_part_of_one_is_none(
        made in prop::collection::vec((0..1_i64 << 50, prop::option::of(0..1_i64 << 50), any::<bool>(), prop::collection::vec(any::<u8>(), 0..60)), 0..10),
        cut in 0..2_000_usize,
    ) {
        let records: Vec<Record> = made
            .into_iter()
            .map(|(at, accepted, low, body)| Record {
                at: DateTime::from_timestamp_micros(at).unwrap(),
                accepted_at: accepted.and_then(DateTime::from_timestamp_micros),
                low,
                body: body.into(),
            })
            .collect();
        let mut bytes = Vec::new();
        records.iter().for_each(|record| record.encode(&mut bytes));
        let read = |mut bytes: &[u8]| {
            let mut found = Vec::new();
            while let Some((record, length)) = Record::decode(bytes).unwrap() {
                found.push(record);
                bytes = &bytes[length..];
            }
            (found, bytes.len())
        };
        prop_assert_eq!(read(&bytes), (records.clone(), 0));
        let cut = cut.min(bytes.len());
        let (found, rest) = read(&bytes[..cut]);
        prop_assert_eq!(&found[..], &records[..found.len()]);
        prop_assert!(found.len() == records.len() || rest < 21 + 60 + 1);
    }

    #[test]
    fn a_gap_is_found_exactly(from in 0..50_u64, there in prop::collection::btree_set(0..100_u64, 0..60)) {
        let found = gaps(from, there.iter().copied());
        let newest = there.iter().copied().max().unwrap_or(0);
        let missing: Vec<u64> = (from..newest).filter(|number| !there.contains(number)).collect();
        let told: Vec<u64> = found.iter().flat_map(|(first, last)| *first..=*last).collect();
        prop_assert_eq!(told, missing);
    }
}

#[test]
fn seven_days_five_weeks_twelve_months_and_three_years_are_kept() {
    let daily = |days: i64| Item {
        id: format!("d{days}"),
        kind: "k".into(),
        count: Count::Calendar,
        taken_at: now() - TimeDelta::days(days),
        good: true,
        proven: false,
        safety: false,
        needs: Vec::new(),
    };
    let items: Vec<Item> = (0..1_500).map(daily).collect();
    let verdicts = decide(&items, &Keep::default(), now());
    let kept = verdicts.values().filter(|verdict| verdict.keeps()).count();
    assert!((7 + 3 + 10..=7 + 5 + 12 + 3).contains(&kept), "{kept}");
    assert!((0..7).all(|days| verdicts[&format!("d{days}")].keeps()));
    assert!(!verdicts["d1499"].keeps());
}

#[test]
fn what_is_no_name_of_the_log_is_none() {
    for name in [
        "",
        "00000001.history",
        "00000001000000000000000",
        "0000000100000000000000zz",
        "000000010000000000000100",
    ] {
        assert_eq!(Segment::from_name(name, 16 << 20), None, "{name}");
    }
    for text in ["", "1", "1/", "/1", "1/123456789", "g/1", "+1/1"] {
        assert!(text.parse::<Lsn>().is_err(), "{text}");
    }
    assert_eq!("16/B374D848".parse::<Lsn>().map(|lsn| lsn.0), Ok(0x16_B374_D848));
}
