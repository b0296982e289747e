//! Recording metrics. Names, labels and help are in `taskflow_core::metric`; here is the one place that calls the
//! metrics library.

use std::time::Duration;

use metrics::{Label, SharedString};
use taskflow_core::metric::{self, Kind, Metric};

/// The handle of one series. Keep it where the series is recorded often.
pub fn counter(metric: &Metric, labels: &[(&'static str, &str)]) -> metrics::Counter {
    debug_assert_eq!(metric.kind, Kind::Counter);
    let key = key(metric, labels);
    metrics::with_recorder(|recorder| recorder.register_counter(&key, &METADATA))
}

/// The handle of one gauge.
pub fn gauge(metric: &Metric, labels: &[(&'static str, &str)]) -> metrics::Gauge {
    debug_assert_eq!(metric.kind, Kind::Gauge);
    let key = key(metric, labels);
    metrics::with_recorder(|recorder| recorder.register_gauge(&key, &METADATA))
}

/// The handle of one histogram.
pub fn histogram(metric: &Metric, labels: &[(&'static str, &str)]) -> metrics::Histogram {
    let key = key(metric, labels);
    metrics::with_recorder(|recorder| recorder.register_histogram(&key, &METADATA))
}

static METADATA: metrics::Metadata<'static> =
    metrics::Metadata::new("taskflow", metrics::Level::INFO, Some("taskflow"));

fn key(metric: &Metric, labels: &[(&'static str, &str)]) -> metrics::Key {
    debug_assert!(
        labels.len() == metric.labels.len() && labels.iter().all(|(name, _)| metric.labels.contains(name)),
        "{} has the labels {:?}",
        metric.name,
        metric.labels
    );
    let labels =
        labels.iter().map(|(name, value)| Label::new(*name, SharedString::from((*value).to_owned())));
    metrics::Key::from_parts(metric.name, labels.collect::<Vec<_>>())
}

/// Records the time of one call to a store.
pub fn store_took(store: &str, call: &str, took: Duration) {
    histogram(&metric::STORE_CALL, &[("store", store), ("call", call)]).record(took);
}

/// Notes whether a store answered its last probe.
pub fn store_up(store: &str, up: bool) {
    gauge(&metric::STORE_UP, &[("store", store)]).set(if up { 1.0 } else { 0.0 });
}
