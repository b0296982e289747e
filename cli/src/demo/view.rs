//! How it is shown: drawn again and again on a terminal, line by line elsewhere.

use std::io::IsTerminal;
use std::sync::Arc;
use std::time::Duration;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::task::JoinHandle;

use super::scene::{Mark, Scene, State};

/// Between two pictures.
const FRAME: Duration = Duration::from_millis(150);
/// Between two lines where nothing is drawn.
const LINE: Duration = Duration::from_secs(5);

/// Where it is shown. Pictures go to standard error, so that standard output has the report alone.
pub(crate) enum View {
    Drawn(Box<Stage>),
    /// Lines for people who read a log.
    Lines {
        /// Standard output belongs to the JSON.
        json: bool,
    },
}

/// The lines of the picture, from top to bottom.
#[derive(Clone)]
pub(crate) struct Stage {
    _all: MultiProgress,
    /// A bar that nobody holds is not drawn.
    _blanks: [ProgressBar; 3],
    head: ProgressBar,
    accepted: ProgressBar,
    applied: ProgressBar,
    again: ProgressBar,
    bars: ProgressBar,
    stores: ProgressBar,
    workers: ProgressBar,
    lines: [ProgressBar; 3],
}

/// Draws as long as it lives.
pub(crate) struct Drawing(JoinHandle<()>);

impl Drop for Drawing {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl View {
    pub(crate) fn open(json: bool) -> Self {
        if std::io::stderr().is_terminal() {
            Self::Drawn(Box::new(Stage::set()))
        } else {
            Self::Lines { json }
        }
    }

    /// Says what is done now.
    pub(super) fn say(&self, scene: &Scene, what: &str) {
        scene.set_phase(what);
        match self {
            Self::Drawn(stage) => stage.draw(scene),
            Self::Lines { json } => line(*json, scene, what),
        }
    }

    /// Shows what happens until the result is dropped.
    pub(super) fn draw(&self, scene: Arc<Scene>) -> Drawing {
        match self {
            Self::Drawn(stage) => {
                let stage = stage.clone();
                Drawing(tokio::spawn(async move {
                    loop {
                        stage.draw(&scene);
                        tokio::time::sleep(FRAME).await;
                    }
                }))
            }
            Self::Lines { json } => {
                let json = *json;
                Drawing(tokio::spawn(async move {
                    loop {
                        tokio::time::sleep(LINE).await;
                        let State { accepted, applied, refused, .. } = scene.state();
                        let text =
                            format!("{accepted} accepted, {applied} applied, {refused} tries made again");
                        line(json, &scene, &text);
                    }
                }))
            }
        }
    }

    pub(crate) fn is_drawn(&self) -> bool {
        matches!(self, Self::Drawn(_))
    }

    /// Leaves the last picture on the screen.
    pub(crate) fn close(&self) {
        if let Self::Drawn(stage) = self {
            stage.bars().for_each(ProgressBar::abandon);
        }
    }
}

fn line(json: bool, scene: &Scene, what: &str) {
    let text = format!("[{:6.1} s] {what}", scene.start.elapsed().as_secs_f64());
    if json { eprintln!("{text}") } else { println!("{text}") }
}

impl Stage {
    fn set() -> Self {
        let all = MultiProgress::new();
        let add = |template: &str| {
            let bar = all.add(ProgressBar::new(0));
            bar.set_style(style(template));
            bar
        };
        let blank = || {
            let bar = add("{msg}");
            bar.set_message(" ");
            bar.tick();
            bar
        };
        let head = add("{prefix:.bold}  {wide_msg:.dim}");
        let below_head = blank();
        let accepted = add("  accepted  {prefix:>9.bold}  {wide_msg:.dim}");
        let applied = add("  applied   {prefix:>9.bold.green}  {wide_msg:.dim}");
        let again = add("  again     {prefix:>9.bold}  {wide_msg:.dim}");
        let below_counts = blank();
        let bars = add("  a second  {wide_msg:.cyan}");
        let stores = add("  stores    {wide_msg}");
        let workers = add("  workers   {wide_msg}");
        let above_lines = blank();
        let lines = std::array::from_fn(|_| add("{msg}"));
        let blanks = [below_head, below_counts, above_lines];
        Self { _all: all, _blanks: blanks, head, accepted, applied, again, bars, stores, workers, lines }
    }

    fn bars(&self) -> impl Iterator<Item = &ProgressBar> {
        let fixed =
            [&self.head, &self.accepted, &self.applied, &self.again, &self.bars, &self.stores, &self.workers];
        fixed.into_iter().chain(&self.lines)
    }

    fn draw(&self, scene: &Scene) {
        let state = scene.state();
        let seconds = scene.start.elapsed().as_secs();
        let show = |bar: &ProgressBar, prefix: String, message: String| {
            bar.set_prefix(prefix);
            bar.set_message(message);
            bar.tick();
        };
        let clock = format!("TaskFlow demo  {}:{:02}", seconds / 60, seconds % 60);
        show(&self.head, clock, state.phase.clone());
        show(
            &self.accepted,
            thousands(state.accepted),
            "confirmed by the broker: from here on promised".into(),
        );
        show(&self.applied, thousands(state.applied), format!("by the workers, {} a second", state.rate()));
        show(&self.again, thousands(state.refused), "tries without a confirm, made again, same id".into());
        show(&self.bars, String::new(), state.bars());
        let stores = state.stores.iter().map(|(name, what)| format!("{name} {what}"));
        show(&self.stores, String::new(), stores.collect::<Vec<_>>().join(" · "));
        let workers = state.workers.iter().map(|(number, what)| format!("{number} {what}"));
        show(&self.workers, String::new(), workers.collect::<Vec<_>>().join(" · "));
        for (line, bar) in state.lines.iter().zip(&self.lines) {
            bar.set_style(style(match line.mark {
                Mark::Under => "  {prefix:.yellow.bold}  {wide_msg}",
                Mark::Good => "  {prefix:.green}  {wide_msg}",
                Mark::Bad => "  {prefix:.red.bold}  {wide_msg}",
            }));
            let sign = match line.mark {
                Mark::Under => "…",
                Mark::Good => "✔",
                Mark::Bad => "✘",
            };
            show(bar, format!("{sign} {:<20}", line.what), line.outcome.clone());
        }
    }
}

/// Our own templates can be read: a fault in one shows at the first look.
fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_spinner())
}

fn thousands(number: u64) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}
