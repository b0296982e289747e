//! Dead letters: what one is known by, how its deaths are counted, where it goes when it is replayed.
//!
//! The broker may deliver a death twice, and a worker may report it twice: the same bytes and the same attempt are one
//! attempt, whoever says so and however often.

pub mod pace;
pub mod pattern;
pub mod shown;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::command::{Command, Fingerprint, digest};
use crate::envelope::{self, COMMAND_MAX};
use crate::fault::Fault;
use crate::slot;

/// The reason of a command whose id belongs to another one.
pub const MISMATCH: &str = "idempotency_mismatch";
/// Attempts that a letter tells of: the first, and the newest of the rest.
const ATTEMPTS_MAX: usize = 100;
/// Characters of what a publisher calls a type or a source.
const WORD_MAX: usize = 512;

/// Where a letter stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It waits for somebody to look at it.
    Kept,
    /// It is to be published again.
    Replaying,
    /// It was published again and has not died since.
    Replayed,
    /// Somebody has decided that it is not needed.
    Discarded,
}

impl State {
    pub const ALL: [Self; 4] = [Self::Kept, Self::Replaying, Self::Replayed, Self::Discarded];

    pub fn as_str(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Replaying => "replaying",
            Self::Replayed => "replayed",
            Self::Discarded => "discarded",
        }
    }

    pub fn from_word(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|state| state.as_str() == word)
    }
}

/// One death of a message, as it came from the dead-letter queue.
#[derive(Debug, Clone, PartialEq)]
pub struct Death {
    /// The letter that was replayed, and in which attempt, if the message says so.
    pub letter: Option<Uuid>,
    pub attempt: Option<i32>,
    pub died_at: DateTime<Utc>,
    /// One word.
    pub reason: String,
    pub detail: String,
    pub exchange: String,
    pub queue: String,
    pub routing_key: String,
    /// How often the broker had returned it before.
    pub returns: i64,
    /// When an intake took it.
    pub accepted_at: Option<DateTime<Utc>>,
    pub headers: Map<String, Value>,
    pub body: Vec<u8>,
}

/// One try to apply a letter, and why it failed.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Attempt {
    /// From 1.
    pub number: i32,
    #[serde(rename = "diedat")]
    pub died_at: DateTime<Utc>,
    pub reason: String,
    pub detail: String,
    pub queue: String,
    #[serde(rename = "routingkey")]
    pub routing_key: String,
    pub returns: i64,
}

impl Attempt {
    fn of(number: i32, death: &Death) -> Self {
        Self {
            number,
            died_at: death.died_at,
            reason: death.reason.clone(),
            detail: death.detail.clone(),
            queue: death.queue.clone(),
            routing_key: death.routing_key.clone(),
            returns: death.returns,
        }
    }
}

/// What has happened to a letter so far.
#[derive(Debug, Clone, PartialEq)]
pub struct History {
    pub state: State,
    /// The number of the newest attempt, which may not have died.
    pub attempt: i32,
    /// Those that died, oldest first.
    pub attempts: Vec<Attempt>,
    /// How often an attempt was told of again.
    pub copies: i64,
    /// When a person decided about it last.
    pub decided_at: Option<DateTime<Utc>>,
}

impl History {
    /// A letter that was not known before.
    pub fn begin(death: &Death) -> Self {
        Self {
            state: State::Kept,
            attempt: 1,
            attempts: vec![Attempt::of(1, death)],
            copies: 0,
            decided_at: None,
        }
    }

    /// Takes another death of the same letter in; `attempt` is the number that its message names. Returns whether it died
    /// anew: else it is told of once more.
    pub fn note(&mut self, death: &Death, attempt: Option<i32>) -> bool {
        let number = match attempt {
            Some(number) if number <= self.attempt => Some(number),
            _ => self.unnumbered(death),
        };
        let Some(number) = number.filter(|number| !self.knows(*number)) else {
            self.copies += 1;
            return false;
        };
        let place = self.attempts.partition_point(|attempt| attempt.number < number);
        self.attempts.insert(place, Attempt::of(number, death));
        if self.attempts.len() > ATTEMPTS_MAX {
            self.attempts.remove(1);
        }
        if number >= self.attempt {
            self.attempt = number;
            self.state = State::Kept;
        }
        true
    }

