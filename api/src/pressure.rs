//! How far the workers are behind, so that a caller who is sent away is told when to come back.
//!
//! The age of a queue is that of its oldest command. A partition's holder notes how far it has got (what was accepted
//! before is finished), the broker says whether anything waits; together that is the age, whatever the rate. Where
//! nobody has ever held the partition, or its notes can't be read, the age counts from when the queue was last seen
//! empty.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use taskflow_core::partition::{Course, Partition};
use taskflow_core::{Command, metric};
use taskflow_stores::declare::Mender;
use taskflow_stores::postgres::{PgPool, layout, leases};
use taskflow_stores::rabbit::Settings;
use taskflow_stores::rabbit::link::Link;
use taskflow_stores::{StoreError, crash, observe, supervise};
use tokio_util::sync::CancellationToken;

use crate::Stores;

const LOOK_EVERY: Duration = Duration::from_secs(2);
/// Bounds of what a caller is told, in seconds. A store that has just gone may be back in a moment; who waits longer
/// than the upper bound learns nothing by it.
const RETRY_AFTER_S: std::ops::RangeInclusive<u64> = 2..=60;

/// What is known of the queues. Clones share it.
#[derive(Clone)]
pub(crate) struct Pressure(Arc<Mutex<Known>>);

struct Known {
    /// Which partitions there are, as of the last look.
    course: Course,
    queues: HashMap<Partition, Queue>,
}

/// Who is asked.
struct Looker {
    postgres: PgPool,
    broker: Link,
    rabbit: Settings,
    mender: Mender,
}

/// One partition queue.
#[derive(Debug, Clone, Copy)]
struct Queue {
    first_look: Instant,
    /// Whether messages wait.
    waits: bool,
    /// When it was last seen without any: what waits has come later.
    seen_empty: Option<Instant>,
    /// What was accepted before this is finished.
    reached: Option<Instant>,
}

impl Queue {
    fn new(now: Instant) -> Self {
        Self { first_look: now, waits: false, seen_empty: None, reached: None }
    }

    /// Takes a look over. `behind` is how far the partition's holder is behind, if it is known.
    fn look(&mut self, now: Instant, ready: u32, behind: Option<Duration>) {
        self.waits = ready > 0;
        if !self.waits {
            self.seen_empty = Some(now);
        }
        // A lease that has changed hands may know less than was known before.
        self.reached = behind.and_then(|behind| now.checked_sub(behind)).max(self.reached);
    }

    fn age(&self, now: Instant) -> Duration {
        if !self.waits {
            return Duration::ZERO;
        }
        let oldest = self.reached.max(self.seen_empty).unwrap_or(self.first_look);
        now.saturating_duration_since(oldest)
    }
}

impl Pressure {
    /// Before the first look: the settings' partitions.
    fn new(rabbit: &Settings) -> Self {
        let known = Known { course: Course::settled(0, rabbit.layout()), queues: HashMap::new() };
        Self(Arc::new(Mutex::new(known)))
    }

    /// The partition that a command goes to.
    pub(crate) fn partition(&self, command: &Command) -> Partition {
        self.lock().course.to.of(command)
    }

    /// Which partitions there are.
    pub(crate) fn course(&self) -> Course {
        self.lock().course
    }

    /// How long the oldest command of a partition has waited.
    pub(crate) fn age(&self, partition: Partition) -> Duration {
        self.lock().queues.get(&partition).map_or(Duration::ZERO, |queue| queue.age(Instant::now()))
    }

    /// Seconds after which a caller may try a partition again.
    pub(crate) fn retry_after_s(&self, partition: Partition) -> u64 {
        bounded(self.age(partition))
    }

    /// The same where a caller has to do with many partitions: the slowest counts.
    pub(crate) fn retry_after_any_s(&self) -> u64 {
        let now = Instant::now();
        bounded(self.lock().queues.values().map(|queue| queue.age(now)).max().unwrap_or_default())
    }

