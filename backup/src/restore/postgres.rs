//! A dump of Postgres back into a database.
//!
//! It is restored under another name and gets its own when everything was checked, so a restore that dies leaves nothing
//! that looks like a database of ours; the next one removes what is left.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use taskflow_stores::backoff::Backoff;
use taskflow_stores::postgres::{self, PgPool, backup as admin, restore_epochs as epochs};

use super::{Restored, space};
use crate::error::{Error, Result, Trouble};
use crate::keys::Identities;
use crate::manifest::{Kind, Manifest};
use crate::postgres::dump::{FILE, by_table};
use crate::postgres::programs::{Programs, Running, major};
use crate::progress::Progress;
use crate::read::FileReader;
use crate::vault::Vault;

/// What a database is called until it is whole.
const UNFINISHED: &str = "__restoring";
/// Who begins the epoch of a restore.
const AUTHOR: &str = "taskflow restore";
/// The longest name that Postgres has.
const NAME_MAX: usize = 63;

/// What to restore and where to.
pub struct Order<'o> {
    pub manifest: &'o Manifest,
    /// The new database's name.
    pub into: &'o str,
    /// `postgres.url`, of any database of the server.
    pub url: &'o str,
    pub pool: &'o PgPool,
    /// Only the rows of this table; the others are there and empty, and nothing holds rows to rows of others.
    pub only: Option<&'o str>,
}

/// Restores a dump into a new database of the server.
pub async fn restore(
    vault: &Vault,
    identities: &Identities,
    order: Order<'_>,
    progress: &Progress,
) -> Result<Restored> {
    let started = Instant::now();
    let Order { manifest, into, url, pool, only } = order;
    let programs = Programs::find(&vault.settings, url)?;
    let folder = check(vault, identities, &programs, manifest, pool, progress).await?;
    if let Some(table) = only
        && !manifest.sums.contains_key(table)
    {
        return Err(Error::refused(format!("{} has no table {table}", manifest.id)));
    }
    if into.is_empty() || into.len() + UNFINISHED.len() > NAME_MAX || into.contains('\0') {
        return Err(Error::refused(format!(
            "{into:?} is no name of a database; it has 1 to {} bytes",
            NAME_MAX - UNFINISHED.len()
        )));
    }
    if admin::has_database(pool, into).await? {
        return Err(Error::refused(format!(
            "there is a database {into} already; choose another name with --into"
        )));
    }
    let unfinished = format!("{into}{UNFINISHED}");
    make_empty(pool, &unfinished, progress).await?;
    taskflow_stores::crash::point("created");
    let filled = async {
        let fill = Fill { vault, identities, programs: &programs, database: &unfinished, manifest, progress };
        match only {
            None => fill.run(&[]).await?,
            Some(table) => {
                fill.run(&["--section=pre-data".to_owned()]).await?;
                fill.run(&["--data-only".to_owned(), format!("--table={table}")]).await?;
            }
        }
        taskflow_stores::crash::point("restored");
        examine(manifest, &admin::other_database(pool, &unfinished), only, progress).await
    };
    let filled = filled.await;
    let (counts, checked) = match filled {
        Ok(found) => found,
        Err(error) => {
            let error = match &folder {
                Some(folder) => space::explain(error, folder),
                None => error,
            };
            if let Err(left) = admin::drop_database(pool, &unfinished).await {
                return Err(error.during(format!(
                    "{unfinished} can't be removed now ({left}); the next restore does it"
                )));
            }
            return Err(error);
        }
    };
    if only.is_none() {
        let restored = admin::other_database(pool, &unfinished);
        let begun = begin_epoch(&restored).await;
        restored.close().await;
        begun?;
    }
    admin::rename_databases(pool, &[(&unfinished, into)]).await?;
    Ok(Restored {
        backups: vec![manifest.id.clone()],
        database: into.to_owned(),
        counts,
        checked,
        seals: None,
        took_s: started.elapsed().as_secs_f64(),
    })
}

/// Writes into a restored database that it is one: nobody works on it until the other stores agree.
pub(super) async fn begin_epoch(restored: &PgPool) -> Result<()> {
    // A backup of an old schema has no table for it.
    if epochs::is_known(restored).await? {
        epochs::begin(restored, AUTHOR).await?;
    }
    Ok(())
}

/// Everything that can be known before anything is written. Returns where the server's files are, if they are here.
async fn check(
    vault: &Vault,
    identities: &Identities,
    programs: &Programs,
    manifest: &Manifest,
    pool: &PgPool,
    progress: &Progress,
) -> Result<Option<PathBuf>> {
    if manifest.kind != Kind::Postgres {
        return Err(Error::refused(format!(
            "{} is a backup of {}, not a dump of Postgres",
            manifest.id, manifest.kind
        )));
    }
    must_know_schema("Postgres", manifest, postgres::migrate::newest())?;
    let server = postgres::version(pool).await?;
    programs.must_know(&server).await?;
    if major(&server) < major(&manifest.server) {
        return Err(Error::new(
            Trouble::Newer,
            format!(
                "{} was made by Postgres {}, this server is {server}: restore into that version or a later one",
                manifest.id, manifest.server
            ),
        ));
    }
    // The server's disk can be looked at only where the server is here.
    let folder = admin::data_directory(pool).await?.map(PathBuf::from).filter(|folder| folder.is_dir());
    if let Some(folder) = &folder {
        space::must_fit(folder, manifest.restored_bytes)?;
    }
    vault.verify(manifest, Some(identities), progress).await?;
    Ok(folder)
}

