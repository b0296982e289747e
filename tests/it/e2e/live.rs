//! The live stream: who hears what, for how long, and that nobody who comes back has missed or doubled anything.

mod gap;
mod register;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use taskflow_core::stream::Cursor;
use taskflow_tests::commands::{ADMIN, USER, command, command_of, id};
use taskflow_tests::promise::{self, Stream};
use taskflow_tests::socket::{Next, Socket};
use taskflow_tests::{Client, Result, Site, World, wait};
use tokio::io::AsyncReadExt;

use crate::{cluster, with_site, with_world};

pub(crate) fn tests() -> Vec<Trial> {
    let own = vec![
        with_site("stream: one's own events, an admin's all, and filters", own),
        with_site("stream: who may open it, and how", opening),
        with_site("stream: who comes back under load misses nothing and gets nothing twice", resume),
        with_site("stream: a reader that is too slow is dropped with a reason", async |site| {
            slow(site, ("TASKFLOW_HTTP__STREAM__BUFFER", "50")).await
        }),
        with_site("stream: a reader for whom too many bytes wait is dropped with a reason", async |site| {
            slow(site, ("TASKFLOW_HTTP__STREAM__BUFFER_BYTES", "1000000")).await
        }),
        with_site("stream: bounds, silence and talk end it with a reason", bounds),
        with_site("stream: a cursor's time waits for what is not told yet", untold),
        with_world("stream: a restart of the broker loses nothing", broker),
    ];
    own.into_iter().chain(register::tests()).chain(gap::tests()).collect()
}

fn kind(event: &Value) -> &str {
    event["type"].as_str().unwrap_or_default()
}

async fn own(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (api, client) = cluster.api().await?;
    let (admin, user) = (client.admin().await?, client.user().await?);
    let mut own = Socket::open(&user, "").await?;
    let mut all = Socket::open(&admin, "?type=task.*").await?;
    let theirs = id();
    let mut one_task = Socket::open(&admin, &format!("?entity={theirs}")).await?;
    let mut updates = Socket::open(&admin, &format!("?type=task.updated,user.login&actor={ADMIN}")).await?;

    let mine = id();
    user.apply(&command_of(USER, "task.create", mine, json!({ "title": "mine" }))).await?;
    // An admin's task: none of the user's business until it is given to the user, and when it is taken away.
    admin.apply(&command("task.create", theirs, json!({ "title": "theirs" }))).await?;
    admin.apply(&command("task.update", theirs, json!({ "title": "theirs still" }))).await?;
    admin.apply(&command("task.assign", theirs, json!({ "assigneeid": USER }))).await?;
    user.apply(&command_of(USER, "task.change_status", theirs, json!({ "status": "done" }))).await?;
    admin.apply(&command("task.assign", theirs, json!({ "assigneeid": null }))).await?;
    user.apply(&command_of(USER, "user.update_profile", USER, json!({ "profile": { "firstName": "U" } })))
        .await?;

    // Each entity's events come in order; those of different ones as they like.
    let mut heard: HashMap<String, Vec<String>> = HashMap::new();
    while heard.values().map(Vec::len).sum::<usize>() < 5 {
        let event = own.event().await?;
        ensure!(event["specversion"] == "1.0" && event["data"].is_object(), "{event}");
        // Logins of before the stream may be told in it, if they were applied after its beginning.
        if kind(&event) != "user.login" {
            let subject = event["subject"].as_str().unwrap_or_default().to_owned();
            heard.entry(subject).or_default().push(kind(&event).to_owned());
        }
    }
    let expected = [
        (mine, vec!["task.created"]),
        (theirs, vec!["task.assigned", "task.status_changed", "task.assigned"]),
        (USER, vec!["user.profile_updated"]),
    ];
    for (subject, kinds) in expected {
        let heard = heard.remove(&subject.to_string()).unwrap_or_default();
        ensure!(heard == kinds, "of {subject} the user heard {heard:?}");
    }
    let mut heard = Vec::new();
    for _ in 0..6 {
        heard.push(kind(&all.event().await?).to_owned());
    }
    ensure!(
        heard.len() == 6 && heard.iter().all(|kind| kind.starts_with("task.")),
        "the admin heard {heard:?}"
    );
    for _ in 0..5 {
        let event = one_task.event().await?;
        ensure!(event["subject"] == theirs.to_string(), "{event}");
    }
    let event = updates.event().await?;
    let event = if kind(&event) == "user.login" { updates.event().await? } else { event };
    ensure!(kind(&event) == "task.updated" && event["data"]["title"] == "theirs still", "{event}");
    own.close().await?;
    worker.stop().await?;
    // Whoever is still connected is told why it ends.
    let ended = all.closed();
    let (stopped, ended) = tokio::join!(api.stop(), ended);
    stopped?;
    ensure!(ended?.0 == 1001);
    Ok(())
}

