//! What a job has in its hands: the stores, its figures and its log, and the places at which it rests, gives way, and
//! learns that it is to stop.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use chrono::{DateTime, TimeDelta, Utc};
use serde_json::{Map, Value};
use taskflow_core::event::Retention;
use taskflow_stores::postgres::job_runs::{self, Told};
use taskflow_stores::postgres::leader::{self, Fence, Fenced};
use taskflow_stores::{Kind, StoreError, clock, mongo};
use tokio_util::sync::CancellationToken;

use crate::load::{self, Beside};
use crate::schedules::Schedules;
use crate::{Settings, Stores, audit};

/// How far Postgres's clock and this machine's may be apart where something is removed for its age.
const CLOCKS_APART_MAX: TimeDelta = TimeDelta::hours(12);
/// How often a write to MongoDB is tried that came too late.
const TRIES: u32 = 5;
/// Lines of a run's log, and characters of each.
const LINES_MAX: usize = 200;
const LINE_MAX: usize = 500;
/// Time between two looks at the load, and between two times that the run's log is written down.
const LOOK_EVERY: Duration = Duration::from_secs(2);
const TELL_EVERY: Duration = Duration::from_secs(5);
/// The longest rest after a deed of maintenance, which may take an hour by itself. All others work in small steps, and
/// keep to their share however slow the store is.
const REST_MAX: Duration = Duration::from_secs(10);

/// Why a run is told to stop.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Stopped {
    /// Somebody asked for it, or the next run of its schedule.
    Cancelled(String),
    TimedOut,
    /// The process ends.
    Leaving,
    /// Another scheduler leads by now.
    Out,
}

/// The wire on which a run is told to stop.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stop {
    token: CancellationToken,
    why: Arc<OnceLock<Stopped>>,
}

impl Stop {
    /// Tells the run to stop; the first reason counts.
    pub(crate) fn tell(&self, why: Stopped) {
        let _ = self.why.set(why);
        self.token.cancel();
    }

    pub(crate) fn why(&self) -> Option<&Stopped> {
        self.why.get()
    }

    pub(crate) async fn told(&self) {
        self.token.cancelled().await;
    }

    /// The wire itself, for work that listens on its own.
    pub(crate) fn token(&self) -> CancellationToken {
        self.token.clone()
    }
}

/// Why a job did not do its work.
#[derive(Debug, Clone)]
pub enum Failure {
    /// A store is away or somebody was in the way: it may be tried again.
    Again(String),
    /// Trying again changes nothing.
    Final(String),
    /// It was told to stop.
    Stopped,
}

impl From<StoreError> for Failure {
    fn from(error: StoreError) -> Self {
        match error.kind {
            Kind::Unavailable | Kind::Conflict => Self::Again(error.to_string()),
            Kind::Data | Kind::Bug => Self::Final(error.to_string()),
        }
    }
}

impl From<taskflow_backup::Error> for Failure {
    fn from(error: taskflow_backup::Error) -> Self {
        match error.trouble {
            taskflow_backup::Trouble::Stopped => Self::Stopped,
            _ if error.may_pass() => Self::Again(error.text),
            _ => Self::Final(error.text),
        }
    }
}

impl From<Fenced> for Failure {
    fn from(fenced: Fenced) -> Self {
        match fenced {
            Fenced::Out => Self::Stopped,
            Fenced::Store(error) => error.into(),
        }
    }
}

/// Whether a job of many steps goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Step {
    Go,
    /// The maintenance window is over: what is left is for the next run.
    Enough,
}

/// Postgres's time: due times, cutoffs and the window go by it, whatever this host's clock says. It was asked for once,
/// and goes on by a clock that nobody sets.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ServerClock {
    at: DateTime<Utc>,
    seen: Instant,
}

impl ServerClock {
    /// From what the server has just answered.
    pub(crate) fn new(at: DateTime<Utc>) -> Self {
        Self { at, seen: Instant::now() }
    }

    pub(crate) fn now(&self) -> DateTime<Utc> {
        self.at + self.seen.elapsed()
    }
}

