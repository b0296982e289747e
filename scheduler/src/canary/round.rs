//! One partition's canary: a pair of commands, what becomes of it, and the next pair.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use taskflow_core::canary::{self, Fate, GENERATIONS, Pair, Verdict};
use taskflow_core::partition::Partition;
use taskflow_core::pause::{Pauses, Scope};
use taskflow_core::{Command, Outcome, metric};
use taskflow_stores::mongo::events;
use taskflow_stores::postgres::receipts::{self, View};
use taskflow_stores::postgres::{canaries, leases, pauses, silence, tasks, waiting};
use taskflow_stores::rabbit::publish::Message;
use taskflow_stores::seldom::Seldom;
use taskflow_stores::{StoreError, clock, observe};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Settings, Stores, count, rest};

/// How long the watch over a canary lasts that is not renewed.
const HOLD: Duration = Duration::from_secs(10);
/// It is renewed while a pair is on its way.
const RENEW: Duration = Duration::from_secs(3);
/// Between two looks for receipts at first, and the longest: the first says how exact the round trip is.
const LOOK: Duration = Duration::from_millis(10);
const LOOK_MAX: Duration = Duration::from_secs(1);
/// A command is lost when its partition has finished everything that was accepted so much later. Clocks of several
/// intakes differ, and a confirm may have taken its time.
const LOST_AFTER: Duration = Duration::from_secs(60);
/// Between two tries to have a command taken, or a store answer.
const AGAIN: Duration = Duration::from_secs(1);

/// All partitions of a process complain alike when a store is away.
static COMPLAINTS: Seldom = Seldom::new();

pub(super) struct Round {
    settings: Settings,
    stores: Stores,
    partition: Partition,
    name: String,
    holder: Uuid,
    /// When a pair last went all the way, or since when one is due; nothing where none is.
    due_since: Mutex<Option<f64>>,
    pub(super) stop: CancellationToken,
}

/// What became of a pair.
enum End {
    Judged(Verdict),
    /// Another process has it now, or this one is stopping.
    Left,
}

impl Round {
    pub(super) fn new(
        settings: Settings,
        stores: Stores,
        partition: Partition,
        holder: Uuid,
        stop: CancellationToken,
    ) -> Self {
        Self {
            settings,
            stores,
            partition,
            name: partition.to_string(),
            holder,
            due_since: Mutex::new(None),
            stop,
        }
    }

    /// Pair after pair, until `stop`.
    pub(super) async fn run(&self) {
        let every = Duration::from_millis(self.settings.every_ms);
        // Partitions take their turns, not all at once.
        let mut pause = every.mul_f64(rand::random_range(0.0..=1.0));
        while rest(&self.stop, pause).await {
            pause = match self.turn(every).await {
                Ok(()) => every.mul_f64(rand::random_range(0.9..=1.1)),
                Err(error) => {
                    if let Some(held_back) = COMPLAINTS.due() {
                        tracing::warn!(%error, held_back, "A canary can't be sent or seen.");
                    }
                    every.min(AGAIN)
                }
            };
        }
        // The partition may be no more.
        self.show(|_| None);
    }

    /// Shows since when a pair is due: a partition through which none ever gets must not be silent, one that is paused or
    /// is watched by another scheduler must be.
    fn show(&self, due_since: impl FnOnce(Option<f64>) -> Option<f64>) {
        let mut since = self.due_since.lock().unwrap_or_else(PoisonError::into_inner);
        *since = due_since(*since);
        let shown = since.unwrap_or(f64::NAN);
        observe::gauge(&metric::CANARY_LAST_SUCCESS, &[("partition", &self.name)]).set(shown);
    }

    /// Shows whether anything is due; `true` if an operator has paused the partition.
    async fn look_for_pause(&self) -> Result<bool, StoreError> {
        let paused = self.is_paused().await?;
        self.show(|since| if paused { None } else { since.or_else(|| Some(now_s())) });
        Ok(paused)
    }

    async fn turn(&self, every: Duration) -> Result<(), StoreError> {
        let Some(held) = self.hold().await? else {
            self.show(|_| None);
            return Ok(());
        };
        let paused = self.look_for_pause().await?;
        let (pair, is_new) = match held.pair {
            // Somebody, perhaps we, began it and did not see its end.
            Some(pair) => (pair, false),
            None => {
                let recent = clock::now() - every.mul_f64(0.8);
                if paused || held.sent_at.is_some_and(|at| at > recent) {
                    return Ok(());
                }
                let Some(pair) = self.next_pair().await? else { return Ok(()) };
                let noted =
                    canaries::note_sent(&self.stores.postgres, &self.name, self.holder, &pair, clock::now());
                if !noted.await? {
                    return Ok(());
                }
                (pair, true)
            }
        };
        let Some(confirmed) = self.send(&pair, is_new).await else { return Ok(()) };
        if let End::Judged(verdict) = self.follow(&pair, confirmed, held.stuck && !is_new).await {
            self.tell(&pair, verdict);
        }
        Ok(())
    }

