//! MongoDB's own reaper removes what is past by itself, without asking anybody: a hold keeps its events from it too.

use std::sync::Arc;

use anyhow::ensure;
use libtest_mimic::Trial;
use mongodb::bson::{DateTime, Document, doc};
use serde_json::Value;
use taskflow_core::retention::held_until;
use taskflow_stores::clock;
use taskflow_stores::mongo::events::COLLECTION;
use taskflow_tests::commands::{ADMIN, ndjson};
use taskflow_tests::{Result, Site, wait};

use super::{by_hand, created, until_led};
use crate::{cluster, with_site};

pub(super) fn tests() -> Vec<Trial> {
    vec![with_site("MongoDB's own reaper takes what is past, and nothing of what is on hold", spared)]
}

async fn spared(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    cluster.write_settings(&by_hand(""))?;
    let ((held, first), (free, second)) = (created(ADMIN), created(ADMIN));
    let (worker, (api, client)) = (cluster.worker()?, cluster.api().await?);
    let (status, answer) =
        client.admin().await?.send("application/x-ndjson", ndjson(&[first, second])).await?;
    ensure!(status == 202, "{answer}");
    let events = site.mongo.collection::<Document>(COLLECTION);
    let of = |entity: uuid::Uuid| doc! { "entityId": entity.to_string() };
    for entity in [held, free] {
        wait::until("its events are there", async || Ok(events.count_documents(of(entity)).await? == 1))
            .await?;
    }
    api.stop().await?;
    worker.stop().await?;
    let scheduler = cluster.spawn("scheduler", &[])?;
    until_led(&site).await?;
    let entity = held.to_string();
    let put = ["holds", "put", "--entity", &entity, "--why", "a case", "--as", "ada", "--json"];
    let put = cluster.run(&put, &[]).await?;
    let hold: Value = serde_json::from_slice(&put.stdout)?;
    ensure!(put.status.success() && hold["id"].is_string(), "{hold}");
    // The time of those whose stamp is their own comes.
    let now = DateTime::from_millis(clock::now().timestamp_millis());
    let own = doc! { "$lt": DateTime::from_millis(held_until().timestamp_millis()) };
    for entity in [held, free] {
        let mut own_stamp = of(entity);
        own_stamp.insert("expiresAt", own.clone());
        events.update_many(own_stamp, doc! { "$set": { "expiresAt": now } }).await?;
    }
    wait::until("the reaper has been there", async || Ok(events.count_documents(of(free)).await? == 0))
        .await?;
    ensure!(events.count_documents(of(held)).await? == 1, "what is on hold is gone");
    scheduler.stop().await
}
