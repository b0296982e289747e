//! The broker's objects, and how each is declared (public contract, section 4).
//!
//! Only what RabbitMQ 3.10 and 4.x both accept: quorum queues named as such, a large positive delivery limit (it also
//! keeps returned messages at the head, in order), nothing transient, no priorities.
//!
//! Publishers of other systems use `taskflow.commands`, whose alternate exchange takes what is misrouted to the dead
//! letters. An alternate exchange hides a missing route from `mandatory`; so our own intake publishes to
//! `taskflow.slots` behind it, where a missing route comes back.

use std::time::Duration;

use futures_util::StreamExt;
use futures_util::future::try_join_all;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, ConfirmSelectOptions, ExchangeBindOptions,
    ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions, QueueDeleteOptions,
};
use lapin::types::{AMQPValue, FieldTable};
use lapin::{Channel, Confirmation, ExchangeKind};
pub use taskflow_core::partition::Partition;
use taskflow_core::partition::{Course, Layout};
use taskflow_core::{partition, slot};
use tokio::time::timeout;

use super::consumer_channel::ConsumerChannel;
use super::link::{Depth, Link};
use super::{STORE, Settings, consume, dead_letters, failed};
use crate::StoreError;

/// Where other systems publish commands.
pub const COMMANDS: &str = partition::QUEUES;
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

/// How long the broker may take for a message that waits.
const ANSWER: Duration = Duration::from_secs(5);
/// How long the client library may take to hand over what has come.
const GIVEN: Duration = Duration::from_millis(100);
/// How often, and how many times, an empty queue is looked at whose consumer has just left.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const LOOKS: u32 = 20;

/// Returns of a message that the broker stands before it dead-letters it: a net, poison is found by the workers.
const DELIVERY_LIMIT: i64 = 1_000;

