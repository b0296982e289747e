//! Upkeep of MongoDB: the collection checked, compacted where the server allows it, its indexes compared with the schema's.

use std::sync::Arc;
use std::time::Instant;

use futures_util::future::BoxFuture;
use taskflow_stores::mongo::Document;
use taskflow_stores::mongo::upkeep::{self, Answer};

use super::Job;
use crate::context::{Context, Failure, Step};
use crate::load::Beside;

pub(super) const JOB: Job = Job {
    name: "maintenance.mongodb",
    about: "Validates and compacts the audit trail's collection, checks its indexes, reports",
    cron: "0 10 2 * * Sun",
    timeout_s: 4 * 3_600,
    retries: 2,
    heavy: true,
    beside: Beside::MongoDb,
    word: Some("maintenance"),
    work,
    ..Job::DEFAULT
};

fn work(context: Arc<Context>) -> BoxFuture<'static, Result<(), Failure>> {
    Box::pin(async move {
        let database = &context.stores.mongo;
        context.set("statistics", upkeep::statistics(database).await?);
        match upkeep::replication(database).await? {
            Answer::Done(status) => context.set("members", upkeep::members(&status)),
            Answer::Refused(words) => context.set("members", words),
        }
        let missing = upkeep::missing_indexes(database).await?;
        if !missing.is_empty() {
            context.log(format!(
                "indexes are missing: {}; `taskflow migrate up` makes them",
                missing.join(", ")
            ));
        }
        context.set("missing_indexes", missing);
        match upkeep::index_builds(database).await? {
            Answer::Done(answer) => {
                context.set("index_builds", answer.get_array("inprog").map_or(0, Vec::len));
            }
            Answer::Refused(words) => context.set("index_builds", words),
        }
        if context.dry_run() {
            return Ok(());
        }
        if context.give_way().await? == Step::Enough {
            return Ok(());
        }
        context.fence.holds().await?;
        let (started, longest) = (Instant::now(), context.time_out());
        let Some(valid) = upkeep::validate(database, longest, context.halt()).await? else {
            return context.halted().map(drop);
        };
        if let Some(answer) = told(&context, "validate", valid)
            && let Ok(false) = answer.get_bool("valid")
        {
            context.set("valid", false);
            return Err(Failure::Final(format!(
                "the collection is damaged: {:?}",
                answer.get_array("errors")
            )));
        }
        if context.step(started.elapsed()).await? == Step::Enough {
            return Ok(());
        }
        context.fence.holds().await?;
        let Some(compacted) = upkeep::compact(database, longest, context.halt()).await? else {
            return context.halted().map(drop);
        };
        if let Some(answer) = told(&context, "compact", compacted) {
            context.set("bytes_freed", answer.get_i64("bytesFreed").unwrap_or(0));
        }
        Ok(())
    })
}

/// Says what came of a command; a refusal is no failure of ours.
fn told(context: &Context, what: &str, answer: Answer) -> Option<Document> {
    match answer {
        Answer::Done(answer) => {
            context.set(what, "done");
            Some(answer)
        }
        Answer::Refused(words) => {
            context.log(format!("{what}: this server refuses it: {words}"));
            context.set(what, format!("refused: {words}"));
            None
        }
    }
}
