//! Backups and restores on real servers, compared row by row and document by document.

mod agreed;
mod redis;

use std::sync::Arc;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use mongodb::bson::Document;
use serde_json::{Value, json};
use taskflow_tests::backups::{
    Backups, documents, has_database, indexes, must_agree, must_be_alike, own, recovery_point, rows, text,
    write_key,
};
use taskflow_tests::promise::{self, Stream};
use taskflow_tests::{Result, Site, wait};

use crate::{cluster, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_site("a backup is restored row by row and document by document, with and without a key", whole),
        with_site("backups made under load agree between the stores", under_load),
        with_site(
            "an incremental backup brings what is new, and is restored with what it needs",
            incremental,
        ),
        with_site("the scheduler makes backups, copies them, prunes them, and shows how old they are", jobs),
        with_site("backups that mongorestore can read are plain files", plain_files),
        with_site("nobody works on what was restored before the stores agree", agreed::nobody_works_before),
        with_site("a worker that was there before a restore says why it waits", agreed::who_is_there_already),
        with_site(
            "what a restored MongoDB lacks is found, however much has come since",
            agreed::older_than_what_came_since,
        ),
        with_site("Redis's snapshot is brought back, with the sessions in it", redis::brought_back),
        with_site("a table, a task's history, and backups in the place of what is live", parts_and_live),
    ]
}

/// Commands applied and relayed, then nobody at work.
async fn filled(site: &Site, subjects: usize, each: usize) -> Result {
    let cluster = cluster(site)?;
    let worker = cluster.worker()?;
    let accepted = Stream::start(site, subjects, each).end().await?;
    promise::check(site, &accepted).await?;
    worker.stop().await
}

async fn whole(site: Arc<Site>) -> Result {
    filled(&site, 8, 20).await?;
    let cluster = cluster(&site)?;
    let key = cluster.folder().join("key");
    let live = own(&site);
    let recipient = write_key(&key)?;
    let key = key.display().to_string();
    for (round, recipients) in [None, Some(format!("[\"{recipient}\"]"))].into_iter().enumerate() {
        let mut backups = Backups::new(&cluster).with("IDENTITY_PATH", &key);
        if let Some(recipients) = &recipients {
            backups = backups.with("RECIPIENTS", recipients);
        }
        let made = backups.ask(&["backup", "create"]).await?;
        let id = |kind: &str| -> Result<String> {
            let all = made["backups"].as_array().context("no list")?;
            let one = all.iter().find(|one| one["kind"] == kind).context("not made")?;
            Ok(one["id"].as_str().with_context(|| format!("{one}"))?.to_owned())
        };
        let (dump, trail) = (id("postgres")?, id("mongodb")?);
        let into = format!("{live}_r{round}");
        let restored = backups.ask(&["restore", &dump, &trail, "--into", &into]).await?;
        must_be_alike(&rows(&site, &live).await?, &rows(&site, &into).await?)?;
        must_be_alike(&documents(&site, &live).await?, &documents(&site, &into).await?)?;
        ensure!(
            indexes(&site, &live, "event_logs").await? == indexes(&site, &into, "event_logs").await?,
            "other indexes"
        );
        ensure!(restored[0]["checked"].as_array().is_some_and(|lines| lines.len() >= 4), "{restored}");
        // The validator is there again: what is no event is refused.
        let trail_of = site.mongo.client().database(&into).collection("event_logs");
        let odd = trail_of.insert_one(mongodb::bson::doc! { "a": 1 });
        ensure!(odd.await.is_err(), "the restored collection takes anything");

        let listed = backups.ask(&["backup", "list"]).await?;
        let row =
            listed.as_array().into_iter().flatten().find(|row| row["id"] == *dump).context("not listed")?;
        ensure!(row["state"] == "unproven" && row["encrypted"] == recipients.is_some(), "{row}");
        let shown = backups.ask(&["backup", "show", &dump]).await?;
        ensure!(shown["manifest"]["sums"]["receipts"]["count"] == 160, "{shown}");
        let verified = backups.ask(&["backup", "verify", "--all"]).await?;
        ensure!(verified.as_array().is_some_and(|all| all.iter().all(|one| one["ok"] == true)), "{verified}");
        // What is there is never written over.
        let (code, said) = backups.refused(&["restore", &dump, "--into", &live], &[]).await?;
        ensure!(code == Some(2) && said.contains("already"), "{code:?} {said}");
        let (code, said) = backups.refused(&["restore", &trail, "--into", &live], &[]).await?;
        ensure!(code == Some(2) && said.contains("is not empty"), "{code:?} {said}");
        if recipients.is_some() {
            let dump_file = std::fs::read(backups.path(&dump).join("database.dump.zst.age"))?;
            ensure!(dump_file.starts_with(b"age-encryption.org/v1"), "it is not encrypted");
            let nobody = [("TASKFLOW_BACKUP__IDENTITY_PATH", "")];
            let (code, said) = backups.refused(&["restore", &dump, "--into", "x"], &nobody).await?;
            ensure!(
                code == Some(1) && said.contains("database.dump.zst.age") && said.contains("identity_path"),
                "{said}"
            );
            ensure!(!has_database(&site, "x").await?, "something was restored without a key");
        }
    }
    Ok(())
}

