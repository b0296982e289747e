//! Base backups and the log behind them, made as the shipped roles make them and encrypted: damaged, pruned, killed, onto a
//! full disk. And a replication slot that is given up.

use std::path::Path;
use std::time::Instant;

use anyhow::{Context, ensure};
use taskflow_stores::postgres::PgPool;
use taskflow_tests::backups::{Backups, own, recovery_point, text, write_key};
use taskflow_tests::dice::Dice;
use taskflow_tests::world::Sync;
use taskflow_tests::{Cluster, Result, Site, World, disk, free_address, wait};

use super::full::fill_at;
use super::{Folder, archived, now, reached, start, until_archived};
use crate::PROGRAM;
use crate::faults::backups::{At, die, whole};

pub(super) async fn run() -> Result {
    let world = World::start(Sync::Skipped).await?;
    let tried = Box::pin(all(&world)).await;
    world.stop().await;
    tried
}

async fn all(world: &World) -> Result {
    let mut site = Site::new(world).await?;
    let folder = Folder::new()?;
    site.sql("CREATE TABLE marks (n BIGINT PRIMARY KEY, filler TEXT)").await?;
    let url = as_upkeep(&site).await?;
    site.env.push(("TASKFLOW_POSTGRES__URL".to_owned(), url));
    let (key, other) = (folder.0.join("key"), folder.0.join("other"));
    let (recipient, _) = (write_key(&key)?, write_key(&other)?);
    let cluster = Cluster::new(&site, PROGRAM)?;
    let backups = archived(&cluster, &folder.0)
        .with("RECIPIENTS", &format!("[\"{recipient}\"]"))
        .with("IDENTITY_PATH", &key.display().to_string())
        .with("KEEP__BASES", "1");
    let scheduler = cluster.spawn("scheduler", &backups.env())?;
    wait::until("the log is archived", async || Ok(reached(&backups).is_ok())).await?;
    // The whole backup too, not as a superuser.
    backups.create("postgres").await?;
    let first = backups.create("postgres-base").await?;
    let mut rows = Rows { site: &site, count: 0 };
    rows.more(6).await?;
    until_archived(&backups, now(&site).await?).await?;
    damaged(&backups, &folder.0, &first, &other).await?;
    full_disk(&backups, &folder.0, &rows).await?;
    pruned(&backups, &folder.0, &first, &mut rows).await?;
    killed(&backups, &folder.0, &rows).await?;
    scheduler.stop().await
}

pub(super) async fn slot() -> Result {
    let world = World::start(Sync::Skipped).await?;
    let tried = Box::pin(without_room(&world)).await;
    world.stop().await;
    tried
}

async fn without_room(world: &World) -> Result {
    let mut site = Site::new(world).await?;
    let folder = Folder::new()?;
    site.sql("CREATE TABLE marks (n BIGINT PRIMARY KEY, filler TEXT)").await?;
    let url = as_upkeep(&site).await?;
    site.env.push(("TASKFLOW_POSTGRES__URL".to_owned(), url));
    let cluster = Cluster::new(&site, PROGRAM)?;
    let address = free_address()?;
    let backups = archived(&cluster, &folder.0);
    let env = backups.env();
    let listen = ("TASKFLOW_METRICS__LISTEN", address.as_str());
    let scheduler = cluster.spawn("scheduler", &[env.as_slice(), &[listen]].concat())?;
    wait::until("the log is archived", async || Ok(reached(&backups).is_ok())).await?;
    // What is asked for by itself is looked at later.
    wait::until("no base backup is made by itself", async || {
        let paused = cluster.run(&["jobs", "pause", BASE_JOB, "--reason", "a test"], &[]).await?;
        ensure!(paused.status.success(), "{}", text(&paused));
        Ok(true)
    })
    .await?;
    // A log alone brings nothing back.
    let point = looked_at(&backups, &address).await?;
    ensure!(point.is_infinite(), "{point} s would be lost, and there is no backup at all");
    let dumped = Instant::now();
    backups.create("postgres").await?;
    backups.create("postgres-base").await?;
    let point = looked_at(&backups, &address).await?;
    ensure!((0.0..60.0).contains(&point), "{point} s would be lost");
    scheduler.stop().await?;
    let mut rows = Rows { site: &site, count: 0 };
    given_up(&cluster, &backups, &folder.0, &mut rows, &address, dumped).await
}

