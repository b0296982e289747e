//! Up to when everything has been told that no command causes. Such events have no place in a partition: who comes back is
//! told again what happened since the time in its cursor, and an event may wait for a store for long. So that time stands
//! still while one waits.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use taskflow_stores::postgres::{PgPool, system_events};
use taskflow_stores::seldom::Seldom;
use taskflow_stores::{StoreError, clock};
use tokio_util::sync::CancellationToken;

use super::hub::Hub;

/// How often it is looked up, while anybody is connected. Whatever was delivered has as long to come here.
const EVERY: Duration = Duration::from_secs(3);

static COMPLAINTS: Seldom = Seldom::new();

/// The last two looks: the one before counts, since what was delivered before the last may still be on its way here.
#[derive(Debug, Clone, Copy)]
struct Looks {
    before: DateTime<Utc>,
    last: DateTime<Utc>,
    /// When the last one was made.
    made: Instant,
}

/// After so long without a look nobody was connected: what was found before says nothing of what was told.
const STALE: Duration = EVERY.saturating_mul(4);

#[derive(Debug, Default)]
pub(crate) struct Told(Mutex<Option<Looks>>);

impl Told {
    /// For cursors that are given now.
    pub(crate) fn until(&self) -> DateTime<Utc> {
        let looks = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody is given one before the first look.
        looks.map_or_else(clock::now, |looks| looks.before)
    }

    fn note(&self, until: DateTime<Utc>, made: Instant) {
        let mut looks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let before = looks.filter(|looks| made - looks.made < STALE).map_or(until, |looks| looks.last);
        *looks = Some(Looks { before, last: until, made });
    }

    /// Looks, if nobody has lately.
    pub(crate) async fn first_look(&self, postgres: &PgPool) -> Result<(), StoreError> {
        let looks = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if looks.is_some_and(|looks| looks.made.elapsed() < STALE) {
            Ok(())
        } else {
            self.look(postgres).await
        }
    }

    async fn look(&self, postgres: &PgPool) -> Result<(), StoreError> {
        let now = clock::now();
        let oldest = system_events::oldest(postgres).await?;
        self.note(oldest.map_or(now, |oldest| oldest.min(now)), Instant::now());
        Ok(())
    }
}

pub(super) async fn keep(postgres: &PgPool, hub: &Hub, stop: &CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = next_look(hub) => {}
        }
        // While Postgres is away it stays as it is: what comes back is told more than once.
        if let Err(error) = hub.told.look(postgres).await
            && let Some(held_back) = COMPLAINTS.due()
        {
            tracing::warn!(%error, held_back, "Which events still wait can't be looked up.");
        }
    }
}

/// Waits for the time of the next look, and until somebody is connected.
async fn next_look(hub: &Hub) {
    tokio::time::sleep(EVERY).await;
    hub.wanted().await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_look_counts_when_the_next_one_was_made() {
        let (told, begin) = (Told::default(), Instant::now());
        let at = |s| DateTime::from_timestamp(s, 0).unwrap_or_default();
        for (look, (found_s, until_s)) in [(10, 10), (20, 10), (15, 20), (30, 15)].into_iter().enumerate() {
            told.note(at(found_s), begin + EVERY * look as u32);
            assert_eq!(told.until(), at(until_s));
        }
        // Then nobody was connected for long.
        told.note(at(900), begin + EVERY * 100);
        assert_eq!(told.until(), at(900));
    }
}
