//! The schedules: the jobs' own, changed and added to by the settings.

use std::collections::BTreeMap;

use chrono_tz::Tz;
use serde::{Deserialize, Serialize};
use taskflow_core::job::expression::Expression;
use taskflow_core::job::outage::Timing;
use taskflow_core::job::window::Window;
use taskflow_core::job::{Missed, Overlap, QUEUE_MAX, Retries};
use taskflow_stores::postgres::job_schedules::Wanted;
use taskflow_stores::postgres::leader::LEASE_MAX_MS;

use crate::Settings;
use crate::jobs::{self, Job};

/// A schedule whose runs may last for longer, in seconds, is one of long runs.
const LONG_S: u32 = 600;

/// What the settings say about a schedule. What is left out is the job's default.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct JobSettings {
    /// The job, where the section is a further schedule under a name of its own.
    pub job: Option<String>,
    /// Second, minute, hour, day of the month, month, day of the week, such as `0 30 2 * * *`.
    pub cron: Option<String>,
    /// Such as `Europe/Berlin`.
    pub time_zone: Option<String>,
    /// Begins up to so many seconds later, another time each time.
    pub jitter_s: Option<u32>,
    /// After which a run is ended, in seconds.
    pub timeout_s: Option<u32>,
    /// `skip`, `queue` or `cancel_previous`.
    pub overlap: Option<Overlap>,
    /// `skip`, `once` or `each`.
    pub missed: Option<Missed>,
    /// Runs that are made up for at most, where `missed` is `each`.
    pub catch_up_max: Option<usize>,
    /// How often a failed run is tried again, and after what pauses.
    pub retries: Option<Retries>,
    pub enabled: Option<bool>,
}

/// A schedule that is understood.
#[derive(Debug, Clone)]
pub struct Schedule {
    pub name: String,
    pub job: &'static Job,
    pub expression: Expression,
    pub jitter_s: u32,
    pub timeout_s: u32,
    pub overlap: Overlap,
    pub missed: Missed,
    pub catch_up_max: usize,
    pub retries: Retries,
    pub enabled: bool,
}

impl Schedule {
    pub(crate) fn timing(&self) -> Timing<'_> {
        Timing {
            name: &self.name,
            expression: &self.expression,
            jitter_s: self.jitter_s,
            missed: self.missed,
            catch_up_max: self.catch_up_max,
        }
    }

    /// Whether a run may last for longer than others should wait for its place.
    pub(crate) fn is_long(&self) -> bool {
        self.timeout_s > LONG_S
    }

    fn definition(&self) -> String {
        match self.jitter_s {
            0 => self.expression.to_string(),
            most => format!("{} +{most}s", self.expression),
        }
    }
}

/// All schedules, by their names, and the maintenance window.
#[derive(Debug, Clone)]
pub struct Schedules {
    by_name: BTreeMap<String, Schedule>,
    window: Window,
    zone: Tz,
}

impl Schedules {
    /// Reads the settings.
    ///
    /// # Errors
    /// Everything that is wrong with them, a line each.
    pub fn read(settings: &Settings) -> Result<Self, String> {
        let mut faults = Vec::new();
        let zone: Tz = settings.time_zone.parse().unwrap_or_else(|_| {
            let zone = &settings.time_zone;
            faults.push(format!(
                "scheduler.time_zone: {zone:?} is no time zone; an example is \"Europe/Berlin\""
            ));
            Tz::UTC
        });
        let window = settings.maintenance_window.parse().map_err(|error| {
            faults.push(format!("scheduler.maintenance_window: {error}"));
        });
        if !(settings.share > 0.0 && settings.share <= 1.0) {
            faults.push(format!("scheduler.share: {} is not above 0 and at most 1", settings.share));
        }
        if !(1_000..=LEASE_MAX_MS).contains(&settings.lease_ms) {
            let lease_ms = settings.lease_ms;
            faults.push(format!("scheduler.lease_ms: {lease_ms} is not between 1000 and {LEASE_MAX_MS}"));
        }
        if settings.at_once == 0 {
            faults.push("scheduler.at_once: 0 would run nothing".to_owned());
        }
        let none = JobSettings::default();
        let own =
            jobs::all().filter(|job| !settings.jobs.contains_key(job.name)).map(|job| (job.name, &none));
        let set = settings.jobs.iter().map(|(name, set)| (name.as_str(), set));
        let mut by_name = BTreeMap::new();
        for (name, set) in own.chain(set) {
            match read(name, set, zone) {
                Ok(schedule) => drop(by_name.insert(name.to_owned(), schedule)),
                Err(fault) => faults.push(fault),
            }
        }
        match window {
            Ok(window) if faults.is_empty() => Ok(Self { by_name, window, zone }),
            _ => Err(faults.join("\n")),
        }
    }

    pub fn len(&self) -> usize {
        self.by_name.len()
    }