/// Backups while commands are applied at full speed: nothing that Postgres's backup says happened is missing in MongoDB's
/// that was settled before.
async fn under_load(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let backups = Backups::new(&cluster);
    let stream = Stream::start(&site, 64, 40);
    // The audit trail follows at its own pace.
    let audited = "SELECT count(*) FROM receipts WHERE events > 0 AND finished_at < coalesce((
                       SELECT min(o.created_at) FROM outbox o LEFT JOIN batches b USING (partition, number)
                       WHERE b.audited_at IS NULL), now())";
    wait::until("the load runs, and is audited", async || Ok(site.count(audited).await? > 300)).await?;
    let before = site.count("SELECT count(*) FROM receipts").await?;
    let dump = backups.create("postgres").await?;
    let trail = backups.create("mongodb").await?;
    wait::until("the load has gone on meanwhile", async || {
        Ok(site.count("SELECT count(*) FROM receipts").await? > before + 300)
    })
    .await?;
    let accepted = stream.end().await?;
    promise::check(&site, &accepted).await?;
    worker.stop().await?;
    let into = format!("{}_r", own(&site));
    backups.ask(&["restore", &dump, &trail, "--into", &into]).await?;

    let settled = must_agree(&backups, &site, &trail, &into).await?;
    // How many depends on how far the trail was behind in that moment.
    ensure!(settled > 0, "no receipts are settled");
    ensure!(
        rows(&site, &into).await?["receipts"].len() as i64 >= before,
        "the moment lies before the backup"
    );
    Ok(())
}

async fn incremental(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let backups = Backups::new(&cluster);
    let (code, said) = backups.refused(&["backup", "create", "mongodb-incremental"], &[]).await?;
    ensure!(code == Some(1) && said.contains("backup create mongodb"), "{said}");
    filled(&site, 4, 10).await?;
    let full = backups.create("mongodb").await?;
    let mut last = full.clone();
    for _ in 0..2 {
        let worker = cluster.worker()?;
        let accepted = Stream::start(&site, 4, 10).end().await?;
        wait::until("every event is there", async || {
            let receipts = site.count("SELECT sum(events)::bigint FROM receipts").await?;
            Ok(site.events().await?.len() as i64 >= receipts)
        })
        .await?;
        drop(accepted);
        worker.stop().await?;
        let next = backups.create("mongodb-incremental").await?;
        let shown = backups.ask(&["backup", "show", &next]).await?;
        ensure!(shown["manifest"]["needs"] == json!([last]), "{shown}");
        last = next;
    }
    let into = format!("{}_r", own(&site));
    let restored = backups.ask(&["restore", "--into", &into, &last]).await?;
    ensure!(restored[0]["backups"].as_array().map(Vec::len) == Some(3), "{restored}");
    must_be_alike(&documents(&site, &own(&site)).await?, &documents(&site, &into).await?)?;
    broken_off(&site, &backups, &last).await?;
    // One collection alone.
    let one = format!("{}_one", own(&site));
    backups.ask(&["restore", &last, "--into", &one, "--collection", "schema_versions"]).await?;
    let part = documents(&site, &one).await?;
    ensure!(part.keys().eq(["schema_versions"]), "{:?}", part.keys());
    // Without what it needs it can't be restored, and that is said before anything is written.
    std::fs::remove_dir_all(backups.path(&full))?;
    let (code, said) = backups.refused(&["restore", &last, "--into", "nowhere"], &[]).await?;
    ensure!(code == Some(1) && said.contains(&full), "{said}");
    ensure!(documents(&site, "nowhere").await?.is_empty(), "something was restored");
    Ok(())
}