async fn opening(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let (api, client) = cluster.api().await?;
    let user = client.user().await?;
    let token = user.token().context("no token")?;
    let refused = async |query: &str, headers: &[(&'static str, String)]| match Socket::connect(
        &client, query, headers,
    )
    .await
    {
        Ok(_) => 101,
        Err((status, _)) => status,
    };
    ensure!(refused("", &[]).await == 401, "anybody may listen");
    ensure!(refused(&format!("?token={token}"), &[]).await == 401, "a token in the URL counts");
    ensure!(refused("", &[("authorization", "Bearer nonsense".into())]).await == 401);
    let bearer = || ("authorization", format!("Bearer {token}"));
    for query in ["?lasteventid=nonsense", "?lasteventid=1~1~00-", "?entity=7", "?type=a%20b", "?unknown=1"] {
        ensure!(refused(query, &[bearer()]).await == 400, "{query}");
    }
    // As a browser does it. The server names the protocol that it speaks, and not the token.
    let protocols = ("sec-websocket-protocol", format!("taskflow.v1, bearer.{token}"));
    let mut socket = Socket::connect(&client, "", &[protocols]).await.map_err(|(_, error)| error)?;
    ensure!(matches!(socket.next().await?, Next::Mark), "no first cursor");
    let answer = user.get("/v1/stream").await?;
    ensure!(answer.status() == 400, "{}", answer.status());
    let problem: Value = answer.json().await?;
    ensure!(problem["code"] == "websocket_wanted", "{problem}");
    socket.close().await?;
    api.stop().await
}

/// What readers have heard of each task: its versions, in order.
#[derive(Default)]
struct Heard(HashMap<String, Vec<i64>>);

impl Heard {
    fn note(&mut self, event: &Value) {
        if let (Some(subject), Some(version)) = (event["subject"].as_str(), event["version"].as_i64())
            && kind(event).starts_with("task.")
        {
            self.0.entry(subject.to_owned()).or_default().push(version);
        }
    }

    /// Each task's versions are there, once and in order.
    fn check(&self, accepted: &promise::Accepted) -> Result {
        for (subject, ids) in &accepted.subjects {
            let heard = self.0.get(&subject.to_string()).cloned().unwrap_or_default();
            let expected: Vec<i64> = (1..=ids.len() as i64).collect();
            ensure!(heard == expected, "{subject} has the versions {heard:?}, not up to {}", ids.len());
        }
        Ok(())
    }

    fn len(&self) -> usize {
        self.0.values().map(Vec::len).sum()
    }
}

/// Reads, and comes back whenever it is closed or has had enough, until all is heard.
async fn read_all(
    client: &Client,
    heard: &mut Heard,
    mut socket: Socket,
    leave_every: usize,
    all: impl Fn() -> Option<usize>,
) -> Result<usize> {
    let mut since = 0;
    let mut times = 0;
    while all().is_none_or(|all| heard.len() < all) {
        // What was to come may all be here already.
        match tokio::time::timeout(Duration::from_millis(500), socket.next()).await {
            Ok(Ok(Next::Event(event))) => {
                heard.note(&event);
                since += 1;
                if since < leave_every {
                    continue;
                }
            }
            Ok(Ok(Next::Mark)) | Err(_) => continue,
            Ok(Ok(Next::Closed(code, reason))) => {
                ensure!([1001, 1006, 1012].contains(&code), "{code} {reason}");
            }
            Ok(Err(error)) => return Err(error),
        }
        // Left without a word, in the middle of a batch as likely as not.
        let cursor = socket.cursor.clone();
        drop(socket);
        since = 0;
        times += 1;
        socket = comes_back(client, &cursor).await?;
    }
    Ok(times)
}

async fn comes_back(client: &Client, cursor: &str) -> Result<Socket> {
    let mut back = None;
    wait::until("the reader is back", async || {
        back = Socket::resume(client, "?type=task.*", cursor).await.ok();
        Ok(back.is_some())
    })
    .await?;
    back.context("not back")
}

async fn resume(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let (worker, mut other) = (cluster.worker()?, cluster.worker()?);
    let (first, one) = cluster.api().await?;
    let (second, two) = cluster.api().await?;
    let admin = one.admin().await?;
    // Everything in one go, everything in many small pieces, and at another process each time.
    let whole = Socket::open(&admin, "?type=task.*").await?;
    let pieces = Socket::open(&admin, "?type=task.*").await?;
    let hopping = Socket::open(&admin, "?type=task.*").await?;
    let elsewhere = two.admin().await?;
    let stream = Stream::start(&site, 24, 40);
    let expected = std::sync::OnceLock::new();
    let (mut a, mut b, mut c) = (Heard::default(), Heard::default(), Heard::default());
    let all = || expected.get().copied();
    let work = async {
        // A worker's death repeats what it had told.
        wait::until(
            "some are applied",
            async || Ok(site.count("SELECT count(*) FROM receipts").await? > 200),
        )
        .await?;
        let successor = cluster.worker()?;
        std::mem::replace(&mut other, successor).kill().await?;
        let accepted = stream.end().await?;
        let _ = expected.set(accepted.commands());
        anyhow::Ok(accepted)
    };
    let (accepted, _, in_pieces, hopped) = tokio::try_join!(
        work,
        read_all(&admin, &mut a, whole, usize::MAX, all),
        read_all(&admin, &mut b, pieces, 37, all),
        read_all(&elsewhere, &mut c, hopping, 101, all),
    )?;
    ensure!(in_pieces > 5 && hopped > 2, "nobody came back");
    for (name, heard) in [("whole", &a), ("pieces", &b), ("elsewhere", &c)] {
        heard.check(&accepted).with_context(|| format!("the reader {name}"))?;
    }
    for process in [first, second, worker, other] {
        process.stop().await?;
    }
    Ok(())
}

async fn slow(site: Arc<Site>, bound: (&str, &str)) -> Result {
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    // Nor is anybody dropped for one event that takes long.
    let env = [bound, ("TASKFLOW_HTTP__STREAM__WRITE_TIMEOUT_MS", "120000")];
    let (api, client) = cluster.api_with(&env).await?;
    let admin = client.admin().await?;
    let mut lazy = Socket::open(&admin, "?type=task.*").await?;
    let mut quick = Socket::open(&admin, "?type=task.*&entity=01930000-0000-7000-8000-00000000ffff").await?;
    // More than the sockets' own buffers hold.
    let long = "x".repeat(19_000);
    let ended = "taskflow_streams_ended_total{reason=\"slow\"} 1";
    wait::until("the lazy reader is dropped", async || {
        let commands: Vec<Value> = (0..200)
            .map(|_| command("task.create", id(), json!({ "title": "long", "description": long })))
            .collect();
        let (status, answer) = admin.send("application/json", serde_json::to_vec(&commands)?).await?;
        ensure!(status == 202, "{answer}");
        Ok(client.get("/metrics").await?.text().await?.contains(ended))
    })
    .await?;
    let (code, reason) = lazy.closed().await?;
    ensure!(code == 4002 || code == 1006, "{code} {reason}");
    // Nobody else has suffered.
    admin
        .apply(&json!({
            "specversion": "1.0", "id": id(), "source": "/test", "type": "task.create", "actorid": ADMIN,
            "subject": "01930000-0000-7000-8000-00000000ffff", "data": { "title": "for the quick" },
        }))
        .await?;
    ensure!(kind(&quick.event().await?) == "task.created");
    api.stop().await?;
    worker.stop().await
}

async fn bounds(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let env = [
        ("TASKFLOW_HTTP__STREAM__USER_SOCKETS_MAX", "2"),
        ("TASKFLOW_HTTP__STREAM__SOCKETS_MAX", "3"),
        ("TASKFLOW_HTTP__STREAM__PING_MS", "200"),
    ];
    let (api, client) = cluster.api_with(&env).await?;
    let (admin, user) = (client.admin().await?, client.user().await?);
    let mut talker = Socket::open(&user, "").await?;
    let mut second = Socket::open(&user, "").await?;
    let bearer =
        |client: &Client| ("authorization", format!("Bearer {}", client.token().unwrap_or_default()));
    let third = Socket::connect(&client, "", &[bearer(&user)]).await;
    ensure!(matches!(third, Err((429, _))), "a user has more sockets than it may have");
    let others = Socket::open(&admin, "").await?;
    let fourth = Socket::connect(&client, "", &[bearer(&admin)]).await;
    ensure!(matches!(fourth, Err((503, _))), "a process has more sockets than it takes");
    // Marks come with the pings: whoever answers those is not idle.
    ensure!(matches!(second.next().await?, Next::Mark) && matches!(second.next().await?, Next::Mark));
    talker.say("hello").await?;
    ensure!(talker.closed().await?.0 == 1003, "talk is taken");
    drop(talker);
    let mut again = None;
    wait::until("its place is free again", async || {
        again = Socket::open(&user, "").await.ok();
        Ok(again.is_some())
    })
    .await?;
    again.context("not open")?.close().await?;
    // Of what happened two days ago something may be gone: who comes back then is told, and not left with a hole.
    let mut old: Vec<String> = others.cursor.split('~').map(str::to_owned).collect();
    drop(others);
    let at: i64 = old.get(1).context("a cursor without a time")?.parse()?;
    old[1] = (at - 2 * 24 * 3_600_000).to_string();
    let (code, reason) = comes_back(&admin, &old.join("~")).await?.closed().await?;
    ensure!(code == 4003 && reason.contains("too long ago"), "{code} {reason}");
    api.stop().await?;
    // One that answers nothing, not even a ping.
    let env = [("TASKFLOW_HTTP__STREAM__PING_MS", "200"), ("TASKFLOW_HTTP__STREAM__IDLE_TIMEOUT_MS", "1000")];
    let (api, client) = cluster.api_with(&env).await?;
    let mut silent = silent(&client, &client.user().await?).await?;
    let mut rest = Vec::new();
    tokio::time::timeout(Duration::from_mins(1), silent.read_to_end(&mut rest))
        .await
        .context("it stays open")??;
    ensure!(rest.windows(2).any(|bytes| bytes == 4004_u16.to_be_bytes()), "no close frame of silence");
    api.stop().await
}

/// A bare connection that has asked for the stream and says nothing more.
async fn silent(client: &Client, user: &Client) -> Result<tokio::net::TcpStream> {
    use tokio::io::AsyncWriteExt;
    let address = client.base().trim_start_matches("http://");
    let mut stream = tokio::net::TcpStream::connect(address).await?;
    let request = format!(
        "GET /v1/stream HTTP/1.1\r\nhost: {address}\r\nauthorization: Bearer {}\r\nconnection: upgrade\r\n\
         upgrade: websocket\r\nsec-websocket-version: 13\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        user.token().context("no token")?
    );
    stream.write_all(request.as_bytes()).await?;
    Ok(stream)
}

/// What no command causes has no place in a partition: who comes back is told of it by its time. So that time must not
/// pass by what still waits for a store.
async fn untold(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let (api, client) = cluster.api_with(&[("TASKFLOW_HTTP__STREAM__PING_MS", "200")]).await?;
    let admin = client.admin().await?;
    let mut socket = Socket::open(&admin, "").await?;
    let at = |cursor: &str| Ok::<_, anyhow::Error>(cursor.parse::<Cursor>().map_err(anyhow::Error::msg)?.at);
    let began = at(&socket.cursor)?;
    // Nobody is there to deliver it.
    let role = admin.request(reqwest::Method::PUT, &format!("/v1/admin/users/{USER}/role"));
    ensure!(role.json(&json!({ "role": "admin" })).send().await?.status() == 200, "no other role");
    let happened: chrono::DateTime<chrono::Utc> =
        sqlx::query_scalar("SELECT min(created_at) FROM system_events").fetch_one(&site.postgres).await?;
    // To the millisecond, as cursors have it.
    let happened_ms = happened.timestamp_millis();
    let mut marks = 0;
    while at(&socket.cursor)?.timestamp_millis() != happened_ms {
        ensure!(at(&socket.cursor)?.timestamp_millis() < happened_ms, "it has passed by what waits");
        ensure!(matches!(socket.next().await?, Next::Mark), "an event that nobody delivers");
        marks += 1;
        ensure!(marks < 300, "it stands still without need: began {began}, happened {happened}");
    }
    let worker = cluster.worker()?;
    // The login is told of too.
    while socket.event().await?["type"] != "system.role_changed" {}
    wait::until("it goes on", async || {
        socket.next().await?;
        Ok(at(&socket.cursor)?.timestamp_millis() > happened_ms)
    })
    .await?;
    drop(socket);
    worker.stop().await?;
    api.stop().await
}

async fn broker(world: &World) -> Result {
    let site = Site::new(world).await?;
    let cluster = cluster(&site)?;
    let worker = cluster.worker()?;
    let (api, client) = cluster.api().await?;
    let admin = client.admin().await?;
    let socket = Socket::open(&admin, "?type=task.*").await?;
    let stream = Stream::start(&site, 12, 30);
    let expected = std::sync::OnceLock::new();
    let mut heard = Heard::default();
    let work = async {
        wait::until(
            "some are applied",
            async || Ok(site.count("SELECT count(*) FROM receipts").await? > 100),
        )
        .await?;
        world.servers.lock().await.rabbitmq.restart().await?;
        let before = site.count("SELECT count(*) FROM receipts").await?;
        wait::until("more are applied", async || {
            Ok(site.count("SELECT count(*) FROM receipts").await? > before + 100)
        })
        .await?;
        let accepted = stream.end().await?;
        let _ = expected.set(accepted.commands());
        anyhow::Ok(accepted)
    };
    let (accepted, times) =
        tokio::try_join!(work, read_all(&admin, &mut heard, socket, usize::MAX, || expected.get().copied()))?;
    ensure!(times >= 1, "the stream went on through a restart of the broker: how?");
    heard.check(&accepted)?;
    api.stop().await?;
    worker.stop().await
}
