//! Taking commands that have waited and are due: together, or one by one where one of them may be what kills workers.

use taskflow_stores::postgres::waiting::{self, Waiting};
use taskflow_stores::postgres::{leases, suspects};
use taskflow_stores::{StoreError, clock};
use tokio_util::sync::CancellationToken;

use super::{Left, Pipeline};
use crate::bisect::bury_dead;
use crate::pause;
use crate::pulse::Doing;
use crate::suspect::{self, DEATHS, Trial};
use crate::waiting::{Due, Room};

/// Whether what is due is taken one by one, and for how many more commands.
pub(super) struct Careful {
    /// Holders have died since a batch of due commands came to its end.
    deaths: bool,
    left: usize,
}

impl Careful {
    /// After so many deaths in a row. Whoever died had at most `max_batch` commands in hand, and those are due first, but
    /// for some that stand in lines.
    pub(super) fn after(deaths: i16, max_batch: usize) -> Self {
        Self { deaths: deaths > 0, left: if deaths >= DEATHS { 2 * max_batch } else { 0 } }
    }

    pub(super) fn is_on(&self) -> bool {
        self.left > 0
    }
}

impl Pipeline<'_> {
    /// Commands that have waited and are due, if there are any.
    pub(super) async fn due(&mut self, stop: &CancellationToken) -> Result<Option<Left>, StoreError> {
        if !self.room.is_due() {
            return Ok(None);
        }
        let give_way = &self.context.give_way;
        let limit = give_way.limit(self.partition.low);
        // Waiting for a turn is no standstill either.
        self.pulse.is_at(Doing::Applying);
        let turn = give_way.begin(self.partition.low).await;
        let left = if self.careful.is_on() {
            // Others have their turns before it: that is no standstill of this one.
            self.pulse.is_at(Doing::Waiting("postgres"));
            let Some(solitude) = stop.run_until_cancelled(self.context.solitude.enter_alone()).await else {
                return Ok(Some(Left::Stopped));
            };
            let left = solitude.run(self.partition, Box::pin(self.take_due(1, stop))).await;
            self.tried(left).await.unwrap_or(Ok(Some(Left::BrokenOff)))
        } else {
            let most = self.context.settings.max_batch;
            self.take_due(limit.map_or(most, |limit| limit.min(most)), stop).await
        };
        turn.end(stop).await;
        left
    }

    /// A batch like any other, but nothing to acknowledge.
    async fn take_due(&mut self, most: usize, stop: &CancellationToken) -> Result<Option<Left>, StoreError> {
        let context = self.context;
        let postgres = &context.stores.postgres;
        let due = waiting::due(postgres, &self.name, clock::now(), most);
        let mut rows = self.answers.wait("read what is due", due).await?;
        self.pulse.is_at(Doing::Applying);
        let trial = self.try_alone(&rows).await?;
        self.held_by = None;
        if !matches!(trial, Trial::Condemned(_))
            && let Some((place, scope)) = pause::first_held(&rows, &context.pauses.borrow())
        {
            rows.truncate(place);
            self.held_by = Some(scope);
        }
        if rows.is_empty() && self.held_by.is_some() {
            // It was read and lives, but has not come to its end.
            self.acquit().await;
            return Ok(Some(Left::Stopped));
        }
        let due = Due { context, partition: self.partition, rows };
        let mut items = match trial {
            Trial::Condemned(_) => due.remains(),
            Trial::None | Trial::Alone(_) => due.items(),
        };
        bury_dead(&items, &due).await?;
        due.bury_foreign(&items, &self.answers).await?;
        // Their own lines are tried from the beginning; who joins a line meets it as it is.
        let mut lines = self.room.lines.clone();
        for subject in due.lines() {
            lines.remove(&subject);
        }
        if !items.is_empty() {
            let left = self.apply(&mut items, &mut lines, &due, stop).await;
            self.hand_over().await;
            if let Some(left) = left? {
                return Ok(Some(left));
            }
        }
        self.survived(trial).await?;
        let next_due = self.answers.wait("read what is due", waiting::next_due(postgres, &self.name)).await?;
        self.room = Room { lines, next_due };
        self.pulse.finished(None);
        Ok(self.held_by.is_some().then_some(Left::Stopped))
    }

    /// Notes that the one command that is due is tried alone, if this is the time to be careful.
    async fn try_alone(&mut self, rows: &[Waiting]) -> Result<Trial, StoreError> {
        let [row] = rows else { return Ok(Trial::None) };
        if !self.careful.is_on() {
            return Ok(Trial::None);
        }
        self.has_suspected = true;
        let postgres = &self.context.stores.postgres;
        let noted = suspect::try_alone(postgres, &self.name, self.epoch, &row.body);
        let trial = self.answers.wait("note a try", noted).await?;
        if let Trial::Condemned(_) = trial {
            tracing::error!(
                partition = self.name, command = %row.id,
                "A command that has waited goes to the dead letters unread: it kills workers."
            );
        }
        Ok(trial)
    }

    /// The commands that were due came to their end, and this process with them.
    async fn survived(&mut self, trial: Trial) -> Result<(), StoreError> {
        let postgres = &self.context.stores.postgres;
        if let Trial::Alone(digest) | Trial::Condemned(digest) = trial {
            self.answers.wait("forget a suspect", suspects::forget(postgres, &[digest])).await?;
        }
        // Who died once may have died of anything; who was condemned has been found.
        let found = matches!(trial, Trial::Condemned(_));
        self.careful.left = if found { 0 } else { self.careful.left.saturating_sub(1) };
        if self.careful.deaths && self.careful.left == 0 {
            let forgotten = leases::forget_deaths(postgres, &self.name, self.epoch);
            self.answers.wait("forget deaths", forgotten).await?;
            self.careful.deaths = false;
        }
        Ok(())
    }
}
