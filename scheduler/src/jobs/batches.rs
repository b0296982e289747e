//! Removing rows of Postgres a bounded number at a time.

use std::time::Instant;

use futures_util::future::BoxFuture;
use taskflow_stores::StoreError;
use taskflow_stores::postgres::{PgConnection, leader};

use crate::context::{Context, Failure, Step};

/// Removes batch after batch, each in a transaction under the lead, until one is not full. What went is added to a figure.
pub(super) async fn remove(
    context: &Context,
    figure: &str,
    together: i64,
    mut batch: impl for<'c> FnMut(&'c mut PgConnection) -> BoxFuture<'c, Result<u64, StoreError>>,
) -> Result<Step, Failure> {
    loop {
        let started = Instant::now();
        let mut transaction = context.fence.begin().await?;
        let gone = batch(&mut transaction).await?;
        leader::commit(transaction).await?;
        context.add(figure, gone);
        let step = context.step(started.elapsed()).await?;
        if gone < together.unsigned_abs() || step == Step::Enough {
            return Ok(step);
        }
    }
}
