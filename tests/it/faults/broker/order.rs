//! The order of a partition, against a real broker: a message that was given back comes before those behind it, as
//! long as nobody else is subscribed meanwhile.
//!
//! Each case takes the address of a virtual host of its own.

use std::time::{Duration, Instant};

use futures_util::StreamExt;
use lapin::options::{BasicAckOptions, BasicCancelOptions, BasicConsumeOptions, BasicQosOptions};
use lapin::types::FieldTable;
use lapin::{Channel, Consumer};
use taskflow_stores::rabbit::Settings;
use taskflow_stores::rabbit::consume::{Opened, Subscription};
use taskflow_stores::rabbit::drain::Drain;
use taskflow_stores::rabbit::publish::Message;
use taskflow_stores::rabbit::topology::{COMMANDS, DEAD_LETTERS};
use taskflow_tests::wait::looked_at;
use tokio_util::sync::CancellationToken;

use super::support::{Client, FIRST, Outcome, Wire, number, take, to_slot, until};

/// More than one consumer holds.
const COUNT: u32 = 2_500;

fn from(first: u32) -> Vec<u32> {
    (first..=COUNT).collect()
}

/// All that are left come in order, and are acknowledged.
async fn rest(client: &Client, first: u32) -> Outcome {
    let mut subscription = client.subscribe(0).await?;
    let mut numbers = Vec::new();
    while numbers.len() < from(first).len() {
        let (some, held) =
            take(&mut subscription, from(first).len().min(numbers.len() + 500) - numbers.len()).await?;
        numbers.extend(some);
        held[held.len() - 1].ack_through().await?;
    }
    assert_eq!(numbers, from(first));
    subscription.release().await;
    until(Duration::from_secs(60), async || {
        client.consume.depth(&FIRST.queue()).await.is_ok_and(|d| d.consumers == 0)
    })
    .await?;
    assert_eq!(client.consume.depth(&FIRST.queue()).await?.ready, 0);
    Ok(())
}

/// Given back whole, in part, again and again, and each time the head is acknowledged a bit further.
pub(super) async fn a_release_gives_back_in_order(url: &str) -> Outcome {
    let client = Client::open(url).await?;
    client.fill(1..=COUNT).await?;
    let mut first = 1;
    for (taken, acknowledged) in [(10, 0), (350, 250), (1, 1), (500, 499), (3, 0), (200, 100)] {
        let mut subscription = client.subscribe(0).await?;
        let (numbers, held) = take(&mut subscription, taken).await?;
        assert_eq!(numbers, from(first)[..taken]);
        if acknowledged > 0 {
            // The broker sends more at once; what is on its way at the release is the trap.
            held[acknowledged - 1].ack_through().await?;
            first += acknowledged as u32;
        }
        subscription.release().await;
        assert!(
            held[taken - 1].ack_through().await.is_err(),
            "an acknowledgement of the past must not seem to work"
        );
    }
    rest(&client, first).await
}

/// A task that is dropped with its subscription leaves as well as one that releases it.
pub(super) async fn a_dropped_subscription_gives_back_in_order(url: &str) -> Outcome {
    let client = Client::open(url).await?;
    client.fill(1..=COUNT).await?;
    for round in 0..4 {
        let mut subscription = client.subscribe(0).await?;
        let (numbers, held) = take(&mut subscription, 300).await?;
        assert_eq!(numbers, from(1 + round * 100)[..300]);
        assert!(round == 0 || held[0].redelivered() && held[0].returns() > 0);
        held[99].ack_through().await?;
        assert!(held[99].ack_through().await.is_err(), "an acknowledgement is said once");
        drop(subscription);
    }
    rest(&client, 401).await
}

/// Whoever gives up in the middle of subscribing, wherever that is, leaves no consumer behind: nobody would read it, and
/// nobody else could have its queue. Its connection goes on.
pub(super) async fn a_subscription_that_is_given_up_leaves_no_consumer(url: &str) -> Outcome {
    let client = Client::open(url).await?;
    client.fill(1..=COUNT).await?;
    let buried = Message { exchange: COMMANDS.into(), ..to_slot("FF", 1) };
    client.publisher.publish(buried).await?;
    let free = async |queue: &str| {
        until(Duration::from_secs(20), async || {
            client.consume.depth(queue).await.is_ok_and(|depth| depth.consumers == 0)
        })
        .await
        .map_err(|error| format!("{queue} has a consumer: {error}"))
    };
    // To be told of the depth, the channel, the prefetch and the consumer.
    each_point(4, async || {
        let mut given_up = 0;
        let subscription = loop {
            free(&FIRST.queue()).await?;
            let opened = Subscription::open(&client.consume, FIRST, 0, &client.stop);
            if let Some(opened) = looked_at(given_up + 1, opened).await {
                break opened?.subscription().ok_or("stopped")?;
            }
            given_up += 1;
        };
        subscription.release().await;
        Ok(given_up)
    })
    .await?;
    each_point(3, async || {
        let mut given_up = 0;
        let drain = loop {
            free(DEAD_LETTERS).await?;
            if let Some(opened) = looked_at(given_up + 1, Drain::open(&client.consume)).await {
                break opened?;
            }
            given_up += 1;
        };
        drain.close().await;
        Ok(given_up)
    })
    .await?;
    rest(&client, 1).await
}

