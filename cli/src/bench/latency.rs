//! A lone command at 50 a second: from publish to commit, to its event, and from POST to the receipt.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use futures_util::StreamExt;
use lapin::options::{BasicConsumeOptions, QueueBindOptions, QueueDeclareOptions};
use lapin::types::FieldTable;
use taskflow_servers::free_address;
use taskflow_stores::clock;
use taskflow_stores::postgres::receipts::View;
use taskflow_stores::rabbit::consume::{PREFETCH, Subscription};
use taskflow_stores::rabbit::publish::Message;
use taskflow_stores::rabbit::topology::EVENTS;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::http::Connection;
use super::intake::log_in;
use super::report::Figure;
use super::{Plan, generate};
use crate::place::{self, Place, Site};

/// 50 a second.
const EVERY: Duration = Duration::from_millis(20);
/// Commands that only warm up: connections, prepared statements, caches.
pub(super) const WARM_UP: usize = 50;

pub(super) async fn run(plan: &Plan, place: &mut Place, tell: &impl Fn(&str)) -> Result<Vec<Figure>> {
    let site = place.site().await?;
    tell("a lone message: publish to delivery, the broker alone");
    let delivered = deliveries(&site, plan.lone).await?;
    let address = free_address()?;
    let api = site.spawn("api", Some(&address))?;
    let worker = site.spawn("worker", None)?;
    let headers = log_in(&address).await?;
    tell("a lone command: POST to receipt");
    let posted = posts(&address, &headers, plan.lone).await?;
    tell("a lone command: publish to commit and event");
    let (committed, told) = publishes(&site, plan.lone).await?;
    place::stop(worker).await?;
    place::stop(api).await?;
    site.close().await;
    let mut figures = Vec::new();
    for (name, times, targets) in [
        ("publish to delivery, the broker alone", delivered, None),
        ("publish to commit", committed, Some((4.0, 10.0))),
        ("publish to event", told, None),
        ("POST (Prefer: wait) to receipt", posted, Some((6.0, 15.0))),
    ] {
        let figure = |name: String, value, target| match target {
            Some(target) => Figure::at_most(&name, value, "ms", target),
            None => Figure::new(&name, value, "ms", None),
        };
        figures.push(figure(format!("{name}, p50"), percentile(&times, 0.50), targets.map(|t| t.0)));
        figures.push(figure(format!("{name}, p99"), percentile(&times, 0.99), targets.map(|t| t.1)));
    }
    Ok(figures)
}

async fn posts(address: &str, headers: &str, count: usize) -> Result<Vec<f64>> {
    let headers = format!("{headers}content-type: application/json\r\nprefer: wait=10\r\n");
    let mut connection = Connection::open(address).await?;
    let mut times = Vec::with_capacity(count);
    let mut ticks = tokio::time::interval(EVERY);
    for number in 0..count + WARM_UP {
        ticks.tick().await;
        let body = generate::create(number, clock::now()).to_json();
        let start = Instant::now();
        let answer = connection.post("/v1/commands", &headers, &body).await?;
        ensure!(answer.status == 200, "{}: {}", answer.status, String::from_utf8_lossy(&answer.body));
        if number >= WARM_UP {
            times.push(start.elapsed().as_secs_f64() * 1_000.0);
        }
    }
    Ok(times)
}

/// Times by command id.
type Times = Arc<Mutex<HashMap<Uuid, Instant>>>;

/// What the broker alone takes: no command can be faster.
async fn deliveries(site: &Site, count: usize) -> Result<Vec<f64>> {
    let stop = CancellationToken::new();
    let (sender, mut receiver) = mpsc::unbounded_channel();
    let mut consumers = JoinSet::new();
    for partition in site.layout.all() {
        let subscribed = Subscription::open(&site.stores.consume, partition, PREFETCH, &stop).await?;
        let mut subscription = subscribed.subscription().context("subscribe")?;
        let (sender, stop) = (sender.clone(), stop.clone());
        consumers.spawn(async move {
            while let Some(delivery) = tokio::select! {
                delivery = subscription.next() => delivery.ok(),
                () = stop.cancelled() => None,
            } {
                let _ = sender.send(Instant::now());
                if delivery.ack_through().await.is_err() {
                    break;
                }
            }
            subscription.release().await;
        });
    }
    let mut times = Vec::with_capacity(count);
    let mut ticks = tokio::time::interval(EVERY);
    for number in 0..count + WARM_UP {
        ticks.tick().await;
        let command = generate::create(number, clock::now());
        let start = Instant::now();
        site.stores.publisher.publish(Message::command(&command, clock::now(), None)).await?;
        let delivered = tokio::time::timeout(Duration::from_secs(10), receiver.recv()).await;
        let delivered = delivered.context("no delivery within 10 s")?.context("the consumers ended")?;
        if number >= WARM_UP {
            times.push(delivered.duration_since(start).as_secs_f64() * 1_000.0);
        }
    }
    stop.cancel();
    while consumers.join_next().await.is_some() {}
    Ok(times)
}

