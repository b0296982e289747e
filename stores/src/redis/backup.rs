//! A snapshot of Redis (RDB), for backups.

use std::path::PathBuf;
use std::time::Duration;

use super::Redis;
use crate::{Kind, StoreError};

const LOOK_EVERY: Duration = Duration::from_millis(200);
/// The longest that a snapshot may take.
const PATIENCE: Duration = Duration::from_secs(1_800);

impl Redis {
    /// Has the server write a snapshot and waits until it is whole. Returns where the server has put it, on its own
    /// machine; or, in words, why there is none.
    pub async fn snapshot(&self) -> Result<Result<PathBuf, String>, StoreError> {
        if self.is_cluster() {
            return Ok(Err("a cluster: each node writes a snapshot of its own".to_owned()));
        }
        let call = "write a snapshot";
        let mut connection = self.connection().await?;
        let before = self.last_save().await?;
        let begun: Result<redis::Value, _> = redis::cmd("BGSAVE").query_async(&mut connection).await;
        if let Err(error) = begun {
            // One is under way, or the append-only file is being written; the next one is ours too.
            if !error.to_string().contains("in progress") {
                return Ok(Err(format!("the server refuses BGSAVE: {error}")));
            }
        }
        let since = std::time::Instant::now();
        loop {
            let busy = self.info("persistence", "rdb_bgsave_in_progress").await?;
            // Within one second the time stays the same.
            if busy.as_deref() == Some("0")
                && (self.last_save().await? > before || since.elapsed() > Duration::from_secs(2))
            {
                break;
            }
            if since.elapsed() > PATIENCE {
                return Err(StoreError::unavailable("redis", call, "not done after half an hour"));
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        let status = self.info("persistence", "rdb_last_bgsave_status").await?;
        if status.as_deref() != Some("ok") {
            return Err(StoreError::new(
                "redis",
                call,
                Kind::Unavailable,
                "the server could not write it; its log says why",
            ));
        }
        let mut parts = [String::new(), String::new()];
        for (part, name) in parts.iter_mut().zip(["dir", "dbfilename"]) {
            let answer: Result<(String, String), _> =
                redis::cmd("CONFIG").arg("GET").arg(name).query_async(&mut connection).await;
            match answer {
                Ok((_, value)) => *part = value,
                Err(error) => {
                    return Ok(Err(format!("the server does not tell where its snapshot lies: {error}")));
                }
            }
        }
        let [folder, file] = parts;
        Ok(Ok(PathBuf::from(folder).join(file)))
    }

    async fn last_save(&self) -> Result<i64, StoreError> {
        let mut connection = self.connection().await?;
        redis::cmd("LASTSAVE")
            .query_async(&mut connection)
            .await
            .map_err(self.failed("ask for the last snapshot"))
    }
}