/// One run, as its job sees it.
pub struct Context {
    pub(crate) stores: Stores,
    pub(crate) settings: Arc<Settings>,
    pub(crate) audit: Arc<audit::Settings>,
    pub(crate) schedules: Arc<Schedules>,
    pub(crate) retention: Retention,
    pub(crate) fence: Fence,
    pub(crate) schedule: String,
    pub(crate) run: i64,
    #[cfg_attr(not(feature = "crash-points"), expect(dead_code, reason = "what a probe tells of"))]
    pub(crate) due_at: DateTime<Utc>,
    #[cfg_attr(not(feature = "crash-points"), expect(dead_code, reason = "what a probe tells of"))]
    pub(crate) attempt: i16,
    pub(crate) arguments: Value,
    pub(crate) clock: ServerClock,
    /// Whether its steps may be long ones: maintenance.
    pub(crate) heavy: bool,
    /// Whether the run must end with the maintenance window: nobody asked for it by hand.
    pub(crate) bound: bool,
    /// Whose load it yields to, beside Postgres's.
    pub(crate) beside: Beside,
    pub(crate) stop: Stop,
    pub(crate) telling: Telling,
}

/// What a run has told, and when it was written down and the load looked at last.
#[derive(Debug)]
pub(crate) struct Telling(Mutex<Tale>);

#[derive(Debug)]
struct Tale {
    figures: Map<String, Value>,
    log: Vec<String>,
    left_out: u64,
    written: Instant,
    looked: Option<Instant>,
    /// Whether it was told that a store does not tell its load.
    told_unknown: bool,
}

impl Default for Telling {
    fn default() -> Self {
        Self(Mutex::new(Tale {
            figures: Map::new(),
            log: Vec::new(),
            left_out: 0,
            written: Instant::now(),
            looked: None,
            told_unknown: false,
        }))
    }
}

impl Telling {
    fn with<T>(&self, work: impl FnOnce(&mut Tale) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// All that was told.
    pub(crate) fn told(&self) -> Told {
        self.with(|tale| {
            let mut log = tale.log.clone();
            if tale.left_out > 0 {
                log.push(format!("… and {} lines more", tale.left_out));
            }
            Told { figures: Value::Object(tale.figures.clone()), log }
        })
    }
}

impl Context {
    /// Writes a line into the run's log; of very many, the first ones are kept.
    pub(crate) fn log(&self, line: impl Into<String>) {
        let line: String = line.into();
        tracing::info!(schedule = self.schedule, run = self.run, "{line}");
        let line: String = line.chars().filter(|char| *char != '\0').take(LINE_MAX).collect();
        let line = format!("{} {line}", clock::now().format("%H:%M:%S"));
        self.telling.with(
            |tale| {
                if tale.log.len() < LINES_MAX { tale.log.push(line) } else { tale.left_out += 1 }
            },
        );
    }

    /// Sets a figure.
    pub(crate) fn set(&self, figure: &str, value: impl Into<Value>) {
        self.telling.with(|tale| tale.figures.insert(figure.to_owned(), value.into()));
    }

    /// Adds to a figure.
    pub(crate) fn add(&self, figure: &str, count: u64) {
        self.telling.with(|tale| {
            let before = tale.figures.get(figure).and_then(Value::as_u64).unwrap_or(0);
            tale.figures.insert(figure.to_owned(), (before + count).into());
        });
    }

    /// An argument that is true or not.
    pub(crate) fn flag(&self, name: &str) -> bool {
        self.arguments.get(name).and_then(Value::as_bool).unwrap_or(false)
    }

    /// Whether it is only to say what it would do.
    pub(crate) fn dry_run(&self) -> bool {
        self.flag("dry_run")
    }

