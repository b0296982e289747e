//! Places at which a test can end the process, to prove that any step may be the last one.
//!
//! Only builds with the feature `crash-points` have them; elsewhere a point is nothing.

/// The boundaries between the steps of a batch.
pub const POINTS: [&str; 8] =
    ["collected", "claimed", "loaded", "written", "committed", "acknowledged", "audited", "relayed"];
/// The boundaries between the steps of a dead letter: into Postgres, out again, into the audit trail.
pub const LETTER_POINTS: [&str; 6] =
    ["drained", "stored", "replaying", "republished", "system_linked", "system_audited"];
/// The boundaries between the steps of a change of the number of partitions, whoever takes them.
pub const CHANGE_POINTS: [&str; 9] = [
    "change_begun",
    "change_bound",
    "change_unbound",
    "change_drained",
    "change_fenced",
    "change_moved",
    "change_switched",
    "change_deleted",
    "change_cleared",
];

pub(crate) use taskflow_stores::crash::deaf;
pub use taskflow_stores::crash::point;

/// Ends the process if a message holds the text of `TASKFLOW_CRASH_ON`: what a fault in a decoder would do. With `kill:`
/// before the text it is killed, as by a system that is out of memory; with `panic:` only the task ends; with
/// `hang:` it does not come to its end.
#[cfg(feature = "crash-points")]
pub(crate) fn poison(body: &[u8]) {
    use std::sync::OnceLock;

    static TEXT: OnceLock<Option<String>> = OnceLock::new();
    #[expect(clippy::disallowed_methods, reason = "a test's switch, not a setting")]
    let text = TEXT.get_or_init(|| std::env::var("TASKFLOW_CRASH_ON").ok());
    let Some(text) = text else { return };
    let (way, text) = text.split_once(':').unwrap_or(("abort", text));
    if !body.windows(text.len()).any(|window| window == text.as_bytes()) {
        return;
    }
    assert_ne!(way, "panic", "a test wants this task to panic of a message");
    if way == "hang" {
        loop {
            std::thread::park();
        }
    }
    if way == "kill" {
        taskflow_stores::crash::die();
    }
    std::process::abort();
}

#[cfg(not(feature = "crash-points"))]
#[inline]
pub(crate) fn poison(_body: &[u8]) {}