    pub fn is_empty(&self) -> bool {
        self.by_name.is_empty()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Schedule> {
        self.by_name.values()
    }

    pub fn get(&self, name: &str) -> Option<&Schedule> {
        self.by_name.get(name)
    }

    /// Whether maintenance may be done.
    pub(crate) fn in_window(&self, moment: chrono::DateTime<chrono::Utc>) -> bool {
        self.window.contains(moment, self.zone)
    }

    pub(crate) fn window(&self) -> String {
        format!("{} {}", self.window, self.zone)
    }

    /// As the table wants them.
    pub fn wanted(&self) -> Vec<Wanted> {
        let wanted = self.iter().map(|schedule| Wanted {
            name: schedule.name.clone(),
            job: schedule.job.name.to_owned(),
            definition: schedule.definition(),
            enabled: schedule.enabled,
        });
        wanted.collect()
    }
}

fn read(name: &str, set: &JobSettings, zone: Tz) -> Result<Schedule, String> {
    let at = |field: &str| format!("scheduler.jobs.{name:?}.{field}");
    let wanted = set.job.as_deref().unwrap_or(name);
    let job = jobs::all().find(|job| job.name == wanted).ok_or_else(|| {
        let field = if set.job.is_some() { at("job") } else { format!("scheduler.jobs.{name:?}") };
        format!("{field}: there is no job {wanted:?}; {}", hint(wanted))
    })?;
    if name.is_empty() || name.len() > 200 || name.chars().any(char::is_control) {
        return Err(format!("scheduler.jobs: {name:?} is no name; it has 1 to 200 bytes"));
    }
    let cron = set.cron.as_deref().unwrap_or(job.cron);
    let expression =
        Expression::new(cron, set.time_zone.as_deref().unwrap_or(zone.name())).map_err(|error| {
            format!("{}: {error}", at(if error.contains("time zone") { "time_zone" } else { "cron" }))
        })?;
    let timeout_s = set.timeout_s.unwrap_or(job.timeout_s);
    if timeout_s == 0 {
        return Err(format!("{}: 0 would end each run at once", at("timeout_s")));
    }
    let catch_up_max = set.catch_up_max.unwrap_or(24);
    if catch_up_max > QUEUE_MAX {
        return Err(format!(
            "{}: {catch_up_max} is more than {QUEUE_MAX}, which may wait",
            at("catch_up_max")
        ));
    }
    Ok(Schedule {
        name: name.to_owned(),
        job,
        expression,
        jitter_s: set.jitter_s.unwrap_or(job.jitter_s),
        timeout_s,
        overlap: set.overlap.unwrap_or(job.overlap),
        missed: set.missed.unwrap_or(job.missed),
        catch_up_max,
        retries: set.retries.unwrap_or(Retries { most: job.retries, ..Retries::default() }),
        enabled: set.enabled.unwrap_or(job.enabled),
    })
}

fn hint(wanted: &str) -> String {
    let closest = jobs::all()
        .map(|job| (strsim::jaro_winkler(job.name, wanted), job.name))
        .max_by(|a, b| a.0.total_cmp(&b.0))
        .filter(|(likeness, _)| *likeness > 0.75);
    match closest {
        Some((_, name)) => format!("did you mean {name:?}?"),
        None => format!("there are {}", jobs::all().map(|job| job.name).collect::<Vec<_>>().join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(toml: &[(&str, JobSettings)]) -> Result<Schedules, String> {
        let jobs = toml.iter().map(|(name, set)| ((*name).to_owned(), set.clone())).collect();
        Schedules::read(&Settings { jobs, ..Settings::default() })
    }

    #[test]
    fn the_defaults_are_schedules() {
        let schedules = read(&[]).expect("defaults");
        assert_eq!(schedules.len(), jobs::all().count());
        for schedule in schedules.iter() {
            let now = chrono::DateTime::from_timestamp(1_900_000_000, 0).expect("a time");
            let due = schedule.expression.after(now).expect("a due time");
            assert!(
                !schedule.job.heavy || schedules.in_window(due),
                "{} is due outside the maintenance window",
                schedule.name
            );
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let with = |name: &str, set: JobSettings| read(&[(name, set)]).expect_err(name);
        let error = with("retention.event", JobSettings::default());
        assert!(error.contains("did you mean \"retention.events\"?"), "{error}");
        let error =
            with("mine", JobSettings { job: Some("retention.taks".into()), ..JobSettings::default() });
        assert!(
            error.contains("scheduler.jobs.\"mine\".job") && error.contains("retention.tasks"),
            "{error}"
        );
        let error = with(
            "retention.events",
            JobSettings { cron: Some("0 2 * * *".into()), ..JobSettings::default() },
        );
        assert!(
            error.contains("scheduler.jobs.\"retention.events\".cron") && error.contains("has six"),
            "{error}"
        );
        let error = with(
            "retention.events",
            JobSettings { time_zone: Some("Berlin".into()), ..JobSettings::default() },
        );
        assert!(error.contains(".time_zone:"), "{error}");
        let error = with(
            "retention.events",
            JobSettings { catch_up_max: Some(QUEUE_MAX + 1), ..JobSettings::default() },
        );
        assert!(error.contains(".catch_up_max: 101 is more than 100"), "{error}");
    }

    #[test]
    fn a_lease_has_bounds() {
        let with = |lease_ms| Schedules::read(&Settings { lease_ms, ..Settings::default() });
        for lease_ms in [1_000, Settings::default().lease_ms, LEASE_MAX_MS] {
            assert!(with(lease_ms).is_ok(), "{lease_ms}");
        }
        for lease_ms in [0, 999, LEASE_MAX_MS + 1, u64::MAX] {
            let error = with(lease_ms).map(drop).expect_err("a fault");
            assert!(error.starts_with(&format!("scheduler.lease_ms: {lease_ms} is not between")), "{error}");
        }
    }

    #[test]
    fn a_job_may_have_further_schedules() {
        let set = JobSettings {
            job: Some("retention.tasks".into()),
            cron: Some("0 55 7 * * Mon-Fri".into()),
            time_zone: Some("Europe/Berlin".into()),
            ..JobSettings::default()
        };
        let schedules = read(&[("before work", set)]).expect("a schedule");
        assert_eq!(schedules.len(), jobs::all().count() + 1);
        assert_eq!(schedules.get("before work").map(|schedule| schedule.job.name), Some("retention.tasks"));
    }
}
