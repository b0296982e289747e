//! Replaying: one letter, or many at a rate.

use std::process::ExitCode;

use clap::Subcommand;
use taskflow_stores::clock;
use taskflow_stores::postgres::PgPool;
use taskflow_stores::postgres::dead_letter_deeds as deeds;
use taskflow_stores::postgres::dead_letter_replays::{self, Order, RATE_MAX, RATE_MIN, View};
use taskflow_stores::postgres::dead_letters::Filter;
use uuid::Uuid;

use super::{Author, Filters, LOOK, begun, print};
use crate::exit::{Exit, FAILED};

/// Replays that are listed.
const LISTED: u32 = 50;

#[derive(clap::Args)]
pub(crate) struct Options {
    /// The letter's id; without one, name a filter (a group is a --fingerprint)
    #[arg(conflicts_with = "Filters")]
    id: Option<Uuid>,
    #[command(flatten)]
    filter: Filters,
    /// Letters a second, for a filter. It stops by itself when letters die again
    #[arg(long, default_value_t = 10.0)]
    rate: f32,
    #[command(flatten)]
    author: Author,
    /// Wait until it is known how it ended
    #[arg(long)]
    watch: bool,
}

#[derive(Subcommand)]
pub(crate) enum Command {
    /// The newest first
    List,
    /// How far a replay is, and how its letters fared
    Show {
        /// The replay's id
        id: Uuid,
    },
    /// End a replay; what it has taken is published all the same
    Cancel {
        /// The replay's id
        id: Uuid,
    },
}

pub(super) async fn replay(pool: &PgPool, options: Options, json: bool) -> Result<ExitCode, Exit> {
    let Options { id, filter, rate, author, watch } = options;
    if let Some(id) = id {
        let said = author.said();
        let attempt = deeds::replay(pool, id, said.by(pool).await?).await?;
        return begun(pool, id, attempt, watch, json).await;
    }
    let filter = Filter::from(filter);
    if filter == Filter::default() {
        return Err(Exit::usage("name a letter's id or a filter; --state kept means all that wait"));
    }
    if filter.state.is_some_and(|state| state != taskflow_core::dead_letter::State::Kept) {
        return Err(Exit::usage("--state: only letters that are kept can be replayed"));
    }
    if !(RATE_MIN..=RATE_MAX).contains(&rate) {
        return Err(Exit::usage(format!("--rate is letters a second, {RATE_MIN} to {RATE_MAX}")));
    }
    let said = author.said();
    let order = Order { id: clock::new_id(), filter: &filter, rate, by: said.by(pool).await? };
    let letters = dead_letter_replays::count(pool, &filter).await?;
    dead_letter_replays::create(pool, order).await?;
    if !json {
        eprintln!("replay {} of about {letters} letters, {rate} a second", order.id);
    }
    loop {
        let view = find(pool, order.id).await?;
        if !watch || view.state != "running" {
            print::replays(std::slice::from_ref(&view), json);
            let failed = view.state == "stopped" || view.died > 0;
            return Ok(if failed { ExitCode::from(FAILED) } else { ExitCode::SUCCESS });
        }
        tokio::time::sleep(LOOK).await;
    }
}

pub(super) async fn run(pool: &PgPool, command: Option<Command>, json: bool) -> Result<ExitCode, Exit> {
    match command.unwrap_or(Command::List) {
        Command::List => print::replays(&dead_letter_replays::list(pool, LISTED).await?, json),
        Command::Show { id } => print::replays(&[find(pool, id).await?], json),
        Command::Cancel { id } => {
            let ended = dead_letter_replays::cancel(pool, id, clock::now()).await?;
            let view = find(pool, id).await?;
            if !ended && view.state != "cancelled" {
                return Err(Exit::failed(format!("the replay is {} already", view.state)));
            }
            print::replays(&[view], json);
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn find(pool: &PgPool, id: Uuid) -> Result<View, Exit> {
    let found = dead_letter_replays::read(pool, id).await?;
    found.ok_or_else(|| {
        Exit::failed(format!("there is no replay {id}; `taskflow dead-letters replays` lists them"))
    })
}
