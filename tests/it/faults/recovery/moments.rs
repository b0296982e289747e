//! A cluster to random moments, held against what had been committed then; and life after it.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use anyhow::{Context, ensure};
use chrono::{DateTime, SecondsFormat, Utc};
use mongodb::bson::{Document, doc};
use serde_json::{Value, json};
use taskflow_stores::clock;
use taskflow_stores::postgres::PgPool;
use taskflow_tests::backups::{Backups, own, text};
use taskflow_tests::dice::Dice;
use taskflow_tests::world::Sync;
use taskflow_tests::{Cluster, Process, Result, Site, World, wait};
use uuid::Uuid;

use super::{Folder, Load, alive, archived, now, publish, reached, start, until_archived, until_settled};
use crate::PROGRAM;

/// What had been committed at a moment.
struct Mark {
    at: DateTime<Utc>,
    rows: i64,
}

pub(super) async fn run() -> Result {
    let world = World::start(Sync::Skipped).await?;
    let tried = Box::pin(to_moments(&world)).await;
    world.stop().await;
    tried
}

async fn to_moments(world: &World) -> Result {
    let mut site = Site::new(world).await?;
    let folder = Folder::new()?;
    let mut dice = Dice::new(11);
    let live = site.postgres.clone();
    site.sql("CREATE TABLE marks (n BIGINT PRIMARY KEY)").await?;
    // Whoever goes on after the restore has the key and the seals of before.
    for (name, file) in
        [("KEY_PATH", "seal.key"), ("PUBLIC_KEYS_PATH", "seal.pub"), ("SEALS_FOLDER", "seals")]
    {
        let path = folder.0.join("audit").join(file).display().to_string();
        site.env.push((format!("TASKFLOW_AUDIT__{name}"), path));
    }
    let (load, data, journal) = {
        let cluster = Cluster::new(&site, PROGRAM)?;
        let backups = archived(&cluster, &folder.0);
        let made = cluster.run(&["audit", "keygen"], &[]).await?;
        ensure!(made.status.success(), "{made:?}");
        let (code, said) = backups.refused(&["backup", "create", "postgres-base"], &[]).await?;
        ensure!(code == Some(2) && said.contains("backup.wal"), "{said}");
        let scheduler = cluster.spawn("scheduler", &backups.env())?;
        let worker = cluster.spawn("worker", &backups.env())?;
        wait::until("the log is archived", async || Ok(reached(&backups).is_ok())).await?;
        let mut load = Load::new(6);
        load.send(&site, 3).await?;
        backups.create("postgres-base").await?;
        let mut marks = Vec::new();
        let mut rows = 0;
        for _ in 0..6 {
            load.send(&site, 3).await?;
            for _ in 0..=dice.below(4) {
                rows += 1;
                sqlx::query("INSERT INTO marks VALUES ($1)").bind(rows).execute(&live).await?;
            }
            // After the last commit, before the next.
            marks.push(Mark { at: now(&site).await?, rows });
        }
        let (point, at_point) = (note_place(&cluster).await?, rows);
        rows += 1;
        sqlx::query("INSERT INTO marks VALUES ($1)").bind(rows).execute(&live).await?;
        until_settled(&site, load.sent.len()).await?;
        // What was done to the system is told too, and will be undone.
        let run = cluster.run(&["jobs", "run", "retention.dead_letters", "--json"], &[]).await?;
        ensure!(run.status.success(), "{run:?}");
        wait::until("the system's events are told", async || {
            Ok(site.count("SELECT count(*) FROM system_events").await? == 0)
        })
        .await?;
        seal(&cluster, &[]).await?;
        let before = *load.ids().get(load.sent.len() / 2).context("no command")?;
        until_archived(&backups, now(&site).await?).await?;
        // A moment that the log does not reach yet is refused.
        let future =
            (clock::now() + chrono::TimeDelta::hours(1)).to_rfc3339_opts(SecondsFormat::Micros, true);
        let nowhere = folder.0.join("nowhere").display().to_string();
        let (code, said) = backups.refused(&["restore", "--data", &nowhere, "--to", &future], &[]).await?;
        ensure!(code == Some(1) && said.contains("goes up to"), "{said}");
        ensure!(!Path::new(&nowhere).exists(), "something was restored");
        for round in 0..3 {
            let mark = &marks[dice.below(marks.len() as u64) as usize];
            let data = folder.0.join(format!("at{round}"));
            check_mark(&site, &backups, &folder.0, &data, mark).await?;
        }
        check_before(&site, &backups, &folder.0, before, &load).await?;
        check_point(&site, &backups, &folder.0, &point, at_point).await?;
        check_seals(&site, &backups, &folder.0).await?;
        // The last one is where everybody goes on from.
        let data = folder.0.join("back");
        let mark = marks.swap_remove(2);
        check_mark(&site, &backups, &folder.0, &data, &mark).await?;
        worker.stop().await?;
        scheduler.stop().await?;
        // The folder of the backups goes with its cluster.
        let journal = folder.0.join("kept");
        std::fs::rename(&backups.folder, &journal)?;
        (load, data, journal)
    };
    go_on(&mut site, &folder.0, &data, &journal, load).await
}

