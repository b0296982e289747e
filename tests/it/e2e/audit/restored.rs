//! A restore ends with the audit trail's seals: of a trail that is whole, and of one that was bent before it was saved.

use std::sync::Arc;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use mongodb::bson::{Document, doc};
use serde_json::{Value, json};
use taskflow_stores::mongo::events::COLLECTION;
use taskflow_tests::backups::{Backups, own, text};
use taskflow_tests::{Result, Site, wait};

use super::{Sealed, commands};
use crate::with_site;

pub(super) fn tests() -> Vec<Trial> {
    vec![with_site("audit: a restore ends by verifying the seals, and says what was bent", restored)]
}

/// What a restore says of the seals; `code` is how it must end.
async fn seals(backups: &Backups<'_>, args: &[&str], code: i32) -> Result<Value> {
    let args = [args, &["--json"]].concat();
    let output = backups.run(&args, &[]).await?;
    ensure!(output.status.code() == Some(code), "{args:?}: {}", text(&output));
    let done: Value = serde_json::from_slice(&output.stdout).with_context(|| text(&output))?;
    let last = done.as_array().and_then(|done| done.last()).context("nothing was restored")?;
    let last = if last["restored"].is_null() { last } else { &last["restored"] };
    Ok(last["seals"].clone())
}

fn over_live<'a>(id: &'a str, live: &'a str) -> [&'a str; 5] {
    ["restore", id, "--over-live", "--replace", live]
}

async fn restored(site: Arc<Site>) -> Result {
    let sealed = Sealed::start(&site, &commands()).await?;
    let backups = Backups::new(&sealed.cluster);
    let live = own(&site);
    let into = |name: &str| format!("{live}_{name}");
    let dump = backups.create("postgres").await?;
    // The trail is older or newer than Postgres, as it comes.
    sealed.apply(&commands()).await?;
    sealed.seal().await?;
    let trail = backups.create("mongodb").await?;
    sealed.apply(&commands()).await?;
    let later = backups.create("postgres").await?;
    for (name, ids, part) in [
        ("both", vec![&dump, &trail], None),
        ("newer", vec![&later, &trail], None),
        ("dump", vec![&dump], None),
        ("trail", vec![&trail], None),
        ("part", vec![&trail], Some("event_logs")),
    ] {
        let into = into(name);
        let mut args = vec!["restore", "--into", &into];
        args.extend(ids.iter().map(|id| id.as_str()));
        args.extend(part.iter().flat_map(|part| ["--collection", part]));
        let said = seals(&backups, &args, 0).await?;
        if part.is_some() {
            ensure!(said["not_verified"].is_string(), "{said}");
            continue;
        }
        let verified = &said["verified"];
        ensure!(verified["found"] == json!({}), "{name}: {said}");
        ensure!(
            verified["through"].as_u64() >= Some(1) && verified["proved"].as_u64() >= Some(41),
            "{name}: {said}"
        );
    }
    // A drill verifies them too.
    let Sealed { cluster, scheduler, .. } = sealed;
    scheduler.stop().await?;
    let backups = Backups::new(&cluster);
    let scheduler = cluster.spawn("scheduler", &backups.env())?;
    let drill = ["jobs", "run", "backup.drill"];
    let done = backups.ask(&drill).await?;
    let said = done["figures"]["trail"]["detail"].as_str().unwrap_or_default();
    ensure!(done["state"] == "completed" && said.contains("as it was sealed, up to seal"), "{done}");
    // Bent while it was live, and saved like that: the backup is as it was, and the trail in it is not what was sealed.
    let events = site.mongo.collection::<Document>(COLLECTION);
    let event = events.find_one(doc! { "run.leaf": { "$gte": 1 } }).await?.context("no event")?;
    let id = event.get_object_id("_id")?;
    events.update_one(doc! { "_id": id }, doc! { "$set": { "payload.title": "bent" } }).await?;
    let bent = backups.create("mongodb").await?;
    let (code, said) = backups.refused(&[&drill[..], &["--json"]].concat(), &[]).await?;
    ensure!(code == Some(1) && said.contains(&bent) && said.contains("1 event_changed"), "{said}");
    let into = into("bent");
    let said = seals(&backups, &["restore", &later, &bent, "--into", &into], 1).await?;
    ensure!(said["verified"]["found"] == json!({ "event_changed": 1 }), "{said}");
    ensure!(said["verified"]["findings"].to_string().contains(&id.to_hex()), "{said}");
    // In the place of what is live too; and with the good one there again, all is well.
    scheduler.stop().await?;
    let working = "SELECT count(*) FROM workers WHERE expires_at > clock_timestamp()";
    wait::until("nobody works", async || Ok(site.count(working).await? == 0)).await?;
    let said = seals(&backups, &over_live(&bent, &live), 1).await?;
    ensure!(said["verified"]["found"] == json!({ "event_changed": 1 }), "{said}");
    let said = seals(&backups, &over_live(&trail, &live), 0).await?;
    ensure!(said["verified"]["found"] == json!({}), "{said}");
    // What was live was saved before, with the reason; the rules hold that.
    let listed = backups.ask(&["backup", "list", "--kind", "mongodb"]).await?;
    let reasons = listed.as_array().into_iter().flatten().filter_map(|one| one["reason"].as_str());
    ensure!(reasons.filter(|reason| reason.contains("took the place")).count() == 2, "{listed}");
    let other = crate::cluster(&site)?;
    let nothing = Backups::new(&other).at(&backups.folder);
    let said = seals(&nothing, &["restore", &trail, "--into", &format!("{live}_keyless")], 0).await?;
    ensure!(said["not_verified"].as_str().is_some_and(|why| why.contains("public_keys_path")), "{said}");
    Ok(())
}
