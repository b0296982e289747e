//! One fault under load, from the start of the program to the verdict.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use taskflow_servers::Kind;
use tokio::time::{Instant, sleep, timeout};

use crate::dice::Dice;
use crate::faults::{Fault, Intake, Meanwhile};
use crate::harness::{Harness, heads};
use crate::load::{Load, Plan};
use crate::redis_cluster::RedisCluster;
use crate::verdict::{Verdict, examine};
use crate::world::Sync;
use crate::{Cluster, Site, World, wait};

/// The longest that a fault's own doing may take, the holding apart.
const ACT: Duration = Duration::from_secs(180);
/// The longest that the way back is watched: what has not gone on by then is stuck, however slow the machine.
const RECOVERY: Duration = Duration::from_secs(240);
/// A Postgres that is well tells how far the partitions are within this time.
const ANSWER: Duration = Duration::from_millis(500);
/// Log lines a second and partition that a worker may write while something is broken.
pub const LINES_MAX: f64 = 1.0;
/// The longest that a partition which goes on may need to show it, beside all the others that share the machine.
const SLOW: Duration = Duration::from_secs(60);
/// How often progress is looked at.
const LOOK_EVERY: Duration = Duration::from_millis(25);

/// The newest batch of each partition.
type Heads = Vec<(String, i64)>;

/// A partition, a sink or the intake that does not go on where it must: no accident of the trial.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Stuck(String);

/// How large a trial is.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    pub seed: u64,
    pub per_second: u64,
    pub senders: usize,
    /// The long form: faults last as long as they do in earnest, and leases too.
    pub long: bool,
}

impl Size {
    /// For a test beside others on a small machine.
    pub const SHORT: Self = Self { seed: 1, per_second: 200, senders: 16, long: false };

    /// Before the fault and after it.
    fn calm(self) -> Duration {
        Duration::from_millis(if self.long { 5_000 } else { 700 })
    }
}

/// What came of a trial: a row of the table.
#[derive(Debug)]
pub struct Row {
    pub fault: &'static str,
    pub seed: u64,
    pub accepted: usize,
    /// Accepted commands a second while nothing was broken.
    pub per_second: f64,
    pub verdict: Verdict,
    /// From the end of the fault until every partition had applied a command again, and every sink that had fallen behind
    /// had delivered something.
    pub recovery: Duration,
    /// Whether that was in time.
    pub in_time: bool,
    /// Lines of the workers' logs, a second of the fault and partition.
    pub lines: f64,
    /// The ends of the logs, where there are more lines than there may be, or the way back took too long.
    pub log: Option<String>,
}

impl Row {
    /// An error that says what was not as promised.
    pub fn must_be_clean(&self) -> Result<()> {
        ensure!(self.verdict.is_clean(), "{}, seed {}:\n{}", self.fault, self.seed, self.verdict);
        Ok(())
    }
}

/// Runs one trial with a fresh corner of these servers. `program` is the one under test.
pub async fn run(world: &World, program: &str, fault: &Fault, size: Size) -> Result<Row> {
    let redis = if fault.redis_cluster { Some(RedisCluster::start().await?) } else { None };
    let corner = match &redis {
        Some(redis) => Site::with_redis(world, &redis.url()).await?,
        None => Site::new(world).await?,
    };
    let cluster = Cluster::new(&corner, program)?;
    let mut harness = Harness::new(world, &corner, &cluster, Dice::new(size.seed).part(7))?;
    harness.redis_cluster = redis;
    harness.long = size.long;
    if size.long {
        // As in earnest; the site's own is short so that tests need not wait.
        harness.env.push(("TASKFLOW_WORKER__LEASE_MS".into(), "8000".into()));
    }
    harness.hold = Duration::from_secs_f64(if size.long { fault.hold.1 } else { fault.hold.0 });
    let ran = through(&mut harness, fault, size).await;
    corner.clear(world).await;
    ran.map_err(|error| {
        let logs = cluster.log_tails(15);
        error.context(format!("{}, seed {}; the ends of the logs:\n{logs}", fault.name, size.seed))
    })
}