/// A restore of the cluster ends with the seals, over the live trail beside it: a trail that is whole, and one in which
/// an event was changed.
async fn check_seals(site: &Site, backups: &Backups<'_>, folder: &Path) -> Result {
    let restore = async |name: &str, code: i32| -> Result<Value> {
        let data = folder.join(name).display().to_string();
        let output = backups.run(&["restore", "--data", &data, "--json"], &[]).await?;
        ensure!(output.status.code() == Some(code), "{}", text(&output));
        let restored: Value = serde_json::from_slice(&output.stdout).with_context(|| text(&output))?;
        Ok(restored[0]["seals"]["verified"].clone())
    };
    let said = restore("sealed", 0).await?;
    ensure!(said["found"] == json!({}) && said["proved"].as_u64() > Some(0), "{said}");
    let events = site.mongo.collection::<Document>("event_logs");
    let event = events.find_one(doc! { "run.leaf": { "$gte": 0 } }).await?.context("no sealed event")?;
    let id = doc! { "_id": event.get_object_id("_id")? };
    events.update_one(id.clone(), doc! { "$set": { "payload.title": "bent" } }).await?;
    let said = restore("bent", 1).await?;
    ensure!(said["found"] == json!({ "event_changed": 1 }), "{said}");
    events.replace_one(id, event).await?;
    Ok(())
}

async fn check_mark(site: &Site, backups: &Backups<'_>, folder: &Path, data: &Path, mark: &Mark) -> Result {
    let at = mark.at.to_rfc3339_opts(SecondsFormat::Micros, true);
    let restored = backups.ask(&["restore", "--data", &data.display().to_string(), "--to", &at]).await?;
    ensure!(restored[0]["checked"].as_array().is_some_and(|lines| lines.len() >= 2), "{restored}");
    let (server, pool, _) = start(data, folder, &own(site)).await?;
    let rows: i64 = sqlx::query_scalar("SELECT coalesce(max(n), 0) FROM marks").fetch_one(&pool).await?;
    let count: i64 = sqlx::query_scalar("SELECT count(*) FROM marks").fetch_one(&pool).await?;
    ensure!((rows, count) == (mark.rows, mark.rows), "{rows} rows ({count}) and not {} at {at}", mark.rows);
    consistent(&pool).await?;
    // What is there was committed before, and what was committed long before is there.
    let late: i64 = sqlx::query_scalar("SELECT count(*) FROM receipts WHERE finished_at > $1")
        .bind(mark.at)
        .fetch_one(&pool)
        .await?;
    ensure!(late == 0, "{late} receipts are later than {at}");
    pool.close().await;
    server.stop().await;
    Ok(())
}

/// What a migration notes before it begins, whether it has anything to do or not.
async fn note_place(cluster: &Cluster<'_>) -> Result<String> {
    let ran = cluster.run(&["migrate", "up", "--json"], &[]).await?;
    ensure!(ran.status.success(), "{ran:?}");
    let said: Value = serde_json::from_slice(&ran.stdout)?;
    Ok(said["restore_point"].as_str().with_context(|| format!("no restore point: {said}"))?.to_owned())
}

