//! Looks for earlier commands under the same ids, many requests in one statement.
//!
//! This is a courtesy that tells a caller early of an id used twice; that a command takes effect once is the workers'
//! doing. So it never stands in the way: while Postgres is away, nothing is found.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use taskflow_stores::postgres::PgPool;
use taskflow_stores::postgres::waiting::{self, Earlier};
use taskflow_stores::{crash, seldom, supervise};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// Requests that may wait.
const WAITING_MAX: usize = 10_000;
/// Ids in one statement.
const IDS_MAX: usize = 2_000;
/// After a failure nothing is asked for this long: an intake must not wait for a store that it does not need.
const PAUSE: Duration = Duration::from_secs(2);
const PATIENCE: Duration = Duration::from_millis(500);

struct Question {
    ids: Vec<Uuid>,
    answer: oneshot::Sender<Option<HashMap<Uuid, Earlier>>>,
}

#[derive(Clone)]
pub(crate) struct Lookup(mpsc::Sender<Question>);

impl Lookup {
    /// What is there under these ids; `None` if that is not known now.
    pub(crate) async fn find(&self, ids: Vec<Uuid>) -> Option<HashMap<Uuid, Earlier>> {
        let (answer, answered) = oneshot::channel();
        self.0.try_send(Question { ids, answer }).ok()?;
        answered.await.ok()?
    }
}

pub(crate) fn start(postgres: PgPool, stop: CancellationToken) -> Lookup {
    let (sender, receiver) = mpsc::channel::<Question>(WAITING_MAX);
    let receiver = Mutex::new(receiver);
    tokio::spawn(async move {
        // It ends when the server has let go of the sender: requests in hand are answered before.
        let work = || async { work(&postgres, &mut *receiver.lock().await, &stop).await };
        supervise::to_its_end("lookup", work).await;
    });
    Lookup(sender)
}

async fn work(postgres: &PgPool, receiver: &mut mpsc::Receiver<Question>, stop: &CancellationToken) {
    let mut silent_until = Instant::now();
    let mut questions = Vec::new();
    while let Some(first) = tokio::select! {
        biased;
        question = receiver.recv() => question,
        // Requests in hand are answered before the server ends, and it holds the sender.
        () = stop.cancelled(), if receiver.is_closed() => None,
    } {
        crash::point("lookup");
        let mut ids = first.ids.clone();
        questions.push(first);
        while ids.len() < IDS_MAX {
            let Ok(question) = receiver.try_recv() else { break };
            ids.extend(&question.ids);
            questions.push(question);
        }
        let found = match ask(postgres, &ids, silent_until).await {
            Ok(found) => found,
            Err(reason) => {
                if let Some(held_back) = seldom::about("postgres") {
                    tracing::warn!(
                        reason,
                        held_back,
                        "Earlier commands can't be looked up; commands are taken all the same."
                    );
                }
                silent_until = Instant::now() + PAUSE;
                None
            }
        };
        for question in questions.drain(..) {
            let own = found
                .as_ref()
                .map(|found| question.ids.iter().filter_map(|id| Some((*id, *found.get(id)?))).collect());
            let _ = question.answer.send(own);
        }
    }
}

/// What is there under these ids; `None` before Postgres is to be asked again.
async fn ask(
    postgres: &PgPool,
    ids: &[Uuid],
    silent_until: Instant,
) -> Result<Option<HashMap<Uuid, Earlier>>, String> {
    if Instant::now() < silent_until {
        return Ok(None);
    }
    let asked = async {
        let mut connection = postgres.acquire().await.map_err(|error| error.to_string())?;
        waiting::earlier(&mut connection, ids).await.map_err(|error| error.to_string())
    };
    tokio::time::timeout(PATIENCE, asked).await.map_err(|_| "no answer in time".to_owned())?.map(Some)
}
