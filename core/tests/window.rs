//! An answer that a window lets through is never older than a change that its reader could have known of: whatever is
//! committed when, by how many partitions, and however seldom a reader looks.

use std::collections::BTreeMap;

use proptest::prelude::*;
use taskflow_core::cache_tag::{Tag, encode};
use taskflow_core::window::{Position, Seen, Window};
use uuid::Uuid;

const PARTITIONS: usize = 3;
const USERS: u8 = 5;
const PROCESSES: usize = 2;

#[derive(Debug, Clone)]
enum Step {
    /// A batch of a partition that changes tasks of these users.
    Commit { partition: usize, users: Vec<u8> },
    /// The same by a release that makes no marks.
    OldCommit { partition: usize, users: Vec<u8> },
    /// A process makes an answer for a user and keeps it.
    Make { user: u8 },
    /// A process looks at the present and judges all that is kept.
    Look { process: usize },
    /// It has missed too much: a statement gives back only so many batches.
    LookCut { process: usize, most: usize },
}

fn step() -> impl Strategy<Value = Step> {
    let users = || proptest::collection::vec(0..USERS, 0..3);
    prop_oneof![
        4 => (0..PARTITIONS, users()).prop_map(|(partition, users)| Step::Commit { partition, users }),
        1 => (0..PARTITIONS, users()).prop_map(|(partition, users)| Step::OldCommit { partition, users }),
        3 => (0..USERS).prop_map(|user| Step::Make { user }),
        4 => (0..PROCESSES).prop_map(|process| Step::Look { process }),
        1 => (0..PROCESSES, 0..3usize).prop_map(|(process, most)| Step::LookCut { process, most }),
    ]
}

/// The database, as far as windows see it.
#[derive(Default)]
struct Base {
    batches: BTreeMap<usize, Vec<Option<Vec<u8>>>>,
    /// How many changes each user's tasks have seen.
    truth: BTreeMap<u8, u32>,
}

impl Base {
    fn commit(&mut self, partition: usize, users: &[u8], marks: bool) {
        let ids: Vec<Uuid> = users.iter().map(|user| id(*user)).collect();
        self.batches.entry(partition).or_default().push(marks.then(|| encode(&ids)));
        for user in users.iter().collect::<std::collections::BTreeSet<_>>() {
            *self.truth.entry(*user).or_default() += 1;
        }
    }

    fn position(&self) -> Position {
        self.batches.values().map(|batches| batches.len() as i64).sum()
    }

    fn seen(&self, window: &Window, most: usize) -> Seen {
        let heads: BTreeMap<String, i64> =
            self.batches.iter().map(|(number, batches)| (number.to_string(), batches.len() as i64)).collect();
        let missed = self.batches.iter().filter_map(|(number, batches)| {
            let known = *window.heads().get(&number.to_string())? as usize;
            Some(batches[known..].iter().take(most).cloned())
        });
        Seen { batches: missed.flatten().collect(), heads }
    }
}

fn id(user: u8) -> Uuid {
    Uuid::from_u128((u128::from(user) << 64) | 0x7000)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn what_holds_is_true_now(steps in proptest::collection::vec(step(), 1..60)) {
        let mut base = Base::default();
        let mut windows: Vec<Window> = (0..PROCESSES).map(|_| Window::default()).collect();
        // For each kept answer: its user, the position it has seen, how many changes it shows.
        let mut kept: Vec<(u8, Position, u32)> = Vec::new();
        let mut everybodys: Vec<(Position, u32)> = Vec::new();
        for step in steps {
            let (process, most) = match step {
                Step::Commit { partition, users } => {
                    base.commit(partition, &users, true);
                    continue;
                }
                Step::OldCommit { partition, users } => {
                    base.commit(partition, &users, false);
                    continue;
                }
                Step::Make { user } => {
                    kept.push((user, base.position(), base.truth.get(&user).copied().unwrap_or(0)));
                    everybodys.push((base.position(), base.truth.values().sum()));
                    continue;
                }
                Step::Look { process } => (process, usize::MAX),
                Step::LookCut { process, most } => (process, most),
            };
            let seen = base.seen(&windows[process], most);
            let window = &mut windows[process];
            window.advance(seen);
            for (user, position, shown) in &kept {
                let truth = base.truth.get(user).copied().unwrap_or(0);
                let holds = *position >= window.tasks_of(Tag::of(id(*user)));
                prop_assert!(!holds || *shown == truth, "an answer of {shown} changes held after {truth}");
                // What was made at this very position holds, or nothing would ever be cached.
                prop_assert!(holds || *position < base.position());
            }
            for (position, shown) in &everybodys {
                let truth: u32 = base.truth.values().sum();
                prop_assert!(*position < window.all_tasks() || *shown == truth);
            }
        }
    }

    #[test]
    fn others_changes_leave_an_answer_alone(rounds in 1..50usize) {
        let mut base = Base::default();
        base.commit(0, &[0, 1], true);
        let mut window = Window::default();
        window.advance(base.seen(&window, usize::MAX));
        let made = base.position();
        for round in 0..rounds {
            base.commit(round % PARTITIONS, &[1], true);
            window.advance(base.seen(&window, usize::MAX));
            // A partition's first batch begins the window anew.
            if round >= PARTITIONS {
                prop_assert!(window.tasks_of(Tag::of(id(1))) == base.position());
            }
        }
        let since = window.tasks_of(Tag::of(id(0)));
        prop_assert!(since <= made + PARTITIONS as i64, "{since} after {made}");
    }
}
