//! How far a backup or a restore has got, for whoever looks; and the wish that it stops.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use taskflow_stores::backoff::Backoff;
use tokio_util::sync::CancellationToken;

use crate::error::{Error, Result, Trouble};

/// Shared between the work and those who show it.
#[derive(Debug, Clone, Default)]
pub struct Progress(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    /// Bytes of content that have gone through.
    done: AtomicU64,
    /// Bytes in all; 0 while nobody knows.
    all: AtomicU64,
    at: Mutex<String>,
    stop: CancellationToken,
}

impl Progress {
    /// Work that ends when `stop` is told.
    pub fn stopped_by(stop: CancellationToken) -> Self {
        Self(Arc::new(Inner { stop, ..Inner::default() }))
    }

    /// Begins a stretch of work: what it is, and how many bytes it has (0: unknown).
    pub fn begin(&self, at: impl Into<String>, all: u64) {
        let at = at.into();
        tracing::debug!(at, all, "A backup or restore goes on.");
        *self.0.at.lock().unwrap_or_else(PoisonError::into_inner) = at;
        self.0.done.store(0, Ordering::Relaxed);
        self.0.all.store(all, Ordering::Relaxed);
    }

    pub fn add(&self, bytes: u64) {
        self.0.done.fetch_add(bytes, Ordering::Relaxed);
    }

    /// What is being done, bytes done, bytes in all (0: unknown).
    pub fn look(&self) -> (String, u64, u64) {
        let at = self.0.at.lock().unwrap_or_else(PoisonError::into_inner).clone();
        (at, self.0.done.load(Ordering::Relaxed), self.0.all.load(Ordering::Relaxed))
    }

    /// Whether the work is to stop.
    pub fn check(&self) -> Result<()> {
        if self.0.stop.is_cancelled() {
            return Err(Error::new(Trouble::Stopped, "it was told to stop"));
        }
        Ok(())
    }

    /// Waits before something is tried again; an error if the work is to stop.
    pub async fn wait(&self, backoff: &mut Backoff) -> Result<()> {
        backoff.wait(&self.0.stop).await;
        self.check()
    }

    /// Waits until the work is to stop.
    pub async fn stopped(&self) {
        self.0.stop.cancelled().await;
    }
}
