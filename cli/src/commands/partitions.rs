//! `taskflow partitions show` and `set`: how many partition queues there are.
//!
//! `set` writes down what is wanted. The workers take the steps of the change, so the command may be ended at any
//! moment; where none is alive it takes them itself.

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Subcommand;
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::{Value, json};
use taskflow_core::partition::{Course, Layout, PARTITIONS_MAX, Partition, Phase};
use taskflow_stores::postgres::{PgPool, layout, pauses, silence};
use taskflow_stores::rabbit::consume;
use taskflow_stores::rabbit::link::Link;
use taskflow_stores::{Kind, StoreError, postgres};
use taskflow_workers::change::{self, Waits};
use taskflow_workers::crash;
use tokio_util::sync::CancellationToken;

use super::pause::system_user;
use crate::exit::{Exit, FAILED};
use crate::settings::Settings;

/// Between two looks at a change.
const LOOK_EVERY: Duration = Duration::from_millis(250);

#[derive(Subcommand)]
pub(crate) enum Command {
    /// How many there are, what waits in each, and how far a change is
    Show,
    /// Change their number while everything runs: the old queues are emptied, then new ones are consumed
    Set(Set),
}

#[derive(clap::Args)]
pub(crate) struct Set {
    /// Partitions for commands of normal priority
    #[arg(value_name = "N", value_parser = clap::value_parser!(u16).range(1..=i64::from(PARTITIONS_MAX)))]
    partitions: u16,
    /// Partitions for commands of low priority [default: as many as there are]
    #[arg(long, value_name = "M", value_parser = clap::value_parser!(u16).range(1..=i64::from(PARTITIONS_MAX)))]
    low: Option<u16>,
    /// How long the change is watched, in seconds. It goes on afterwards, as long as a worker is alive
    #[arg(long, default_value_t = 600, value_name = "SECONDS")]
    wait: u64,
    /// Who changes it [default: the system's user]
    #[arg(long = "as", value_name = "NAME")]
    author: Option<String>,
}

pub(crate) async fn run(command: Command, settings: &Settings, json: bool) -> Result<ExitCode, Exit> {
    let stop = CancellationToken::new();
    let place = Place {
        postgres: postgres::connect(&settings.postgres, "taskflow partitions")?,
        link: Link::start(&settings.amqp, "taskflow partitions", stop.clone())?,
        settings,
        json,
    };
    let result = match command {
        Command::Show => place.show().await,
        Command::Set(options) => place.set(options).await,
    };
    stop.cancel();
    result
}

struct Place<'s> {
    postgres: PgPool,
    link: Link,
    settings: &'s Settings,
    json: bool,
}

