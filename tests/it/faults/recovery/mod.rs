//! A cluster brought back to moments in time, held against what had been committed then; and the other stores brought to
//! agree with it.

mod agree;
mod base;
mod branches;
mod drills;
mod full;
mod log;
mod moments;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::Context;
use chrono::{DateTime, TimeDelta, Utc};
use libtest_mimic::Trial;
use mongodb::bson::Document;
use serde_json::{Value, json};
use taskflow_core::envelope;
use taskflow_servers::Recovered;
use taskflow_stores::clock;
use taskflow_stores::postgres;
use taskflow_stores::postgres::PgPool;
use taskflow_stores::rabbit::publish::Message;
use taskflow_tests::backups::Backups;
use taskflow_tests::commands::{command, id};
use taskflow_tests::{Cluster, Result, Site, wait};
use uuid::Uuid;

use crate::{with_own_servers, with_site};

pub(crate) fn tests() -> Vec<Trial> {
    vec![
        with_own_servers(
            "a cluster is restored to random moments exactly, and the stores agree afterwards",
            moments::run,
        ),
        with_site(
            "a restore undoes nothing of what retention has removed, and erases again what was to be erased",
            agree::aged_and_erased,
        ),
        with_own_servers("base backups of the shipped roles, damaged, killed and pruned", base::run),
        with_own_servers(
            "a slot that keeps too much of the log is given up, and the archive begins anew",
            base::slot,
        ),
        with_own_servers("restores onto disks that get full say so and can be made again", full::run),
        with_own_servers("the archived log has no gap, whoever is killed", log::killed),
        with_own_servers("what a restore to a moment has abandoned is never restored", branches::run),
        with_own_servers("a drill proves the newest backups, and names what can't be restored", drills::run),
    ]
}

/// A folder that servers' users reach.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Result<Self> {
        let folder = tempfile::Builder::new().prefix("taskflow-pit-").tempdir_in("/tmp")?.keep();
        std::fs::set_permissions(&folder, std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
        Ok(Self(folder))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// With the log of writes archived every half second.
fn archived<'c>(cluster: &'c Cluster<'c>, folder: &Path) -> Backups<'c> {
    Backups::new(cluster)
        .with("WAL", "true")
        .with("WAL_EVERY_MS", "500")
        .with("WORK_DIR", &folder.join("work").display().to_string())
}

/// How far the archive goes.
fn reached(backups: &Backups<'_>) -> Result<Value> {
    let folder = backups.folder.join("wal");
    let mut systems = std::fs::read_dir(&folder)?;
    let system = systems.next().context("nothing is archived")??;
    Ok(serde_json::from_slice(&std::fs::read(system.path().join("position.json"))?)?)
}

fn reached_at(backups: &Backups<'_>) -> Result<DateTime<Utc>> {
    let at = reached(backups)?["at"].as_str().context("no time")?.to_owned();
    Ok(at.parse()?)
}

async fn until_archived(backups: &Backups<'_>, at: DateTime<Utc>) -> Result {
    wait::until("the log is archived", async || Ok(reached_at(backups)? > at)).await
}

/// The server's clock.
async fn now(site: &Site) -> Result<DateTime<Utc>> {
    Ok(sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(&site.postgres).await?)
}

/// A server on restored files.
async fn start(data: &Path, folder: &Path, database: &str) -> Result<(Recovered, PgPool, String)> {
    let socket = folder.join(format!("s{}", id().simple()));
    let server = Recovered::start(data, &socket).await?;
    let url = format!("postgres://taskflow@localhost:{}/{database}?host={}", server.port(), socket.display());
    let settings =
        postgres::Settings { url: url.clone(), connections_max: 4, ..postgres::Settings::default() };
    let pool = postgres::connect(&settings, "taskflow test")?;
    wait::until("the restored server answers", async || {
        server.must_run()?;
        Ok(postgres::probe(&pool).await.is_ok())
    })
    .await?;
    Ok((server, pool, url))
}

/// Commands of a few subjects one after the other, each of which names the version before; kept, so that they can be sent
/// again.
struct Load {
    sent: Vec<Value>,
    versions: BTreeMap<Uuid, usize>,
    /// Until when what comes first of a subject is to be applied.
    expiry: DateTime<Utc>,
}

impl Load {
    fn new(subjects: usize) -> Self {
        let expiry = clock::now() + TimeDelta::seconds(40);
        Self { sent: Vec::new(), versions: (0..subjects).map(|_| (id(), 0)).collect(), expiry }
    }

    async fn send(&mut self, site: &Site, rounds: usize) -> Result {
        for _ in 0..rounds {
            for (subject, version) in &mut self.versions {
                let value = match *version {
                    0 => {
                        let mut first = command("task.create", *subject, json!({ "title": "version 1" }));
                        first["expirytime"] = json!(self.expiry.to_rfc3339());
                        first
                    }
                    before => command(
                        "task.update",
                        *subject,
                        json!({ "title": format!("version {}", before + 1), "expectedversion": before }),
                    ),
                };
                publish(site, &value).await?;
                self.sent.push(value);
                *version += 1;
            }
        }
        Ok(())
    }

    fn ids(&self) -> Vec<Uuid> {
        self.sent.iter().filter_map(|value| value["id"].as_str()?.parse().ok()).collect()
    }
}

async fn publish(site: &Site, value: &Value) -> Result {
    let command = envelope::read(value.clone())?;
    site.publisher.publish(Message::command(&command, clock::now(), None)).await?;
    Ok(())
}

async fn until_settled(site: &Site, commands: usize) -> Result {
    wait::until("every command has its receipt and every event is there", async || {
        let receipts = site.count("SELECT count(*) FROM receipts").await?;
        let events = site.count("SELECT coalesce(sum(events), 0)::bigint FROM receipts").await?;
        Ok(receipts >= commands as i64 && alive(&site.events().await?).len() as i64 >= events)
    })
    .await
}

/// Events that were not undone.
fn alive(events: &[Document]) -> Vec<&Document> {
    events.iter().filter(|event| !event.contains_key("undone")).collect()
}
