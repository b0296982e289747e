//! `taskflow dead-letters`: looking at dead letters and deciding about them.

mod print;
mod replays;

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use chrono::{DateTime, Utc};
use clap::Subcommand;
use serde_json::{Value, json};
use taskflow_core::dead_letter::State;
use taskflow_core::system_event::SYSTEM;
use taskflow_stores::clock;
use taskflow_stores::postgres::dead_letter_deeds::{self as deeds, By, Refused};
use taskflow_stores::postgres::dead_letters::{self, Cursor, Filter, Letter};
use taskflow_stores::postgres::{self, PgPool, job_schedules, receipts, rehearse};
use uuid::Uuid;

use super::pause::system_user;
use crate::exit::{Exit, FAILED};
use crate::settings::Settings;

/// Time between two looks at a replay that is watched.
const LOOK: Duration = Duration::from_millis(200);

#[derive(Subcommand)]
pub(crate) enum Command {
    /// List letters, the last to die first
    List {
        #[command(flatten)]
        filter: Filters,
        /// Where the list goes on: what the last one said
        #[arg(long)]
        cursor: Option<Cursor>,
        /// Letters of one list
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// Group letters by their errors, the largest group first
    Groups {
        #[command(flatten)]
        filter: Filters,
        /// Groups of one list
        #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
        limit: u32,
    },
    /// Show a letter: bytes, command, headers, every attempt with its error
    Show {
        /// The letter's id
        id: Uuid,
        /// Print only the bytes, as they came or were edited last
        #[arg(long)]
        body: bool,
    },
    /// Say what a replay would do: decision, events and rows. Nothing of it lasts
    DryRun {
        /// The letter's id
        id: Uuid,
        /// Rehearse the command in this file instead; - reads standard input
        #[arg(long, value_name = "FILE")]
        file: Option<PathBuf>,
    },
    /// Publish letters again: one by its id, or those that a filter means, at a rate
    Replay(replays::Options),
    /// Put an edited command in the place of a letter's bytes and replay it
    Edit {
        /// The letter's id
        id: Uuid,
        /// File with the whole command; - reads standard input
        #[arg(long, value_name = "FILE")]
        file: PathBuf,
        #[command(flatten)]
        author: Author,
        /// Wait until it is known how it ended
        #[arg(long)]
        watch: bool,
    },
    /// Decide that a letter is not needed
    Discard {
        /// The letter's id
        id: Uuid,
        #[command(flatten)]
        author: Author,
    },
    /// List replays of many, show one, or cancel one
    Replays {
        #[command(subcommand)]
        command: Option<replays::Command>,
    },
}

/// Which letters are meant.
#[derive(clap::Args)]
pub(crate) struct Filters {
    /// Why they died: malformed, wrong_slot, failing, idempotency_mismatch, unknown_type, unroutable …
    #[arg(long)]
    reason: Option<String>,
    /// The command's type
    #[arg(long = "type", value_name = "TYPE")]
    kind: Option<String>,
    /// The upstream system
    #[arg(long)]
    source: Option<String>,
    /// The fingerprint of their error, as `groups` shows it
    #[arg(long)]
    fingerprint: Option<String>,
    /// kept, replaying, replayed or discarded
    #[arg(long, value_parser = state)]
    state: Option<State>,
    /// The entity that the command is about
    #[arg(long, value_name = "ID")]
    subject: Option<Uuid>,
    /// The command's id
    #[arg(long, value_name = "ID")]
    command: Option<Uuid>,
    /// Died last at this time (RFC 3339) or later
    #[arg(long, value_name = "TIME")]
    from: Option<DateTime<Utc>>,
    /// Died last before this time
    #[arg(long, value_name = "TIME")]
    to: Option<DateTime<Utc>>,
}

fn state(word: &str) -> Result<State, String> {
    let words = State::ALL.map(State::as_str).join(", ");
    State::from_word(word).ok_or_else(|| format!("must be one of: {words}"))
}

impl From<Filters> for Filter {
    fn from(filters: Filters) -> Self {
        let Filters { reason, kind, source, fingerprint, state, subject, command, from, to } = filters;
        Self { reason, kind, source, fingerprint, state, subject, command, from, to }
    }
}

/// Who decides, and why. Both are kept in the audit trail.
#[derive(clap::Args)]
pub(crate) struct Author {
    /// Who decides: a user's id [default: the system, and your name on this machine beside the reason]
    #[arg(long = "as", value_name = "USER")]
    author: Option<Uuid>,
    /// Why
    #[arg(long)]
    why: Option<String>,
}

impl Author {
    /// Who does not say which user decides is known by what this machine calls them.
    fn said(&self) -> Said {
        let here = || format!("by {} at the command line", system_user());
        let why = match (self.author, &self.why) {
            (Some(_), why) => why.clone(),
            (None, Some(why)) => Some(format!("{why} ({})", here())),
            (None, None) => Some(here()),
        };
        Said { author: self.author.unwrap_or(SYSTEM), why }
    }
}

/// What becomes of an [`Author`].
struct Said {
    author: Uuid,
    why: Option<String>,
}

impl Said {
    /// At the database's time: what is decided here is held against what workers write, and this machine's clock may be
    /// another.
    async fn by(&self, pool: &PgPool) -> Result<By<'_>, Exit> {
        let mut connection = pool.acquire().await.context("postgres")?;
        let at = job_schedules::now(&mut connection).await?;
        Ok(By { author: self.author, why: self.why.as_deref(), at })
    }
}

