//! What `restore --agree` takes for undone, and what it erases once more.

use std::sync::Arc;

use anyhow::{Context, ensure};
use mongodb::bson::{Document, doc};
use serde_json::Value;
use taskflow_stores::mongo::events::COLLECTION;
use taskflow_tests::backups::text;
use taskflow_tests::{Cluster, Result, Site, wait};

use crate::cluster;
use crate::faults::backups::filled;

/// Receipts that retention has removed are no sign that their commands were undone; data that was to be erased and is
/// there again, as after a restore of an older backup, goes once more.
pub(super) async fn aged_and_erased(site: Arc<Site>) -> Result {
    filled(&site).await?;
    let cluster = cluster(&site)?;
    let told = site.events().await?.len();
    site.sql("DELETE FROM receipts").await?;
    let difference = agree(&cluster).await?;
    ensure!(difference["undone_events"] == 0 && difference["undone_commands"] == 0, "{difference}");
    ensure!(difference["erased_again"] == 0, "{difference}");

    let events = site.mongo.collection::<Document>(COLLECTION);
    let of_tasks = doc! { "type": { "$regex": "^task" } };
    let before = events.find_one(of_tasks).await?.context("no event of a task")?;
    let entity = before.get_str("entityId")?.to_owned();
    let filter = doc! { "_id": before.get_object_id("_id")? };
    let erase = ["audit", "erase", "--entity", &entity, "--why", "asked for", "--yes", "--json"];
    let erased = cluster.run(&erase, &[]).await?;
    // 1: events may be on their way, since nobody works.
    ensure!(matches!(erased.status.code(), Some(0 | 1)), "{}", text(&erased));
    let payload = async || -> Result<Document> {
        let event = events.find_one(filter.clone()).await?.context("the event is gone")?;
        Ok(event.get_document("payload")?.clone())
    };
    ensure!(payload().await?.is_empty(), "it was not erased");
    events.replace_one(filter.clone(), &before).await?;
    ensure!(!payload().await?.is_empty(), "it did not come back");
    let difference = agree(&cluster).await?;
    ensure!(difference["erased_again"] == 1 && payload().await?.is_empty(), "{difference}");
    ensure!(difference["undone_events"] == 0, "{difference}");
    // Nothing has gone, and the installation goes on.
    let worker = cluster.worker()?;
    wait::until(
        "both restores and the erasure are told",
        async || Ok(site.events().await?.len() >= told + 3),
    )
    .await?;
    worker.stop().await
}

async fn agree(cluster: &Cluster<'_>) -> Result<Value> {
    let said = cluster.run(&["restore", "--agree", "--json"], &[]).await?;
    ensure!(said.status.success(), "{}", text(&said));
    serde_json::from_slice(&said.stdout).with_context(|| text(&said))
}
