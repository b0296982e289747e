//! Times that come with messages. Whoever may publish may write any number there, also one that no store can keep.

use chrono::{DateTime, Utc};

/// The beginning of 2000, in seconds since 1970: nothing that is told of here was before.
const FIRST: i64 = 946_684_800;

/// A time in microseconds since 1970, if it can be one.
pub(super) fn of_micros(micros: i64) -> Option<DateTime<Utc>> {
    plausible(DateTime::from_timestamp_micros(micros)?)
}

/// A time in seconds since 1970, if it can be one.
pub(super) fn of_seconds(seconds: i64) -> Option<DateTime<Utc>> {
    plausible(DateTime::from_timestamp(seconds, 0)?)
}

/// What lies ahead is for those to judge who know the time: clocks differ.
fn plausible(time: DateTime<Utc>) -> Option<DateTime<Utc>> {
    (time.timestamp() >= FIRST).then_some(time)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_no_store_could_keep_is_no_time() {
        for wrong in [i64::MIN, -6_000_000_000_000_000_000, -1, 0, FIRST - 1, i64::MAX] {
            assert!(of_micros(wrong).is_none() || wrong == i64::MAX, "{wrong}");
            assert!(of_seconds(wrong).is_none(), "{wrong}");
        }
        assert_eq!(of_micros(FIRST * 1_000_000), of_seconds(FIRST));
        assert!(of_seconds(FIRST).is_some());
    }
}
