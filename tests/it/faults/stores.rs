//! Each store killed and started again under load, with servers that nobody else has meanwhile.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use taskflow_core::{envelope, slot};
use taskflow_servers::Server;
use taskflow_stores::clock;
use taskflow_stores::postgres::{self, PgConnection, PgPool, begin};
use taskflow_stores::rabbit::consume::Subscription;
use taskflow_stores::rabbit::publish::Message;
use taskflow_tests::commands::{command, id, subject_in_slot};
use taskflow_tests::promise::{self, Stream};
use taskflow_tests::proxy::{Flow, Wire};
use taskflow_tests::wait::looked_at;
use taskflow_tests::{Result, Site, World, letters, wait};
use tokio_util::sync::CancellationToken;

use crate::{cluster, with_site, with_world};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Store {
    Postgres,
    RabbitMq,
    MongoDb,
    Redis,
}

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_world("postgres dies and comes back under load", async |world| {
            dies(world, Store::Postgres).await
        }),
        with_world("rabbitmq dies and comes back under load", async |world| {
            dies(world, Store::RabbitMq).await
        }),
        with_world("mongodb dies and comes back under load", async |world| dies(world, Store::MongoDb).await),
        with_world("redis dies and comes back under load", async |world| dies(world, Store::Redis).await),
        with_site("a transaction that is given up while it begins is not left open", given_up),
        with_site(
            "a transaction whose caller leaves at its end is there whole or not at all",
            left_at_the_end,
        ),
        with_site("what can't be written is not given back to the broker again and again", not_written),
        with_site(
            "what was sent to a worker that can't look at it is not given back again and again",
            unread,
        ),
        with_site("a row that another session holds is named, and who stands before it is applied", held_row),
    ]
}

async fn dies(world: &World, store: Store) -> Result {
    let site = Arc::new(Site::new(world).await?);
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    wait::until("the login is applied", async || Ok(site.count("SELECT count(*) FROM receipts").await? == 1))
        .await?;
    forget(&site).await?;
    let stream = Stream::start(&site, 8, 40);
    applied(&site, 40).await?;
    {
        let mut servers = world.servers.lock().await;
        let server: &mut Server = match store {
            Store::Postgres => &mut servers.postgres,
            Store::RabbitMq => &mut servers.rabbitmq,
            Store::MongoDb => &mut servers.mongodb,
            Store::Redis => &mut servers.redis,
        };
        server.kill().await;
        while_gone(store, &site, &client, &admin).await?;
        server.restart().await?;
    }
    wait::until("the API is ready again", async || Ok(client.get("/readyz").await?.status() == 200)).await?;
    let now = site.count("SELECT count(*) FROM receipts").await?;
    applied(&site, now + 80).await?;
    let mut accepted = stream.end().await?;
    // What was taken while Postgres was away.
    accepted.others = usize::from(store == Store::Postgres);
    promise::check(&site, &accepted).await?;
    api.stop().await?;
    worker.stop().await
}

/// A caller that goes away while a transaction begins, wherever that is: what is written on the same pool afterwards is
/// committed, and nothing stays open.
async fn given_up(site: Arc<Site>) -> Result {
    site.sql("CREATE TABLE marks (n BIGINT)").await?;
    let (_wire, pool) = one_connection(&site).await?;
    let mut sessions = HashSet::new();
    for looks in 1..20 {
        let session: i32 = sqlx::query_scalar("SELECT pg_backend_pid()").fetch_one(&pool).await?;
        sessions.insert(session);
        wait::until("the connection is in the pool", async || Ok(pool.idle() == 1)).await?;
        let begun = looked_at(looks, begin(&pool)).await;
        let is_begun = begun.transpose()?.is_some();
        let n = looks as i64;
        sqlx::query("INSERT INTO marks VALUES ($1)").bind(n).execute(&pool).await?;
        let marks = site.count("SELECT count(*) FROM marks").await?;
        ensure!(
            marks == n,
            "what was written after a transaction was given up at look {looks} is not committed"
        );
        if is_begun {
            ensure!(sessions.len() > 1, "no connection was in the middle of a beginning");
            return nothing_open(&site).await;
        }
    }
    bail!("no transaction began")
}