async fn through(harness: &mut Harness<'_>, fault: &Fault, size: Size) -> Result<Row> {
    for kind in fault.wires {
        harness.lay_wire(*kind).await?;
    }
    act(harness, fault.prepare, "prepare").await?;
    for _ in 0..2 {
        harness.start_worker()?;
    }
    harness.start_api().await?;
    let plan = Plan { seed: size.seed, per_second: size.per_second, senders: size.senders };
    let load = Load::start(harness.site, &harness.base, plan).await?;
    harness.load = Some(Arc::clone(&load.control));
    let corner = harness.site;
    let partitions = usize::from(corner.rabbit.partitions);
    wait::until("all partitions are at work", async || Ok(heads(corner).await?.len() == partitions)).await?;
    let (calm, before) = (Instant::now(), load.control.accepted());
    sleep(size.calm()).await;
    let per_second = (load.control.accepted() - before) as f64 / calm.elapsed().as_secs_f64();

    let lines = harness.cluster.log_lines("worker");
    let broken = Instant::now();
    act(harness, fault.cause, "cause").await?;
    hold(harness, fault).await?;
    act(harness, fault.heal, "heal").await?;
    let healed = Instant::now();
    let recovery = recovered(harness, healed).await?;
    let lasted = broken.elapsed().as_secs_f64();
    let lines = (harness.cluster.log_lines("worker") - lines) as f64 / lasted.max(1.0) / partitions as f64;
    let log = (lines > LINES_MAX || recovery > fault.within).then(|| harness.cluster.log_tails(40));
    sleep(size.calm()).await;

    let accepted = load.end().await?;
    let verdict = examine(corner, &accepted).await?;
    for worker in std::mem::take(&mut harness.workers) {
        worker.stop().await?;
    }
    if let Some(api) = harness.api.take() {
        api.stop().await?;
    }
    harness.kept.clear();
    Ok(Row {
        fault: fault.name,
        seed: size.seed,
        accepted: accepted.commands(),
        per_second,
        verdict,
        recovery,
        in_time: recovery <= fault.within,
        lines,
        log,
    })
}

async fn act(harness: &mut Harness<'_>, act: crate::harness::Act, what: &str) -> Result<()> {
    timeout(ACT, act(harness))
        .await
        .with_context(|| format!("{what}: not done in time"))?
        .with_context(|| what.to_owned())
}

/// Lets the fault last, and looks whether it does what it is there for: in its second half, so that what was on its
/// way at first has arrived.
async fn hold(harness: &mut Harness<'_>, fault: &Fault) -> Result<()> {
    sleep(harness.hold / 2).await;
    if harness.hold.is_zero() {
        return Ok(());
    }
    let taken = harness.load()?.accepted();
    let then = progress(harness).await;
    let behind = if fault.falls_behind { outbox(harness).await? } else { 0 };
    sleep(harness.hold / 2).await;
    if fault.falls_behind {
        let patience = Instant::now() + SLOW;
        let mut now = outbox(harness).await?;
        while now < behind.max(1) && Instant::now() < patience {
            sleep(LOOK_EVERY).await;
            now = outbox(harness).await?;
        }
        ensure!(now >= behind.max(1), "all sinks follow meanwhile: the fault shows no effect");
    }
    let mut now = progress(harness).await;
    if fault.meanwhile == Meanwhile::Applies || fault.intake == Intake::Takes {
        // What goes on does so sooner or later on a busy machine; what stands does not go on at all.
        let patience = Instant::now() + SLOW;
        while !(goes_on(fault, then.as_ref(), now.as_ref())
            && is_taken(fault, harness.load()?.accepted() - taken))
            && Instant::now() < patience
        {
            sleep(LOOK_EVERY).await;
            now = progress(harness).await;
        }
    }
    let taken = harness.load()?.accepted() - taken;
    match (fault.meanwhile, then, now) {
        (Meanwhile::Applies, Some(then), Some(now)) => {
            let stuck = || Stuck(format!("commands are not applied meanwhile: {then:?} to {now:?}"));
            ensure!(all_went_on(&then, &now), stuck());
        }
        (Meanwhile::Applies, ..) => bail!("Postgres does not answer meanwhile"),
        (Meanwhile::Stands, Some(then), Some(now)) => {
            ensure!(!all_went_on(&then, &now), "the fault shows no effect: {then:?} to {now:?}");
        }
        // Where Postgres itself is the fault it can't be asked, and can't apply either.
        (Meanwhile::Stands | Meanwhile::Either, ..) => {}
    }
    match fault.intake {
        Intake::Takes => ensure!(taken > 0, Stuck("nothing is accepted meanwhile".to_owned())),
        Intake::Refuses => {
            ensure!(taken == 0, "{taken} commands are accepted meanwhile: the fault shows no effect");
        }
        Intake::Either => {}
    }
    Ok(())
}

