//! `taskflow holds`: what must not be removed while a matter lasts.

use std::process::ExitCode;
use std::time::Duration;

use taskflow_stores::clock;
use taskflow_stores::postgres::legal_holds::{self, Hold, New, WHY_MAX};
use taskflow_stores::postgres::{self, PgPool, job_runs, leader};
use uuid::Uuid;

use crate::exit::{Exit, FAILED};
use crate::settings::Settings;

/// The job that marks the events.
const JOB: &str = "retention.holds";
/// How long is waited for it.
const PATIENCE: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(200);

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// Put a hold: events, receipts, dead letters and tasks that it means are kept, whatever their age
    Put(PutOptions),
    /// End a hold: what it meant has its own times again
    Release {
        /// The hold's id
        id: Uuid,
        /// Who releases it [default: the system's user]
        #[arg(long = "as", value_name = "NAME")]
        author: Option<String>,
    },
    /// List the holds that stand
    List {
        /// Those that were released too
        #[arg(long)]
        all: bool,
    },
}

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct On {
    /// Everything about this task or user
    #[arg(long, value_name = "ID")]
    entity: Option<Uuid>,
    /// Everything that this user did
    #[arg(long, value_name = "ID")]
    actor: Option<Uuid>,
}

#[derive(clap::Args)]
pub(crate) struct PutOptions {
    #[command(flatten)]
    on: On,
    /// Why: whoever looks later reads it
    #[arg(long)]
    why: String,
    /// Who puts it [default: the system's user]
    #[arg(long = "as", value_name = "NAME")]
    author: Option<String>,
}

/// `taskflow holds`.
pub(crate) async fn run(command: Command, settings: &Settings, json: bool) -> Result<ExitCode, Exit> {
    let pool = postgres::connect(&settings.postgres, "taskflow holds")?;
    match command {
        Command::Put(options) => put(&pool, options, json).await,
        Command::Release { id, author } => {
            let author = author.unwrap_or_else(super::pause::system_user);
            let Some(hold) = legal_holds::release(&pool, id, &author).await? else {
                return Err(Exit::failed(match legal_holds::read(&pool, id).await? {
                    Some(_) => format!("hold {id} is released already"),
                    None => format!("there is no hold {id}; `taskflow holds list` lists them"),
                }));
            };
            carried_out(&pool, hold, json, |hold| hold.liftedat.is_some()).await
        }
        Command::List { all } => {
            let holds = legal_holds::list(&pool, all).await?;
            if json {
                print_json(&holds)?;
            } else if holds.is_empty() {
                println!("nothing is on hold");
            } else {
                holds.iter().for_each(|hold| println!("{}", line(hold)));
            }
            Ok(ExitCode::SUCCESS)
        }
    }
}

async fn put(pool: &PgPool, options: PutOptions, json: bool) -> Result<ExitCode, Exit> {
    let PutOptions { on: On { entity, actor }, why, author } = options;
    let why = why.trim();
    if !(1..=WHY_MAX).contains(&why.chars().count()) {
        return Err(Exit::usage(format!("--why: has 1 to {WHY_MAX} characters")));
    }
    let (scope, subject) = match (entity, actor) {
        (Some(entity), _) => ("entity", entity),
        (None, Some(actor)) => ("actor", actor),
        (None, None) => return Err(Exit::usage("name an --entity or an --actor")),
    };
    let author = author.unwrap_or_else(super::pause::system_user);
    let new = New { id: clock::new_id(), scope, subject, why, author: &author };
    let Some(hold) = legal_holds::put(pool, &new).await? else {
        let most = legal_holds::HOLDS_MAX;
        return Err(Exit::failed(format!("{most} holds stand already, and no more can; release some")));
    };
    carried_out(pool, hold, json, |hold| hold.appliedat.is_some()).await
}

/// Asks the scheduler to bring the events in line, and waits until it has.
async fn carried_out(
    pool: &PgPool,
    hold: Hold,
    json: bool,
    is: impl Fn(&Hold) -> bool,
) -> Result<ExitCode, Exit> {
    let asked = job_runs::ask(pool, JOB, JOB, &serde_json::json!({}), "taskflow holds").await?;
    let begun = std::time::Instant::now();
    let mut hold = hold;
    let leads = leader::read(pool).await?.leads;
    while leads && !is(&hold) && begun.elapsed() < PATIENCE {
        tokio::time::sleep(LOOK_EVERY).await;
        hold = legal_holds::read(pool, hold.id).await?.unwrap_or(hold);
    }
    if json {
        print_json(&hold)?;
    } else {
        println!("{}", line(&hold));
    }
    if is(&hold) {
        return Ok(ExitCode::SUCCESS);
    }
    let run = asked.map_or_else(String::new, |run| format!(" (run {run} of {JOB})"));
    let cause = if leads { "the scheduler is still at it" } else { "no scheduler leads" };
    eprintln!(
        "taskflow: the audit trail's events are not marked yet{run}: {cause}; nothing is safe until they are"
    );
    Ok(ExitCode::from(FAILED))
}

fn line(hold: &Hold) -> String {
    let stands = match (hold.releasedat, hold.liftedat, hold.appliedat) {
        (Some(_), Some(_), _) => "released",
        (Some(_), None, _) => "being released",
        (None, _, Some(_)) => "stands",
        (None, _, None) => "not carried out yet",
    };
    let since = hold.since.format("%Y-%m-%d %H:%M:%S UTC");
    format!(
        "{} {} {} {stands}, since {since}, by {}: {}",
        hold.id, hold.scope, hold.subject, hold.author, hold.why
    )
}

fn print_json(value: &impl serde::Serialize) -> Result<(), Exit> {
    println!("{}", serde_json::to_string(value).map_err(|error| Exit::failed(error.to_string()))?);
    Ok(())
}
