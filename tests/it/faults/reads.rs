//! After a receipt says `applied`, no read shows the state before it: with writers and readers at once on two API
//! processes, while Redis is emptied, given old values, slow and cut off, and workers die between the commit and the
//! caches.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use taskflow_tests::commands::{ADMIN, USER, command_of, id};
use taskflow_tests::dice::Dice;
use taskflow_tests::proxy::{Flow, Wire};
use taskflow_tests::{Client, Result, Site, wait};
use tokio::task::JoinSet;
use uuid::Uuid;

use crate::{cluster, with_site};

const WRITERS: usize = 4;
const READERS: usize = 6;
const TASKS_EACH: usize = 4;
/// Reads that each phase waits for.
const READS: u64 = 250;

pub(crate) fn tests() -> Vec<Trial> {
    vec![with_site(
        "reads: no read shows the state before a receipt, whatever becomes of the caches",
        never_old,
    )]
}

/// What receipts have told so far.
#[derive(Default)]
struct Known {
    /// Of each task: its version and its newest word.
    tasks: HashMap<Uuid, Told>,
    /// Those that are deleted, and the word that they had.
    deleted: HashMap<Uuid, String>,
    profile: i64,
}

#[derive(Debug, Clone, Default)]
struct Told {
    version: i64,
    /// The word in its title.
    word: String,
    /// Whom it was assigned to last.
    assignee: Option<Uuid>,
}

#[derive(Default)]
struct Game {
    known: Mutex<Known>,
    over: AtomicBool,
    reads: AtomicU64,
    refused: AtomicU64,
    hits: Mutex<HashMap<&'static str, u64>>,
    writes: AtomicU64,
}

