//! Redis's snapshot, brought back as its manifest says: another server starts with it, and has every key as it was.

use std::collections::BTreeMap;
use std::path::Path;
use std::process::Stdio;
use std::sync::Arc;

use anyhow::{Context, ensure};
use redis::aio::MultiplexedConnection;
use taskflow_tests::backups::Backups;
use taskflow_tests::{Result, Site, wait};
use tokio::process::{Child, Command};

use super::filled;
use crate::cluster;

/// Whoever is logged in hears that there is no such command.
const NOBODYS: &str = "/v1/commands/0189f7a0-6d3c-7e4b-9a51-3f0c2f4f7a10";

/// What a key holds, in the server's own form, and when it ends.
type Keys = BTreeMap<String, (Vec<u8>, i64)>;

pub(super) async fn brought_back(site: Arc<Site>) -> Result {
    filled(&site, 4, 10).await?;
    let cluster = cluster(&site)?;
    let (api, client) = cluster.api().await?;
    let user = client.user().await?;
    ensure!(user.get(NOBODYS).await?.status() == 404, "the session does not hold");
    api.stop().await?;

    let before = keys(&site.redis_url, &site.redis_prefix).await?;
    ensure!(before.keys().any(|key| key.contains("session:")), "no session: {:?}", before.keys());
    ensure!(before.values().any(|(_, ends)| *ends > 0), "no key that ends");
    let backups = Backups::new(&cluster);
    let id = backups.create("redis").await?;
    let verified = backups.ask(&["backup", "verify", &id]).await?;
    ensure!(verified[0]["ok"] == true, "{verified}");

    let folder = cluster.folder().join("restored");
    std::fs::create_dir(&folder)?;
    let file = std::fs::File::open(backups.path(&id).join("dump.rdb.zst"))?;
    std::fs::write(folder.join("dump.rdb"), zstd::decode_all(file)?)?;
    let (mut server, url) = started(&folder).await?;
    let after = keys(&url, &site.redis_prefix).await?;
    ensure!(before == after, "{:?} and not {:?}", after.keys(), before.keys());

    // Whoever was logged in is.
    let (api, client) = cluster.api_with(&[("TASKFLOW_REDIS__URL", url.as_str())]).await?;
    let token = user.token().context("no token")?;
    ensure!(client.get(NOBODYS).await?.status() == 401, "it is open to all");
    ensure!(client.with(&token).get(NOBODYS).await?.status() == 404, "the session has not come back");
    api.stop().await?;
    Ok(server.kill().await?)
}

/// A server of its own on a snapshot that lies in its folder.
async fn started(folder: &Path) -> Result<(Child, String)> {
    let address = taskflow_tests::free_address()?;
    let (host, port) = address.rsplit_once(':').context("no port")?;
    let server = Command::new("redis-server")
        .args(["--bind", host, "--port", port, "--dir"])
        .arg(folder)
        .args(["--dbfilename", "dump.rdb", "--appendonly", "no", "--save", ""])
        .stdout(Stdio::null())
        .kill_on_drop(true)
        .spawn()?;
    let url = format!("redis://{address}/0");
    let client = redis::Client::open(url.as_str())?;
    wait::until("the other Redis has loaded its snapshot", async || {
        let Ok(mut connection) = client.get_multiplexed_async_connection().await else { return Ok(false) };
        Ok(redis::cmd("PING").query_async::<String>(&mut connection).await.is_ok())
    })
    .await?;
    Ok((server, url))
}

/// Every key under a prefix.
async fn keys(url: &str, prefix: &str) -> Result<Keys> {
    let mut connection = redis::Client::open(url)?.get_multiplexed_async_connection().await?;
    let mut found = Keys::new();
    for pattern in [format!("{prefix}*"), format!("{{{prefix}*")] {
        let names: Vec<String> = redis::cmd("KEYS").arg(pattern).query_async(&mut connection).await?;
        for name in names {
            let value = held(&mut connection, &name).await?;
            found.insert(name, value);
        }
    }
    Ok(found)
}

async fn held(connection: &mut MultiplexedConnection, name: &str) -> Result<(Vec<u8>, i64)> {
    Ok(redis::pipe().cmd("DUMP").arg(name).cmd("PEXPIRETIME").arg(name).query_async(connection).await?)
}
