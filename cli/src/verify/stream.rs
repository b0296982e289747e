//! The stream: each subject is created and then updated, every update naming the version that the one before it leaves
//! behind. One that is lost, doubled or out of order shows in all that follow.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use taskflow_core::command::{Body, CreateTask, UpdateTask};
use taskflow_core::state::TaskPriority;
use taskflow_stores::clock;
use taskflow_stores::rabbit::publish::{Message, Publisher};
use tokio::task::JoinSet;
use uuid::Uuid;

use super::{Plan, Run};

/// The pause before a command is sent again, give or take a half.
const AGAIN: Duration = Duration::from_millis(100);

/// What the stream has done so far.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub accepted: AtomicU64,
    /// Tries that the broker did not confirm; each was made again under the same id.
    pub refused: AtomicU64,
}

/// A subject's commands.
#[derive(Debug, Default)]
pub(crate) struct Sent {
    /// Those that were accepted, in order.
    pub accepted: Vec<Uuid>,
    /// The last one was never confirmed: the broker may have it or not.
    pub one_more: bool,
}

/// A stream on its way.
pub(crate) struct Stream {
    subjects: JoinSet<(Uuid, Sent)>,
    enough: Arc<AtomicBool>,
    pub(crate) progress: Arc<Progress>,
}

impl Stream {
    pub(crate) fn start(publisher: &Publisher, run: Run, plan: Plan) -> Self {
        let (enough, progress) = (Arc::new(AtomicBool::new(false)), Arc::new(Progress::default()));
        let mut subjects = JoinSet::new();
        let pause = Duration::from_secs_f64(plan.subjects as f64 / plan.rate.max(0.1));
        for number in 0..plan.subjects {
            let publisher = publisher.clone();
            let (enough, progress) = (Arc::clone(&enough), Arc::clone(&progress));
            // Spread over the first pause.
            let first = pause.mul_f64(number as f64 / plan.subjects as f64);
            subjects.spawn(async move {
                tokio::time::sleep(first).await;
                publish(&publisher, run, (pause, plan.patience), &enough, &progress).await
            });
        }
        Self { subjects, enough, progress }
    }

    /// Ends the stream. Returns each subject's commands. Ends within the patience, whatever the broker does.
    pub(crate) async fn end(mut self) -> HashMap<Uuid, Sent> {
        self.enough.store(true, Ordering::Relaxed);
        let mut accepted = HashMap::new();
        while let Some(ended) = self.subjects.join_next().await {
            if let Ok((subject, sent)) = ended {
                accepted.insert(subject, sent);
            }
        }
        accepted
    }
}

/// A subject's commands, one after the other. One that is not confirmed is sent again under its id: the promise says
/// that this is safe. So the stream outlives any restart of the broker.
async fn publish(
    publisher: &Publisher,
    run: Run,
    (pause, patience): (Duration, Duration),
    enough: &AtomicBool,
    progress: &Progress,
) -> (Uuid, Sent) {
    let subject = clock::new_id();
    let mut sent = Sent::default();
    let mut next = Instant::now();
    while !enough.load(Ordering::Relaxed) {
        let command = run.command(subject, body(sent.accepted.len() as i32));
        let deadline = Instant::now() + patience;
        while let Err(error) = publisher.publish(Message::command(&command, clock::now(), None)).await {
            progress.refused.fetch_add(1, Ordering::Relaxed);
            if Instant::now() > deadline {
                sent.one_more = true;
                return (subject, sent);
            }
            tracing::debug!(%error, "The broker did not take a command; it is sent again.");
            tokio::time::sleep(AGAIN.mul_f64(rand::random_range(0.5..=1.5))).await;
        }
        sent.accepted.push(command.id);
        progress.accepted.fetch_add(1, Ordering::Relaxed);
        next = (next + pause).max(Instant::now().checked_sub(pause).unwrap_or(next));
        tokio::time::sleep_until(next.into()).await;
    }
    (subject, sent)
}

/// What the command after `version` does.
fn body(version: i32) -> Body {
    let title = title(version + 1);
    if version == 0 {
        return Body::CreateTask(CreateTask {
            title,
            description: None,
            priority: TaskPriority::Low,
            assigneeid: None,
            duedate: None,
        });
    }
    Body::UpdateTask(UpdateTask {
        title: Some(title),
        description: None,
        priority: None,
        duedate: None,
        expectedversion: Some(version),
    })
}

pub(super) fn title(version: i32) -> String {
    format!("verify: version {version}")
}
