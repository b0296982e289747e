//! Canaries: commands that we send to ourselves, to know at any time whether the promise holds.
//!
//! Every partition has one task of its own, which is changed again and again by pairs of commands: the second names the
//! version that the first leaves behind. So one that is lost, doubled or out of order shows. The tasks are always the
//! same ones, and belong to a user of their own: nothing grows with the number of commands but what is kept of any
//! command (receipts, events), for as long as that is kept.

use uuid::Uuid;

use crate::command::{Body, Command, CreateTask, Priority, RegisterUser, UpdateTask};
use crate::receipt::Outcome;
use crate::state::{Role, TaskPriority};

/// Whom the canaries belong to. Nobody can log in as this user.
pub const USER: Uuid = Uuid::from_u128(0x0193_0000_0000_7000_8000_ca00_0000_0000);
/// The source of its commands.
pub const SOURCE: &str = "/taskflow/canary";
/// The user's address.
pub const EMAIL: &str = "canary@taskflow.invalid";
/// A hash of the right form that no password is known for.
const NO_PASSWORD: &str = "$2b$10$.....................................................";

/// Tasks of one partition, one after the other: the next one is taken when somebody has deleted the one before.
pub const GENERATIONS: u8 = 8;

/// The task of a partition.
pub fn subject(low: bool, index: u16, generation: u8) -> Uuid {
    let mut bytes = *USER.as_bytes();
    bytes[12] = 1 + generation;
    bytes[13] = u8::from(low);
    // The last byte is the slot, and the slot's remainder the partition: index by index, up to as many as slots.
    bytes[15] = index as u8;
    Uuid::from_bytes(bytes)
}

/// The command that makes the canaries' user.
pub fn register(id: Uuid) -> Command {
    let body = Body::RegisterUser(RegisterUser {
        email: EMAIL.to_owned(),
        passwordhash: NO_PASSWORD.to_owned(),
        role: Role::User,
        profile: None,
    });
    Command::new(id, SOURCE, USER, USER, body)
}

/// Two commands, one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pair {
    pub subject: Uuid,
    /// The task's version before; 0 if it is to be created.
    pub base: i32,
    pub ids: [Uuid; 2],
}

impl Pair {
    /// The commands, in order. The first one's id marks both in the audit trail.
    pub fn commands(&self, low: bool) -> [Command; 2] {
        let priority = if low { Priority::Low } else { Priority::Normal };
        [0, 1].map(|place| {
            let version = self.base + place;
            let title = format!("taskflow canary: version {}", version + 1);
            let body = if version == 0 {
                Body::CreateTask(CreateTask {
                    title,
                    description: Some(
                        "Changed again and again by TaskFlow itself, to see that it works.".into(),
                    ),
                    priority: TaskPriority::Low,
                    assigneeid: None,
                    duedate: None,
                })
            } else {
                let expectedversion = Some(version);
                Body::UpdateTask(UpdateTask {
                    title: Some(title),
                    description: None,
                    priority: None,
                    duedate: None,
                    expectedversion,
                })
            };
            let command = Command::new(self.ids[place as usize], SOURCE, self.subject, USER, body);
            Command { correlation: self.ids[0], priority, ..command }
        })
    }
}

/// What has become of a command of a pair.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fate {
    /// How it ended, and the version that it left behind; `None` if it is nowhere any more.
    pub ended: Option<(Outcome, Option<i32>)>,
    /// How many events tell of it.
    pub events: u32,
}

/// How many commands of a pair went which way.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Verdict {
    pub applied: u32,
    pub lost: u32,
    pub doubled: u32,
    pub reordered: u32,
    /// Dead letters: somebody must look at them.
    pub stuck: u32,
}

impl Verdict {
    pub fn is_clean(&self) -> bool {
        self.lost + self.doubled + self.reordered + self.stuck == 0
    }
}

