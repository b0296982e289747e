//! Tampering, each kind on the real stores: what is bent is found, under its name and its ids, and nothing else is. Then
//! it is put back, and the trail is whole again.

use std::sync::Arc;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use mongodb::bson::{Bson, DateTime, Document, doc, oid::ObjectId};
use serde_json::{Value, json};
use taskflow_tests::commands::ADMIN;
use taskflow_tests::{Result, Site, wait};

use super::{Sealed, commands, ok, run};
use crate::with_site;

pub(super) fn tests() -> Vec<Trial> {
    vec![
        with_site("audit: bent events are found and named", events),
        with_site("audit: bent seals and chains are found and named", seals),
        with_site("audit: a collection that was set back is found", collection),
        with_site("audit: Postgres that was set back is not sealed over before somebody says why", postgres),
        with_site("audit: the scheduled verification tells of what it finds", told),
    ]
}

/// The ids that findings of a kind name, the others must not be there.
pub(super) fn named(report: &Value, kind: &str) -> Result<Vec<String>> {
    let findings = report["findings"].as_array().context("no findings")?;
    let others: Vec<&Value> = findings.iter().filter(|one| one["kind"] != kind).collect();
    ensure!(others.is_empty() && !findings.is_empty(), "{kind} was looked for: {report}");
    Ok(findings.iter().filter_map(|one| one["event"].as_str()).map(str::to_owned).collect())
}

/// An event beside which its batch has others.
async fn victim(sealed: &Sealed<'_>) -> Result<(ObjectId, Document)> {
    let event =
        sealed.events().find_one(doc! { "run.leaf": { "$gte": 1 } }).await?.context("no batch of several")?;
    Ok((event.get_object_id("_id")?, event))
}

async fn events(site: Arc<Site>) -> Result {
    let sealed = Sealed::start(&site, &commands()).await?;
    sealed.is_whole().await?;
    let (id, event) = victim(&sealed).await?;
    let other = id_of(super::id());
    let set = |field: &str, value: Bson| doc! { "$set": { field: value } };
    let moved = event.get_datetime("createdAt")?.timestamp_millis() + 3;
    let changes = [
        ("a field of the payload", set("payload.title", "bent".into())),
        ("who did it", set("actorId", other.clone().into())),
        ("what it is about", set("entityId", other.into())),
        ("what happened", set("type", "task.deleted".into())),
        ("when", set("createdAt", DateTime::from_millis(moved).into())),
        ("when, long ago", set("createdAt", DateTime::from_millis(1_000_000_000_000).into())),
        ("its version", set("version", 7.into())),
        ("a field more", set("note", "a lie".into())),
        ("from where", set("metadata.ipAddress", "192.0.2.1".into())),
        ("its place", doc! { "$inc": { "run.leaf": -1 } }),
        ("its batch", doc! { "$inc": { "run.n": 1_000_i64 } }),
        ("its salt", doc! { "$unset": { "salt": "" } }),
    ];
    for (what, change) in changes {
        let changed = sealed.events().update_one(doc! { "_id": id }, change).await?;
        ensure!(changed.modified_count == 1, "{what} was not changed");
        let report = sealed.verify().await?;
        // One that says it stands elsewhere, or that it was made long before it was sealed, is found there.
        ensure!(named(&report, "event_changed")? == [id.to_hex()], "{what}: {report}");
        sealed.events().replace_one(doc! { "_id": id }, &event).await?;
    }
    sealed.is_whole().await?;

    sealed.events().delete_one(doc! { "_id": id }).await?;
    let report = sealed.verify().await?;
    ensure!(named(&report, "event_missing")? == [id.to_hex()], "{report}");
    sealed.events().insert_one(&event).await?;

    let forged = ObjectId::new();
    let mut copy = event.clone();
    copy.insert("_id", forged);
    sealed.events().insert_one(&copy).await?;
    let report = sealed.verify().await?;
    ensure!(named(&report, "event_inserted")? == [forged.to_hex()], "{report}");
    sealed.events().delete_one(doc! { "_id": forged }).await?;

    // In a batch that had none, and as if it were from before there were seals.
    for run in [
        doc! { "p": "00", "n": 0_i64, "i": 0, "class": "task_events", "leaf": 0 },
        doc! { "p": "00", "n": 1_000_000_i64, "i": 0 },
    ] {
        copy.insert("run", run);
        sealed.events().insert_one(&copy).await?;
        let report = sealed.verify().await?;
        ensure!(named(&report, "event_inserted")? == [forged.to_hex()], "{report}");
        sealed.events().delete_one(doc! { "_id": forged }).await?;
    }

    inserted(&sealed, &event).await?;
    linked(&sealed, &event).await?;

    // Emptied as an erasure does it, but nobody has ordered one.
    let erased = taskflow_stores::mongo::retention::Subject::Actor(ADMIN);
    let now = taskflow_stores::clock::now();
    taskflow_stores::mongo::erasure::step(&site.mongo, erased, now, now).await?;
    let report = sealed.verify().await?;
    let emptied = sealed.events().count_documents(doc! { "erasedAt": { "$exists": true } }).await?;
    ensure!(emptied > 0 && named(&report, "erased_unasked")?.len() as u64 == emptied, "{report}");
    // A row in a table is no order, nor is an event that somebody has slipped in.
    let row = format!("gen_random_uuid(), 'actor', '{ADMIN}', 'asked for', 'ada', now()");
    site.sql(&format!("INSERT INTO audit_erasures VALUES ({row})")).await?;
    let report = sealed.verify().await?;
    ensure!(named(&report, "erased_unasked")?.len() as u64 == emptied, "{report}");
    copy.extend(doc! {
        "_id": ObjectId::new(), "type": "system.data_erased", "entityType": "system", "entityId": ADMIN.to_string(),
        "payload": { "author": "ada", "scope": "actor", "why": "asked for" },
    });
    sealed.events().insert_one(&copy).await?;
    let found = sealed.verify().await?["found"].clone();
    ensure!(found == json!({ "erased_unasked": emptied, "event_inserted": 1 }), "{found}");
    sealed.stop().await
}

