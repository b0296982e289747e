//! Caches that are filled in advance.

use std::sync::Arc;

use anyhow::{Context, ensure};
use chrono::TimeDelta;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use taskflow_core::heat;
use taskflow_stores::postgres::user_activity;
use taskflow_tests::commands::{ADMIN, USER, command, id};
use taskflow_tests::{Client, Cluster, Result, Site, wait};
use uuid::Uuid;

use crate::{cluster, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_site("warming: emptied caches are filled for those who read, the most active first", emptied),
        with_site("warming: what is added to a user's heat is what the definition says", heats),
        with_site("warming: it takes no more of Postgres than its share", paced),
    ]
}

/// What of a user's answers came from the caches.
async fn hits(client: &Client, user: Uuid) -> Result<usize> {
    let mut hits = 0;
    for path in ["", "/tasks", "/task-stats"] {
        let answer = client.get(&format!("/v1/users/{user}{path}")).await?;
        ensure!(answer.status() == 200, "{path}: {}", answer.status());
        hits += usize::from(answer.headers().get("x-cache").is_some_and(|from| from == "hit"));
    }
    Ok(hits)
}

async fn run(cluster: &Cluster<'_>, more: &[&str]) -> Result<Value> {
    let output = cluster.run(&[&["jobs", "run", "cache.warm", "--json"], more].concat(), &[]).await?;
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(&text).with_context(|| format!("{text}{}", String::from_utf8_lossy(&output.stderr)))
}

/// Who is warmed when the pace is measured.
const READERS: i64 = 600;
/// A tenth of the time.
const SHARE: f64 = 0.1;

/// The same work at full speed, and at a tenth of the time.
async fn paced(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    site.sql(&format!(
        "CREATE EXTENSION pg_stat_statements;
         INSERT INTO users SELECT (jsonb_populate_record(one.whole, jsonb_build_object('id', gen_random_uuid(), 'email', n || '@example.org'))).*
         FROM (SELECT u AS whole FROM users u LIMIT 1) AS one, generate_series(1, {READERS}) AS n"
    ))
    .await?;
    let users: Vec<(Uuid,)> = sqlx::query_as("SELECT id FROM users WHERE email LIKE '%@example.org'")
        .fetch_all(&site.postgres)
        .await?;
    let heat = heat::of(40, taskflow_stores::clock::now());
    let readers: Vec<(Uuid, f64)> = users.iter().map(|(user,)| (*user, heat)).collect();
    user_activity::add(&site.postgres, &readers).await?;

    // The first one finds nothing ready, in the server neither: it is no measure.
    warm_all(&site, &cluster, 1.0).await?;
    let (full, paced) = (warm_all(&site, &cluster, 1.0).await?, warm_all(&site, &cluster, SHARE).await?);
    let told = format!(
        "warming took {:.2} s at full speed, of which Postgres worked {:.2} s, and {:.2} s at a tenth of the time, of which \
         Postgres worked {:.2} s",
        full.took_s, full.server_s, paced.took_s, paced.server_s
    );
    println!("{told}");
    ensure!(paced.server_s <= paced.took_s * SHARE, "{told}");
    // Ten times as long, but for what else the machine did at either time.
    ensure!(paced.took_s > full.took_s * 3.0, "the pace makes no difference: {told}");
    Ok(())
}

/// How long a run took, and how long Postgres worked meanwhile, as it counts itself.
struct Warmed {
    took_s: f64,
    server_s: f64,
}

async fn warm_all(site: &Site, cluster: &Cluster<'_>, share: f64) -> Result<Warmed> {
    let share = share.to_string();
    let scheduler = cluster.spawn("scheduler", &[("TASKFLOW_SCHEDULER__SHARE", share.as_str())])?;
    let filled = "SELECT count(*) FROM job_runs WHERE job = 'cache.warm' AND state = 'completed'";
    wait::until("the first fill is over", async || Ok(site.count(filled).await? >= 1)).await?;
    site.redis_forget("task:*").await?;
    site.redis_forget("user:profile:*").await?;
    site.sql("SELECT pg_stat_statements_reset(0, (SELECT oid FROM pg_database WHERE datname = current_database()), 0)")
        .await?;
    let done = run(cluster, &[]).await?;
    // What readers themselves do, and the scheduler beside, counts too: it is little.
    let server_ms = "SELECT sum(total_exec_time)::bigint FROM pg_stat_statements
                     WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())";
    let server_s = site.count(server_ms).await? as f64 / 1_000.0;
    ensure!(
        done["state"] == "completed" && done["figures"]["answers_made"].as_i64() >= Some(3 * READERS),
        "{done}"
    );
    let time = |name: &str| -> Result<chrono::DateTime<chrono::Utc>> {
        Ok(done[name].as_str().with_context(|| format!("no {name}: {done}"))?.parse()?)
    };
    let took_s = (time("endedat")? - time("startedat")?).as_seconds_f64();
    scheduler.stop().await?;
    Ok(Warmed { took_s, server_s })
}

