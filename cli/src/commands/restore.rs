//! `taskflow restore`: backups back into new places, checked before and after; a cluster to a point in time; and the
//! stores brought to agree after Postgres has gone back.

mod replay;
mod seals;

use std::path::PathBuf;
use std::process::ExitCode;

use chrono::{DateTime, Utc};
use serde_json::json;
use taskflow_backup::keys::Identities;
use taskflow_backup::restore::agree::{self, Difference};
use taskflow_backup::restore::cluster::{self, Target};
use taskflow_backup::restore::{
    Restored, history as backup_history, live, mongo as documents, postgres as dumps,
};
use taskflow_backup::{Error, Kind, Vault};
use taskflow_stores::mongo::refill;
use taskflow_stores::postgres::{backup, receipts, wal};
use taskflow_stores::{clock, mongo, postgres, redis};
use uuid::Uuid;

use self::seals::Pair;
use super::backup::bar::Bar;
use crate::exit::Exit;
use crate::settings::Settings;

const NAME: &str = "taskflow restore";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Backups to restore [default: the newest whole ones of Postgres and MongoDB]
    ids: Vec<String>,
    /// The new databases' name [default: today's with the time behind it]
    #[arg(long, value_name = "NAME", conflicts_with = "data")]
    into: Option<String>,
    /// Only this collection of MongoDB
    #[arg(long, value_name = "NAME", conflicts_with = "data")]
    collection: Option<String>,
    /// Only this table of Postgres; the others are there and empty, without constraints
    #[arg(long, value_name = "NAME", conflicts_with_all = ["data", "collection"])]
    table: Option<String>,
    /// Print the events of this task or user, out of a backup of MongoDB; nothing is restored
    #[arg(long, value_name = "ID", conflicts_with_all = ["data", "into", "collection", "table"])]
    history: Option<Uuid>,
    /// Put the backup in the place of the live store, after a backup of that; nobody may work meanwhile
    #[arg(long, requires = "replace", conflicts_with_all = ["data", "into", "collection", "table", "history"])]
    over_live: bool,
    /// With --over-live: the live database's name, said once more
    #[arg(long, value_name = "DATABASE", requires = "over_live")]
    replace: Option<String>,
    /// File with the age identity that opens the backups [default: backup.identity_path]
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// Restore Postgres's whole cluster into this folder, from a base backup and the log of writes
    #[arg(long, value_name = "FOLDER")]
    data: Option<PathBuf>,
    /// With --data: everything that was committed up to this time (RFC 3339), and nothing later [default: all there is]
    #[arg(long, value_name = "TIME", requires = "data")]
    to: Option<DateTime<Utc>>,
    /// With --data: everything before this command took effect
    #[arg(long, value_name = "COMMAND", requires = "data", conflicts_with = "to")]
    before: Option<Uuid>,
    /// With --data: up to a restore point of this name (`migrate` and `--over-live` note one and say it); name a base backup before it
    #[arg(long, value_name = "NAME", requires = "data", conflicts_with_all = ["to", "before"])]
    to_point: Option<String>,
    /// Bring MongoDB and Redis to agree with Postgres, after it was restored to an earlier state: the stores that the
    /// settings name now, in which nobody may work meanwhile
    #[arg(long, conflicts_with_all = ["ids", "data", "into", "collection", "table", "history", "over_live"])]
    agree: bool,
    /// Send every command of the journal again that was taken from this time on (RFC 3339); the receipts that are there
    /// make that harmless
    #[arg(long, value_name = "TIME", conflicts_with_all = ["ids", "data", "into", "collection", "table", "history", "over_live", "agree"])]
    replay: Option<DateTime<Utc>>,
    /// With --agree or --over-live: who does this [default: the system's user]
    #[arg(long = "as", value_name = "NAME", conflicts_with_all = ["data", "into", "collection", "table", "history", "replay"])]
    author: Option<String>,
}