/// Declares everything that this course needs. Doing so again changes nothing.
///
/// Slots are bound where the course leads, and nowhere else: a binding that is made after its time would divide a
/// subject's commands between two queues. So nobody may take a step of the course meanwhile.
///
/// # Errors
/// [`crate::Kind::Bug`] when an object exists in another form: the text names it.
pub async fn declare(link: &Link, settings: &Settings, course: &Course) -> Result<(), StoreError> {
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
    for partition in course.declared() {
        queue(&channel, &partition.queue(), partition_arguments(settings)).await?;
    }
    bind_slots(&channel, &course.to).await
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

/// The two exchanges of a priority: the public one, and that of the slots.
fn exchanges(low: bool) -> (&'static str, &'static str) {
    if low { (COMMANDS_LOW, SLOTS_LOW) } else { (COMMANDS, SLOTS) }
}

/// 256 slots for each priority, all at once rather than one round trip each.
async fn bind_slots(channel: &Channel, layout: &Layout) -> Result<(), StoreError> {
    for low in [false, true] {
        let (commands, slots) = exchanges(low);
        let queues = (0..=u8::MAX).map(|slot| async move {
            bind(channel, slots, &layout.in_slot(low, slot).queue(), slot::routing_key(slot)).await
        });
        try_join_all(queues).await?;
        let passages = (0..=u8::MAX).map(|slot| async move {
            let options = ExchangeBindOptions::default();
            let bound = channel.exchange_bind(
                slots.into(),
                commands.into(),
                slot::routing_key(slot).into(),
                options,
                FieldTable::default(),
            );
            bound.await.map_err(failed("bind an exchange"))
        });
        try_join_all(passages).await?;
    }
    Ok(())
}

/// Takes the slots from the queues that a course leaves. When this returns, no message is routed to them any more.
/// They must be bound elsewhere before: a message that nobody takes would be lost.
pub async fn unbind_leaving(link: &Link, course: &Course) -> Result<(), StoreError> {
    let channel = link.channel().await?;
    let there = there(link, &course.leaving()).await?;
    for low in [false, true] {
        let (_, slots) = exchanges(low);
        let queues = (0..=u8::MAX).map(|slot| (slot, course.from.in_slot(low, slot)));
        let unbound = queues.filter(|(_, partition)| there.contains(partition)).map(|(slot, partition)| {
            let key = slot::routing_key(slot).into();
            channel.queue_unbind(partition.queue().into(), slots.into(), key, FieldTable::default())
        });
        try_join_all(unbound).await.map_err(failed("unbind a queue"))?;
    }
    Ok(())
}

/// Those of these partitions whose queue exists.
async fn there(link: &Link, partitions: &[Partition]) -> Result<Vec<Partition>, StoreError> {
    let mut there = Vec::with_capacity(partitions.len());
    for partition in partitions {
        if link.find(&partition.queue()).await?.is_some() {
            there.push(*partition);
        }
    }
    Ok(there)
}

/// Whether a queue that nobody is to consume is empty, by the word of its leader, and nobody holds what was in it.
///
/// A look is not enough: of a quorum queue whose leader does not answer, with the majority of its members away or after a
/// quarter of a second, the broker says that there are no messages and no consumers. A consumer is entered by the leader
/// alone, and with one there an answer of "no consumers" is known to be none. What somebody else holds shows in none of
/// that: of several consumers the broker counts the active one. So it must be found without any before ours comes, and
/// after it has gone. `prefetch` is that of the partition's consumers ([`super::consume::prefetch`]): what is given back
/// stays in its order.
///
/// # Errors
/// The leader does not answer.
pub async fn is_empty(link: &Link, partition: Partition, prefetch: u16) -> Result<bool, StoreError> {
    const CALL: &str = "look into a queue";
    let leaderless = || StoreError::unavailable(STORE, CALL, "its leader does not answer");
    let queue = partition.queue();
    match consume::look(link, &queue).await? {
        None => return Ok(true),
        Some(Depth { ready: 0, consumers: 0 }) => {}
        Some(_) => return Ok(false),
    }
    let channel = ConsumerChannel::open(link, prefetch).await?;
    let consumer = channel.consume(&queue, BasicConsumeOptions::default(), CALL);
    let consumer = timeout(ANSWER, consumer).await.unwrap_or_else(|_| Err(leaderless()))?;
    // Dropped in this order, wherever it ends.
    let mut looking = (channel, consumer);
    // By the consumer's own channel, and twice: what it was given comes before the second answer.
    let mut depth = Depth { ready: 0, consumers: 0 };
    for _ in 0..2 {
        let options = QueueDeclareOptions { passive: true, ..QueueDeclareOptions::default() };
        let looked = looking.0.queue_declare(queue.as_str().into(), options, FieldTable::default());
        let looked = timeout(ANSWER, looked).await.map_err(|_| leaderless())?.map_err(failed(CALL))?;
        depth = Depth { ready: looked.message_count(), consumers: looked.consumer_count() };
    }
    let given = timeout(GIVEN, looking.1.next()).await.is_ok();
    looking.0.close(ANSWER).await;
    if depth.consumers == 0 {
        return Err(leaderless());
    }
    if depth.ready > 0 || given {
        return Ok(false);
    }
    // Ours is gone within some milliseconds; whoever stays is somebody else.
    for _ in 0..LOOKS {
        match consume::look(link, &queue).await? {
            None | Some(Depth { ready: 0, consumers: 0 }) => return Ok(true),
            Some(Depth { ready: 0, .. }) => tokio::time::sleep(LOOK_EVERY).await,
            Some(_) => return Ok(false),
        }
    }
    Ok(false)
}

/// Deletes the queue of a partition that is left: unbound, empty, and without a consumer. What is in it in spite of
/// all (a publisher's channel that hung while the slots were bound anew) goes to where its slot is bound now first.
/// Returns how many messages that were.
///
/// The broker can't be asked to delete a quorum queue only if it is empty. So it is looked at until it is, long after
/// the last message can have been routed to it.
pub async fn delete_leaving(link: &Link, partition: Partition, prefetch: u16) -> Result<u32, StoreError> {
    let queue = partition.queue();
    let mut carried = 0;
    let mut looks = 0;
    loop {
        match link.find(&queue).await? {
            None => return Ok(carried),
            Some(Depth { ready: 0, consumers: 0 }) if is_empty(link, partition, prefetch).await? => break,
            Some(Depth { ready: 0, .. }) if looks < LOOKS => {
                looks += 1;
                tokio::time::sleep(LOOK_EVERY).await;
            }
            Some(Depth { ready, consumers: 0 }) => carried += carry(link, partition, ready, prefetch).await?,
            Some(_) => {
                let detail = format!("{queue} has a consumer still");
                return Err(StoreError::unavailable(STORE, "delete a queue", detail));
            }
        }
    }
    let channel = link.channel().await?;
    let deleted = channel.queue_delete(queue.as_str().into(), QueueDeleteOptions::default());
    deleted.await.map_err(|error| named(&queue, failed("delete a queue")(error)))?;
    let _ = channel.close(200, "bye".into()).await;
    Ok(carried)
}

/// Carries so many messages of a queue to where their slot is bound now, one by one, each confirmed before it is
/// acknowledged. By a consumer: the broker gives nothing else out of a queue with a single active one.
async fn carry(link: &Link, partition: Partition, ready: u32, prefetch: u16) -> Result<u32, StoreError> {
    let unavailable = |why| StoreError::unavailable(STORE, "carry a message", why);
    let channel = ConsumerChannel::open(link, prefetch).await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(failed("ask for confirms"))?;
    let options = BasicConsumeOptions::default();
    let consumer = channel.consume(&partition.queue(), options, "take messages").await?;
    // Dropped in this order, wherever it ends.
    let mut taking = (channel, consumer);
    let (_, slots) = exchanges(partition.low);
    let mut carried = 0;
    while carried < ready {
        let next = timeout(ANSWER, taking.1.next()).await;
        let delivery = match next {
            Ok(Some(delivery)) => delivery.map_err(failed("take a message"))?,
            Ok(None) => return Err(unavailable("the broker ended the consumer")),
            Err(_) => break,
        };
        let options = BasicPublishOptions { mandatory: true, ..BasicPublishOptions::default() };
        let (key, properties) = (delivery.routing_key.clone(), dead_letters::carried(&delivery.properties));
        let confirm = taking.0.basic_publish(slots.into(), key, options, &delivery.data, properties);
        let confirm = confirm.await.map_err(failed("carry a message"))?;
        if !matches!(confirm.await.map_err(failed("carry a message"))?, Confirmation::Ack(None)) {
            return Err(unavailable("its new queue does not take it"));
        }
        let acked = delivery.acker.ack(BasicAckOptions::default()).await;
        if !acked.map_err(failed("carry a message"))? {
            return Err(unavailable("the channel is gone"));
        }
        carried += 1;
    }
    taking.0.close(ANSWER).await;
    Ok(carried)
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