/// A schema that this program does not know would be served wrongly.
pub(crate) fn must_know_schema(store: &str, manifest: &Manifest, newest: i64) -> Result<()> {
    match manifest.schema {
        Some(schema) if schema > newest => Err(Error::new(
            Trouble::Newer,
            format!(
                "{} has version {schema} of {store}'s schema, written by taskflow {}; this program knows up to {newest}: \
                 restore with that version or a later one",
                manifest.id, manifest.program
            ),
        )),
        _ => Ok(()),
    }
}

/// One run of `pg_restore`.
struct Fill<'f> {
    vault: &'f Vault,
    identities: &'f Identities,
    programs: &'f Programs,
    database: &'f str,
    manifest: &'f Manifest,
    progress: &'f Progress,
}

impl Fill<'_> {
    async fn run(&self, more: &[String]) -> Result<()> {
        let (manifest, progress) = (self.manifest, self.progress);
        let file = manifest.files.iter().find(|file| file.path.starts_with(FILE));
        let file = file.ok_or_else(|| Error::damaged(format!("{} has no {FILE}", manifest.id)))?;
        progress.begin(format!("restore {}", manifest.id), file.content_bytes);
        let quoted = self.database.replace('\\', "\\\\").replace('\'', "\\'");
        let args = ["--no-owner", "--no-privileges", "--exit-on-error", "--no-password"].map(str::to_owned);
        let args = [args.as_slice(), more, &[format!("--dbname=dbname='{quoted}'")]].concat();
        let mut running = self.programs.start("pg_restore", &args)?;
        let mut stdin = running.stdin()?;
        // It prints nothing; whatever it did would fill its pipe.
        drop(running.stdout()?);
        let folder = Vault::folder(&manifest.id);
        let mut reader = FileReader::begin(&self.vault.place, &folder, file, self.identities);
        let fed = async {
            while let Some(piece) = reader.next().await? {
                progress.check()?;
                progress.add(piece.len() as u64);
                if !Running::feed(&mut stdin, &piece).await? {
                    break;
                }
            }
            Ok(())
        };
        let fed: Result<()> = fed.await;
        drop(stdin);
        fed?;
        running.finish().await.map(|_| ())
    }
}

/// Holds what was restored against the manifest.
async fn examine(
    manifest: &Manifest,
    pool: &PgPool,
    only: Option<&str>,
    progress: &Progress,
) -> Result<(std::collections::BTreeMap<String, u64>, Vec<String>)> {
    progress.begin("check what was restored", 0);
    let mut moment = admin::Moment::begin(pool).await?;
    let found = async {
        let (sums, facts, faults) = (moment.sums().await?, moment.facts().await?, moment.faults().await?);
        Ok::<_, Error>((by_table(sums), facts, faults))
    };
    let found = found.await;
    moment.end().await;
    let (sums, facts, mut faults) = found?;
    let meant = |table: &String| only.is_none_or(|only| only == table);
    for (table, sum) in manifest.sums.iter().filter(|one| meant(one.0)) {
        match sums.get(table) {
            None => faults.push(format!("table {table} is missing")),
            Some(found) if found.count != sum.count => {
                faults.push(format!("table {table} has {} rows and not {}", found.count, sum.count));
            }
            Some(found) if found != sum => faults.push(format!("table {table} has other rows")),
            Some(_) => {}
        }
    }
    if only.is_none_or(|only| only == "receipts") && facts.newest_receipt != manifest.position.newest_receipt
    {
        faults.push(format!(
            "the newest receipt is of {:?} and not of {:?}",
            facts.newest_receipt, manifest.position.newest_receipt
        ));
    }
    if !faults.is_empty() {
        return Err(Error::damaged(format!(
            "{}: what was restored is not what was saved: {}",
            manifest.id,
            faults.join("; ")
        )));
    }
    let rows: u64 = sums.values().map(|sum| sum.count).sum();
    let mut checked = vec![
        format!("{} files as their manifest says", manifest.files.len()),
        match only {
            None => {
                format!("{} tables with {rows} rows, the same by count and checksum", manifest.sums.len())
            }
            Some(table) => format!("the table {table} with {rows} rows, the same by count and checksum"),
        },
        match only {
            None => "every constraint and every index is valid".to_owned(),
            Some(_) => {
                "its rows alone: the other tables are empty, and no index, key or trigger was made".to_owned()
            }
        },
    ];
    if let Some(newest) = facts.newest_receipt {
        checked.push(format!("the newest receipt is of {}", newest.format("%Y-%m-%d %H:%M:%S%.3f UTC")));
    }
    Ok((sums.into_iter().map(|(table, sum)| (table, sum.count)).collect(), checked))
}

/// The server may need so long until it has made the database of a restore that was killed meanwhile.
const TRIES: u32 = 40;
const AGAIN: Duration = Duration::from_millis(250);

/// Makes an empty database, in the place of what a restore that died has left. The server may still be making the dead
/// one's when we come; then its name is taken, and a moment later it can be removed.
async fn make_empty(pool: &PgPool, name: &str, progress: &Progress) -> Result<()> {
    let mut backoff = Backoff::new(AGAIN, AGAIN);
    loop {
        admin::drop_database(pool, name).await?;
        match admin::create_database(pool, name).await {
            Err(error) if error.kind == taskflow_stores::Kind::Conflict && backoff.tries() < TRIES => {}
            made => return Ok(made?),
        }
        progress.wait(&mut backoff).await?;
    }
}
