//! The broker's objects, and how each is declared (public contract, section 4).
//!
//! Only what RabbitMQ 3.10 and 4.x both accept: quorum queues named as such, a large positive delivery limit (it also
//! keeps returned messages at the head, in order), nothing transient, no priorities.
//!
//! Publishers of other systems use `taskflow.commands`, whose alternate exchange takes what is misrouted to the dead
//! letters. An alternate exchange hides a missing route from `mandatory`; so our own intake publishes to
//! `taskflow.slots` behind it, where a missing route comes back.

use std::fmt;
use std::str::FromStr;

use futures_util::future::try_join_all;
use lapin::options::{ExchangeBindOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, ExchangeKind};
use taskflow_core::command::{Command, Priority};
use taskflow_core::slot;

use super::link::Link;
use super::{Settings, failed};
use crate::StoreError;

/// Where other systems publish commands.
pub const COMMANDS: &str = "taskflow.commands";
/// The same for low priority.
pub const COMMANDS_LOW: &str = "taskflow.commands.low";
/// Where our own intake publishes: the slots' bindings, without an alternate exchange.
pub const SLOTS: &str = "taskflow.slots";
/// The same for low priority.
pub const SLOTS_LOW: &str = "taskflow.slots.low";
/// Takes what no slot takes.
const UNROUTED: &str = "taskflow.commands.unrouted";
/// Where messages end that nobody can apply.
pub const DEAD_LETTERS: &str = "taskflow.dead-letters";
/// Every event, by its type.
pub const EVENTS: &str = "taskflow.events";

/// Returns of a message that the broker stands before it dead-letters it: a net, poison is found by the workers.
const DELIVERY_LIMIT: i64 = 1_000;

/// One partition queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Partition {
    /// For commands of low priority.
    pub low: bool,
    pub index: u16,
}

impl Partition {
    /// All partitions, those of normal priority first.
    pub fn all(settings: &Settings) -> Vec<Self> {
        let normal = (0..settings.partitions).map(|index| Self { low: false, index });
        let low = (0..settings.low_partitions).map(|index| Self { low: true, index });
        normal.chain(low).collect()
    }

    /// The partition whose queue a command goes to.
    pub fn of(command: &Command, settings: &Settings) -> Self {
        let low = command.priority == Priority::Low;
        let partitions = if low { settings.low_partitions } else { settings.partitions };
        Self { low, index: u16::from(slot::of(command.subject)) % partitions.max(1) }
    }

    /// The name of its queue.
    pub fn queue(self) -> String {
        format!("{COMMANDS}.{self}")
    }
}

impl fmt::Display for Partition {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{:02}", if self.low { "low." } else { "" }, self.index)
    }
}

impl FromStr for Partition {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (low, digits) = text.strip_prefix("low.").map_or((false, text), |digits| (true, digits));
        let index =
            digits.parse().map_err(|_| format!("{text:?} is no partition; one looks like 03 or low.01"))?;
        Ok(Self { low, index })
    }
}

/// Declares everything. Doing so again changes nothing.
///
/// # Errors
/// [`crate::Kind::Bug`] when an object exists in another form: the text names it.
pub async fn declare(link: &Link, settings: &Settings) -> Result<(), StoreError> {
    let channel = link.channel().await?;
    let durable = ExchangeDeclareOptions { durable: true, ..ExchangeDeclareOptions::default() };
    let exchange = async |name: &'static str, kind: ExchangeKind, arguments: FieldTable| {
        let declared = channel.exchange_declare(name.into(), kind, durable, arguments).await;
        declared.map_err(|error| named(name, failed("declare an exchange")(error)))
    };
    queue(
        &channel,
        DEAD_LETTERS,
        table(&[("x-queue-type", text("quorum")), ("x-delivery-limit", number(DELIVERY_LIMIT))]),
    )
    .await?;
    exchange(UNROUTED, ExchangeKind::Fanout, FieldTable::default()).await?;
    bind(&channel, UNROUTED, DEAD_LETTERS, "").await?;
    exchange(EVENTS, ExchangeKind::Topic, FieldTable::default()).await?;
    for (name, slots) in [(COMMANDS, SLOTS), (COMMANDS_LOW, SLOTS_LOW)] {
        exchange(slots, ExchangeKind::Direct, FieldTable::default()).await?;
        exchange(name, ExchangeKind::Direct, table(&[("alternate-exchange", text(UNROUTED))])).await?;
    }
    for partition in Partition::all(settings) {
        queue(&channel, &partition.queue(), partition_arguments(settings)).await?;
    }
    bind_slots(&channel, settings).await
}