/// The receipt's announcement stands for the commit: it is made right after it, so the figure is an upper bound.
pub(super) async fn publishes(site: &Site, count: usize) -> Result<(Vec<f64>, Vec<f64>)> {
    let me = clock::new_id();
    let (committed, told) = (Times::default(), Times::default());
    let announcements = site.stores.redis.announcements(me).await?;
    let listening = tokio::spawn(note_receipts(announcements, Arc::clone(&committed)));
    let events = tokio::spawn(note_events(consume_events(site).await?, Arc::clone(&told)));
    let mut sent = Vec::with_capacity(count);
    let mut ticks = tokio::time::interval(EVERY);
    for number in 0..count + WARM_UP {
        ticks.tick().await;
        let command = generate::create(number, clock::now());
        let start = Instant::now();
        site.stores.publisher.publish(Message::command(&command, clock::now(), Some(me))).await?;
        if number >= WARM_UP {
            sent.push((command.id, start));
        }
    }
    let deadline = Instant::now() + Duration::from_secs(10);
    let length = |times: &Times| times.lock().unwrap_or_else(PoisonError::into_inner).len();
    while length(&committed) < count + WARM_UP || length(&told) < count + WARM_UP {
        ensure!(
            Instant::now() < deadline,
            "{} receipts and {} events of {count} came",
            length(&committed),
            length(&told)
        );
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    listening.abort();
    events.abort();
    let took = |times: &Times| -> Vec<f64> {
        let times = times.lock().unwrap_or_else(PoisonError::into_inner);
        sent.iter()
            .filter_map(|(id, start)| Some(times.get(id)?.duration_since(*start).as_secs_f64() * 1_000.0))
            .collect()
    };
    Ok((took(&committed), took(&told)))
}

async fn note_receipts(announcements: impl StreamExt<Item = Vec<u8>>, times: Times) {
    let mut announcements = std::pin::pin!(announcements);
    while let Some(message) = announcements.next().await {
        let now = Instant::now();
        let views: Vec<View> = serde_json::from_slice(&message).unwrap_or_default();
        let mut times = times.lock().unwrap_or_else(PoisonError::into_inner);
        times.extend(views.iter().map(|view| (view.id, now)));
    }
}

async fn consume_events(site: &Site) -> Result<lapin::Consumer> {
    let channel = site.stores.consume.channel().await?;
    let options =
        QueueDeclareOptions { exclusive: true, auto_delete: true, ..QueueDeclareOptions::default() };
    let queue = channel.queue_declare("".into(), options, FieldTable::default()).await?;
    let name = queue.name().clone();
    let bind = QueueBindOptions::default();
    channel.queue_bind(name.clone(), EVENTS.into(), "#".into(), bind, FieldTable::default()).await?;
    let options = BasicConsumeOptions { no_ack: true, ..BasicConsumeOptions::default() };
    channel.basic_consume(name, "".into(), options, FieldTable::default()).await.context("consume events")
}

async fn note_events(mut events: lapin::Consumer, times: Times) {
    while let Some(Ok(delivery)) = events.next().await {
        let now = Instant::now();
        let event: serde_json::Value = serde_json::from_slice(&delivery.data).unwrap_or_default();
        if let Some(id) = event["commandid"].as_str().and_then(|id| id.parse().ok()) {
            times.lock().unwrap_or_else(PoisonError::into_inner).insert(id, now);
        }
    }
}

pub(super) fn percentile(times: &[f64], share: f64) -> f64 {
    let mut sorted = times.to_vec();
    sorted.sort_by(f64::total_cmp);
    let last = sorted.len().saturating_sub(1);
    sorted.get((last as f64 * share).round() as usize).copied().unwrap_or(f64::NAN)
}
