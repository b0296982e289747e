//! `taskflow audit`: keys, verification, proofs and erasure of the audit trail.

mod erase;
mod verify;

use std::process::ExitCode;

use chrono::{DateTime, Utc};
use taskflow_core::audit::key::{PublicKey, SecretKey};
use taskflow_core::event::EventId;
use taskflow_core::system_event;
use taskflow_scheduler::audit::{files, prove};
use taskflow_stores::postgres::{audit_seals, system_events};
use taskflow_stores::{clock, mongo, postgres, redis};

use crate::exit::Exit;
use crate::settings::Settings;

pub(super) const NAME: &str = "taskflow audit";
/// Characters of a reason.
const WHY_MAX: usize = 500;

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Make the keys of the seals: the secret one for the scheduler, the public one for whoever verifies
    Keygen,
    /// Verify the trail: seals, chains and events; names what is wrong
    Verify(VerifyOptions),
    /// Print a proof that an event was in the trail, for somebody who needs nothing of ours to check it
    Prove {
        /// The event's id, 24 hexadecimal digits
        #[arg(value_name = "EVENT-ID")]
        id: String,
    },
    /// Erase what events tell of a person; the trail can be verified as before
    Erase(EraseOptions),
    /// Say that Postgres was set back on purpose, after a restore: the next seal tells of it
    Restored {
        /// Why: whoever looks later reads it
        #[arg(long)]
        why: String,
        /// Who says so [default: the system's user]
        #[arg(long = "as", value_name = "NAME")]
        author: Option<String>,
    },
}

#[derive(clap::Args)]
pub(crate) struct VerifyOptions {
    /// Only what was sealed since this time, such as 2026-11-01T00:00:00Z
    #[arg(long, value_name = "TIME")]
    from: Option<DateTime<Utc>>,
    /// Only what was sealed up to this time
    #[arg(long, value_name = "TIME")]
    to: Option<DateTime<Utc>>,
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Whose {
    /// What events about this user or task tell
    #[arg(long, value_name = "ID")]
    entity: Option<uuid::Uuid>,
    /// What events tell that this user caused
    #[arg(long, value_name = "ID")]
    actor: Option<uuid::Uuid>,
}

#[derive(clap::Args)]
pub(crate) struct EraseOptions {
    #[command(flatten)]
    whose: Whose,
    /// Why: whoever looks later reads it
    #[arg(long)]
    why: String,
    /// Who orders it [default: the system's user]
    #[arg(long = "as", value_name = "NAME")]
    author: Option<String>,
    /// Yes: what is erased can't be brought back
    #[arg(long)]
    yes: bool,
}

/// `taskflow audit`.
pub(crate) async fn run(command: Command, settings: &Settings, json: bool) -> Result<ExitCode, Exit> {
    match command {
        Command::Keygen => keygen(settings, json),
        Command::Verify(options) => verify::run(options, settings, json).await,
        Command::Prove { id } => print_proof(&id, settings).await,
        Command::Erase(options) => erase::run(options, settings, json).await,
        Command::Restored { why, author } => restored(&why, author, settings, json).await,
    }
}

fn keygen(settings: &Settings, json: bool) -> Result<ExitCode, Exit> {
    let (secret, public) = (&settings.audit.key_path, &settings.audit.public_keys_path);
    let key = make_keys(settings)?;
    if json {
        println!(
            "{}",
            serde_json::json!({ "secretKey": secret, "publicKeys": public, "publicKey": key.public() })
        );
    } else {
        println!(
            "{}: the secret key. The scheduler alone may read it; neither workers nor databases nor backups have it.\n\
             {}: the public key {}. Keep a copy where no administrator of this system can change it.",
            secret.display(),
            public.display(),
            key.public()
        );
    }
    Ok(ExitCode::SUCCESS)
}

/// Makes the files of the keys.
pub(super) fn make_keys(settings: &Settings) -> Result<SecretKey, Exit> {
    let key = SecretKey::new(rand::random());
    files::make_keys(&settings.audit.key_path, &settings.audit.public_keys_path, &key)
        .map_err(|error| Exit::failed(error.to_string()))?;
    Ok(key)
}

/// The keys to verify with, or what to do about it.
fn public_keys(settings: &Settings) -> Result<Vec<PublicKey>, Exit> {
    let path = &settings.audit.public_keys_path;
    let keys = files::public_keys(path).map_err(|error| Exit::failed(error.to_string()))?;
    if keys.is_empty() {
        return Err(Exit::usage(format!(
            "there is no public key in {} (audit.public_keys_path): take it from where `taskflow audit keygen` was run",
            path.display()
        )));
    }
    Ok(keys)
}

async fn stores(settings: &Settings) -> Result<taskflow_scheduler::Stores, Exit> {
    Ok(taskflow_scheduler::Stores {
        postgres: postgres::connect(&settings.postgres, NAME)?,
        mongo: mongo::connect(&settings.mongodb, NAME).await?,
        redis: redis::connect(&settings.redis)?,
        backups: taskflow_scheduler::Backups::new(settings.backup.clone(), settings.postgres.url.clone()),
    })
}

async fn print_proof(id: &str, settings: &Settings) -> Result<ExitCode, Exit> {
    let id: EventId = serde_json::from_value(id.into())
        .map_err(|error| Exit::usage(format!("{id:?} is no event's id: {error}")))?;
    let keys = public_keys(settings)?;
    let proof = prove::prove(&stores(settings).await?, &keys, id).await.map_err(|error| match error {
        prove::Error::Store(error) => error.into(),
        prove::Error::Without(why) => Exit::failed(why),
    })?;
    let text = serde_json::to_string_pretty(&proof).map_err(|error| Exit::failed(error.to_string()))?;
    println!("{text}");
    Ok(ExitCode::SUCCESS)
}

/// A reason as it is written down.
fn reason(why: &str) -> Result<&str, Exit> {
    let why = why.trim();
    if (1..=WHY_MAX).contains(&why.chars().count()) {
        return Ok(why);
    }
    Err(Exit::usage(format!("--why: has 1 to {WHY_MAX} characters")))
}

async fn restored(
    why: &str,
    author: Option<String>,
    settings: &Settings,
    json: bool,
) -> Result<ExitCode, Exit> {
    let (why, author) = (reason(why)?, author.unwrap_or_else(super::pause::system_user));
    let pool = postgres::connect(&settings.postgres, NAME)?;
    let event = system_event::audit_restored(clock::new_id(), &author, why, clock::now());
    let number = system_events::with_event(&pool, &event, async |connection| {
        audit_seals::say_restored(connection, &author, why).await
    })
    .await?;
    if json {
        println!("{}", serde_json::json!({ "statement": number }));
    } else {
        println!("statement {number}: the next seal tells that {author} has set Postgres back");
    }
    Ok(ExitCode::SUCCESS)
}
