//! One channel in confirm mode, and the task that owns it.
//!
//! Messages are written in the order in which they are handed over. Each gets exactly one answer, within the time-out,
//! whatever becomes of the broker, the connection or the one who asked.
//!
//! The client library reports a message that came back with whichever confirm it settles next, not with its own: when
//! the broker confirms several at once, a message that no queue took may look well and its neighbour lost (seen in
//! `tests/it/faults/broker/connection.rs`). It always settles the neighbour first, though. So confirms are taken here all
//! that are there at a time, and what came back is matched by what it is before anybody is answered.

use std::collections::hash_map::DefaultHasher;
use std::future::poll_fn;
use std::hash::{Hash, Hasher};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};
use std::time::{Duration, Instant};

use futures_util::future::FutureExt;
use futures_util::stream::{FuturesUnordered, StreamExt};
use futures_util::task::AtomicWaker;
use lapin::options::{BasicPublishOptions, ConfirmSelectOptions};
use lapin::types::ShortString;
use lapin::{BasicProperties, Channel, Confirmation};
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio::time::MissedTickBehavior;

use super::link::{Link, is_missing};
use super::publish::{Message, Place, PublishError};
use super::{STORE, failed};
use crate::{StoreError, crash, supervise};

/// Messages that are written before the confirms are looked at again.
const RUN: usize = 64;

/// A message to be sent, and who wants to know.
pub(super) struct Parcel {
    pub message: Message,
    pub answer: oneshot::Sender<Result<(), PublishError>>,
    pub place: Place,
}

/// Starts a lane. It ends when the sender is gone and all are answered.
pub(super) fn start(link: Link, timeout: Duration) -> mpsc::UnboundedSender<Parcel> {
    let (sender, inbox) = mpsc::unbounded_channel();
    let inbox = Mutex::new(inbox);
    tokio::spawn(async move {
        // A panic leaves the messages on their way without an answer; who waits is told that it is not known.
        let run = || async {
            let mut inbox = inbox.lock().await;
            Lane::new(link.clone(), timeout).run(&mut inbox).await;
        };
        supervise::to_its_end("lane", run).await;
    });
    sender
}

type Answered = lapin::Result<Confirmation>;

struct Lane {
    link: Link,
    timeout: Duration,
    channel: Option<Channel>,
    flights: FuturesUnordered<Flight>,
    /// Confirmed or failed, and not yet told.
    landed: Vec<(Option<Ticket>, Answered)>,
    /// What came back and is not yet matched.
    returned: Vec<u64>,
    nudge: Arc<Nudge>,
    waker: Waker,
}

impl Lane {
    fn new(link: Link, timeout: Duration) -> Self {
        let nudge = Arc::new(Nudge::default());
        Self {
            link,
            timeout,
            channel: None,
            flights: FuturesUnordered::new(),
            landed: Vec::new(),
            returned: Vec::new(),
            waker: Waker::from(Arc::clone(&nudge)),
            nudge,
        }
    }

    async fn run(mut self, inbox: &mut mpsc::UnboundedReceiver<Parcel>) {
        let mut parcels = Vec::with_capacity(RUN);
        let mut open = true;
        let mut tick = tokio::time::interval((self.timeout / 8).max(Duration::from_millis(10)));
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        while open || !self.flights.is_empty() {
            tokio::select! {
                biased;
                () = poll_fn(|cx| self.poll_landed(cx)), if !self.flights.is_empty() => self.settle(),
                count = inbox.recv_many(&mut parcels, RUN), if open => {
                    open = count > 0;
                    for parcel in parcels.drain(..) {
                        crash::point("lane");
                        self.dispatch(parcel).await;
                    }
                }
                _ = tick.tick(), if !self.flights.is_empty() => self.give_up_overdue(),
            }
        }
    }

    async fn dispatch(&mut self, parcel: Parcel) {
        let Parcel { message, answer, place } = parcel;
        let channel = match self.channel.take().filter(|channel| channel.status().connected()) {
            Some(channel) => channel,
            None => match self.open().await {
                Ok(channel) => channel,
                Err(error) => {
                    let _ = answer.send(Err(error.into()));
                    return;
                }
            },
        };
        self.channel = Some(channel.clone());
        let identity =
            message.mandatory.then(|| identity(&message.exchange, &message.routing_key, &message.properties));
        let mut confirm: Confirm = Box::pin(async move {
            let options =
                BasicPublishOptions { mandatory: message.mandatory, ..BasicPublishOptions::default() };
            let Message { exchange, routing_key, body, properties, .. } = message;
            channel.basic_publish(exchange, routing_key, options, &body, properties).await?.await
        });
        // The first look puts the message into the connection's queue: its place is fixed.
        let early = (&mut confirm).now_or_never();
        let ticket = Some(Ticket { answer, since: Instant::now(), identity, _place: place });
        self.flights.push(Flight { confirm, early, ticket });
    }

