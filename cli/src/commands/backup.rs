//! `taskflow backup`: backups made, listed, shown, checked, and removed by the rules.

pub(super) mod bar;
mod look;
mod print;
mod verify;

use std::process::ExitCode;

use serde_json::json;
use taskflow_backup::error::Trouble;
use taskflow_backup::mongo::dump;
use taskflow_backup::{Error, Kind, Manifest, Progress, Vault};
use taskflow_stores::{clock, mongo, postgres, redis};

pub(super) use self::look::Look;
use crate::exit::Exit;
use crate::settings::Settings;

pub(super) const NAME: &str = "taskflow backup";

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Make backups now
    Create {
        /// What to back up [default: postgres, mongodb and redis]
        #[arg(value_parser = kinds())]
        kinds: Vec<String>,
    },
    /// List the backups: what there is, how old, how large, whether a drill has restored it
    List {
        /// Only of this kind
        #[arg(long, value_parser = kinds())]
        kind: Option<String>,
    },
    /// Show one backup: what is in it and how it is restored
    Show { id: String },
    /// Hold backups against their manifests, in both places: every file's size and SHA-256, and with a key what is in it
    Verify {
        /// Which [default: the newest of each kind]
        #[arg(conflicts_with = "all")]
        ids: Vec<String>,
        /// All of them
        #[arg(long)]
        all: bool,
        /// Only as the files lie there: takes no key
        #[arg(long)]
        shallow: bool,
    },
    /// Remove what the rules (backup.keep) no longer keep
    Prune {
        /// Only say what would be removed, and why the others stay
        #[arg(long)]
        dry_run: bool,
    },
}

pub(super) fn kinds() -> clap::builder::PossibleValuesParser {
    clap::builder::PossibleValuesParser::new(Kind::ALL.map(Kind::as_str))
}

impl From<Error> for Exit {
    fn from(error: Error) -> Self {
        match error.trouble {
            Trouble::Away => Self::unavailable(error.text),
            Trouble::Refused => Self::usage(error.text),
            _ => Self::failed(error.text),
        }
    }
}

/// `taskflow backup`.
pub(crate) async fn run(command: Command, settings: &Settings, json: bool) -> Result<ExitCode, Exit> {
    let vault = Vault::open(&settings.backup)?;
    match command {
        Command::Create { kinds } => create(&vault, kinds, settings, json).await,
        Command::List { kind } => {
            let mut found = vault.list().await?;
            found.retain(|found| kind.as_deref().is_none_or(|kind| found.kind.as_str() == kind));
            if json {
                let rows: Vec<_> = found.iter().map(print::row_json).collect();
                println!("{}", json!(rows));
            } else if found.is_empty() {
                println!("there are no backups in {}", vault.place.name());
            } else {
                print::list(&found, clock::now());
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Show { id } => {
            let manifest = vault.read(&id).await?;
            let proof =
                vault.list().await?.into_iter().find(|found| found.id == id).and_then(|found| found.proof);
            if json {
                println!("{}", json!({ "manifest": manifest, "proof": proof }));
            } else {
                print::manifest(&manifest, proof.as_ref());
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Verify { ids, all, shallow } => verify::run(&vault, &ids, all, shallow, json).await,
        Command::Prune { dry_run } => prune(&vault, dry_run, settings, json).await,
    }
}

async fn create(
    vault: &Vault,
    kinds: Vec<String>,
    settings: &Settings,
    json: bool,
) -> Result<ExitCode, Exit> {
    let mut wanted: Vec<Kind> = kinds.iter().filter_map(|word| Kind::from_word(word)).collect();
    if wanted.is_empty() {
        wanted = vec![Kind::Postgres, Kind::MongoDb, Kind::Redis];
    }
    let bar = bar::Bar::start(json);
    let mut failed = None;
    let mut rows = Vec::new();
    for kind in wanted {
        let line = match one(vault, kind, settings, bar.progress()).await {
            Ok(Ok(manifest)) => {
                rows.push(json!({ "kind": kind, "id": manifest.id, "bytes": manifest.bytes() }));
                print::made(&manifest)
            }
            Ok(Err(why)) => {
                rows.push(json!({ "kind": kind, "skipped": why }));
                format!("{kind}: skipped: {why}")
            }
            // The others are made all the same.
            Err(error) => {
                rows.push(json!({ "kind": kind, "error": error.text }));
                let line = format!("{kind}: {error}");
                let stopped = error.trouble == Trouble::Stopped;
                failed = failed.or(Some(error));
                if stopped {
                    break;
                }
                line
            }
        };
        bar.say(&line);
    }
    let copied = match failed {
        None => vault.copy(bar.progress()).await,
        Some(_) => Ok(Vec::new()),
    };
    bar.end();
    if json {
        println!("{}", json!({ "backups": rows, "copied": copied.as_deref().unwrap_or_default() }));
    }
    copied.map_err(|error| error.during("the backups are made, but not copied to backup.second"))?;
    match failed {
        None => Ok(ExitCode::SUCCESS),
        Some(error) => Err(error.into()),
    }
}

/// One backup of a kind; or why there is none.
pub(super) async fn one(
    vault: &Vault,
    kind: Kind,
    settings: &Settings,
    progress: &Progress,
) -> Result<Result<Manifest, String>, Error> {
    let pool = postgres::connect(&settings.postgres, NAME)?;
    match kind {
        Kind::Postgres => {
            taskflow_backup::postgres::dump::create(vault, &settings.postgres.url, &pool, progress)
                .await
                .map(Ok)
        }
        Kind::PostgresBase => {
            taskflow_backup::postgres::base::create(vault, &settings.postgres.url, &pool, progress)
                .await
                .map(Ok)
        }
        Kind::MongoDb | Kind::MongoDbIncremental => {
            let database = mongo::connect(&settings.mongodb, NAME).await?;
            let settled = dump::settled(&pool).await?;
            let made = if kind == Kind::MongoDb {
                dump::create(vault, &database, settled, progress).await
            } else {
                let restored = postgres::restore_epochs::newest(&pool).await?;
                dump::create_incremental(vault, &database, settled, restored, progress).await
            };
            made.map(Ok)
        }
        Kind::Redis => {
            taskflow_backup::redis::create(vault, &redis::connect(&settings.redis)?, progress).await
        }
    }
}

async fn prune(vault: &Vault, dry_run: bool, settings: &Settings, json: bool) -> Result<ExitCode, Exit> {
    let plan = vault.plan(clock::now()).await?;
    if dry_run {
        if json {
            println!("{}", json!(plan));
        } else {
            for (id, verdict) in &plan {
                println!("{} {id}: {}", if verdict.keeps() { "keep  " } else { "remove" }, verdict.why());
            }
        }
        return Ok(ExitCode::SUCCESS);
    }
    let mut removed = vault.prune(&Progress::default()).await?;
    if vault.settings.wal {
        let pool = postgres::connect(&settings.postgres, NAME)?;
        let files = taskflow_backup::postgres::base::prune_log(vault, &pool).await?;
        if files > 0 {
            removed.push(format!("{files} files of the log of writes"));
        }
    }
    if json {
        println!("{}", json!({ "removed": removed }));
    } else if removed.is_empty() {
        println!("nothing is to be removed");
    } else {
        removed.iter().for_each(|id| println!("{id} is removed"));
    }
    Ok(ExitCode::SUCCESS)
}
