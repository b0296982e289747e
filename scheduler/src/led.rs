//! Gauges of what the leader alone looks at. Who leads no more shows no number in them: what it saw last would stand
//! still, and look well or raise an alert for ever, while the new leader's goes on. Metrics can't be taken back; one that
//! is no number counts in no `max` and raises no alert.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use taskflow_core::metric::Metric;
use taskflow_stores::observe;

/// A label's name and its value.
type Labels = Vec<(&'static str, String)>;

/// What this process has shown, by metric and labels: no more than the metrics themselves hold.
static SHOWN: Mutex<BTreeMap<(&'static str, Labels), &'static Metric>> = Mutex::new(BTreeMap::new());

/// Sets a gauge, for as long as this process leads.
pub(crate) fn show(metric: &'static Metric, labels: &[(&'static str, &str)], value: f64) {
    let owned = labels.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
    SHOWN.lock().unwrap_or_else(PoisonError::into_inner).insert((metric.name, owned), metric);
    observe::gauge(metric, labels).set(value);
}

/// This process does not lead any more.
pub(crate) fn hide() {
    let shown = SHOWN.lock().unwrap_or_else(PoisonError::into_inner);
    for ((_, labels), metric) in shown.iter() {
        let labels: Vec<(&str, &str)> = labels.iter().map(|(name, value)| (*name, value.as_str())).collect();
        observe::gauge(metric, &labels).set(f64::NAN);
    }
}
