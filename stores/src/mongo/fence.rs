//! A write that takes effect only while its writer leads.
//!
//! The lead is a row of Postgres, so a look at it says nothing about the moment at which MongoDB carries a write out: a
//! process may be stopped in between for an hour. So the write bears the end of the lead as MongoDB's own clock will show
//! it, and the server compares. The clocks of the two servers need not agree: MongoDB's time is read before the lead is
//! looked at, and the rest of the lead is added to it, so the end is never too late.

use std::time::{Duration, Instant};

use chrono::TimeDelta;
use mongodb::Database;
use mongodb::bson::{DateTime, Document, doc};

use super::failed;
use crate::{Kind, StoreError};

/// A moment of the server's own clock, read to measure from it.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    server: DateTime,
    read: Instant,
}

/// Until when a writer's writes count.
#[derive(Debug, Clone, Copy)]
pub struct Until {
    end: DateTime,
    begin: Instant,
    lasts: Duration,
}

/// Reads the server's clock. What is asked for after this begins later.
pub async fn moment(database: &Database) -> Result<Moment, StoreError> {
    let read = Instant::now();
    let call = "read the server's clock";
    let hello = database.run_command(doc! { "hello": 1 }).await.map_err(failed(call))?;
    let server = hello.get_datetime("localTime").map_err(|error| {
        StoreError::new("mongodb", call, Kind::Bug, format!("hello does not tell the time: {error}"))
    })?;
    Ok(Moment { server: *server, read })
}

impl Moment {
    /// The writes that follow count for so long from this moment.
    pub fn lasts(self, lasts: Duration) -> Until {
        let ms = TimeDelta::from_std(lasts).map_or(0, |lasts| lasts.num_milliseconds());
        Until {
            end: DateTime::from_millis(self.server.timestamp_millis().saturating_add(ms)),
            begin: self.read,
            lasts,
        }
    }
}

impl Until {
    /// Binds a filter to it: it finds nothing once the end has come.
    pub(super) fn bind(self, mut filter: Document) -> Document {
        filter.insert("$expr", doc! { "$lt": ["$$NOW", self.end] });
        filter
    }

    /// After the answer to a write. As long as the end has not come here, it had not come there either, and what the
    /// write has not found was changed by others; afterwards nobody knows.
    pub(super) fn came_in_time(self, call: &'static str) -> Result<(), StoreError> {
        if self.begin.elapsed() < self.lasts {
            return Ok(());
        }
        let detail = "the scheduler's lead was over before MongoDB answered; what it was told counts only if it came in time";
        Err(StoreError::new("mongodb", call, Kind::Conflict, detail))
    }
}