/// A chain that dies where its parts overlap goes on; and what is then not what was saved is found by its checksum, though
/// there are as many documents as there should be.
async fn broken_off(site: &Site, backups: &Backups<'_>, last: &str) -> Result {
    for (name, bend) in [("died", false), ("bent", true)] {
        let into = format!("{}_{name}", own(site));
        let args = ["restore", last, "--into", &into];
        for point in ["refilled:2", "overlap_noted:1", "overlap_noted:2", "refilled:1"] {
            let died = backups.run(&args, &[("TASKFLOW_CRASH_AT", point)]).await?;
            ensure!(!died.status.success(), "it went by {point}: {}", text(&died));
        }
        let restored = documents(site, &into).await?;
        let some = restored["event_logs"].first().context("no event is restored")?;
        if !bend {
            backups.ask(&args).await?;
            must_be_alike(&documents(site, &own(site)).await?, &documents(site, &into).await?)?;
            continue;
        }
        let events = site.mongo.client().database(&into).collection::<mongodb::bson::Document>("event_logs");
        let change = mongodb::bson::doc! { "$set": { "payload.title": "bent" } };
        events
            .update_one(mongodb::bson::doc! { "_id": some.get_object_id("_id")? }, change)
            .bypass_document_validation(true)
            .await?;
        let (code, said) = backups.refused(&args, &[]).await?;
        ensure!(
            code == Some(1) && said.contains("collection event_logs") && said.contains("or others"),
            "{said}"
        );
    }
    Ok(())
}

/// What lies in the second place is looked at as well.
async fn copies_are_verified(backups: &Backups<'_>, second: &std::path::Path) -> Result {
    let verified = backups.ask(&["backup", "verify", "--all"]).await?;
    let rows = verified.as_array().context("no list")?;
    let copies = rows.iter().filter(|row| row["place"] == second.display().to_string()).count();
    ensure!(copies > 0 && copies * 2 == rows.len(), "{verified}");
    ensure!(rows.iter().all(|row| row["ok"] == true), "{verified}");
    let listed = backups.ask(&["backup", "list", "--kind", "mongodb"]).await?;
    let id = listed[0]["id"].as_str().context("no backup of MongoDB")?;
    let shown = backups.ask(&["backup", "show", id]).await?;
    let name = shown["manifest"]["files"][0]["path"].as_str().with_context(|| format!("no file: {shown}"))?;
    let file = second.join("backups").join(id).join(name);
    let whole = std::fs::read(&file)?;
    let mut bent = whole.clone();
    *bent.last_mut().context("an empty file")? ^= 1;
    std::fs::write(&file, bent)?;
    let (code, said) = backups.refused(&["backup", "verify", id], &[]).await?;
    ensure!(code == Some(1) && said.contains(name), "{code:?} {said}");
    ensure!(said.contains(&second.display().to_string()) && said.contains("good"), "{said}");
    std::fs::write(&file, whole)?;
    backups.ask(&["backup", "verify", id]).await.map(drop)
}

