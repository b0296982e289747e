//! The audit trail: how long each shape of a query takes on many events (`--events`).

use std::time::{Duration, Instant};

use anyhow::Result;
use chrono::{TimeDelta, Utc};
use mongodb::bson::oid::ObjectId;
use mongodb::bson::{DateTime, Document, doc};
use taskflow_core::event::{EventId, TYPES};
use taskflow_stores::clock;
use taskflow_stores::mongo::event_query::{self, Cursor, Query};
use taskflow_stores::mongo::{Database, events};
use uuid::Uuid;

use super::Plan;
use super::report::Figure;
use crate::place::Place;

/// Documents of one insert.
const TOGETHER: usize = 5_000;
/// Events of one task, and of one actor.
const OF_A_TASK: usize = 12;
const ACTORS: usize = 2_000;
/// One of so many events is of the same busy actor, who only ever did one kind of thing.
const BUSY: usize = 10;
/// Events of one time, as a batch makes them.
const OF_A_TIME: usize = 250;
/// How often each shape is asked, and for how long at most.
const TIMES: usize = 300;
const PATIENCE: Duration = Duration::from_secs(20);
const PAGE: u32 = 20;

pub(super) async fn run(plan: &Plan, place: &mut Place, tell: &impl Fn(&str)) -> Result<Vec<Figure>> {
    let site = place.site().await?;
    let database = &site.stores.mongo;
    let begin = clock::now() - TimeDelta::days(30);
    let start = Instant::now();
    let mut made = 0;
    while made < plan.events {
        if made.is_multiple_of(TOGETHER * 10) {
            tell(&format!("trail: {made} of {} events", plan.events));
        }
        let together = TOGETHER.min(plan.events - made);
        let documents = (made..made + together).map(|number| event(number, begin));
        database.collection::<Document>(events::COLLECTION).insert_many(documents).ordered(false).await?;
        made += together;
    }
    let mut figures = vec![Figure::new(
        "trail: events made",
        made as f64 / start.elapsed().as_secs_f64(),
        "events/s",
        None,
    )];
    for (name, shape) in SHAPES {
        tell(&format!("trail: {name}"));
        let (p50, p99, asked) = time(database, plan.events, begin, *shape).await?;
        if asked < TIMES {
            tell(&format!("trail: {name}: asked {asked} times, no more had room in {PATIENCE:?}"));
        }
        figures.push(Figure::new(&format!("trail: {name}, p50"), p50, "ms", None));
        figures.push(Figure::new("  p99", p99, "ms", None));
    }
    site.close().await;
    Ok(figures)
}

/// What the numbered event is about: by arithmetic, so that queries can find it again.
fn task(number: usize) -> Uuid {
    Uuid::from_u128(0x0193_0000_0000_7000_9000_0000_0000_0000 + (number / OF_A_TASK) as u128)
}

fn actor(number: usize) -> Uuid {
    let number = if number.is_multiple_of(BUSY) { 0 } else { number };
    Uuid::from_u128(0x0193_0000_0000_7000_a000_0000_0000_0000 + (number % ACTORS) as u128)
}

fn command(number: usize) -> Uuid {
    Uuid::from_u128(0x0193_0000_0000_7000_b000_0000_0000_0000 + number as u128)
}

fn time_of(number: usize, begin: chrono::DateTime<Utc>) -> chrono::DateTime<Utc> {
    begin + TimeDelta::milliseconds((number / OF_A_TIME * 25) as i64)
}

fn event(number: usize, begin: chrono::DateTime<Utc>) -> Document {
    let at = time_of(number, begin);
    let id = EventId::new(at, command(number), 0);
    let at = DateTime::from_millis(at.timestamp_millis());
    doc! {
        "_id": ObjectId::from_bytes(id.0), "type": TYPES[number % 5], "actorId": actor(number).to_string(),
        "entityId": task(number).to_string(), "entityType": "task", "version": (number % OF_A_TASK) as i32 + 1,
        "payload": { "title": format!("Task number {number}"), "previous": { "title": "What it was called before" } },
        "metadata": { "ipAddress": "192.0.2.7", "userAgent": "bench", "timestamp": at },
        "correlationId": command(number).to_string(), "commandId": command(number).to_string(),
        "run": { "p": "00", "n": (number / OF_A_TIME) as i64, "i": (number % OF_A_TIME) as i32, "class": "task_events" },
        "createdAt": at, "expiresAt": DateTime::from_millis(4_000_000_000_000),
    }
}