const BASE_JOB: &str = "backup.postgres.base";

/// How much would be lost, by a scheduler that has just looked.
async fn looked_at(backups: &Backups<'_>, address: &str) -> Result<f64> {
    let done = backups.ask(&["jobs", "run", "report.stores"]).await?;
    ensure!(done["state"] == "completed", "{done}");
    recovery_point(address, "postgres").await
}

/// How a login of the scheduler's role reaches the database, with what docs/recovery.md asks for beside the role.
async fn as_upkeep(site: &Site) -> Result<String> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().context("no root")?;
    site.sql(&std::fs::read_to_string(root.join("ops/roles/postgres.sql"))?).await?;
    site.sql("CREATE ROLE upkeep LOGIN REPLICATION PASSWORD 'x' IN ROLE taskflow_scheduler").await?;
    let may =
        "SELECT count(*) WHERE has_function_privilege('upkeep', 'pg_create_restore_point(text)', 'EXECUTE')";
    ensure!(site.count(may).await? == 1, "the role may not note restore points");
    let options = site.postgres.connect_options();
    Ok(format!("postgres://upkeep:x@{}:{}/{}", options.get_host(), options.get_port(), own(site)))
}

/// Rows of some megabytes each, so that files of the log go by.
struct Rows<'s> {
    site: &'s Site,
    count: i64,
}

impl Rows<'_> {
    async fn more(&mut self, count: i64) -> Result {
        for _ in 0..count {
            self.count += 1;
            sqlx::query("INSERT INTO marks SELECT $1, string_agg(md5(random()::text), '') FROM generate_series(1, 250000)")
                .bind(self.count)
                .execute(&self.site.postgres)
                .await?;
        }
        Ok(())
    }

    /// Restored, they are all there.
    async fn must_be_in(&self, data: &Path, folder: &Path) -> Result {
        let (server, pool, _) = start(data, folder, &own(self.site)).await?;
        let found = count(&pool).await;
        pool.close().await;
        server.stop().await;
        let found = found?;
        ensure!(found == self.count, "{found} rows of {} in {}", self.count, data.display());
        Ok(())
    }
}

async fn count(pool: &PgPool) -> Result<i64> {
    Ok(sqlx::query_scalar("SELECT count(*) FROM marks").fetch_one(pool).await?)
}

/// Each is an error that names the file, and nothing is restored.
async fn damaged(backups: &Backups<'_>, folder: &Path, base: &str, other: &Path) -> Result {
    let data = folder.join("damaged");
    let to = data.display().to_string();
    let file = "base.tar.zst.age";
    let path = backups.path(base).join(file);
    let good = std::fs::read(&path)?;
    let refuse = async |more: &[&str], word: &str| -> Result {
        let (code, said) = backups.refused(&[&["restore", "--data", &to], more].concat(), &[]).await?;
        ensure!(code == Some(1) && said.contains(file) && said.contains(word), "{word}: {code:?} {said}");
        ensure!(!data.exists(), "{word}: something was restored");
        Ok(())
    };
    let mut flipped = good.clone();
    let middle = flipped.len() / 2;
    flipped[middle] ^= 16;
    std::fs::write(&path, flipped)?;
    refuse(&[], "SHA-256").await?;
    std::fs::write(&path, &good[..good.len() - 7])?;
    refuse(&[], "cut off").await?;
    std::fs::remove_file(&path)?;
    refuse(&[], "is not there").await?;
    std::fs::write(&path, &good)?;
    refuse(&["--identity", &other.display().to_string()], "none of the identities").await
}