/// `taskflow restore`.
pub(crate) async fn run(options: Options, settings: &Settings, json: bool) -> Result<ExitCode, Exit> {
    if options.agree {
        return agree(options.author, settings, json).await;
    }
    let vault = Vault::open(&settings.backup)?;
    let identities = match &options.identity {
        Some(file) => Identities::from_file(file)?,
        None => vault.identities()?,
    };
    if let Some(from) = options.replay {
        return replay::run(&vault, &identities, from, settings, json).await;
    }
    if let Some(entity) = options.history {
        return history(&vault, &identities, &options, entity, json).await;
    }
    if options.over_live {
        return over_live(&vault, &identities, &options, settings, json).await;
    }
    let bar = Bar::start(json);
    let mut done = Vec::new();
    if options.data.is_some() {
        done.push(to_a_point(&vault, &identities, &options, settings, &bar).await?);
    } else {
        let ids = if options.ids.is_empty() { newest(&vault).await? } else { options.ids.clone() };
        let mut pair = Pair::default();
        for id in &ids {
            done.push(one(&vault, &identities, id, &options, settings, &bar, &mut pair).await?);
        }
        bar.progress().begin("verify the audit trail's seals", 0);
        let is_part = options.collection.is_some() || options.table.is_some();
        let seals = if is_part { seals::of_a_part() } else { pair.verify(settings).await };
        if let Some(last) = done.last_mut() {
            last.seals = Some(seals);
        }
    }
    done.iter().for_each(|restored| bar.say(&told(restored)));
    bar.end();
    if json {
        println!("{}", json!(done));
    } else if options.data.is_some() {
        println!(
            "Nothing uses it yet. Start postgres on it, set postgres.url to it, then `taskflow restore --agree`."
        );
    } else {
        println!(
            "Nothing uses it yet. Set postgres.url and mongodb.url to it, then `taskflow restore --agree`."
        );
    }
    Ok(seals::code(&done))
}

async fn newest(vault: &Vault) -> Result<Vec<String>, Exit> {
    let dump = vault.newest(Kind::Postgres).await?.ok_or_else(|| none(vault, Kind::Postgres))?;
    Ok(vec![dump.id, newest_trail(vault).await?])
}

/// The newest backup of MongoDB; one of a chain brings the rest of it along.
async fn newest_trail(vault: &Vault) -> Result<String, Exit> {
    let full = vault.newest(Kind::MongoDb).await?.ok_or_else(|| none(vault, Kind::MongoDb))?;
    let later = vault.newest(Kind::MongoDbIncremental).await?.filter(|later| full.begun_at < later.begun_at);
    Ok(later.unwrap_or(full).id)
}

fn none(vault: &Vault, kind: Kind) -> Exit {
    Exit::failed(format!("there is no whole backup of {kind} in {}", vault.place.name()))
}

async fn one(
    vault: &Vault,
    identities: &Identities,
    id: &str,
    options: &Options,
    settings: &Settings,
    bar: &Bar,
    pair: &mut Pair,
) -> Result<Restored, Exit> {
    let manifest = vault.read(id).await?;
    let name = || format!("{}_{}", manifest.database, clock::now().format("%Y%m%d_%H%M%S"));
    let into = options.into.clone().unwrap_or_else(name);
    match manifest.kind {
        Kind::Postgres => {
            let pool = postgres::connect(&settings.postgres, NAME)?;
            let order = dumps::Order {
                manifest: &manifest,
                into: &into,
                url: &settings.postgres.url,
                pool: &pool,
                only: options.table.as_deref(),
            };
            let restored = dumps::restore(vault, identities, order, bar.progress()).await?;
            pair.postgres = Some(backup::other_database(&pool, &into));
            Ok(restored)
        }
        Kind::MongoDb | Kind::MongoDbIncremental => {
            let database = mongo::connect(&settings.mongodb, NAME).await?;
            let target = refill::other_database(&database, &into);
            let only = options.collection.as_deref();
            let restored = documents::restore(vault, identities, id, &target, only, bar.progress()).await?;
            (pair.mongo, pair.through) = (Some(target), manifest.position.through);
            Ok(restored)
        }
        Kind::PostgresBase => Err(Error::refused(format!(
            "{id} is a base backup: name a new folder for its cluster with --data"
        ))
        .into()),
        Kind::Redis => Err(Error::refused(manifest.restore.join("; ")).into()),
    }
}

