//! Places at which a test can end the process, to prove that any step may be the last one.
//!
//! Only builds with the feature `crash-points` have them; elsewhere a point is nothing.

/// Ends the process (SIGKILL) here, if `TASKFLOW_CRASH_AT` says `name:n` and this is the n-th time. If it says
/// `panic:name:n`, only the task ends; with `stop:name:n` the process sleeps (SIGSTOP) until somebody wakes it.
#[cfg(feature = "crash-points")]
pub fn point(name: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    static PLAN: OnceLock<Option<(String, String, u32)>> = OnceLock::new();
    static PASSES: AtomicU32 = AtomicU32::new(0);
    let plan = PLAN.get_or_init(|| {
        #[expect(clippy::disallowed_methods, reason = "a test's switch, not a setting")]
        let plan = std::env::var("TASKFLOW_CRASH_AT").ok()?;
        let (rest, pass) = plan.rsplit_once(':')?;
        let (way, name) = rest.split_once(':').unwrap_or(("kill", rest));
        Some((way.to_owned(), name.to_owned(), pass.parse().ok()?))
    });
    if let Some((way, at, pass)) = plan
        && at == name
        && PASSES.fetch_add(1, Ordering::SeqCst) + 1 == *pass
    {
        match way.as_str() {
            "stop" => {
                let _ = nix::sys::signal::raise(nix::sys::signal::Signal::SIGSTOP);
            }
            "panic" => panic!("a test wants this task to panic at {name}"),
            _ => die(),
        }
    }
}

/// Ends the process as the system does that is out of memory.
#[cfg(feature = "crash-points")]
pub fn die() {
    let _ = nix::sys::signal::kill(nix::unistd::Pid::this(), nix::sys::signal::Signal::SIGKILL);
    std::thread::park();
}

#[cfg(not(feature = "crash-points"))]
#[inline]
pub fn point(_name: &str) {}

/// Whether this subscription of a partition, or of the `dead-letters`, hears nothing: `TASKFLOW_DEAF_AT=00:2` is the
/// first two of partition 00.
#[cfg(feature = "crash-points")]
pub fn deaf(name: &str) -> bool {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    static PLAN: OnceLock<Option<(String, u32)>> = OnceLock::new();
    static SUBSCRIPTIONS: AtomicU32 = AtomicU32::new(0);
    let plan = PLAN.get_or_init(|| {
        #[expect(clippy::disallowed_methods, reason = "a test's switch, not a setting")]
        let plan = std::env::var("TASKFLOW_DEAF_AT").ok()?;
        let (at, count) = plan.split_once(':')?;
        Some((at.to_owned(), count.parse().ok()?))
    });
    plan.as_ref()
        .is_some_and(|(at, count)| at == name && SUBSCRIPTIONS.fetch_add(1, Ordering::SeqCst) < *count)
}

#[cfg(not(feature = "crash-points"))]
#[inline]
pub fn deaf(_name: &str) -> bool {
    false
}
