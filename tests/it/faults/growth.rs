//! The short form of `soak --growth`: what some dozen lost connections leave behind.

use std::time::Duration;

use libtest_mimic::Trial;
use taskflow_tests::{Result, growth};

use crate::{PROGRAM, shared_world, trial};

/// Whoever leaves one thing behind each time is found by so many rounds.
const ROUNDS: u64 = 16;
const LONGEST: Duration = Duration::from_secs(20);

pub(crate) fn tests() -> Vec<Trial> {
    vec![trial("lost connections leave nothing behind", nothing_left)]
}

async fn nothing_left() -> Result {
    growth::run(shared_world().await?, PROGRAM, ROUNDS, LONGEST).await?.must_not_grow()
}