/// A whole cluster, to a point in time.
async fn to_a_point(
    vault: &Vault,
    identities: &Identities,
    options: &Options,
    settings: &Settings,
    bar: &Bar,
) -> Result<Restored, Exit> {
    let pool = postgres::connect(&settings.postgres, NAME)?;
    let target = match (options.to, options.before) {
        _ if options.to_point.is_some() => Target::Point(options.to_point.clone().unwrap_or_default()),
        (Some(at), _) => Target::Time(at),
        (None, Some(command)) => {
            let unknown = || {
                Exit::failed(format!("{command} has no receipt in Postgres; name a time with --to instead"))
            };
            let transaction = wal::transaction_of(&pool, command).await?.ok_or_else(unknown)?;
            let receipt = receipts::read_many(&pool, &[command]).await?.into_iter().next();
            Target::Before { transaction, not_before: receipt.and_then(|receipt| receipt.finishedat) }
        }
        (None, None) => Target::Newest,
    };
    let data = options.data.clone().unwrap_or_default();
    let data = std::path::absolute(&data)
        .map_err(|error| Exit::usage(format!("--data {}: {error}", data.display())))?;
    let base = match options.ids.as_slice() {
        [] => None,
        [id] => Some(id.as_str()),
        _ => return Err(Exit::usage("--data takes one base backup, or none")),
    };
    let login = pool.connect_options();
    let order = cluster::Order {
        base,
        target,
        data: &data,
        user: login.get_username(),
        database: login.get_database().unwrap_or_else(|| login.get_username()),
    };
    let running = cluster::recover(vault, identities, order, bar.progress()).await?;
    // While it runs: nobody else reaches it.
    bar.progress().begin("verify the audit trail's seals", 0);
    let pair = Pair { postgres: Some(running.pool.clone()), ..Pair::default() };
    let seals = pair.verify(settings).await;
    let mut restored = cluster::finish(running, bar.progress()).await?;
    restored.seals = Some(seals);
    Ok(restored)
}

/// Prints one entity's events.
async fn history(
    vault: &Vault,
    identities: &Identities,
    options: &Options,
    entity: Uuid,
    json: bool,
) -> Result<ExitCode, Exit> {
    let id = match options.ids.as_slice() {
        [] => newest_trail(vault).await?,
        [id] => id.clone(),
        _ => return Err(Exit::usage("--history takes one backup of MongoDB, or none")),
    };
    let bar = Bar::start(json);
    let events = backup_history::read(vault, identities, &id, entity, bar.progress()).await?;
    bar.end();
    if json {
        println!("{}", json!({ "backup": id, "events": events }));
    } else {
        events.iter().for_each(|event| println!("{event}"));
        eprintln!("{} events of {entity} in {id}", events.len());
    }
    Ok(ExitCode::SUCCESS)
}