async fn heats(site: Arc<Site>) -> Result {
    let now = taskflow_stores::clock::now();
    let (long_ago, lately) = (heat::of(5_000, now - TimeDelta::days(2)), heat::of(40, now));
    for heat in [long_ago, lately] {
        user_activity::add(&site.postgres, &[(USER, heat), (id(), heat)]).await?;
    }
    user_activity::add(&site.postgres, &[(ADMIN, f64::from(0))]).await?;
    let found = user_activity::hottest(&site.postgres, None, f64::NEG_INFINITY, 10).await?;
    ensure!(found.len() == 2 && found[0].1 == USER && found[1] == (0.0, ADMIN), "{found:?}");
    let right = heat::together(long_ago, lately);
    ensure!((found[0].0 - right).abs() < 1e-9, "{} and not {right}", found[0].0);
    let next = user_activity::hottest(&site.postgres, Some(found[0]), f64::NEG_INFINITY, 10).await?;
    ensure!(next == found[1..], "{next:?}");
    Ok(())
}

async fn emptied(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (_api, client) = cluster.api().await?;
    let (admin, user) = (client.admin().await?, client.user().await?);
    let task = id();
    let made =
        admin.apply(&command("task.create", task, json!({ "title": "warm", "assigneeid": USER }))).await?;
    ensure!(made["status"] == "applied", "{made}");
    // One reads more than the other; a key that is gone, or a stranger, is nobody to be counted.
    for _ in 0..3 {
        hits(&user, USER).await?;
    }
    hits(&admin, ADMIN).await?;
    let readers = "SELECT count(*) FROM user_activity";
    wait::until("both readers are noted", async || Ok(site.count(readers).await? == 2)).await?;
    let hottest = format!(
        "SELECT count(*) FROM user_activity WHERE user_id = '{USER}' AND heat = (SELECT max(heat) FROM user_activity)"
    );
    ensure!(site.count(&hottest).await? == 1, "who reads most is not the first");

    // Without: each answer has to be made.
    site.redis_forget("task:*").await?;
    site.redis_forget("user:profile:*").await?;
    ensure!(hits(&user, USER).await? == 0, "something was there");
    // With, by hand; a run that is only to say what it would do does nothing.
    site.redis_forget("task:*").await?;
    site.redis_forget("user:profile:*").await?;
    let scheduler = cluster.spawn("scheduler", &[("TASKFLOW_SCHEDULER__WARM_USERS", "1")])?;
    wait::until("the first fill is over", async || {
        Ok(site
            .count("SELECT count(*) FROM job_runs WHERE job = 'cache.warm' AND state = 'completed'")
            .await?
            == 1)
    })
    .await?;
    site.redis_forget("task:*").await?;
    site.redis_forget("user:profile:*").await?;
    let plan = run(&cluster, &["--dry-run"]).await?;
    ensure!(plan["figures"]["answers_missing"] == 3, "{plan}");
    let done = run(&cluster, &[]).await?;
    ensure!(done["figures"]["users"] == 1 && done["figures"]["answers_made"] == 3, "{done}");
    ensure!(hits(&user, USER).await? == 3, "what was made is not used");
    ensure!(hits(&admin, ADMIN).await? == 0, "more were warmed than asked for");
    let again = run(&cluster, &[]).await?;
    ensure!(again["figures"]["answers_there"] == 3 && again["figures"]["answers_made"] == 0, "{again}");
    scheduler.stop().await?;

    // A flush is noticed; what is made then is as true as what readers make.
    let scheduler = cluster.spawn("scheduler", &[])?;
    site.redis_forget("*").await?;
    let asked = "SELECT count(*) FROM job_runs WHERE asked_by LIKE '%emptied%' AND state = 'completed'";
    wait::until("the flush was noticed", async || Ok(site.count(asked).await? == 2)).await?;
    // Sessions went with it.
    let (admin, user) = (client.admin().await?, client.user().await?);
    ensure!(hits(&user, USER).await? == 3 && hits(&admin, ADMIN).await? == 3, "not all was filled");
    let made = admin.apply(&command("task.update", task, json!({ "title": "changed" }))).await?;
    ensure!(made["status"] == "applied", "{made}");
    let page: Value = user.get(&format!("/v1/users/{USER}/tasks")).await?.json().await?;
    ensure!(
        page["items"][0]["title"] == "changed",
        "a warmed page is shown though it is out of date: {page}"
    );
    scheduler.stop().await?;
    worker.stop().await
}