/// A destination without room: said before anything is written; one that gets full meanwhile: the restore may be made
/// again. Takes root.
async fn full_disk(backups: &Backups<'_>, folder: &Path, rows: &Rows<'_>) -> Result {
    if !nix::unistd::Uid::effective().is_root() {
        return Ok(());
    }
    let full = folder.join("full");
    std::fs::create_dir(&full)?;
    let run = async |program: &str, args: &[&str]| -> Result {
        let ended = tokio::process::Command::new(program).args(args).arg(&full).status().await?;
        ensure!(ended.success(), "{program} {args:?}");
        Ok(())
    };
    let mount = async |size: &str| {
        run("mount", &["-t", "tmpfs", "-o", &format!("size={size},mode=0777"), "tmpfs"]).await
    };
    mount("16m").await?;
    let data = full.join("data");
    let refused = backups.refused(&["restore", "--data", &data.display().to_string()], &[]).await;
    let left = std::fs::read_dir(&data).map_or(0, Iterator::count);
    run("umount", &["--lazy"]).await?;
    let (code, said) = refused?;
    ensure!(code == Some(1) && said.contains("MiB free"), "{code:?} {said}");
    ensure!(left == 0, "{left} files of a restore that has no room");
    mount("600m").await?;
    let tried = filled_up(backups, &full, folder, rows).await;
    run("umount", &["--lazy"]).await?;
    tried
}

async fn filled_up(backups: &Backups<'_>, full: &Path, folder: &Path, rows: &Rows<'_>) -> Result {
    let data = full.join("data");
    let to = data.display().to_string();
    let args = ["restore", "--data", &to];
    let ended = fill_at("unpacked", full, backups, &args).await?;
    let said = text(&ended);
    ensure!(!ended.status.success() && said.contains("MiB free by now: make room"), "{said}");
    disk::clear(full)?;
    backups.ask(&args).await?;
    rows.must_be_in(&data, folder).await
}

/// The log before the oldest base backup goes, and what is left leads from there to the end.
async fn pruned(backups: &Backups<'_>, folder: &Path, first: &str, rows: &mut Rows<'_>) -> Result {
    let wal = std::fs::read_dir(backups.folder.join("wal"))?.next().context("no archive")??.path();
    let files = || -> Result<usize> { Ok(std::fs::read_dir(&wal)?.count()) };
    let second = backups.create("postgres-base").await?;
    rows.more(2).await?;
    until_archived(backups, now(rows.site).await?).await?;
    let before = files()?;
    let done = backups.ask(&["backup", "prune"]).await?;
    let removed = done["removed"].to_string();
    ensure!(removed.contains(first) && removed.contains("files of the log of writes"), "{done}");
    ensure!(!removed.contains(&second) && files()? < before, "{done}: {before} files before");
    let data = folder.join("pruned");
    let restored = backups.ask(&["restore", "--data", &data.display().to_string()]).await?;
    ensure!(restored[0]["backups"] == serde_json::json!([second]), "{restored}");
    rows.must_be_in(&data, folder).await
}

/// Base backups and restores that are killed at any time.
async fn killed(backups: &Backups<'_>, folder: &Path, rows: &Rows<'_>) -> Result {
    let mut dice = Dice::new(3);
    let mut good = whole(backups).await?.len();
    let create = ["backup", "create", "postgres-base"];
    let after = |dice: &mut Dice, most: u64| At::After(100 + dice.below(most));
    for at in [At::Step("backup_sealing"), after(&mut dice, 1_500), after(&mut dice, 1_500)] {
        let died = die(backups, &create, at).await?;
        let now = whole(backups).await?.len();
        ensure!(now == good || (now == good + 1 && !matches!(at, At::Step(_))), "{now} backups after {good}");
        ensure!(died || now == good + 1, "it said that it is done");
        good = now;
    }
    let data = folder.join("killed");
    let args = ["restore", "--data", &data.display().to_string()];
    for at in [At::Step("unpacked"), At::Step("replayed"), after(&mut dice, 900), after(&mut dice, 2_500)] {
        // What is half there says so, and begins anew.
        if !die(backups, &args, at).await? {
            rows.must_be_in(&data, folder).await?;
            std::fs::remove_dir_all(&data)?;
        }
    }
    if data.join("taskflow_restore_is_not_done").exists()
        || !data.exists()
        || std::fs::read_dir(&data)?.next().is_none()
    {
        backups.ask(&args).await?;
    }
    rows.must_be_in(&data, folder).await
}

