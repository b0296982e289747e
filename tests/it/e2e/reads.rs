//! Reads through the caches: what they answer, from where, and to whom.

use std::sync::Arc;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use reqwest::Response;
use serde_json::{Value, json};
use taskflow_tests::commands::{ADMIN, HASH, USER, command, command_of, id};
use taskflow_tests::{Client, Result, Site, wait};
use uuid::Uuid;

use crate::{cluster, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_site("reads: a task is read through its cache, and only its newest state", one_task),
        with_site("reads: lists and statistics follow the tasks and the clock", lists),
        with_site(
            "reads: a search finds words, their beginnings, phrases, and what was written a moment ago",
            search,
        ),
        with_site("reads: a search that takes too long is given up, and says so", given_up),
        with_site("reads: each reads its own, an admin everything", private),
        with_site("reads: what is asked wrongly is answered clearly", wrongly),
    ]
}

fn header<'r>(response: &'r Response, name: &str) -> &'r str {
    response.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
}

/// An answer with where it came from.
async fn read(client: &Client, path: &str) -> Result<(String, Value)> {
    let response = client.get(path).await?;
    ensure!(response.status() == 200, "{path}: {}", response.status());
    let from = header(&response, "x-cache").to_owned();
    Ok((from, response.json().await?))
}

async fn applied(client: &Client, command: Value) -> Result<Value> {
    let receipt = client.apply(&command).await?;
    ensure!(receipt["status"] == "applied", "{command}\ngave {receipt}");
    Ok(receipt)
}

async fn one_task(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    let task = id();
    let path = format!("/v1/tasks/{task}");
    ensure!(admin.get(&path).await?.status() == 404, "there is one already");
    applied(&admin, command("task.create", task, json!({ "title": "first", "assigneeid": USER }))).await?;
    let (_, first) = read(&admin, &path).await?;
    ensure!(
        first["title"] == "first" && first["version"] == 1 && first["creatorid"] == json!(ADMIN),
        "{first}"
    );
    wait::until("the cache has it", async || Ok(read(&admin, &path).await?.0 == "hit")).await?;
    let ttl = site.redis_command(&["TTL"], &format!("task:{task}")).await?;
    ensure!((1..=180).contains(&ttl), "it lives for {ttl} s");
    // Who has it already gets no body.
    let tag = header(&admin.get(&path).await?, "etag").to_owned();
    let again = admin.request(reqwest::Method::GET, &path).header("if-none-match", &tag).send().await?;
    ensure!(again.status() == 304 && header(&again, "etag") == tag, "{}", again.status());
    ensure!(again.text().await?.is_empty(), "a body all the same");

    applied(&admin, command("task.update", task, json!({ "title": "second" }))).await?;
    let again = admin.request(reqwest::Method::GET, &path).header("if-none-match", &tag).send().await?;
    ensure!(again.status() == 200, "{}", again.status());
    ensure!(again.json::<Value>().await?["title"] == "second", "the old title");
    // An old value that somebody puts back is found out, and replaced.
    wait::until("the cache has the new state", async || {
        let (from, body) = read(&admin, &path).await?;
        ensure!(body["title"] == "second", "{body}");
        Ok(from == "hit")
    })
    .await?;
    site.redis_set(&format!("task:{task}"), &first.to_string()).await?;
    let (from, body) = read(&admin, &path).await?;
    ensure!(from == "miss" && body["title"] == "second", "{from} {body}");
    ensure!(read(&admin, &path).await?.0 == "hit", "it was not put back");
    applied(&admin, command("task.delete", task, json!({}))).await?;
    ensure!(admin.get(&path).await?.status() == 404, "a deleted task is shown");
    let metrics = client.get("/metrics").await?.text().await?;
    ensure!(
        metrics.contains("taskflow_cache_requests_total{cache=\"task\",result=\"hit\"}"),
        "the metric is missing"
    );

    // Users likewise.
    let path = format!("/v1/users/{USER}");
    let (_, before) = read(&admin, &path).await?;
    ensure!(before["id"] == json!(USER) && !before.to_string().contains("$2b$"), "{before}");
    applied(&admin, command("user.update_profile", USER, json!({ "profile": { "firstName": "Ada" } })))
        .await?;
    let (_, after) = read(&admin, &path).await?;
    ensure!(after["profile"]["firstName"] == "Ada", "{after}");
    wait::until("the cache has the user", async || Ok(read(&admin, &path).await?.0 == "hit")).await?;
    worker.stop().await
}

