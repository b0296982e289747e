//! The archived log of writes, through kills and damage.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use chrono::SecondsFormat;
use taskflow_stores::clock;
use taskflow_tests::backups::{Backups, own};
use taskflow_tests::dice::Dice;
use taskflow_tests::world::Sync;
use taskflow_tests::{Cluster, Result, Site, World, wait};

use super::{Folder, archived, now, reached, reached_at, start, until_archived};
use crate::PROGRAM;

/// Schedulers killed at any moment while the log flows: what is archived has no gap, and leads to the end.
pub(super) async fn killed() -> Result {
    let world = World::start(Sync::Skipped).await?;
    let tried = Box::pin(through_kills(&world)).await;
    world.stop().await;
    tried
}

async fn through_kills(world: &World) -> Result {
    let site = Site::new(world).await?;
    let folder = Folder::new()?;
    let cluster = Cluster::new(&site, PROGRAM)?;
    let backups = archived(&cluster, &folder.0);
    let mut dice = Dice::new(5);
    site.sql("CREATE TABLE marks (n BIGINT PRIMARY KEY, filler TEXT)").await?;
    let scheduler = cluster.spawn("scheduler", &backups.env())?;
    wait::until("the log is archived", async || Ok(reached(&backups).is_ok())).await?;
    backups.create("postgres-base").await?;
    scheduler.kill().await?;
    let mut rows: i64 = 0;
    let mut middle = None;
    for round in 0..5 {
        let env = backups.env();
        let crash = ("TASKFLOW_CRASH_AT", "wal_shipped:1");
        let env = if round % 2 == 0 { [env.as_slice(), &[crash]].concat() } else { env };
        let mut scheduler = cluster.spawn("scheduler", &env)?;
        // Some megabytes each, so that whole files of the log go by.
        for _ in 0..3 {
            rows += 1;
            sqlx::query("INSERT INTO marks SELECT $1, string_agg(md5(random()::text), '') FROM generate_series(1, 250000)")
                .bind(rows)
                .execute(&site.postgres)
                .await?;
        }
        if round == 1 {
            middle = Some((now(&site).await?, rows));
        }
        if round % 2 == 0 {
            scheduler.ended().await?;
        } else {
            tokio::time::sleep(Duration::from_millis(500 + dice.below(2_000))).await;
            scheduler.kill().await?;
        }
    }
    let scheduler = cluster.spawn("scheduler", &backups.env())?;
    let stale = outrun(&site, &backups, &mut rows).await?;
    scheduler.stop().await?;
    let data = folder.0.join("data");
    breaks_off(&site, &backups, &folder.0, &stale).await?;
    backups.ask(&["restore", "--data", &data.display().to_string()]).await?;
    let (server, pool, _) = start(&data, &folder.0, &own(&site)).await?;
    let found: i64 = sqlx::query_scalar("SELECT count(*) FROM marks").fetch_one(&pool).await?;
    ensure!(found == rows, "{found} rows of {rows}");
    pool.close().await;
    server.stop().await;
    let system = archive_of(&backups)?;
    // When a file came to its place tells nothing of what it holds: it may be a copy.
    for file in std::fs::read_dir(&system)?.flatten() {
        let later = std::time::SystemTime::from(clock::now()) + Duration::from_secs(86_400);
        std::fs::File::options().write(true).open(file.path())?.set_modified(later)?;
    }
    let (at, rows_then) = middle.context("no moment in the middle")?;
    let at = at.to_rfc3339_opts(SecondsFormat::Micros, true);
    let data = folder.0.join("middle");
    backups.ask(&["restore", "--data", &data.display().to_string(), "--to", &at]).await?;
    let (server, pool, _) = start(&data, &folder.0, &own(&site)).await?;
    let found: i64 = sqlx::query_scalar("SELECT count(*) FROM marks").fetch_one(&pool).await?;
    ensure!(found == rows_then, "{found} rows of the {rows_then} that were there at {at}");
    pool.close().await;
    server.stop().await;
    // The newest file that is missing leaves a gap like any other.
    let mut all: Vec<PathBuf> = std::fs::read_dir(&system)?.flatten().map(|entry| entry.path()).collect();
    all.retain(|file| file.file_name().is_some_and(|name| name != "position.json"));
    all.sort();
    let newest = all.pop().context("no file")?;
    let aside = folder.0.join("aside");
    std::fs::rename(&newest, &aside)?;
    let data = folder.0.join("short").display().to_string();
    let (code, said) = backups.refused(&["restore", "--data", &data], &[]).await?;
    ensure!(code == Some(1) && said.contains("lacks"), "{} is missing: {said}", newest.display());
    ensure!(!Path::new(&data).exists(), "something was restored");
    std::fs::copy(&aside, &newest)?;
    // A file of the log that is missing is a gap, and that is said before anything is written.
    let mut files: Vec<PathBuf> = std::fs::read_dir(&system)?.flatten().map(|entry| entry.path()).collect();
    files.retain(|file| file.file_name().is_some_and(|name| name.len() == 28));
    files.sort();
    let middle = &files[files.len() - 2];
    let bytes = std::fs::read(middle)?;
    let data = folder.0.join("gap").display().to_string();
    std::fs::remove_file(middle)?;
    let (code, said) = backups.refused(&["restore", "--data", &data], &[]).await?;
    ensure!(code == Some(1) && said.contains("lacks"), "{said}");
    ensure!(!Path::new(&data).exists(), "something was restored");
    // One that is damaged is named.
    let mut flipped = bytes;
    let half = flipped.len() / 2;
    flipped[half] ^= 1;
    std::fs::write(middle, flipped)?;
    let (code, said) = backups.refused(&["restore", "--data", &data], &[]).await?;
    let name = middle.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    ensure!(code == Some(1) && said.contains(name), "{said}");
    ensure!(!Path::new(&data).exists(), "something was restored");
    // What lies before it can still be reached.
    let data = folder.0.join("before");
    backups.ask(&["restore", "--data", &data.display().to_string(), "--to", &at]).await?;
    Ok(())
}

