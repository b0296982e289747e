//! What the broker's tests share: a broker with its objects, and a wire to it that can be cut.

use std::error::Error;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use lapin::BasicProperties;
use lapin::options::QueuePurgeOptions;
use taskflow_core::partition::Course;
use taskflow_stores::rabbit::Settings;
use taskflow_stores::rabbit::consume::{Delivery, Subscription};
use taskflow_stores::rabbit::link::Link;
use taskflow_stores::rabbit::publish::{Message, Publisher};
use taskflow_stores::rabbit::topology::{self, Partition, SLOTS};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub(super) type Outcome<T = ()> = Result<T, Box<dyn Error + Send + Sync>>;

/// The partition that the tests use: slots 00, 08, 10 …
pub(super) const FIRST: Partition = Partition { low: false, index: 0, alternate: false };

/// A process's side of a broker: two connections, a publisher, the broker's objects declared and empty.
pub(super) struct Client {
    pub(super) settings: Settings,
    pub(super) stop: CancellationToken,
    pub(super) consume: Link,
    pub(super) publisher: Publisher,
}

impl Client {
    pub(super) async fn open(url: &str) -> Outcome<Self> {
        Self::open_with(Settings { url: url.to_owned(), ..Settings::default() }).await
    }

    pub(super) async fn open_with(settings: Settings) -> Outcome<Self> {
        let client = Self::connect(settings)?;
        topology::declare(&client.consume, &client.settings, &Course::settled(1, client.settings.layout()))
            .await?;
        let channel = client.consume.channel().await?;
        for queue in [FIRST.queue(), topology::DEAD_LETTERS.to_owned()] {
            channel.queue_purge(queue.into(), QueuePurgeOptions::default()).await?;
        }
        Ok(client)
    }

    /// Without declaring anything, or waiting for anything.
    pub(super) fn connect(settings: Settings) -> Outcome<Self> {
        let stop = CancellationToken::new();
        let consume = Link::start(&settings, "test consume", stop.clone())?;
        let publish = Link::start_publishing(&settings, "test publish", stop.clone())?;
        let publisher = Publisher::new(publish, &settings);
        Ok(Self { settings, stop, consume, publisher })
    }

    /// Fills the first partition with messages that bear these numbers.
    pub(super) async fn fill(&self, numbers: std::ops::RangeInclusive<u32>) -> Outcome {
        // The publisher's own connection may still be on its way.
        until(Duration::from_secs(5), async || self.publisher.probe().is_ok()).await?;
        let mut pending = Vec::new();
        for number in numbers {
            pending.push(self.publisher.send(numbered(number)).await?);
        }
        for pending in pending {
            pending.confirmed().await?;
        }
        Ok(())
    }

    pub(super) async fn subscribe(&self, prefetch: u16) -> Outcome<Subscription> {
        let opened = Subscription::open(&self.consume, FIRST, prefetch, &self.stop).await?;
        opened.subscription().ok_or_else(|| "the client has stopped".into())
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A message to the first partition.
pub(super) fn numbered(number: u32) -> Message {
    to_slot("00", number)
}

pub(super) fn to_slot(slot: &str, number: u32) -> Message {
    Message {
        exchange: SLOTS.into(),
        routing_key: slot.into(),
        body: number.to_string().into_bytes(),
        properties: BasicProperties::default()
            .with_delivery_mode(2)
            .with_message_id(number.to_string().into()),
        mandatory: true,
        lane: 0,
    }
}

pub(super) fn number(delivery: &Delivery) -> Outcome<u32> {
    Ok(std::str::from_utf8(delivery.body())?.parse()?)
}

/// The next messages, unacknowledged, with their numbers.
pub(super) async fn take(
    subscription: &mut Subscription,
    count: usize,
) -> Outcome<(Vec<u32>, Vec<Delivery>)> {
    let mut taken = (Vec::new(), Vec::new());
    for _ in 0..count {
        let next = tokio::time::timeout(Duration::from_secs(10), subscription.next());
        let delivery = next.await.map_err(|_| format!("no more than {:?}", taken.0))??;
        taken.0.push(number(&delivery)?);
        taken.1.push(delivery);
    }
    Ok(taken)
}

/// Tries until it is so.
pub(super) async fn until(patience: Duration, condition: impl AsyncFn() -> bool) -> Outcome<Duration> {
    let start = Instant::now();
    while !condition().await {
        if start.elapsed() > patience {
            return Err(format!("not so after {patience:?}").into());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(start.elapsed())
}

/// A wire to the broker that can be cut, and frozen.
pub(super) struct Wire {
    pub(super) url: String,
    frozen: Arc<AtomicBool>,
    cuts: watch::Sender<u32>,
}

impl Wire {
    pub(super) async fn to(url: &str) -> Outcome<Self> {
        let at = url.find('@').ok_or("the address has no user")? + 1;
        let end = at + url[at..].find('/').ok_or("the address has no virtual host")?;
        let target = url[at..end].to_owned();
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let url = format!("{}{}{}", &url[..at], listener.local_addr()?, &url[end..]);
        let frozen = Arc::new(AtomicBool::new(false));
        let cuts = watch::Sender::new(0);
        let (ice, cut) = (Arc::clone(&frozen), cuts.subscribe());
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                tokio::spawn(carry(near, target.clone(), Arc::clone(&ice), cut.clone()));
            }
        });
        Ok(Self { url, frozen, cuts })
    }

    /// Ends all connections without a goodbye. New ones may be made.
    pub(super) fn cut(&self) {
        self.cuts.send_modify(|cuts| *cuts += 1);
    }

    /// Nothing passes any more, and nobody is told.
    pub(super) fn freeze(&self, frozen: bool) {
        self.frozen.store(frozen, Ordering::SeqCst);
    }
}

async fn carry(mut near: TcpStream, target: String, ice: Arc<AtomicBool>, mut cut: watch::Receiver<u32>) {
    cut.mark_unchanged();
    let thaw = async || {
        while ice.load(Ordering::SeqCst) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let carried = async {
        thaw().await;
        let mut far = TcpStream::connect(target).await?;
        let (mut there, mut back) = ([0; 16_384], [0; 16_384]);
        loop {
            tokio::select! {
                read = near.read(&mut there) => {
                    let read = read?;
                    thaw().await;
                    if read == 0 { return Outcome::Ok(()) }
                    far.write_all(&there[..read]).await?;
                }
                read = far.read(&mut back) => {
                    let read = read?;
                    thaw().await;
                    if read == 0 { return Ok(()) }
                    near.write_all(&back[..read]).await?;
                }
            }
        }
    };
    tokio::select! {
        _ = carried => {}
        _ = cut.changed() => {}
    }
}
