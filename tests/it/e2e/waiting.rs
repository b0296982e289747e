//! Commands that wait: for a user, for their time, for a version that knows them; and those behind them.

use std::sync::Arc;

use anyhow::{Context, ensure};
use chrono::{SecondsFormat, TimeDelta};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use taskflow_core::{envelope, slot};
use taskflow_stores::clock;
use taskflow_stores::postgres::waiting;
use taskflow_stores::rabbit::publish::Message;
use taskflow_stores::rabbit::topology::COMMANDS;
use taskflow_tests::commands::{HASH, command, command_of, id, ndjson, subject_in_slot};
use taskflow_tests::{Client, Result, Site, wait};
use uuid::Uuid;

use crate::{cluster, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_site("a command waits for its user, and its subject's later ones behind it", parked),
        with_site("a command whose user never comes is rejected, and the line goes on", given_up),
        with_site("a scheduled command is applied in its time, or cancelled", scheduled),
        with_site("a command of an unknown type waits, then goes to the dead letters", unknown_type),
        with_site("a worker that dies with commands in the waiting room loses none", survives),
        with_site(
            "a command that is cancelled while it is tried leaves no line behind it",
            cancelled_meanwhile,
        ),
        with_site("a scheduled command that is sent again when it is due holds nobody up", sent_again),
        with_site("scheduled commands of a subject that are due together keep their order", due_together),
        with_site("what was applied in time and comes again does not expire while it waits", applied_in_time),
        with_site("of what is due only so many bytes are taken at once", heavy),
        with_site("many scheduled commands cost those that are due nothing", cheap),
    ]
}

async fn send(client: &Client, commands: &[Value]) -> Result {
    let (status, answer) = client.send("application/x-ndjson", ndjson(commands)).await?;
    ensure!(status == 202 && answer["accepted"] == commands.len(), "{status} {answer}");
    Ok(())
}

async fn receipt(client: &Client, id: &Value) -> Result<Value> {
    Ok(client.get(&format!("/v1/commands/{}", id.as_str().unwrap_or_default())).await?.json().await?)
}

async fn until_status(client: &Client, id: &Value, status: &str) -> Result<Value> {
    let mut last = Value::Null;
    let reached = wait::until("the command has that status", async || {
        last = receipt(client, id).await?;
        Ok(last["status"] == status)
    })
    .await;
    reached.with_context(|| format!("it was never {status}, but {last}"))?;
    Ok(last)
}

fn in_ms(milliseconds: i64) -> String {
    (clock::now() + TimeDelta::milliseconds(milliseconds)).to_rfc3339_opts(SecondsFormat::Millis, true)
}

/// A task of a user who is not there, and what happens to it.
fn life(actor: Uuid, task: Uuid) -> Vec<Value> {
    vec![
        command_of(actor, "task.create", task, json!({ "title": "one" })),
        command("task.update", task, json!({ "title": "two", "expectedversion": 1 })),
        command("task.change_status", task, json!({ "status": "review", "expectedversion": 2 })),
        command("task.update", task, json!({ "title": "three", "expectedversion": 3 })),
    ]
}

