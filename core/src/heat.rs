//! How much somebody has read lately: a count that fades by half every [`HALF_LIFE_S`].
//!
//! Instead of making the counts of all fade, what is new weighs more and more (forward decay: Cormode, Shkapenyuk,
//! Srivastava, Xu, 2009). The weights grow beyond any number, so it is their logarithm that is kept: it grows by one
//! in a half-life. Two of them compare at any time as the faded counts would.

use chrono::{DateTime, Utc};

/// Seconds in which a count fades by half.
pub const HALF_LIFE_S: f64 = 6.0 * 3_600.0;

/// The heat of `count` reads that were made at a time. `count` is above zero.
pub fn of(count: u32, at: DateTime<Utc>) -> f64 {
    at.timestamp_millis() as f64 / 1_000.0 / HALF_LIFE_S + f64::from(count.max(1)).log2()
}

/// The heat of both together: what the statement that adds to a user's heat computes.
pub fn together(one: f64, other: f64) -> f64 {
    one.max(other) + (-(one - other).abs()).exp2().ln_1p() / std::f64::consts::LN_2
}

#[cfg(test)]
mod tests {
    use chrono::TimeDelta;
    use proptest::prelude::*;

    use super::*;

    /// How many reads of now it is worth.
    fn count_at(heat: f64, at: DateTime<Utc>) -> f64 {
        (heat - of(1, at)).exp2()
    }

    fn at(hours: i64) -> DateTime<Utc> {
        DateTime::UNIX_EPOCH + TimeDelta::hours(490_000 + hours)
    }

    proptest! {
        #[test]
        fn it_is_the_sum_of_the_faded_counts(
            reads in prop::collection::vec((1u32..10_000, 0i64..200), 1..50),
            later in 0i64..100,
        ) {
            let heat = reads.iter().map(|(count, hour)| of(*count, at(*hour))).reduce(together).unwrap_or(0.0);
            let now = at(200 + later);
            let faded = |(count, hour): &(u32, i64)| {
                f64::from(*count) * (-((200 + later - hour) as f64) * 3_600.0 / HALF_LIFE_S).exp2()
            };
            let sum: f64 = reads.iter().map(faded).sum();
            let counted = count_at(heat, now);
            prop_assert!((counted - sum).abs() <= sum * 1e-6, "{counted} is not {sum}");
        }

        #[test]
        fn the_order_is_the_same_at_any_time(
            one in (1u32..10_000, 0i64..200), other in (1u32..10_000, 0i64..200), later in 0i64..1_000,
        ) {
            let (one, other) = (of(one.0, at(one.1)), of(other.0, at(other.1)));
            prop_assume!((one - other).abs() > 1e-6);
            prop_assert_eq!(one > other, count_at(one, at(later)) > count_at(other, at(later)));
        }
    }
}