async fn lists(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    let (admin, user) = (client.admin().await?, client.user().await?);
    let path = format!("/v1/users/{USER}/tasks");
    let (_, empty) = read(&user, &path).await?;
    ensure!(empty == json!({ "items": [], "page": 1, "pagesize": 20 }), "{empty}");
    ensure!(read(&user, &path).await?.0 == "hit", "an empty list is not kept");
    let mut tasks = Vec::new();
    for number in 0..25 {
        let task = id();
        let priority = ["low", "medium", "high", "urgent"][number % 4];
        let due = format!("2099-01-{:02}T00:00:00Z", 28 - number % 28);
        let data = json!({ "title": format!("task {number}"), "priority": priority, "duedate": due });
        applied(&user, command_of(USER, "task.create", task, data)).await?;
        tasks.push(task);
    }
    let (from, first) = read(&user, &path).await?;
    ensure!(from == "miss" && first["items"].as_array().map(Vec::len) == Some(20), "{from} {first}");
    ensure!(first["next"] == 2 && first["items"][0]["id"] == json!(tasks[24]), "{first}");
    let (_, second) = read(&user, &format!("{path}?page=2")).await?;
    ensure!(second["items"].as_array().map(Vec::len) == Some(5) && second["next"].is_null(), "{second}");
    let (_, all) = read(&user, &format!("{path}?pagesize=100")).await?;
    ensure!(all["items"].as_array().map(Vec::len) == Some(25), "{all}");
    ensure!(site.cached(&format!("task:list:user:{USER}:status:all:page:1")).await?.is_some(), "its key");

    // The order of work: urgent ones first, of these what is due first.
    let (_, work) = read(&user, &format!("{path}?order=work&pagesize=100")).await?;
    let order: Vec<(&str, &str)> = work["items"]
        .as_array()
        .context("items")?
        .iter()
        .map(|task| (task["priority"].as_str().unwrap_or(""), task["duedate"].as_str().unwrap_or("")))
        .collect();
    let rank = |priority: &str| ["urgent", "high", "medium", "low"].iter().position(|word| *word == priority);
    ensure!(order.is_sorted_by_key(|(priority, due)| (rank(priority), due.to_string())), "{order:?}");

    // Somebody else's tasks leave mine alone; an assignment does not.
    let stats = format!("/v1/users/{USER}/task-stats");
    let (_, before) = read(&user, &stats).await?;
    ensure!(before["total"] == 25 && before["byStatus"]["todo"] == 25 && before["overdue"] == 0, "{before}");
    let other = id();
    applied(&admin, command("task.create", other, json!({ "title": "the admin's" }))).await?;
    ensure!(read(&user, &stats).await?.0 == "hit", "somebody else's task made my statistics anew");
    ensure!(read(&user, &path).await?.0 == "hit", "somebody else's task made my list anew");
    applied(&admin, command("task.assign", other, json!({ "assigneeid": USER }))).await?;
    ensure!(read(&user, &stats).await?.1["total"] == 26, "the assignment is missing");
    applied(&user, command_of(USER, "task.change_status", tasks[3], json!({ "status": "done" }))).await?;
    let (_, done) = read(&user, &format!("{path}?status=done")).await?;
    ensure!(done["items"][0]["id"] == json!(tasks[3]) && done["items"][1].is_null(), "{done}");
    ensure!(read(&user, &stats).await?.1["byStatus"]["done"] == 1, "the statistics are old");
    applied(&admin, command("task.assign", other, json!({ "assigneeid": null }))).await?;
    ensure!(read(&user, &stats).await?.1["total"] == 25, "it still counts");

    // A due date passes without a command.
    let soon = taskflow_stores::clock::now() + chrono::TimeDelta::seconds(2);
    let data = json!({ "title": "soon", "duedate": soon.to_rfc3339() });
    applied(&user, command_of(USER, "task.create", id(), data)).await?;
    read(&user, &stats).await?;
    wait::until("the task is overdue", async || Ok(read(&user, &stats).await?.1["overdue"] == 1)).await?;
    worker.stop().await
}