/// The same while it is committed or rolled back: either all of it is there or nothing.
async fn left_at_the_end(site: Arc<Site>) -> Result {
    site.sql("CREATE TABLE marks (n BIGINT, inside BOOLEAN)").await?;
    let (_wire, pool) = one_connection(&site).await?;
    let write = async |whom: &mut PgConnection, n: i64, inside: bool| -> Result {
        sqlx::query("INSERT INTO marks VALUES ($1, $2)").bind(n).bind(inside).execute(whom).await?;
        Ok(())
    };
    let mut ended = [false; 2];
    for (n, looks) in (1..20).chain(1..20).enumerate() {
        let (n, commits) = (n as i64, n < 19);
        let mut begun = begin(&pool).await?;
        for _ in 0..2 {
            write(&mut begun, n, true).await?;
        }
        let end =
            looked_at(looks, async { if commits { begun.commit().await } else { begun.rollback().await } });
        let is_ended = end.await.transpose()?.is_some();
        ended[usize::from(commits)] |= is_ended;
        let mut next = pool.acquire().await?;
        write(&mut next, n, false).await?;
        drop(next);
        let count = async |inside: bool| {
            site.count(&format!("SELECT count(*) FROM marks WHERE n = {n} AND inside = {inside}")).await
        };
        ensure!(count(false).await? == 1, "what was written after look {looks} is not committed");
        let within = count(true).await?;
        let right = match (commits, is_ended) {
            (true, true) => within == 2,
            (true, false) => within == 0 || within == 2,
            (false, _) => within == 0,
        };
        ensure!(
            right,
            "{within} of 2 rows after look {looks} at its end (commit: {commits}, ended: {is_ended})"
        );
    }
    ensure!(ended == [true; 2], "no transaction ended");
    nothing_open(&site).await
}

const POOL: &str = "taskflow test pool";

/// A pool with room for one, whose answers take long enough to be looked for in vain.
async fn one_connection(site: &Site) -> Result<(Wire, PgPool)> {
    let url = site.env.iter().find(|(name, _)| name == "TASKFLOW_POSTGRES__URL").context("no address")?;
    let (wire, through) = Wire::to_url(&url.1).await?;
    wire.behave(Flow::default(), Flow { delay: Duration::from_millis(5), ..Flow::default() });
    let settings = postgres::Settings { url: through, connections_max: 1, ..Default::default() };
    let pool = postgres::connect(&settings, POOL)?;
    Ok((wire, pool))
}

async fn nothing_open(site: &Site) -> Result {
    let open = format!(
        "SELECT count(*) FROM pg_stat_activity
        WHERE datname = current_database() AND application_name = '{POOL}' AND xact_start IS NOT NULL"
    );
    wait::until("no transaction is open", async || Ok(site.count(&open).await? == 0)).await
}

async fn held_row(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.spawn("worker", &[("TASKFLOW_POSTGRES__LOCK_TIMEOUT_MS", "2000")])?;
    let [first, held, last] = [(); 3].map(|()| subject_in_slot(7));
    let publish = async |values: &[Value]| -> Result {
        for value in values {
            let command = envelope::read(value.clone())?;
            site.publisher.publish(Message::command(&command, clock::now(), None)).await?;
        }
        Ok(())
    };
    let is_done = async |value: &Value| -> Result<bool> {
        let id = value["id"].as_str().context("no id")?;
        Ok(site.count(&format!("SELECT count(*) FROM receipts WHERE id = '{id}'")).await? == 1)
    };
    let create = |subject| command("task.create", subject, json!({ "title": "mine" }));
    publish(&[first, held, last].map(create)).await?;
    applied(&site, 3).await?;
    let mut session = begin(&site.postgres).await?;
    sqlx::query("SELECT FROM tasks WHERE id = $1 FOR UPDATE").bind(held).execute(&mut *session).await?;
    let update = |subject| command("task.update", subject, json!({ "title": "yours" }));
    let updates = [first, held, last].map(update);
    publish(&updates).await?;
    wait::until("who stands before it is applied", async || is_done(&updates[0]).await).await?;
    let named = format!(
        "command {}: does another session hold its row?",
        updates[1]["id"].as_str().unwrap_or_default()
    );
    wait::until("the log names it", async || Ok(worker.log().contains(&named))).await?;
    ensure!(!is_done(&updates[1]).await?, "it was applied though its row was locked");
    session.rollback().await?;
    wait::until("all are applied", async || Ok(is_done(&updates[1]).await? && is_done(&updates[2]).await?))
        .await?;
    worker.stop().await
}

/// The promise is counted from here.
async fn forget(site: &Site) -> Result {
    wait::until("the outbox is empty", async || Ok(site.count("SELECT count(*) FROM outbox").await? == 0))
        .await?;
    site.sql("DELETE FROM receipts").await?;
    let events = site.mongo.collection::<mongodb::bson::Document>("event_logs");
    events.delete_many(mongodb::bson::doc! {}).await?;
    Ok(())
}