impl Place<'_> {
    async fn course(&self) -> Result<Course, StoreError> {
        layout::course(&self.postgres, self.settings.amqp.layout()).await
    }

    async fn show(&self) -> Result<ExitCode, Exit> {
        let course = self.course().await?;
        let mut rows = Vec::new();
        let mut all = course.declared();
        all.extend(course.leaving());
        all.sort();
        all.dedup();
        for partition in all {
            rows.push((partition, self.link.find(&partition.queue()).await?));
        }
        let role = |partition: &Partition| role(&course, *partition);
        if self.json {
            let queues = rows.iter().map(|(partition, depth)| {
                json!({
                    "partition": partition.to_string(), "queue": partition.queue(), "is": role(partition),
                    "there": depth.is_some(), "ready": depth.map(|d| d.ready), "consumers": depth.map(|d| d.consumers),
                })
            });
            let queues: Vec<Value> = queues.collect();
            println!("{}", told(&course, &json!({ "queues": queues })));
        } else {
            println!("{}", sentence(&course));
            for (partition, depth) in &rows {
                let depth = depth.map_or("no such queue".to_owned(), |depth| {
                    format!("{:>9} waiting  {} consumers", depth.ready, depth.consumers)
                });
                println!("  {partition:<7} {:<30} {depth}  {}", partition.queue(), role(partition));
            }
            if !course.is_settled() {
                println!("{}", self.reasons(&self.look(&course).await?).await);
            }
        }
        Ok(ExitCode::SUCCESS)
    }

    async fn set(&self, options: Set) -> Result<ExitCode, Exit> {
        let Set { partitions, low, wait, author } = options;
        // Waits for the connection, and says clearly if there is none.
        drop(self.link.channel().await?);
        let course = self.course().await?;
        let low = low.unwrap_or(course.to.low.partitions);
        let wanted = |layout: &Layout| (layout.normal.partitions, layout.low.partitions) == (partitions, low);
        if !course.is_settled() && !wanted(&course.to) {
            return Err(Exit::failed(format!(
                "{}; wait for its end (`taskflow partitions show`), then set another number",
                sentence(&course)
            )));
        }
        if course.is_settled() {
            if wanted(&course.to) {
                return Ok(self.done(&course, "nothing to do"));
            }
            self.begin(&course, course.to.changed_to(partitions, low), author).await?;
        }
        crash::point("change_asked");
        self.watch(Duration::from_secs(wait)).await
    }

    async fn begin(&self, course: &Course, to: Layout, author: Option<String>) -> Result<(), Exit> {
        let (_, older) = layout::workers(&self.postgres).await?;
        if older > 0 {
            return Err(Exit::failed(format!(
                "{older} live workers are of a version that does not know of changes; replace them first"
            )));
        }
        let author = author.unwrap_or_else(system_user);
        match layout::start(&self.postgres, course, to, &author).await? {
            Some(_) => Ok(()),
            None => {
                Err(Exit::failed("somebody else has begun a change just now: `taskflow partitions show`"))
            }
        }
    }

    /// Takes the next step where nobody else does. Queues are declared by whoever takes a step, by its own settings: the
    /// workers' come first.
    async fn step(&self) -> Result<Course, StoreError> {
        let (live, _) = layout::workers(&self.postgres).await?;
        if live > 0 {
            return self.course().await;
        }
        let prefetch = consume::prefetch(self.settings.worker.max_batch);
        let advanced = change::advance(&self.postgres, &self.link, &self.settings.amqp, prefetch);
        silence::within(change::LONGEST_STEP, "change the partitions", advanced).await
    }

    /// Shows how far it is, until it is done.
    async fn watch(&self, patience: Duration) -> Result<ExitCode, Exit> {
        let bar = if self.json { ProgressBar::hidden() } else { ProgressBar::new_spinner() };
        if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
            bar.set_style(style);
        }
        let end = Instant::now() + patience;
        loop {
            let mut trouble = None;
            match self.step().await {
                Ok(course) if course.is_settled() => {
                    bar.finish_and_clear();
                    return Ok(self.done(&course, "done"));
                }
                Ok(course) => match self.look(&course).await {
                    Ok(waits) => {
                        bar.set_message(format!("{}: {}", course.phase.as_str(), self.reasons(&waits).await));
                    }
                    Err(error) => trouble = Some(error),
                },
                Err(error) => trouble = Some(error),
            }
            if let Some(error) = &trouble {
                if error.kind == Kind::Bug {
                    bar.finish_and_clear();
                    return Err(error.clone().into());
                }
                bar.set_message(error.to_string());
            }
            bar.tick();
            if Instant::now() >= end {
                bar.finish_and_clear();
                return self.late(trouble).await;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    async fn late(&self, trouble: Option<StoreError>) -> Result<ExitCode, Exit> {
        if let Some(error) = trouble {
            let goes_on = "the change is begun and goes on when the store is back";
            return Err(StoreError { detail: format!("{}; {goes_on}", error.detail), ..error }.into());
        }
        let course = self.course().await?;
        let reasons = self.reasons(&self.look(&course).await?).await;
        if self.json {
            println!("{}", told(&course, &json!({ "waits": reasons })));
        } else {
            eprintln!(
                "taskflow: {}; {reasons}. It goes on; run the command again to watch it.",
                sentence(&course)
            );
        }
        Ok(ExitCode::from(FAILED))
    }

    fn done(&self, course: &Course, how: &str) -> ExitCode {
        if self.json {
            println!("{}", told(course, &json!({ "result": how })));
        } else {
            println!("{how}: {}", sentence(course));
        }
        ExitCode::SUCCESS
    }

    async fn look(&self, course: &Course) -> Result<Waits, StoreError> {
        change::look(&self.postgres, &self.link, course).await
    }

    /// What a change waits for, in words.
    async fn reasons(&self, waits: &Waits) -> String {
        let mut reasons = Vec::new();
        let messages: u64 = waits.messages.values().map(|ready| u64::from(*ready)).sum();
        if messages > 0 {
            reasons.push(format!("{messages} messages in {} old queues", waits.messages.len()));
            if layout::workers(&self.postgres).await.is_ok_and(|(live, _)| live == 0) {
                reasons.push("no worker is alive to apply them".to_owned());
            }
            if let Ok(paused) = pauses::list(&self.postgres).await
                && !paused.is_empty()
            {
                let scopes: Vec<&str> = paused.iter().map(|pause| pause.scope.as_str()).collect();
                reasons.push(format!("paused: {} (`taskflow resume`)", scopes.join(", ")));
            }
        }
        for (count, what) in [
            (waits.outbox, "batches that a store does not have yet"),
            (waits.leases, "leases that are not given back"),
            (i64::from(waits.consumers), "consumers of old queues"),
        ] {
            if count > 0 {
                reasons.push(format!("{count} {what}"));
            }
        }
        if reasons.is_empty() {
            "waits for nothing".to_owned()
        } else {
            format!("waits for {}", reasons.join(", "))
        }
    }
}

fn role(course: &Course, partition: Partition) -> &'static str {
    match course.phase {
        Phase::Settled => "",
        _ if course.leaving().contains(&partition) => "old",
        _ if course.from.all().contains(&partition) => "",
        _ => "new",
    }
}

fn sentence(course: &Course) -> String {
    if course.is_settled() {
        return format!(
            "{} partitions, {} of low priority",
            course.to.normal.partitions, course.to.low.partitions
        );
    }
    format!(
        "the number of partitions changes from {} to {}, phase {}",
        course.from,
        course.to,
        course.phase.as_str()
    )
}

fn told(course: &Course, more: &Value) -> Value {
    let mut value = json!({
        "partitions": course.to.normal.partitions,
        "lowpartitions": course.to.low.partitions,
        "phase": course.phase.as_str(),
        "before": { "partitions": course.from.normal.partitions, "lowpartitions": course.from.low.partitions },
    });
    if let (Some(value), Some(more)) = (value.as_object_mut(), more.as_object()) {
        value.extend(more.clone());
    }
    value
}