    async fn hold(&self) -> Result<Option<canaries::Held>, StoreError> {
        canaries::hold(&self.stores.postgres, &self.name, self.holder, HOLD.as_millis() as i64).await
    }

    /// What operators hold back is not stuck.
    async fn is_paused(&self) -> Result<bool, StoreError> {
        let scopes = pauses::list(&self.stores.postgres).await?;
        let paused: Pauses = scopes.iter().filter_map(|pause| pause.scope.parse::<Scope>().ok()).collect();
        Ok(paused.of_partition(&self.name).is_some() || paused.has_types())
    }

    /// The next pair of the first of the partition's tasks that nobody has deleted.
    async fn next_pair(&self) -> Result<Option<Pair>, StoreError> {
        let Partition { low, index, .. } = self.partition;
        let subjects: Vec<Uuid> =
            (0..GENERATIONS).map(|generation| canary::subject(low, index, generation)).collect();
        let there = self.read_tasks(&subjects).await?;
        let is_deleted = |id: &&Uuid| there.iter().any(|task| task.id == **id && task.deleted_at.is_some());
        let Some(subject) = subjects.iter().find(|id| !is_deleted(id)).copied() else {
            tracing::error!(
                partition = self.name,
                "All canary tasks of the partition were deleted, so none is sent; leave them alone, or turn canaries off."
            );
            return Ok(None);
        };
        let base = there.iter().find(|task| task.id == subject).map_or(0, |task| task.version);
        Ok(Some(Pair { subject, base, ids: [clock::new_id(), clock::new_id()] }))
    }

    async fn read_tasks(&self, ids: &[Uuid]) -> Result<Vec<taskflow_core::Task>, StoreError> {
        let call = "read the canary's task";
        let read = async {
            let acquired = self.stores.postgres.acquire().await;
            let mut connection =
                acquired.map_err(|error| StoreError::unavailable("postgres", call, error))?;
            tasks::read_many(&mut connection, ids).await
        };
        silence::within(silence::ANSWER, call, read).await
    }

    /// Sends a pair, one command after the other has its confirm: otherwise we would break its order ourselves. Returns
    /// when each was confirmed; `None` if `stop` came first or the watch has gone to somebody else.
    async fn send(&self, pair: &Pair, is_new: bool) -> Option<[Instant; 2]> {
        let mut confirmed = [Instant::now(); 2];
        for (command, at) in pair.commands(self.partition.low).iter().zip(&mut confirmed) {
            *at = self.publish(command).await?;
            if is_new {
                count(&self.name, "sent", 1);
            }
        }
        Some(confirmed)
    }

    /// Offers a command until it is confirmed, under the same id.
    async fn publish(&self, command: &Command) -> Option<Instant> {
        let mut renewed = Instant::now();
        loop {
            match self.stores.publisher.publish(Message::command(command, clock::now(), None)).await {
                Ok(()) => return Some(Instant::now()),
                Err(error) => {
                    if let Some(held_back) = COMPLAINTS.due() {
                        tracing::warn!(%error, held_back, "The broker does not take a canary.");
                    }
                }
            }
            if !rest(&self.stop, AGAIN.mul_f64(rand::random_range(0.5..=1.0))).await {
                return None;
            }
            if !self.keep(&mut renewed).await {
                return None;
            }
        }
    }

    /// Renews the watch from time to time; `false` if it has gone to somebody else. While Postgres is away nobody else
    /// can take it.
    async fn keep(&self, renewed: &mut Instant) -> bool {
        if renewed.elapsed() < RENEW {
            return true;
        }
        *renewed = Instant::now();
        let held = !matches!(self.hold().await, Ok(None));
        if held && let Err(error) = self.look_for_pause().await {
            tracing::debug!(%error, "Whether the partition is paused is not known.");
        }
        held
    }

