//! A dump of the database: `pg_dump` in its custom format, at one moment, with the checksums of all tables at that moment.

use std::collections::BTreeMap;

use chrono::{DateTime, Utc};
use taskflow_core::backup::wal::Lsn;
use taskflow_stores::postgres::PgPool;
use taskflow_stores::postgres::backup::{Facts as Database, Moment, Sums};

use super::programs::Programs;
use crate::draft::{Draft, Facts};
use crate::error::{Error, Result};
use crate::manifest::{Kind, Manifest, Position, Sum};
use crate::progress::Progress;
use crate::settings::Compression;
use crate::vault::Vault;

/// The dump's name, before its endings.
pub const FILE: &str = "database.dump";
/// Roles and the like, which belong to no database.
pub const GLOBALS: &str = "globals.sql";

/// Makes a backup of Postgres.
pub async fn create(vault: &Vault, url: &str, pool: &PgPool, progress: &Progress) -> Result<Manifest> {
    let programs = Programs::find(&vault.settings, url)?;
    let mut moment = Moment::begin(pool).await?;
    let snapshot = moment.export().await?;
    let database = moment.facts().await?;
    programs.must_know(&database.server).await?;
    let mut draft = Draft::begin(vault, Kind::Postgres, progress);
    progress.begin(format!("dump {}", database.database), database.bytes.unsigned_abs());
    let made = tokio::select! {
        made = make(&mut draft, &programs, &mut moment, &snapshot) => made,
        () = progress.stopped() => progress.check().map(|()| (Sums::new(), Vec::new())),
    };
    moment.end().await;
    match made {
        Ok((sums, notes)) => {
            let facts = facts(vault, &database, sums, notes, &draft.id);
            draft.finish(facts).await
        }
        Err(error) => {
            draft.discard().await;
            Err(error)
        }
    }
}

async fn make(
    draft: &mut Draft<'_>,
    programs: &Programs,
    moment: &mut Moment,
    snapshot: &str,
) -> Result<(Sums, Vec<String>)> {
    let dump = async {
        let args = [
            "--format=custom".to_owned(),
            // We compress better, and what is compressed already can't be compressed again.
            "--compress=0".to_owned(),
            "--lock-wait-timeout=10000".to_owned(),
            "--no-password".to_owned(),
            format!("--snapshot={snapshot}"),
        ];
        let mut running = programs.start("pg_dump", &args)?;
        let mut stdout = running.stdout()?;
        let streamed = draft.stream(FILE, Compression::Zstd, &mut stdout).await;
        drop(stdout);
        // A program that failed has ended its output early: what it says is the cause.
        let ended = running.finish().await;
        streamed?;
        ended?;
        let mut notes = Vec::new();
        let args = ["--globals-only", "--no-role-passwords", "--no-password"].map(str::to_owned);
        match programs.start("pg_dumpall", &args)?.text().await {
            Ok(text) => draft.bytes(GLOBALS, Compression::Zstd, text.into_bytes()).await?,
            Err(error) if error.may_pass() => return Err(error),
            Err(error) => notes.push(format!("roles are not in it: {error}")),
        }
        Ok(notes)
    };
    let sums = async { moment.sums().await.map_err(Error::from) };
    let (notes, sums) = tokio::try_join!(dump, sums)?;
    Ok((sums, notes))
}

fn facts(vault: &Vault, database: &Database, sums: Sums, notes: Vec<String>, id: &str) -> Facts {
    Facts {
        server: database.server.clone(),
        schema: database.schema,
        database: database.database.clone(),
        position: position(database),
        needs: Vec::new(),
        sums: by_table(sums),
        restored_bytes: database.bytes.unsigned_abs(),
        notes,
        restore: how(vault, id),
    }
}

/// What the manifest says of a moment.
pub(crate) fn position(database: &Database) -> Position {
    Position {
        from: Some(database.at),
        through: Some(database.at),
        exact: true,
        lsn: database.lsn.as_deref().and_then(|lsn| lsn.parse::<Lsn>().ok()),
        system: database.system.clone(),
        newest_receipt: database.newest_receipt,
        ..Position::default()
    }
}

pub(crate) fn by_table(sums: Sums) -> BTreeMap<String, Sum> {
    sums.into_iter().map(|(table, (count, sum))| (table, Sum { count: count.unsigned_abs(), sum })).collect()
}

fn how(vault: &Vault, id: &str) -> Vec<String> {
    let open = if vault.recipients.is_empty() { "" } else { "age -d -i IDENTITY database.dump.zst.age | " };
    let from = if vault.recipients.is_empty() { " database.dump.zst" } else { "" };
    vec![
        format!("taskflow restore {id}"),
        format!(
            "or without it: createdb taskflow_restored; {open}zstd -dc{from} | pg_restore --no-owner --no-privileges \
             --exit-on-error -d taskflow_restored"
        ),
    ]
}

/// Seconds that a backup is behind: how much would be lost if its server were gone now.
pub fn behind(manifest: &Manifest, now: DateTime<Utc>) -> f64 {
    let through = manifest.position.through.unwrap_or(manifest.begun_at);
    (now - through).num_milliseconds().max(0) as f64 / 1_000.0
}
