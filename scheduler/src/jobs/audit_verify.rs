//! Verifies the audit trail: all that was sealed since the last time, and a part of what is older. Which part is left to
//! chance: who has changed something can't know that it is not looked at.

use std::sync::Arc;
use std::time::Instant;

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use taskflow_core::audit::copies::Trusted;
use taskflow_core::audit::finding::Kind;
use taskflow_core::{metric, system_event};
use taskflow_stores::clock;
use taskflow_stores::observe::counter;
use taskflow_stores::postgres::{job_schedules, leader, system_events};

use super::Job;
use crate::audit::files::{self, Outside};
use crate::audit::verify::{Error, Report, SEALS_TOGETHER, Verifier};
use crate::context::{Context, Failure, Step};
use crate::led;

pub(crate) const JOB: Job = Job {
    name: "audit.verify",
    about: "Verifies what was sealed since the last time, and as much of what is older (--with all: everything)",
    cron: "0 40 2 * * *",
    jitter_s: 300,
    timeout_s: 6 * 3_600,
    retries: 2,
    word: Some("audit"),
    work,
    ..Job::DEFAULT
};

/// Stretches between two seals that a run verifies at most, and how many of older ones: both more than a day has.
const NEW_MAX: i64 = 20_000;
const OLD_MAX: i64 = 1_500;
/// Findings that the audit trail is told of one by one, and lines of the run's log.
const TOLD: usize = 50;
/// The figure that says what was found, by kind.
pub(crate) const FOUND: &str = "found";

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        match error {
            Error::Store(error) => error.into(),
            Error::File(error) => error.into(),
        }
    }
}

fn work(context: Arc<Context>) -> BoxFuture<'static, Result<(), Failure>> {
    Box::pin(async move {
        let path = &context.audit.public_keys_path;
        let keys = files::public_keys(path).map_err(|error| Failure::Final(error.to_string()))?;
        if keys.is_empty() {
            return Err(Failure::Final(format!(
                "there is no public key in {}: nothing tells a true seal from a false one; `taskflow audit keygen` \
                 makes keys (docs/audit.md)",
                path.display()
            )));
        }
        let outside = Outside::new(&context.audit.seals_folder);
        let outside = outside.is_there().then_some(outside);
        let mut verifier = Verifier::new(context.stores.clone(), keys, outside, clock::now()).await?;
        let last = verifier.last().await?;
        let state =
            job_schedules::state(&context.stores.postgres, &context.schedule).await?.unwrap_or_default();
        let all = context.flag("all");
        let known = if all { 0 } else { state["verified"].as_i64().unwrap_or(0).clamp(0, last) };
        let end = if all { last } else { last.min(known + NEW_MAX) };
        let verified = go(&context, &mut verifier, known, end).await?;
        if !all && known > 1 {
            let first = rand::random_range(0..known);
            go(&context, &mut verifier, first, (first + OLD_MAX).min(known)).await?;
        }
        verifier.since_newest().await?;
        tell(&context, verifier.end(), verified).await
    })
}

/// Verifies from one seal to another. Returns the seal up to which nothing is on its way.
async fn go(context: &Context, verifier: &mut Verifier, from: i64, to: i64) -> Result<i64, Failure> {
    let (mut before, mut verified, mut settled): (Option<Trusted>, i64, bool) = (None, from, true);
    // The seal at which it begins is read too: the first stretch is from there.
    let mut first = from.max(1);
    while first <= to {
        let last = to.min(first + SEALS_TOGETHER - 1);
        for seal in verifier.seals(first, last, before.as_ref()).await? {
            let (started, number) = (Instant::now(), seal.seal.number);
            if number > from {
                settled &= verifier.stretch(before.as_ref().map(|before| &before.seal), &seal.seal).await?;
                if settled {
                    verified = number;
                }
            }
            before = Some(seal);
            if context.step(started.elapsed()).await? == Step::Enough {
                return Ok(verified);
            }
        }
        first = last + 1;
    }
    Ok(verified)
}

/// Shows what a run has found, by kind: this one, or one that an earlier leader has ended.
pub(crate) fn show(found: &Value) {
    for kind in Kind::ALL {
        let count = found[kind.as_str()].as_u64().unwrap_or(0);
        led::show(&metric::AUDIT_FINDINGS, &[("kind", kind.as_str())], count as f64);
    }
}

async fn tell(context: &Context, report: Report, verified: i64) -> Result<(), Failure> {
    let now = clock::now();
    counter(&metric::AUDIT_VERIFIED, &[]).increment(report.counts.proved);
    let found = json!(report.found);
    show(&found);
    for (name, value) in [
        ("seals", report.seals),
        ("batches", report.counts.batches),
        ("proved", report.counts.proved),
        ("erased", report.counts.erased),
        ("expired", report.counts.expired),
        ("unsealed", report.counts.unsealed),
        ("undone", report.counts.undone),
        ("pending", report.pending),
    ] {
        context.set(name, value);
    }
    context.set(FOUND, found);
    report.notes.iter().for_each(|note| context.log(note.as_str()));
    report.findings.iter().take(TOLD).for_each(|finding| context.log(finding.to_string()));
    let mut transaction = context.fence.begin().await?;
    // What is wrong is found again until somebody has dealt with it: the next run begins where this one did.
    if report.found.is_empty() {
        job_schedules::set_state(&mut transaction, &context.schedule, &json!({ "verified": verified }))
            .await?;
    } else {
        let told: Vec<_> = report.findings.iter().take(TOLD).collect();
        let payload = json!({ "run": context.run, "found": report.found, "findings": told });
        let event = system_event::audit_findings(clock::new_id(), now, &payload);
        system_events::insert(&mut transaction, &[event]).await?;
    }
    leader::commit(transaction).await?;
    if report.found.is_empty() {
        return Ok(());
    }
    let found: Vec<String> = report.found.iter().map(|(kind, count)| format!("{count} {kind}")).collect();
    Err(Failure::Final(format!(
        "the audit trail is not what was sealed: {}; the log and the event system.audit_findings name them, \
         docs/audit.md says what to do",
        found.join(", ")
    )))
}