/// The folder of the only cluster whose log is archived.
fn archive_of(backups: &Backups<'_>) -> Result<PathBuf> {
    Ok(std::fs::read_dir(backups.folder.join("wal"))?.next().context("no archive")??.path())
}

/// The archive's newest piece, as it was before the last row came.
struct Stale {
    piece: PathBuf,
    bytes: Vec<u8>,
}

/// Writes a row, and keeps the newest piece of before.
async fn outrun(site: &Site, backups: &Backups<'_>, rows: &mut i64) -> Result<Stale> {
    loop {
        until_archived(backups, now(site).await?).await?;
        let mut pieces: Vec<PathBuf> =
            std::fs::read_dir(archive_of(backups)?)?.flatten().map(|entry| entry.path()).collect();
        pieces.retain(|file| file.to_string_lossy().contains(".partial"));
        pieces.sort();
        let Some(piece) = pieces.pop() else { continue };
        let Ok(bytes) = std::fs::read(&piece) else { continue };
        *rows += 1;
        sqlx::query("INSERT INTO marks VALUES ($1)").bind(*rows).execute(&site.postgres).await?;
        until_archived(backups, now(site).await?).await?;
        if piece.exists() && std::fs::read(&piece)? != bytes {
            return Ok(Stale { piece, bytes });
        }
    }
}

/// An archive that claims more than it has, as a copy does whose newest piece was left behind: Postgres is content with
/// what it finds, and the restore must not be. As far as the log goes, and to a moment behind the last commit, which
/// comes to the same.
async fn breaks_off(site: &Site, backups: &Backups<'_>, folder: &Path, stale: &Stale) -> Result {
    let good = std::fs::read(&stale.piece)?;
    let last = reached_at(backups)?.to_rfc3339_opts(SecondsFormat::Micros, true);
    let data = folder.join("broken");
    let to = data.display().to_string();
    for more in [&[][..], &["--to", last.as_str()]] {
        let args = [&["restore", "--data", &to], more].concat();
        std::fs::write(&stale.piece, &stale.bytes)?;
        let (code, said) = backups.refused(&args, &[]).await?;
        ensure!(code == Some(1) && said.contains("breaks off at"), "{more:?}: {said}");
        let lsn = reached(backups)?["lsn"].as_str().context("no place")?.to_owned();
        ensure!(said.contains(&lsn), "{more:?}: it does not name {lsn}: {said}");
        // With what belongs there the same command gets through.
        std::fs::write(&stale.piece, &good)?;
        backups.ask(&args).await?;
        let (server, pool, _) = start(&data, folder, &own(site)).await?;
        let found: i64 = sqlx::query_scalar("SELECT count(*) FROM marks").fetch_one(&pool).await?;
        let rows: i64 = sqlx::query_scalar("SELECT count(*) FROM marks").fetch_one(&site.postgres).await?;
        ensure!(found == rows, "{more:?}: {found} rows of {rows}");
        pool.close().await;
        server.stop().await;
        std::fs::remove_dir_all(&data)?;
    }
    Ok(())
}