async fn check_point(site: &Site, backups: &Backups<'_>, folder: &Path, point: &str, rows: i64) -> Result {
    let data = folder.join("point");
    let into = data.display().to_string();
    let other = ["restore", "--data", &into, "--to-point", "taskflow_nothing"];
    let (code, said) = backups.refused(&other, &[]).await?;
    ensure!(code == Some(2) && said.contains("no restore point taskflow_nothing"), "{code:?} {said}");
    // What that has left is no hindrance.
    backups.ask(&["restore", "--data", &into, "--to-point", point]).await?;
    let (server, pool, _) = start(&data, folder, &own(site)).await?;
    let found: i64 = sqlx::query_scalar("SELECT coalesce(max(n), 0) FROM marks").fetch_one(&pool).await?;
    ensure!(found == rows, "{found} rows and not {rows} at {point}");
    consistent(&pool).await?;
    pool.close().await;
    server.stop().await;
    Ok(())
}

/// Each task has the version that its receipts have left.
async fn consistent(pool: &PgPool) -> Result {
    let torn: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM (SELECT subject, count(*) AS n, max(version) AS v FROM receipts GROUP BY subject) r
         LEFT JOIN tasks t ON t.id = r.subject WHERE t.version IS DISTINCT FROM r.v OR r.n <> r.v",
    )
    .fetch_one(pool)
    .await?;
    ensure!(torn == 0, "{torn} tasks do not agree with their receipts");
    Ok(())
}

async fn check_before(
    site: &Site,
    backups: &Backups<'_>,
    folder: &Path,
    before: Uuid,
    load: &Load,
) -> Result {
    let data = folder.join("before");
    let text = before.to_string();
    backups.ask(&["restore", "--data", &data.display().to_string(), "--before", &text]).await?;
    let (server, pool, _) = start(&data, folder, &own(site)).await?;
    consistent(&pool).await?;
    let found: Vec<Uuid> = sqlx::query_scalar("SELECT id FROM receipts").fetch_all(&pool).await?;
    let found: BTreeSet<Uuid> = found.into_iter().collect();
    ensure!(!found.contains(&before), "the command has taken effect");
    // A batch is one transaction: what was committed before it is there, all of it goes or none.
    let with: Vec<Uuid> = sqlx::query_scalar(
        "SELECT id FROM receipts WHERE (partition, batch) = (SELECT partition, batch FROM receipts WHERE id = $1)",
    )
    .bind(before)
    .fetch_all(&site.postgres)
    .await?;
    ensure!(with.iter().all(|id| !found.contains(id)), "half a batch is there");
    let subject = load.sent.iter().find(|value| value["id"] == *text).context("not sent")?["subject"].clone();
    let of_subject = load.sent.iter().filter(|value| value["subject"] == subject);
    let mut earlier = 0;
    for value in of_subject.take_while(|value| value["id"] != *text) {
        let id: Uuid = value["id"].as_str().context("no id")?.parse()?;
        if !with.contains(&id) {
            earlier += 1;
            ensure!(found.contains(&id), "{id}, before it, is gone");
        }
    }
    ensure!(earlier > 0, "nothing was before it");
    pool.close().await;
    server.stop().await;
    Ok(())
}

