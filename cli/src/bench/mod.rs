//! The benchmark: real servers of its own, TaskFlow's roles as processes of their own, and the barest loop that does
//! the same work of the stores as the floor beneath.

mod floor;
mod generate;
mod http;
mod intake;
mod latency;
mod low;
mod reads;
pub(crate) mod report;
mod sharing;
mod sockets;
mod throughput;
mod trail;
mod warming;

use std::path::PathBuf;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use report::{Figure, Report};

use crate::commands::bench::Phase;
use crate::place::Place;
use crate::settings::Settings;

/// Virtual hosts that are made in advance: one for each phase and round.
const VHOSTS: usize = 24;

/// What is measured.
pub(crate) struct Plan {
    pub commands: usize,
    pub lone: usize,
    pub seconds: u64,
    pub rounds: usize,
    pub events: usize,
    pub phases: Vec<Phase>,
    pub data: PathBuf,
    pub settings: Settings,
}

/// Runs the phases one after the other.
pub(crate) async fn run(plan: &Plan) -> anyhow::Result<Report> {
    let bar = ProgressBar::new_spinner();
    if let Ok(style) = ProgressStyle::with_template("{spinner} {elapsed} {msg}") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(std::time::Duration::from_millis(200));
    let tell = |what: &str| bar.set_message(what.to_owned());
    tell("starting the stores");
    let mut place = Place::open(&plan.data, &plan.settings, VHOSTS, |_| {})
        .await
        .context("start the benchmark's stores")?;
    let mut figures: Vec<Figure> = Vec::new();
    let mut result = Ok(());
    for phase in &plan.phases {
        let measured = match phase {
            Phase::Drain => throughput::drain(plan, &mut place, &tell).await,
            Phase::Costs => throughput::costs(plan, &mut place, &tell).await,
            Phase::Mixed => throughput::mixed(plan, &mut place, &tell).await,
            Phase::Intake => intake::run(plan, &mut place, &tell).await,
            Phase::Latency => latency::run(plan, &mut place, &tell).await,
            Phase::Low => low::run(plan, &mut place, &tell).await,
            Phase::Sharing => sharing::run(plan, &mut place, &tell).await,
            Phase::Sockets => sockets::run(&mut place, &tell).await,
            Phase::Trail => trail::run(plan, &mut place, &tell).await,
            Phase::Reads => reads::run(plan, &mut place, &tell).await,
            Phase::Warming => warming::run(&mut place, &tell).await,
        };
        match measured {
            Ok(measured) => figures.extend(measured),
            Err(error) => {
                result = Err(error.context(format!("phase {phase:?}")));
                break;
            }
        }
    }
    tell("stopping the stores");
    place.close().await;
    bar.finish_and_clear();
    result?;
    Ok(Report::of(plan, figures))
}
