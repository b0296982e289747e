//! Many readers want what no cache has: Postgres is asked once for all of them, by each process; and what is about to
//! end is made anew before it does, while everybody reads on. Counted by Postgres itself.

use std::sync::Arc;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use taskflow_tests::commands::{USER, command_of, id};
use taskflow_tests::{Client, Result, Site, wait};
use tokio::task::JoinSet;

use crate::{cluster, with_site};

/// Readers at each of two processes.
const READERS: usize = 32;
/// Nobody does without the caches because they are slow, and no search is given up: so many at once may keep a busy
/// machine for a while.
const PATIENT: [(&str, &str); 2] =
    [("TASKFLOW_HTTP__CACHE_PATIENCE_MS", "10000"), ("TASKFLOW_HTTP__SEARCH_PATIENCE_MS", "30000")];

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_site("reads: one reader makes an answer for all who want it, and anew before it ends", answers),
        with_site("reads: readers of one task that no cache has share what is asked of Postgres", tasks),
    ]
}

/// How often a statement ran in this test's database.
async fn runs(site: &Site, statement: &str) -> Result<i64> {
    site.count(&format!(
        "SELECT coalesce(sum(calls), 0)::bigint FROM pg_stat_statements s JOIN pg_database d ON d.oid = s.dbid
         WHERE d.datname = current_database() AND query LIKE '/* {statement} */%'"
    ))
    .await
}

/// Sends all of them at once.
fn ask(clients: &[Client], path: &str) -> JoinSet<Result<(String, Value)>> {
    let mut asking = JoinSet::new();
    for client in clients.iter().flat_map(|client| std::iter::repeat_n(client, READERS)) {
        let (client, path) = (client.clone(), path.to_owned());
        asking.spawn(async move {
            let answer = client.get(&path).await?;
            ensure!(answer.status() == 200, "{}", answer.status());
            let from =
                answer.headers().get("x-cache").and_then(|from| from.to_str().ok()).unwrap_or_default();
            Ok((from.to_owned(), answer.json().await?))
        });
    }
    asking
}

async fn told(mut asking: JoinSet<Result<(String, Value)>>) -> Result<Vec<(String, Value)>> {
    let mut told = Vec::new();
    while let Some(answer) = asking.join_next().await {
        told.push(answer??);
    }
    Ok(told)
}

/// How many looks into the search's cache had this result, at all processes.
async fn looks(clients: &[Client], result: &str) -> Result<f64> {
    let series = format!("taskflow_cache_requests_total{{cache=\"search\",result=\"{result}\"}} ");
    let mut sum = 0.0;
    for client in clients {
        let metrics = client.get("/metrics").await?.text().await?;
        let count = metrics.lines().find_map(|line| line.strip_prefix(&series)?.parse::<f64>().ok());
        sum += count.unwrap_or_default();
    }
    Ok(sum)
}

