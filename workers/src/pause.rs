//! What operators hold back, as the pipelines follow it.
//!
//! A paused partition lets go of its queue: the broker keeps its messages, in order. Before a command of a paused type
//! a partition stops as well, since whatever came after it would overtake it.

use taskflow_core::envelope;
use taskflow_core::metric;
use taskflow_core::pause::{Pauses, Scope};
use taskflow_stores::observe;
use taskflow_stores::postgres::waiting::Waiting;
use taskflow_stores::rabbit::consume::Delivery;
use tokio_util::sync::CancellationToken;

use crate::{Context, crash};

/// Takes over what is paused now. Returns whether it changed.
pub(crate) fn learn(context: &Context, pauses: &Pauses) -> bool {
    let before = context.pauses.borrow().clone();
    if before == *pauses {
        return false;
    }
    for scope in before.iter().filter(|scope| !pauses.contains(scope)) {
        observe::gauge(&metric::PAUSED, &[("scope", &scope.to_string())]).set(0.0);
        tracing::info!(%scope, "Resumed by an operator.");
    }
    for scope in pauses.iter().filter(|scope| !before.contains(scope)) {
        observe::gauge(&metric::PAUSED, &[("scope", &scope.to_string())]).set(1.0);
        tracing::warn!(%scope, "Paused by an operator; `taskflow pauses` says why, `taskflow resume` ends it.");
    }
    context.vitals.notes(pauses.iter().map(|scope| (scope.to_string(), "paused by an operator".to_owned())));
    context.pauses.send_replace(pauses.clone());
    true
}

/// Where the first command of a paused type is, and the pause that holds it. It reads the messages: whoever may be killed
/// by one has written down that it is tried.
pub(crate) fn first_held<M: Body>(messages: &[M], pauses: &Pauses) -> Option<(usize, Scope)> {
    if !pauses.has_types() {
        return None;
    }
    let held = |message: &M| {
        crash::poison(message.body());
        let command = envelope::parse(message.body()).ok()?;
        pauses.of_type(command.kind()).cloned()
    };
    messages.iter().enumerate().find_map(|(place, message)| Some((place, held(message)?)))
}

/// A message, from the broker or from the waiting room.
pub(crate) trait Body {
    fn body(&self) -> &[u8];
}

impl Body for Delivery {
    fn body(&self) -> &[u8] {
        self.body()
    }
}

impl Body for Waiting {
    fn body(&self) -> &[u8] {
        &self.body
    }
}

/// Waits for the next change of the pauses, but no longer than a moment; `false` if it is time to stop.
pub(crate) async fn changed(
    context: &Context,
    stop: &CancellationToken,
    moment: std::time::Duration,
) -> bool {
    let mut pauses = context.pauses.subscribe();
    tokio::select! {
        () = stop.cancelled() => false,
        _ = tokio::time::timeout(moment, pauses.changed()) => true,
    }
}