async fn parked(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    // Patient: the test decides when the user comes.
    let worker = cluster.spawn("worker", &[("TASKFLOW_WORKER__PATIENCE__UNKNOWN_USER_MS", "60000")])?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    let (ada, task, other) = (id(), id(), id());
    let commands = life(ada, task);
    send(&admin, &commands[..3]).await?;
    let first = until_status(&admin, &commands[0]["id"], "parked").await?;
    ensure!(first["code"] == "unknown_user" && first["attempts"].as_i64() >= Some(1), "{first}");
    ensure!(first["nextattemptat"].is_string() && first["detail"].is_string(), "{first}");
    let second = until_status(&admin, &commands[1]["id"], "parked").await?;
    ensure!(second["code"] == "behind", "{second}");
    // The neighbours go on; who comes later lines up; who comes twice is there once.
    let (status, answer) = admin
        .send("application/json", command("task.create", other, json!({ "title": "x" })).to_string())
        .await?;
    ensure!(status == 202, "{answer}");
    wait::until(
        "the neighbour is applied",
        async || Ok(site.count("SELECT count(*) FROM tasks").await? == 1),
    )
    .await?;
    send(&admin, &[commands[1].clone(), commands[3].clone(), commands[0].clone()]).await?;
    until_status(&admin, &commands[3]["id"], "parked").await?;
    ensure!(site.count("SELECT count(*) FROM waiting_commands").await? == 4, "somebody waits twice");
    let register = json!({ "email": "ada@example.org", "passwordhash": HASH });
    send(&admin, &[command_of(ada, "user.register", ada, register)]).await?;
    for (index, command) in commands.iter().enumerate() {
        let receipt = until_status(&admin, &command["id"], "applied").await?;
        ensure!(receipt["version"] == index + 1, "{receipt}");
    }
    let receipt = receipt(&admin, &commands[0]["id"]).await?;
    ensure!(receipt["attempts"].as_i64() >= Some(2), "{receipt}");
    ensure!(site.count("SELECT count(*) FROM waiting_commands").await? == 0, "somebody still waits");
    worker.stop().await
}

async fn given_up(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    let task = id();
    let mut commands = life(id(), task);
    commands.push(command("task.create", task, json!({ "title": "by somebody who is there" })));
    send(&admin, &commands).await?;
    let first = until_status(&admin, &commands[0]["id"], "rejected").await?;
    ensure!(first["code"] == "unknown_user" && first["attempts"].as_i64() >= Some(3), "{first}");
    for command in &commands[1..4] {
        let receipt = until_status(&admin, &command["id"], "rejected").await?;
        ensure!(receipt["code"] == "not_found", "{receipt}");
    }
    until_status(&admin, &commands[4]["id"], "applied").await?;
    worker.stop().await
}

async fn scheduled(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    let task = id();
    let later = |milliseconds, data| {
        let mut command = command("task.update", task, data);
        command["notbefore"] = json!(in_ms(milliseconds));
        command
    };
    let create = command("task.create", task, json!({ "title": "now" }));
    let soon = later(6_000, json!({ "title": "soon" }));
    let far = later(3_600_000, json!({ "title": "far" }));
    let mut fleeting = later(3_600_000, json!({ "title": "never" }));
    fleeting["expirytime"] = json!(in_ms(4_000));
    let at_once = command("task.update", task, json!({ "description": "holds nobody up" }));
    let commands = [create, soon, far, fleeting, at_once];
    send(&admin, &commands).await?;
    let waits = until_status(&admin, &commands[2]["id"], "scheduled").await?;
    ensure!(waits["nextattemptat"].is_string() && waits["attempts"] == 0, "{waits}");
    // A resend changes nothing.
    send(&admin, &[commands[2].clone()]).await?;
    let before = until_status(&admin, &commands[4]["id"], "applied").await?;
    ensure!(before["version"] == 2, "{before}");
    let soon = until_status(&admin, &commands[1]["id"], "applied").await?;
    ensure!(soon["version"] == 3, "{soon}");
    let (due, done) = (commands[1]["notbefore"].as_str(), soon["finishedat"].as_str());
    ensure!(due < done, "due at {due:?}, applied at {done:?}");
    until_status(&admin, &commands[3]["id"], "expired").await?;

    let far = format!("/v1/commands/{}", commands[2]["id"].as_str().unwrap_or_default());
    let stranger = client.user().await?.delete(&far).await?;
    ensure!(stranger.status() == 404, "somebody else may see it");
    let cancelled: Value = admin.delete(&far).await?.json().await?;
    ensure!(cancelled["status"] == "cancelled" && cancelled["finishedat"].is_string(), "{cancelled}");
    // What is cancelled or applied is scheduled no more.
    let done = format!("/v1/commands/{}", soon["id"].as_str().unwrap_or_default());
    for (path, state) in [(&far, "is cancelled"), (&done, "is applied")] {
        let late = admin.delete(path).await?;
        let (status, problem): (_, Value) = (late.status(), late.json().await?);
        ensure!(status == 409 && problem["code"] == "not_scheduled", "{status} {problem}");
        ensure!(problem["detail"].as_str().is_some_and(|detail| detail.ends_with(state)), "{problem}");
    }
    ensure!(site.count("SELECT count(*) FROM waiting_commands").await? == 0, "somebody still waits");
    // Sent again, it stays cancelled.
    send(&admin, &[commands[2].clone()]).await?;
    let still: Value = admin.get(&far).await?.json().await?;
    ensure!(still["status"] == "cancelled", "{still}");
    worker.stop().await
}