/// Events that were slipped in, whatever their time: before the first batch, between two, after the newest seal, in years
/// to come, and without any.
async fn inserted(sealed: &Sealed<'_>, event: &Document) -> Result {
    let own = event.get_document("run")?.clone();
    let mut later = own.clone();
    later.insert("n", own.get_i64("n")? + 7_000);
    let mut leafless = own.clone();
    leafless.remove("leaf");
    let (mut negative, mut nowhere) = (leafless.clone(), own.clone());
    negative.insert("n", -1_i64);
    nowhere.insert("p", "97");
    let of_now = DateTime::now().timestamp_millis();
    let times = [
        Bson::DateTime(DateTime::from_millis(1_000_000_000_000)),
        Bson::DateTime(DateTime::from_millis(-1_000_000_000_000)),
        Bson::DateTime(DateTime::from_millis(event.get_datetime("createdAt")?.timestamp_millis() - 1)),
        Bson::DateTime(DateTime::from_millis(of_now)),
        Bson::DateTime(DateTime::from_millis(of_now + 86_400_000_000)),
        Bson::String("yesterday".to_owned()),
        Bson::Timestamp(mongodb::bson::Timestamp { time: 1, increment: 1 }),
    ];
    for time in &times {
        for run in [&own, &later, &leafless, &negative, &nowhere] {
            let mut forged = event.clone();
            let id = ObjectId::new();
            for (field, value) in
                [("_id", id.into()), ("createdAt", time.clone()), ("run", run.clone().into())]
            {
                forged.insert(field, value);
            }
            sealed.events().insert_one(&forged).bypass_document_validation(true).await?;
            let report = sealed.verify().await?;
            let found = named(&report, "event_inserted").with_context(|| format!("{time} {run}"))?;
            ensure!(found == [id.to_hex()], "{time} {run}: {report}");
            sealed.events().delete_one(doc! { "_id": id }).await?;
        }
    }
    sealed.is_whole().await?;
    // What nobody has sealed yet is no insertion, and what is bent of it is found before it is sealed.
    sealed.apply(&commands()).await?;
    let report = sealed.is_whole().await?;
    let newest = doc! { "type": "task.created", "createdAt": { "$gte": DateTime::from_millis(of_now) } };
    let unsealed = sealed.events().find_one(newest).await?.context("nothing is unsealed")?;
    let id = unsealed.get_object_id("_id")?;
    sealed.events().update_one(doc! { "_id": id }, doc! { "$set": { "payload.title": "bent" } }).await?;
    let bent = sealed.verify().await?;
    ensure!(named(&bent, "event_changed")? == [id.to_hex()], "{bent}\nbefore: {report}");
    sealed.events().replace_one(doc! { "_id": id }, &unsealed).await?;
    sealed.is_whole().await.map(|_| ())
}

