//! Backups of a test: a folder for them, the program's answers, and databases compared row by row.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Output;

use anyhow::{Context, Result, bail, ensure};
use futures_util::TryStreamExt;
use mongodb::bson::{Document, doc};
use serde_json::Value;
use sqlx::PgConnection;

use crate::{Cluster, Site};

/// A folder for a test's backups.
pub struct Backups<'c> {
    pub cluster: &'c Cluster<'c>,
    pub folder: PathBuf,
    env: Vec<(String, String)>,
}

impl<'c> Backups<'c> {
    pub fn new(cluster: &'c Cluster<'c>) -> Self {
        let folder = cluster.folder().join("backups");
        let env = vec![("TASKFLOW_BACKUP__DESTINATION".to_owned(), folder.display().to_string())];
        Self { cluster, folder, env }
    }

    /// The same in another folder.
    #[must_use]
    pub fn at(mut self, folder: &std::path::Path) -> Self {
        folder.clone_into(&mut self.folder);
        self.env = vec![("TASKFLOW_BACKUP__DESTINATION".to_owned(), folder.display().to_string())];
        self
    }

    /// One more setting.
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.env.push((format!("TASKFLOW_BACKUP__{name}"), value.to_owned()));
        self
    }

    pub fn env(&self) -> Vec<(&str, &str)> {
        self.env.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect()
    }

    pub async fn run(&self, args: &[&str], more: &[(&str, &str)]) -> Result<Output> {
        self.cluster.run(args, &[self.env().as_slice(), more].concat()).await
    }

    /// Runs a command that must succeed; its answer as JSON.
    pub async fn ask(&self, args: &[&str]) -> Result<Value> {
        let args = [args, &["--json"]].concat();
        let output = self.run(&args, &[]).await?;
        ensure!(output.status.success(), "{args:?}: {}", text(&output));
        serde_json::from_slice(&output.stdout).with_context(|| format!("{args:?}: {}", text(&output)))
    }

    /// Runs a command that must fail; the code and what it says.
    pub async fn refused(&self, args: &[&str], more: &[(&str, &str)]) -> Result<(Option<i32>, String)> {
        let output = self.run(args, more).await?;
        ensure!(!output.status.success(), "{args:?} succeeded: {}", text(&output));
        Ok((output.status.code(), text(&output)))
    }

    /// Makes one backup; its id.
    pub async fn create(&self, kind: &str) -> Result<String> {
        let made = self.ask(&["backup", "create", kind]).await?;
        let id = made["backups"][0]["id"].as_str();
        Ok(id.with_context(|| format!("no backup was made: {made}"))?.to_owned())
    }

    pub fn path(&self, id: &str) -> PathBuf {
        self.folder.join("backups").join(id)
    }
}

/// Writes an age key into a file; returns whose it is.
pub fn write_key(file: &std::path::Path) -> Result<String> {
    use age::secrecy::ExposeSecret;
    let identity = age::x25519::Identity::generate();
    std::fs::write(file, format!("# a key of a test\n{}\n", identity.to_string().expose_secret()))?;
    Ok(identity.to_public().to_string())
}

