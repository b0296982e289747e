//! How many events a second one core seals: canonical bytes, salted digests, leaves, roots and the link of each batch.
//!
//! `cargo run --release -p taskflow-core --example link_rate`

use std::hint::black_box;
use std::time::Instant;

use taskflow_core::audit::leaves::Leaves;
use taskflow_core::audit::link;
use taskflow_core::command::Metadata;
use taskflow_core::event::{Data, Event, EventId};
use uuid::Uuid;

/// Commands of a batch, as workers take them.
const BATCH: usize = 250;
const BATCHES: usize = 2_000;

fn main() {
    let at = chrono::DateTime::from_timestamp_millis(1_900_000_000_000).unwrap_or_default();
    let payload = serde_json::json!({
        "title": "Prepare the quarterly report", "description": "Figures of all regions, with last year's beside them",
        "status": "todo", "priority": "high", "assigneeId": Uuid::from_u128(7), "dueDate": at,
    });
    let events: Vec<Event> = (0..BATCH as u128)
        .map(|number| Event {
            id: EventId::new(at, Uuid::from_u128(number), 0),
            kind: "task.created".into(),
            actor: Uuid::from_u128(1),
            entity: Uuid::from_u128(number),
            entity_type: "task".into(),
            version: Some(1),
            payload: Data::new(&payload),
            metadata: Metadata { ip_address: Some("192.0.2.7".into()), ..Metadata::default() },
            issued_at: at,
            correlation: Uuid::from_u128(number),
            command: Uuid::from_u128(number),
            traceparent: None,
            created_at: at,
            expires_at: at,
        })
        .collect();
    let mut hash = link::genesis("00");
    let start = Instant::now();
    for number in 0..BATCHES as i64 {
        let leaves = Leaves::of(black_box(&events), &[number as u8; 32]);
        let text = leaves.link().unwrap_or_default();
        hash = link::hash(&hash, number, &text);
    }
    let (took, made) = (start.elapsed().as_secs_f64(), (BATCH * BATCHES) as f64);
    println!("{:.0} events/s on one core, {:.2} µs an event ({hash})", made / took, took * 1e6 / made);
    println!("at 10,000 commands a second: {:.1} % of one core", took / made * 10_000.0 * 100.0);
}
