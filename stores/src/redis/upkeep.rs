//! Upkeep and statistics of Redis. Nothing here removes a key.

use std::collections::{BTreeMap, HashMap};

use super::Redis;
use crate::StoreError;

/// Calls that the server serves a second, from what [`Redis::info_all`] tells; `None` if it does not tell.
pub fn calls_per_s(info: &BTreeMap<String, String>) -> Option<f64> {
    info.get("instantaneous_ops_per_sec")?.parse().ok()
}

impl Redis {
    /// Whether upkeep reaches the server: of a cluster's nodes each has to be looked after by itself.
    pub fn can_be_kept_up(&self) -> bool {
        !self.is_cluster()
    }

    /// Gives memory that the allocator holds back to the system.
    pub async fn purge_memory(&self) -> Result<(), StoreError> {
        let mut connection = self.connection().await?;
        redis::cmd("MEMORY")
            .arg("PURGE")
            .query_async::<()>(&mut connection)
            .await
            .map_err(self.failed("purge the memory"))
    }

    /// Begins to write the append-only file anew, in the background.
    pub async fn rewrite_log(&self) -> Result<(), StoreError> {
        let mut connection = self.connection().await?;
        redis::cmd("BGREWRITEAOF")
            .query_async::<redis::Value>(&mut connection)
            .await
            .map(|_| ())
            .map_err(self.failed("rewrite the append-only file"))
    }

    /// All that `INFO` tells, by name. Of a cluster's masters, whole numbers are added up; of the rest one is shown.
    pub async fn info_all(&self) -> Result<BTreeMap<String, String>, StoreError> {
        let mut connection = self.connection().await?;
        let ask = redis::cmd("INFO");
        let told = if self.is_cluster() {
            let told = ask.query_async::<HashMap<String, String>>(&mut connection).await;
            told.map(|told| told.into_values().collect())
        } else {
            ask.query_async::<String>(&mut connection).await.map(|told| vec![told])
        };
        let told: Vec<String> = told.map_err(self.failed("read the server's state"))?;
        let mut all: BTreeMap<String, String> = BTreeMap::new();
        for (name, value) in told.iter().flat_map(|told| told.lines()).filter_map(|line| line.split_once(':'))
        {
            let (name, value) = (name.to_owned(), value.trim().to_owned());
            let sum = all
                .get(&name)
                .and_then(|before| Some(before.parse::<u64>().ok()? + value.parse::<u64>().ok()?));
            match sum {
                Some(sum) => drop(all.insert(name, sum.to_string())),
                None => drop(all.entry(name).or_insert(value)),
            }
        }
        Ok(all)
    }

    /// Removes everything under this installation's prefix, a thousand keys at a time: caches, sessions, counters.
    /// Returns how many keys; `None` of a cluster, whose nodes have to be emptied one by one.
    pub async fn empty(&self) -> Result<Option<u64>, StoreError> {
        if self.is_cluster() {
            return Ok(None);
        }
        let call = "empty the caches";
        let mut connection = self.connection().await?;
        let escaped: String = self.prefix.chars().fold(String::new(), |mut text, char| {
            if matches!(char, '*' | '?' | '[' | ']' | '^' | '\\') {
                text.push('\\');
            }
            text.push(char);
            text
        });
        let (mut cursor, mut removed) = (0_u64, 0_u64);
        loop {
            let (next, keys): (u64, Vec<String>) = redis::cmd("SCAN")
                .arg(cursor)
                .arg("MATCH")
                .arg(format!("{escaped}*"))
                .arg("COUNT")
                .arg(1_000)
                .query_async(&mut connection)
                .await
                .map_err(self.failed(call))?;
            if !keys.is_empty() {
                let gone: u64 = redis::cmd("UNLINK")
                    .arg(&keys)
                    .query_async(&mut connection)
                    .await
                    .map_err(self.failed(call))?;
                removed += gone;
            }
            cursor = next;
            if cursor == 0 {
                return Ok(Some(removed));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn a_server_that_does_not_tell_its_load_is_not_taken_for_an_idle_one() {
        let info = |name: &str, value: &str| [(name.to_owned(), value.to_owned())].into();
        assert_eq!(super::calls_per_s(&info("instantaneous_ops_per_sec", "17")), Some(17.0));
        assert_eq!(super::calls_per_s(&info("total_commands_processed", "17")), None);
        assert_eq!(super::calls_per_s(&info("instantaneous_ops_per_sec", "many")), None);
    }
}
