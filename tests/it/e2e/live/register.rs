//! The register of open sockets in Redis: who is in it, and that nobody stays who has gone.

use std::sync::Arc;

use anyhow::{Context, ensure};
use libtest_mimic::Trial;
use taskflow_tests::commands::USER;
use taskflow_tests::socket::Socket;
use taskflow_tests::{Result, Site, wait};

use crate::{cluster, with_site};

pub(super) fn tests() -> Vec<Trial> {
    vec![
        with_site("stream: a session's end closes it, and the register forgets it", register),
        with_site("stream: sockets that closed while Redis was away make room", ghosts),
        with_site("stream: a killed API's sockets leave the register", killed),
    ]
}

/// Members of a user's set of sockets, and how many of them have a key of their own.
async fn registered(site: &Site, user: uuid::Uuid) -> Result<(usize, usize)> {
    let client = redis::Client::open(site.redis_url.as_str())?;
    let mut connection = client.get_multiplexed_async_connection().await?;
    let set = format!("{}ws:user:{user}:connections", site.redis_prefix);
    let members: Vec<String> = redis::cmd("SMEMBERS").arg(set).query_async(&mut connection).await?;
    let mut keys = 0;
    for member in &members {
        let key = format!("{}ws:connection:{member}", site.redis_prefix);
        let owner: Option<String> = redis::cmd("GET").arg(&key).query_async(&mut connection).await?;
        let ttl: i64 = redis::cmd("TTL").arg(&key).query_async(&mut connection).await?;
        keys += usize::from(owner == Some(user.to_string()) && ttl > 0 && ttl <= 3600);
    }
    Ok((members.len(), keys))
}

async fn register(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let (api, client) = cluster.api().await?;
    let (user, other) = (client.user().await?, client.user().await?);
    let mut socket = Socket::open(&user, "").await?;
    let stays = Socket::open(&other, "").await?;
    ensure!(registered(&site, USER).await? == (2, 2), "{:?}", registered(&site, USER).await?);
    // Redis forgets all: the register is made anew.
    let redis = redis::Client::open(site.redis_url.as_str())?;
    let mut connection = redis.get_multiplexed_async_connection().await?;
    let set = format!("{}ws:user:{USER}:connections", site.redis_prefix);
    redis::cmd("DEL").arg(set).query_async::<()>(&mut connection).await?;
    wait::until("the register is true again", async || Ok(registered(&site, USER).await? == (2, 2))).await?;
    let answer = user.delete("/v1/sessions/current").await?;
    ensure!(answer.status().is_success(), "{}", answer.status());
    let (code, reason) = socket.closed().await?;
    ensure!(code == 4001, "{code} {reason}");
    wait::until("one is left", async || Ok(registered(&site, USER).await? == (1, 1))).await?;
    stays.close().await?;
    wait::until("none is left", async || Ok(registered(&site, USER).await? == (0, 0))).await?;
    let last = Socket::open(&other, "").await?;
    let (stopped, _) = tokio::join!(api.stop(), async {
        let mut last = last;
        last.closed().await
    });
    stopped?;
    ensure!(registered(&site, USER).await? == (0, 0), "a polite stop leaves something behind");
    Ok(())
}

/// Entries of this very process that it does not have.
async fn ghosts(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let (api, client) = cluster.api_with(&[("TASKFLOW_HTTP__STREAM__USER_SOCKETS_MAX", "2")]).await?;
    let user = client.user().await?;
    let stays = Socket::open(&user, "").await?;
    let redis = redis::Client::open(site.redis_url.as_str())?;
    let mut connection = redis.get_multiplexed_async_connection().await?;
    let set = format!("{}ws:user:{USER}:connections", site.redis_prefix);
    let members: Vec<String> = redis::cmd("SMEMBERS").arg(&set).query_async(&mut connection).await?;
    let process = members.first().and_then(|id| id.split_once(':')).context("no socket")?.0;
    for number in 900..920 {
        let ghost = format!("{process}:{number}");
        site.set_cached(&format!("ws:connection:{ghost}"), &USER.to_string()).await?;
        redis::cmd("SADD").arg(&set).arg(&ghost).query_async::<()>(&mut connection).await?;
    }
    let second = Socket::open(&user, "").await?;
    ensure!(registered(&site, USER).await? == (2, 2), "{:?}", registered(&site, USER).await?);
    drop((stays, second));
    api.stop().await
}

async fn killed(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    let env = [("TASKFLOW_HTTP__STREAM__USER_SOCKETS_MAX", "2")];
    let (api, client) = cluster.api_with(&env).await?;
    let user = client.user().await?;
    let _both = (Socket::open(&user, "").await?, Socket::open(&user, "").await?);
    api.kill().await?;
    ensure!(registered(&site, USER).await?.0 == 2, "a killed process leaves its entries");
    // Their owner comes again, at another process, and is not kept out by the dead.
    let (api, client) = cluster.api_with(&env).await?;
    let user = client.user().await?;
    let mut socket = None;
    wait::until("the dead make room", async || {
        socket = Socket::open(&user, "").await.ok();
        Ok(socket.is_some())
    })
    .await?;
    ensure!(registered(&site, USER).await? == (1, 1), "{:?}", registered(&site, USER).await?);
    drop(socket);
    api.stop().await
}
