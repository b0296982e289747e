//! The bar that shows how far a backup or a restore has got; Ctrl-C tells the work to stop.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use taskflow_backup::Progress;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const LOOK_EVERY: Duration = Duration::from_millis(200);

/// A bar on the terminal; nothing where a program reads.
pub(crate) struct Bar {
    bar: ProgressBar,
    progress: Progress,
    tasks: [JoinHandle<()>; 2],
    quiet: bool,
}

impl Bar {
    pub(crate) fn start(json: bool) -> Self {
        let bar = if json { ProgressBar::hidden() } else { ProgressBar::no_length() };
        if let Ok(style) =
            ProgressStyle::with_template("{spinner} {msg}  {bytes}  {bytes_per_sec}  {elapsed}")
        {
            bar.set_style(style);
        }
        let stop = CancellationToken::new();
        let progress = Progress::stopped_by(stop.clone());
        let (shown, looked) = (bar.clone(), progress.clone());
        let show = tokio::spawn(async move {
            loop {
                tokio::time::sleep(LOOK_EVERY).await;
                let (at, done, all) = looked.look();
                shown.set_message(match all {
                    0 => at,
                    all => format!("{at} ({} %)", (done * 100 / all).min(100)),
                });
                shown.set_position(done);
            }
        });
        let listen = tokio::spawn(async move {
            if tokio::signal::ctrl_c().await.is_ok() {
                stop.cancel();
            }
        });
        Self { bar, progress, tasks: [show, listen], quiet: json }
    }

    pub(crate) fn progress(&self) -> &Progress {
        &self.progress
    }

    /// A line above the bar.
    pub(crate) fn say(&self, line: &str) {
        if !self.quiet {
            self.bar.suspend(|| println!("{line}"));
        }
    }

    pub(crate) fn end(&self) {
        self.bar.finish_and_clear();
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.tasks.iter().for_each(JoinHandle::abort);
        self.bar.finish_and_clear();
    }
}
