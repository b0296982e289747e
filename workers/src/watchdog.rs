//! Connected, messages waiting, nothing finished: the state that every worker system knows and none may be left in.
//!
//! Every few seconds the broker's count of each held partition is compared with what its pipeline shows of itself.
//! What is stuck without a known cause is repaired, mildest step first ([`judge`]), and shown: `/readyz` turns red,
//! each step is logged and counted.

mod judge;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use taskflow_core::metric;
use taskflow_stores::rabbit::link::Depth;
use taskflow_stores::rabbit::topology::Partition;
use taskflow_stores::{crash, observe};
use tokio::task::AbortHandle;
use tokio_util::sync::CancellationToken;

use self::judge::{Look, Memory, Step, Verdict};
use crate::Context;
use crate::pulse::{Doing, Pulse};

/// Looks at a partition within its patience.
const LOOKS: u32 = 5;
const LOOK_MOST_SELDOM: Duration = Duration::from_secs(3);

/// The pipelines that are watched.
#[derive(Clone, Default)]
pub(crate) struct Watched(Arc<Mutex<BTreeMap<Partition, Pipeline>>>);

#[derive(Clone)]
struct Pipeline {
    pulse: Arc<Pulse>,
    task: AbortHandle,
}

impl Watched {
    pub(crate) fn add(&self, partition: Partition, pulse: Arc<Pulse>, task: AbortHandle) {
        self.lock().insert(partition, Pipeline { pulse, task });
    }

    pub(crate) fn remove(&self, partition: Partition) {
        self.lock().remove(&partition);
    }

    fn all(&self) -> BTreeMap<Partition, Pipeline> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<Partition, Pipeline>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Ends when the process must end since nothing milder has helped: never, as a rule.
pub(crate) async fn until_hopeless(context: &Context, stop: &CancellationToken) {
    if !watch(context, stop).await {
        std::future::pending::<()>().await;
    }
}

/// Watches until `stop`; `true` if the process must end.
async fn watch(context: &Context, stop: &CancellationToken) -> bool {
    for step in ["renew", "channel", "connection", "exit"] {
        observe::counter(&metric::WATCHDOG_STEPS, &[("step", step)]).absolute(0);
    }
    let patience = Duration::from_millis(context.settings.stuck_after_ms.max(1));
    let pause = (patience / LOOKS).min(LOOK_MOST_SELDOM);
    let mut memories: BTreeMap<Partition, Memory> = BTreeMap::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return false,
            () = tokio::time::sleep(pause) => {}
        }
        crash::point("watchdog");
        let watched = context.watched.all();
        // A partition that is being started again keeps its memory: its next holder is this worker.
        memories.retain(|partition, memory| {
            let keep = watched.contains_key(partition) || memory.is_repairing(Instant::now(), patience);
            if !keep {
                show(context, *partition, None);
            }
            keep
        });
        for (partition, pipeline) in watched {
            let link = &context.stores.consume;
            let found = link.depth(&partition.queue()).await;
            let memory = memories.entry(partition).or_default();
            let depth = match found {
                Ok(depth) => depth,
                // A broker that does not answer is a known cause.
                Err(_) if !link.is_up() => break,
                // It answers, but not of this queue: the queue is gone, or has lost the majority of its members.
                Err(error) => {
                    if memory.is_unseen_for(Instant::now(), patience) {
                        let detail = format!("the broker does not say what waits in its queue: {error}");
                        show(context, partition, Some(detail));
                    }
                    continue;
                }
            };
            if look(context, partition, &pipeline, depth, memory, patience) {
                return true;
            }
        }
    }
}

/// Looks at one partition and does what is to be done; `true` if that is to end the process.
fn look(
    context: &Context,
    partition: Partition,
    pipeline: &Pipeline,
    depth: Depth,
    memory: &mut Memory,
    patience: Duration,
) -> bool {
    let Depth { ready, consumers } = depth;
    let takes = context.stores.publisher.takes();
    let look = Look { now: Instant::now(), ready, consumers, takes, pulse: pipeline.pulse.state() };
    let verdict = memory.judge(&look, patience);
    let doing = &look.pulse.doing;
    match verdict {
        Verdict::Well => show(context, partition, None),
        Verdict::Unseen => {
            let detail = "the broker knows of no consumer of its queue: the queue's leader does not answer";
            show(context, partition, Some(detail.to_owned()));
        }
        Verdict::StillStuck => show(context, partition, Some(cause(&look))),
        Verdict::Renew => {
            show(context, partition, None);
            observe::counter(&metric::WATCHDOG_STEPS, &[("step", "renew")]).increment(1);
            pipeline.pulse.leave();
        }
        Verdict::Stuck(step) => {
            show(context, partition, Some(cause(&look)));
            observe::counter(&metric::WATCHDOG_STEPS, &[("step", step.as_str())]).increment(1);
            let finished = look.pulse.finished.map(|at| look.now.saturating_duration_since(at).as_secs());
            tracing::error!(
                %partition, step = step.as_str(), ready, consumers, ?doing, finished_s_ago = finished,
                "Messages wait and nothing is finished, for no known cause; the watchdog repairs the partition."
            );
            match step {
                // The lease's keeper sees that the pipeline has ended, and starts it under a new epoch.
                Step::RebuildChannel => pipeline.task.abort(),
                Step::RebuildConnection => {
                    pipeline.task.abort();
                    context.stores.consume.rebuild();
                }
                Step::Exit => return true,
            }
        }
    }
    false
}

fn cause(look: &Look) -> String {
    match &look.pulse.doing {
        Doing::Broken(detail) => format!("stands still until this is mended: {detail}"),
        _ => format!("stuck: {} messages wait and nothing is finished; the watchdog is at work", look.ready),
    }
}

fn show(context: &Context, partition: Partition, fault: Option<String>) {
    let name = partition.to_string();
    observe::gauge(&metric::PARTITION_STUCK, &[("partition", &name)]).set(if fault.is_some() {
        1.0
    } else {
        0.0
    });
    let part = format!("partition {name}");
    match fault {
        Some(detail) => context.vitals.fault(&part, detail),
        None => context.vitals.well(&part),
    }
}