    /// Which attempt it is that does not say so: it waited in between, or somebody else sent the same bytes again. One
    /// that died before the decision was told of before it.
    fn unnumbered(&self, death: &Death) -> Option<i32> {
        let decided_at = self.decided_at.filter(|_| self.state != State::Kept)?;
        if death.died_at <= decided_at {
            return None;
        }
        Some(if self.knows(self.attempt) { self.attempt + 1 } else { self.attempt })
    }

    fn knows(&self, number: i32) -> bool {
        let forgotten = self.attempts.len() >= ATTEMPTS_MAX
            && self.attempts.get(1).is_some_and(|next| number < next.number);
        forgotten || self.attempts.iter().any(|attempt| attempt.number == number)
    }
}

/// What can be read of bytes that may be no command.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Outline {
    pub id: Option<Uuid>,
    pub kind: Option<String>,
    pub source: Option<String>,
    pub subject: Option<Uuid>,
    pub actor: Option<Uuid>,
    pub correlation: Option<Uuid>,
    pub traceparent: Option<String>,
    low: bool,
}

impl Outline {
    pub fn of(body: &[u8]) -> Self {
        // Whoever takes commands reads no more than this either.
        let value = if body.len() > COMMAND_MAX { None } else { serde_json::from_slice(body).ok() };
        let Some(Value::Object(fields)) = value else { return Self::default() };
        let text = |name: &str| fields.get(name).and_then(Value::as_str);
        let word = |name| {
            let plain = text(name)?.replace('\0', "\u{fffd}");
            Some(plain.chars().take(WORD_MAX).collect())
        };
        let uuid = |name| text(name).filter(|text| text.len() == 36).and_then(|text| text.parse().ok());
        Self {
            id: uuid("id"),
            kind: word("type"),
            source: word("source"),
            subject: uuid("subject"),
            actor: uuid("actorid"),
            correlation: uuid("correlationid"),
            traceparent: text("traceparent").filter(|text| envelope::is_traceparent(text)).map(str::to_owned),
            low: text("priority") == Some("low"),
        }
    }

    /// The id of the trace that the command belongs to.
    pub fn trace(&self) -> Option<&str> {
        self.traceparent.as_deref()?.get(3..35)
    }

    /// Where the bytes go when they are replayed: the subject's slot, or the one that they came through.
    pub fn route(&self, routing_key: &str, queue: &str) -> Option<Route> {
        match self.subject {
            Some(subject) => Some(Route { slot: slot::of(subject), low: self.low }),
            None => {
                let slot = u8::from_str_radix(routing_key, 16).ok()?;
                let low = queue.contains(".low.");
                (routing_key == slot::routing_key(slot)).then_some(Route { slot, low })
            }
        }
    }
}

/// A way to the workers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    pub slot: u8,
    /// Through the queues of low priority.
    pub low: bool,
}

/// What bytes are known by: all of their SHA-256.
pub fn key(body: &[u8]) -> [u8; 32] {
    Sha256::digest(body).into()
}

/// The fingerprints under which the workers may have written a receipt for these bytes: of the bytes, by whoever could
/// not read them (an older version, say), and of the command, by whoever could.
pub fn receipt_fingerprints(body: &[u8]) -> Vec<Fingerprint> {
    let command = envelope::parse(body).ok().map(|command| command.fingerprint());
    [Some(digest(body)), command].into_iter().flatten().collect()
}

/// Whether a letter with an id and this reason has a receipt of its own, or soon will: the letter comes first.
pub fn leaves_receipt(reason: &str) -> bool {
    matches!(reason, "malformed" | "wrong_slot" | "failing" | "unknown_type" | "poison")
}

