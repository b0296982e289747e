//! `taskflow pause`, `resume` and `pauses`: what operators hold back.

use std::process::ExitCode;

use taskflow_core::partition::Partition;
use taskflow_core::pause::Scope;
use taskflow_stores::postgres::pauses::{self, Pause, REASON_MAX};
use taskflow_stores::postgres::{self, PgPool, layout};

use crate::exit::{Exit, FAILED};
use crate::settings::Settings;

#[derive(clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct What {
    /// One partition, such as 03 or low.01
    #[arg(long, value_name = "NN")]
    partition: Option<Partition>,
    /// One type of command, such as task.create, and whatever is behind it in its partition
    #[arg(long = "type", value_name = "TYPE", value_parser = Scope::of_type)]
    kind: Option<Scope>,
    /// Everything
    #[arg(long)]
    all: bool,
}

#[derive(clap::Args)]
pub(crate) struct PauseOptions {
    #[command(flatten)]
    what: What,
    /// Why: whoever looks later reads it
    #[arg(long)]
    reason: String,
    /// Who pauses [default: the system's user]
    #[arg(long = "as", value_name = "NAME")]
    author: Option<String>,
}

#[derive(clap::Args)]
pub(crate) struct ResumeOptions {
    #[command(flatten)]
    what: What,
}

impl What {
    fn scope(self) -> Scope {
        match (self.partition, self.kind) {
            (Some(partition), _) => Scope::Partition(partition.to_string()),
            (None, Some(kind)) => kind,
            (None, None) => Scope::All,
        }
    }
}

/// Nobody is to believe that a partition is paused which does not exist.
async fn must_be_there(scope: &Scope, settings: &Settings, pool: &PgPool) -> Result<(), Exit> {
    let Scope::Partition(name) = scope else { return Ok(()) };
    let layout = layout::course(pool, settings.amqp.layout()).await?.layout();
    if layout.named(name).is_some() {
        return Ok(());
    }
    Err(Exit::usage(format!(
        "--partition {name}: there is no such partition; there are {} and {} of low priority",
        layout.normal.partitions, layout.low.partitions
    )))
}

/// `taskflow pause`.
pub(crate) async fn pause(options: PauseOptions, settings: &Settings, json: bool) -> Result<ExitCode, Exit> {
    let PauseOptions { what, reason, author } = options;
    if !(1..=REASON_MAX).contains(&reason.trim().chars().count()) {
        return Err(Exit::usage(format!("--reason: has 1 to {REASON_MAX} characters")));
    }
    let author = author.unwrap_or_else(system_user);
    let pool = connect(settings)?;
    let scope = what.scope();
    must_be_there(&scope, settings, &pool).await?;
    let paused = pauses::put(&pool, &scope, reason.trim(), &author).await?;
    if json {
        print_json(&paused)?;
    } else {
        println!("{scope} is paused; workers follow within a second or two. `taskflow resume` ends it.");
    }
    Ok(ExitCode::SUCCESS)
}

/// `taskflow resume`.
pub(crate) async fn resume(
    options: ResumeOptions,
    settings: &Settings,
    json: bool,
) -> Result<ExitCode, Exit> {
    let pool = connect(settings)?;
    let scope = options.what.scope();
    let Some(resumed) = pauses::remove(&pool, &scope).await? else {
        eprintln!("taskflow: {scope} is not paused; `taskflow pauses` lists what is");
        return Ok(ExitCode::from(FAILED));
    };
    if json {
        print_json(&resumed)?;
    } else {
        println!("{scope} goes on; workers follow within a second or two.");
        for other in pauses::list(&pool).await? {
            println!("still paused: {}", line(&other));
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// `taskflow pauses`.
pub(crate) async fn list(settings: &Settings, json: bool) -> Result<ExitCode, Exit> {
    let list = pauses::list(&connect(settings)?).await?;
    if json {
        print_json(&list)?;
    } else if list.is_empty() {
        println!("nothing is paused");
    }
    if !json {
        list.iter().for_each(|pause| println!("{}", line(pause)));
    }
    Ok(ExitCode::SUCCESS)
}

fn connect(settings: &Settings) -> Result<PgPool, Exit> {
    Ok(postgres::connect(&settings.postgres, "taskflow pause")?)
}

fn line(Pause { scope, reason, author, since }: &Pause) -> String {
    format!("{scope:<24} since {}, by {author}: {reason}", since.format("%Y-%m-%d %H:%M:%S UTC"))
}

fn print_json(value: &impl serde::Serialize) -> Result<(), Exit> {
    println!("{}", serde_json::to_string(value).map_err(|error| Exit::failed(error.to_string()))?);
    Ok(())
}

pub(crate) fn system_user() -> String {
    let user = nix::unistd::User::from_uid(nix::unistd::getuid()).ok().flatten();
    user.map_or_else(|| format!("uid {}", nix::unistd::getuid()), |user| user.name)
}
