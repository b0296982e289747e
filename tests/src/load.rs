//! Load with a memory: dependent updates of either priority at a set rate, over AMQP and over HTTP, and what was accepted
//! of them.
//!
//! Every command names the version that its predecessor leaves behind. A sender goes on with a subject only when the
//! command before was accepted, and offers one that was not again under the same id: so the order of acceptance is
//! known, whatever breaks.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use reqwest::Body;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use taskflow_core::envelope;
use taskflow_core::state::Role;
use taskflow_stores::clock;
use taskflow_stores::rabbit::publish::{Message, Publisher};
use taskflow_stores::redis::Redis;
use taskflow_stores::redis::sessions::Session;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, MissedTickBehavior};
use uuid::Uuid;

use crate::commands::{ADMIN, command, subject_in_slot};
use crate::dice::Dice;
use crate::promise::Accepted;
use crate::{Site, wait};

/// Subjects of one sender over AMQP: what it sends meets what it has sent before, often in the same batch.
const SUBJECTS: usize = 4;
/// Commands of one request over HTTP, each of another subject: what is refused must not overtake what is not.
const REQUEST: usize = 16;
/// Part of the commands that come over HTTP: one of so many.
const HTTP_PART: u64 = 4;
/// Part of the subjects whose commands have low priority: one of so many.
const LOW_PART: u128 = 8;
/// Between two tries to have a command accepted.
const AGAIN: Duration = Duration::from_millis(100);
/// A fault after which nothing is accepted for so long is not over.
const LONGEST: Duration = Duration::from_secs(600);
/// The longest that one request may hang.
const REQUEST_LONGEST: Duration = Duration::from_secs(15);

/// How much, and by what chance.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    pub seed: u64,
    pub per_second: u64,
    /// Senders over AMQP.
    pub senders: usize,
}

/// What the load and the one who breaks things share.
pub struct Control {
    enough: AtomicBool,
    paused: watch::Sender<bool>,
    accepted: AtomicU64,
    /// Senders over HTTP leave each request half-way before they send it whole.
    rude: AtomicBool,
    /// Requests that were left half-way.
    left: AtomicU64,
    /// Commands that have been offered and not yet accepted.
    on_the_way: AtomicU64,
}

impl Control {
    /// Commands accepted by now.
    pub fn accepted(&self) -> u64 {
        self.accepted.load(Ordering::SeqCst)
    }

    pub fn be_rude(&self, rude: bool) {
        self.rude.store(rude, Ordering::SeqCst);
    }

    /// Requests that were left half-way.
    pub fn left(&self) -> u64 {
        self.left.load(Ordering::SeqCst)
    }

    /// Ends the pause.
    pub fn resume(&self) {
        self.paused.send_replace(false);
    }

    /// Offers nothing more until [`Control::resume`]; returns when all that was offered is accepted.
    pub async fn pause(&self) -> Result<()> {
        self.paused.send_replace(true);
        wait::until("what was offered is accepted", async || Ok(self.on_the_way.load(Ordering::SeqCst) == 0))
            .await
    }

    fn ended(&self) -> bool {
        self.enough.load(Ordering::SeqCst)
    }

    /// Waits for the turn of a sender; counts what it is about to offer.
    async fn turn(&self, ticks: &mut tokio::time::Interval, commands: u64) {
        ticks.tick().await;
        let mut paused = self.paused.subscribe();
        loop {
            // The other end is `self`: it can't be gone.
            let _ = paused.wait_for(|paused| !*paused).await;
            self.on_the_way.fetch_add(commands, Ordering::SeqCst);
            if !*self.paused.borrow() {
                return;
            }
            self.on_the_way.fetch_sub(commands, Ordering::SeqCst);
        }
    }

    fn note(&self, commands: u64) {
        self.accepted.fetch_add(commands, Ordering::SeqCst);
        self.on_the_way.fetch_sub(commands, Ordering::SeqCst);
    }
}