    /// Looks until the pair has come to its end.
    async fn follow(&self, pair: &Pair, confirmed: [Instant; 2], mut told: bool) -> End {
        let stuck_after = Duration::from_millis(self.settings.stuck_after_ms);
        let sent_at = clock::now();
        let mut timed = [false; 2];
        let (mut look, mut renewed) = (LOOK, Instant::now());
        loop {
            if !rest(&self.stop, look).await || !self.keep(&mut renewed).await {
                return End::Left;
            }
            let elapsed = confirmed[1].elapsed();
            look = if elapsed < 20 * LOOK { LOOK } else { (look * 2).min(LOOK_MAX) };
            let seen = receipts::read_many(&self.stores.postgres, &pair.ids).await;
            let found = seen.as_deref().unwrap_or_default();
            for (place, id) in pair.ids.iter().enumerate() {
                if !timed[place] && found.iter().any(|receipt| receipt.id == *id) {
                    timed[place] = true;
                    let histogram =
                        observe::histogram(&metric::CANARY_ROUND_TRIP, &[("partition", &self.name)]);
                    histogram.record(confirmed[place].elapsed());
                }
            }
            let open = pair.ids.iter().filter(|id| !found.iter().any(|one| one.id == **id && is_told(one)));
            let open = open.count() as u64;
            let late = elapsed > stuck_after;
            if open > 0 && !late {
                continue;
            }
            // A store that is away now is asked again.
            let judged = if open == 0 {
                self.judge(pair, found).await.ok()
            } else if seen.is_ok()
                && let Ok(Some(newest)) = self.look_past(pair, sent_at).await
            {
                self.judge(pair, &newest).await.ok()
            } else {
                None
            };
            if let Some(verdict) = judged {
                match canaries::note_ended(&self.stores.postgres, &self.name, self.holder, pair).await {
                    Ok(true) => return End::Judged(verdict),
                    Ok(false) => return End::Left,
                    Err(_) => {}
                }
            } else if late && !told && !matches!(self.is_paused().await, Ok(true)) {
                told = true;
                count(&self.name, "stuck", open.max(1));
                tracing::error!(
                    partition = self.name,
                    first = %pair.ids[0],
                    waited_s = elapsed.as_secs(),
                    "A canary is stuck: `taskflow receipt` tells how far it has come."
                );
                // Only so that another process does not count it again.
                let _ = canaries::note_stuck(&self.stores.postgres, &self.name, self.holder).await;
            }
        }
    }

    /// The pair's receipts as they are now, if the partition has gone on: it has finished what was accepted long after the
    /// pair, and nothing of that waits. A receipt that is missing then is lost.
    async fn look_past(
        &self,
        pair: &Pair,
        sent_at: chrono::DateTime<chrono::Utc>,
    ) -> Result<Option<Vec<View>>, StoreError> {
        let reached = leases::reached(&self.stores.postgres).await?;
        let at = reached.into_iter().find(|(name, _)| *name == self.name);
        if at.is_none_or(|(_, at)| at < sent_at + LOST_AFTER) {
            return Ok(None);
        }
        let waiting = waiting::read_many(&self.stores.postgres, &pair.ids).await?;
        // After the look at what waits: a command gets its receipt in the transaction in which it ends to wait.
        let found = receipts::read_many(&self.stores.postgres, &pair.ids).await?;
        // What is applied and not yet told of is late, not lost.
        let is_past = waiting.is_empty() && found.iter().all(is_told);
        Ok(is_past.then_some(found))
    }

    async fn judge(&self, pair: &Pair, found: &[View]) -> Result<Verdict, StoreError> {
        let events = events::count_by_command(&self.stores.mongo, pair.ids[0]).await?;
        let fates = pair.ids.map(|id| {
            let receipt = found.iter().find(|receipt| receipt.id == id);
            let ended = receipt.and_then(|one| Some((Outcome::from_word(&one.status)?, one.version)));
            Fate { ended, events: events.get(&id.to_string()).copied().unwrap_or(0) }
        });
        let version = self.read_tasks(&[pair.subject]).await?.first().map(|task| task.version);
        Ok(canary::judge(pair, fates, version))
    }

    fn tell(&self, pair: &Pair, verdict: Verdict) {
        let Verdict { applied, lost, doubled, reordered, stuck } = verdict;
        for (result, more) in [
            ("applied", applied),
            ("lost", lost),
            ("doubled", doubled),
            ("reordered", reordered),
            ("stuck", stuck),
        ] {
            count(&self.name, result, u64::from(more));
        }
        if verdict.is_clean() {
            self.show(|_| Some(now_s()));
        } else {
            tracing::error!(
                partition = self.name,
                subject = %pair.subject,
                first = %pair.ids[0],
                second = %pair.ids[1],
                lost,
                doubled,
                reordered,
                stuck,
                "The promise does not hold for a canary."
            );
        }
    }
}

/// Whether a command has ended and everybody knows: its receipt is there, and its events are in the audit trail.
fn is_told(receipt: &View) -> bool {
    receipt.events.is_empty() || receipt.auditedat.is_some()
}

fn now_s() -> f64 {
    clock::now().timestamp_micros() as f64 / 1e6
}
