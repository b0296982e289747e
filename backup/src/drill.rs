//! A drill: the newest backups are restored on scratch servers, and held against what the live stores had at that moment.
//! A backup that passes is proven; until then it is a hope.

use std::path::{Path, PathBuf};
use std::time::Instant;

use chrono::{DateTime, Utc};
use serde::Serialize;
use taskflow_core::backup::wal::Lsn;
use taskflow_servers::{Kind as ServerKind, Options, Ports, Server};
use taskflow_stores::clock;
use taskflow_stores::mongo::{self, Database, refill};
use taskflow_stores::postgres::backup::{Quiet, Sums, quiet_moment};
use taskflow_stores::postgres::{self, PgPool, wal};

use crate::error::{Error, Result};
use crate::keys::Identities;
use crate::manifest::{Kind, Manifest};
use crate::postgres::archive::Archive;
use crate::progress::Progress;
use crate::restore::cluster::{self, Target};
use crate::restore::{mongo as documents, postgres as dumps};
use crate::vault::{Proof, Vault};

/// How one store's drill ended.
#[derive(Debug, Clone, Serialize)]
pub struct Outcome {
    pub store: &'static str,
    /// The backups that were restored.
    pub backups: Vec<String>,
    /// Seconds from the first byte to the end of the checks.
    pub took_s: f64,
    /// Bytes of content that were restored.
    pub bytes: u64,
    pub detail: String,
}

/// What a drill needs.
pub struct Drill<'d> {
    pub vault: &'d Vault,
    pub identities: &'d Identities,
    pub postgres: &'d PgPool,
    /// A folder for scratch servers; made, and removed again.
    pub folder: PathBuf,
    pub progress: &'d Progress,
}

