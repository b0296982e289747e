//! The floor: the barest loop that does the same work of the stores, with the same statements, and nothing else. No
//! validation, no look for duplicates, nothing loaded, no decisions, no retries, no metrics.

use std::time::Instant;

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use serde::Deserialize;
use serde_json::json;
use taskflow_core::audit::Hash;
use taskflow_core::event::{Data, EventId, Retention};
use taskflow_core::partition::Partition;
use taskflow_core::state::{TaskPriority, TaskStatus};
use taskflow_core::{Event, Outcome, Receipt, Task, command};
use taskflow_stores::clock;
use taskflow_stores::mongo::events;
use taskflow_stores::postgres::batch::{self, BatchTransaction, NO_LEASE, Record};
use taskflow_stores::postgres::outbox::Payload;
use taskflow_stores::postgres::{layout, leases};
use taskflow_stores::rabbit::consume::{Delivery, Subscription};
use taskflow_stores::rabbit::publish::Message;
use taskflow_stores::redis::cache::{self, Refresh};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::connect::Stores;
use crate::place::Site;

const BATCH: usize = 500;

/// Drains the backlog; returns commands a second, from the first batch to the last store.
pub(super) async fn run(site: &Site, commands: usize) -> Result<f64> {
    let partitions = site.layout.all().into_iter().filter(|partition| !partition.low);
    let mut expected = Vec::new();
    for partition in partitions {
        let depth = site.stores.consume.depth(&partition.queue()).await?;
        expected.push((partition, depth.ready as usize));
    }
    anyhow::ensure!(
        expected.iter().map(|(_, count)| count).sum::<usize>() == commands,
        "the backlog is not whole"
    );
    let start = Instant::now();
    let mut loops = JoinSet::new();
    for (partition, count) in expected {
        loops.spawn(drain(clone(&site.stores), partition, count));
    }
    while let Some(ended) = loops.join_next().await {
        ended??;
    }
    Ok(commands as f64 / start.elapsed().as_secs_f64())
}

fn clone(stores: &Stores) -> Stores {
    Stores {
        postgres: stores.postgres.clone(),
        mongo: stores.mongo.clone(),
        redis: stores.redis.clone(),
        consume: stores.consume.clone(),
        publisher: stores.publisher.clone(),
        events: stores.events.clone(),
        publish: stores.publish.clone(),
        rabbit: stores.rabbit.clone(),
    }
}

async fn drain(stores: Stores, partition: Partition, mut count: usize) -> Result<()> {
    let name = partition.to_string();
    let stop = CancellationToken::new();
    let subscribed = Subscription::open(&stores.consume, partition, (2 * BATCH) as u16, &stop).await?;
    let mut subscription = subscribed.subscription().context("subscribe")?;
    let stores = std::sync::Arc::new(stores);
    let mut relay: Option<tokio::task::JoinHandle<Result<()>>> = None;
    let step = layout::course(&stores.postgres, stores.rabbit.layout()).await?.step;
    let lease = leases::acquire(&stores.postgres, &name, clock::new_id(), 3_600_000, step).await?;
    let lease = lease.context("somebody has the partition's lease")?;
    while count > 0 {
        let mut deliveries = vec![subscription.next().await?];
        while deliveries.len() < BATCH.min(count) {
            deliveries.push(subscription.next().await?);
        }
        count -= deliveries.len();
        let batch = read(&deliveries)?;
        let mut transaction = BatchTransaction::new(&stores.postgres, NO_LEASE);
        let record = Record {
            partition: &name,
            epoch: lease.epoch,
            commands: deliveries.len(),
            applied_at: clock::now(),
            receipts: &batch.receipts,
            new_tasks: &batch.tasks,
            payload: &batch.payload,
            relayed: &[],
        };
        let number = batch::record(&mut transaction, record).await?.context("the lease is gone")?;
        transaction.commit().await?;
        if let Some(last) = deliveries.last() {
            last.ack_through().await?;
        }
        // One batch behind, as TaskFlow's relay is.
        if let Some(relay) = relay.take() {
            relay.await??;
        }
        relay = Some(tokio::spawn(follow(std::sync::Arc::clone(&stores), name.clone(), number, batch)));
    }
    if let Some(relay) = relay {
        relay.await??;
    }
    subscription.release().await;
    Ok(())
}

