//! The log of writes without a pause: `pg_receivewal` writes it into a folder here, and what is there is shipped to the
//! place of the backups.
//!
//! Why not `archive_command`: it is a setting of the server's, run by the server, on the server's disk; it hands over
//! whole files only, so an idle hour is an hour that could be lost; and a command that fails keeps the log without a
//! bound. A receiver needs nothing but a role with REPLICATION, and has each record within a second.
//!
//! A slot keeps the log on the server until it is *shipped*: it is advanced by us, and not by the receiver, which would
//! do so when the log is on this machine's disk. So the folder here may be lost at any moment; whoever takes over begins
//! with the slot. The slot is kept under watch: one that keeps too much is given up, since a full disk stops everything,
//! and a gap in the archive only asks for a new base backup.

use std::path::{Path, PathBuf};
use std::time::Duration;

use taskflow_core::backup::wal::{Lsn, Segment};
use taskflow_stores::backoff::Backoff;
use taskflow_stores::clock;
use taskflow_stores::postgres::PgPool;
use taskflow_stores::postgres::wal::{self, Place, Turn};
use tokio_util::sync::CancellationToken;

use super::archive::{Archive, PARTIAL, Reached};
use super::programs::{Programs, Running};
use crate::error::{Error, Result, Trouble};
use crate::vault::Vault;

/// Between two tries to take the turn or to begin anew; longer each time while that fails.
const AGAIN: Duration = Duration::from_secs(2);
const AGAIN_MAX: Duration = Duration::from_secs(30);
/// Looks at how far the receiver has got.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// The receiver says every second how far it is; one that is so much slower is broken.
const PATIENCE: Duration = Duration::from_secs(20);

/// What is told of the archive as it grows.
pub trait Tell: Send + Sync {
    /// Bytes of the log that the server keeps for us.
    fn kept(&self, bytes: u64);
}

/// Receives and ships until `stop`, whenever it is this process's turn.
pub async fn run(vault: &Vault, url: &str, pool: &PgPool, tell: &dyn Tell, stop: &CancellationToken) {
    let mut told: Option<String> = None;
    let fresh = || Backoff::new(AGAIN, AGAIN_MAX);
    let mut backoff = fresh();
    while !stop.is_cancelled() {
        match turn(vault, url, pool, tell, stop).await {
            Ok(()) => (told, backoff) = (None, fresh()),
            Err(error) => {
                // Once, not every two seconds.
                if told.as_ref() != Some(&error.text) {
                    tracing::warn!(%error, "The log of writes is not archived at the moment.");
                    told = Some(error.text);
                }
            }
        }
        backoff.wait(stop).await;
    }
}

async fn turn(
    vault: &Vault,
    url: &str,
    pool: &PgPool,
    tell: &dyn Tell,
    stop: &CancellationToken,
) -> Result<()> {
    let Some(mut turn) = Turn::take(pool).await? else { return Ok(()) };
    let mut received = receive(vault, url, pool, &mut turn, tell, stop).await;
    if received.is_err() {
        // Where nothing can be shipped, the slot keeps more and more: that is when it has to be watched.
        received = watch(vault, pool, tell).await.and(received);
    }
    turn.give_back().await;
    received
}

async fn receive(
    vault: &Vault,
    url: &str,
    pool: &PgPool,
    turn: &mut Turn,
    tell: &dyn Tell,
    stop: &CancellationToken,
) -> Result<()> {
    let settings = &vault.settings;
    let place = wal::place(pool).await?;
    let archive = Archive::of(vault, &place.system);
    let (restart, whole) = slot(vault, pool).await?;
    let before = archive.reached().await?.filter(|reached| whole && reached.lsn >= restart);
    let since = before.map_or(restart, |reached| reached.since);
    let begin = Segment::holding(place.timeline, restart, place.segment_bytes);
    let landing = Landing::make(&settings.work_dir(), &place.system, &begin.name(place.segment_bytes))?;
    let application = format!("taskflow_wal_{}", clock::new_id().simple());
    let programs = Programs::find(settings, url)?.called(&application);
    let directory = landing.folder.display().to_string();
    // Not under the slot: the receiver would advance it before anything is shipped.
    let args =
        ["--directory", &directory, "--no-loop", "--synchronous", "--status-interval=1", "--no-password"];
    let mut receiver = programs.start_guarded("pg_receivewal", &args.map(str::to_owned))?;
    tracing::info!(slot = settings.wal_slot, from = %restart, "The log of writes is archived from here on.");
    let work = Work { vault, pool, archive, landing: &landing, application: &application, since };
    loop {
        turn.holds().await?;
        let place = wal::place(pool).await?;
        work.wait(&place, &mut receiver).await?;
        work.ship(&place).await?;
        watch(vault, pool, tell).await?;
        tokio::select! {
            () = stop.cancelled() => break,
            () = tokio::time::sleep(Duration::from_millis(settings.wal_every_ms)) => {}
        }
    }
    // The last seconds too.
    let place = wal::place(pool).await?;
    work.wait(&place, &mut receiver).await?;
    work.ship(&place).await
}

