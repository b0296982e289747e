//! What the benchmark prints and writes.

use std::fmt::Write as _;

use serde::Serialize;

use super::Plan;

/// One measured value, and what it should be.
#[derive(Debug, Serialize)]
pub(crate) struct Figure {
    pub name: String,
    pub value: f64,
    pub unit: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<f64>,
    /// Whether less is better.
    pub atmost: bool,
}

impl Figure {
    pub(super) fn new(name: &str, value: f64, unit: &'static str, target: Option<f64>) -> Self {
        Self { name: name.to_owned(), value, unit, target, atmost: false }
    }

    pub(super) fn at_most(name: &str, value: f64, unit: &'static str, target: f64) -> Self {
        Self { atmost: true, ..Self::new(name, value, unit, Some(target)) }
    }

    fn met(&self) -> Option<bool> {
        self.target.map(|target| if self.atmost { self.value <= target } else { self.value >= target })
    }
}

#[derive(Debug, Serialize)]
pub(crate) struct Report {
    pub version: &'static str,
    pub cores: usize,
    pub commands: usize,
    pub rounds: usize,
    pub figures: Vec<Figure>,
}

impl Report {
    pub(super) fn of(plan: &Plan, figures: Vec<Figure>) -> Self {
        Self {
            version: env!("CARGO_PKG_VERSION"),
            cores: std::thread::available_parallelism().map_or(0, usize::from),
            commands: plan.commands,
            rounds: plan.rounds,
            figures,
        }
    }
}

/// The figures for people.
pub(crate) fn table(report: &Report) -> String {
    let mut text = format!(
        "taskflow {} on {} cores, {} commands, median of {} rounds; the stores and the load share the cores\n\n",
        report.version, report.cores, report.commands, report.rounds
    );
    for figure in &report.figures {
        let value = match figure.unit {
            "commands/s" | "requests/s" => format!("{:.0}", figure.value),
            "ms/command" | "ms/request" => format!("{:.4}", figure.value),
            _ => format!("{:.2}", figure.value),
        };
        let target = match (figure.target, figure.met()) {
            (Some(target), Some(met)) => {
                let sign = if figure.atmost { "≤" } else { "≥" };
                format!("  {sign} {target} {}", if met { "met" } else { "MISSED" })
            }
            _ => String::new(),
        };
        let _ = writeln!(text, "{:<44} {value:>10} {:<11}{target}", figure.name, figure.unit);
    }
    text
}