async fn search(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    let (admin, user) = (client.admin().await?, client.user().await?);
    let (tidy, milk, secret) = (id(), id(), id());
    applied(
        &user,
        command_of(
            USER,
            "task.create",
            tidy,
            json!({ "title": "Tidy the garage", "description": "all shelves" }),
        ),
    )
    .await?;
    applied(
        &user,
        command_of(
            USER,
            "task.create",
            milk,
            json!({ "title": "Buy milk", "description": "for the tidy garage's cat" }),
        ),
    )
    .await?;
    applied(&admin, command("task.create", secret, json!({ "title": "Garage secrets" }))).await?;
    let found = async |client: &Client, q: &str| -> Result<Vec<String>> {
        let (_, body) = read(client, &format!("/v1/tasks/search?q={q}")).await?;
        let items = body["items"].as_array().context("items")?;
        Ok(items.iter().map(|task| task["id"].as_str().unwrap_or_default().to_owned()).collect())
    };
    let ids = |ids: &[Uuid]| ids.iter().map(Uuid::to_string).collect::<Vec<_>>();
    // A title counts more than a description. Only one's own.
    ensure!(found(&user, "garage").await? == ids(&[tidy, milk]), "{:?}", found(&user, "garage").await?);
    ensure!(found(&user, "GARA").await? == ids(&[tidy, milk]), "beginnings are not found");
    ensure!(found(&user, "%22tidy+garage%22").await? == ids(&[milk]), "a phrase");
    ensure!(found(&user, "garage+-milk").await? == ids(&[tidy]), "without a word");
    ensure!(found(&user, "nothing").await?.is_empty(), "something");
    ensure!(found(&user, "%27%29+%5C+%26%7C%21%3A*").await?.is_empty(), "signs");
    let mut all = found(&admin, "garage").await?;
    all.sort();
    let mut expected = ids(&[tidy, milk, secret]);
    expected.sort();
    ensure!(all == expected, "{all:?}");
    ensure!(read(&user, "/v1/tasks/search?q=garage").await?.0 == "hit", "it is not kept");

    // The same once the index has them, and after changes that it does not have.
    wait::until("the index has them", async || {
        Ok(site.count("SELECT count(*) FROM search_pending").await? == 0)
    })
    .await?;
    ensure!(site.count("SELECT count(*) FROM task_texts").await? == 3, "the index lacks some");
    site.redis_forget("task:search:*").await?;
    ensure!(found(&user, "garage").await? == ids(&[tidy, milk]), "{:?}", found(&user, "garage").await?);
    applied(&user, command_of(USER, "task.update", milk, json!({ "description": "for breakfast" }))).await?;
    ensure!(found(&user, "garage").await? == ids(&[tidy]), "an old text is found");
    ensure!(found(&user, "breakf").await? == ids(&[milk]), "a new text is not found");
    applied(&user, command_of(USER, "task.delete", tidy, json!({}))).await?;
    ensure!(found(&user, "garage").await?.is_empty(), "a deleted task is found");
    wait::until("the index follows", async || {
        Ok(site.count("SELECT count(*) FROM search_pending").await? == 0
            && site.count("SELECT count(*) FROM task_texts").await? == 2)
    })
    .await?;
    site.redis_forget("task:search:*").await?;
    ensure!(
        found(&user, "garage").await?.is_empty() && found(&user, "breakf").await? == ids(&[milk]),
        "index"
    );
    worker.stop().await
}

