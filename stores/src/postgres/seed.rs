//! Sample data, straight into the tables: for development, and for nothing else.

use taskflow_core::{Task, User};

use super::{PgPool, begin, failed, tasks, users};
use crate::StoreError;

/// Inserts what is not there yet. Returns how many users and tasks were new.
pub async fn insert(
    pool: &PgPool,
    sample_users: &[User],
    sample_tasks: &[Task],
) -> Result<(usize, usize), StoreError> {
    let mut transaction = begin(pool).await.map_err(failed("begin to seed"))?;
    // One seeding at a time.
    sqlx::query("LOCK TABLE users, tasks IN SHARE ROW EXCLUSIVE MODE")
        .execute(&mut *transaction)
        .await
        .map_err(failed("lock for seeding"))?;
    let ids: Vec<_> = sample_users.iter().map(|user| user.id).collect();
    let there = users::read_many(&mut transaction, &ids).await?;
    let new_users: Vec<User> =
        sample_users.iter().filter(|user| !there.iter().any(|t| t.id == user.id)).cloned().collect();
    let ids: Vec<_> = sample_tasks.iter().map(|task| task.id).collect();
    let there = tasks::read_many(&mut transaction, &ids).await?;
    let new_tasks: Vec<Task> =
        sample_tasks.iter().filter(|task| !there.iter().any(|t| t.id == task.id)).cloned().collect();
    users::insert(&mut transaction, &new_users).await?;
    tasks::insert(&mut transaction, &new_tasks).await?;
    transaction.commit().await.map_err(failed("finish seeding"))?;
    Ok((new_users.len(), new_tasks.len()))
}
