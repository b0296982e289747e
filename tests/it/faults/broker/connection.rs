//! What a publisher is told, and what it and a consumer do when the broker, its queues or the wire to it fail.
//!
//! Each case takes the address of a virtual host of its own: the queues are declared differently in some.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use lapin::BasicProperties;
use lapin::options::{BasicGetOptions, BasicPublishOptions, ConfirmSelectOptions, QueueBindOptions};
use lapin::types::{AMQPValue, FieldTable};
use taskflow_stores::rabbit::consume::{Opened, Subscription};
use taskflow_stores::rabbit::publish::{Message, PublishError};
use taskflow_stores::rabbit::topology::{COMMANDS, DEAD_LETTERS, SLOTS};
use taskflow_stores::rabbit::{Settings, dead_letters};

use super::support::{Client, FIRST, Outcome, Wire, number, numbered, take, to_slot, until};

/// Each message that no queue takes is told so, and only those: many are on their way, and the broker confirms them
/// together.
pub(super) async fn what_no_queue_takes_is_told_apart(url: &str) -> Outcome {
    let client = Client::open(url).await?;
    client.fill(1..=1).await?;
    let channel = client.consume.channel().await?;
    channel.queue_unbind(FIRST.queue().into(), SLOTS.into(), "08".into(), FieldTable::default()).await?;
    let mut wrong = 0;
    for round in 0..10 {
        let mut pending = Vec::new();
        for number in 0..500 {
            let lost = number % 7 == round % 7;
            let message = to_slot(if lost { "08" } else { "00" }, number);
            pending.push((lost, client.publisher.send(message).await?));
        }
        for (lost, pending) in pending {
            let told = pending.confirmed().await;
            wrong += u32::from(lost != matches!(told, Err(PublishError::Unroutable)));
            wrong += u32::from(lost == told.is_ok());
        }
    }
    let options = QueueBindOptions::default();
    channel
        .queue_bind(FIRST.queue().into(), SLOTS.into(), "08".into(), options, FieldTable::default())
        .await?;
    assert_eq!(wrong, 0);
    Ok(())
}