/// Judges a pair that has come to its end, by its receipts, its task's version, and its events.
pub fn judge(pair: &Pair, fates: [Fate; 2], version: Option<i32>) -> Verdict {
    let mut verdict = Verdict::default();
    for (place, fate) in fates.iter().enumerate() {
        let expected = pair.base + place as i32 + 1;
        match fate.ended {
            None => verdict.lost += 1,
            Some((Outcome::Applied, left)) if left == Some(expected) => verdict.applied += 1,
            Some((Outcome::Dead, _)) => verdict.stuck += 1,
            Some(_) => verdict.reordered += 1,
        }
        let applied = matches!(fate.ended, Some((Outcome::Applied, _)));
        verdict.lost += u32::from(applied && fate.events == 0);
        verdict.doubled += fate.events.saturating_sub(1);
    }
    let applied =
        fates.iter().filter(|fate| matches!(fate.ended, Some((Outcome::Applied, _)))).count() as i32;
    // Nobody else changes the task: its version says how often it was changed.
    let changed = version.unwrap_or(0) - pair.base;
    verdict.doubled += u32::try_from(changed - 2).unwrap_or(0);
    verdict.lost += u32::try_from(applied - changed).unwrap_or(0);
    verdict
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envelope;

    const PAIR: Pair =
        Pair { subject: Uuid::from_u128(7), base: 4, ids: [Uuid::from_u128(1), Uuid::from_u128(2)] };

    fn applied(version: i32) -> Fate {
        Fate { ended: Some((Outcome::Applied, Some(version))), events: 1 }
    }

    #[test]
    fn a_pair_that_did_as_it_should_is_clean() {
        let verdict = judge(&PAIR, [applied(5), applied(6)], Some(6));
        assert_eq!(verdict, Verdict { applied: 2, ..Verdict::default() });
        assert!(verdict.is_clean());
    }

    #[test]
    fn what_is_wrong_is_told_apart() {
        let gone = Fate { ended: None, events: 0 };
        let refused = Fate { ended: Some((Outcome::Rejected, None)), events: 0 };
        let dead = Fate { ended: Some((Outcome::Dead, None)), events: 0 };
        let of = |fates, version| judge(&PAIR, fates, Some(version));
        // The first is gone, so the second finds another version than it names.
        assert_eq!(of([gone, refused], 4), Verdict { lost: 1, reordered: 1, ..Verdict::default() });
        assert_eq!(of([applied(6), applied(5)], 6), Verdict { reordered: 2, ..Verdict::default() });
        assert_eq!(of([applied(5), dead], 5), Verdict { applied: 1, stuck: 1, ..Verdict::default() });
        // Applied twice, told twice, not told.
        assert_eq!(of([applied(5), applied(6)], 7), Verdict { applied: 2, doubled: 1, ..Verdict::default() });
        let told = |events| Fate { events, ..applied(6) };
        assert_eq!(of([applied(5), told(3)], 6), Verdict { applied: 2, doubled: 2, ..Verdict::default() });
        assert_eq!(of([applied(5), told(0)], 6), Verdict { applied: 2, lost: 1, ..Verdict::default() });
        // A receipt without its effect.
        assert_eq!(of([applied(5), applied(6)], 5), Verdict { applied: 2, lost: 1, ..Verdict::default() });
    }

    #[test]
    fn commands_are_valid_and_few_tasks_serve_all() {
        let id = Uuid::from_u128(9);
        for low in [false, true] {
            for base in [0, 4] {
                for command in (Pair { base, ..PAIR }).commands(low).into_iter().chain([register(id)]) {
                    assert_eq!(envelope::parse(&command.to_json()).unwrap(), command);
                }
            }
        }
        let mut subjects = std::collections::BTreeSet::new();
        for index in 0..256 {
            for low in [false, true] {
                subjects.extend((0..GENERATIONS).map(|generation| subject(low, index, generation)));
            }
            assert_eq!(u16::from(crate::slot::of(subject(false, index, 3))), index);
        }
        assert_eq!(subjects.len(), 256 * 2 * usize::from(GENERATIONS));
    }
}