/// What users see meanwhile.
async fn while_gone(
    store: Store,
    site: &Site,
    client: &taskflow_tests::Client,
    admin: &taskflow_tests::Client,
) -> Result {
    let name = match store {
        Store::Postgres => "postgres",
        Store::RabbitMq => "rabbitmq",
        Store::MongoDb => "mongodb",
        Store::Redis => "redis",
    };
    wait::until("readiness tells", async || {
        let answer = client.get("/readyz").await?;
        let ready: Value = answer.json().await?;
        let rows = ready["stores"].as_array().cloned().unwrap_or_default();
        Ok(rows.iter().any(|row| row["store"] == name && row["up"] == false))
    })
    .await?;
    match store {
        // Whatever is not the broker may be away: commands are applied.
        Store::MongoDb | Store::Redis => {
            let now = site.count("SELECT count(*) FROM receipts").await?;
            applied(site, now + 40).await?;
        }
        // The broker answers, so intake goes on.
        Store::Postgres => {
            let late = command("task.delete", id(), json!({}));
            let (status, answer) = admin.send("application/json", late.to_string()).await?;
            ensure!(status == 202, "{status} {answer}");
        }
        Store::RabbitMq => {
            let refused = command("task.delete", id(), json!({}));
            let answer = admin.post("/v1/commands").json(&refused).send().await?;
            let after: Option<u64> =
                answer.headers().get("retry-after").and_then(|value| value.to_str().ok()?.parse().ok());
            let (status, answer): (_, Value) = (answer.status().as_u16(), answer.json().await?);
            ensure!(status == 503 && answer["code"] == "unavailable", "{status} {answer}");
            ensure!(after.is_some_and(|seconds| (1..=60).contains(&seconds)), "retry after {after:?}");
        }
    }
    Ok(())
}

async fn applied(site: &Site, count: i64) -> Result {
    wait::until("more commands are applied", async || {
        Ok(site.count("SELECT count(*) FROM receipts").await? >= count)
    })
    .await
}

/// Batches can be written, and what waits can't be read: a worker is sent messages that it never looks at, and the broker
/// counts them as given back all the same.
async fn unread(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let subject = id();
    site.sql("ALTER TABLE waiting_commands RENAME COLUMN due_at TO due").await?;
    letters::publish(&site, &command("task.create", subject, json!({ "title": "kept" }))).await?;
    let listen = taskflow_tests::free_address()?;
    let worker = cluster.spawn("worker", &[("TASKFLOW_METRICS__LISTEN", &listen)])?;
    wait::until("the worker rests between its tries", async || {
        let ready = reqwest::get(format!("http://{listen}/readyz")).await?.text().await?;
        Ok(ready.contains("fails again and again"))
    })
    .await?;
    worker.stop().await?;
    site.sql("ALTER TABLE waiting_commands RENAME COLUMN due TO due_at").await?;
    let worker = cluster.worker()?;
    wait::until("it is applied", async || Ok(site.count("SELECT count(*) FROM tasks").await? == 1)).await?;
    worker.stop().await
}

/// Reading works, writing does not: the broker would dead-letter a message that it has got back a thousand times.
async fn not_written(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let subject = id();
    site.sql("ALTER TABLE receipts RENAME COLUMN attempts TO tries").await?;
    letters::publish(&site, &command("task.create", subject, json!({ "title": "kept" }))).await?;
    let worker = cluster.worker()?;
    wait::until("the worker says what is missing", async || Ok(worker.log().contains("attempts"))).await?;
    let rollbacks = "SELECT xact_rollback FROM pg_stat_database WHERE datname = current_database()";
    let before = site.count(rollbacks).await?;
    wait::until("it has tried again and again", async || Ok(site.count(rollbacks).await? >= before + 8))
        .await?;
    worker.stop().await?;
    let partition = site.course().await?.to.in_slot(false, slot::of(subject));
    let stop = CancellationToken::new();
    let opened = Subscription::open(&site.link, partition, 10, &stop).await?;
    let mut subscription = opened.subscription().context("no subscription")?;
    let returns = subscription.next().await?.returns();
    subscription.release().await;
    ensure!(returns <= 3, "it was given back {returns} times");
    site.sql("ALTER TABLE receipts RENAME COLUMN tries TO attempts").await?;
    let worker = cluster.worker()?;
    wait::until("it is applied", async || Ok(site.count("SELECT count(*) FROM tasks").await? == 1)).await?;
    worker.stop().await
}