/// A full queue refuses; what it refused is not in it.
pub(super) async fn a_full_queue_refuses(url: &str) -> Outcome {
    let client =
        Client::open_with(Settings { url: url.to_owned(), queue_length_max: 50, ..Settings::default() })
            .await?;
    let (mut taken, mut refused) = (0, 0);
    for _ in 0..3 {
        let mut pending = Vec::new();
        for number in 0..200 {
            pending.push(client.publisher.send(numbered(number)).await?);
        }
        for pending in pending {
            match pending.confirmed().await {
                Ok(()) => taken += 1,
                Err(PublishError::Refused) => refused += 1,
                Err(error) => return Err(error.into()),
            }
        }
        // The queue tells its publishers late that it is full (it overshoots).
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(refused > 0);
    assert_eq!(client.consume.depth(&FIRST.queue()).await?.ready, taken);
    // Room again.
    let mut subscription = client.subscribe(0).await?;
    let (_, held) = take(&mut subscription, taken as usize).await?;
    held[held.len() - 1].ack_through().await?;
    until(Duration::from_secs(60), async || client.publisher.publish(numbered(1)).await.is_ok()).await?;
    Ok(())
}

/// The broker closes a channel for one message's sake: those beside it fail at once, the next ones pass.
pub(super) async fn a_closed_channel_is_made_anew(url: &str) -> Outcome {
    let client = Client::open(url).await?;
    client.fill(1..=1).await?;
    for _ in 0..3 {
        let nowhere = Message { exchange: "taskflow.nowhere".into(), ..numbered(2) };
        let start = Instant::now();
        let mut pending = vec![client.publisher.send(nowhere).await?];
        for number in 3..50 {
            // Some go to the dying channel, some to the next; if one comes between the broker's close and our answer to
            // it, the broker ends the whole connection, and some are refused at once.
            pending.extend(client.publisher.send(numbered(number)).await.ok());
        }
        let first = pending.remove(0).confirmed().await;
        assert!(matches!(first, Err(PublishError::NoExchange | PublishError::Unavailable(_))), "{first:?}");
        for pending in pending {
            let _ = pending.confirmed().await;
        }
        assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
        until(Duration::from_secs(20), async || client.publisher.publish(numbered(99)).await.is_ok()).await?;
    }
    Ok(())
}

/// A command whose routing key is no slot: in the dead letters, not lost.
pub(super) async fn a_wrong_slot_ends_in_the_dead_letters(url: &str) -> Outcome {
    let client = Client::open(url).await?;
    client.fill(1..=1).await?;
    for (exchange, key) in [(COMMANDS, "FF"), (COMMANDS, ""), ("taskflow.commands.low", "100")] {
        client.publisher.publish(Message { exchange: exchange.into(), ..to_slot(key, 5) }).await?;
    }
    // And a right one through the exchange of other systems.
    client.publisher.publish(Message { exchange: COMMANDS.into(), ..numbered(2) }).await?;
    assert_eq!(client.consume.depth(DEAD_LETTERS).await?.ready, 3);
    assert_eq!(client.consume.depth(&FIRST.queue()).await?.ready, 2);
    Ok(())
}

/// A message of another system, with everything that AMQP lets it carry, reaches the dead letters once, whole, and
/// stays there.
pub(super) async fn any_message_can_be_buried(url: &str) -> Outcome {
    let client = Client::open(url).await?;
    client.fill(1..=1).await?;
    let channel = client.consume.channel().await?;
    channel.confirm_select(ConfirmSelectOptions::default()).await?;
    let mut headers = FieldTable::default();
    headers.insert("theirs".into(), AMQPValue::LongInt(7));
    // Would send a copy to a partition.
    headers
        .insert("CC".into(), AMQPValue::FieldArray(vec![AMQPValue::LongString(FIRST.queue().into())].into()));
    headers.insert("large".into(), AMQPValue::LongString("x".repeat(105_000).into()));
    // The most that has room beside what we say ourselves.
    let most = AMQPValue::LongString("x".repeat(24_500).into());
    headers.insert("most".into(), most.clone());
    let properties = BasicProperties::default()
        .with_headers(headers)
        .with_content_type("text/plain".into())
        .with_message_id("theirs".into())
        .with_user_id("taskflow".into())
        .with_expiration("3600000".into())
        .with_reply_to("somewhere".into());
    let body = vec![0xFF; 300_000];
    let options = BasicPublishOptions::default();
    channel.basic_publish("".into(), FIRST.queue().into(), options, &body, properties).await?.await?;
    let mut subscription = client.subscribe(0).await?;
    let (first, held) = take(&mut subscription, 1).await?;
    assert_eq!(first, [1]);
    held[0].ack_through().await?;
    let delivery = subscription.next().await?;
    let detail = "ä".repeat(5_000);
    dead_letters::send(&client.publisher, FIRST, &delivery, "malformed", &detail).await?;
    delivery.ack_through().await?;
    subscription.release().await;
    let letter =
        channel.basic_get(DEAD_LETTERS.into(), BasicGetOptions::default()).await?.ok_or("no letter")?;
    assert_eq!(letter.delivery.data, body);
    let properties = &letter.delivery.properties;
    assert_eq!(properties.content_type().as_ref().map(lapin::types::ShortString::as_str), Some("text/plain"));
    assert_eq!(properties.message_id().as_ref().map(lapin::types::ShortString::as_str), Some("theirs"));
    assert!(properties.expiration().is_none() && properties.user_id().is_none());
    let headers = properties.headers().clone().unwrap_or_default();
    assert!(!headers.contains_key("CC") && headers.contains_key("taskflow-reason"));
    assert_eq!(headers.inner().get("theirs"), Some(&AMQPValue::LongInt(7)));
    assert_eq!(headers.inner().get("most"), Some(&most));
    assert!(!headers.contains_key("large") && headers.contains_key("taskflow-headers-dropped"));
    assert_eq!(client.consume.depth(&FIRST.queue()).await?.ready, 0, "a copy came back");
    assert_eq!(client.consume.depth(DEAD_LETTERS).await?.ready, 0);
    Ok(())
}

/// A wire that passes nothing: publishers hear of it in time, all at once, and a new connection is made when it can be.
pub(super) async fn a_frozen_wire_is_noticed(url: &str) -> Outcome {
    drop(Client::open(url).await?);
    let wire = Wire::to(url).await?;
    let client = Client::connect(Settings {
        url: wire.url.clone(),
        heartbeat_s: 1,
        confirm_timeout_ms: 1_000,
        connect_timeout_ms: 500,
        ..Settings::default()
    })?;
    client.fill(1..=10).await?;
    let mut subscription = client.subscribe(0).await?;
    take(&mut subscription, 10).await?;
    wire.freeze(true);
    let start = Instant::now();
    let mut pending = Vec::new();
    for number in 11..200 {
        pending.push(client.publisher.send(numbered(number)).await?);
    }
    for pending in pending {
        assert!(pending.confirmed().await.is_err());
    }
    println!("all unconfirmed after {:?}", start.elapsed());
    assert!(start.elapsed() < Duration::from_secs(20), "{:?}", start.elapsed());
    assert!(
        tokio::time::timeout(Duration::from_secs(20), subscription.next())
            .await
            .is_ok_and(|next| next.is_err())
    );
    println!("the consumer knows after {:?}", start.elapsed());
    until(Duration::from_secs(20), async || client.publisher.probe().is_err()).await?;
    let refused = Instant::now();
    assert!(client.publisher.send(numbered(1)).await.is_err());
    assert!(refused.elapsed() < Duration::from_millis(500));
    // Connecting is tried, in vain.
    assert!(client.consume.channel().await.is_err());
    wire.freeze(false);
    let took =
        until(Duration::from_secs(60), async || client.publisher.publish(numbered(1)).await.is_ok()).await?;
    println!("published again {took:?} after the thaw");
    Ok(())
}

/// An alarm in the broker (memory, disk): publishers are refused at once, consumers go on. `alarm` turns it on or off.
pub(super) async fn an_alarm_refuses_at_once(url: &str, alarm: impl AsyncFn(bool) -> Outcome) -> Outcome {
    let settings = Settings { url: url.to_owned(), confirm_timeout_ms: 1_000, ..Settings::default() };
    let client = Client::open_with(settings).await?;
    client.fill(1..=10).await?;
    let mut subscription = client.subscribe(0).await?;
    alarm(true).await?;
    let start = Instant::now();
    // The broker tells only who publishes; that message is in doubt.
    assert!(client.publisher.publish(numbered(11)).await.is_err());
    assert!(start.elapsed() < Duration::from_secs(20));
    let start = Instant::now();
    assert!(client.publisher.send(numbered(12)).await.is_err() && client.publisher.probe().is_err());
    assert!(start.elapsed() < Duration::from_millis(500));
    let (numbers, held) = take(&mut subscription, 10).await?;
    assert_eq!(numbers, (1..=10).collect::<Vec<_>>());
    held[9].ack_through().await?;
    alarm(false).await?;
    let took =
        until(Duration::from_secs(60), async || client.publisher.publish(numbered(13)).await.is_ok()).await?;
    println!("published again {took:?} after the alarm");
    Ok(())
}

/// The wire breaks again and again under a publisher and a consumer: what was confirmed arrives.
pub(super) async fn a_broken_wire_loses_nothing(url: &str) -> Outcome {
    let wire = Wire::to(url).await?;
    drop(Client::open(url).await?);
    let client = Client::connect(Settings { url: wire.url.clone(), ..Settings::default() })?;
    nothing_is_lost(&client, async || {
        wire.cut();
        Ok(())
    })
    .await
}

/// The broker stops and starts under a publisher and a consumer. `restart` returns when it has done so.
pub(super) async fn a_restarted_broker_loses_nothing(
    url: &str,
    restart: impl AsyncFn() -> Outcome,
) -> Outcome {
    let client = Client::open(url).await?;
    nothing_is_lost(&client, restart).await
}

async fn nothing_is_lost(client: &Client, fault: impl AsyncFn() -> Outcome) -> Outcome {
    client.fill(0..=0).await?;
    let (publisher, stop) = (client.publisher.clone(), tokio_util::sync::CancellationToken::new());
    let stopped = stop.clone();
    let publishing = tokio::spawn(async move {
        let (mut confirmed, mut failed) = (vec![0], 0);
        let mut number = 1;
        while !stopped.is_cancelled() {
            let mut pending = Vec::new();
            for _ in 0..50 {
                match publisher.send(numbered(number)).await {
                    Ok(sent) => pending.push((number, sent)),
                    Err(_) => failed += 1,
                }
                number += 1;
            }
            for (number, pending) in pending {
                match pending.confirmed().await {
                    Ok(()) => confirmed.push(number),
                    Err(_) => failed += 1,
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        (confirmed, failed)
    });
    let (link, ended) = (client.consume.clone(), tokio_util::sync::CancellationToken::new());
    let end = ended.clone();
    let seen = Arc::new(Mutex::new(HashSet::new()));
    let noted = Arc::clone(&seen);
    let consuming = tokio::spawn(async move {
        let mut last;
        while !end.is_cancelled() {
            let opened = Subscription::open(&link, FIRST, 0, &end).await;
            let Ok(Opened::Subscribed(mut subscription)) = opened else {
                tokio::time::sleep(Duration::from_millis(20)).await;
                continue;
            };
            let mut again = true;
            last = 0;
            loop {
                let next = tokio::select! {
                    () = end.cancelled() => break,
                    next = subscription.next() => next,
                };
                let Ok(delivery) = next else { break };
                let Ok(number) = number(&delivery) else { continue };
                // Only where a new subscription begins may it go back; the probes bear the number 0.
                assert!(number == 0 || number > last || again, "{number} came behind {last}");
                again &= number == 0;
                last = last.max(number);
                noted.lock().unwrap_or_else(PoisonError::into_inner).insert(number);
                if number % 20 == 0 {
                    let _ = delivery.ack_through().await;
                }
            }
        }
    });
    for _ in 0..3 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        let start = Instant::now();
        fault().await?;
        println!("the fault took {:?}", start.elapsed());
        until(Duration::from_secs(90), async || client.publisher.publish(numbered(0)).await.is_ok()).await?;
        println!("published again {:?} after the fault", start.elapsed());
    }
    stop.cancel();
    let (confirmed, failed) = publishing.await?;
    let missing = || -> Vec<u32> {
        let seen = seen.lock().unwrap_or_else(PoisonError::into_inner);
        confirmed.iter().filter(|number| !seen.contains(number)).copied().collect()
    };
    let arrived = until(Duration::from_secs(90), async || missing().is_empty()).await;
    ended.cancel();
    consuming.await?;
    println!("{} confirmed, {failed} failed", confirmed.len());
    assert!(arrived.is_ok(), "confirmed and never delivered: {:?}", missing());
    Ok(())
}
