//! The live stream's order and cursors, by properties.

use std::collections::BTreeMap;

use chrono::DateTime;
use proptest::prelude::*;
use taskflow_core::stream::order::{Hole, Order};
use taskflow_core::stream::{Cursor, Place, Positions};

/// Batches of some partitions: how many events each has, 0 for those that tell nothing.
fn batches() -> impl Strategy<Value = Vec<Vec<u32>>> {
    prop::collection::vec(prop::collection::vec(0_u32..5, 1..8), 1..4)
}

type Told = Vec<(Place, (usize, i64, u32))>;

/// The events as the exchange gives them: partitions interleaved, each batch shuffled, some batches told again from an
/// earlier one on, as after a crash.
fn told(batches: &[Vec<u32>], seed: u64) -> Told {
    let mut dice = seed;
    let mut roll = |sides: usize| {
        dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (dice >> 33) as usize % sides.max(1)
    };
    let mut queues: Vec<Told> = Vec::new();
    for (partition, counts) in batches.iter().enumerate() {
        let mut queue = Vec::new();
        let mut number = 0;
        let mut crashes = 2;
        while number < counts.len() {
            let count = counts[number];
            let mut batch: Told = (0..count)
                .map(|index| {
                    let place = Place {
                        partition: format!("{partition:02}"),
                        number: number as i64 + 1,
                        index,
                        count,
                    };
                    (place, (partition, number as i64 + 1, index))
                })
                .collect();
            for at in (1..batch.len()).rev() {
                batch.swap(at, roll(at + 1));
            }
            if crashes > 0 && roll(4) == 0 {
                // It dies half-way, and its successor begins with an earlier batch.
                crashes -= 1;
                batch.truncate(roll(batch.len() + 1));
                queue.extend(batch);
                number -= roll(number + 1);
                continue;
            }
            queue.extend(batch);
            number += 1;
        }
        queues.push(queue);
    }
    let mut all = Vec::new();
    while queues.iter().any(|queue| !queue.is_empty()) {
        let which = roll(queues.len());
        if !queues[which].is_empty() {
            all.push(queues[which].remove(0));
        }
    }
    all
}

proptest! {
    #[test]
    fn every_event_comes_once_and_in_order(batches in batches(), seed: u64) {
        let mut order = Order::default();
        let mut got: BTreeMap<usize, Vec<(i64, u32)>> = BTreeMap::new();
        for (place, event) in told(&batches, seed) {
            let whole = order.take(&place, event);
            for (partition, number, index) in whole.unwrap().into_iter().flatten() {
                got.entry(partition).or_default().push((number, index));
            }
        }
        for (partition, counts) in batches.iter().enumerate() {
            let wanted: Vec<(i64, u32)> = counts
                .iter()
                .enumerate()
                .flat_map(|(number, count)| (0..*count).map(move |index| (number as i64 + 1, index)))
                .collect();
            prop_assert_eq!(got.remove(&partition).unwrap_or_default(), wanted);
        }
    }

    #[test]
    fn who_begins_to_listen_half_way_gets_all_batches_after_the_first(counts in prop::collection::vec(1_u32..5, 2..6), skip in 0_usize..5) {
        let events = told(std::slice::from_ref(&counts), 0);
        let mut order = Order::default();
        let mut got = Vec::new();
        let listened: Vec<_> = events.into_iter().skip(skip).collect();
        let first = listened.first().map_or(i64::MAX, |(place, _)| place.number);
        for (place, event) in &listened {
            got.extend(order.take(place, *event).unwrap().into_iter().flatten().map(|(_, number, index)| (number, index)));
        }
        let after: Vec<(i64, u32)> = counts.iter().enumerate()
            .map(|(number, count)| (number as i64 + 1, *count))
            .filter(|(number, _)| *number > first)
            .flat_map(|(number, count)| (0..count).map(move |index| (number, index)))
            .collect();
        got.retain(|(number, _)| *number > first);
        prop_assert_eq!(got, after);
    }

    #[test]
    fn a_missing_event_is_noticed_at_the_next_batch(counts in prop::collection::vec(1_u32..5, 3..6), which: prop::sample::Index) {
        let mut order = Order::default();
        let mut events: Vec<_> = Vec::new();
        for (number, count) in counts.iter().enumerate() {
            for index in 0..*count {
                events.push(Place { partition: "00".into(), number: number as i64 + 1, index, count: *count });
            }
        }
        // Neither of the first batch, whose beginning may come too early, nor a whole batch, nor of the last one.
        let candidates: Vec<usize> = events.iter().enumerate()
            .filter(|(_, place)| place.number > 1 && place.count > 1 && (place.number as usize) < counts.len())
            .map(|(at, _)| at)
            .collect();
        prop_assume!(!candidates.is_empty());
        let gone = events.remove(candidates[which.index(candidates.len())]);
        let results: Vec<_> = events.iter().map(|place| (place.number, order.take(place, ()))).collect();
        for (number, result) in results {
            if number == gone.number + 1 {
                prop_assert_eq!(result, Err(Hole));
                break;
            }
            prop_assert!(result.is_ok());
        }
    }

    #[test]
    fn a_cursor_reads_as_it_is_written(
        places in prop::collection::btree_map("(low\\.)?[0-9]{2,3}", (0_i64..i64::MAX, prop::option::of(0_u32..1_000)), 0..12),
        at in 0_i64..4_000_000_000_000,
    ) {
        let mut positions = Positions::default();
        for (partition, (number, index)) in &places {
            match index {
                Some(index) => positions.advance(partition, *number, *index),
                None => positions.advance_past(partition, *number),
            }
        }
        let cursor = Cursor { positions, at: DateTime::from_timestamp_millis(at).unwrap() };
        prop_assert_eq!(cursor.to_string().parse::<Cursor>(), Ok(cursor));
    }

    #[test]
    fn what_is_behind_is_what_was_not_had(had in (0_i64..6, 0_u32..4), newest in 0_i64..8) {
        let mut positions = Positions::default();
        positions.advance("00", had.0, had.1);
        let all = Positions::of_batches([("00".to_owned(), newest)]);
        let gap = positions.behind(&all);
        for number in 1..=newest {
            for index in 0..4 {
                let covered = gap.iter().any(|(_, after, last)| number > *after && number <= *last);
                prop_assert!(covered || positions.has("00", number, index));
            }
        }
    }
}
