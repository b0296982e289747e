//! `taskflow migrate`: the schemas of Postgres and MongoDB, both ways.

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::json;
use taskflow_stores::postgres::migrate::Migrated;
use taskflow_stores::{mongo, postgres};

use crate::exit::Exit;
use crate::settings::Settings;

const NAME: &str = "taskflow migrate";

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Apply what is missing
    Up {
        /// Only up to this version of Postgres's schema (MongoDB's is brought up whole)
        #[arg(long, value_name = "VERSION")]
        to: Option<i64>,
    },
    /// Revert: data of what is removed is lost
    Down {
        /// Down to this version of Postgres's schema [default: one version]; 0 removes everything
        #[arg(long, value_name = "VERSION")]
        to: Option<i64>,
        /// Down to this version of MongoDB's schema [default: it stays]
        #[arg(long, value_name = "VERSION")]
        mongo_to: Option<i64>,
        /// Yes, data may be lost
        #[arg(long)]
        yes: bool,
    },
    /// Show each version and whether it is applied
    Status,
}

pub(crate) async fn run(command: Command, settings: &Settings, json: bool) -> Result<ExitCode, Exit> {
    let pool = postgres::connect(&settings.postgres, NAME)?;
    let database = mongo::connect(&settings.mongodb, NAME).await?;
    let (postgres, mongodb) = match command {
        Command::Up { to } => {
            (postgres::migrate::up(&pool, to).await?, mongo::migrate::up(&database, None).await?)
        }
        Command::Down { yes: false, .. } => {
            return Err(Exit::usage(
                "migrate down removes tables or columns with their data; say --yes if you mean it",
            ));
        }
        Command::Down { to, mongo_to, yes: true } => {
            let versions = postgres::migrate::status(&pool).await?;
            let applied = versions.iter().filter(|version| version.applied).map(|version| version.version);
            let one_down = applied.rev().nth(1).unwrap_or(0);
            let mongodb = match mongo_to {
                Some(version) => mongo::migrate::down(&database, version).await?,
                None => Vec::new(),
            };
            (postgres::migrate::down(&pool, to.unwrap_or(one_down)).await?, mongodb)
        }
        Command::Status => return status(&pool, &database, json).await,
    };
    if json {
        let Migrated { versions, restore_point } = postgres;
        println!("{}", json!({ "postgres": versions, "mongodb": mongodb, "restore_point": restore_point }));
    } else {
        let list = |versions: &[i64]| match versions {
            [] => "nothing to do".to_owned(),
            versions => {
                format!("versions {}", versions.iter().map(i64::to_string).collect::<Vec<_>>().join(", "))
            }
        };
        println!("postgres: {}\nmongodb: {}", list(&postgres.versions), list(&mongodb));
        if let Some(point) = postgres.restore_point.filter(|_| !postgres.versions.is_empty()) {
            println!("restore point before it: {point}");
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn status(pool: &postgres::PgPool, database: &mongo::Database, json: bool) -> Result<ExitCode, Exit> {
    let postgres = postgres::migrate::status(pool).await?;
    let mongodb = mongo::migrate::status(database).await?;
    if json {
        println!("{}", json!({ "postgres": postgres, "mongodb": mongodb }));
    } else {
        let row = |store: &str, version: i64, applied: bool, description: &str| {
            let state = if applied { "applied" } else { "pending" };
            println!("{store:<9} {version:>4}  {state:<8} {description}");
        };
        postgres.iter().for_each(|v| row("postgres", v.version, v.applied, &v.description));
        mongodb.iter().for_each(|v| row("mongodb", v.version, v.applied, &v.description));
    }
    Ok(ExitCode::SUCCESS)
}
