//! `taskflow jobs`: the schedules, their runs, and what people ask of them.

mod print;

use std::process::ExitCode;
use std::time::Duration;

use serde_json::json;
use taskflow_core::job::{Met, State};
use taskflow_stores::postgres::job_history::{self, Filter, Row};
use taskflow_stores::postgres::{self, PgPool, job_runs, job_schedules, leader};

use crate::exit::{Exit, FAILED};
use crate::settings::Settings;

const LOOK_EVERY: Duration = Duration::from_millis(300);

#[derive(clap::Subcommand)]
pub(crate) enum Command {
    /// List the schedules: what is due when, what is paused, how the last run ended
    List,
    /// Show a schedule with its newest completed run, or one run by its number, with its figures and its log
    Show {
        /// A schedule's name, such as retention.events, or a run's number
        what: String,
    },
    /// Ask for a run now, beside the schedule
    Run(RunOptions),
    /// List runs and due times without one, the newest first
    History(HistoryOptions),
    /// Hold a schedule back until it is resumed; its runs go on
    Pause {
        schedule: String,
        /// Why: whoever looks later reads it
        #[arg(long)]
        reason: String,
        /// Who pauses [default: the system's user]
        #[arg(long = "as", value_name = "NAME")]
        author: Option<String>,
    },
    /// Let a paused schedule go on with its next due time
    Resume { schedule: String },
    /// Stop a run, or take it out of the line
    Cancel {
        /// The run's number
        run: i64,
        /// Who cancels [default: the system's user]
        #[arg(long = "as", value_name = "NAME")]
        author: Option<String>,
    },
}

#[derive(clap::Args)]
pub(crate) struct RunOptions {
    schedule: String,
    /// Only say what would be done
    #[arg(long)]
    dry_run: bool,
    /// Further arguments of the job, such as restamp
    #[arg(long = "with", value_name = "FLAG")]
    flags: Vec<String>,
    /// Return at once instead of waiting for the run's end
    #[arg(long)]
    no_wait: bool,
    /// Who asks [default: the system's user]
    #[arg(long = "as", value_name = "NAME")]
    author: Option<String>,
}

#[derive(clap::Args)]
pub(crate) struct HistoryOptions {
    /// Only of this schedule
    schedule: Option<String>,
    /// Only in this state, such as failed
    #[arg(long, value_parser = word(State::ALL.iter().map(|one| one.as_str())))]
    state: Option<String>,
    /// Only those that were met so, such as missed
    #[arg(long, value_parser = word(Met::ALL.iter().map(|one| one.as_str())))]
    met: Option<String>,
    /// Rows at most
    #[arg(long, default_value_t = 20, value_parser = clap::value_parser!(u32).range(1..=1000))]
    limit: u32,
    /// Only those before this number
    #[arg(long, value_name = "NUMBER")]
    before: Option<i64>,
}

fn word(words: impl Iterator<Item = &'static str>) -> clap::builder::PossibleValuesParser {
    clap::builder::PossibleValuesParser::new(words)
}