impl Drill<'_> {
    /// Postgres to a moment of now, from its base backup and the log; `Err` in words where there is nothing to try.
    pub async fn cluster(&self) -> Result<Result<Outcome, String>> {
        let place = wal::place(self.postgres).await?;
        let archive = Archive::of(self.vault, &place.system);
        let (Some(_), Some(_)) = (archive.reached().await?, self.vault.newest(Kind::PostgresBase).await?)
        else {
            return Ok(Err("there is no base backup with a log behind it".to_owned()));
        };
        // What the live cluster has at a moment, and where in the log that is.
        let Quiet { mut moment, lsn, tables, others } = quiet_moment(self.postgres).await?;
        let lsn: Lsn = lsn.parse().map_err(Error::failed)?;
        let live = moment.sums().await;
        moment.end().await;
        let live = live?;
        // With the first byte behind it: only then all of it is there.
        archive.wait(Lsn(lsn.0 + 1), self.progress).await?;
        let started = Instant::now();
        let folder = self.scratch("cluster").await?;
        let data = folder.join("data");
        let login = self.postgres.connect_options();
        let order = cluster::Order {
            base: None,
            target: Target::Lsn(lsn),
            data: &data,
            user: login.get_username(),
            database: login.get_database().unwrap_or_else(|| login.get_username()),
        };
        let tried = async {
            let running = cluster::recover(self.vault, self.identities, order, self.progress).await?;
            let looked = cluster::examine(&running.pool).await;
            let (base, replayed_s) = (running.base.clone(), running.replayed_s);
            running.stop().await?;
            let (sums, faults) = looked?;
            Ok::<_, Error>((base, replayed_s, sums, faults))
        };
        let tried = tried.await;
        remove(&folder);
        let (base, replayed_s, sums, mut faults) = tried?;
        faults.extend(different(&tables, &live, &sums));
        if !faults.is_empty() {
            return Err(Error::damaged(format!(
                "{} does not lead back to {lsn}: {}",
                base.id,
                faults.join("; ")
            )));
        }
        let rows: i64 = tables.iter().filter_map(|table| sums.get(table)).map(|(count, _)| count).sum();
        let mut detail = format!(
            "replayed to {lsn} in {replayed_s:.1} s; {} tables have the live system's {rows} rows, by count and checksum",
            tables.len()
        );
        if !others.is_empty() {
            detail.push_str("; not compared, since this role may not lock them: ");
            detail.push_str(&others.join(", "));
        }
        self.passed("postgres", vec![base], started, detail).await.map(Ok)
    }

    /// The newest dump, on a server made for it.
    pub async fn dump(&self) -> Result<Result<Outcome, String>> {
        let Some(manifest) = self.vault.newest(Kind::Postgres).await? else {
            return Ok(Err("there is no dump".to_owned()));
        };
        let started = Instant::now();
        let folder = self.scratch("dump").await?;
        let tried = async {
            let mut server = self.server(ServerKind::Postgres, &folder).await?;
            let url = server.url().to_owned();
            let settings =
                postgres::Settings { url: url.clone(), connections_max: 2, ..postgres::Settings::default() };
            let restored = async {
                let pool = postgres::connect(&settings, "taskflow drill")?;
                let order =
                    dumps::Order { manifest: &manifest, into: "drill", url: &url, pool: &pool, only: None };
                let restored = dumps::restore(self.vault, self.identities, order, self.progress).await;
                pool.close().await;
                restored
            };
            let restored = restored.await;
            server.stop().await;
            restored
        };
        let tried = tried.await;
        discard(&folder).await;
        let checked = tried?.checked.join("; ");
        self.passed("postgres", vec![manifest], started, checked).await.map(Ok)
    }

    /// The audit trail, with every backup that its newest one needs. `seals` looks at what was restored, which has all up
    /// to a time, and from when its backup is, and says what it has found.
    pub async fn trail<F>(
        &self,
        seals: impl FnOnce(Database, Option<DateTime<Utc>>, DateTime<Utc>) -> F + Send,
    ) -> Result<Result<Outcome, String>>
    where
        F: Future<Output = Result<String>> + Send,
    {
        let Some(full) = self.vault.newest(Kind::MongoDb).await? else {
            return Ok(Err("there is no backup of MongoDB".to_owned()));
        };
        let later = self.vault.newest(Kind::MongoDbIncremental).await?;
        let newest = later.filter(|later| later.begun_at > full.begun_at).unwrap_or(full);
        let started = Instant::now();
        let folder = self.scratch("trail").await?;
        let tried = async {
            let mut server = self.server(ServerKind::MongoDb, &folder).await?;
            let settings = mongo::Settings { url: server.url().to_owned(), ..mongo::Settings::default() };
            let restored = async {
                let database = mongo::connect(&settings, "taskflow drill").await?;
                let database = refill::other_database(&database, "drill");
                let restored = documents::restore(
                    self.vault,
                    self.identities,
                    &newest.id,
                    &database,
                    None,
                    self.progress,
                );
                let mut restored = restored.await?;
                self.progress.begin("verify the audit trail's seals", 0);
                let said = seals(database, newest.position.through, newest.begun_at).await;
                restored.checked.push(said.map_err(|error| error.during(newest.id.clone()))?);
                Ok::<_, Error>(restored)
            };
            let restored = restored.await;
            server.stop().await;
            restored
        };
        let tried = tried.await;
        discard(&folder).await;
        let restored = tried?;
        let mut chain = Vec::new();
        for id in &restored.backups {
            chain.push(self.vault.read(id).await?);
        }
        self.passed("mongodb", chain, started, restored.checked.join("; ")).await.map(Ok)
    }

    async fn passed(
        &self,
        store: &'static str,
        backups: Vec<Manifest>,
        started: Instant,
        detail: String,
    ) -> Result<Outcome> {
        let took_s = started.elapsed().as_secs_f64();
        let proof = Proof { at: clock::now(), took_s, detail: detail.clone() };
        for backup in &backups {
            self.vault.prove(&backup.id, &proof).await?;
        }
        Ok(Outcome {
            store,
            bytes: backups.iter().map(Manifest::content_bytes).sum(),
            backups: backups.into_iter().map(|backup| backup.id).collect(),
            took_s,
            detail,
        })
    }

    /// An empty folder that servers' users reach.
    async fn scratch(&self, name: &str) -> Result<PathBuf> {
        let folder = self.folder.join(name);
        // What a drill that was killed has left, servers too.
        taskflow_servers::kill_left(&folder).await;
        discard(&folder).await;
        let open = |folder: &Path| {
            std::fs::create_dir_all(folder)?;
            std::fs::set_permissions(folder, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        };
        open(&self.folder)
            .and_then(|()| open(&folder))
            .map_err(|error| Error::io(folder.display(), &error))?;
        Ok(folder)
    }

    async fn server(&self, kind: ServerKind, folder: &Path) -> Result<Server> {
        let failed = |error: anyhow::Error| Error::failed(format!("start a scratch server: {error:#}"));
        let ports = Ports::free().map_err(failed)?;
        let options = Options { data_dir: folder.to_owned(), ports, vhosts: Vec::new(), preload: None };
        Server::start(kind, &options).await.map_err(failed)
    }
}

/// Of some tables, those that are not what the live ones are.
fn different(tables: &[String], live: &Sums, restored: &Sums) -> Vec<String> {
    let differs = tables.iter().filter(|table| live.get(*table) != restored.get(*table));
    differs
        .map(|table| {
            let rows = |sums: &Sums| sums.get(table).map_or(0, |(count, _)| *count);
            format!("{table} has {} rows, or others, and the live one has {}", rows(restored), rows(live))
        })
        .collect()
}

fn remove(folder: &Path) {
    if let Err(error) = std::fs::remove_dir_all(folder)
        && error.kind() != std::io::ErrorKind::NotFound
    {
        tracing::warn!(%error, folder = %folder.display(), "A drill's folder can't be removed.");
    }
}

/// Removes a folder with the servers in it.
async fn discard(folder: &Path) {
    if let Err(error) = taskflow_servers::discard(folder).await {
        tracing::debug!(%error, "A drill's folder is no servers' folder.");
    }
    remove(folder);
}