/// Running load.
pub struct Load {
    senders: JoinSet<Result<Subjects>>,
    pub control: Arc<Control>,
}

impl Load {
    /// Starts to send: most of it straight to the broker, as other systems do, the rest to the API at `base`.
    pub async fn start(site: &Site, base: &str, plan: Plan) -> Result<Self> {
        let control = Arc::new(Control {
            enough: AtomicBool::new(false),
            paused: watch::Sender::new(false),
            accepted: AtomicU64::new(0),
            rude: AtomicBool::new(false),
            left: AtomicU64::new(0),
            on_the_way: AtomicU64::new(0),
        });
        let dice = Dice::new(plan.seed);
        let mut senders = JoinSet::new();
        let by_http = plan.per_second / HTTP_PART;
        let by_amqp = plan.per_second - by_http;
        let every = Duration::from_secs_f64(plan.senders as f64 / by_amqp as f64);
        for number in 0..plan.senders {
            let dice = dice.part(number as u64);
            let sender = over_amqp(site.publisher.clone(), Arc::clone(&control), dice, every);
            senders.spawn(sender);
        }
        // Two requests at a time.
        let every = Duration::from_secs_f64(2.0 * REQUEST as f64 / by_http as f64);
        let client = Caller::new(base, site.redis.clone()).await?;
        for number in 0..2 {
            let dice = dice.part(1_000_000 + number);
            senders.spawn(over_http(client.clone(), Arc::clone(&control), dice, every));
        }
        Ok(Self { senders, control })
    }

    /// Ends the load; returns what was accepted.
    pub async fn end(mut self) -> Result<Accepted> {
        self.control.enough.store(true, Ordering::SeqCst);
        self.control.resume();
        let mut accepted = Accepted::default();
        while let Some(ended) = self.senders.join_next().await {
            accepted.subjects.extend(ended??.0);
        }
        Ok(accepted)
    }
}

/// The subjects of one sender, with their commands.
struct Subjects(HashMap<Uuid, Vec<Uuid>>);

impl Subjects {
    fn new(count: usize, dice: &mut Dice) -> (Self, Vec<Uuid>) {
        let ids: Vec<Uuid> = (0..count).map(|_| subject_in_slot(dice.below(256) as u8)).collect();
        (Self(HashMap::with_capacity(count)), ids)
    }

    fn next(&self, subject: Uuid) -> Value {
        let version = self.0.get(&subject).map_or(0, Vec::len);
        let mut next = match version {
            0 => command("task.create", subject, json!({ "title": "version 1" })),
            _ => {
                let title = format!("version {}", version + 1);
                command("task.update", subject, json!({ "title": title, "expectedversion": version }))
            }
        };
        // All of a subject have one priority: the order holds within each.
        if subject.as_u128().is_multiple_of(LOW_PART) {
            next["priority"] = json!("low");
        }
        next
    }

    fn note(&mut self, subject: Uuid, id: Uuid) {
        self.0.entry(subject).or_default().push(id);
    }

    fn used(self) -> Self {
        Self(self.0.into_iter().filter(|(_, commands)| !commands.is_empty()).collect())
    }
}

