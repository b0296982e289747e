//! The streams: each subject is created and then updated, every update naming the version that the one before it leaves
//! behind. One that is lost, doubled or out of order shows in all that follow. Now and then an earlier command is sent
//! once more, as upstream systems do that are not sure.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use chrono::{DateTime, Utc};
use taskflow_core::command::{Body, Command, CreateTask, Priority, UpdateTask};
use taskflow_core::state::TaskPriority;
use taskflow_stores::clock;
use taskflow_stores::rabbit::publish::{Message, PublishError, Publisher};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::{Plan, Run};

/// The pause before a command is sent again, give or take a half.
const AGAIN: Duration = Duration::from_millis(100);
/// One subject of so many is sent with low priority.
const LOW_PART: usize = 8;
/// One command of so many is followed by an earlier one that was accepted already.
const TWICE_PART: u32 = 10;
/// Of the newest so many.
const REMEMBERED: usize = 8;

/// What the stream has done so far.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub accepted: AtomicU64,
    /// Tries that the broker did not confirm; each was made again under the same id.
    pub refused: AtomicU64,
    /// Commands that were sent once more although they had been accepted.
    pub twice: AtomicU64,
}

/// A subject's commands.
#[derive(Debug)]
pub(crate) struct Sent {
    pub priority: Priority,
    /// Those that were accepted, in order.
    pub accepted: Vec<Uuid>,
    /// None of them was offered later.
    pub newest_at: DateTime<Utc>,
    /// Why nothing more was sent: the last one was never confirmed, and the broker may have it or not.
    pub given_up: Option<String>,
}

/// What a stream has sent.
#[derive(Debug, Default)]
pub(crate) struct Streamed {
    /// The commands of each subject.
    pub subjects: HashMap<Uuid, Sent>,
    /// Why senders died: what they have sent is not known.
    pub died: Vec<String>,
}

impl Streamed {
    /// How many commands were accepted.
    pub(crate) fn accepted(&self) -> usize {
        self.subjects.values().map(|one| one.accepted.len()).sum()
    }

    /// The commands that were accepted.
    pub(super) fn ids(&self) -> impl Iterator<Item = Uuid> {
        self.subjects.values().flat_map(|one| &one.accepted).copied()
    }

    /// Why subjects were given up, once for each.
    pub(super) fn given_up(&self) -> impl Iterator<Item = &str> {
        let unconfirmed = self.subjects.values().filter_map(|one| one.given_up.as_deref());
        unconfirmed.chain(self.died.iter().map(String::as_str))
    }
}

/// A stream on its way.
pub(crate) struct Stream {
    subjects: JoinSet<(Uuid, Sent)>,
    /// Ends with the stream.
    pub(crate) enough: CancellationToken,
    pub(crate) progress: Arc<Progress>,
}

impl Stream {
    pub(crate) fn start(publisher: &Publisher, run: Run, plan: Plan) -> Self {
        let (enough, progress) = (CancellationToken::new(), Arc::new(Progress::default()));
        let mut subjects = JoinSet::new();
        let pause = Duration::from_secs_f64(plan.subjects as f64 / plan.rate.max(0.1));
        for number in 0..plan.subjects {
            let sender = Sender {
                publisher: publisher.clone(),
                run,
                pause,
                patience: plan.patience,
                priority: if number % LOW_PART == LOW_PART - 1 { Priority::Low } else { Priority::Normal },
                enough: enough.clone(),
                progress: Arc::clone(&progress),
            };
            // Spread over the first pause.
            let first = pause.mul_f64(number as f64 / plan.subjects as f64);
            subjects.spawn(async move {
                sender.rest_until(Instant::now() + first).await;
                sender.run().await
            });
        }
        Self { subjects, enough, progress }
    }

    /// Ends the stream. Comes to its end within the patience, whatever the broker does.
    pub(crate) async fn end(mut self) -> Streamed {
        self.enough.cancel();
        let mut streamed = Streamed::default();
        while let Some(ended) = self.subjects.join_next().await {
            match ended {
                Ok((subject, sent)) => {
                    streamed.subjects.insert(subject, sent);
                }
                Err(error) => streamed.died.push(format!("its sender died: {error}")),
            }
        }
        streamed
    }
}

/// Sends the commands of one subject.
struct Sender {
    publisher: Publisher,
    run: Run,
    pause: Duration,
    patience: Duration,
    priority: Priority,
    enough: CancellationToken,
    progress: Arc<Progress>,
}

impl Sender {
    /// One command after the other. One that is not confirmed is sent again under its id: the promise says that this is
    /// safe. So the stream outlives any restart of the broker.
    async fn run(self) -> (Uuid, Sent) {
        let subject = clock::new_id();
        let mut sent =
            Sent { priority: self.priority, accepted: Vec::new(), newest_at: clock::now(), given_up: None };
        let mut newest: VecDeque<Command> = VecDeque::with_capacity(REMEMBERED);
        let mut next = Instant::now();
        while !self.enough.is_cancelled() {
            let command = self.run.command(subject, body(sent.accepted.len() as i32));
            let command = Command { priority: self.priority, ..command };
            let offered = self.offer(&command).await;
            // After the last try: each says anew when the command was accepted.
            sent.newest_at = clock::now();
            if let Err(error) = offered {
                sent.given_up = Some(error.to_string());
                break;
            }
            sent.accepted.push(command.id);
            self.progress.accepted.fetch_add(1, Ordering::Relaxed);
            if newest.len() == REMEMBERED {
                newest.pop_front();
            }
            newest.push_back(command);
            if rand::random_ratio(1, TWICE_PART) {
                self.send_once_more(&newest[rand::random_range(0..newest.len())]).await;
            }
            next = (next + self.pause).max(Instant::now().checked_sub(self.pause).unwrap_or(next));
            self.rest_until(next).await;
        }
        (subject, sent)
    }

    /// Waits until then, or until it is enough.
    async fn rest_until(&self, then: Instant) {
        tokio::select! {
            () = self.enough.cancelled() => {}
            () = tokio::time::sleep_until(then.into()) => {}
        }
    }

    /// Offers a command until it is accepted.
    ///
    /// # Errors
    /// The last one, if it was not accepted within the patience.
    async fn offer(&self, command: &Command) -> Result<(), PublishError> {
        let deadline = Instant::now() + self.patience;
        while let Err(error) = self.publisher.publish(Message::command(command, clock::now(), None)).await {
            self.progress.refused.fetch_add(1, Ordering::Relaxed);
            if Instant::now() > deadline {
                return Err(error);
            }
            tracing::debug!(%error, "The broker did not take a command; it is sent again.");
            tokio::time::sleep(AGAIN.mul_f64(rand::random_range(0.5..=1.5))).await;
        }
        Ok(())
    }

    /// Sends a command that was accepted before. Whether the broker takes it or not makes no difference: that is what
    /// is tested.
    async fn send_once_more(&self, command: &Command) {
        if self.publisher.publish(Message::command(command, clock::now(), None)).await.is_ok() {
            self.progress.twice.fetch_add(1, Ordering::Relaxed);
        }
    }
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