async fn answers(site: Arc<Site>) -> Result {
    site.sql("CREATE EXTENSION IF NOT EXISTS pg_stat_statements").await?;
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_one, first) = cluster.api_with(&PATIENT).await?;
    let (_two, second) = cluster.api_with(&PATIENT).await?;
    let clients = [first.user().await?, second.user().await?];
    let all = (2 * READERS) as f64;
    let made = command_of(USER, "task.create", id(), json!({ "title": "stampede" }));
    ensure!(clients[0].apply(&made).await?["status"] == "applied", "no task");
    let path = "/v1/tasks/search?q=stampede";

    // Nothing is kept, and making it takes until all of them have come.
    site.redis_forget("task:search:*").await?;
    let before = runs(&site, "search_tasks").await?;
    let mut lock = taskflow_stores::postgres::begin(&site.postgres).await?;
    sqlx::raw_sql("LOCK TABLE task_texts IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await?;
    let asking = ask(&clients, path);
    wait::until("all of them have found nothing", async || Ok(looks(&clients, "miss").await? >= all)).await?;
    lock.rollback().await?;
    for (_, body) in told(asking).await? {
        ensure!(body["items"][0]["title"] == "stampede", "{body}");
    }
    let loads = runs(&site, "search_tasks").await? - before;
    ensure!((1..=2).contains(&loads), "{loads} loads for {all} readers at two processes");
    let hits = told(ask(&clients, path)).await?;
    ensure!(hits.iter().all(|(from, _)| from == "hit"), "it was not kept");
    ensure!(runs(&site, "search_tasks").await? - before == loads, "it was made anew though it is kept");

    // It has cost so much, and ends so soon, that chance picks everybody: one of each process makes it, nobody waits.
    let kept = site.redis_all("task:search:*").await?;
    let (key, value) = kept.first().context("nothing is kept")?;
    let dear: Value = serde_json::from_str(value)?;
    let ends = dear["ends"].as_i64().context("ends")?;
    // Its version has to come first, as it was written.
    let body = serde_json::to_string(&dear["body"])?;
    let text = format!(
        "{{\"version\":{},\"ends\":{ends},\"took\":1e12,\"etag\":{},\"body\":{body}}}",
        dear["version"], dear["etag"]
    );
    let before = runs(&site, "search_tasks").await?;
    let mut lock = taskflow_stores::postgres::begin(&site.postgres).await?;
    sqlx::raw_sql("LOCK TABLE task_texts IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await?;
    site.redis_set(key, &text).await?;
    // With the lock held: they are answered at once by what is there.
    let answers = told(ask(&clients, path)).await?;
    ensure!(answers.iter().all(|(from, _)| from == "hit"), "somebody had to wait for a new one");
    lock.rollback().await?;
    wait::until("it is made anew before its end", async || {
        let kept = site.cached(key).await?.unwrap_or_default();
        Ok(!kept.contains("1e12"))
    })
    .await?;
    wait::until("nobody makes it any more", async || {
        let loads = runs(&site, "search_tasks").await?;
        told(ask(&clients[..1], path)).await?;
        Ok(runs(&site, "search_tasks").await? == loads)
    })
    .await?;
    let loads = runs(&site, "search_tasks").await? - before;
    ensure!((1..=2).contains(&loads), "{loads} loads for {all} readers to whom it was due");
    worker.stop().await
}

async fn tasks(site: Arc<Site>) -> Result {
    site.sql("CREATE EXTENSION IF NOT EXISTS pg_stat_statements").await?;
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_one, first) = cluster.api_with(&PATIENT).await?;
    let (_two, second) = cluster.api_with(&PATIENT).await?;
    let clients = [first.user().await?, second.user().await?];
    let task = id();
    let made = command_of(USER, "task.create", task, json!({ "title": "stampede" }));
    ensure!(clients[0].apply(&made).await?["status"] == "applied", "no task");
    // Its cache follows the commit; what is forgotten before that would come back.
    wait::until("the cache has it", async || Ok(site.cached(&format!("task:{task}")).await?.is_some()))
        .await?;
    site.redis_forget("task:*").await?;
    let before = [runs(&site, "read_tasks").await?, runs(&site, "moment").await?];
    let mut lock = taskflow_stores::postgres::begin(&site.postgres).await?;
    sqlx::raw_sql("LOCK TABLE tasks IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await?;
    let asking = ask(&clients, &format!("/v1/tasks/{task}"));
    wait::until("both processes wait for Postgres", async || {
        let waiting = "SELECT count(*) FROM pg_locks WHERE NOT granted AND relation = 'tasks'::regclass";
        Ok(site.count(waiting).await? >= 2)
    })
    .await?;
    lock.rollback().await?;
    for (_, body) in told(asking).await? {
        ensure!(body["title"] == "stampede", "{body}");
    }
    // While one statement runs, all who come wait together for the next: a few, not one a reader.
    let rows = runs(&site, "read_tasks").await? - before[0];
    let moments = runs(&site, "moment").await? - before[1];
    let readers = 2 * READERS as i64;
    ensure!((1..=readers / 4).contains(&rows), "{rows} loads for {readers} readers");
    ensure!(moments < readers, "{moments} looks for {readers} readers");
    worker.stop().await
}
