//! Seals the audit trail, every minute in which something has happened.

use std::sync::Arc;

use futures_util::future::BoxFuture;
use taskflow_core::job::Missed;

use super::Job;
use crate::audit::sealing;
use crate::context::{Context, Failure};

pub(super) const JOB: Job = Job {
    name: "audit.seal",
    about: "Signs the heads of the audit trail's chains, and copies the seal to MongoDB and to a place outside",
    cron: "0 * * * * *",
    timeout_s: 55,
    missed: Missed::Once,
    work,
    ..Job::DEFAULT
};

fn work(context: Arc<Context>) -> BoxFuture<'static, Result<(), Failure>> {
    Box::pin(async move {
        if context.dry_run() {
            return plan(&context).await;
        }
        let sealed =
            sealing::seal(&context.stores, &context.audit, &context.retention, &context.fence).await?;
        context.set("seal", sealed.number);
        context.set("made", sealed.made);
        context.set("copied", sealed.copied);
        Ok(())
    })
}

/// Which seal the next one follows, and whether it would say anything new.
async fn plan(context: &Context) -> Result<(), Failure> {
    let due = sealing::due(&context.stores, &context.audit, &context.retention).await?;
    context.set("seal", due.newest);
    context.set("would_seal", due.says_more);
    Ok(())
}