impl From<Refused> for Exit {
    fn from(refused: Refused) -> Self {
        match refused {
            Refused::Store(error) => error.into(),
            Refused::Faults(faults) => {
                let lines = faults.iter().map(|fault| format!("{}: {}", fault.pointer, fault.detail));
                Self::usage(lines.collect::<Vec<_>>().join("\n"))
            }
            other => Self::failed(other.to_string()),
        }
    }
}

pub(crate) async fn run(command: Command, settings: &Settings, json: bool) -> Result<ExitCode, Exit> {
    let pool = postgres::connect(&settings.postgres, "taskflow dead-letters")?;
    match command {
        Command::List { filter, cursor, limit } => {
            let (letters, next) = dead_letters::list(&pool, &filter.into(), cursor, limit).await?;
            print::list(&letters, next, json);
        }
        Command::Groups { filter, limit } => {
            print::groups(&dead_letters::groups(&pool, &filter.into(), limit).await?, json);
        }
        Command::Show { id, body } => {
            let letter = find(&pool, id).await?;
            if body {
                std::io::stdout().write_all(letter.sent()).context("print the bytes")?;
            } else {
                print::letter(&letter.shown(), json);
            }
        }
        Command::DryRun { id, file } => {
            let letter = find(&pool, id).await?;
            let bytes = file.map(|file| read(&file)).transpose()?;
            let bytes = bytes.as_deref().unwrap_or(letter.sent());
            print::rehearsal(&rehearse::rehearse(&pool, &letter, bytes, clock::now()).await?, json);
        }
        Command::Replay(options) => return replays::replay(&pool, options, json).await,
        Command::Edit { id, file, author, watch } => {
            let command: Value = serde_json::from_slice(&read(&file)?)
                .map_err(|error| Exit::usage(format!("{}: not valid JSON: {error}", file.display())))?;
            let said = author.said();
            let attempt = deeds::edit(&pool, id, &command, said.by(&pool).await?).await?;
            return begun(&pool, id, attempt, watch, json).await;
        }
        Command::Discard { id, author } => {
            if author.why.as_deref().is_none_or(|why| why.trim().is_empty()) {
                return Err(Exit::usage("--why is required: the audit trail keeps it"));
            }
            let said = author.said();
            deeds::discard(&pool, id, said.by(&pool).await?).await?;
            print::line(json, &json!({ "id": id, "state": "discarded" }), &format!("{id} is discarded"));
        }
        Command::Replays { command } => return replays::run(&pool, command, json).await,
    }
    Ok(ExitCode::SUCCESS)
}

async fn find(pool: &PgPool, id: Uuid) -> Result<Letter, Exit> {
    Ok(dead_letters::read(pool, id).await?.ok_or(Refused::Unknown(id))?)
}

fn read(file: &Path) -> Result<Vec<u8>, Exit> {
    let mut bytes = Vec::new();
    if file.as_os_str() == "-" {
        std::io::stdin().read_to_end(&mut bytes).context("read standard input")?;
    } else {
        bytes = std::fs::read(file).with_context(|| format!("open {}", file.display()))?;
    }
    Ok(bytes)
}

/// Tells of a replay that has begun, and if wanted of its end.
async fn begun(pool: &PgPool, id: Uuid, attempt: i32, watch: bool, json: bool) -> Result<ExitCode, Exit> {
    if !watch {
        let told = json!({ "id": id, "state": "replaying", "attempt": attempt });
        print::line(json, &told, &format!("{id} is replayed, attempt {attempt}; the workers publish it"));
        return Ok(ExitCode::SUCCESS);
    }
    loop {
        let letter = find(pool, id).await?;
        if letter.state == State::Kept {
            let told = json!({ "id": id, "state": "kept", "reason": letter.reason, "detail": letter.detail });
            print::line(json, &told, &format!("{id} died again: {}: {}", letter.reason, letter.detail));
            return Ok(ExitCode::from(FAILED));
        }
        let ids: Vec<Uuid> = letter.command_id.into_iter().collect();
        let receipt = receipts::read_many(pool, &ids).await?.pop().filter(|receipt| receipt.status != "dead");
        if let Some(receipt) = receipt.filter(|_| letter.state == State::Replayed) {
            let told = json!({ "id": id, "state": "replayed", "receipt": receipt });
            let code = receipt.code.map(|code| format!(" ({code})")).unwrap_or_default();
            print::line(json, &told, &format!("{id} was replayed; the command is {}{code}", receipt.status));
            return Ok(ExitCode::SUCCESS);
        }
        tokio::time::sleep(LOOK).await;
    }
}