    /// Postgres's time.
    pub(crate) fn now(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    /// So many days ago, by Postgres's time: what is older may go.
    ///
    /// # Errors
    /// As [`Self::agreed_now`].
    pub(crate) fn days_ago(&self, days: u16) -> Result<DateTime<Utc>, Failure> {
        Ok(self.agreed_now()? - TimeDelta::days(i64::from(days)))
    }

    /// Postgres's time, to remove something by.
    ///
    /// # Errors
    /// That server's clock and this machine's do not agree: by a clock that is far ahead, what is young would go.
    pub(crate) fn agreed_now(&self) -> Result<DateTime<Utc>, Failure> {
        let (theirs, ours) = (self.now(), clock::now());
        if (theirs - ours).abs() > CLOCKS_APART_MAX {
            return Err(Failure::Again(format!(
                "Postgres's clock says {theirs} and this machine's {ours}: nothing is removed until they agree"
            )));
        }
        Ok(theirs)
    }

    /// Writes to MongoDB for as long as this scheduler leads, by that server's own clock. What came too late is done again
    /// while it still leads: it must bear that, and then finds little to do.
    pub(crate) async fn in_mongo<W: Future<Output = Result<(), StoreError>>>(
        &self,
        mut write: impl FnMut(mongo::fence::Until) -> W,
    ) -> Result<(), Failure> {
        let mut tries = 0;
        loop {
            // In this order: see there.
            let moment = mongo::fence::moment(&self.stores.mongo).await?;
            let until = moment.lasts(self.fence.lasts().await?);
            tries += 1;
            match write(until).await {
                Err(late) if late.kind == Kind::Conflict && tries < TRIES => {
                    self.log(format!("done again: {late}"));
                }
                done => return Ok(done?),
            }
        }
    }

    /// Waits, unless it is told to stop.
    pub(crate) async fn sleep(&self, time: Duration) -> Result<(), Failure> {
        tokio::select! {
            () = self.stop.told() => Err(Failure::Stopped),
            () = tokio::time::sleep(time) => Ok(()),
        }
    }

    /// Between two steps of a job: rests in proportion to what the last one took, gives way while the server is busy,
    /// and writes down how far the run has got, which shows whether it still may.
    pub(crate) async fn step(&self, took: Duration) -> Result<Step, Failure> {
        if self.telling.with(|tale| tale.written.elapsed() >= TELL_EVERY) {
            self.tell().await?;
        }
        let share = self.settings.share.clamp(0.01, 1.0);
        let longest = if self.heavy { REST_MAX } else { Duration::MAX };
        self.sleep(took.mul_f64((1.0 - share) / share).min(longest)).await?;
        self.give_way().await
    }

    fn is_over(&self) -> bool {
        self.bound && !self.schedules.in_window(self.now())
    }

    /// What a run does whose window is over.
    fn enough(&self) -> Step {
        self.log(format!(
            "the maintenance window ({}) is over; the rest is for the next run",
            self.schedules.window()
        ));
        self.set("unfinished", true);
        Step::Enough
    }

    /// Until the run is told to stop or its window is over: for a deed that takes long by itself.
    pub(crate) async fn halt(&self) {
        while !self.is_over() {
            tokio::select! {
                () = self.stop.told() => return,
                () = tokio::time::sleep(LOOK_EVERY) => {}
            }
        }
    }

    /// For how long the run may last.
    pub(crate) fn time_out(&self) -> Duration {
        let schedule = self.schedules.get(&self.schedule);
        Duration::from_secs(schedule.map_or(3_600, |schedule| u64::from(schedule.timeout_s)))
    }

    /// After a deed that [`Context::halt`] has ended.
    pub(crate) fn halted(&self) -> Result<Step, Failure> {
        if self.stop.why().is_some() { Err(Failure::Stopped) } else { Ok(self.enough()) }
    }

    /// Writes down what was told so far.
    async fn tell(&self) -> Result<(), Failure> {
        let mut transaction = self.fence.begin().await?;
        job_runs::tell(&mut transaction, self.run, &self.telling.told()).await?;
        leader::commit(transaction).await?;
        self.telling.with(|tale| tale.written = Instant::now());
        Ok(())
    }

    /// Waits while commands are behind or the stores are busy, but not beyond the window: also before a job's first deed.
    pub(crate) async fn give_way(&self) -> Result<Step, Failure> {
        let due = |tale: &mut Tale| tale.looked.is_none_or(|looked| looked.elapsed() >= LOOK_EVERY);
        let since = Instant::now();
        let mut looks = self.telling.with(due);
        loop {
            if self.is_over() {
                return Ok(self.enough());
            }
            if !looks {
                return Ok(Step::Go);
            }
            let look = load::look(&self.stores, &self.settings, self.beside).await?;
            let told = self.telling.with(|tale| {
                tale.looked = Some(Instant::now());
                std::mem::replace(&mut tale.told_unknown, look.unknown.is_some())
            });
            if let Some(words) = look.unknown.filter(|_| !told) {
                self.set("load_unknown", words.as_str());
                self.log(words);
            }
            let Some(busy) = look.busy else {
                looks = false;
                continue;
            };
            if since.elapsed() < LOOK_EVERY {
                self.log(format!("gives way: {busy}"));
            }
            self.add("yielded_s", LOOK_EVERY.as_secs());
            self.sleep(LOOK_EVERY.mul_f64(rand::random_range(0.8..=1.2))).await?;
            self.tell().await?;
        }
    }
}