/// `taskflow jobs`.
pub(crate) async fn run(command: Command, settings: &Settings, json: bool) -> Result<ExitCode, Exit> {
    let pool = postgres::connect(&settings.postgres, "taskflow jobs")?;
    match command {
        Command::List => {
            let (schedules, leader) = (job_schedules::list(&pool, None).await?, leader::read(&pool).await?);
            if json {
                return print_json(&json!({ "leader": leader, "schedules": schedules }));
            }
            print::list(&schedules, &leader);
        }
        Command::Show { what } => return show(&pool, &what, json).await,
        Command::Run(options) => return ask(&pool, options, json).await,
        Command::History(options) => {
            let HistoryOptions { schedule, state, met, limit, before } = options;
            let rows = job_history::list(&pool, &Filter { schedule, state, met, before }, limit).await?;
            if json {
                return print_json(&rows);
            }
            print::history(&rows);
        }
        Command::Pause { schedule, reason, author } => {
            let reason = reason.trim();
            let most = job_schedules::REASON_MAX;
            if !(1..=most).contains(&reason.chars().count()) || reason.contains('\0') {
                return Err(Exit::usage(format!("--reason: has 1 to {most} characters")));
            }
            if !job_schedules::pause(
                &pool,
                &schedule,
                &author.unwrap_or_else(super::pause::system_user),
                reason,
            )
            .await?
            {
                return Err(unknown(&pool, &schedule).await);
            }
            say(
                json,
                &json!({ "schedule": schedule, "paused": true }),
                &format!("{schedule} is paused; `taskflow jobs resume {schedule}` ends it"),
            )?;
        }
        Command::Resume { schedule } => {
            if !job_schedules::resume(&pool, &schedule).await? {
                let known = !job_schedules::list(&pool, Some(&schedule)).await?.is_empty();
                return Err(if known {
                    Exit::failed(format!("{schedule} is not paused"))
                } else {
                    unknown(&pool, &schedule).await
                });
            }
            say(
                json,
                &json!({ "schedule": schedule, "paused": false }),
                &format!("{schedule} goes on with its next due time"),
            )?;
        }
        Command::Cancel { run, author } => {
            if !job_runs::ask_cancel(&pool, run, &author.unwrap_or_else(super::pause::system_user)).await? {
                return Err(Exit::failed(match job_history::read(&pool, run).await? {
                    Some(row) => format!("run {run} of {} is over: {}", row.schedule, row.state),
                    None => format!("there is no run {run}; `taskflow jobs history` lists them"),
                }));
            }
            say(json, &json!({ "run": run, "cancelasked": true }), &format!("run {run} is told to stop"))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn show(pool: &PgPool, what: &str, json: bool) -> Result<ExitCode, Exit> {
    if let Ok(id) = what.parse::<i64>() {
        let Some(row) = job_history::read(pool, id).await? else {
            return Err(Exit::failed(format!("there is no run {id}; `taskflow jobs history` lists them")));
        };
        if json {
            return print_json(&row);
        }
        print::row(&row);
        return Ok(ExitCode::SUCCESS);
    }
    let schedules = job_schedules::list(pool, Some(what)).await?;
    let Some(schedule) = schedules.first() else { return Err(unknown(pool, what).await) };
    let newest = job_history::newest(pool, what).await?;
    if json {
        return print_json(&json!({ "schedule": schedule, "newest": newest }));
    }
    print::schedule(schedule);
    match &newest {
        Some(row) => print::row(row),
        None => println!("no run of it was completed yet"),
    }
    Ok(ExitCode::SUCCESS)
}

async fn ask(pool: &PgPool, options: RunOptions, json: bool) -> Result<ExitCode, Exit> {
    let RunOptions { schedule, dry_run, flags, no_wait, author } = options;
    let schedules = job_schedules::list(pool, Some(&schedule)).await?;
    let Some(known) = schedules.first() else { return Err(unknown(pool, &schedule).await) };
    if let Some(job) = taskflow_scheduler::all_jobs().find(|job| job.name == known.job) {
        job.knows(flags.iter().map(String::as_str)).map_err(Exit::usage)?;
    }
    let mut arguments: serde_json::Map<String, serde_json::Value> =
        flags.into_iter().map(|flag| (flag, true.into())).collect();
    if dry_run {
        arguments.insert("dry_run".to_owned(), true.into());
    }
    let author = author.unwrap_or_else(super::pause::system_user);
    let Some(id) = job_runs::ask(pool, &schedule, &known.job, &arguments.into(), &author).await? else {
        return Err(Exit::failed(format!(
            "too many runs of {schedule} wait already; `taskflow jobs history {schedule}`"
        )));
    };
    if no_wait {
        say(
            json,
            &json!({ "run": id }),
            &format!("run {id} is asked for; `taskflow jobs show {id}` tells how it went"),
        )?;
        return Ok(ExitCode::SUCCESS);
    }
    if !leader::read(pool).await?.leads {
        eprintln!(
            "taskflow: no scheduler leads at the moment; run {id} waits for one (Ctrl-C does not take it back)"
        );
    }
    let row = ended(pool, id).await?;
    if json {
        print_json(&row)?;
    } else {
        print::row(&row);
    }
    Ok(if row.state == State::Completed.as_str() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

async fn ended(pool: &PgPool, id: i64) -> Result<Row, Exit> {
    loop {
        let Some(row) = job_history::read(pool, id).await? else {
            return Err(Exit::failed(format!("run {id} is gone")));
        };
        if State::from_word(&row.state).is_some_and(State::is_over) {
            return Ok(row);
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// There is no such schedule: says which there are, or that none was ever written.
async fn unknown(pool: &PgPool, name: &str) -> Exit {
    let names = match job_schedules::list(pool, None).await {
        Ok(schedules) => schedules.into_iter().map(|schedule| schedule.name).collect::<Vec<_>>(),
        Err(error) => return error.into(),
    };
    let closest = names
        .iter()
        .map(|known| (strsim::jaro_winkler(known, name), known))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(likeness, _)| *likeness > 0.75);
    Exit::usage(match closest {
        Some((_, known)) => format!("there is no schedule {name:?}; did you mean {known:?}?"),
        None if names.is_empty() => {
            "there are no schedules yet: they come with the first start of a scheduler".to_owned()
        }
        None => format!("there is no schedule {name:?}; `taskflow jobs list` lists them"),
    })
}

fn say(json: bool, value: &serde_json::Value, text: &str) -> Result<(), Exit> {
    if json {
        print_json(value)?;
    } else {
        println!("{text}");
    }
    Ok(())
}

fn print_json(value: &impl serde::Serialize) -> Result<ExitCode, Exit> {
    println!("{}", serde_json::to_string(value).map_err(|error| Exit::failed(error.to_string()))?);
    Ok(ExitCode::SUCCESS)
}