async fn unknown_type(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    let task = id();
    let newer = command("task.paint", task, json!({ "colour": "green" }));
    let create = command("task.create", task, json!({ "title": "behind it" }));
    for value in [&newer, &create] {
        // Over AMQP: an intake of this version refuses what it does not know.
        let message = Message {
            exchange: COMMANDS.into(),
            routing_key: slot::routing_key(slot::of(task)).into(),
            body: value.to_string().into_bytes(),
            properties: lapin::BasicProperties::default().with_delivery_mode(2),
            mandatory: true,
            lane: 0,
        };
        site.publisher.publish(message).await?;
    }
    let waits = until_status(&admin, &newer["id"], "parked").await?;
    ensure!(waits["code"] == "unknown_type" && waits["type"] == "task.paint", "{waits}");
    let dead = until_status(&admin, &newer["id"], "dead").await?;
    ensure!(dead["code"] == "unknown_type", "{dead}");
    until_status(&admin, &create["id"], "applied").await?;
    worker.stop().await
}

/// Parked commands of many subjects, a worker that dies at each step of trying them, and one that ends the work.
/// It is due, names a user who is not there, and would be parked: its subject's later commands must not wait behind it.
async fn cancelled_meanwhile(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    // Whoever still wants a lease would wait for the lock below, and its holder with it.
    let held = "SELECT count(*) FROM partition_leases WHERE expires_at > now()";
    wait::until("all partitions are held", async || Ok(site.count(held).await? == 5)).await?;
    let task = id();
    let mut create = command("task.create", task, json!({ "title": "never", "assigneeid": id() }));
    create["notbefore"] = json!(in_ms(3_000));
    send(&admin, &[create.clone()]).await?;
    until_status(&admin, &create["id"], "scheduled").await?;
    // Its batch waits here when it has looked for receipts, and before it writes anything.
    let mut lock = taskflow_stores::postgres::begin(&site.postgres).await?;
    sqlx::raw_sql("LOCK TABLE partition_heads IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await?;
    wait::until("it is tried", async || {
        let tried = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
            AND wait_event_type = 'Lock' AND query LIKE '/* record_batch */%'";
        Ok(site.count(tried).await? > 0)
    })
    .await?;
    let path = format!("/v1/commands/{}", create["id"].as_str().unwrap_or_default());
    let cancelled: Value = admin.delete(&path).await?.json().await?;
    ensure!(cancelled["status"] == "cancelled", "{cancelled}");
    lock.rollback().await?;
    let next = command("task.create", task, json!({ "title": "not held up" }));
    let next = admin.apply(&next).await?;
    ensure!(next["status"] == "applied", "{next}");
    ensure!(site.count("SELECT count(*) FROM waiting_commands").await? == 0, "somebody waits");
    until_status(&admin, &create["id"], "cancelled").await?;
    worker.stop().await
}

/// It names a user who is not there, and its copy is read after its time has come and before it is itself: the copy is to
/// be parked, and what stands in the room is scheduled.
async fn sent_again(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let publish = async |value: &Value| -> Result {
        let command = envelope::read(value.clone())?;
        Ok(site.publisher.publish(Message::command(&command, clock::now(), None)).await?)
    };
    let (task, due) = (id(), clock::now() + TimeDelta::seconds(3));
    let mut twice = command("task.create", task, json!({ "title": "never", "assigneeid": id() }));
    twice["notbefore"] = json!(due.to_rfc3339_opts(SecondsFormat::Millis, true));
    // As many that are due before it as are taken at once.
    let slot = slot::of(task);
    let mut first = command("task.create", subject_in_slot(slot), json!({ "title": "before it" }));
    first["notbefore"] = json!((due - TimeDelta::seconds(1)).to_rfc3339_opts(SecondsFormat::Millis, true));
    publish(&first).await?;
    publish(&twice).await?;
    let one_by_one = ("TASKFLOW_WORKER__MAX_BATCH", "1");
    let worker = cluster.spawn("worker", &[one_by_one])?;
    let scheduled = "SELECT count(*) FROM waiting_commands WHERE state = 'scheduled'";
    wait::until("both wait for their time", async || Ok(site.count(scheduled).await? == 2)).await?;
    worker.kill().await?;
    publish(&twice).await?;
    let next = command("task.create", task, json!({ "title": "not held up" }));
    publish(&next).await?;
    wait::until("they are due", async || Ok(clock::now() > due)).await?;
    let worker = cluster.spawn("worker", &[one_by_one])?;
    site.until_told(&[first, twice.clone(), next]).await?;
    ensure!(site.count("SELECT count(*) FROM waiting_commands").await? == 0, "somebody waits");
    let titles = "SELECT count(*) FROM tasks WHERE title IN ('before it', 'not held up')";
    ensure!(site.count(titles).await? == 2, "not all are applied");
    let given_up: (String, Option<String>) =
        sqlx::query_as("SELECT outcome::text, code FROM receipts WHERE id = $1")
            .bind(twice["id"].as_str().unwrap_or_default().parse::<Uuid>()?)
            .fetch_one(&site.postgres)
            .await?;
    ensure!(given_up == ("rejected".to_owned(), Some("unknown_user".to_owned())), "{given_up:?}");
    worker.stop().await
}

async fn heavy(site: Arc<Site>) -> Result {
    let put = async |count: i32, bytes: i32| {
        site.sql(&format!(
            "INSERT INTO waiting_commands (id, partition, subject, state, attempts, since, due_at, accepted_at, fingerprint, body)
             SELECT gen_random_uuid(), '00', gen_random_uuid(), 'scheduled', 0, now(), now() - interval '1 hour' + n * interval '1 s',
                    now(), decode(md5(n::text), 'hex'), convert_to(repeat('x', {bytes}), 'UTF8')
             FROM generate_series(1, {count}) n"
        ))
        .await
    };
    let due = async || waiting::due(&site.postgres, "00", clock::now(), 400).await;
    put(20, 1024 * 1024).await?;
    let some = due().await?;
    ensure!(some.len() == 8, "{} of 1 MiB are taken at once", some.len());
    site.sql("DELETE FROM waiting_commands").await?;
    put(3, 9 * 1024 * 1024).await?;
    ensure!(due().await?.len() == 1, "one that is larger than all may be is taken alone");
    site.sql("DELETE FROM waiting_commands").await?;
    put(500, 1000).await?;
    let many = due().await?;
    ensure!(many.len() == 400, "{} small ones are taken at once", many.len());
    let accepted: Vec<_> = many.iter().map(|row| row.fingerprint).collect();
    let in_order: Vec<[u8; 16]> = sqlx::query_scalar::<_, Vec<u8>>(
        "SELECT fingerprint FROM waiting_commands ORDER BY due_at LIMIT 400",
    )
    .fetch_all(&site.postgres)
    .await?
    .into_iter()
    .filter_map(|fingerprint| fingerprint.try_into().ok())
    .collect();
    ensure!(accepted == in_order, "they are not in the order in which they are due");
    // All are due at the same moment, and their rows lie in the reverse order.
    site.sql("UPDATE waiting_commands SET due_at = now() - interval '1 hour', place = -place").await?;
    let many: Vec<Uuid> = due().await?.iter().map(|row| row.id).collect();
    let in_order: Vec<Uuid> = sqlx::query_scalar("SELECT id FROM waiting_commands ORDER BY place LIMIT 400")
        .fetch_all(&site.postgres)
        .await?;
    ensure!(many == in_order, "not those that came first are taken first");
    Ok(())
}

/// The first of them waits for its user, and the others join its line in one statement.
async fn due_together(site: Arc<Site>) -> Result {
    // Ids are joined in their order, which is the reverse of the commands': sizes that are met may let the planner do so.
    site.sql(
        "DO $$ BEGIN
             EXECUTE format('ALTER DATABASE %I SET enable_nestloop = off', current_database());
             EXECUTE format('ALTER DATABASE %I SET enable_hashjoin = off', current_database());
         END $$",
    )
    .await?;
    let cluster = cluster(&site)?;
    let worker = cluster.spawn("worker", &[("TASKFLOW_WORKER__PATIENCE__UNKNOWN_USER_MS", "60000")])?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    let (ada, task, due) = (id(), id(), in_ms(6_000));
    let mut ids: Vec<Uuid> = (0..6).map(|_| id()).collect();
    ids.sort_unstable();
    ids.reverse();
    let scheduled = |(place, id): (usize, &Uuid)| {
        let next = json!({ "title": place.to_string(), "expectedversion": place });
        let mut scheduled = match place {
            0 => command_of(ada, "task.create", task, json!({ "title": "0" })),
            _ => command("task.update", task, next),
        };
        scheduled["id"] = json!(id);
        scheduled["notbefore"] = json!(due);
        scheduled
    };
    let commands: Vec<Value> = ids.iter().enumerate().map(scheduled).collect();
    send(&admin, &commands).await?;
    let scheduled = "SELECT count(*) FROM waiting_commands WHERE state = 'scheduled'";
    wait::until("all wait for their time", async || Ok(site.count(scheduled).await? == 6)).await?;
    for (index, command) in commands.iter().enumerate() {
        let waits = until_status(&admin, &command["id"], "parked").await?;
        let code = if index == 0 { "unknown_user" } else { "behind" };
        ensure!(waits["code"] == code, "{waits}");
    }
    let register = json!({ "email": "ada@example.org", "passwordhash": HASH });
    send(&admin, &[command_of(ada, "user.register", ada, register)]).await?;
    for (index, command) in commands.iter().enumerate() {
        let receipt = until_status(&admin, &command["id"], "applied").await?;
        ensure!(receipt["version"] == index + 1, "{receipt}");
    }
    worker.stop().await
}

/// As a restore sends the journal again, when their `expirytime` is over.
async fn applied_in_time(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.spawn("worker", &[("TASKFLOW_WORKER__PATIENCE__UNKNOWN_USER_MS", "60000")])?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    let ada = id();
    let mut commands = life(ada, id());
    // Taken in time, but its own time came after that: it has expired before, and does so again.
    let mut late = command("task.create", id(), json!({ "title": "late" }));
    late["notbefore"] = json!(in_ms(-600_000));
    commands.push(late);
    let taken = clock::now() - TimeDelta::hours(2);
    for value in &mut commands {
        value["expirytime"] = json!(in_ms(-3_600_000));
        let command = envelope::read(value.clone())?;
        site.publisher.publish(Message::again(&command, taken, taken)).await?;
    }
    until_status(&admin, &commands[4]["id"], "expired").await?;
    for command in &commands[..4] {
        until_status(&admin, &command["id"], "parked").await?;
    }
    let register = json!({ "email": "ada@example.org", "passwordhash": HASH });
    send(&admin, &[command_of(ada, "user.register", ada, register)]).await?;
    for (index, command) in commands[..4].iter().enumerate() {
        let receipt = until_status(&admin, &command["id"], "applied").await?;
        ensure!(receipt["version"] == index + 1, "{receipt}");
    }
    worker.stop().await
}

async fn survives(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let patient = ("TASKFLOW_WORKER__PATIENCE__UNKNOWN_USER_MS", "60000");
    let (ada, tasks): (Uuid, Vec<Uuid>) = (id(), (0..20).map(|_| id()).collect());
    let mut commands: Vec<Value> = tasks.iter().flat_map(|task| life(ada, *task)).collect();
    for (index, task) in tasks.iter().enumerate() {
        let mut command = command("task.update", *task, json!({ "description": "in its time" }));
        command["notbefore"] = json!(in_ms(6_000 + 20 * index as i64));
        commands.push(command);
    }
    let publish = async |value: &Value| -> Result {
        let command = envelope::read(value.clone())?;
        Ok(site.publisher.publish(Message::command(&command, clock::now(), None)).await?)
    };
    for value in &commands {
        publish(value).await?;
    }
    for point in ["written:9", "committed:9", "loaded:14"] {
        let mut worker = cluster.spawn("worker", &[patient, ("TASKFLOW_CRASH_AT", point)])?;
        worker.ended().await?;
    }
    let register = json!({ "email": "ada@example.org", "passwordhash": HASH });
    publish(&command_of(ada, "user.register", ada, register)).await?;
    let done = async || {
        let have = site.count("SELECT count(*) FROM receipts WHERE outcome = 'applied'").await?;
        let waiting = site.count("SELECT count(*) FROM waiting_commands").await?;
        ensure!(have == commands.len() as i64 + 1 && waiting == 0, "{have} applied, {waiting} wait");
        Ok(true)
    };
    // Not all are of one partition.
    let mut worker = cluster.spawn("worker", &[patient, ("TASKFLOW_CRASH_AT", "committed:2")])?;
    worker.ended().await?;
    // What comes due together is committed together: it may be done before it has committed so often.
    let mut worker = cluster.spawn("worker", &[patient, ("TASKFLOW_CRASH_AT", "committed:12")])?;
    let ended = async || Ok(!worker.is_running() || done().await?);
    wait::until("it dies, or nobody waits and all have receipts", ended).await?;
    drop(worker);
    let worker = cluster.spawn("worker", &[patient])?;
    // Who has not begun can't be stopped politely.
    wait::until("it is at work", async || Ok(worker.log().contains("The worker starts"))).await?;
    wait::until("nobody waits and all have receipts", done).await?;
    // One to four in order, and the scheduled one somewhere after the first.
    let torn = "SELECT count(*) FROM tasks WHERE version <> 5 OR title <> 'three' OR description IS NULL";
    ensure!(site.count(torn).await? == 0, "a task has lost, doubled or mixed up a command");
    worker.stop().await
}

/// Nobody looks through what waits: not when it is loaded, not when something is due.
async fn cheap(site: Arc<Site>) -> Result {
    site.sql(
        "INSERT INTO waiting_commands (id, partition, subject, state, attempts, since, due_at, accepted_at, fingerprint, body)
         SELECT gen_random_uuid(), '0' || n % 4, gen_random_uuid(), 'scheduled', 0, now(), now() + interval '1 year', now(),
                decode(md5(n::text), 'hex'), '{}'
         FROM generate_series(1, 50000) n;
         ANALYZE waiting_commands",
    )
    .await?;
    let read = "SELECT coalesce(sum(seq_tup_read), 0)::bigint FROM pg_stat_user_tables WHERE relname = 'waiting_commands'";
    let before = site.count(read).await?;
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    // Parked, behind, scheduled and due: each way through the room.
    let mut commands = life(id(), id());
    let mut soon = command("task.create", id(), json!({ "title": "soon" }));
    soon["notbefore"] = json!(in_ms(1_000));
    commands.push(soon);
    send(&admin, &commands).await?;
    until_status(&admin, &commands[4]["id"], "applied").await?;
    until_status(&admin, &commands[3]["id"], "rejected").await?;
    // A session's statistics are there at the latest when it ends.
    worker.stop().await?;
    let after = site.count(read).await?;
    ensure!(after - before < 50_000, "{} rows of the waiting room were read one by one", after - before);
    Ok(())
}
