//! The steps of a change of the number of partitions. Whoever comes by takes the next one: every worker, and the
//! command that has asked for it where no worker is alive. So it goes on whoever dies, and each step may be taken again from its beginning.
//!
//! Order holds since a subject's old queue is empty, and all that came of it has reached every store, before anything
//! of its new queue is applied; since the new queue has the messages in the order in which the broker took them; and
//! since nobody can commit under an old lease any more by then. Publishers are never asked to wait.

use std::collections::BTreeMap;
use std::time::Duration;

use taskflow_core::metric;
use taskflow_core::partition::{Course, Layout, Partition, Phase};
use taskflow_stores::postgres::PgPool;
use taskflow_stores::postgres::layout::{self, Turn};
use taskflow_stores::postgres::silence;
use taskflow_stores::rabbit::link::Link;
use taskflow_stores::rabbit::{Settings, consume, topology};
use taskflow_stores::{StoreError, observe};
use tokio_util::sync::CancellationToken;

use crate::{Context, crash};

/// How long a phase lasts at least in which old queues are watched: what was routed to one by the broker just before
/// its slots were taken from it has arrived by then.
const SETTLE_S: f64 = 1.0;
/// Between two looks while a change is under way.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// The longest that the broker's part of a step may take; the right to it lasts longer.
const LONGEST: Duration = Duration::from_secs(60);
/// The longest that a whole step may take, Postgres's part included.
pub const LONGEST_STEP: Duration = Duration::from_secs(300);

/// What a change waits for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Waits {
    /// Messages in old queues, by queue.
    pub messages: BTreeMap<String, u32>,
    /// Old queues that somebody still consumes.
    pub consumers: u32,
    pub leases: i64,
    /// Batches of old partitions that some other store may not have.
    pub outbox: i64,
}

impl Waits {
    /// Whether the old queues and what came of them are at their end, whoever still has them.
    fn is_drained(&self) -> bool {
        self.messages.is_empty() && self.outbox == 0
    }

    fn is_over(&self) -> bool {
        self.is_drained() && self.consumers == 0 && self.leases == 0
    }
}

/// Looks at what a course leaves.
pub async fn look(postgres: &PgPool, link: &Link, course: &Course) -> Result<Waits, StoreError> {
    let leaving = course.leaving();
    let mut waits = Waits::default();
    // The leases first: after the last one is gone nothing comes back to a queue that has no consumer.
    let left = layout::left(postgres, &layout::names(&leaving)).await?;
    (waits.leases, waits.outbox) = (left.leases, left.outbox);
    for partition in leaving {
        // One that somebody has deleted is empty for good.
        let Some(depth) = link.find(&partition.queue()).await? else { continue };
        waits.consumers += depth.consumers;
        if depth.ready > 0 {
            waits.messages.insert(partition.queue(), depth.ready);
        }
    }
    Ok(waits)
}

/// Takes the next step of a change, if there is one and it can be taken now. Returns what there is afterwards.
/// `prefetch` is that of the partitions' consumers.
pub async fn advance(
    postgres: &PgPool,
    link: &Link,
    settings: &Settings,
    prefetch: u16,
) -> Result<Course, StoreError> {
    let fresh = settings.layout();
    if let Some(turn) = layout::turn(postgres, fresh).await? {
        let step = Step { postgres, link, settings, prefetch };
        match turn.course.phase {
            Phase::Settled => {}
            Phase::Binding => step.bind(turn).await?,
            Phase::Draining => step.drain(turn).await?,
            Phase::Stopping => step.stop(turn).await?,
            Phase::Clearing => step.clear(turn).await?,
        }
    }
    layout::course(postgres, fresh).await
}

struct Step<'s> {
    postgres: &'s PgPool,
    link: &'s Link,
    settings: &'s Settings,
    prefetch: u16,
}