async fn private(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    let (admin, user) = (client.admin().await?, client.user().await?);
    let (ada, task) = (id(), id());
    let register = json!({ "email": "ada@example.org", "passwordhash": HASH });
    applied(&admin, command_of(ada, "user.register", ada, register)).await?;
    applied(&admin, command("task.create", task, json!({ "title": "private" }))).await?;
    let status =
        async |client: &Client, path: &str| -> Result<u16> { Ok(client.get(path).await?.status().as_u16()) };
    let task_path = format!("/v1/tasks/{task}");
    ensure!(status(&admin, &task_path).await? == 200 && status(&user, &task_path).await? == 404, "a task");
    for path in ["", "/tasks", "/task-stats"] {
        for (whose, expected) in [(USER, 200), (ada, 403), (id(), 403)] {
            let path = format!("/v1/users/{whose}{path}");
            ensure!(status(&user, &path).await? == expected, "{path}: {}", status(&user, &path).await?);
        }
        let path = format!("/v1/users/{ada}{path}");
        ensure!(status(&admin, &path).await? == 200, "{path}");
        ensure!(status(&client, &path).await? == 401, "{path} is open");
    }
    // Assigned, it may be read; taken away again, it may not, not even by its tag.
    applied(&admin, command("task.assign", task, json!({ "assigneeid": USER }))).await?;
    let shown = user.get(&task_path).await?;
    ensure!(shown.status() == 200, "{}", shown.status());
    let tag = header(&shown, "etag").to_owned();
    applied(&admin, command("task.assign", task, json!({ "assigneeid": null }))).await?;
    let again = user.request(reqwest::Method::GET, &task_path).header("if-none-match", tag).send().await?;
    ensure!(again.status() == 404, "{}", again.status());
    worker.stop().await
}

async fn given_up(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let (_api, client) = cluster.api_with(&[("TASKFLOW_HTTP__SEARCH_PATIENCE_MS", "200")]).await?;
    let user = client.user().await?;
    let mut lock = taskflow_stores::postgres::begin(&site.postgres).await?;
    sqlx::raw_sql("LOCK TABLE task_texts IN ACCESS EXCLUSIVE MODE").execute(&mut *lock).await?;
    let answer = user.get("/v1/tasks/search?q=anything").await?;
    let status = answer.status();
    let body: Value = answer.json().await?;
    let said = body["detail"].as_str().unwrap_or_default();
    ensure!(status == 503 && said.contains("given up after 200 ms"), "{status} {body}");
    lock.rollback().await?;
    // Who asks again is answered.
    let (_, found) = read(&user, "/v1/tasks/search?q=anything").await?;
    ensure!(found["items"] == json!([]), "{found}");
    Ok(())
}

async fn wrongly(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let (_api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    let tasks = format!("/v1/users/{USER}/tasks");
    for (path, expected, code) in [
        ("/v1/tasks/x".to_owned(), 404, "not_found"),
        ("/v1/users/x".to_owned(), 404, "not_found"),
        (format!("/v1/users/{}", id()), 404, "not_found"),
        (format!("{tasks}?status=late"), 400, "bad_filter"),
        (format!("{tasks}?order=random"), 400, "bad_filter"),
        (format!("{tasks}?page=0"), 400, "bad_page"),
        (format!("{tasks}?page=4294967296"), 400, "bad_page"),
        (format!("{tasks}?pagesize=101"), 400, "bad_page"),
        (format!("{tasks}?page=501"), 400, "bad_page"),
        (format!("{tasks}?colour=red"), 400, "unknown_parameter"),
        ("/v1/admin/holds?all=maybe".to_owned(), 400, "bad_filter"),
        ("/v1/admin/dead-letters/groups?source=%00".to_owned(), 400, "bad_query"),
        ("/v1/tasks/search".to_owned(), 400, "bad_query"),
        ("/v1/tasks/search?q=%20".to_owned(), 400, "bad_query"),
        ("/v1/tasks/search?q=a%00b".to_owned(), 400, "bad_query"),
        ("/v1/tasks/search?q=-a%20-b".to_owned(), 400, "bad_query"),
        ("/v1/tasks/search?q=-%22a%20b%22".to_owned(), 400, "bad_query"),
        ("/v1/tasks/search?q=a%20or%20-b".to_owned(), 400, "bad_query"),
        (format!("/v1/tasks/search?q={}", "x".repeat(201)), 400, "bad_query"),
    ] {
        let answer = admin.get(&path).await?;
        let status = answer.status().as_u16();
        let body: Value = answer.json().await?;
        ensure!(status == expected && body["code"] == code, "{path}: {status} {body}");
    }
    Ok(())
}