    async fn look(&self, looker: &Looker) -> Result<(), StoreError> {
        let Looker { postgres, broker, rabbit, mender } = looker;
        // While Postgres is away nothing is finished: what was known grows older by itself.
        let behind: HashMap<String, f64> =
            leases::behind(postgres).await.unwrap_or_default().into_iter().collect();
        if let Ok(course) = layout::course(postgres, rabbit.layout()).await {
            let mut known = self.lock();
            known.course = course;
            known.queues.retain(|partition, _| {
                let stays = course.to.all().contains(partition);
                if !stays {
                    observe::gauge(&metric::QUEUE_AGE, &[("queue", &partition.queue())]).set(0.0);
                }
                stays
            });
        }
        let course = self.course();
        let mut looked = Ok(());
        for partition in course.to.all() {
            let depth = match broker.find(&partition.queue()).await {
                Ok(Some(depth)) => depth,
                Ok(None) => {
                    // In a change it may not be there yet.
                    if course.step > 0 && course.is_settled() {
                        mender.missing(&partition.queue());
                    }
                    continue;
                }
                // A queue that can't be looked at makes no other one older; without the broker there is nothing to see.
                Err(error) if broker.is_up() => {
                    looked = looked.and(Err(error));
                    continue;
                }
                Err(error) => return Err(error),
            };
            // In a change the lease of this name is the old queue's.
            let behind = behind.get(&partition.to_string()).filter(|_| course.is_settled());
            let behind = behind.and_then(|seconds| Duration::try_from_secs_f64(*seconds).ok());
            let now = Instant::now();
            let mut known = self.lock();
            known.queues.entry(partition).or_insert_with(|| Queue::new(now)).look(now, depth.ready, behind);
            drop(known);
            let age = self.age(partition).as_secs_f64();
            observe::gauge(&metric::QUEUE_AGE, &[("queue", &partition.queue())]).set(age);
        }
        looked
    }

    fn lock(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn bounded(age: Duration) -> u64 {
    let seconds = age.as_secs_f64().ceil() as u64;
    seconds.clamp(*RETRY_AFTER_S.start(), *RETRY_AFTER_S.end())
}

/// Starts looking at the queues, until `stop`.
pub(crate) fn start(stores: &Stores, mender: Mender, stop: CancellationToken) -> Pressure {
    let pressure = Pressure::new(&stores.rabbit);
    let looking = pressure.clone();
    let looker = Looker {
        postgres: stores.postgres.clone(),
        broker: stores.broker.clone(),
        rabbit: stores.rabbit.clone(),
        mender,
    };
    tokio::spawn(async move {
        supervise::forever("pressure", &stop, || watch(&looking, &looker, &stop)).await;
    });
    pressure
}

async fn watch(pressure: &Pressure, looker: &Looker, stop: &CancellationToken) {
    let broker = &looker.broker;
    loop {
        crash::point("pressure");
        // A blocked connection answers nothing until the alarm is over.
        if broker.is_up()
            && !broker.is_blocked()
            && let Err(error) = pressure.look(looker).await
        {
            tracing::debug!(%error, "The queues could not be looked at.");
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_EVERY) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn s(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn a_queue_is_as_old_as_what_its_partition_has_not_reached() {
        let start = Instant::now() + s(1_000);
        let mut queue = Queue::new(start);
        queue.look(start, 500, Some(s(30)));
        assert_eq!(queue.age(start), s(30));
        // The workers catch up.
        queue.look(start + s(2), 400, Some(s(10)));
        assert_eq!(queue.age(start + s(2)), s(10));
        // Nothing can be learned any more: it grows older.
        queue.look(start + s(12), 400, None);
        assert_eq!(queue.age(start + s(12)), s(20));
        queue.look(start + s(14), 0, None);
        assert_eq!(queue.age(start + s(14)), s(0));
    }

    #[test]
    fn what_waits_in_a_queue_that_was_empty_has_come_since() {
        let start = Instant::now() + s(10_000);
        let mut queue = Queue::new(start);
        // Its holder went away long ago, with nothing left to do.
        queue.look(start, 0, Some(s(3_600)));
        queue.look(start + s(2), 5, Some(s(3_602)));
        assert_eq!(queue.age(start + s(5)), s(5));
    }

    #[test]
    fn without_a_holder_it_is_as_old_as_it_was_seen() {
        let start = Instant::now();
        let mut queue = Queue::new(start);
        queue.look(start, 5, None);
        queue.look(start + s(4), 9, None);
        assert_eq!(queue.age(start + s(5)), s(5));
    }

    #[test]
    fn callers_are_told_a_time_within_bounds() {
        assert_eq!([s(0), s(7), s(3_600)].map(bounded), [2, 7, 60]);
    }
}