impl Step<'_> {
    async fn bind(&self, turn: Turn) -> Result<(), StoreError> {
        crash::point("change_begun");
        in_time(topology::declare(self.link, self.settings, &turn.course)).await?;
        crash::point("change_bound");
        in_time(topology::unbind_leaving(self.link, &turn.course)).await?;
        crash::point("change_unbound");
        enter(turn, Phase::Draining).await
    }

    async fn drain(&self, mut turn: Turn) -> Result<(), StoreError> {
        if turn.age_s().await? < SETTLE_S || !in_time(self.look(&turn.course)).await?.is_drained() {
            return Ok(());
        }
        crash::point("change_drained");
        enter(turn, Phase::Stopping).await
    }

    async fn stop(&self, turn: Turn) -> Result<(), StoreError> {
        let course = turn.course;
        let names = layout::names(&course.leaving());
        if layout::left(self.postgres, &names).await?.leases > 0 {
            return Ok(());
        }
        // No lease is given in this phase: from here on nobody commits anything of the old partitions.
        layout::fence(self.postgres, &names).await?;
        crash::point("change_fenced");
        // Once more: a process that was just starting may have bound them again.
        in_time(topology::unbind_leaving(self.link, &course)).await?;
        let waits = in_time(self.look(&course)).await?;
        if !waits.is_drained() {
            if waits.consumers == 0 && waits.leases == 0 {
                // Somebody died with messages in hand, or a sink did not follow in time.
                tracing::info!(?waits, "Old partitions are not at their end; they are consumed once more.");
                self.assign_waiting(course.from).await?;
                return enter(turn, Phase::Draining).await;
            }
            return Ok(());
        }
        if !waits.is_over() {
            return Ok(());
        }
        // What is counted may be the broker's "nothing" of a queue that it knows nothing of.
        for partition in course.leaving() {
            if !in_time(topology::is_empty(self.link, partition, self.prefetch)).await? {
                return Ok(());
            }
        }
        let moved = self.assign_waiting(course.to).await?;
        crash::point("change_moved");
        let Some(ended) = turn.switch(&names).await? else { return Ok(()) };
        crash::point("change_switched");
        tracing::info!(from = %course.from, to = %course.to, waiting = moved, "Commands are applied by the new partitions.");
        for scope in ended {
            tracing::warn!(scope, "The pause has ended with its partition.");
        }
        Ok(())
    }

    async fn clear(&self, mut turn: Turn) -> Result<(), StoreError> {
        if turn.age_s().await? < SETTLE_S {
            return Ok(());
        }
        let course = turn.course;
        in_time(topology::unbind_leaving(self.link, &course)).await?;
        for partition in course.leaving() {
            let carried = in_time(topology::delete_leaving(self.link, partition, self.prefetch)).await?;
            if carried > 0 {
                tracing::warn!(
                    queue = partition.queue(),
                    carried,
                    "An old queue got messages late; they were carried to where they belong now."
                );
            }
            crash::point("change_deleted");
        }
        crash::point("change_cleared");
        enter(turn, Phase::Settled).await
    }

    async fn look(&self, course: &Course) -> Result<Waits, StoreError> {
        look(self.postgres, self.link, course).await
    }

    async fn assign_waiting(&self, layout: Layout) -> Result<u64, StoreError> {
        layout::assign_waiting(self.postgres, layout).await
    }
}

async fn enter(turn: Turn, phase: Phase) -> Result<(), StoreError> {
    if turn.enter(phase).await? {
        tracing::info!(phase = phase.as_str(), "The change of the number of partitions goes on.");
    }
    Ok(())
}

async fn in_time<T>(work: impl Future<Output = Result<T, StoreError>>) -> Result<T, StoreError> {
    let late = |_| Err(StoreError::unavailable("rabbitmq", "change the partitions", "no answer in time"));
    tokio::time::timeout(LONGEST, work).await.unwrap_or_else(late)
}

/// Takes steps while there are any, until `stop`. Between changes it costs nothing: the heartbeat tells of one.
pub(crate) async fn run(context: &Context, stop: &CancellationToken) {
    let mut known = context.course.subscribe();
    let stores = &context.stores;
    let prefetch = consume::prefetch(context.settings.max_batch);
    loop {
        crash::point("change");
        tokio::select! {
            () = stop.cancelled() => return,
            changing = known.wait_for(|course| !course.is_settled()) => if changing.is_err() { return },
        }
        let advanced = Box::pin(advance(&stores.postgres, &stores.consume, &stores.rabbit, prefetch));
        if let Err(error) = silence::within(LONGEST_STEP, "change the partitions", advanced).await
            && context.complaints.due().is_some()
        {
            tracing::warn!(%error, "The change of the number of partitions waits.");
        }
        // Several workers look: not in step.
        let pause = LOOK_EVERY.mul_f64(rand::random_range(0.5..=1.0));
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// Takes over what the heartbeat tells of the partitions.
pub(crate) fn learn(context: &Context, course: Course) {
    let before = *context.course.borrow();
    if before == course {
        return;
    }
    context.course.send_replace(course);
    show(&course);
    tracing::info!(
        step = course.step, phase = course.phase.as_str(), from = %course.from, to = %course.to,
        "The partitions change."
    );
}

pub(crate) fn show(course: &Course) {
    let changing = if course.is_settled() { 0.0 } else { 1.0 };
    observe::gauge(&metric::PARTITIONS_CHANGING, &[]).set(changing);
    observe::gauge(&metric::PARTITIONS, &[]).set(course.consumed().len() as f64);
}

/// Whether partitions are the same to Postgres, where only names count.
pub(crate) fn same_name(one: Partition, other: Partition) -> bool {
    (one.low, one.index) == (other.low, other.index)
}