/// The bytes of a command that a person has put in the place of a letter.
///
/// # Errors
/// Every fault of it by its pointer, as the intake would name it.
pub fn edit(before: &Outline, reason: &str, command: &Value) -> Result<(Command, Vec<u8>), Vec<Fault>> {
    let read = envelope::read(command.clone()).map_err(|malformed| malformed.faults)?;
    let id = before.id.filter(|id| (*id == read.id) == (reason == MISMATCH));
    if let Some(id) = id {
        let detail = if reason == MISMATCH {
            format!("another command has the id {id}; give this one a new id")
        } else {
            format!("must stay {id}: whoever sent the command looks for its receipt under this id")
        };
        return Err(vec![Fault::new("/id", detail)]);
    }
    let bytes = serde_json::to_vec(command).unwrap_or_default();
    if bytes.len() > COMMAND_MAX {
        return Err(vec![Fault::new("", format!("a command has at most {COMMAND_MAX} bytes"))]);
    }
    Ok((read, bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> DateTime<Utc> {
        DateTime::from_timestamp(1_900_000_000 + second, 0).unwrap()
    }

    fn death(second: i64) -> Death {
        Death {
            letter: None,
            attempt: None,
            died_at: at(second),
            reason: "failing".into(),
            detail: format!("in second {second}"),
            exchange: String::new(),
            queue: "taskflow.commands.00".into(),
            routing_key: "10".into(),
            returns: 0,
            accepted_at: None,
            headers: Map::new(),
            body: b"{}".to_vec(),
        }
    }

    fn replayed(history: &mut History, second: i64) {
        history.state = State::Replayed;
        history.attempt += 1;
        history.decided_at = Some(at(second));
    }

    #[test]
    fn the_same_attempt_told_twice_is_one() {
        let mut history = History::begin(&death(0));
        assert!(!history.note(&death(1), None), "sent again by a crash");
        replayed(&mut history, 10);
        assert!(!history.note(&death(1), None), "and again, from before the replay");
        assert_eq!(history.state, State::Replayed);
        assert!(history.note(&death(11), Some(2)));
        assert!(!history.note(&death(12), Some(2)));
        assert_eq!((history.state, history.attempt, history.copies), (State::Kept, 2, 3));
        assert_eq!(history.attempts.iter().map(|a| a.number).collect::<Vec<_>>(), [1, 2]);
    }

    #[test]
    fn what_dies_after_a_decision_is_seen_again() {
        let mut history = History::begin(&death(0));
        replayed(&mut history, 10);
        // It waited in between and has lost its number.
        assert!(history.note(&death(11), None));
        assert_eq!((history.state, history.attempt), (State::Kept, 2));
        history.state = State::Discarded;
        history.decided_at = Some(at(20));
        assert!(history.note(&death(21), None), "the same bytes were sent once more");
        assert_eq!((history.state, history.attempt, history.attempts.len()), (State::Kept, 3, 3));
    }

    #[test]
    fn a_late_copy_of_an_old_attempt_changes_no_state() {
        let mut history = History::begin(&death(0));
        for round in 1..200 {
            replayed(&mut history, round * 10);
            assert!(history.note(&death(round * 10 + 1), Some(history.attempt)));
        }
        assert_eq!(history.attempts.len(), ATTEMPTS_MAX);
        assert_eq!((history.attempts[0].number, history.attempts[99].number), (1, 200));
        replayed(&mut history, 5_000);
        for number in [1, 2, 101, 102, 200] {
            assert!(!history.note(&death(5_001), Some(number)), "{number}");
        }
        assert_eq!(history.state, State::Replayed);
    }

    #[test]
    fn a_route_is_the_subjects_slot_or_where_it_came_through() {
        let body = br#"{"subject": "0189f7a0-0000-7000-8000-0000000000af", "priority": "low"}"#;
        let outline = Outline::of(body);
        assert_eq!(outline.route("14", "taskflow.commands.00"), Some(Route { slot: 0xaf, low: true }));
        let none = Outline::of(b"\xff");
        assert_eq!(none.route("14", "taskflow.commands.low.01"), Some(Route { slot: 0x14, low: true }));
        assert_eq!(none.route("AF", "taskflow.commands.00"), None);
        assert_eq!(none.route("no slot", ""), None);
    }
}
