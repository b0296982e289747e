//! What is removed when its time is over, and what is not.

mod held;
mod many;
mod reaper;
mod spans;
mod stopped;

use std::sync::Arc;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use mongodb::bson::{DateTime, Document, doc};
use serde_json::{Value, json};
use taskflow_core::retention::held_until;
use taskflow_stores::mongo::events::COLLECTION;
use taskflow_stores::mongo::{fence, retention as trail};
use taskflow_tests::commands::{ADMIN, USER, command, command_of, id, ndjson};
use taskflow_tests::{Cluster, Result, Site, wait};
use uuid::Uuid;

use crate::{cluster, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    let own = vec![
        with_site("events past their time go, what is held or too young stays", events),
        with_site(
            "events are stamped anew after a change of the policy, never below the legal minimum",
            restamped,
        ),
        with_site("a stamp is not put over the mark that a hold has left meanwhile", marked_meanwhile),
        with_site("receipts, batches, tasks, runs, leases and sockets go when their time is over", rows),
    ];
    [own, held::tests(), many::tests(), reaper::tests(), spans::tests(), stopped::tests()]
        .into_iter()
        .flatten()
        .collect()
}

const DAY_MS: i64 = 24 * 3600 * 1000;
/// A lead that lasts longer than a test.
const LEAD: std::time::Duration = std::time::Duration::from_secs(600);