async fn jobs(site: Arc<Site>) -> Result {
    filled(&site, 2, 5).await?;
    let cluster = cluster(&site)?;
    let second = cluster.folder().join("second");
    let second_name = second.display().to_string();
    let backups = Backups::new(&cluster).with("SECOND", &second_name).with("KEEP__DAILY", "1");
    let backups = backups.with("KEEP__WEEKLY", "0").with("KEEP__MONTHLY", "0").with("KEEP__YEARLY", "0");
    let address = taskflow_tests::free_address()?;
    let listen = [("TASKFLOW_METRICS__LISTEN", address.as_str())];
    let scheduler = cluster.spawn("scheduler", &[backups.env().as_slice(), &listen].concat())?;
    wait::until(
        "a scheduler leads",
        async || Ok(site.count("SELECT count(*) FROM job_schedules").await? > 5),
    )
    .await?;
    let run = async |job: &str| -> Result<Value> {
        let done = backups.ask(&["jobs", "run", job]).await?;
        ensure!(done["state"] == "completed", "{done}");
        Ok(done["figures"].clone())
    };
    for job in
        ["backup.mongodb.incremental", "backup.postgres", "backup.mongodb", "backup.redis", "backup.postgres"]
    {
        let figures = run(job).await?;
        let id = figures["backup"].as_str();
        ensure!(id.is_some() || figures["skipped"].is_string(), "{job}: {figures}");
        if let Some(id) = id {
            ensure!(second.join("backups").join(id).join("manifest.json").exists(), "{job}: no copy of {id}");
        }
    }
    let listed = backups.ask(&["backup", "list", "--kind", "postgres"]).await?;
    ensure!(listed.as_array().map(Vec::len) == Some(2), "{listed}");
    let plan = run("backup.prune").await?;
    ensure!(plan["removed"].as_array().is_some_and(|gone| !gone.is_empty()), "{plan}");
    let listed = backups.ask(&["backup", "list", "--kind", "postgres"]).await?;
    ensure!(listed.as_array().map(Vec::len) == Some(1), "{listed}");
    ensure!(
        std::fs::read_dir(second.join("backups"))?.count()
            == std::fs::read_dir(backups.folder.join("backups"))?.count(),
        "the places differ"
    );
    copies_are_verified(&backups, &second).await?;
    // Admins see the same over HTTP.
    let (api, client) = cluster.api_with(&backups.env()).await?;
    let admin = client.admin().await?;
    let all = backups.ask(&["backup", "list"]).await?;
    let seen: Value = admin.get("/v1/admin/backups").await?.json().await?;
    ensure!(seen["items"] == all, "{seen}\nand not {all}");
    let id = listed[0]["id"].as_str().context("no id")?;
    let seen: Value = admin.get(&format!("/v1/admin/backups/{id}")).await?.json().await?;
    let shown = backups.ask(&["backup", "show", id]).await?;
    ensure!(seen["manifest"] == shown["manifest"] && seen["state"] == "unproven", "{seen}");
    ensure!(admin.get("/v1/admin/backups/..%2f..").await?.status() == 404, "there is something");
    api.stop().await?;
    let (api, client) = cluster.api().await?;
    let answer = client.admin().await?.get("/v1/admin/backups").await?;
    ensure!(answer.status() == 409, "{}", answer.status());
    api.stop().await?;
    // Its events are in the outbox of the system's events, or in the trail already.
    ensure!(
        site.count("SELECT count(*) FROM job_runs WHERE job LIKE 'backup.%' AND state = 'completed'").await?
            >= 6,
        "the ledger lacks runs"
    );
    wait::until("the metrics tell of the backups", async || {
        let shown = reqwest::get(format!("http://{address}/metrics")).await?.text().await?;
        Ok([
            "taskflow_backup_last_success_timestamp_seconds{kind=\"postgres\"}",
            "taskflow_backup_size_bytes{kind=\"mongodb\"}",
            "taskflow_recovery_point_seconds{store=\"mongodb\"}",
        ]
        .iter()
        .all(|series| shown.contains(series)))
    })
    .await?;
    for store in ["postgres", "mongodb"] {
        let age = recovery_point(&address, store).await?;
        ensure!((0.0..600.0).contains(&age), "{store}: the newest backup is {age} s old");
    }
    // Who has lost the lead does not go on to show an age that stands still.
    site.sql(
        "UPDATE scheduler_leader SET epoch = epoch + 1, holder = gen_random_uuid(), host = 'another',
                expires_at = now() + interval '1 hour'",
    )
    .await?;
    wait::until("the recovery point is shown by nobody who does not lead", async || {
        let shown = reqwest::get(format!("http://{address}/metrics")).await?.text().await?;
        Ok(shown.contains("taskflow_recovery_point_seconds{store=\"mongodb\"} NaN"))
    })
    .await?;
    site.sql("UPDATE scheduler_leader SET expires_at = now()").await?;
    // Without a place for them nothing is made, and nothing fails.
    scheduler.stop().await?;
    let scheduler = cluster.spawn("scheduler", &[])?;
    wait::until("it leads again", async || {
        let done = cluster.run(&["jobs", "run", "backup.postgres", "--json"], &[]).await?;
        let done: Value = serde_json::from_slice(&done.stdout).with_context(|| text(&done))?;
        Ok(done["state"] == "completed" && done["figures"]["skipped"].is_string())
    })
    .await?;
    let (code, said) = {
        let output = cluster.run(&["backup", "list"], &[]).await?;
        (output.status.code(), text(&output))
    };
    ensure!(code == Some(2) && said.contains("backup.destination"), "{said}");
    scheduler.stop().await
}

