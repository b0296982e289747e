//! A cluster that was restored to a moment once, and archives on into the same folder: what it has abandoned is never
//! restored, whichever base backup is there.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use chrono::SecondsFormat;
use taskflow_stores::postgres::PgPool;
use taskflow_tests::backups::{Backups, own, text};
use taskflow_tests::world::Sync;
use taskflow_tests::{Cluster, Result, Site, World, wait};

use super::{Folder, archived, now, reached, start, until_archived};
use crate::PROGRAM;

pub(super) async fn run() -> Result {
    let world = World::start(Sync::Skipped).await?;
    let tried = Box::pin(all(&world)).await;
    world.stop().await;
    tried
}

async fn all(world: &World) -> Result {
    let site = Site::new(world).await?;
    let folder = Folder::new()?;
    let cluster = Cluster::new(&site, PROGRAM)?;
    cluster.write_settings("[scheduler.jobs.\"backup.postgres.base\"]\nenabled = false\n")?;
    let backups = archived(&cluster, &folder.0);
    site.sql("CREATE TABLE marks (n BIGINT PRIMARY KEY)").await?;
    let scheduler = cluster.spawn("scheduler", &backups.env())?;
    wait::until("the log is archived", async || Ok(reached(&backups).is_ok())).await?;
    let first = backups.create("postgres-base").await?;
    site.sql("INSERT INTO marks VALUES (1)").await?;
    let moment = now(&site).await?.to_rfc3339_opts(SecondsFormat::Micros, true);
    // From here on it is abandoned, a base backup with it.
    site.sql("INSERT INTO marks VALUES (2)").await?;
    let abandoned = backups.create("postgres-base").await?;
    site.sql("SELECT pg_switch_wal()").await?;
    site.sql("INSERT INTO marks VALUES (3)").await?;
    until_archived(&backups, now(&site).await?).await?;
    scheduler.stop().await?;

    let back = folder.0.join("back");
    backups.ask(&["restore", "--data", &back.display().to_string(), "--to", &moment]).await?;
    let (server, pool, url) = start(&back, &folder.0, &own(&site)).await?;
    goes_on(&backups, &pool, server.socket(), &url).await?;
    let marks = marks_in(&backups, &site, &folder.0, &["restore"], "newest").await?;
    ensure!(marks == (first.clone(), vec![1, 100]), "{marks:?}");
    let nowhere = folder.0.join("nowhere");
    let to = nowhere.display().to_string();
    let (code, said) = backups.refused(&["restore", &abandoned, "--data", &to], &[]).await?;
    ensure!(code == Some(2) && said.contains("timeline 1"), "{code:?} {said}");
    // Without the file that tells of it nobody can know, and nothing is restored.
    let history = history(&backups)?;
    let aside = folder.0.join("aside");
    std::fs::rename(&history, &aside)?;
    let (code, said) = backups.refused(&["restore", &first, "--data", &to], &[]).await?;
    ensure!(code == Some(1) && said.contains("00000002.history"), "{code:?} {said}");
    ensure!(!nowhere.exists(), "something was restored");
    std::fs::rename(&aside, &history)?;
    // A cluster that was archived later, and has no base backup: another one's data is not what is newest.
    let mut later = reached(&backups)?;
    later["at"] = "2100-01-01T00:00:00Z".into();
    let other = backups.folder.join("wal/42");
    std::fs::create_dir(&other)?;
    std::fs::write(other.join("position.json"), later.to_string())?;
    let (code, said) = backups.refused(&["restore", "--data", &to], &[]).await?;
    ensure!(
        code == Some(1) && said.contains("the cluster 42") && said.contains("name it"),
        "{code:?} {said}"
    );
    ensure!(!nowhere.exists(), "something was restored");
    pool.close().await;
    server.stop().await;
    Ok(())
}

/// The restored cluster is the live one now: it gets a row, and its log comes into the same archive.
async fn goes_on(backups: &Backups<'_>, pool: &PgPool, socket: &Path, url: &str) -> Result {
    let rules = socket.join("hba");
    let all = std::fs::read_to_string(&rules)?;
    std::fs::write(&rules, format!("{all}local replication all trust\n"))?;
    sqlx::query("SELECT pg_reload_conf()").execute(pool).await?;
    let env = [backups.env().as_slice(), &[("TASKFLOW_POSTGRES__URL", url)]].concat();
    // Who worked at that moment has a lease there, which ends.
    wait::until("the stores agree", async || {
        let agreed = backups.cluster.run(&["restore", "--agree"], &env).await?;
        let said = text(&agreed);
        ensure!(agreed.status.success() || said.contains("somebody works"), "{said}");
        Ok(agreed.status.success())
    })
    .await?;
    let scheduler = backups.cluster.spawn("scheduler", &env)?;
    sqlx::query("INSERT INTO marks VALUES (100)").execute(pool).await?;
    let at = sqlx::query_scalar("SELECT clock_timestamp()").fetch_one(pool).await?;
    until_archived(backups, at).await?;
    ensure!(reached(backups)?["timeline"] == 2, "{}", reached(backups)?);
    scheduler.stop().await
}

/// Restores, and tells which base backup was taken and which rows are there.
async fn marks_in(
    backups: &Backups<'_>,
    site: &Site,
    folder: &Path,
    args: &[&str],
    name: &str,
) -> Result<(String, Vec<i64>)> {
    let data = folder.join(name);
    let restored = backups.ask(&[args, &["--data", &data.display().to_string()]].concat()).await?;
    let base = restored[0]["backups"][0].as_str().context("no base backup")?.to_owned();
    let (server, pool, _) = start(&data, folder, &own(site)).await?;
    let marks = sqlx::query_scalar("SELECT n FROM marks ORDER BY n").fetch_all(&pool).await?;
    pool.close().await;
    server.stop().await;
    Ok((base, marks))
}

/// The file that tells where the first timeline was left.
fn history(backups: &Backups<'_>) -> Result<PathBuf> {
    let system = std::fs::read_dir(backups.folder.join("wal"))?.next().context("no archive")??.path();
    let mut files = std::fs::read_dir(system)?.flatten().map(|entry| entry.path());
    files.find(|file| file.to_string_lossy().contains("00000002.history")).context("no history is archived")
}
