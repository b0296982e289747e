//! Where a command without a receipt may still be.

use std::collections::{HashMap, HashSet};
use std::time::Duration;

use chrono::{DateTime, Utc};
use taskflow_core::command::Priority;
use taskflow_core::partition::{Course, Partition};
use taskflow_stores::StoreError;
use taskflow_stores::postgres::receipts::View;
use taskflow_stores::postgres::{layout, leases, waiting};
use taskflow_stores::rabbit::link::Depth;
use uuid::Uuid;

use super::settle::{self, IDS_AT_ONCE};
use super::stream::{Sent, Streamed};
use crate::connect::Stores;

/// A command that is nowhere must be so at each of these looks: nothing is called lost on the strength of one answer.
const LOOKS: usize = 2;
const BETWEEN: Duration = Duration::from_secs(1);

/// Why commands have no receipt yet; those that are nowhere any more are missing. Those that have got one meanwhile are
/// added to `found`.
pub(super) async fn explain(
    stores: &Stores,
    sent: &Streamed,
    found: &mut HashMap<Uuid, View>,
) -> Result<HashMap<Uuid, String>, StoreError> {
    let mut known: HashMap<Uuid, String> = HashMap::new();
    for look in 0..LOOKS {
        let seen: &HashMap<Uuid, View> = found;
        let open: Vec<(Uuid, Uuid, &Sent)> = sent
            .subjects
            .iter()
            .flat_map(|(subject, one)| settle::missing(one, seen).map(move |id| (id, *subject, one)))
            .filter(|(id, ..)| !known.contains_key(id))
            .collect();
        if open.is_empty() {
            break;
        }
        if look > 0 {
            tokio::time::sleep(BETWEEN).await;
        }
        let ids: Vec<Uuid> = open.iter().map(|(id, ..)| *id).collect();
        let waits = Waits::look(stores, &ids).await?;
        // Only now: a command gets its receipt in the transaction in which it ends to wait.
        settle::read(stores, &ids, found).await?;
        for (id, subject, one) in open {
            known.extend(waits.why(id, subject, one).map(|why| (id, why)));
        }
    }
    Ok(known)
}

/// A look at everything that may keep a command.
struct Waits {
    /// The partitions, and those that they change to.
    course: Course,
    waiting: HashSet<Uuid>,
    /// What the broker says of each queue; nothing of one that is not there.
    queues: HashMap<String, Option<Depth>>,
    /// The broker's words if it does not answer.
    broker: Option<String>,
    /// What was accepted before is finished, by partition that somebody works on.
    reached: HashMap<String, DateTime<Utc>>,
}

impl Waits {
    async fn look(stores: &Stores, missing: &[Uuid]) -> Result<Self, StoreError> {
        let mut waits = Self {
            course: layout::course(&stores.postgres, stores.rabbit.layout()).await?,
            waiting: HashSet::new(),
            queues: HashMap::new(),
            broker: None,
            reached: HashMap::new(),
        };
        for some in missing.chunks(IDS_AT_ONCE) {
            let views = waiting::read_many(&stores.postgres, some).await?;
            waits.waiting.extend(views.iter().map(|view| view.id));
        }
        waits.reached = leases::reached(&stores.postgres).await?.into_iter().collect();
        let mut partitions = waits.course.declared();
        partitions.extend(waits.course.leaving());
        partitions.sort_unstable();
        partitions.dedup();
        for partition in partitions {
            match stores.consume.find(&partition.queue()).await {
                Ok(depth) => {
                    waits.queues.insert(partition.queue(), depth);
                }
                Err(error) => {
                    waits.broker = Some(error.to_string());
                    break;
                }
            }
        }
        Ok(waits)
    }

    /// Why a command has not ended; `None` if nothing keeps it.
    fn why(&self, id: Uuid, subject: Uuid, one: &Sent) -> Option<String> {
        if self.waiting.contains(&id) {
            return Some("it is parked or scheduled".into());
        }
        if let Some(error) = &self.broker {
            return Some(format!("the broker may have it, and does not answer ({error})"));
        }
        let low = one.priority == Priority::Low;
        let either = [self.course.from, self.course.to].map(|layout| layout.of_subject(low, subject));
        either.into_iter().find_map(|partition| self.stands(partition, one))
    }

    /// Why a partition may not have come to a subject's commands.
    fn stands(&self, partition: Partition, one: &Sent) -> Option<String> {
        let queue = partition.queue();
        let depth = self.queues.get(&queue).copied();
        match depth {
            // With a consumer there it is the leader's word; without one an empty queue may be one that nobody leads.
            Some(None | Some(Depth { ready: 0, consumers: 1.. })) => {}
            Some(Some(Depth { ready: 0, .. })) | None => {
                return Some(format!("nobody consumes {queue}, so it is not sure to be empty"));
            }
            Some(Some(Depth { ready, .. })) => return Some(format!("{ready} messages wait in {queue}")),
        }
        match self.reached.get(&partition.to_string()) {
            // A partition that was left, and its queue with it.
            None if depth == Some(None) => None,
            None => Some(format!("nobody works on partition {partition}")),
            Some(at) if *at < one.newest_at => Some(format!("partition {partition} stands at {at}")),
            Some(_) => None,
        }
    }
}