/// Runs a job to its end; its row in the ledger.
async fn run(cluster: &Cluster<'_>, args: &[&str]) -> Result<Value> {
    let args = [&["jobs", "run"], args, &["--json"]].concat();
    let output = cluster.run(&args, &[]).await?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{args:?}: {text}{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_str(&text).with_context(|| text.into_owned())
}

async fn until_led(site: &Site) -> Result {
    let known = "SELECT count(*) FROM job_schedules";
    wait::until("a scheduler leads", async || Ok(site.count(known).await? > 5)).await
}

async fn marked_meanwhile(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    made(&site, &cluster, &[command("task.create", id(), json!({ "title": "held" }))]).await?;
    let read = trail::behind(&site.mongo, None, 1).await?;
    let event = read.first().context("no event")?;
    // Whoever carries a hold out comes between the look and the stamp.
    let until = fence::moment(&site.mongo).await?.lasts(LEAD);
    trail::stamp(&site.mongo, &[(event, held_until())], until).await?;
    trail::stamp(&site.mongo, &[(event, event.created_at)], until).await?;
    let now = trail::behind(&site.mongo, None, 1).await?;
    ensure!(now[0].expires_at == held_until(), "the mark is gone: {now:?}");
    let removed = trail::remove(&site.mongo, &[event.id], taskflow_stores::clock::now(), until).await?;
    ensure!(removed == 0, "what is marked was removed");
    Ok(())
}

/// Settings under which nothing is removed but by hand.
fn by_hand(more: &str) -> String {
    let jobs = ["events", "holds", "receipts", "dead_letters", "tasks", "ledger", "sockets"];
    let off = jobs.map(|job| format!("[scheduler.jobs.\"retention.{job}\"]\nenabled = false\n"));
    format!("{more}{}", off.concat())
}

/// Makes a site's events: what the commands cause, and one login. MongoDB's own reaper is out of the way.
async fn made(site: &Site, cluster: &Cluster<'_>, commands: &[Value]) -> Result {
    let index = doc! { "dropIndexes": COLLECTION, "index": "expiresAt_ttl" };
    site.mongo.run_command(index).await?;
    let worker = cluster.worker()?;
    let (api, client) = cluster.api().await?;
    let (status, answer) = client.admin().await?.send("application/x-ndjson", ndjson(commands)).await?;
    ensure!(status == 202, "{answer}");
    site.until_told(commands).await?;
    api.stop().await?;
    worker.stop().await
}

/// Lets an entity's events be so old, with a stamp of so many days ago.
async fn age(site: &Site, entity: Uuid, days: i64, stamped_days: i64) -> Result {
    let now = taskflow_stores::clock::now().timestamp_millis();
    let set = doc! { "$set": {
        "createdAt": DateTime::from_millis(now - days * DAY_MS),
        "expiresAt": DateTime::from_millis(now - stamped_days * DAY_MS),
    } };
    let events = site.mongo.collection::<Document>(COLLECTION);
    events.update_many(doc! { "entityId": entity.to_string() }, set).await?;
    Ok(())
}

/// For how many days from its creation an entity's event is kept; `None` if it is gone.
async fn kept_days(site: &Site, entity: Uuid) -> Result<Option<i64>> {
    let events = site.mongo.collection::<Document>(COLLECTION);
    let Some(event) = events.find_one(doc! { "entityId": entity.to_string() }).await? else {
        return Ok(None);
    };
    let time = |name: &str| event.get_datetime(name).map(|at| at.timestamp_millis());
    Ok(Some((time("expiresAt")? - time("createdAt")?) / DAY_MS))
}

/// The stamp of an entity's event.
async fn mark_of(site: &Site, entity: Uuid) -> Result<chrono::DateTime<chrono::Utc>> {
    let events = site.mongo.collection::<Document>(COLLECTION);
    let event = events.find_one(doc! { "entityId": entity.to_string() }).await?.context("no event")?;
    let at = event.get_datetime("expiresAt")?.timestamp_millis();
    chrono::DateTime::from_timestamp_millis(at).context("no time")
}

fn created(actor: Uuid) -> (Uuid, Value) {
    let task = id();
    (task, command_of(actor, "task.create", task, json!({ "title": "kept for a while" })))
}

fn registered() -> (Uuid, Value) {
    let user = id();
    let data =
        json!({ "email": format!("{user}@example.org"), "passwordhash": taskflow_tests::commands::HASH });
    (user, command("user.register", user, data))
}

async fn events(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    cluster.write_settings(&by_hand(""))?;
    let made_up = [created(ADMIN), created(ADMIN), created(USER), created(ADMIN), registered()];
    let [old, held, of_held, young, user] = made_up.each_ref().map(|(entity, _)| *entity);
    made(&site, &cluster, &made_up.map(|(_, command)| command)).await?;
    for task in [old, held, of_held] {
        age(&site, task, 200, 20).await?;
    }
    // Stamped wrongly: it is not old at all; and the law asks for seven years.
    age(&site, young, 10, 1).await?;
    age(&site, user, 400, 35).await?;
    let scheduler = cluster.spawn("scheduler", &[])?;
    until_led(&site).await?;
    let put = async |what: &str, subject: Uuid| -> Result<Value> {
        let subject = subject.to_string();
        let args = ["holds", "put", what, &subject, "--why", "a case", "--as", "ada", "--json"];
        let output = cluster.run(&args, &[]).await?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(serde_json::from_slice(&output.stdout)?)
    };
    let one = put("--entity", held).await?;
    let marked = mark_of(&site, of_held).await?;
    put("--actor", USER).await?;
    ensure!(marked < held_until() && mark_of(&site, of_held).await? > held_until(), "a hold leaves no mark");
    ensure!(one["appliedat"].is_string() && kept_days(&site, held).await? > Some(1_000_000), "{one}");

    let plan = run(&cluster, &["retention.events", "--dry-run"]).await?;
    ensure!(
        plan["figures"]["classes"]["task_events"]
            == json!({ "days": 180, "events": 4, "past": 1, "past_on_hold": 2 }),
        "{plan}"
    );
    ensure!(plan["figures"]["holds"] == 2 && site.events().await?.len() == 6, "{plan}");

    let done = run(&cluster, &["retention.events"]).await?;
    ensure!(done["figures"]["removed_by_class"] == json!({ "task_events": 1 }), "{done}");
    ensure!(kept_days(&site, old).await?.is_none(), "what is past is still there");
    ensure!(
        kept_days(&site, young).await? == Some(180) && kept_days(&site, user).await? == Some(2557),
        "what is too young has not its own time"
    );
    ensure!(
        kept_days(&site, held).await?.is_some() && kept_days(&site, of_held).await?.is_some(),
        "what is held is gone"
    );

    // A newer hold on the same event leaves another mark: a leader that was stopped when it was about to lift the older
    // one's lifts nothing.
    let seen = trail::held(&site.mongo, trail::Subject::Entity(of_held), trail::From::Start, 1).await?;
    let seen = seen.first().context("it is not on hold")?;
    let newer = put("--entity", of_held).await?;
    let until = fence::moment(&site.mongo).await?.lasts(LEAD);
    trail::stamp(&site.mongo, &[(seen, seen.created_at)], until).await?;
    let newest = mark_of(&site, of_held).await?;
    ensure!(newest > seen.expires_at, "the newer hold's mark is gone");
    // What is stamped anew keeps its mark, and so it does when one of its holds is released.
    run(&cluster, &["retention.events", "--with", "restamp"]).await?;
    let newer = newer["id"].as_str().context("no id")?.to_owned();
    let released = cluster.run(&["holds", "release", &newer], &[]).await?;
    ensure!(released.status.success(), "{}", String::from_utf8_lossy(&released.stderr));
    ensure!(mark_of(&site, of_held).await? == newest, "what another hold keeps is lifted");
    let unknown = cluster.run(&["jobs", "run", "retention.events", "--with", "restmap"], &[]).await?;
    let words = String::from_utf8_lossy(&unknown.stderr).into_owned();
    ensure!(unknown.status.code() == Some(2) && words.contains("\"restmap\"; there is restamp"), "{words}");

    // After its release it has its own time again, and goes.
    let hold = one["id"].as_str().context("no id")?.to_owned();
    let released = cluster.run(&["holds", "release", &hold], &[]).await?;
    ensure!(released.status.success(), "{}", String::from_utf8_lossy(&released.stderr));
    ensure!(kept_days(&site, held).await? == Some(180), "not lifted");
    run(&cluster, &["retention.events"]).await?;
    ensure!(
        kept_days(&site, held).await?.is_none() && kept_days(&site, of_held).await?.is_some(),
        "other events than the released are gone"
    );
    let list = cluster.run(&["holds", "list"], &[]).await?;
    let list = String::from_utf8_lossy(&list.stdout).into_owned();
    ensure!(list.lines().count() == 1 && list.contains("actor") && list.contains("a case"), "{list}");

    let (api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    ensure!(client.user().await?.get("/v1/admin/holds").await?.status() == 403, "a user sees the holds");
    let put =
        admin.post("/v1/admin/holds").json(&json!({ "entity": young, "why": "another case" })).send().await?;
    ensure!(put.status() == 202, "{}", put.status());
    let put: Value = put.json().await?;
    let path = format!("/v1/admin/holds/{}", put["id"].as_str().unwrap_or_default());
    wait::until("it is carried out", async || {
        let hold: Value = admin.get(&path).await?.json().await?;
        Ok(hold["appliedat"].is_string())
    })
    .await?;
    for wrong in [
        json!({ "why": "x" }),
        json!({ "entity": young }),
        json!({ "entity": "x", "why": "x" }),
        json!({ "entity": young, "actor": USER, "why": "x" }),
    ] {
        let status = admin.post("/v1/admin/holds").json(&wrong).send().await?.status();
        ensure!(status == 400, "{wrong}: {status}");
    }
    ensure!(
        admin.delete(&path).await?.status() == 202 && admin.delete(&path).await?.status() == 409,
        "released twice"
    );
    api.stop().await?;
    scheduler.stop().await
}

async fn restamped(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    cluster.write_settings(&by_hand(""))?;
    let tasks: Vec<(Uuid, Value)> = (0..20).map(|_| created(ADMIN)).collect();
    let (user, register) = registered();
    let commands: Vec<Value> = tasks.iter().map(|(_, command)| command.clone()).chain([register]).collect();
    made(&site, &cluster, &commands).await?;
    let first = cluster.spawn("scheduler", &[])?;
    until_led(&site).await?;
    let nothing = run(&cluster, &["retention.events"]).await?;
    ensure!(nothing["figures"]["stamped"] == 0 && nothing["figures"]["looked_at"] == 22, "{nothing}");
    first.stop().await?;
    // Shorter for one class, another class for one type; the minimum of the law stands against a wrong setting.
    let policy = |days: u32| {
        format!(
            "[retention]\ntask_events_days = 7\nuser_activity_days = {days}\nlegal_minimum = {{ task_events_days = 5 }}\n\
             [retention.classes]\n\"user.registered\" = \"user_activity\"\n"
        )
    };
    cluster.write_settings(&by_hand(&policy(365)))?;
    let refused = cluster.run(&["jobs", "list"], &[]).await?;
    let words = String::from_utf8_lossy(&refused.stderr).into_owned();
    ensure!(
        !refused.status.success() && words.contains("user.registered") && words.contains("2555"),
        "{words}"
    );
    cluster.write_settings(&by_hand(&policy(2600)))?;
    let second = cluster.spawn("scheduler", &[])?;
    wait::until("the other one leads", async || {
        Ok(site.count("SELECT epoch FROM scheduler_leader").await? == 2)
    })
    .await?;
    let done = run(&cluster, &["retention.events"]).await?;
    ensure!(done["figures"]["stamped"] == 22, "{done}");
    for (task, _) in &tasks {
        ensure!(kept_days(&site, *task).await? == Some(7), "a task's event has the old stamp");
    }
    ensure!(kept_days(&site, user).await? == Some(2600), "a type's class is not the settings'");
    let again = run(&cluster, &["retention.events"]).await?;
    ensure!(again["figures"]["looked_at"].is_null(), "stamped without need: {again}");
    second.stop().await
}

async fn rows(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    cluster.write_settings(&by_hand(""))?;
    let tasks: Vec<(Uuid, Value)> = (0..6).map(|_| created(ADMIN)).collect();
    let commands: Vec<Value> = tasks.iter().map(|(_, command)| command.clone()).collect();
    made(&site, &cluster, &commands).await?;
    let (held, gone) = (tasks[0].0, tasks[1].0);
    site.sql(&format!(
        "UPDATE receipts SET finished_at = now() - interval '40 days' WHERE subject <> '{young}';
         UPDATE receipts SET outcome = 'dead' WHERE subject = '{dead}';
         UPDATE batches SET applied_at = now() - interval '40 days';
         UPDATE tasks SET created_at = now() - interval '90 days', deleted_at = now() - interval '31 days' WHERE id IN ('{held}', '{gone}');
         UPDATE tasks SET deleted_at = now() - interval '29 days' WHERE id = '{young}';
         INSERT INTO legal_holds (id, scope, subject, why, author, since) VALUES (gen_random_uuid(), 'entity', '{held}', 'a case', 'ada', now());
         INSERT INTO partition_leases (partition, holder, expires_at) VALUES ('77', gen_random_uuid(), now() - interval '2 days');
         INSERT INTO user_activity SELECT gen_random_uuid(), 0 FROM generate_series(1, 1201);
         INSERT INTO suspects VALUES ('\\x00', '77', 1, 1, now() - interval '60 days'), ('\\x01', '00', 1, 1, now());
         INSERT INTO job_runs (schedule, job, due_at, met, state, begins_at, epoch, ended_at)
         SELECT 'old', 'old', now() - n * interval '1 day', 'on_time', CASE n WHEN 150 THEN 'completed' ELSE 'failed' END, now(), 0, now() - n * interval '1 day'
         FROM generate_series(80, 200, 10) AS n;
         INSERT INTO dead_letters (id, key, command_id, reason, detail, pattern, fingerprint, exchange, queue, routing_key, headers, body,
             state, attempt, attempts, copies, first_died_at, last_died_at)
         SELECT gen_random_uuid(), sha256('x'), id, 'failing', '', '', '', '', '', '', '{{}}', 'x', 'kept', 1, '[]', 0, now(), now()
         FROM receipts WHERE subject = '{dead}';
         INSERT INTO dead_letters (id, key, command_id, subject, reason, detail, pattern, fingerprint, exchange, queue, routing_key, headers,
             body, state, attempt, attempts, copies, first_died_at, last_died_at)
         SELECT gen_random_uuid(), sha256(subject::text::bytea), gen_random_uuid(), subject, 'failing', '', '', '', '', '', '', '{{}}', 'x',
             'kept', 1, '[]', 0, now() - interval '100 days', now() - interval '100 days'
         FROM UNNEST(ARRAY['{held}', '{gone}']::uuid[]) AS past (subject)",
        young = tasks[2].0,
        dead = tasks[3].0
    ))
    .await?;
    redis::<i64>(&site, &["SADD", "ws:user:1:connections", "gone", "open"]).await?;
    redis::<String>(&site, &["SET", "ws:connection:open", "1"]).await?;
    let scheduler = cluster.spawn("scheduler", &[])?;
    until_led(&site).await?;
    let plan = run(&cluster, &["retention.receipts", "--dry-run"]).await?;
    ensure!(plan["figures"]["receipts_past"] == 4, "{plan}");
    let plan = run(&cluster, &["retention.dead_letters", "--dry-run"]).await?;
    ensure!(plan["figures"]["letters_past"] == 1 && plan["figures"]["letters_held"] == 1, "{plan}");
    let plan = run(&cluster, &["retention.tasks", "--dry-run"]).await?;
    ensure!(plan["figures"]["tasks_past"] == 1 && plan["figures"]["tasks_held"] == 1, "{plan}");

    let plan = run(&cluster, &["retention.ledger", "--dry-run"]).await?;
    for (figure, count) in
        [("runs_past", 11), ("leases_past", 1), ("suspects_past", 1), ("readers_cold", 1201)]
    {
        ensure!(plan["figures"][figure] == count, "{figure} is not {count}: {plan}");
    }

    let receipts = run(&cluster, &["retention.receipts"]).await?;
    ensure!(receipts["figures"]["receipts_removed"] == 4, "{receipts}");
    let left = "SELECT count(*) FROM receipts";
    ensure!(
        site.count(left).await? == 3,
        "the held one, the dead letter's and the young one are not what is left"
    );
    ensure!(site.count("SELECT count(*) FROM batches").await? == 0, "{receipts}");
    // Once the dead rows are vacuumed, the index looks at their ranges anew.
    site.sql("VACUUM receipts").await?;
    wait::until("the statistics know of it", async || {
        Ok(site
            .count("SELECT count(last_vacuum) FROM pg_stat_user_tables WHERE relname = 'receipts'")
            .await?
            == 1)
    })
    .await?;
    let again = run(&cluster, &["retention.receipts"]).await?;
    ensure!(
        again["figures"]["ranges_summarized"] == 1 && again["figures"]["receipts_removed"] == 0,
        "{again}"
    );

    let removed = run(&cluster, &["retention.tasks"]).await?;
    ensure!(removed["figures"]["tasks_removed"] == 1, "{removed}");
    ensure!(
        site.count(&format!("SELECT count(*) FROM tasks WHERE id IN ('{held}', '{gone}')")).await? == 1,
        "{removed}"
    );
    let ledger = run(&cluster, &["retention.ledger"]).await?;
    // Those of more than ninety days, but the newest that was completed stays.
    ensure!(
        ledger["figures"]["runs_removed"] == 11
            && ledger["figures"]["leases_removed"] == 1
            && ledger["figures"]["suspects_removed"] == 1
            && ledger["figures"]["readers_forgotten"] == 1201,
        "{ledger}"
    );
    let sockets = run(&cluster, &["retention.sockets"]).await?;
    ensure!(sockets["figures"]["orphans_removed"] == 1 && sockets["figures"]["whole"] == true, "{sockets}");
    let members: Vec<String> = redis(&site, &["SMEMBERS", "ws:user:1:connections"]).await?;
    ensure!(members == ["open"], "{members:?}");
    scheduler.stop().await
}

/// One command of Redis about a key under the site's prefix.
async fn redis<T: redis::FromRedisValue>(site: &Site, words: &[&str]) -> Result<T> {
    let client = redis::Client::open(site.redis_url.as_str())?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    let mut order = redis::cmd(words[0]);
    order.arg(format!("{}{}", site.redis_prefix, words[1])).arg(&words[2..]);
    Ok(order.query_async(&mut connection).await?)
}