fn ticks(every: Duration) -> tokio::time::Interval {
    let mut ticks = tokio::time::interval(every);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

async fn over_amqp(
    publisher: Publisher,
    control: Arc<Control>,
    mut dice: Dice,
    every: Duration,
) -> Result<Subjects> {
    let (mut subjects, ids) = Subjects::new(SUBJECTS, &mut dice);
    let mut ticks = ticks(every);
    loop {
        control.turn(&mut ticks, 1).await;
        if control.ended() {
            return Ok(subjects.used());
        }
        let subject = ids[dice.below(ids.len() as u64) as usize];
        let command = envelope::read(subjects.next(subject))?;
        let offered = Instant::now();
        while let Err(error) = publisher.publish(Message::command(&command, clock::now(), None)).await {
            ensure!(offered.elapsed() < LONGEST, "the broker does not take commands: {error}");
            tokio::time::sleep(AGAIN).await;
        }
        subjects.note(subject, command.id);
        control.note(1);
    }
}

async fn over_http(
    client: Caller,
    control: Arc<Control>,
    mut dice: Dice,
    every: Duration,
) -> Result<Subjects> {
    let (mut subjects, mut ids) = Subjects::new(REQUEST * 2, &mut dice);
    let mut ticks = ticks(every);
    loop {
        control.turn(&mut ticks, REQUEST as u64).await;
        if control.ended() {
            return Ok(subjects.used());
        }
        for place in 0..REQUEST {
            let other = place as u64 + dice.below((ids.len() - place) as u64);
            ids.swap(place, other as usize);
        }
        let commands: Vec<Value> = ids[..REQUEST].iter().map(|subject| subjects.next(*subject)).collect();
        let body = crate::commands::ndjson(&commands);
        let offered = Instant::now();
        if control.rude.load(Ordering::SeqCst) {
            let part = dice.below(body.len() as u64) as usize;
            client.leave(body[..part].to_owned()).await;
            control.left.fetch_add(1, Ordering::SeqCst);
        }
        while let Err(error) = client.send(&body).await {
            ensure!(offered.elapsed() < LONGEST, "the API does not take commands: {error:#}");
            tokio::time::sleep(AGAIN).await;
        }
        for (subject, command) in ids[..REQUEST].iter().zip(&commands) {
            let id = command["id"].as_str().context("a command without an id")?;
            subjects.note(*subject, id.parse()?);
        }
        control.note(REQUEST as u64);
    }
}

/// A caller of the API whose session comes back by itself when Redis has lost it, as if it had logged in again.
#[derive(Clone)]
struct Caller {
    http: reqwest::Client,
    url: String,
    redis: Redis,
}

const TOKEN: &str = "tfs_of-the-load";

impl Caller {
    async fn new(base: &str, redis: Redis) -> Result<Self> {
        let http = reqwest::Client::builder().timeout(REQUEST_LONGEST).build()?;
        let caller = Self { http, url: format!("{base}/v1/commands"), redis };
        caller.log_in().await?;
        Ok(caller)
    }

    async fn log_in(&self) -> Result<()> {
        let now = clock::now();
        let session = Session {
            user_id: ADMIN,
            role: Role::Admin,
            created_at: now,
            expires_at: now + chrono::Duration::days(1),
            version: 1,
        };
        // The API keeps a session under the digest of its token.
        let digest = Sha256::digest(TOKEN.as_bytes()).iter().fold(String::new(), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        });
        Ok(self.redis.put_session(&digest, &session).await?)
    }

    async fn send(&self, body: &str) -> Result<()> {
        let request = self.post().body(body.to_owned());
        let answer = request.send().await?;
        let status = answer.status().as_u16();
        if status == 401 {
            self.log_in().await?;
        }
        let answer: Value = answer.json().await.unwrap_or_default();
        ensure!(status == 202 && answer["accepted"] == REQUEST, "{status} {answer}");
        Ok(())
    }

    /// Sends a part of a body and goes away.
    async fn leave(&self, part: String) {
        let (sent, was_sent) = tokio::sync::oneshot::channel();
        let part = futures_util::stream::once(async { Ok::<_, std::io::Error>(part) });
        let silence = futures_util::stream::once(async {
            let _ = sent.send(());
            std::future::pending::<Result<String, std::io::Error>>().await
        });
        let body = Body::wrap_stream(futures_util::StreamExt::chain(part, silence));
        tokio::select! {
            _ = self.post().body(body).send() => {}
            // The part has been taken from us; dropped, the request ends its connection.
            _ = was_sent => {}
        }
    }

    fn post(&self) -> reqwest::RequestBuilder {
        self.http.post(&self.url).bearer_auth(TOKEN).header("content-type", "application/x-ndjson")
    }
}
