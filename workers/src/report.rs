//! What is told of commands: a line each for who debugs, numbers for who watches.

use std::collections::HashMap;

use taskflow_core::batch::Content;
use taskflow_core::state::{Role, User};
use taskflow_core::wait::Held;
use taskflow_core::{Item, Receipt, envelope, metric, system_event};
use taskflow_stores::observe;

/// One line a command, with what ties it to the lines of the intake and of upstream.
pub(crate) fn finished(partition: &str, batch: i64, item: &Item, receipt: &Receipt) {
    let command = match &item.content {
        Content::Command(command) => Some(command),
        Content::Dead(_) | Content::Unknown(_) => None,
    };
    tracing::debug!(
        command = %receipt.id,
        correlation = command.map(|command| tracing::field::display(command.correlation)),
        trace = command.and_then(|command| command.traceparent.as_deref()).map(envelope::trace_id),
        kind = receipt.kind,
        outcome = receipt.outcome.as_str(),
        code = receipt.code,
        partition,
        batch,
        "The command has its receipt."
    );
}

/// One line a command that waits.
pub(crate) fn held(partition: &str, item: &Item, held: &Held) {
    tracing::debug!(
        command = %item.id,
        partition,
        state = held.why.as_str(),
        code = held.code,
        detail = held.detail,
        attempts = held.attempts,
        due = held.due_at.map(tracing::field::display),
        "The command waits."
    );
}

/// New admins are a sensitive operation like a changed role. Their events are those of any registration.
pub(crate) fn new_users(users: &[User]) {
    let admins = users.iter().filter(|user| user.role == Role::Admin).count();
    if admins > 0 {
        let labels = [("operation", system_event::ADMIN_REGISTRATION)];
        observe::counter(&metric::SENSITIVE_OPERATIONS, &labels).increment(admins as u64);
        tracing::info!(admins, "Users were registered as admins.");
    }
}

/// Series are looked up once a batch, not once a command.
pub(crate) fn receipts(receipts: &[Receipt]) {
    let mut finished: HashMap<(&'static str, &'static str), u64> = HashMap::new();
    let mut waits = HashMap::new();
    for receipt in receipts {
        let kind = receipt.kind.unwrap_or("unknown");
        *finished.entry((kind, receipt.outcome.as_str())).or_default() += 1;
        let waited = (receipt.finished_at - receipt.accepted_at).as_seconds_f64();
        let series = || observe::histogram(&metric::COMMAND_LATENCY, &[("type", kind)]);
        waits.entry(kind).or_insert_with(series).record(waited);
    }
    for ((kind, outcome), count) in finished {
        let labels = [("type", kind), ("outcome", outcome)];
        observe::counter(&metric::COMMANDS_FINISHED, &labels).increment(count);
    }
}
