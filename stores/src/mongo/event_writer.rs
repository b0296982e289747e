//! Inserting the events of many batches together: what comes while an insert is on its way goes into the next one.
//!
//! Each insert costs the server a write to its disk, and its driver a round trip, whatever it carries. While little
//! happens a batch goes at once and alone; under load the batches of all partitions share an insert.

use std::sync::Arc;

use taskflow_core::Event;
use taskflow_core::audit::leaves::Leaves;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::task::JoinSet;

use super::events::{Documents, Events, Run, insert_all};
use crate::{Kind, StoreError, supervise};

/// Inserts that are on their way at a time.
const WRITERS: usize = 2;
/// Events of one insert. A batch with more goes alone.
const TOGETHER_MAX: usize = 2_000;
/// Bytes of one insert.
const BYTES_MAX: usize = 4 << 20;
/// Batches that may wait: more than there are partitions.
const WAITING_MAX: usize = 1_024;

/// Its end is that of the writers.
pub struct EventWriter {
    inbox: mpsc::Sender<Waiting>,
    _writers: JoinSet<()>,
}

/// A batch, and who wants to know.
struct Waiting {
    documents: Documents,
    tell: oneshot::Sender<Result<(), StoreError>>,
}

impl EventWriter {
    pub fn start(events: Events) -> Self {
        let (inbox, waiting) = mpsc::channel(WAITING_MAX);
        let shared = Arc::new((events, Mutex::new(Line { waiting, first: None })));
        let mut writers = JoinSet::new();
        for _ in 0..WRITERS {
            let shared = Arc::clone(&shared);
            writers.spawn(async move {
                // A panic leaves batches without an answer; who waits is told that it is not known.
                supervise::to_its_end("event writer", || write(&shared.0, &shared.1)).await;
            });
        }
        Self { inbox, _writers: writers }
    }

    /// Inserts a batch's events and the list of their leaves; what is there already counts as inserted.
    ///
    /// # Errors
    /// [`Kind::Data`] when the server refuses one of this batch's documents; a neighbour's fault is not ours.
    pub async fn insert(
        &self,
        run: Run<'_>,
        events: &[Event],
        leaves: Option<&Leaves>,
    ) -> Result<(), StoreError> {
        if events.is_empty() {
            return Ok(());
        }
        let documents = Documents::of(run, events, leaves)?;
        let lost = || StoreError::unavailable("mongodb", "insert events", "the writer broke off");
        let (tell, told) = oneshot::channel();
        self.inbox.send(Waiting { documents, tell }).await.map_err(|_| lost())?;
        told.await.unwrap_or_else(|_| Err(lost()))
    }
}

/// The batches that wait for the writers.
struct Line {
    waiting: mpsc::Receiver<Waiting>,
    /// It found no room in the last insert.
    first: Option<Waiting>,
}

impl Line {
    /// Those that go together next: one at least, unless there will be none.
    async fn group(&mut self) -> Vec<Waiting> {
        let Some(first) = (match self.first.take() {
            Some(first) => Some(first),
            None => self.waiting.recv().await,
        }) else {
            return Vec::new();
        };
        let (mut count, mut bytes) = (first.documents.events.len(), first.documents.bytes());
        let mut group = vec![first];
        while let Ok(next) = self.waiting.try_recv() {
            count += next.documents.events.len();
            bytes += next.documents.bytes();
            if count > TOGETHER_MAX || bytes > BYTES_MAX {
                self.first = Some(next);
                break;
            }
            group.push(next);
        }
        group
    }
}

async fn write(events: &Events, line: &Mutex<Line>) {
    loop {
        let group = line.lock().await.group().await;
        if group.is_empty() {
            return;
        }
        let (mut tells, mut batches) = (Vec::with_capacity(group.len()), Vec::with_capacity(group.len()));
        for Waiting { documents, tell } in group {
            tells.push(tell);
            batches.push(documents);
        }
        match insert_all(events, &batches).await {
            // One of them has something that is refused: each learns of its own.
            Err(error) if error.kind == Kind::Data && batches.len() > 1 => {
                for (tell, documents) in tells.into_iter().zip(batches) {
                    let _ = tell.send(insert_all(events, &[documents]).await);
                }
            }
            inserted => tells.into_iter().for_each(|tell| drop(tell.send(inserted.clone()))),
        }
    }
}
