//! What a backlog of low priority does to normal commands.

use anyhow::{Result, ensure};
use taskflow_core::command::Priority;
use taskflow_stores::clock;

use super::report::Figure;
use super::{Plan, generate, latency, throughput};
use crate::place::{self, Place, Site};

/// Low commands in the backlog for each normal one.
const AT_LEAST: usize = 40;

/// Lone normal commands, without a backlog and with one, by the same worker.
pub(super) async fn run(plan: &Plan, place: &mut Place, tell: &impl Fn(&str)) -> Result<Vec<Figure>> {
    let site = place.site().await?;
    tell("low priority: the backlog");
    let now = clock::now();
    // Long enough to last: low commands go on meanwhile, though slowly.
    let backlog = plan.commands.max(AT_LEAST * (plan.lone + latency::WARM_UP));
    let low = (0..backlog).map(|number| {
        let mut command = generate::create(number, now);
        command.priority = Priority::Low;
        command
    });
    throughput::preload(&site, low.collect()).await?;
    let before = waiting(&site).await?;
    let worker = site.spawn("worker", None)?;
    tell("low priority: normal commands with the backlog behind them");
    let (with, _) = latency::publishes(&site, plan.lone).await?;
    let after = waiting(&site).await?;
    place::stop(worker).await?;
    ensure!(after > 0, "the backlog of {before} was gone before the end: take more --commands");
    site.close().await;

    let site = place.site().await?;
    let worker = site.spawn("worker", None)?;
    tell("low priority: normal commands alone");
    let (without, _) = latency::publishes(&site, plan.lone).await?;
    place::stop(worker).await?;
    site.close().await;

    let percentiles = |times: &[f64]| [0.50, 0.99].map(|share| latency::percentile(times, share));
    let ([alone50, alone99], [with50, with99]) = (percentiles(&without), percentiles(&with));
    Ok(vec![
        Figure::new("low-priority commands that waited at the end", f64::from(after), "commands", None),
        Figure::new("normal command alone, p50", alone50, "ms", None),
        Figure::new("normal command alone, p99", alone99, "ms", None),
        Figure::new("normal command before a low backlog, p50", with50, "ms", None),
        Figure::new("normal command before a low backlog, p99", with99, "ms", None),
        Figure::at_most("low backlog: p99 with / without", with99 / alone99, "ratio", 1.5),
    ])
}

async fn waiting(site: &Site) -> Result<u32> {
    let mut ready = 0;
    for partition in site.layout.all().into_iter().filter(|partition| partition.low) {
        ready += site.stores.consume.depth(&partition.queue()).await?.ready;
    }
    Ok(ready)
}
