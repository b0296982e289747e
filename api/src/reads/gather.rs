//! Many readers, one question to a store at a time: what is asked while a statement runs goes into the next one. So the
//! load on the store is bounded whatever the number of readers, and an answer never comes from a statement that began
//! before its question was asked.

use std::time::Duration;

use taskflow_stores::postgres::silence;
use taskflow_stores::{StoreError, crash, supervise};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_util::sync::CancellationToken;

/// Questions that may wait.
const WAITING_MAX: usize = 10_000;
/// Questions in one statement.
const TOGETHER_MAX: usize = 2_000;
/// How long a statement may take.
const PATIENCE: Duration = Duration::from_secs(3);

/// Who asks a store many questions at once.
pub(crate) trait Asker: Send + 'static {
    type Question: Send + 'static;
    type Answer: Send + 'static;
    const NAME: &'static str;

    /// One answer for each question, in their order.
    fn ask(
        &mut self,
        questions: &[Self::Question],
    ) -> impl Future<Output = Result<Vec<Self::Answer>, StoreError>> + Send;
}

type Asked<A> = (<A as Asker>::Question, oneshot::Sender<Result<<A as Asker>::Answer, StoreError>>);

pub(crate) struct Gather<A: Asker>(mpsc::Sender<Asked<A>>);

impl<A: Asker> Gather<A> {
    pub(crate) fn start(asker: A, stop: CancellationToken) -> Self {
        let (sender, receiver) = mpsc::channel(WAITING_MAX);
        let hands = Mutex::new((asker, receiver));
        tokio::spawn(async move {
            supervise::to_its_end(A::NAME, || async {
                let (asker, receiver) = &mut *hands.lock().await;
                work(asker, receiver, &stop).await;
            })
            .await;
        });
        Self(sender)
    }

    pub(crate) async fn find(&self, question: A::Question) -> Result<A::Answer, StoreError> {
        let busy = |detail| StoreError::unavailable("postgres", A::NAME, detail);
        let (tell, told) = oneshot::channel();
        self.0.try_send((question, tell)).map_err(|_| busy("too many readers wait for it"))?;
        told.await.unwrap_or_else(|_| Err(busy("the question was lost")))
    }
}

async fn work<A: Asker>(asker: &mut A, receiver: &mut mpsc::Receiver<Asked<A>>, stop: &CancellationToken) {
    while let Some((first, tell)) = tokio::select! {
        biased;
        asked = receiver.recv() => asked,
        // Requests in hand are answered before the server ends, and it holds the sender.
        () = stop.cancelled(), if receiver.is_closed() => None,
    } {
        crash::point(A::NAME);
        let (mut questions, mut tells) = (vec![first], vec![tell]);
        while questions.len() < TOGETHER_MAX
            && let Ok((question, tell)) = receiver.try_recv()
        {
            questions.push(question);
            tells.push(tell);
        }
        match silence::within(PATIENCE, A::NAME, asker.ask(&questions)).await {
            Ok(answers) => {
                tells.into_iter().zip(answers).for_each(|(tell, answer)| drop(tell.send(Ok(answer))));
            }
            Err(error) => tells.into_iter().for_each(|tell| drop(tell.send(Err(error.clone())))),
        }
    }
}