pub fn text(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What a scheduler shows of a store at its metrics: how many seconds of data would be lost.
pub async fn recovery_point(address: &str, store: &str) -> Result<f64> {
    let shown = reqwest::get(format!("http://{address}/metrics")).await?.text().await?;
    let series = format!("taskflow_recovery_point_seconds{{store=\"{store}\"}} ");
    let value = shown.lines().find_map(|line| line.strip_prefix(&series));
    Ok(value.with_context(|| format!("no {series}"))?.parse()?)
}

/// Every row of every table, as text, in order.
pub async fn rows(site: &Site, database: &str) -> Result<BTreeMap<String, Vec<String>>> {
    let options = site.postgres.connect_options().as_ref().clone().database(database);
    rows_of(&mut taskflow_stores::postgres::connect_alone(&options).await?).await
}

/// The same of any connection.
pub async fn rows_of(connection: &mut PgConnection) -> Result<BTreeMap<String, Vec<String>>> {
    let tables: Vec<String> =
        sqlx::query_scalar("SELECT tablename::text FROM pg_tables WHERE schemaname = 'public'")
            .fetch_all(&mut *connection)
            .await?;
    let mut all = BTreeMap::new();
    for table in tables {
        // That it was restored, and does not agree with the others yet.
        let wanted = if table == "restore_epochs" { "WHERE ended_at IS NOT NULL" } else { "" };
        let statement = format!("SELECT t::text FROM \"{table}\" t {wanted} ORDER BY 1");
        let rows = sqlx::query_scalar(sqlx::AssertSqlSafe(statement)).fetch_all(&mut *connection).await?;
        all.insert(table, rows);
    }
    Ok(all)
}

/// Every document of every collection, in the order of its id; but for that it was restored.
pub async fn documents(site: &Site, database: &str) -> Result<BTreeMap<String, Vec<Document>>> {
    let database = site.mongo.client().database(database);
    let mut all = BTreeMap::new();
    for name in database.list_collection_names().await? {
        let found = database.collection::<Document>(&name).find(doc! {}).sort(doc! { "_id": 1 }).await?;
        let mut found: Vec<Document> = found.try_collect().await?;
        found.retain(|document| !document.get_str("_id").is_ok_and(|id| id == "restored"));
        if name != "taskflow_restore" || !found.is_empty() {
            all.insert(name, found);
        }
    }
    Ok(all)
}

/// The names of a collection's indexes.
pub async fn indexes(site: &Site, database: &str, collection: &str) -> Result<Vec<String>> {
    let collection = site.mongo.client().database(database).collection::<Document>(collection);
    let mut names = collection.list_index_names().await?;
    names.sort();
    Ok(names)
}

/// Says which part differs, if one does.
pub fn must_be_alike<T: PartialEq + std::fmt::Debug>(
    one: &BTreeMap<String, Vec<T>>,
    other: &BTreeMap<String, Vec<T>>,
) -> Result<()> {
    ensure!(one.keys().eq(other.keys()), "{:?} and {:?}", one.keys(), other.keys());
    for (name, rows) in one {
        let theirs = &other[name];
        if rows != theirs {
            let first = rows.iter().zip(theirs).find(|(a, b)| a != b);
            bail!(
                "{name} differs: {} and {} rows, the first that differs: {first:?}",
                rows.len(),
                theirs.len()
            );
        }
    }
    Ok(())
}

/// Whether the server has a database.
pub async fn has_database(site: &Site, name: &str) -> Result<bool> {
    Ok(site.count(&format!("SELECT count(*) FROM pg_database WHERE datname = '{name}'")).await? == 1)
}

/// The name of the site's own database.
pub fn own(site: &Site) -> String {
    site.mongo.name().to_owned()
}

/// Holds a dump and a backup of MongoDB that were made under load and restored beside each other against one another;
/// returns how many receipts had their events before MongoDB was read.
pub async fn must_agree(backups: &Backups<'_>, site: &Site, trail: &str, into: &str) -> Result<usize> {
    // Postgres is one moment: each task has the version that its receipts have left.
    let options = site.postgres.connect_options().as_ref().clone().database(into);
    let mut connection = taskflow_stores::postgres::connect_alone(&options).await?;
    let torn: i64 = sqlx::query_scalar(
        "SELECT count(*) FROM (SELECT subject, max(version) AS v FROM receipts WHERE version IS NOT NULL GROUP BY subject) r
         LEFT JOIN tasks t ON t.id = r.subject WHERE t.version IS DISTINCT FROM r.v",
    )
    .fetch_one(&mut connection)
    .await?;
    ensure!(torn == 0, "{torn} tasks do not agree with their receipts");
    // Every event of a receipt that was settled before MongoDB was read is there, and none twice.
    let shown = backups.ask(&["backup", "show", trail]).await?;
    let through = shown["manifest"]["position"]["through"].as_str().context("no position")?.to_owned();
    let settled: Vec<(uuid::Uuid, i16)> =
        sqlx::query_as("SELECT id, events FROM receipts WHERE finished_at < $1::timestamptz AND events > 0")
            .bind(&through)
            .fetch_all(&mut connection)
            .await?;
    let events = &documents(site, into).await?["event_logs"];
    let mut counts = std::collections::HashMap::<&str, i16>::new();
    for event in events {
        *counts.entry(event.get_str("commandId")?).or_default() += 1;
    }
    for (id, expected) in &settled {
        let found = counts.get(id.to_string().as_str()).copied().unwrap_or(0);
        ensure!(found == *expected, "{found} events of {id} and not {expected}");
    }
    Ok(settled.len())
}
