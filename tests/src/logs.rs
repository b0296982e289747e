//! The logs of what a test has started: whoever reads that it failed, perhaps where nothing else is kept, wants them.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::Result;
use tempfile::TempDir;

/// Lines of each log that are told.
const LINES: usize = 25;
/// Logs that are told, the newest: a test may start many processes.
const LOGS: usize = 6;

tokio::task_local! {
    static FOLDERS: Mutex<Vec<Arc<TempDir>>>;
}

/// Runs a test; what it was told together with the ends of its logs, if it `failed`.
pub async fn around<T>(test: impl Future<Output = T>, failed: impl FnOnce(&T) -> bool) -> (T, String) {
    let watched = async {
        let result = test.await;
        let ends = if failed(&result) { ends() } else { String::new() };
        (result, ends)
    };
    FOLDERS.scope(Mutex::default(), watched).await
}

/// A folder for logs, there until the test's end. With `TASKFLOW_KEEP_LOGS` in the environment it stays.
pub(crate) fn folder() -> Result<Arc<TempDir>> {
    let keep = std::env::var_os("TASKFLOW_KEEP_LOGS").is_some();
    let folder = tempfile::Builder::new().prefix("taskflow-log-").disable_cleanup(keep).tempdir()?;
    let folder = Arc::new(folder);
    // Outside a test (a soak) nobody asks.
    let _ = FOLDERS.try_with(|folders| lock(folders).push(Arc::clone(&folder)));
    Ok(folder)
}

/// The last lines of each log in a folder, with its name, by name.
pub(crate) fn tails(folder: &Path, lines: usize) -> Vec<String> {
    let mut logs = all(folder, "");
    logs.sort();
    let tail = |(name, text): (String, String)| {
        let from = text.lines().count().saturating_sub(lines);
        let lines: Vec<&str> = text.lines().skip(from).collect();
        format!("--- {name}\n{}\n", lines.join("\n"))
    };
    logs.into_iter().map(tail).collect()
}

/// The logs of a role, or of all, with their names.
pub(crate) fn all(folder: &Path, role: &str) -> Vec<(String, String)> {
    let end = format!("{role}.log");
    let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let logs = files.filter_map(|file| {
        let name = file.file_name().into_string().ok().filter(|name| name.ends_with(&end))?;
        Some((name, std::fs::read_to_string(file.path()).ok()?))
    });
    logs.collect()
}

fn ends() -> String {
    let folders = FOLDERS.try_with(|folders| std::mem::take(&mut *lock(folders))).unwrap_or_default();
    let logs: Vec<String> = folders.iter().flat_map(|folder| tails(folder.path(), LINES)).collect();
    logs[logs.len().saturating_sub(LOGS)..].concat()
}

fn lock(folders: &Mutex<Vec<Arc<TempDir>>>) -> std::sync::MutexGuard<'_, Vec<Arc<TempDir>>> {
    folders.lock().unwrap_or_else(PoisonError::into_inner)
}
