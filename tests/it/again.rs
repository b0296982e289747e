//! A second try for tests that have waited in vain.
//!
//! On a machine that is too busy a right test may wait for longer than it has patience; that says nothing about right and
//! wrong. So, when all have run, a few such tests are run again with the machine to themselves, and both outcomes are
//! told. Any other error stands: what is lost, doubled or out of order is no matter of time.

use std::process::Command;
use std::sync::{Mutex, PoisonError};

use libtest_mimic::Conclusion;
use taskflow_tests::wait::Waited;

/// More than this is no matter of a busy machine.
const MOST: usize = 3;

/// Tests that have waited in vain.
static LATE: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// Notes a test that failed, if all it did was to wait.
pub(crate) fn note(name: &str, error: &anyhow::Error) {
    if error.downcast_ref::<Waited>().is_some() {
        LATE.lock().unwrap_or_else(PoisonError::into_inner).push(name.to_owned());
    }
}

/// Whether everything that failed was late only, and passes now.
pub(crate) fn passes(conclusion: &Conclusion) -> bool {
    let late = std::mem::take(&mut *LATE.lock().unwrap_or_else(PoisonError::into_inner));
    if late.is_empty() || late.len() > MOST || late.len() as u64 != conclusion.num_failed {
        return false;
    }
    late.iter().all(|name| {
        eprintln!("\nIt waited in vain, and is tried again with the machine to itself: {name}");
        let program = std::env::current_exe();
        let ran = program.and_then(|program| Command::new(program).args(["--exact", name]).status());
        let passed = matches!(ran, Ok(status) if status.success());
        let told = if passed { "LATE, but right" } else { "FAILED twice" };
        eprintln!("{told}: {name}");
        passed
    })
}