async fn plain_files(site: Arc<Site>) -> Result {
    filled(&site, 2, 5).await?;
    let cluster = cluster(&site)?;
    for (form, ending) in [("none", ""), ("gzip", ".gz")] {
        let backups = Backups::new(&cluster).with("MONGODB_COMPRESSION", form);
        let id = backups.create("mongodb").await?;
        let folder = backups.path(&id).join(own(&site));
        let file = folder.join(format!("event_logs.bson{ending}"));
        ensure!(file.is_file(), "there is no {}", file.display());
        ensure!(folder.join(format!("event_logs.metadata.json{ending}")).is_file(), "no metadata");
        if form == "none" {
            // As mongorestore takes it: documents one behind the other, and the collection in canonical Extended JSON.
            let bytes = std::fs::read(&file)?;
            let (mut at, mut count) = (0, 0);
            while at < bytes.len() {
                let head: [u8; 4] = bytes[at..at + 4].try_into()?;
                at += usize::try_from(i32::from_le_bytes(head))?;
                count += 1;
            }
            ensure!(at == bytes.len() && count == site.events().await?.len(), "{count} documents");
            let described: Value =
                serde_json::from_slice(&std::fs::read(folder.join("event_logs.metadata.json"))?)?;
            ensure!(
                described["collectionName"] == "event_logs" && described["type"] == "collection",
                "{described}"
            );
            ensure!(described["indexes"][0]["v"]["$numberInt"].is_string(), "{described}");
        }
        let into = format!("{}_{form}", own(&site));
        backups.ask(&["restore", &id, "--into", &into]).await?;
        must_be_alike(&documents(&site, &own(&site)).await?, &documents(&site, &into).await?)?;
    }
    Ok(())
}

