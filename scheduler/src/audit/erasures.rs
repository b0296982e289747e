//! Whether somebody has ordered what was erased. An order is believed by the event that tells of it, which must be what
//! its link has; the row in `audit_erasures` is in no chain, and excuses only for as long as that event is on its way.
//! It excuses what was told until it was given, and nothing that came after.

use std::collections::{HashMap, HashSet};

use taskflow_core::audit::finding::{Finding, Kind};
use taskflow_core::audit::link;
use taskflow_core::audit::trail::{LeafList, Seen};
use taskflow_core::event::EventId;
use taskflow_stores::mongo;
use taskflow_stores::postgres::{audit_chain, audit_seals};
use uuid::Uuid;

use super::verify::{Error, Verifier};

/// Subjects that are asked about at once.
const TOGETHER: usize = 5_000;

/// An event that was emptied.
pub(super) struct Emptied {
    id: EventId,
    entity: Uuid,
    actor: Uuid,
    created_ms: i64,
}

impl From<&Seen> for Emptied {
    fn from(seen: &Seen) -> Self {
        Self { id: seen.id, entity: seen.entity, actor: seen.actor, created_ms: seen.created_ms }
    }
}

/// When the newest order was given, in milliseconds since 1970, by scope and subject.
type Orders = HashMap<(String, Uuid), i64>;

impl Verifier {
    /// Looks for the orders of erasures.
    pub(super) async fn erased(&mut self, emptied: &[Emptied]) -> Result<(), Error> {
        let subjects: HashSet<Uuid> = emptied.iter().flat_map(|event| [event.entity, event.actor]).collect();
        let subjects: Vec<Uuid> = subjects.into_iter().collect();
        let mut ordered = Orders::new();
        for subjects in subjects.chunks(TOGETHER) {
            ordered.extend(self.ordered(subjects).await?);
        }
        for event in emptied {
            let asked = |scope: &str, subject: Uuid| {
                ordered.get(&(scope.to_owned(), subject)).is_some_and(|at| event.created_ms <= *at)
            };
            if !asked("entity", event.entity) && !asked("actor", event.actor) {
                let detail =
                    "what it told was erased, and no sealed event tells of an order to do so that is younger";
                self.report.add(Finding::new(Kind::ErasedUnasked, detail).event(event.id));
            }
        }
        Ok(())
    }

    /// What of some subjects was ordered to be erased.
    async fn ordered(&self, subjects: &[Uuid]) -> Result<Orders, Error> {
        // First those on their way: an event is in the trail before it leaves Postgres.
        let on_their_way = audit_seals::orders_on_their_way(&self.stores.postgres, subjects).await?;
        let mut ordered: Orders = on_their_way
            .into_iter()
            .map(|(scope, subject, at)| ((scope, subject), at.timestamp_millis()))
            .collect();
        for order in mongo::erasure::orders(&self.stores.mongo, subjects).await? {
            if self.is_linked(&order.seen).await? {
                let newest = ordered.entry((order.scope, order.seen.entity)).or_insert(i64::MIN);
                *newest = order.seen.created_ms.max(*newest);
            }
        }
        Ok(ordered)
    }

    /// Whether an event of the system is what its link has. That the link is what was sealed is found out beside this.
    async fn is_linked(&self, seen: &Seen) -> Result<bool, Error> {
        let (place, postgres) = (&seen.place, &self.stores.postgres);
        let key = (place.partition.clone(), place.number);
        let Some(text) = audit_chain::classes_of(postgres, std::slice::from_ref(&key)).await?.remove(&key)
        else {
            return Ok(false);
        };
        let heads = audit_chain::heads(postgres).await?;
        let head = heads.iter().find(|head| head.partition == place.partition);
        let within = head.is_some_and(|head| (1..=head.number).contains(&place.number));
        let roots = link::read(&text).unwrap_or_default();
        let Some(root) = roots.into_iter().find(|root| within && root.class == place.class) else {
            return Ok(false);
        };
        let list = match root.only {
            Some(only) => Some(LeafList { ids: vec![only], leaves: vec![root.root] }),
            None => mongo::audit_leaves::read(&self.stores.mongo, &place.partition, place.number)
                .await?
                .remove(&place.class),
        };
        let leaf = place.leaf.map_or(usize::MAX, |leaf| leaf as usize);
        Ok(list.filter(|list| list.root() == Some(root.root)).is_some_and(|list| {
            list.ids.get(leaf) == Some(&seen.id)
                && seen.hash.is_some()
                && list.leaves.get(leaf) == seen.hash.as_ref()
        }))
    }
}
