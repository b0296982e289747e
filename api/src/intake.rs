//! What a command goes through on its way to the broker.
//!
//! In two steps, so that many are on their way at once: [`App::send`] checks a group and writes it to the broker's
//! connection in order; [`Sent::confirmed`] waits for the confirms.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use axum::http::HeaderMap;
use chrono::{DateTime, Utc};
use serde::Serialize;
use taskflow_core::command::Fingerprint;
use taskflow_core::envelope::{self, Malformed};
use taskflow_core::partition::Partition;
use taskflow_core::{Command, metric};
use taskflow_stores::rabbit::publish::{Message, Pending, PublishError};
use taskflow_stores::{clock, crash, observe};
use uuid::Uuid;

use crate::App;
use crate::auth::Caller;
use crate::problem::Problem;
use crate::trace;

/// One command of a group that was not taken.
#[derive(Debug, Serialize)]
pub(crate) struct Refused {
    /// Its place in the body, from 0.
    pub index: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<Uuid>,
    pub problem: Problem,
}

/// One command as it came in: its place, and its bytes or what is wrong with it before that.
pub(crate) struct Incoming<'b> {
    pub index: u64,
    pub text: &'b [u8],
}

/// Subjects of which a request's earlier command was not taken, with the reason. Its later ones are not taken either: they
/// would be applied without the earlier one, and sent again with it they would have their receipts.
pub(crate) type NotTaken = HashMap<Uuid, Problem>;

/// A group that is on its way to the broker.
pub(crate) struct Sent {
    pub refused: Vec<Refused>,
    /// Commands that have their receipt already: taken, with nothing left to do.
    pub known: Vec<Command>,
    pending: Vec<(u64, Command, Result<Pending, PublishError>)>,
    /// When they were accepted.
    pub at: DateTime<Utc>,
}

/// What became of a group.
#[derive(Default)]
pub(crate) struct Outcome {
    pub accepted: u64,
    pub refused: Vec<Refused>,
}

impl App {
    /// Checks a group of commands and sends the good ones, in order.
    pub(crate) async fn send(
        &self,
        caller: &Caller,
        headers: &HeaderMap,
        incoming: &[Incoming<'_>],
        wants_receipt: bool,
        not_taken: &mut NotTaken,
    ) -> Sent {
        let at = clock::now();
        let mut refused = Vec::new();
        let mut refuse = |index, id, reason: &'static str, problem| {
            observe::counter(&metric::COMMANDS_REFUSED, &[("reason", reason)]).increment(1);
            refused.push(Refused { index, id, problem });
        };
        let mut good: Vec<(u64, Command, Fingerprint)> = Vec::with_capacity(incoming.len());
        let mut here: HashMap<Uuid, Fingerprint> = HashMap::with_capacity(incoming.len());
        for one in incoming {
            match check(caller, one.text) {
                Ok(command) => {
                    let fingerprint = command.fingerprint();
                    if *here.entry(command.id).or_insert(fingerprint) == fingerprint {
                        good.push((one.index, command, fingerprint));
                    } else {
                        refuse(one.index, Some(command.id), "mismatch", Problem::mismatch(command.id));
                    }
                }
                Err((id, reason, problem)) => refuse(one.index, id, reason, problem),
            }
        }
        let earlier = self.lookup.find(here.into_keys().collect()).await.unwrap_or_default();
        let mut sent =
            Sent { refused: Vec::new(), known: Vec::new(), pending: Vec::with_capacity(good.len()), at };
        for (index, mut command, fingerprint) in good {
            match earlier.get(&command.id) {
                Some(first) if first.fingerprint != fingerprint => {
                    refuse(index, Some(command.id), "mismatch", Problem::mismatch(command.id));
                }
                Some(first) if !first.waits => sent.known.push(command),
                // Who waits has no receipt to be shown: sent once more, it waits as it does.
                _ => {
                    if let Some(problem) = not_taken.get(&command.subject) {
                        let reason = if problem.is_backlog() { "backlog" } else { "unavailable" };
                        refuse(index, Some(command.id), reason, problem.clone());
                        continue;
                    }
                    let partition = self.partition(&command);
                    if let Some(problem) = self.too_far_behind(partition) {
                        not_taken.insert(command.subject, problem.clone());
                        refuse(index, Some(command.id), "backlog", problem);
                        continue;
                    }
                    stamp(&mut command, caller, headers, at);
                    let intake = wants_receipt.then_some(self.intake);
                    let message = Message::command(&command, at, intake);
                    let pending = self.stores.publisher.send_of(flow(caller, &command), message).await;
                    if let Err(error) = &pending {
                        not_taken.insert(command.subject, self.refusal(&command, error.clone()));
                    }
                    sent.pending.push((index, command, pending));
                }
            }
        }
        sent.refused = refused;
        sent
    }