fn partition_arguments(settings: &Settings) -> FieldTable {
    table(&[
        ("x-queue-type", text("quorum")),
        ("x-single-active-consumer", AMQPValue::Boolean(true)),
        ("x-max-length", number(settings.queue_length_max)),
        ("x-overflow", text("reject-publish")),
        ("x-delivery-limit", number(DELIVERY_LIMIT)),
        ("x-dead-letter-exchange", text("")),
        ("x-dead-letter-routing-key", text(DEAD_LETTERS)),
        ("x-dead-letter-strategy", text("at-least-once")),
    ])
}

/// 256 slots for each priority, all at once rather than one round trip each.
async fn bind_slots(channel: &Channel, settings: &Settings) -> Result<(), StoreError> {
    let sides = [
        (false, COMMANDS, SLOTS, settings.partitions),
        (true, COMMANDS_LOW, SLOTS_LOW, settings.low_partitions),
    ];
    for (low, commands, slots, partitions) in sides {
        let partitions = partitions.max(1);
        let queues = (0..slot::SLOTS).map(|slot| async move {
            let partition = Partition { low, index: slot % partitions };
            bind(channel, slots, &partition.queue(), slot::routing_key(slot as u8)).await
        });
        try_join_all(queues).await?;
        let passages = (0..slot::SLOTS).map(|slot| async move {
            let key = slot::routing_key(slot as u8);
            let options = ExchangeBindOptions::default();
            let bound = channel.exchange_bind(
                slots.into(),
                commands.into(),
                key.into(),
                options,
                FieldTable::default(),
            );
            bound.await.map_err(failed("bind an exchange"))
        });
        try_join_all(passages).await?;
    }
    Ok(())
}

async fn queue(channel: &Channel, name: &str, arguments: FieldTable) -> Result<(), StoreError> {
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let declared = channel.queue_declare(name.into(), options, arguments).await;
    declared.map(drop).map_err(|error| named(name, failed("declare a queue")(error)))
}

async fn bind(channel: &Channel, exchange: &str, queue: &str, key: &str) -> Result<(), StoreError> {
    let options = QueueBindOptions::default();
    let bound = channel.queue_bind(queue.into(), exchange.into(), key.into(), options, FieldTable::default());
    bound.await.map_err(|error| named(queue, failed("bind a queue")(error)))
}

fn named(name: &str, mut error: StoreError) -> StoreError {
    error.detail = format!("{name}: {}", error.detail);
    error
}

fn table(entries: &[(&str, AMQPValue)]) -> FieldTable {
    let mut table = FieldTable::default();
    for (name, value) in entries {
        table.insert((*name).into(), value.clone());
    }
    table
}

fn text(value: &str) -> AMQPValue {
    AMQPValue::LongString(value.into())
}

fn number(value: i64) -> AMQPValue {
    AMQPValue::LongLongInt(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_known_by_its_name() {
        for partition in [Partition { low: false, index: 3 }, Partition { low: true, index: 11 }] {
            assert_eq!(partition.to_string().parse(), Ok(partition));
        }
        assert_eq!(Partition { low: true, index: 1 }.queue(), "taskflow.commands.low.01");
    }
}
