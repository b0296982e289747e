//! What a restore has set apart: the seals vouch for it as for all else. A mark hides nothing that was slipped in, and
//! what bears it can be neither changed nor removed unseen.

use std::sync::Arc;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use mongodb::bson::{Bson, DateTime, Document, doc, oid::ObjectId};
use serde_json::Value;
use taskflow_stores::mongo::undone::apart;
use taskflow_tests::commands::USER;
use taskflow_tests::{Result, Site, wait};

use super::bent::named;
use super::{Sealed, commands, ok};
use crate::with_site;

pub(super) fn tests() -> Vec<Trial> {
    vec![with_site("audit: what a restore sets apart is sealed again, and bent marks are found", marks)]
}

/// Postgres goes back to the time of its first seal, and the stores are brought to agree. Returns how many events were
/// set apart.
async fn set_back(site: &Site) -> Result<(Sealed<'_>, u64)> {
    let sealed = Sealed::start(site, &commands()).await?;
    site.sql(
        "CREATE TABLE kept_heads AS SELECT * FROM partition_heads; CREATE TABLE kept_links AS SELECT * FROM audit_links;
         CREATE TABLE kept_system AS SELECT * FROM audit_system_head; CREATE TABLE kept_receipts AS SELECT id FROM receipts",
    )
    .await?;
    sealed.apply(&commands()).await?;
    sealed.seal().await?;
    let Sealed { cluster, scheduler, app, .. } = sealed;
    scheduler.stop().await?;
    site.sql(
        "UPDATE partition_heads h SET batch = k.batch, chain = k.chain FROM kept_heads k WHERE k.partition = h.partition;
         DELETE FROM batches b USING kept_heads k WHERE k.partition = b.partition AND b.number > k.batch;
         UPDATE audit_system_head h SET number = k.number, chain = k.chain FROM kept_system k;
         DELETE FROM audit_links; INSERT INTO audit_links SELECT * FROM kept_links;
         DELETE FROM receipts WHERE id NOT IN (SELECT id FROM kept_receipts);
         DELETE FROM audit_seals WHERE number > 1",
    )
    .await?;
    let working = "SELECT (SELECT count(*) FROM workers WHERE expires_at > clock_timestamp())
                        + (SELECT count(*) FROM scheduler_leader WHERE expires_at > clock_timestamp())";
    wait::until("nobody works", async || Ok(site.count(working).await? == 0)).await?;
    // Killed when the links have been named, it names others.
    let died = cluster.run(&["restore", "--agree"], &[("TASKFLOW_CRASH_AT", "agreed:1")]).await?;
    ensure!(!died.status.success(), "it went by the crash");
    let difference: Value = serde_json::from_str(&ok(&cluster, &["restore", "--agree", "--json"]).await?)?;
    let undone = difference["undone_events"].as_u64().context("no count")?;
    ensure!(undone >= 41, "{difference}");
    let scheduler = cluster.spawn("scheduler", &[])?;
    let sealed = Sealed { site, cluster, scheduler, app };
    sealed.seal().await?;
    Ok((sealed, undone))
}