/// Backups in the place of what is live.
async fn over_live(
    vault: &Vault,
    identities: &Identities,
    options: &Options,
    settings: &Settings,
    json: bool,
) -> Result<ExitCode, Exit> {
    if options.ids.is_empty() {
        return Err(Exit::usage("--over-live takes the id of a backup: `taskflow backup list`"));
    }
    let pool = postgres::connect(&settings.postgres, NAME)?;
    let database = mongo::connect(&settings.mongodb, NAME).await?;
    let author = options.author.clone().unwrap_or_else(super::pause::system_user);
    let live = live::Live { postgres: &pool, url: &settings.postgres.url, mongo: &database, author: &author };
    let said = options.replace.as_deref().unwrap_or_default();
    let bar = Bar::start(json);
    let mut done = Vec::new();
    for id in &options.ids {
        let manifest = vault.read(id).await?;
        let name = match manifest.kind {
            Kind::Postgres => pool.connect_options().get_database().unwrap_or_default().to_owned(),
            _ => database.name().to_owned(),
        };
        if name != said {
            return Err(Exit::usage(format!(
                "{id} would replace the database {name}; say --replace {name} if you mean it"
            )));
        }
        let mut replaced = live::replace(vault, identities, &manifest, &live, bar.progress()).await?;
        bar.progress().begin("verify the audit trail's seals", 0);
        let through = manifest.position.through.filter(|_| manifest.kind != Kind::Postgres);
        // The sessions of before ended with the rename.
        let pair = Pair { through, ..Pair::default() };
        replaced.restored.seals = Some(pair.verify(settings).await);
        bar.say(&format!("what was live is saved as {}", replaced.saved));
        if let Some(old) = &replaced.old {
            bar.say(&format!("the old database is called {old}; remove it when you are sure"));
        }
        if let Some(point) = &replaced.restore_point {
            bar.say(&format!("the place before it in Postgres's log is the restore point {point}"));
        }
        bar.say(&told(&replaced.restored));
        done.push(replaced);
    }
    bar.end();
    if json {
        println!("{}", json!(done));
    } else {
        println!("Now bring the stores to agree, before anybody works: `taskflow restore --agree`.");
    }
    Ok(seals::code(done.iter().map(|replaced| &replaced.restored)))
}

async fn agree(author: Option<String>, settings: &Settings, json: bool) -> Result<ExitCode, Exit> {
    let (postgres, mongo) =
        (postgres::connect(&settings.postgres, NAME)?, mongo::connect(&settings.mongodb, NAME).await?);
    let redis = redis::connect(&settings.redis)?;
    let stores = agree::Stores { postgres: &postgres, mongo: &mongo, redis: &redis };
    let author = author.unwrap_or_else(super::pause::system_user);
    let bar = Bar::start(json);
    let difference = agree::agree(&stores, &author, bar.progress()).await?;
    bar.end();
    if json {
        println!("{}", json!(difference));
    } else {
        print_difference(&difference);
    }
    Ok(ExitCode::SUCCESS)
}

fn print_difference(difference: &Difference) {
    let point = difference
        .point
        .map_or_else(|| "none".to_owned(), |at| at.format("%Y-%m-%d %H:%M:%S%.3f UTC").to_string());
    println!("restore epoch {}: the newest receipt is of {point}", difference.epoch);
    println!(
        "{} events are marked and kept apart: those of {} commands that were undone, and of what was done to the system since",
        difference.undone_events, difference.undone_commands
    );
    difference.undone.iter().for_each(|id| println!("    undone {id}"));
    println!("{} events are missing in MongoDB", difference.missing_events);
    difference.missing.iter().for_each(|id| println!("    missing events of {id}"));
    if difference.erased_again > 0 {
        println!(
            "{} events are erased again: their data came back with MongoDB's backup",
            difference.erased_again
        );
    }
    match difference.keys_removed {
        Some(keys) => println!("{keys} keys of Redis are removed"),
        None => println!(
            "Redis is a cluster: if you have not emptied each of its masters (FLUSHDB) before this, stop every role, and \
             do it now"
        ),
    }
}

fn told(restored: &Restored) -> String {
    let counts: u64 = restored.counts.values().sum();
    let mut text = format!(
        "{} is restored as {} ({counts} rows or documents, {:.1} s)",
        restored.backups.last().map_or("", String::as_str),
        restored.database,
        restored.took_s
    );
    for line in &restored.checked {
        text.push_str("\n    checked: ");
        text.push_str(line);
    }
    for line in restored.seals.iter().flat_map(seals::told) {
        text.push_str("\n    ");
        text.push_str(&line);
    }
    text
}