/// The query of a shape about the numbered event.
type Shape = fn(usize, chrono::DateTime<Utc>) -> Query;

const SHAPES: &[(&str, Shape)] = &[
    ("the newest", |_, _| Query::default()),
    ("entity", |number, _| Query { entity: Some(task(number)), ..Query::default() }),
    ("actor", |number, _| Query { actor: Some(actor(number)), ..Query::default() }),
    ("type", |number, _| Query { kind: Some(TYPES[number % 5].to_owned()), ..Query::default() }),
    ("correlation", |number, _| Query { correlation: Some(command(number)), ..Query::default() }),
    ("time", |number, begin| {
        let from = time_of(number, begin);
        Query { from: Some(from), to: Some(from + TimeDelta::seconds(1)), ..Query::default() }
    }),
    ("actor and time", |number, begin| {
        let from = time_of(number, begin);
        let to = Some(from + TimeDelta::minutes(5));
        Query { actor: Some(actor(number)), from: Some(from), to, ..Query::default() }
    }),
    ("type after a cursor", |number, begin| {
        let at = time_of(number, begin);
        let after = Cursor { at_ms: at.timestamp_millis(), id: EventId::new(at, command(number), 0) };
        Query { kind: Some(TYPES[number % 5].to_owned()), after: Some(after), ..Query::default() }
    }),
    ("actor after a cursor", |number, begin| {
        let at = time_of(number, begin);
        let after = Cursor { at_ms: at.timestamp_millis(), id: EventId::new(at, command(number), 0) };
        Query { actor: Some(actor(number)), after: Some(after), ..Query::default() }
    }),
    ("type and time", |number, begin| {
        let from = time_of(number, begin);
        let to = Some(from + TimeDelta::minutes(5));
        Query { kind: Some(TYPES[number % 5].to_owned()), from: Some(from), to, ..Query::default() }
    }),
    ("entity and type", |number, _| Query {
        entity: Some(task(number)),
        kind: Some(TYPES[number % 5].to_owned()),
        ..Query::default()
    }),
    ("an actor's events of a type", |number, _| Query {
        actor: Some(actor(number)),
        kind: Some(TYPES[number % 5].to_owned()),
        ..Query::default()
    }),
    ("what a busy actor never did", |number, begin| {
        let at = time_of(number, begin);
        let after = Cursor { at_ms: at.timestamp_millis(), id: EventId::new(at, command(number), 0) };
        let kind = Some(TYPES[1].to_owned());
        Query { actor: Some(actor(0)), kind, after: Some(after), ..Query::default() }
    }),
];

async fn time(
    database: &Database,
    events: usize,
    begin: chrono::DateTime<Utc>,
    shape: Shape,
) -> Result<(f64, f64, usize)> {
    let mut took = Vec::with_capacity(TIMES);
    let begun = Instant::now();
    for turn in 0..TIMES {
        // Spread over all of them, in no order that a cache could follow.
        let number = (turn * 7_919 + 13) * (events / TIMES).max(1) % events.max(1);
        let query = shape(number, begin);
        let start = Instant::now();
        let answered = event_query::page(database, &query, PAGE).await;
        // What the server gives up has its time too; what it refuses has none.
        if let Err(error) = answered
            && start.elapsed() < Duration::from_secs(1)
        {
            return Err(error.into());
        }
        took.push(start.elapsed().as_secs_f64() * 1_000.0);
        if begun.elapsed() > PATIENCE {
            break;
        }
    }
    took.sort_unstable_by(f64::total_cmp);
    let asked = took.len();
    Ok((took[asked / 2], took[asked * 99 / 100], asked))
}