    /// The partition that a command goes to.
    fn partition(&self, command: &Command) -> Partition {
        self.pressure.partition(command)
    }

    /// What is answered when the broker has not taken a command.
    fn refusal(&self, command: &Command, error: PublishError) -> Problem {
        Problem::from(error).retry_after(self.pressure.retry_after_s(self.partition(command)))
    }

    /// Why no more is taken for a partition, if operators have set a bound.
    fn too_far_behind(&self, partition: Partition) -> Option<Problem> {
        let most_s = self.settings.backlog_age_max_s;
        let age_s = self.pressure.age(partition).as_secs();
        let behind = most_s > 0 && age_s > most_s;
        behind.then(|| Problem::backlog(age_s, most_s).retry_after(self.pressure.retry_after_s(partition)))
    }
}

type Fault3 = (Option<Uuid>, &'static str, Problem);

fn check(caller: &Caller, text: &[u8]) -> Result<Command, Fault3> {
    let invalid = |Malformed { id, faults, .. }| (id, "invalid", Problem::invalid(faults));
    let command = envelope::parse(text).map_err(invalid)?;
    caller.may_send(&command).map_err(|problem| (Some(command.id), "forbidden", problem))?;
    Ok(command)
}

/// Sources of one caller that count as different ones: else a caller could take more room by inventing names.
const FLOWS: u64 = 16;

/// Whose share of the way to the broker a command takes: its source's, for each caller apart.
fn flow(caller: &Caller, command: &Command) -> u64 {
    let mut source = DefaultHasher::new();
    command.source.hash(&mut source);
    let mut flow = DefaultHasher::new();
    (caller.user, source.finish() % FLOWS).hash(&mut flow);
    flow.finish()
}

/// Adds what only the intake knows.
fn stamp(command: &mut Command, caller: &Caller, headers: &HeaderMap, now: DateTime<Utc>) {
    command.issued_at.get_or_insert(now);
    command.metadata = caller.metadata();
    command.traceparent = Some(trace::continued(command.traceparent.as_deref(), headers));
}

impl Sent {
    /// The id of the first command that was good, for a group of one.
    pub(crate) fn first_id(&self) -> Option<Uuid> {
        let pending = self.pending.iter().map(|(_, command, _)| command.id);
        pending.chain(self.known.iter().map(|command| command.id)).next()
    }

    /// Waits until the broker has confirmed each command, or has not.
    pub(crate) async fn confirmed(self, app: &App, not_taken: &mut NotTaken) -> Outcome {
        let mut outcome = Outcome { accepted: self.known.len() as u64, refused: self.refused };
        let mut accepted: HashMap<&'static str, u64> = HashMap::new();
        for (index, command, pending) in self.pending {
            let result = match pending {
                Ok(pending) => pending.confirmed().await,
                Err(error) => Err(error),
            };
            match result {
                Ok(()) => {
                    outcome.accepted += 1;
                    *accepted.entry(command.kind()).or_default() += 1;
                    app.recent.note(&command, self.at);
                    tracing::debug!(
                        command = %command.id, correlation = %command.correlation, kind = command.kind(),
                        trace = command.traceparent.as_deref().map(envelope::trace_id),
                        "The broker has the command."
                    );
                }
                Err(error) => {
                    if matches!(error, PublishError::Unroutable | PublishError::NoExchange) {
                        app.mender.missing("an exchange, a queue or its bindings");
                    }
                    observe::counter(&metric::COMMANDS_REFUSED, &[("reason", "unavailable")]).increment(1);
                    let problem = app.refusal(&command, error);
                    not_taken.entry(command.subject).or_insert_with(|| problem.clone());
                    outcome.refused.push(Refused { index, id: Some(command.id), problem });
                }
            }
        }
        crash::point("confirmed");
        for (kind, count) in accepted {
            observe::counter(&metric::COMMANDS_ACCEPTED, &[("type", kind)]).increment(count);
        }
        outcome.refused.sort_by_key(|refused| refused.index);
        outcome
    }
}
