//! Places at which a test can end the process, to prove that any step may be the last one.
//!
//! Only builds with the feature `crash-points` have them; elsewhere a point is nothing.

/// Ends the process (SIGKILL) here, if `TASKFLOW_CRASH_AT` says `name:n` and this is the n-th time; if it says
/// `panic:name:n`, only the task.
#[cfg(feature = "crash-points")]
pub fn point(name: &str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU32, Ordering};

    static PLAN: OnceLock<Option<(bool, String, u32)>> = OnceLock::new();
    static PASSES: AtomicU32 = AtomicU32::new(0);
    let plan = PLAN.get_or_init(|| {
        #[expect(clippy::disallowed_methods, reason = "a test's switch, not a setting")]
        let plan = std::env::var("TASKFLOW_CRASH_AT").ok()?;
        let whole = plan.strip_prefix("panic:");
        let (name, pass) = whole.unwrap_or(&plan).split_once(':')?;
        Some((whole.is_some(), name.to_owned(), pass.parse().ok()?))
    });
    if let Some((only_task, at, pass)) = plan
        && at == name
        && PASSES.fetch_add(1, Ordering::SeqCst) + 1 == *pass
    {
        assert!(!only_task, "a test wants this task to panic at {name}");
        die();
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
