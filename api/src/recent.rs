//! What this process has accepted lately: a caller that follows the status address of a command still on its way
//! reads `accepted`, not "unknown". Bounded, and only a courtesy: another process does not know.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use chrono::{DateTime, Utc};
use taskflow_core::Command;
use taskflow_stores::postgres::receipts::View;
use uuid::Uuid;

/// Commands that are remembered.
const REMEMBERED: usize = 65_536;

#[derive(Default)]
pub(crate) struct Recent(Mutex<Inner>);

#[derive(Default)]
struct Inner {
    accepted: HashMap<Uuid, Accepted>,
    order: VecDeque<Uuid>,
}

struct Accepted {
    kind: &'static str,
    subject: Uuid,
    actor: Uuid,
    source: String,
    at: DateTime<Utc>,
}

impl Recent {
    pub(crate) fn note(&self, command: &Command, at: DateTime<Utc>) {
        let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let source = command.source.clone();
        let accepted =
            Accepted { kind: command.kind(), subject: command.subject, actor: command.actor, source, at };
        if inner.accepted.insert(command.id, accepted).is_none() {
            inner.order.push_back(command.id);
        }
        if inner.order.len() > REMEMBERED
            && let Some(oldest) = inner.order.pop_front()
        {
            inner.accepted.remove(&oldest);
        }
    }

    /// The state of a command that has no receipt yet.
    pub(crate) fn find(&self, id: Uuid) -> Option<View> {
        let inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        inner.accepted.get(&id).map(|accepted| View {
            id,
            kind: Some(accepted.kind.to_owned()),
            subject: Some(accepted.subject),
            status: "accepted".to_owned(),
            code: None,
            detail: None,
            version: None,
            events: Vec::new(),
            acceptedat: Some(accepted.at),
            finishedat: None,
            nextattemptat: None,
            auditedat: None,
            cachedat: None,
            publishedat: None,
            attempts: 0,
            actor: Some(accepted.actor),
            source: Some(accepted.source.clone()),
        })
    }
}