/// Where the slot keeps the log from, and whether it has kept all of it.
async fn slot(vault: &Vault, pool: &PgPool) -> Result<(Lsn, bool)> {
    let name = &vault.settings.wal_slot;
    let parse = |lsn: &str| lsn.parse::<Lsn>().map_err(Error::failed);
    if let Some(slot) = wal::slot(pool, name).await? {
        match slot.restart.filter(|_| !slot.lost) {
            Some(restart) => return Ok((parse(&restart)?, true)),
            None => {
                tracing::warn!(
                    slot = name,
                    "The server has thrown away a part of the log; the archive begins anew."
                );
                wal::drop_slot(pool, name).await?;
            }
        }
    }
    wal::create_slot(pool, name).await?;
    let slot = wal::slot(pool, name).await?;
    let restart = slot
        .and_then(|slot| slot.restart)
        .ok_or_else(|| Error::failed("the new replication slot keeps nothing"))?;
    Ok((parse(&restart)?, false))
}

struct Work<'w> {
    vault: &'w Vault,
    pool: &'w PgPool,
    archive: Archive<'w>,
    landing: &'w Landing,
    application: &'w str,
    since: Lsn,
}

impl Work<'_> {
    /// Waits until the receiver has written everything up to a place.
    async fn wait(&self, place: &Place, receiver: &mut Running) -> Result<()> {
        let since = tokio::time::Instant::now();
        while !wal::has_received(self.pool, self.application, &place.lsn).await? {
            receiver.must_run().await?;
            if since.elapsed() > PATIENCE {
                return Err(Error::new(
                    Trouble::Away,
                    "pg_receivewal does not get on; does the role have REPLICATION and pg_monitor?",
                ));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        Ok(())
    }

    /// Ships what is in the folder, and says how far it goes.
    async fn ship(&self, place: &Place) -> Result<()> {
        let size = place.segment_bytes;
        let mut newest = None;
        // A file may become whole while we look: then it is looked at again.
        for _ in 0..3 {
            let names = self.landing.names()?;
            for name in names.iter().filter(|name| !name.ends_with(PARTIAL)) {
                let file = self.landing.folder.join(name);
                self.archive.ship(&file, name).await?;
                if let Some(segment) = Segment::from_name(name, size) {
                    self.archive.forget_partial(name).await?;
                    newest = newest.max(Some(segment.end(size)));
                }
                taskflow_stores::crash::point("wal_shipped");
                // Whoever begins anew has it from the slot, until that is advanced.
                std::fs::remove_file(&file).map_err(|error| Error::io(file.display(), &error))?;
            }
            let Some(partial) = names.iter().find(|name| name.ends_with(PARTIAL)) else { break };
            match self.archive.ship(&self.landing.folder.join(partial), partial).await {
                Err(error) if error.trouble == Trouble::Missing => {}
                shipped => {
                    shipped?;
                    break;
                }
            }
        }
        let reached = Reached {
            lsn: place.lsn.parse().map_err(Error::failed)?,
            at: place.at,
            timeline: place.timeline,
            segment_bytes: size,
            since: self.since,
        };
        self.archive.set_reached(&reached).await?;
        if let Some(end) = newest {
            wal::advance_slot(self.pool, &self.vault.settings.wal_slot, &end.to_string()).await?;
        }
        Ok(())
    }
}

/// Keeps an eye on what the server keeps for us.
async fn watch(vault: &Vault, pool: &PgPool, tell: &dyn Tell) -> Result<()> {
    let settings = &vault.settings;
    let slot = wal::slot(pool, &settings.wal_slot).await?;
    let behind = slot.map_or(0, |slot| slot.behind).max(0).unsigned_abs();
    tell.kept(behind);
    if behind > settings.wal_behind_max_bytes {
        wal::drop_slot(pool, &settings.wal_slot).await?;
        return Err(Error::failed(format!(
            "the slot {} kept {} MiB of the log, more than backup.wal_behind_max_bytes, and was given up; a new base \
             backup is needed, which the scheduler asks for by itself",
            settings.wal_slot,
            behind >> 20
        )));
    }
    Ok(())
}

/// The folder that the receiver writes into. It may be lost at any moment.
struct Landing {
    folder: PathBuf,
}

impl Landing {
    /// Makes the folder, in which the receiver finds where to begin: it goes on with the newest piece it sees.
    fn make(work: &Path, system: &str, begin: &str) -> Result<Self> {
        let folder = work.join(format!("wal-{system}"));
        let failed = |error: std::io::Error| Error::io(folder.display(), &error);
        if folder.exists() {
            // Whoever has the turn has the folder; what is in it is shipped already, or kept by the slot.
            std::fs::remove_dir_all(&folder).map_err(failed)?;
        }
        std::fs::create_dir_all(work).map_err(failed)?;
        let mut make = std::fs::DirBuilder::new();
        std::os::unix::fs::DirBuilderExt::mode(&mut make, 0o700);
        make.create(&folder).map_err(failed)?;
        std::fs::File::create(folder.join(format!("{begin}{PARTIAL}"))).map_err(failed)?;
        Ok(Self { folder })
    }

    /// What is in it, the oldest first.
    fn names(&self) -> Result<Vec<String>> {
        let failed = |error: std::io::Error| Error::io(self.folder.display(), &error);
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.folder).map_err(failed)? {
            names.extend(entry.map_err(failed)?.file_name().into_string().ok());
        }
        names.sort();
        Ok(names)
    }
}

impl Drop for Landing {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}
