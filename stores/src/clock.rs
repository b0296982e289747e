//! The one place that reads the clock and makes ids. Everything else takes them as arguments.

use chrono::{DateTime, Utc};
use uuid::Uuid;

/// The time, to the microsecond (what Postgres keeps).
pub fn now() -> DateTime<Utc> {
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    let now = Utc::now();
    DateTime::from_timestamp_micros(now.timestamp_micros()).unwrap_or(now)
}

/// A new id that sorts by time.
pub fn new_id() -> Uuid {
    #[expect(clippy::disallowed_methods, reason = "this is the one place")]
    Uuid::now_v7()
}
