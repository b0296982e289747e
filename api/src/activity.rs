//! Who reads, and how much: the scheduler keeps the answers of those warm that read most. Counted in memory, written down
//! in one statement every so often; what a crash loses of it harms nothing.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use taskflow_core::heat;
use taskflow_stores::postgres::{PgPool, user_activity};
use taskflow_stores::{clock, supervise};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::App;

/// Users that are counted between two times that it is written down; more read at once than are worth keeping warm.
const USERS_MAX: usize = 20_000;
const WRITE_EVERY: Duration = Duration::from_secs(10);
/// Rows of one statement.
const TOGETHER: usize = 2_000;

/// Reads by user since they were written down last.
#[derive(Debug, Default)]
pub(crate) struct Activity(Mutex<HashMap<Uuid, u32>>);

impl Activity {
    /// A user has asked for something.
    pub(crate) fn note(&self, user: Uuid) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&user) {
            *count = count.saturating_add(1);
        } else if counts.len() < USERS_MAX {
            counts.insert(user, 1);
        }
    }

    async fn write(&self, postgres: &PgPool) {
        let counts = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        let now = clock::now();
        let heats: Vec<(Uuid, f64)> =
            counts.into_iter().map(|(user, count)| (user, heat::of(count, now))).collect();
        for heats in heats.chunks(TOGETHER) {
            if let Err(error) = user_activity::add(postgres, heats).await {
                tracing::debug!(%error, "Who has read could not be noted; it is forgotten.");
                return;
            }
        }
    }
}

/// Writes it down from time to time, and at the end if Postgres answers at once.
pub(crate) fn start(app: &Arc<App>, stop: &CancellationToken) {
    let (app, stop) = (Arc::clone(app), stop.clone());
    tokio::spawn(async move {
        let write = || async {
            while !stop.is_cancelled() {
                tokio::select! {
                    () = stop.cancelled() => {}
                    () = tokio::time::sleep(WRITE_EVERY) => {}
                }
                app.activity.write(&app.stores.postgres).await;
            }
        };
        supervise::forever("activity", &stop, write).await;
    });
}