/// Events that were slipped in with a link of their own, where no walk along a chain comes by: in a partition that there
/// is not, behind a chain's head, and before its beginning. The application's user may do so in both stores.
async fn linked(sealed: &Sealed<'_>, event: &Document) -> Result {
    let site = sealed.site;
    let head: (String, i64) =
        sqlx::query_as("SELECT partition, batch FROM partition_heads ORDER BY 1 LIMIT 1")
            .fetch_one(&site.postgres)
            .await?;
    let made = 1_000_000_000_000_i64;
    for (partition, number) in [("zz", 1), (head.0.as_str(), head.1 + 500), (head.0.as_str(), -3)] {
        let id = ObjectId::new();
        let mut forged = event.clone();
        forged.extend(doc! {
            "_id": id, "createdAt": DateTime::from_millis(made),
            "run": { "p": partition, "n": number, "i": 0, "class": "task_events", "leaf": 0 },
        });
        let classes = json!([["task_events", 1, made, made, "00".repeat(32), id.to_hex()]]);
        site.sql(&format!(
            "INSERT INTO audit_links VALUES ('{partition}', {number}, '{classes}', sha256('forged'))"
        ))
        .await?;
        sealed.events().insert_one(&forged).await?;
        let report = sealed.verify().await?;
        let found = named(&report, "event_inserted").with_context(|| format!("{partition} {number}"))?;
        ensure!(found == [id.to_hex()], "{partition} {number}: {report}");
        sealed.events().delete_one(doc! { "_id": id }).await?;
        site.sql("DELETE FROM audit_links WHERE hash = sha256('forged')").await?;
    }
    sealed.is_whole().await.map(|_| ())
}

fn id_of(id: uuid::Uuid) -> String {
    id.to_string()
}

