//! The jobs: one file each, and the table of all of them.

mod audit_seal;
pub(crate) mod audit_verify;
mod backup_drill;
mod backup_mongodb;
mod backup_mongodb_incremental;
mod backup_postgres;
mod backup_postgres_base;
mod backup_prune;
mod backup_redis;
mod backups;
mod batches;
mod cache_warm;
mod maintenance_mongodb;
mod maintenance_postgres;
mod maintenance_redis;
#[cfg(feature = "crash-points")]
mod probe;
mod report_stores;
mod retention_dead_letters;
mod retention_events;
mod retention_holds;
mod retention_ledger;
mod retention_receipts;
mod retention_sockets;
mod retention_tasks;

use std::sync::Arc;

use chrono::{DateTime, Utc};
use futures_util::future::BoxFuture;
use taskflow_core::job::{Missed, Overlap, State};
use taskflow_core::system_event::{JobDeed, Occurrence, job_begun, job_ended};
use taskflow_stores::postgres::job_runs::{End, Run};

use crate::context::{Context, Failure};
use crate::load::Beside;

/// One job and the defaults of its schedule.
#[derive(Debug)]
pub struct Job {
    pub name: &'static str,
    pub about: &'static str,
    pub cron: &'static str,
    pub jitter_s: u32,
    pub timeout_s: u32,
    pub retries: u16,
    pub overlap: Overlap,
    pub missed: Missed,
    pub enabled: bool,
    /// Only in the maintenance window.
    pub heavy: bool,
    /// The store, beside Postgres, whose load it yields to.
    pub beside: Beside,
    /// The audit trail tells of its runs as `system.WORD.started`, `.completed` and `.failed`.
    pub word: Option<&'static str>,
    pub work: fn(Arc<Context>) -> BoxFuture<'static, Result<(), Failure>>,
}

/// The words that jobs know beside `dry_run` (`taskflow jobs run JOB --with WORD`).
const WORDS: [(&str, &[&str]); 3] = [
    (retention_events::JOB.name, &["restamp"]),
    (audit_verify::JOB.name, &["all"]),
    (backup_postgres_base::JOB.name, &["now"]),
];

impl Job {
    /// Looks for a word that this job does not know: whoever mistypes one is told, rather than believing that it took
    /// effect.
    ///
    /// # Errors
    /// It is named, with those there are.
    pub fn knows<'w>(&self, words: impl IntoIterator<Item = &'w str>) -> Result<(), String> {
        // What tests run takes whatever they say.
        if self.name.starts_with("test.") {
            return Ok(());
        }
        let known = WORDS.iter().find(|(name, _)| *name == self.name).map_or(&[][..], |(_, words)| *words);
        match words.into_iter().find(|word| *word != "dry_run" && !known.contains(word)) {
            None => Ok(()),
            Some(word) if known.is_empty() => {
                Err(format!("{} knows no word {word:?}, and no other", self.name))
            }
            Some(word) => Err(format!("{} knows no word {word:?}; there is {}", self.name, known.join(", "))),
        }
    }

    const DEFAULT: Self = Self {
        name: "",
        about: "",
        cron: "0 0 3 * * *",
        jitter_s: 0,
        timeout_s: 3_600,
        retries: 0,
        overlap: Overlap::Skip,
        missed: Missed::Once,
        enabled: true,
        heavy: false,
        beside: Beside::Nothing,
        word: None,
        work: |_| Box::pin(async { Ok(()) }),
    };

    pub(crate) fn begun_event(&self, run: &Run, host: &str, at: DateTime<Utc>) -> Option<Occurrence> {
        Some(job_begun(self.word?, self.deed(run, at), host))
    }

    /// What the audit trail is told of a try's end; nothing of one that is tried again.
    pub(crate) fn ended_event(&self, run: &Run, end: &End, at: DateTime<Utc>) -> Option<Occurrence> {
        let word = self.word.filter(|_| end.state != State::Waiting)?;
        let figures = end.told.as_ref().map(|told| &told.figures);
        Some(job_ended(word, self.deed(run, at), end.state.as_str(), end.detail.as_deref(), figures))
    }

    fn deed<'r>(&self, run: &'r Run, at: DateTime<Utc>) -> JobDeed<'r> {
        JobDeed {
            job: self.name,
            schedule: &run.schedule,
            run: run.id,
            attempt: run.attempt,
            due_at: run.due_at,
            at,
        }
    }
}

/// The job that is run whenever the caches were emptied.
pub(crate) const CACHE_WARM: &str = cache_warm::JOB.name;
/// The job that is run whenever the log of writes leads on from no base backup.
pub(crate) const BASE: &str = backup_postgres_base::JOB.name;

/// Every job.
pub fn all() -> impl Iterator<Item = &'static Job> {
    JOBS.iter()
}

/// The job of this name.
pub(crate) fn named(name: &str) -> Option<&'static Job> {
    all().find(|job| job.name == name)
}

static JOBS: &[Job] = &[
    retention_events::JOB,
    retention_holds::JOB,
    retention_receipts::JOB,
    retention_dead_letters::JOB,
    retention_tasks::JOB,
    retention_ledger::JOB,
    retention_sockets::JOB,
    maintenance_postgres::JOB,
    maintenance_mongodb::JOB,
    maintenance_redis::JOB,
    cache_warm::JOB,
    backup_postgres::JOB,
    backup_postgres_base::JOB,
    backup_mongodb::JOB,
    backup_mongodb_incremental::JOB,
    backup_redis::JOB,
    backup_prune::JOB,
    backup_drill::JOB,
    report_stores::JOB,
    audit_seal::JOB,
    audit_verify::JOB,
    #[cfg(feature = "crash-points")]
    probe::JOB,
    #[cfg(feature = "crash-points")]
    probe::HEAVY,
];

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_knows_the_events_of_each_job() {
        for job in all() {
            let Some(word) = job.word else { continue };
            for how in ["started", "completed", "failed"] {
                let kind = format!("system.{word}.{how}");
                assert!(taskflow_core::retention::SYSTEM_TYPES.contains(&kind.as_str()), "{kind}");
            }
        }
    }

    #[test]
    fn a_word_that_a_job_does_not_know_is_named() {
        assert!(retention_events::JOB.knows(["restamp", "dry_run"]).is_ok());
        let unknown = retention_events::JOB.knows(["restmap"]).expect_err("unknown");
        assert!(unknown.contains("restmap") && unknown.contains("restamp"), "{unknown}");
        assert!(retention_tasks::JOB.knows(["restamp"]).is_err());
        assert!(WORDS.iter().all(|(name, _)| all().any(|job| job.name == *name)));
    }
}