/// While the destination is away the slot keeps the log, up to a bound. Then it is given up, and the archive begins anew.
async fn given_up(
    cluster: &Cluster<'_>,
    backups: &Backups<'_>,
    folder: &Path,
    rows: &mut Rows<'_>,
    address: &str,
    dumped: Instant,
) -> Result {
    let site = rows.site;
    let slot = "SELECT restart_lsn::text FROM pg_replication_slots WHERE slot_name = 'taskflow_wal'";
    let before: String = sqlx::query_scalar(slot).fetch_one(&site.postgres).await?;
    let (wal, aside) = (backups.folder.join("wal"), backups.folder.join("aside"));
    std::fs::rename(&wal, &aside)?;
    std::fs::write(&wal, "no folder")?;
    let env = backups.env();
    let more = [("TASKFLOW_BACKUP__WAL_BEHIND_MAX_BYTES", "30000000"), ("TASKFLOW_METRICS__LISTEN", address)];
    let scheduler = cluster.spawn("scheduler", &[env.as_slice(), &more].concat())?;
    rows.more(8).await?;
    // A new slot keeps the log from the last checkpoint on.
    site.sql("CHECKPOINT").await?;
    let moved = format!(
        "SELECT count(*) FROM pg_replication_slots WHERE slot_name = 'taskflow_wal'
         AND restart_lsn > '{before}'::pg_lsn + 30000000"
    );
    wait::until("the slot is given up and made anew", async || Ok(site.count(&moved).await? == 1)).await?;
    std::fs::remove_file(&wal)?;
    std::fs::rename(&aside, &wal)?;
    until_archived(backups, now(site).await?).await?;
    // The log between has gone: the base backup from before leads nowhere new, and that is said.
    let data = folder.join("gap");
    let (code, said) = backups.refused(&["restore", "--data", &data.display().to_string()], &[]).await?;
    ensure!(code == Some(1) && said.contains("lacks"), "{code:?} {said}");
    ensure!(!data.exists(), "something was restored");
    // The log flows, and nothing can be had from it: what the dump holds is all there is.
    let since = dumped.elapsed().as_secs_f64();
    let point = looked_at(backups, address).await?;
    ensure!(
        point > since - 10.0 && point < since + 60.0,
        "{point} s would be lost, the dump is {since} s old"
    );
    let bases = async || -> Result<usize> {
        let listed = backups.ask(&["backup", "list", "--kind", "postgres-base"]).await?;
        // One that is not whole yet is listed too.
        let whole = |row: &&serde_json::Value| row["state"] != "not whole";
        Ok(listed.as_array().into_iter().flatten().filter(whole).count())
    };
    ensure!(bases().await? == 1, "a job that is paused has run");
    let resumed = cluster.run(&["jobs", "resume", BASE_JOB], &[]).await?;
    ensure!(resumed.status.success(), "{}", text(&resumed));
    // A base backup comes by itself.
    wait::until("the log can be used again", async || {
        Ok(bases().await? == 2 && looked_at(backups, address).await? + 5.0 < dumped.elapsed().as_secs_f64())
    })
    .await?;
    rows.more(1).await?;
    until_archived(backups, now(site).await?).await?;
    let data = folder.join("anew");
    backups.ask(&["restore", "--data", &data.display().to_string()]).await?;
    rows.must_be_in(&data, folder).await?;
    scheduler.stop().await
}