/// The restored cluster takes the live one's place: the stores are brought to agree, what was undone is sent again, and
/// everything is as if nothing had happened.
async fn go_on(site: &mut Site, folder: &Path, data: &Path, journal: &Path, load: Load) -> Result {
    let lost: Vec<Uuid> = {
        let (server, pool, _) = start(data, folder, &own(site)).await?;
        let kept: Vec<Uuid> = sqlx::query_scalar("SELECT id FROM receipts").fetch_all(&pool).await?;
        pool.close().await;
        server.stop().await;
        load.ids().into_iter().filter(|id| !kept.contains(id)).collect()
    };
    ensure!(lost.len() > 10, "the restore has undone only {} commands", lost.len());
    let (server, pool, url) = start(data, folder, &own(site)).await?;
    let env = [("TASKFLOW_POSTGRES__URL", url.as_str())];
    let epochs: Vec<(String, i64, i64)> =
        sqlx::query_as("SELECT partition, epoch, batch FROM partition_heads").fetch_all(&pool).await?;
    site.postgres = pool.clone();
    let events = site.events().await?.len();
    let site = &*site;
    let cluster = Cluster::new(site, PROGRAM)?;
    // Killed in the middle, it goes on.
    for point in ["marked:1", "agreed:1"] {
        let died = cluster.run(&["restore", "--agree"], &[env[0], ("TASKFLOW_CRASH_AT", point)]).await?;
        ensure!(!died.status.success(), "it went by {point}");
    }
    let said = cluster.run(&["restore", "--agree", "--as", "the test", "--json"], &env).await?;
    ensure!(said.status.success(), "{}", taskflow_tests::backups::text(&said));
    let difference: Value = serde_json::from_slice(&said.stdout)?;
    let told: BTreeSet<Uuid> = serde_json::from_value(difference["undone"].clone())?;
    ensure!(told == lost.iter().copied().collect(), "{difference}\nand not {lost:?}");
    ensure!(difference["missing_events"] == 0, "{difference}");
    // Marked, not removed.
    let all = site.events().await?;
    ensure!(all.len() == events, "{} events of {events}", all.len());
    let undone = all.iter().filter(|event| event.contains_key("undone")).count();
    ensure!(json!(undone) == difference["undone_events"], "{undone} are marked: {difference}");
    let of_system = all.iter().filter(|event| {
        event.contains_key("undone") && event.get_str("type").is_ok_and(|kind| kind.starts_with("system."))
    });
    ensure!(of_system.count() >= 2, "what was done to the system since is not set apart");
    for (partition, epoch, batch) in epochs {
        let (now_epoch, now_batch): (i64, i64) =
            sqlx::query_as("SELECT epoch, batch FROM partition_heads WHERE partition = $1")
                .bind(&partition)
                .fetch_one(&pool)
                .await?;
        ensure!(now_epoch > epoch + 999 && now_batch > batch + 999, "partition {partition} has not jumped");
    }
    ensure!(site.dump_redis().await?.is_empty(), "caches are left");
    let worker: Process = cluster.spawn("worker", &env)?;
    let again = cluster.run(&["restore", "--agree"], &env).await?;
    // It may have been faster than the worker's first heartbeat; then there is nothing to do.
    ensure!(
        again.status.success() || String::from_utf8_lossy(&again.stderr).contains("somebody works"),
        "{again:?}"
    );
    // What was applied in time does not expire the second time.
    wait::until("they would expire now", async || Ok(clock::now() > load.expiry)).await?;
    // The journal has all of it, as it was accepted then; upstream sends it again too, under the same ids.
    let replayed = Backups::new(&cluster).at(journal);
    let replayed = replayed.ask(&["restore", "--replay", "2020-01-01T00:00:00Z"]).await?;
    ensure!(replayed == json!({ "published": load.sent.len(), "refused": 0 }), "{replayed}");
    until_settled(site, load.sent.len()).await?;
    for value in &load.sent {
        publish(site, value).await?;
    }
    until_settled(site, load.sent.len()).await?;
    consistent(&pool).await?;
    let receipts: Vec<(Uuid, String, i16)> =
        sqlx::query_as("SELECT id, outcome::text, events FROM receipts").fetch_all(&pool).await?;
    ensure!(receipts.len() == load.sent.len(), "{} receipts of {}", receipts.len(), load.sent.len());
    let events = site.events().await?;
    let mut counts = HashMap::<&str, i16>::new();
    for event in alive(&events) {
        if event.get_str("type").is_ok_and(|kind| !kind.starts_with("system.")) {
            *counts.entry(event.get_str("commandId")?).or_default() += 1;
        }
    }
    for (id, outcome, expected) in &receipts {
        ensure!(outcome == "applied", "{id} is {outcome}");
        let found = counts.get(id.to_string().as_str()).copied().unwrap_or(0);
        ensure!(found == *expected, "{found} events of {id} and not {expected}");
    }
    // The seals of before, those that came after, and what was set apart go together.
    let scheduler = cluster.spawn("scheduler", &env)?;
    seal(&cluster, &env).await?;
    scheduler.stop().await?;
    let said = cluster.run(&["audit", "verify", "--json"], &env).await?;
    let report: Value = serde_json::from_slice(&said.stdout).with_context(|| format!("{said:?}"))?;
    ensure!(report["found"] == json!({}), "{report}");
    ensure!(report["undone"].as_u64() > Some(0), "{report}");
    worker.stop().await?;
    pool.close().await;
    server.stop().await;
    Ok(())
}

/// Seals what there is.
async fn seal(cluster: &Cluster<'_>, env: &[(&str, &str)]) -> Result {
    let run = cluster.run(&["jobs", "run", "audit.seal", "--json"], env).await?;
    let run: Value = serde_json::from_slice(&run.stdout).with_context(|| format!("{run:?}"))?;
    ensure!(run["state"] == "completed", "{run}");
    Ok(())
}