async fn marks(site: Arc<Site>) -> Result {
    let (sealed, undone) = set_back(&site).await?;
    let report = sealed.is_whole().await?;
    let all = sealed.events().count_documents(doc! {}).await?;
    ensure!(report["undone"] == undone && report["proved"] == all, "{all} events: {report}");

    let filter = doc! { "undone.leaf": { "$gte": 1 } };
    let event = sealed.events().find_one(filter).await?.context("nothing was set apart")?;
    let id = event.get_object_id("_id")?;
    let mark = event.get_document("undone")?.clone();
    let set = |field: &str, value: Bson| doc! { "$set": { field: value } };
    let moved = event.get_datetime("createdAt")?.timestamp_millis() + 3;
    for (what, change) in [
        ("its payload", set("payload.title", "bent".into())),
        ("when it was made", set("createdAt", DateTime::from_millis(moved).into())),
        ("when it was set apart", set("undone.at", DateTime::from_millis(moved).into())),
        ("its epoch", set("undone.epoch", 7_i64.into())),
        ("who it was", set("undone.id", ObjectId::new().to_hex().into())),
        ("its place", set("undone.leaf", 0_i32.into())),
        ("its link", set("undone.n", (mark.get_i64("n")? + 1_000).into())),
        ("a mark without a link", doc! { "$unset": { "undone.n": "", "undone.leaf": "" } }),
        ("no mark", doc! { "$unset": { "undone": "" } }),
        ("a field of the mark more", set("undone.note", "a lie".into())),
    ] {
        let changed = sealed.events().update_one(doc! { "_id": id }, change).await?;
        ensure!(changed.modified_count == 1, "{what} was not changed");
        let report = sealed.verify().await?;
        ensure!(named(&report, "event_changed")? == [id.to_hex()], "{what}: {report}");
        sealed.events().replace_one(doc! { "_id": id }, &event).await?;
    }
    sealed.events().delete_one(doc! { "_id": id }).await?;
    let report = sealed.verify().await?;
    ensure!(named(&report, "event_missing")? == [id.to_hex()], "{report}");
    sealed.events().insert_one(&event).await?;
    sealed.is_whole().await?;
    inserted(&sealed, &event, &mark).await?;

    // An event that was not undone is not hidden by a mark.
    let there = doc! { "undone": { "$exists": false }, "run.leaf": { "$gte": 1 } };
    let there = sealed.events().find_one(there).await?.context("all were set apart")?;
    let id = there.get_object_id("_id")?;
    sealed.events().update_one(doc! { "_id": id }, doc! { "$set": { "undone": &mark } }).await?;
    let report = sealed.verify().await?;
    ensure!(named(&report, "event_changed")? == [id.to_hex()], "{report}");
    sealed.events().replace_one(doc! { "_id": id }, &there).await?;

    // Nothing proves that it happened; what it tells of a person is erased as of all others.
    let id = event.get_object_id("_id")?.to_hex();
    let proof = sealed.cluster.run(&["audit", "prove", &id], &[]).await?;
    ensure!(String::from_utf8_lossy(&proof.stderr).contains("undone"), "{proof:?}");
    let user = USER.to_string();
    let erase = ["audit", "erase", "--actor", user.as_str(), "--why", "asked for", "--yes", "--json"];
    let done: Value = serde_json::from_str(&ok(&sealed.cluster, &erase).await?)?;
    ensure!(done["erased"] == 40 && done["unsealed"] == 0, "{done}");
    let whole = sealed.is_whole().await?;
    ensure!(whole["undone"] == undone && whole["erased"].as_u64() >= Some(40), "{whole}");
    sealed.stop().await
}

/// Events that were slipped in with a mark, each as well made as who has no key can.
async fn inserted(sealed: &Sealed<'_>, event: &Document, mark: &Document) -> Result {
    let was = ObjectId::new();
    let named_of = |epoch: i64| ObjectId::from_bytes(apart(epoch, was.bytes()));
    let of = |epoch: i64, more: Document| {
        let mut mark = doc! { "epoch": epoch, "at": DateTime::now(), "id": was.to_hex() };
        mark.extend(more);
        Bson::from(mark)
    };
    let place = doc! { "n": mark.get_i64("n")?, "leaf": mark.get_i32("leaf")? };
    for (what, id, mark) in [
        ("an epoch that there is", named_of(1), of(1, doc! {})),
        ("an epoch that there is not", named_of(99), of(99, doc! {})),
        ("a place that is taken", named_of(1), of(1, place.clone())),
        ("a place behind the others", named_of(1), of(1, doc! { "n": mark.get_i64("n")?, "leaf": 5_000 })),
        ("another's mark", ObjectId::new(), mark.clone().into()),
        ("an empty one", ObjectId::new(), Document::new().into()),
        ("no document", ObjectId::new(), "yes".into()),
    ] {
        let mut forged = event.clone();
        forged.insert("_id", id);
        forged.insert("undone", mark);
        sealed.events().insert_one(&forged).await?;
        let report = sealed.verify().await?;
        let found = named(&report, "event_inserted").with_context(|| what.to_owned())?;
        ensure!(found == [id.to_hex()], "{what}: {report}");
        sealed.events().delete_one(doc! { "_id": id }).await?;
    }
    sealed.is_whole().await.map(|_| ())
}
