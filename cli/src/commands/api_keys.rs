//! `taskflow api-keys`: making, listing and revoking what programs authenticate with.

use std::process::ExitCode;

use chrono::{DateTime, TimeDelta, Utc};
use clap::Subcommand;
use serde_json::json;
use taskflow_core::api_key::{self, ApiKey, NAME_MAX, SOURCE_PREFIX_MAX, Scope};
use taskflow_core::system_event::{Change, SYSTEM};
use taskflow_stores::clock;
use taskflow_stores::postgres::{self, PgPool, api_keys};
use uuid::Uuid;

use crate::exit::{Exit, FAILED};
use crate::settings::Settings;

#[derive(Subcommand)]
pub(crate) enum Command {
    /// Make a key and print it: this once, it is kept as a digest only
    Create {
        /// What it is for, such as "crm, production"
        #[arg(long)]
        name: String,
        /// What it may do: commands:write, read, admin; may be given several times
        #[arg(long = "scope", value_name = "SCOPE", required = true, value_parser = scope)]
        scopes: Vec<Scope>,
        /// The sources that it speaks for, such as /crm/eu; commands:write needs it
        #[arg(long, value_name = "PREFIX")]
        source_prefix: Option<String>,
        /// Days until it expires [default: never]
        #[arg(long, value_name = "DAYS", value_parser = clap::value_parser!(i64).range(1..=3650))]
        expires_in_days: Option<i64>,
    },
    /// List keys, the newest first: what they may do, when they were used last
    List {
        /// Keys of one list
        #[arg(long, default_value_t = 100, value_parser = clap::value_parser!(i64).range(1..=1000))]
        limit: i64,
    },
    /// Revoke a key: within a second it opens nothing any more
    Revoke {
        /// The key's id
        id: Uuid,
    },
}

fn scope(word: &str) -> Result<Scope, String> {
    let words = Scope::WORDS.map(|(word, _)| word).join(", ");
    Scope::from_word(word).ok_or_else(|| format!("must be one of: {words}"))
}

pub(crate) async fn run(command: Command, settings: &Settings, json: bool) -> Result<ExitCode, Exit> {
    let pool = postgres::connect(&settings.postgres, "taskflow api-keys")?;
    match command {
        Command::Create { name, scopes, source_prefix, expires_in_days } => {
            create(&pool, name, scopes, source_prefix, expires_in_days, json).await
        }
        Command::List { limit } => {
            let keys = api_keys::list(&pool, None, limit).await?;
            if json {
                println!("{}", json!({ "items": keys }));
            } else if keys.is_empty() {
                println!("there are no API keys");
            } else {
                let now = clock::now();
                keys.iter().for_each(|key| println!("{}", line(key, now)));
            }
            Ok(ExitCode::SUCCESS)
        }
        Command::Revoke { id } => {
            let Some(key) = api_keys::revoke(&pool, id, &change()).await? else {
                eprintln!(
                    "taskflow: there is no API key {id}; `taskflow api-keys list` names those there are"
                );
                return Ok(ExitCode::from(FAILED));
            };
            if json {
                println!("{}", json!(key));
            } else {
                println!("{id} ({}) is revoked; within a second it opens nothing any more", key.name);
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn create(
    pool: &PgPool,
    name: String,
    mut scopes: Vec<Scope>,
    source_prefix: Option<String>,
    expires_in_days: Option<i64>,
    json: bool,
) -> Result<ExitCode, Exit> {
    if !(1..=NAME_MAX).contains(&name.chars().count()) {
        return Err(Exit::usage(format!("--name: has 1 to {NAME_MAX} characters")));
    }
    let prefix_fits = |prefix: &String| (1..=SOURCE_PREFIX_MAX).contains(&prefix.chars().count());
    if !source_prefix.as_ref().is_none_or(prefix_fits) {
        return Err(Exit::usage(format!("--source-prefix: has 1 to {SOURCE_PREFIX_MAX} characters")));
    }
    if scopes.contains(&Scope::CommandsWrite) && source_prefix.is_none() {
        return Err(Exit::usage(
            "--source-prefix is required for commands:write: the sources that it speaks for",
        ));
    }
    scopes.sort_by_key(|scope| scope.as_str());
    scopes.dedup();
    let change = change();
    let id = clock::new_id();
    let key = api_key::token(id, rand::random());
    let known = ApiKey {
        id,
        name,
        scopes,
        source_prefix,
        created_at: change.at,
        created_by: SYSTEM,
        expires_at: expires_in_days.map(|days| change.at + TimeDelta::days(days)),
        last_used_at: None,
        revoked_at: None,
    };
    api_keys::create(pool, &known, &api_key::digest(&key), &change).await?;
    if json {
        let mut shown = json!(known);
        shown["key"] = key.into();
        println!("{shown}");
    } else {
        // The key alone on standard output: it can go straight to where it belongs.
        eprintln!("API key {id} ({}). It is not shown again:", known.name);
        println!("{key}");
    }
    Ok(ExitCode::SUCCESS)
}

/// Somebody at the command line.
fn change() -> Change<'static> {
    Change { id: clock::new_id(), author: SYSTEM, address: None, session: None, at: clock::now() }
}

fn line(key: &ApiKey, now: DateTime<Utc>) -> String {
    let day = |time: DateTime<Utc>| time.format("%Y-%m-%d %H:%M UTC").to_string();
    let state = match (key.revoked_at, key.expires_at) {
        (Some(at), _) => format!("revoked {}", day(at)),
        (None, Some(end)) if end <= now => format!("expired {}", day(end)),
        (None, Some(end)) => format!("until {}", day(end)),
        (None, None) => "good".to_owned(),
    };
    let scopes: Vec<&str> = key.scopes.iter().map(|scope| scope.as_str()).collect();
    let prefix = key.source_prefix.as_deref().map(|prefix| format!(" for {prefix}")).unwrap_or_default();
    let used = key.last_used_at.map_or_else(|| "never used".to_owned(), |at| format!("used {}", day(at)));
    format!("{}  {}  {}{prefix}  {state}, {used}", key.id, key.name, scopes.join(" "))
}