impl Game {
    fn known<T>(&self, look: impl FnOnce(&mut Known) -> T) -> T {
        look(&mut self.known.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn is_over(&self) -> bool {
        self.over.load(Ordering::Relaxed)
    }
}

async fn never_old(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    // Readers and writers meet different processes, each with its own idea of what has changed.
    let redis = site.env.iter().find(|(name, _)| name == "TASKFLOW_REDIS__URL").context("no address")?;
    let (wire, through) = Wire::to_url(&redis.1).await?;
    let env = [("TASKFLOW_REDIS__URL", through.as_str()), ("TASKFLOW_HTTP__CACHE_PATIENCE_MS", "100")];
    let (_one, first) = cluster.api_with(&env).await?;
    let (_two, second) = cluster.api().await?;
    let mut worker = cluster.worker()?;
    let clients = [first.user().await?, second.user().await?];
    let admins = [first.admin().await?, second.admin().await?];
    let game = Arc::new(Game::default());
    let mut players = JoinSet::new();
    for number in 0..WRITERS {
        let player = write(Arc::clone(&game), clients[number % 2].clone(), number as u64);
        players.spawn(play(Arc::clone(&game), player));
    }
    for number in 0..READERS {
        let eyes = Eyes { own: clients[number % 2].clone(), admin: admins[(number + 1) % 2].clone() };
        let player = read(Arc::clone(&game), eyes, 100 + number as u64);
        players.spawn(play(Arc::clone(&game), player));
    }

    more_reads(&game, &mut players).await?;
    // Emptied again and again.
    for _ in 0..5 {
        site.redis_forget("task:*").await?;
        more_reads(&game, &mut players).await?;
    }
    // Old values put back, under every key that is there.
    let old = site.redis_all("task:*").await?;
    more_reads(&game, &mut players).await?;
    for (key, value) in &old {
        site.redis_set(key, value).await?;
    }
    more_reads(&game, &mut players).await?;
    // Slow: the caches are passed by, the sessions are not.
    let slow = Flow { delay: Duration::from_millis(70), ..Flow::default() };
    wire.behave(slow, slow);
    more_reads(&game, &mut players).await?;
    wire.behave(Flow::default(), Flow::default());
    // Cut off for one of the two: who is remembered there reads from Postgres.
    wire.refuse(true);
    wire.cut();
    more_reads(&game, &mut players).await?;
    wire.refuse(false);
    more_reads(&game, &mut players).await?;
    // Workers die after the commit and before any cache knows of it.
    for at in ["committed:3", "relayed:2", "committed:1"] {
        let mut dying = cluster.crashing_worker(at)?;
        worker.kill().await?;
        dying.ended().await?;
        worker = cluster.worker()?;
        more_reads(&game, &mut players).await?;
    }

    game.over.store(true, Ordering::Relaxed);
    while let Some(ended) = players.join_next().await {
        ended??;
    }
    let hits = game.hits.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let counts = format!(
        "{} reads ({} refused), {} writes, hits: {hits:?}",
        game.reads.load(Ordering::Relaxed),
        game.refused.load(Ordering::Relaxed),
        game.writes.load(Ordering::Relaxed)
    );
    // A cache that is never used proves nothing.
    for cache in ["task", "profile", "list", "stats", "search", "search of an admin", "list of an admin"] {
        ensure!(hits.get(cache).copied().unwrap_or(0) > 0, "no hit of {cache}; {counts}");
    }
    ensure!(game.writes.load(Ordering::Relaxed) > 50, "hardly any writes; {counts}");
    ensure!(game.known(|known| known.deleted.len()) > 3, "hardly anything was deleted; {counts}");
    println!("{counts}");
    worker.stop().await
}

/// The game is over when a player has lost.
async fn play(game: Arc<Game>, player: impl Future<Output = Result>) -> Result {
    let played = player.await;
    if played.is_err() {
        game.over.store(true, Ordering::Relaxed);
    }
    played
}

/// Waits until so many more reads were judged.
async fn more_reads(game: &Game, players: &mut JoinSet<Result>) -> Result {
    let enough = game.reads.load(Ordering::Relaxed) + READS;
    wait::until("more reads are judged", async || {
        Ok(game.is_over() || game.reads.load(Ordering::Relaxed) >= enough)
    })
    .await?;
    if game.is_over() {
        while let Some(ended) = players.join_next().await {
            ended??;
        }
        bail!("the game was over too early");
    }
    Ok(())
}

/// Changes its own tasks, one command after the other, and tells everybody what the receipts say.
async fn write(game: Arc<Game>, client: Client, seed: u64) -> Result {
    let mut dice = Dice::new(seed);
    let mut tasks: Vec<Uuid> = Vec::new();
    while !game.is_over() {
        let number = game.writes.fetch_add(1, Ordering::Relaxed);
        if dice.below(8) == 0 {
            let data = json!({ "profile": { "writes": number } });
            let receipt = send(&game, &client, command_of(USER, "user.update_profile", USER, data)).await?;
            let Some(receipt) = receipt else { break };
            let version = receipt["version"].as_i64().context("version")?;
            game.known(|known| known.profile = known.profile.max(version));
            continue;
        }
        let word = format!("w{seed}x{number}");
        let task = match tasks.len() {
            len if len < TASKS_EACH => {
                tasks.push(id());
                tasks[len]
            }
            len => tasks[dice.below(len as u64) as usize],
        };
        let new = game.known(|known| !known.tasks.contains_key(&task));
        let assignee = [None, Some(USER), Some(ADMIN)][dice.below(3) as usize];
        let (kind, data, worded) = match dice.below(10) {
            _ if new => ("task.create", json!({ "title": format!("common {word}") }), true),
            0 => ("task.delete", json!({}), false),
            1 | 2 => ("task.assign", json!({ "assigneeid": assignee }), false),
            3..=5 => {
                let status = ["todo", "in_progress", "review", "done"][dice.below(4) as usize];
                ("task.change_status", json!({ "status": status }), false)
            }
            _ => ("task.update", json!({ "title": format!("common {word}") }), true),
        };
        let Some(receipt) = send(&game, &client, command_of(USER, kind, task, data)).await? else { break };
        let version = receipt["version"].as_i64().context("version")?;
        if kind == "task.delete" {
            tasks.retain(|own| *own != task);
        }
        game.known(|known| {
            if kind == "task.delete" {
                let word = known.tasks.remove(&task).map(|told| told.word);
                known.deleted.insert(task, word.unwrap_or_default());
                return;
            }
            let told = known.tasks.entry(task).or_default();
            if kind == "task.assign" {
                told.assignee = assignee;
            }
            told.version = version;
            if worded {
                told.word = word;
            }
        });
    }
    Ok(())
}

/// Sends a command until its receipt is there.
async fn send(game: &Game, client: &Client, command: Value) -> Result<Option<Value>> {
    while !game.is_over() {
        if let Ok(receipt) = client.apply(&command).await {
            ensure!(receipt["status"] == "applied", "{receipt}");
            return Ok(Some(receipt));
        }
        tokio::task::yield_now().await;
    }
    Ok(None)
}

/// Who looks: the user whose tasks they are, and an admin at the other process.
struct Eyes {
    own: Client,
    admin: Client,
}

/// Reads, and compares with what was told before it asked.
async fn read(game: Arc<Game>, eyes: Eyes, seed: u64) -> Result {
    let mut dice = Dice::new(seed);
    let client = &eyes.own;
    while !game.is_over() {
        let (tasks, deleted, profile) =
            game.known(|known| (known.tasks.clone(), known.deleted.clone(), known.profile));
        if dice.below(8) == 0
            && let Some((task, word)) = deleted.iter().nth(dice.below(deleted.len().max(1) as u64) as usize)
        {
            gone(&game, &eyes, task, word).await?;
        }
        let Some((task, told)) = tasks.iter().nth(dice.below(tasks.len().max(1) as u64) as usize) else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let judged = match dice.below(8) {
            0 | 1 => one(&game, client, task, told).await,
            2 => user(&game, client, profile).await,
            3 => list(&game, client, &tasks).await,
            4 => stats(&game, client, &tasks).await,
            5 => search(&game, client, "search", &tasks, task, told).await,
            6 => search(&game, &eyes.admin, "search of an admin", &tasks, task, told).await,
            _ => assigned(&game, &eyes.admin, &tasks).await,
        };
        judged?;
    }
    Ok(())
}

/// An answer with where it came from; `None` if it was refused.
async fn ask(game: &Game, client: &Client, cache: &'static str, path: &str) -> Result<Option<Value>> {
    let Ok(response) = client.get(path).await else {
        game.refused.fetch_add(1, Ordering::Relaxed);
        return Ok(None);
    };
    match response.status().as_u16() {
        200 => {
            game.reads.fetch_add(1, Ordering::Relaxed);
            let hit = response.headers().get("x-cache").is_some_and(|value| value == "hit");
            if hit {
                let mut hits = game.hits.lock().unwrap_or_else(PoisonError::into_inner);
                *hits.entry(cache).or_default() += 1;
            }
            Ok(Some(response.json().await.with_context(|| format!("{path} (hit: {hit})"))?))
        }
        503 => {
            game.refused.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(Duration::from_millis(20)).await;
            Ok(None)
        }
        // What was deleted meanwhile: the callers know whether it may be.
        404 => {
            game.reads.fetch_add(1, Ordering::Relaxed);
            Ok(Some(Value::Null))
        }
        other => bail!("{path}: {other}: {}", response.text().await?),
    }
}

async fn one(game: &Game, client: &Client, task: &Uuid, told: &Told) -> Result {
    let Some(body) = ask(game, client, "task", &format!("/v1/tasks/{task}")).await? else { return Ok(()) };
    if body.is_null() {
        return may_be_gone(game, client, task).await;
    }
    ensure!(body["version"].as_i64() >= Some(told.version), "{body} after {told:?}");
    // What has this version has what the receipts up to it have told.
    if body["version"].as_i64() == Some(told.version) {
        ensure!(body["assigneeid"] == json!(told.assignee), "{body} after {told:?}");
    }
    Ok(())
}

/// A task that is not shown was deleted, whether its receipt was told by now or not.
async fn may_be_gone(game: &Game, client: &Client, task: &Uuid) -> Result {
    let path = format!("/v1/tasks/{task}");
    let Some(again) = ask(game, client, "task", &path).await? else { return Ok(()) };
    ensure!(again.is_null(), "{task} was not there, and is again: {again}");
    Ok(())
}

/// After the receipt of its end a task is nowhere.
async fn gone(game: &Game, eyes: &Eyes, task: &Uuid, word: &str) -> Result {
    for client in [&eyes.own, &eyes.admin] {
        if let Some(body) = ask(game, client, "task", &format!("/v1/tasks/{task}")).await? {
            ensure!(body.is_null(), "a deleted task is shown: {body}");
        }
        for path in [
            format!("/v1/tasks/search?q={word}"),
            "/v1/tasks/search?q=common&pagesize=100".to_owned(),
            format!("/v1/users/{USER}/tasks?pagesize=100"),
        ] {
            let Some(body) = ask(game, client, "gone", &path).await? else { continue };
            let items = body["items"].as_array().context("items")?;
            ensure!(!items.iter().any(|item| item["id"] == json!(task)), "{path} shows the deleted {task}");
        }
    }
    Ok(())
}

/// An admin's list of its own: what was assigned to it, and not what was taken from it.
async fn assigned(game: &Game, admin: &Client, tasks: &HashMap<Uuid, Told>) -> Result {
    let path = format!("/v1/users/{ADMIN}/tasks?pagesize=100");
    let Some(body) = ask(game, admin, "list of an admin", &path).await? else { return Ok(()) };
    let items = body["items"].as_array().context("items")?;
    for (task, told) in tasks {
        let shown = items.iter().find(|item| item["id"] == json!(task));
        let version = shown.and_then(|item| item["version"].as_i64());
        let newer = |version: Option<i64>| version > Some(told.version);
        if told.assignee == Some(ADMIN) && version.is_none() {
            // Only another command may have taken it from the list.
            let Some(now) = ask(game, admin, "task", &format!("/v1/tasks/{task}")).await? else { continue };
            ensure!(
                now.is_null() || newer(now["version"].as_i64()),
                "{task} is missing after {told:?}: {now}"
            );
        } else if told.assignee != Some(ADMIN) {
            ensure!(version.is_none() || newer(version), "{task} is still in the list after {told:?}");
        } else {
            ensure!(version >= Some(told.version), "{task} has version {version:?} after {told:?}");
        }
    }
    Ok(())
}

async fn user(game: &Game, client: &Client, profile: i64) -> Result {
    let Some(body) = ask(game, client, "profile", &format!("/v1/users/{USER}")).await? else { return Ok(()) };
    ensure!(body["version"].as_i64() >= Some(profile), "{body} after version {profile}");
    Ok(())
}

async fn list(game: &Game, client: &Client, tasks: &HashMap<Uuid, Told>) -> Result {
    let path = format!("/v1/users/{USER}/tasks?pagesize=100");
    let Some(body) = ask(game, client, "list", &path).await? else { return Ok(()) };
    let items = body["items"].as_array().context("items")?;
    complete(game, client, items, tasks, "a list").await
}

/// Every task is there as the receipts have told it, or newer, or deleted meanwhile.
async fn complete(
    game: &Game,
    client: &Client,
    items: &[Value],
    tasks: &HashMap<Uuid, Told>,
    place: &str,
) -> Result {
    for (task, told) in tasks {
        let shown = items.iter().find(|item| item["id"] == json!(task));
        match shown.and_then(|item| item["version"].as_i64()) {
            Some(version) => {
                ensure!(version >= told.version, "{task} has version {version} in {place} after {told:?}");
            }
            None => {
                let path = format!("/v1/tasks/{task}");
                let Some(now) = ask(game, client, "task", &path).await? else { continue };
                ensure!(now.is_null(), "{task} is missing in {place} after {told:?}: {now}");
            }
        }
    }
    Ok(())
}

async fn stats(game: &Game, client: &Client, tasks: &HashMap<Uuid, Told>) -> Result {
    let path = format!("/v1/users/{USER}/task-stats");
    let Some(body) = ask(game, client, "stats", &path).await? else { return Ok(()) };
    // Each writer may delete one task meanwhile, or a few while this answer was on its way: the lower bound moves with them.
    let still = game.known(|known| tasks.keys().filter(|task| known.tasks.contains_key(*task)).count());
    let least = still.saturating_sub(WRITERS);
    ensure!(body["total"].as_u64() >= Some(least as u64), "{body} after {} tasks", tasks.len());
    Ok(())
}

async fn search(
    game: &Game,
    client: &Client,
    cache: &'static str,
    tasks: &HashMap<Uuid, Told>,
    task: &Uuid,
    told: &Told,
) -> Result {
    // The newest word of one task, which nobody has looked for before; and the one that all have, which is kept.
    let path = format!("/v1/tasks/search?q={}", told.word);
    if let Some(body) = ask(game, client, cache, &path).await? {
        let items = body["items"].as_array().context("items")?;
        let found = items.iter().any(|item| item["id"] == json!(task));
        let moved_on = game.known(|known| known.tasks.get(task).is_none_or(|now| now.word != told.word));
        // A newer title may have been committed before its receipt was told.
        if !found && !moved_on {
            let Some(now) = ask(game, client, "task", &format!("/v1/tasks/{task}")).await? else {
                return Ok(());
            };
            let title = now["title"].as_str().unwrap_or_default();
            ensure!(!title.ends_with(&told.word), "{} is not found after {told:?}", told.word);
        }
    }
    let Some(body) = ask(game, client, cache, "/v1/tasks/search?q=common&pagesize=100").await? else {
        return Ok(());
    };
    let items = body["items"].as_array().context("items")?;
    complete(game, client, items, tasks, cache).await
}
