//! The dead letters: messages that nobody can apply, with their bytes untouched and the reason beside them.

use lapin::types::{AMQPValue, FieldTable};

use super::consume::Delivery;
use super::publish::{Message, PublishError, Publisher};
use super::topology::{DEAD_LETTERS, Partition};
use crate::StoreError;

/// Characters of the reason's text; headers have to fit into one frame.
const DETAIL_MAX: usize = 1_000;

/// Puts a message into the dead letters. Returns when the broker has it for good.
pub async fn send(
    publisher: &Publisher,
    partition: Partition,
    delivery: &Delivery,
    reason: &str,
    detail: &str,
) -> Result<(), StoreError> {
    let mut headers = FieldTable::default();
    if let Some(given) = delivery.properties().headers() {
        // The broker's own notes on earlier deaths would look like a cycle.
        for (name, value) in given.inner().iter().filter(|(name, _)| !name.as_str().starts_with("x-")) {
            headers.insert(name.clone(), value.clone());
        }
    }
    let text = |value: &str| AMQPValue::LongString(value.into());
    let detail: String = detail.chars().take(DETAIL_MAX).collect();
    headers.insert("taskflow-reason".into(), text(reason));
    headers.insert("taskflow-detail".into(), text(&detail));
    headers.insert("taskflow-queue".into(), text(&partition.queue()));
    headers.insert("taskflow-routing-key".into(), text(delivery.routing_key()));
    headers.insert("taskflow-returns".into(), AMQPValue::LongLongInt(delivery.returns()));
    let message = Message {
        exchange: "".into(),
        routing_key: DEAD_LETTERS.into(),
        body: delivery.body().to_vec(),
        properties: delivery.properties().clone().with_headers(headers).with_delivery_mode(2),
        mandatory: true,
        lane: 0,
    };
    match publisher.publish(message).await {
        Ok(()) => Ok(()),
        Err(PublishError::Unavailable(error)) => Err(error),
        Err(error) => Err(StoreError::unavailable("rabbitmq", "send to the dead letters", error)),
    }
}