    async fn open(&mut self) -> Result<Channel, StoreError> {
        self.returned.clear();
        if !self.link.is_up() {
            return Err(StoreError::unavailable(STORE, "publish", "no connection to the broker"));
        }
        let opened = async {
            let channel = self.link.channel().await?;
            let confirms = channel.confirm_select(ConfirmSelectOptions::default());
            confirms.await.map_err(failed("ask for confirms"))?;
            Ok(channel)
        };
        let late = |_| Err(StoreError::unavailable(STORE, "open a channel", "no answer in time"));
        tokio::time::timeout(self.timeout, opened).await.unwrap_or_else(late)
    }

    /// Takes all that are settled. Ends only when there is none left: see the top.
    fn poll_landed(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        self.nudge.task.register(cx.waker());
        let mut cx = Context::from_waker(&self.waker);
        loop {
            self.nudge.woken.store(false, Ordering::SeqCst);
            match self.flights.poll_next_unpin(&mut cx) {
                Poll::Ready(Some(landed)) => self.landed.push(landed),
                // `FuturesUnordered` says so too when it has had enough for now, and nudges itself.
                Poll::Pending if self.nudge.woken.load(Ordering::SeqCst) => {}
                Poll::Ready(None) | Poll::Pending => break,
            }
        }
        if self.landed.is_empty() { Poll::Pending } else { Poll::Ready(()) }
    }

    /// Answers all that have landed.
    fn settle(&mut self) {
        for (_, result) in &self.landed {
            if let Ok(Confirmation::Ack(Some(back)) | Confirmation::Nack(Some(back))) = result {
                let back = &back.delivery;
                self.returned.push(identity(&back.exchange, &back.routing_key, &back.properties));
            }
        }
        for (ticket, result) in self.landed.drain(..) {
            let Some(ticket) = ticket else { continue };
            let back = self.returned.iter().position(|back| Some(*back) == ticket.identity);
            let back = back.map(|place| self.returned.swap_remove(place)).is_some();
            let answer = match result {
                Ok(Confirmation::Ack(_)) if back => Err(PublishError::Unroutable),
                Ok(Confirmation::Ack(_)) => Ok(()),
                Ok(Confirmation::Nack(_)) => Err(PublishError::Refused),
                Ok(Confirmation::NotRequested) => Err(unknown("the channel gives no confirms")),
                Err(error) if is_missing(&error) => Err(PublishError::NoExchange),
                Err(error) => Err(failed("publish")(error).into()),
            };
            let _ = ticket.answer.send(answer);
        }
    }

    /// A channel whose confirms do not come is left, with all that wait on it: they are likely to wait as long.
    fn give_up_overdue(&mut self) {
        let overdue = |flight: &Flight| {
            flight.ticket.as_ref().is_some_and(|ticket| ticket.since.elapsed() >= self.timeout)
        };
        if !self.flights.iter().any(overdue) {
            return;
        }
        if let Some(channel) = self.channel.take() {
            // The first look writes the close; nobody waits for the answer.
            let _ = channel.close(200, "confirms are overdue".into()).now_or_never();
        }
        for flight in std::mem::take(&mut self.flights) {
            if let Some(ticket) = flight.ticket {
                let _ = ticket.answer.send(Err(unknown("no confirm in time")));
            }
        }
    }
}

fn unknown(why: &str) -> PublishError {
    StoreError::unavailable(STORE, "confirm", why).into()
}

/// What a message is known by when it comes back. Messages without an id that share their route share their fate.
fn identity(exchange: &ShortString, routing_key: &ShortString, properties: &BasicProperties) -> u64 {
    let mut hasher = DefaultHasher::new();
    let id = properties.message_id().as_ref().map(ShortString::as_str);
    (exchange.as_str(), routing_key.as_str(), id).hash(&mut hasher);
    hasher.finish()
}

type Confirm = Pin<Box<dyn Future<Output = Answered> + Send>>;

/// A message on its way.
struct Flight {
    confirm: Confirm,
    /// Known already at the first look.
    early: Option<Answered>,
    ticket: Option<Ticket>,
}

/// Who is to be answered.
struct Ticket {
    answer: oneshot::Sender<Result<(), PublishError>>,
    since: Instant,
    /// Only of messages that may come back.
    identity: Option<u64>,
    _place: Place,
}

impl Future for Flight {
    type Output = (Option<Ticket>, Answered);

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let result = match self.early.take() {
            Some(result) => result,
            None => std::task::ready!(self.confirm.as_mut().poll(cx)),
        };
        Poll::Ready((self.ticket.take(), result))
    }
}

/// Wakes the lane, and remembers that it did.
#[derive(Default)]
struct Nudge {
    woken: AtomicBool,
    task: AtomicWaker,
}

impl Wake for Nudge {
    fn wake(self: Arc<Self>) {
        self.wake_by_ref();
    }

    fn wake_by_ref(self: &Arc<Self>) {
        self.woken.store(true, Ordering::SeqCst);
        self.task.wake();
    }
}