async fn seals(site: Arc<Site>) -> Result {
    let sealed = Sealed::start(&site, &commands()).await?;
    sealed.apply(&commands()).await?;
    sealed.seal().await?;
    sealed.apply(&commands()[..3]).await?;
    ensure!(sealed.seal().await? == 3, "there are not three seals");
    sealed.is_whole().await?;
    let found = async |kind: &str, place: &str| -> Result<Value> {
        let report = sealed.verify().await?;
        let findings = report["findings"].as_array().context("no findings")?;
        let is_it = |one: &Value| one["kind"] == kind && (place.is_empty() || one["place"] == place);
        ensure!(!findings.is_empty() && findings.iter().all(is_it), "{kind} in {place}: {report}");
        Ok(findings[0].clone())
    };
    site.sql("CREATE TABLE kept AS SELECT * FROM audit_seals").await?;
    let put_back = "DELETE FROM audit_seals; INSERT INTO audit_seals SELECT * FROM kept";
    for (change, kind) in [
        (
            "UPDATE audit_seals SET seal = replace(seal, '\"number\":2', '\"number\": 2') WHERE number = 2",
            "seal_changed",
        ),
        ("UPDATE audit_seals SET signature = '\\x00' WHERE number = 2", "seal_changed"),
        ("DELETE FROM audit_seals WHERE number = 2", "seal_missing"),
        ("DELETE FROM audit_seals WHERE number = 3", "seals_set_back"),
    ] {
        site.sql(change).await?;
        found(kind, "postgres").await.with_context(|| change.to_owned())?;
        site.sql(put_back).await?;
    }

    let copies = site.mongo.collection::<Document>("audit_seals");
    let copy = copies.find_one(doc! { "_id": 2_i64 }).await?.context("no copy")?;
    copies.delete_one(doc! { "_id": 2_i64 }).await?;
    found("seal_missing", "mongodb").await?;
    copies.insert_one(doc! { "_id": 2_i64, "seal": "{}" }).await?;
    found("seal_changed", "mongodb").await?;
    copies.replace_one(doc! { "_id": 2_i64 }, copy).await?;

    // What is slipped in far above the newest one neither stops the sequence nor leads astray who looks for its end.
    let high = 1_000_000_000_i64;
    let mut above = copies.find_one(doc! { "_id": 3_i64 }).await?.context("no copy")?;
    above.insert("_id", high);
    for forged in [above, doc! { "_id": high, "seal": "{}" }] {
        copies.insert_one(&forged).await?;
        ensure!(sealed.seal().await? == 3, "the sequence has moved");
        let finding = found("seal_changed", "mongodb").await?;
        ensure!(finding["seal"] == high, "{finding}");
        copies.delete_one(doc! { "_id": high }).await?;
    }
    copies.insert_one(doc! { "_id": "no number", "seal": "{}" }).await?;
    ensure!(sealed.seal().await? == 3, "the sequence has moved");
    sealed.is_whole().await?;
    copies.delete_one(doc! { "_id": "no number" }).await?;

    let folder = sealed.cluster.folder().join("taskflow-audit/seals");
    let file = std::fs::read_dir(&folder)?.next().context("no file")??.path();
    let text = std::fs::read_to_string(&file)?;
    let lines: Vec<&str> = text.lines().collect();
    std::fs::write(&file, [lines[0], lines[2], ""].join("\n"))?;
    let gone = found("seal_missing", "outside").await?;
    ensure!(gone["seal"] == 2, "{gone}");
    std::fs::write(&file, text.replacen("task_events", "tusk_events", 1))?;
    found("seal_changed", "outside").await?;
    std::fs::write(&file, text.clone() + &lines[2].replacen("\"number\":3", "\"number\":900", 1) + "\n")?;
    ensure!(sealed.seal().await? == 3, "the sequence has moved");
    let above = found("seal_changed", "outside").await?;
    ensure!(above["seal"] == 900, "{above}");
    std::fs::write(&file, &text)?;
    sealed.is_whole().await?;

    // A link of a chain: changed so that it fits the events that were bent with it, or gone.
    let link: (String, i64) = sqlx::query_as(
        "SELECT partition, number FROM audit_links WHERE partition <> 'system' ORDER BY number LIMIT 1",
    )
    .fetch_one(&site.postgres)
    .await?;
    let which = format!("WHERE partition = '{}' AND number = {}", link.0, link.1);
    site.sql(&format!("CREATE TABLE kept_links AS SELECT * FROM audit_links {which}")).await?;
    for change in [
        format!("UPDATE audit_links SET classes = replace(classes, '\",', '\", ') {which}"),
        format!("UPDATE audit_links SET hash = sha256('x') {which}"),
        format!("DELETE FROM audit_links {which}"),
    ] {
        site.sql(&change).await?;
        let report = sealed.verify().await?;
        let broken = report["findings"]
            .as_array()
            .context("no findings")?
            .iter()
            .find(|one| one["kind"] == "chain_broken");
        let broken = broken.with_context(|| format!("{change}: {report}"))?;
        ensure!(
            broken["partition"] == link.0.as_str() && broken["batch"].as_i64() >= Some(link.1),
            "{broken}"
        );
        site.sql(&format!(
            "DELETE FROM audit_links {which}; INSERT INTO audit_links SELECT * FROM kept_links"
        ))
        .await?;
    }
    sealed.is_whole().await?;

    // Without the list of the leaves a batch can still not be bent unseen.
    let (id, event) = victim(&sealed).await?;
    let run = event.get_document("run")?;
    let list = format!("{}/{}", run.get_str("p")?, run.get_i64("n")?);
    site.mongo.collection::<Document>("audit_leaves").delete_one(doc! { "_id": list }).await?;
    sealed.is_whole().await?;
    sealed.events().update_one(doc! { "_id": id }, doc! { "$set": { "payload.title": "bent" } }).await?;
    let finding = found("leaves_missing", "").await?;
    ensure!(finding["detail"].as_str().unwrap_or_default().contains(&id.to_hex()), "{finding}");
    sealed.stop().await
}

async fn collection(site: Arc<Site>) -> Result {
    let sealed = Sealed::start(&site, &commands()).await?;
    let kept = sealed.events().count_documents(doc! {}).await?;
    for _ in 0..3 {
        sealed.apply(&commands()).await?;
    }
    sealed.seal().await?;
    sealed.is_whole().await?;
    // A restore of MongoDB to the time of the first seal, say.
    let since: i64 =
        sqlx::query_scalar("SELECT (seal::jsonb ->> 'at_ms')::bigint FROM audit_seals WHERE number = 1")
            .fetch_one(&site.postgres)
            .await?;
    sealed.events().delete_many(doc! { "createdAt": { "$gte": DateTime::from_millis(since) } }).await?;
    site.mongo.collection::<Document>("audit_seals").delete_one(doc! { "_id": 2_i64 }).await?;
    let report = sealed.verify().await?;
    let found = &report["found"];
    ensure!(report["proved"] == kept, "{kept} events were kept: {report}");
    ensure!(found["trail_set_back"].as_i64() >= Some(1) && found["seals_set_back"] == 1, "{report}");
    ensure!(found["event_missing"].as_u64() >= Some(123), "{report}");
    sealed.stop().await
}