/// One table, one task's history, and a backup in the place of what is live.
async fn parts_and_live(site: Arc<Site>) -> Result {
    filled(&site, 4, 10).await?;
    let cluster = cluster(&site)?;
    let backups = Backups::new(&cluster);
    let (dump, trail) = (backups.create("postgres").await?, backups.create("mongodb").await?);
    let live = own(&site);
    let (before, trail_before) = (rows(&site, &live).await?, documents(&site, &live).await?);
    let into = format!("{live}_t");
    let restored = backups.ask(&["restore", &dump, "--table", "tasks", "--into", &into]).await?;
    let checked = restored[0]["checked"].to_string();
    ensure!(checked.contains("no index") && !checked.contains("every index"), "{checked}");
    let part = rows(&site, &into).await?;
    ensure!(part["tasks"] == before["tasks"] && part["receipts"].is_empty(), "{:?}", part["receipts"].len());
    let (code, said) = backups.refused(&["restore", &dump, "--table", "tusks"], &[]).await?;
    ensure!(code == Some(2) && said.contains("has no table tusks"), "{said}");

    let task: uuid::Uuid =
        sqlx::query_scalar("SELECT id FROM tasks LIMIT 1").fetch_one(&site.postgres).await?;
    let history = backups.ask(&["restore", "--history", &task.to_string()]).await?;
    let versions: Vec<i64> = history["events"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(|event| event["version"].as_i64())
        .collect();
    ensure!(versions == (1..=10).collect::<Vec<i64>>(), "{versions:?}: {history}");

    // More happens; then the backups take its place.
    let worker = cluster.worker()?;
    let later = Stream::start(&site, 2, 5).end().await?;
    wait::until("it is applied", async || {
        Ok(site.count("SELECT count(*) FROM receipts").await? >= 50 && site.events().await?.len() >= 50)
    })
    .await?;
    drop(later);
    let live_twice = ["restore", &dump, "--over-live", "--replace", &live];
    let (code, said) = backups.refused(&live_twice, &[]).await?;
    ensure!(code == Some(2) && said.contains("somebody works"), "{said}");
    worker.stop().await?;
    let (code, said) = backups.refused(&["restore", &dump, "--over-live"], &[]).await?;
    ensure!(code == Some(2) && said.contains("--replace"), "{said}");
    let (code, said) = backups.refused(&["restore", &dump, "--over-live", "--replace", "other"], &[]).await?;
    ensure!(code == Some(2) && said.contains(&live), "{said}");
    let count = "SELECT count(*) FROM workers WHERE expires_at > clock_timestamp()";
    wait::until("nobody works", async || Ok(site.count(count).await? == 0)).await?;
    // Killed at any of the renames (the first is the restored database's own), it leaves what is live as it is.
    for point in ["renamed:1", "renamed:2", "renamed:3"] {
        let live_before = rows(&site, &live).await?;
        let died = backups.run(&live_twice, &[("TASKFLOW_CRASH_AT", point)]).await?;
        ensure!(!died.status.success(), "it went by {point}");
        must_be_alike(&live_before, &rows(&site, &live).await?)?;
    }
    // Our own sessions end with the rename.
    let replaced = backups.ask(&live_twice).await?;
    let point = replaced[0]["restore_point"].as_str();
    ensure!(point.is_some_and(|name| name.starts_with("taskflow_restore_")), "{replaced}");
    let old = replaced[0]["old"].as_str().context("no old database")?.to_owned();
    wait::until("our connections are new", async || Ok(has_database(&site, &old).await.unwrap_or(false)))
        .await?;
    // What it told of itself comes on top.
    let mut restored = rows(&site, &live).await?;
    let told = restored.insert("system_events".to_owned(), before["system_events"].clone());
    ensure!(
        told.is_some_and(|told| told.len() == 1 + before["system_events"].len()),
        "it was not told, or twice"
    );
    must_be_alike(&before, &restored)?;
    // MongoDB's dies at each step, and goes on. From its first step on, it bears a mark.
    let args = ["restore", &trail, "--over-live", "--replace", &live];
    for point in ["marked:1", "emptied:1", "refilled:1"] {
        let died = backups.run(&args, &[("TASKFLOW_CRASH_AT", point)]).await?;
        ensure!(
            !died.status.success() && documents(&site, &live).await?.contains_key("taskflow_restore"),
            "{point}: {died:?}"
        );
    }
    backups.ask(&args).await?;
    must_be_alike(&trail_before, &documents(&site, &live).await?)?;
    let difference = backups.ask(&["restore", "--agree"]).await?;
    ensure!(difference["undone_events"] == 0 && difference["missing_events"] == 0, "{difference}");
    // An incremental backup would lack what a restore sets apart: first a whole one.
    let (code, said) = backups.refused(&["backup", "create", "mongodb-incremental"], &[]).await?;
    ensure!(code == Some(1) && said.contains("since the last restore"), "{said}");
    backups.create("mongodb").await?;
    backups.create("mongodb-incremental").await?;
    // What was live is saved.
    let saved = replaced[0]["saved"].as_str().context("nothing is saved")?.to_owned();
    let into = format!("{live}_s");
    backups.ask(&["restore", &saved, "--into", &into]).await?;
    ensure!(rows(&site, &into).await?["receipts"].len() == 50, "what was live is not what was saved");
    // Each of the three is told, and counted by whoever carries it to the audit trail.
    let listen = taskflow_tests::free_address()?;
    let worker = cluster.spawn("worker", &[("TASKFLOW_METRICS__LISTEN", listen.as_str())])?;
    let metrics = taskflow_tests::Client::new(&format!("http://{listen}"))?;
    wait::until("the restores are counted", async || {
        let text = metrics.get("/metrics").await?.text().await?;
        let series = "taskflow_sensitive_operations_total{operation=\"restore\"} ";
        Ok(text.lines().find_map(|line| line.strip_prefix(series)) == Some("3"))
    })
    .await?;
    let events = site.events().await?;
    let named = |backup: &str| {
        let of =
            |event: &Document| event.get_document("payload").ok()?.get_str("backup").ok().map(str::to_owned);
        events.iter().filter(|event| of(event).is_some_and(|named| named == backup)).count()
    };
    ensure!(named(&dump) == 1 && named(&trail) == 1, "{events:?}");
    worker.stop().await
}
