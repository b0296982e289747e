//! Disks that get full in the middle of a restore: said in words, nothing half looks whole, and with room again the same
//! restore gets through. Takes root.

use std::path::Path;
use std::process::{Output, Stdio};

use anyhow::{Context, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use taskflow_servers::Kind;
use taskflow_tests::backups::{Backups, documents, has_database, must_be_alike, own, rows, text};
use taskflow_tests::world::Sync;
use taskflow_tests::{Cluster, Result, Site, World, disk, wait};

use crate::PROGRAM;
use crate::faults::backups::filled;

/// Runs a restore whose disk gets full when it has come to a step; how it ended.
pub(super) async fn fill_at(step: &str, full: &Path, backups: &Backups<'_>, args: &[&str]) -> Result<Output> {
    let point = format!("stop:{step}:1");
    let env = [backups.env().as_slice(), &[("TASKFLOW_CRASH_AT", point.as_str())]].concat();
    let mut command = backups.cluster.command(args, &env);
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let restore = command.spawn()?;
    let pid = restore.id().context("it has ended")?;
    let status = format!("/proc/{pid}/status");
    wait::until("it has come to the step", async || {
        let status = std::fs::read_to_string(&status)?;
        ensure!(!status.contains("State:\tZ"), "it ended before {step}");
        Ok(status.contains("State:\tT"))
    })
    .await?;
    disk::fill(full)?;
    kill(Pid::from_raw(pid.cast_signed()), Signal::SIGCONT)?;
    Ok(restore.wait_with_output().await?)
}

pub(super) async fn run() -> Result {
    if !disk::possible() {
        return Ok(());
    }
    let world = World::start_on(&[Kind::Postgres, Kind::MongoDb], Sync::Skipped).await?;
    let tried = Box::pin(all(&world)).await;
    world.stop().await;
    tried
}

async fn all(world: &World) -> Result {
    let site = Site::new(world).await?;
    filled(&site).await?;
    // More than Postgres has laid by.
    site.sql(
        "CREATE TABLE marks AS SELECT n, (SELECT string_agg(md5(random()::text), '') FROM generate_series(1, 20000)) AS filler
         FROM generate_series(1, 60) AS n",
    )
    .await?;
    let cluster = Cluster::new(&site, PROGRAM)?;
    let backups = Backups::new(&cluster);
    postgres(world, &site, &backups).await?;
    mongodb(world, &site, &backups).await
}

async fn postgres(world: &World, site: &Site, backups: &Backups<'_>) -> Result {
    let dump = backups.create("postgres").await?;
    let into = format!("{}_full", own(site));
    let args = ["restore", &dump, "--into", &into];
    let folder = world.folder_of(Kind::Postgres);
    let ended = fill_at("created", &folder, backups, &args).await?;
    let said = text(&ended);
    ensure!(!ended.status.success() && said.contains("MiB free by now: make room"), "{said}");
    make_room(world, Kind::Postgres, &folder).await?;
    ensure!(!has_database(site, &into).await?, "half a database bears the name: {said}");
    backups.ask(&args).await?;
    ensure!(!has_database(site, &format!("{into}__restoring")).await?, "half a database is left");
    must_be_alike(&rows(site, &own(site)).await?, &rows(site, &into).await?)
}

async fn mongodb(world: &World, site: &Site, backups: &Backups<'_>) -> Result {
    let trail = backups.create("mongodb").await?;
    let into = format!("{}_full", own(site));
    let args = ["restore", &trail, "--into", &into];
    let folder = world.folder_of(Kind::MongoDb);
    let ended = fill_at("refilled", &folder, backups, &args).await?;
    println!("{}", text(&ended));
    make_room(world, Kind::MongoDb, &folder).await?;
    if !ended.status.success() {
        backups.ask(&args).await?;
    }
    must_be_alike(&documents(site, &own(site)).await?, &documents(site, &into).await?)
}

/// A server that met a full disk may have stopped itself; whoever makes room starts it anew.
async fn make_room(world: &World, kind: Kind, folder: &Path) -> Result {
    disk::clear(folder)?;
    let mut servers = world.servers.lock().await;
    let server = match kind {
        Kind::Postgres => &mut servers.postgres,
        _ => &mut servers.mongodb,
    };
    server.kill().await;
    server.restart().await
}