async fn follow(stores: std::sync::Arc<Stores>, partition: String, number: i64, batch: Batch) -> Result<()> {
    let collection = events::collection(&stores.mongo);
    let run = events::Run { partition: &partition, number };
    let refresh = Refresh { new: batch.tasks.iter().map(cache::task_entry).collect(), ..Refresh::default() };
    let publish = async {
        let mut pending = Vec::with_capacity(batch.payload.events.len());
        for event in &batch.payload.events {
            pending.push(stores.events.send(Message::event(event, None)).await?);
        }
        for confirm in pending {
            confirm.confirmed().await?;
        }
        anyhow::Ok(())
    };
    let audit =
        async { Ok(events::insert(&collection, run, &batch.payload.events, batch.payload.leaves()).await?) };
    let cached = async { Ok(stores.redis.refresh(&refresh).await?) };
    tokio::try_join!(audit, cached, publish)?;
    sqlx::query("DELETE FROM outbox WHERE partition = $1 AND number = $2")
        .bind(&partition)
        .bind(number)
        .execute(&stores.postgres)
        .await?;
    Ok(())
}

struct Batch {
    tasks: Vec<Task>,
    receipts: Vec<Receipt>,
    payload: Payload,
}

#[derive(Deserialize)]
struct Bare {
    id: Uuid,
    source: String,
    subject: Uuid,
    actorid: Uuid,
    data: BareData,
}

#[derive(Deserialize)]
struct BareData {
    title: String,
    description: Option<String>,
}

fn read(deliveries: &[Delivery]) -> Result<Batch> {
    let now = clock::now();
    let mut batch = Batch {
        tasks: Vec::with_capacity(deliveries.len()),
        receipts: Vec::with_capacity(deliveries.len()),
        // The trail's proofs are the stores' work too.
        payload: Payload { seed: Some(Hash(rand::random())), ..Payload::default() },
    };
    for delivery in deliveries {
        let bare: Bare = serde_json::from_slice(delivery.body())?;
        batch.receipts.push(receipt(&bare, now));
        batch.payload.events.push(event(&bare, now));
        batch.tasks.push(Task {
            version: 1,
            id: bare.subject,
            title: bare.data.title,
            description: bare.data.description,
            status: TaskStatus::Todo,
            priority: TaskPriority::Medium,
            assignee: None,
            creator: bare.actorid,
            created_at: now,
            updated_at: now,
            completed_at: None,
            due_date: None,
            deleted_at: None,
        });
    }
    Ok(batch)
}

fn receipt(bare: &Bare, now: DateTime<Utc>) -> Receipt {
    Receipt {
        id: bare.id,
        kind: Some(command::TYPES[4]),
        subject: Some(bare.subject),
        actor: Some(bare.actorid),
        source: Some(bare.source.clone()),
        outcome: Outcome::Applied,
        code: None,
        detail: None,
        version: Some(1),
        events: 1,
        attempts: 1,
        accepted_at: now,
        finished_at: now,
        fingerprint: *bare.id.as_bytes(),
    }
}

fn event(bare: &Bare, now: DateTime<Utc>) -> Event {
    let payload = json!({
        "title": bare.data.title, "description": bare.data.description, "status": "todo",
        "priority": "medium", "creatorId": bare.actorid,
    });
    Event {
        id: EventId::new(now, bare.id, 0),
        kind: "task.created".into(),
        actor: bare.actorid,
        entity: bare.subject,
        entity_type: "task".into(),
        version: Some(1),
        payload: Data::new(&payload),
        metadata: command::Metadata::default(),
        issued_at: now,
        correlation: bare.id,
        command: bare.id,
        traceparent: None,
        created_at: now,
        expires_at: Retention::default().expires_at("task.created", now),
    }
}
