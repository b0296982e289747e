//! Publishes dead letters whose replay was begun, and takes the steps of replays of many.
//!
//! Whatever dies in between: a letter stays `replaying` until the broker has it, and a second publication is a duplicate
//! for the workers.

use std::collections::HashSet;
use std::time::Duration;

use taskflow_core::dead_letter::Outline;
use taskflow_core::metric;
use taskflow_stores::postgres::dead_letter_deeds::{self, Publishing};
use taskflow_stores::postgres::dead_letter_replays::{self, Step};
use taskflow_stores::postgres::dead_letters::Letter;
use taskflow_stores::rabbit::dead_letters::Replay;
use taskflow_stores::rabbit::publish::Message;
use taskflow_stores::{StoreError, clock, observe, seldom};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::answers::Answers;
use crate::{Context, crash};
use taskflow_stores::backoff::Backoff;

/// Letters that are published together.
const TOGETHER: i64 = 100;
/// Time between two looks while there is something to do, and while there is nothing.
const BUSY: Duration = Duration::from_millis(50);
const IDLE: Duration = Duration::from_millis(500);

/// Works until `stop`.
pub(crate) async fn run(context: &Context, stop: &CancellationToken) {
    let mut backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
    let answers = Answers::default();
    loop {
        let worked = work(context, &answers).await;
        let pause = match worked {
            Ok(busy) => {
                backoff = Backoff::new(Duration::from_millis(200), Duration::from_secs(5));
                if busy { BUSY } else { IDLE }
            }
            Err(error) => {
                if backoff.tries() == 0 && seldom::worth_a_line(&error) {
                    tracing::warn!(%error, "Replays stand still until this is mended; they go on by themselves.");
                }
                if !backoff.wait(stop).await {
                    return;
                }
                continue;
            }
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(pause) => {}
        }
    }
}

/// One step of a replay of many, then what is to be published. Returns whether there was anything to do.
async fn work(context: &Context, answers: &Answers) -> Result<bool, StoreError> {
    let postgres = &context.stores.postgres;
    let step = dead_letter_replays::step(postgres, clock::now());
    let step = answers.wait("go on with a replay", step).await;
    // One that can't go on must not hold up what is begun already.
    let publishing = dead_letter_deeds::publishing(postgres, TOGETHER);
    let published = match answers.wait("take letters to be published", publishing).await? {
        Some(publishing) => publish(context, publishing, answers).await?,
        None => 0,
    };
    let step = match step {
        Ok(step) => step,
        // What was published is no reason to wait.
        Err(error) if published > 0 => {
            tracing::debug!(%error, "A replay can't go on.");
            return Ok(true);
        }
        Err(error) => return Err(error),
    };
    match &step {
        Step::Nothing => {}
        Step::Taken(letters) => tracing::debug!(letters, "A replay goes on."),
        Step::Done(replay) => tracing::info!(%replay, "A replay is done."),
        Step::Stopped(replay, why) => tracing::warn!(%replay, why, "A replay has stopped by itself."),
    }
    Ok(step != Step::Nothing || published > 0)
}

async fn publish(context: &Context, publishing: Publishing, answers: &Answers) -> Result<usize, StoreError> {
    if publishing.letters.is_empty() {
        return Ok(0);
    }
    crash::point("replaying");
    let mut published: Vec<Uuid> = Vec::with_capacity(publishing.letters.len());
    // Of each subject one at a time: if one is not taken, the next must not come before it.
    let mut refused: HashSet<Uuid> = HashSet::new();
    let mut left: Vec<&Letter> = publishing.letters.iter().collect();
    let mut failure = None;
    while !left.is_empty() {
        let (mut subjects, mut pending, mut later) = (HashSet::new(), Vec::new(), Vec::new());
        for letter in left {
            if letter.subject.is_some_and(|subject| refused.contains(&subject)) {
                continue;
            }
            if letter.subject.is_some_and(|subject| !subjects.insert(subject)) {
                later.push(letter);
                continue;
            }
            let Some(message) = message(letter) else {
                // It had a way when its replay began; without one it must not hold up the others.
                tracing::error!(letter = %letter.id, "A letter has no way to the workers; edit it.");
                continue;
            };
            pending.push((letter, context.stores.publisher.send(message).await));
        }
        left = later;
        for (letter, sent) in pending {
            let confirmed = match sent {
                Ok(pending) => pending.confirmed().await,
                Err(error) => Err(error),
            };
            match confirmed {
                Ok(()) => published.push(letter.id),
                Err(error) => {
                    refused.extend(letter.subject);
                    failure = Some(StoreError::from(error));
                }
            }
        }
    }
    crash::point("republished");
    let count = published.len();
    answers.wait("note what is published", publishing.published(&published)).await?;
    observe::counter(&metric::DEAD_LETTERS_REPLAYED, &[]).increment(count as u64);
    match failure {
        Some(error) => Err(error),
        None => Ok(count),
    }
}

fn message(letter: &Letter) -> Option<Message> {
    let body = letter.sent();
    let route = Outline::of(body).route(&letter.routing_key, &letter.queue)?;
    Some(Message::replay(Replay {
        letter: letter.id,
        attempt: letter.attempt,
        command: letter.command_id,
        accepted_at: letter.accepted_at.unwrap_or(letter.first_died_at),
        route,
        body,
    }))
}
