//! `taskflow restore`: backups back into new places, checked before and after.

use std::path::PathBuf;
use std::process::ExitCode;

use serde_json::json;
use taskflow_backup::keys::Identities;
use taskflow_backup::restore::{Restored, mongo as documents, postgres as dumps};
use taskflow_backup::{Error, Kind, Vault};
use taskflow_stores::mongo::refill;
use taskflow_stores::{clock, mongo, postgres};

use super::backup::bar::Bar;
use crate::exit::Exit;
use crate::settings::Settings;

const NAME: &str = "taskflow restore";

#[derive(clap::Args)]
pub(crate) struct Options {
    /// Backups to restore [default: the newest whole ones of Postgres and MongoDB]
    ids: Vec<String>,
    /// The new databases' name [default: today's with the time behind it]
    #[arg(long, value_name = "NAME")]
    into: Option<String>,
    /// Only this collection of MongoDB
    #[arg(long, value_name = "NAME")]
    collection: Option<String>,
    /// File with the age identity that opens the backups [default: backup.identity_file]
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
}

/// `taskflow restore`.
pub(crate) async fn run(options: Options, settings: &Settings, json: bool) -> Result<ExitCode, Exit> {
    let vault = Vault::open(&settings.backup)?;
    let identities = match &options.identity {
        Some(file) => Identities::from_file(file)?,
        None => vault.identities()?,
    };
    let ids = if options.ids.is_empty() { newest(&vault).await? } else { options.ids.clone() };
    let bar = Bar::start(json);
    let mut done = Vec::new();
    for id in &ids {
        let restored = one(&vault, &identities, id, &options, settings, &bar).await?;
        bar.say(&told(&restored));
        done.push(restored);
    }
    bar.end();
    if json {
        println!("{}", json!(done));
    } else {
        println!(
            "Nothing uses it yet. To go on with it, set postgres.url and mongodb.url to it (docs/recovery.md)."
        );
    }
    Ok(ExitCode::SUCCESS)
}

async fn newest(vault: &Vault) -> Result<Vec<String>, Exit> {
    let mut ids = Vec::new();
    for kind in [Kind::Postgres, Kind::MongoDb] {
        // The newest of a chain brings the rest of it along.
        let mut newest = vault.newest(kind).await?;
        if kind == Kind::MongoDb
            && let Some(later) = vault.newest(Kind::MongoDbIncremental).await?
            && newest.as_ref().is_some_and(|full| full.begun_at < later.begun_at)
        {
            newest = Some(later);
        }
        let missing =
            || Exit::failed(format!("there is no whole backup of {kind} in {}", vault.place.name()));
        ids.push(newest.ok_or_else(missing)?.id);
    }
    Ok(ids)
}

async fn one(
    vault: &Vault,
    identities: &Identities,
    id: &str,
    options: &Options,
    settings: &Settings,
    bar: &Bar,
) -> Result<Restored, Exit> {
    let manifest = vault.read(id).await?;
    let into = options
        .into
        .clone()
        .unwrap_or_else(|| format!("{}_{}", manifest.database, clock::now().format("%Y%m%d_%H%M%S")));
    match manifest.kind {
        Kind::Postgres => {
            let pool = postgres::connect(&settings.postgres, NAME)?;
            let order =
                dumps::Order { manifest: &manifest, into: &into, url: &settings.postgres.url, pool: &pool };
            Ok(dumps::restore(vault, identities, order, bar.progress()).await?)
        }
        Kind::MongoDb | Kind::MongoDbIncremental => {
            let database = mongo::connect(&settings.mongodb, NAME).await?;
            let target = refill::other_database(&database, &into);
            let only = options.collection.as_deref();
            Ok(documents::restore(vault, identities, id, &target, only, bar.progress()).await?)
        }
        Kind::PostgresBase => {
            Err(Error::refused(format!("{id} is a base backup, which this version does not restore")).into())
        }
        Kind::Redis => Err(Error::refused(manifest.restore.join("; ")).into()),
    }
}

fn told(restored: &Restored) -> String {
    let counts: u64 = restored.counts.values().sum();
    let mut text = format!(
        "{} is restored as the database {} ({counts} rows or documents, {:.1} s)",
        restored.backups.last().map_or("", String::as_str),
        restored.database,
        restored.took_s
    );
    for line in &restored.checked {
        text += &format!("\n    checked: {line}");
    }
    text
}
