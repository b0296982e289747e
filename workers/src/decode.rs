//! Reading deliveries: commands, and what is none. Nothing here waits for anybody.

use chrono::{DateTime, Utc};
use taskflow_core::batch::{Content, Dead};
use taskflow_core::command::digest;
use taskflow_core::wait::Patience;
use taskflow_core::{Item, envelope, slot};
use taskflow_stores::rabbit::consume::Delivery;
use uuid::Uuid;

use crate::crash;
use crate::waiting::give_up_unknown;

/// A batch of deliveries, read.
pub(crate) struct Decoded {
    /// What gets a receipt, in order.
    pub items: Vec<Item>,
    /// For each item: which delivery it came from, and the intake that waits for its receipt.
    pub origins: Vec<Origin>,
    /// Deliveries without even an id: they go to the dead letters and leave no receipt.
    pub nameless: Vec<(usize, String)>,
}

/// Where an item came from.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Origin {
    /// Index of the delivery.
    pub delivery: usize,
    pub intake: Option<Uuid>,
}

/// Reads deliveries. `now` stands in for the time of acceptance where a publisher gave none.
pub(crate) fn decode(deliveries: &[Delivery], patience: &Patience, now: DateTime<Utc>) -> Decoded {
    let mut decoded = Decoded {
        items: Vec::with_capacity(deliveries.len()),
        origins: Vec::with_capacity(deliveries.len()),
        nameless: Vec::new(),
    };
    for (index, delivery) in deliveries.iter().enumerate() {
        crash::poison(delivery.body());
        // An intake's clock may be ahead of ours; nothing is accepted in the future.
        let accepted_at = delivery.accepted_at().unwrap_or(now).min(now);
        match read(delivery, accepted_at) {
            Ok(item) => {
                decoded.items.push(give_up_unknown(item, patience, now));
                decoded.origins.push(Origin { delivery: index, intake: delivery.intake() });
            }
            Err(detail) => decoded.nameless.push((index, detail)),
        }
    }
    decoded
}

fn read(delivery: &Delivery, accepted_at: DateTime<Utc>) -> Result<Item, String> {
    match envelope::parse(delivery.body()) {
        Ok(command) => {
            let (subject, not_before, expires_at) = (command.subject, command.not_before, command.expires_at);
            let item = Item::command(command, accepted_at);
            // One that was taken before its time was applied at that time at the earliest.
            let was_in_time = |applied_at| expires_at >= not_before.max(Some(applied_at));
            let in_time = delivery.applied_at().is_some_and(was_in_time);
            let item = if in_time { item.applied_in_time() } else { item };
            Ok(in_its_slot(item, subject, delivery))
        }
        Err(malformed) => {
            let detail = malformed.summary();
            let Some(id) = malformed.id else { return Err(detail) };
            let item = |content| Item {
                id,
                fingerprint: digest(delivery.body()),
                accepted_at,
                content,
                waited: None,
            };
            if let Some(unknown) = malformed.unknown {
                let subject = unknown.subject;
                return Ok(in_its_slot(item(Content::Unknown(unknown)), subject, delivery));
            }
            Ok(item(Content::Dead(Dead::unread("malformed", detail))))
        }
    }
}

fn in_its_slot(item: Item, subject: Uuid, delivery: &Delivery) -> Item {
    let expected = slot::routing_key(slot::of(subject));
    if delivery.routing_key() == expected {
        return item;
    }
    let detail = format!(
        "published with routing key {:?}, the subject's slot is {expected:?}: it would overtake or be overtaken",
        delivery.routing_key()
    );
    item.into_dead("wrong_slot", detail)
}