async fn postgres(site: Arc<Site>) -> Result {
    let sealed = Sealed::start(&site, &commands()).await?;
    site.sql(
        "CREATE TABLE kept_heads AS SELECT * FROM partition_heads; CREATE TABLE kept_links AS SELECT * FROM audit_links;
         CREATE TABLE kept_seals AS SELECT * FROM audit_seals; CREATE TABLE kept_system AS SELECT * FROM audit_system_head",
    )
    .await?;
    sealed.apply(&commands()).await?;
    ensure!(sealed.seal().await? == 2);
    // A restore to the time of the first seal. What happens then goes into chains that part from those of seal 2.
    site.sql(
        "UPDATE partition_heads h SET batch = k.batch, chain = k.chain FROM kept_heads k WHERE k.partition = h.partition;
         DELETE FROM batches b USING kept_heads k WHERE k.partition = b.partition AND b.number > k.batch;
         UPDATE audit_system_head h SET number = k.number, chain = k.chain FROM kept_system k;
         DELETE FROM audit_links; INSERT INTO audit_links SELECT * FROM kept_links;
         DELETE FROM audit_seals; INSERT INTO audit_seals SELECT * FROM kept_seals",
    )
    .await?;
    let refused = run(&sealed.cluster, "audit.seal").await?;
    let why = refused["detail"].as_str().unwrap_or_default();
    ensure!(refused["state"] == "failed" && why.contains("set back"), "{refused}");
    ensure!(sealed.verify().await?["found"]["seals_set_back"] == 1, "a verification does not see it");
    // MongoDB is restored as well: events of commands that were undone would be strangers.
    let since: i64 =
        sqlx::query_scalar("SELECT (seal::jsonb ->> 'at_ms')::bigint FROM audit_seals WHERE number = 1")
            .fetch_one(&site.postgres)
            .await?;
    sealed.events().delete_many(doc! { "createdAt": { "$gte": DateTime::from_millis(since) } }).await?;
    ok(&sealed.cluster, &["audit", "restored", "--why", "the disk was lost", "--as", "ada"]).await?;
    ensure!(sealed.seal().await? == 3, "the sequence does not go on");
    let told: String =
        sqlx::query_scalar("SELECT seal FROM audit_seals WHERE number = 3").fetch_one(&site.postgres).await?;
    ensure!(told.contains("the disk was lost") && told.contains("ada"), "{told}");
    sealed.apply(&commands()).await?;
    sealed.seal().await?;
    let report = sealed.verify().await?;
    ensure!(report["notes"].to_string().contains("the disk was lost"), "{report}");
    ensure!(report["found"] == json!({}), "{report}");
    sealed.stop().await
}

async fn told(site: Arc<Site>) -> Result {
    let sealed = Sealed::start(&site, &commands()).await?;
    let verified = run(&sealed.cluster, "audit.verify").await?;
    ensure!(verified["state"] == "completed" && verified["figures"]["found"] == json!({}), "{verified}");
    sealed.apply(&commands()).await?;
    sealed.seal().await?;
    let newest =
        sealed.events().find_one(doc! { "type": "task.created" }).sort(doc! { "createdAt": -1 }).await?;
    let id = newest.context("no event")?.get_object_id("_id")?;
    sealed.events().delete_one(doc! { "_id": id }).await?;
    for _ in 0..2 {
        // It is found again until somebody has dealt with it.
        let failed = run(&sealed.cluster, "audit.verify").await?;
        ensure!(failed["state"] == "failed", "{failed}");
        ensure!(failed["figures"]["found"] == json!({ "event_missing": 1 }), "{failed}");
        ensure!(failed["log"].to_string().contains(&id.to_hex()), "{failed}");
    }
    sealed
        .apply(&[taskflow_tests::commands::command("task.create", super::id(), json!({ "title": "later" }))])
        .await?;
    let event = sealed
        .events()
        .find_one(doc! { "type": "system.audit_findings" })
        .await?
        .context("no event tells of it")?;
    ensure!(event.get_document("payload")?.to_string().contains(&id.to_hex()), "{event}");
    ensure!(event.get_document("run")?.get_str("class")? == "audit_logs", "{event}");
    // Whoever leads next shows it too: the alarm goes on.
    let listen = taskflow_tests::free_address()?;
    let next = sealed.cluster.spawn("scheduler", &[("TASKFLOW_METRICS__LISTEN", listen.as_str())])?;
    sealed.stop().await?;
    let client = taskflow_tests::Client::new(&format!("http://{listen}"))?;
    wait::until("the next leader shows what was found", async || {
        let shown = client.get("/metrics").await?.text().await?;
        Ok(shown.contains("taskflow_audit_findings{kind=\"event_missing\"} 1"))
    })
    .await?;
    next.stop().await
}