/// Opens something, giving up at one point more each time, until there were so many points. Answers of the broker that come
/// together are one point, so one pass may have fewer; all of ten do not.
async fn each_point(points: usize, mut pass: impl AsyncFnMut() -> Outcome<usize>) -> Outcome {
    let mut most = 0;
    for _ in 0..10 {
        most = most.max(pass().await?);
        if most >= points {
            return Ok(());
        }
    }
    Err(format!("given up at {most} points of {points}").into())
}

/// A connection that breaks under its consumer.
pub(super) async fn a_cut_wire_gives_back_in_order(url: &str) -> Outcome {
    let client = Client::open(url).await?;
    client.fill(1..=COUNT).await?;
    let wire = Wire::to(url).await?;
    let holder = Client::connect(Settings { url: wire.url.clone(), ..client.settings.clone() })?;
    let mut first = 1;
    for (taken, acknowledged) in [(10, 0), (350, 250), (1, 0), (500, 499)] {
        let mut subscription = holder.subscribe(0).await?;
        let (numbers, held) = take(&mut subscription, taken).await?;
        assert_eq!(numbers, from(first)[..taken]);
        if acknowledged > 0 {
            held[acknowledged - 1].ack_through().await?;
            first += acknowledged as u32;
            // So that the acknowledgement is over the wire.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        wire.cut();
        let start = Instant::now();
        let ended = async { while subscription.next().await.is_ok() {} };
        tokio::time::timeout(Duration::from_secs(2), ended).await.map_err(|_| "the stream did not end")?;
        assert!(held[taken - 1].ack_through().await.is_err());
        let second = client.subscribe(0).await?;
        println!("successor subscribed {:?} after the cut", start.elapsed());
        second.release().await;
    }
    rest(&client, first).await
}

/// A holder that has fallen silent: the broker drops it after two heartbeats, and nobody subscribes before.
pub(super) async fn a_silent_holder_gives_back_in_order(url: &str) -> Outcome {
    let client = Client::open(url).await?;
    client.fill(1..=COUNT).await?;
    let wire = Wire::to(url).await?;
    let holder =
        Client::connect(Settings { url: wire.url.clone(), heartbeat_s: 1, ..client.settings.clone() })?;
    let mut subscription = holder.subscribe(0).await?;
    let (_, held) = take(&mut subscription, 350).await?;
    held[249].ack_through().await?;
    tokio::time::sleep(Duration::from_millis(100)).await;
    wire.freeze(true);
    let start = Instant::now();
    client.subscribe(0).await?.release().await;
    println!("successor subscribed {:?} after the silence began", start.elapsed());
    assert!(start.elapsed() > Duration::from_secs(1));
    rest(&client, 251).await
}

/// A process that closes its connection while it holds messages.
pub(super) async fn a_closed_connection_gives_back_in_order(url: &str) -> Outcome {
    let client = Client::open(url).await?;
    client.fill(1..=COUNT).await?;
    for round in 0..3 {
        let holder = Client::connect(client.settings.clone())?;
        let mut subscription = holder.subscribe(0).await?;
        let (numbers, held) = take(&mut subscription, 300).await?;
        assert_eq!(numbers, from(1 + round * 250)[..300]);
        held[249].ack_through().await?;
        holder.stop.cancel();
        drop(held);
        until(Duration::from_secs(60), async || !holder.consume.is_up()).await?;
    }
    rest(&client, 751).await
}

/// A successor that is early waits until the holder has left; the holder finishes first.
pub(super) async fn a_successor_waits_for_the_holder(url: &str) -> Outcome {
    let client = Client::open(url).await?;
    client.fill(1..=COUNT).await?;
    let mut first = client.subscribe(0).await?;
    let (_, held) = take(&mut first, 20).await?;
    let successor = Client::connect(client.settings.clone())?;
    let open = |stop: CancellationToken| {
        let link = successor.consume.clone();
        tokio::spawn(async move { Subscription::open(&link, FIRST, 0, &stop).await })
    };
    let mut early = open(successor.stop.clone());
    assert!(tokio::time::timeout(Duration::from_millis(600), &mut early).await.is_err());
    assert_eq!(
        client.consume.depth(&FIRST.queue()).await?.consumers,
        1,
        "it must not even wait at the broker"
    );
    held[9].ack_through().await?;
    first.release().await;
    let start = Instant::now();
    let mut second = early.await??.subscription().ok_or("stopped")?;
    println!("successor subscribed {:?} after the release", start.elapsed());
    assert_eq!(take(&mut second, 500).await?.0, from(11)[..500]);
    // Waiting ends with the stop.
    let stop = CancellationToken::new();
    let third = open(stop.clone());
    tokio::time::sleep(Duration::from_millis(300)).await;
    stop.cancel();
    let ended = tokio::time::timeout(Duration::from_millis(500), third).await???;
    assert!(matches!(ended, Opened::Stopped));
    second.release().await;
    rest(&client, 11).await
}

/// A consumer beside the client library's own ways, on a channel of its own.
async fn raw(client: &Client, prefetch: u16) -> Outcome<(Channel, Consumer)> {
    let idle = async || client.consume.depth(&FIRST.queue()).await.is_ok_and(|depth| depth.consumers == 0);
    until(Duration::from_secs(60), idle).await?;
    subscribe_raw(client, prefetch).await
}

async fn subscribe_raw(client: &Client, prefetch: u16) -> Outcome<(Channel, Consumer)> {
    let channel = client.consume.channel().await?;
    channel.basic_qos(prefetch, BasicQosOptions::default()).await?;
    let options = BasicConsumeOptions::default();
    let consumer = channel.basic_consume(FIRST.queue().into(), "raw".into(), options, FieldTable::default());
    let consumer = consumer.await?;
    Ok((channel, consumer))
}

async fn take_raw(
    consumer: &mut Consumer,
    count: usize,
) -> Outcome<(Vec<u32>, Vec<lapin::message::Delivery>)> {
    let mut taken = (Vec::new(), Vec::new());
    while taken.0.len() < count {
        let next = tokio::time::timeout(Duration::from_secs(5), consumer.next());
        let delivery = next.await.map_err(|_| format!("no more than {:?}", taken.0))?.ok_or("ended")??;
        taken.0.push(std::str::from_utf8(&delivery.data)?.parse()?);
        taken.1.push(delivery);
    }
    Ok(taken)
}

/// Why a successor waits. Should one of these three fail, brokers have become better than we rely on.
pub(super) async fn a_waiting_consumer_breaks_the_order(url: &str) -> Outcome {
    let client = Client::open(url).await?;
    for polite in [true, false] {
        client.fill(1..=30).await?;
        let (channel, mut first) = raw(&client, 10).await?;
        take_raw(&mut first, 10).await?;
        let (waiting, mut second) = subscribe_raw(&client, 100).await?;
        if polite {
            channel.basic_cancel("raw".into(), BasicCancelOptions::default()).await?;
        }
        channel.close(200, "bye".into()).await?;
        let (numbers, held) = take_raw(&mut second, 30).await?;
        // A mere close does no harm here; a holder of another make may still cancel.
        let expected: Vec<u32> = if polite { (11..=30).chain(1..=10).collect() } else { (1..=30).collect() };
        assert_eq!(numbers, expected);
        held[29].acker.ack(BasicAckOptions { multiple: true }).await?;
        waiting.close(200, "bye".into()).await?;
    }
    Ok(())
}

/// Why the prefetch has a floor, and a partition that goes slowly keeps it.
pub(super) async fn a_smaller_prefetch_breaks_the_order(url: &str) -> Outcome {
    let client = Client::open(url).await?;
    client.fill(1..=30).await?;
    for prefetch in [10, 1] {
        let (channel, mut consumer) = raw(&client, prefetch).await?;
        take_raw(&mut consumer, usize::from(prefetch)).await?;
        channel.close(200, "bye".into()).await?;
    }
    let (_channel, mut last) = raw(&client, 100).await?;
    let (numbers, _held) = take_raw(&mut last, 30).await?;
    assert_eq!(numbers, (2..=10).chain([1]).chain(11..=30).collect::<Vec<_>>());
    Ok(())
}

/// Why a consumer is not cancelled: what an acknowledgement has called forth comes back before what is held. A race in
/// the broker, lost more often than not.
pub(super) async fn a_cancel_breaks_the_order(url: &str) -> Outcome {
    let client = Client::open(url).await?;
    for _ in 0..20 {
        client.fill(1..=30).await?;
        let (channel, mut first) = raw(&client, 10).await?;
        let (_, held) = take_raw(&mut first, 10).await?;
        held[4].acker.ack(BasicAckOptions { multiple: true }).await?;
        channel.basic_cancel("raw".into(), BasicCancelOptions::default()).await?;
        channel.close(200, "bye".into()).await?;
        let (channel, mut last) = raw(&client, 100).await?;
        let (numbers, held) = take_raw(&mut last, 25).await?;
        if numbers == (11..=15).chain(6..=10).chain(16..=30).collect::<Vec<_>>() {
            return Ok(());
        }
        assert_eq!(numbers, (6..=30).collect::<Vec<_>>());
        held[24].acker.ack(BasicAckOptions { multiple: true }).await?;
        channel.close(200, "bye".into()).await?;
    }
    Err("the order held".into())
}

/// Messages that are there already are taken without waiting.
pub(super) async fn what_is_there_is_taken_at_once(url: &str) -> Outcome {
    let client = Client::open(url).await?;
    client.fill(1..=30).await?;
    let mut subscription = client.subscribe(0).await?;
    let mut numbers = vec![number(&subscription.next().await?)?];
    tokio::time::sleep(Duration::from_millis(200)).await;
    while let Some(delivery) = subscription.try_next()? {
        numbers.push(number(&delivery)?);
    }
    assert_eq!(numbers, (1..=30).collect::<Vec<_>>());
    Ok(())
}
