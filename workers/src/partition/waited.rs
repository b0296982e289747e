//! Taking commands that have waited one by one where one of them may be what kills workers.

use taskflow_stores::StoreError;
use taskflow_stores::postgres::waiting::Waiting;
use taskflow_stores::postgres::{leases, suspects};

use super::Pipeline;
use crate::suspect::{self, DEATHS, Trial};

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
    /// Notes that the one command that is due is tried alone, if this is the time to be careful.
    pub(super) async fn try_alone(&mut self, rows: &[Waiting]) -> Result<Trial, StoreError> {
        let [row] = rows else { return Ok(Trial::None) };
        if !self.careful.is_on() {
            return Ok(Trial::None);
        }
        self.suspects = true;
        let postgres = &self.context.stores.postgres;
        let trial = suspect::try_alone(postgres, &self.name, self.epoch, &row.body).await?;
        if let Trial::Condemned(_) = trial {
            tracing::error!(
                partition = self.name, command = %row.id,
                "A command that has waited goes to the dead letters unread: it kills workers."
            );
        }
        Ok(trial)
    }

    /// The commands that were due came to their end, and this process with them.
    pub(super) async fn survived(&mut self, trial: Trial) -> Result<(), StoreError> {
        let postgres = &self.context.stores.postgres;
        if let Trial::Alone(digest) | Trial::Condemned(digest) = trial {
            suspects::forget(postgres, &[digest]).await?;
        }
        // Who died once may have died of anything; who was condemned has been found.
        let found = matches!(trial, Trial::Condemned(_));
        self.careful.left = if found { 0 } else { self.careful.left.saturating_sub(1) };
        if self.careful.deaths && self.careful.left == 0 {
            leases::forget_deaths(postgres, &self.name, self.epoch).await?;
            self.careful.deaths = false;
        }
        Ok(())
    }
}