fn goes_on(fault: &Fault, then: Option<&Heads>, now: Option<&Heads>) -> bool {
    fault.meanwhile != Meanwhile::Applies
        || matches!((then, now), (Some(then), Some(now)) if all_went_on(then, now))
}

fn is_taken(fault: &Fault, commands: u64) -> bool {
    !matches!(fault.intake, Intake::Takes) || commands > 0
}

/// Batches that some sink has not yet.
async fn outbox(harness: &Harness<'_>) -> Result<i64> {
    harness.site.count("SELECT count(*) FROM outbox").await
}

/// How far the partitions are, if Postgres tells.
async fn progress(harness: &Harness<'_>) -> Option<Heads> {
    timeout(ANSWER, harness.heads()).await.ok()?.ok()
}

fn all_went_on(then: &[(String, i64)], now: &[(String, i64)]) -> bool {
    now.iter().zip(then).all(|(now, then)| now.1 > then.1)
}

/// Waits until every partition has applied something that it had not when the fault was healed, and until the sinks of
/// those that had fallen behind have delivered something.
async fn recovered(harness: &Harness<'_>, healed: Instant) -> Result<Duration> {
    let mut base: Option<(Heads, Heads)> = None;
    loop {
        if let (Ok(heads), Ok(behind)) = (harness.heads().await, behind(harness.site).await) {
            match &base {
                None => base = Some((heads, behind)),
                Some((then, before)) => {
                    if all_went_on(then, &heads) && all_deliver(before, &behind) {
                        return Ok(healed.elapsed());
                    }
                }
            }
        }
        if healed.elapsed() > RECOVERY {
            let s = RECOVERY.as_secs();
            return Err(Stuck(format!("not all goes on {s} s after the fault: {base:?}")).into());
        }
        sleep(LOOK_EVERY).await;
    }
}

/// The oldest batch of each partition that some sink has not.
async fn behind(site: &Site) -> Result<Heads> {
    let oldest = sqlx::query_as("SELECT partition, min(number) FROM outbox GROUP BY partition");
    Ok(oldest.fetch_all(&site.postgres).await?)
}

fn all_deliver(then: &[(String, i64)], now: &[(String, i64)]) -> bool {
    then.iter().all(|then| now.iter().all(|now| now.0 != then.0 || now.1 > then.1))
}

/// Servers, one set after another, each for so many trials.
pub struct Worlds {
    world: Option<World>,
    used: usize,
    /// Whether they have small disks.
    small: bool,
    sync: Sync,
}

/// Those that some fault fills.
const SMALL_DISKS: &[Kind] = &[Kind::Postgres, Kind::MongoDb, Kind::Redis];
/// Trials with one set of servers: what they leave there slows those that follow.
const CORNERS: usize = 40;

impl Worlds {
    pub fn new(sync: Sync) -> Self {
        Self { world: None, used: 0, small: false, sync }
    }

    /// A set of servers for a trial of this fault, the last one's if it has a corner left.
    pub async fn get(&mut self, fault: &Fault) -> Result<&World> {
        let small = !fault.small_disks.is_empty();
        if self.small != small {
            self.stop().await;
        }
        self.start(small).await
    }

    /// Whatever servers there are.
    pub async fn any(&mut self) -> Result<&World> {
        self.start(self.small).await
    }

    async fn start(&mut self, small: bool) -> Result<&World> {
        if self.used >= CORNERS {
            self.stop().await;
        }
        self.used += 1;
        if self.world.is_none() {
            self.used = 1;
            self.small = small;
            self.world = Some(World::start_on(if small { SMALL_DISKS } else { &[] }, self.sync).await?);
        }
        self.world.as_ref().context("there are no servers")
    }

    /// After a trial that failed: nobody knows what it has left.
    pub async fn stop(&mut self) {
        if let Some(world) = self.world.take() {
            world.stop().await;
        }
    }
}
