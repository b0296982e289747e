//! Members of the sets `ws:user:{userId}:connections` whose `ws:connection:{socketId}` is gone: what a process that died
//! has left behind.

use std::collections::BTreeMap;

use taskflow_core::cache_key;

use super::Redis;
use super::connection::Connection;
use crate::StoreError;

/// Keys that the server looks at in one call.
const SCAN_COUNT: usize = 500;
/// Members of one set that are looked at in one call, and of one set in one look.
const MEMBERS_COUNT: usize = 500;
const MEMBERS_MAX: usize = 10_000;

/// What one step over the keys found.
#[derive(Debug, Default)]
pub struct Step {
    /// Where the next step goes on; 0: that was the last one.
    pub cursor: u64,
    /// Sets that were looked at.
    pub sets: usize,
    /// Members without a connection, by their set's key.
    pub orphans: BTreeMap<String, Vec<String>>,
}

impl Redis {
    /// Whether keys can be looked through one after the other. In a cluster they lie on many servers; there, entries of
    /// sockets go by their time to live alone.
    pub fn can_look_through(&self) -> bool {
        !self.is_cluster()
    }

    /// Looks at the next keys. A socket is entered under two keys, one after the other, so what looks like an orphan is
    /// one only if it still does some seconds later.
    pub async fn find_orphans(&self, cursor: u64) -> Result<Step, StoreError> {
        let mut connection = self.connection().await?;
        let (cursor, sets): (u64, Vec<String>) = redis::cmd("SCAN")
            .arg(cursor)
            .arg("MATCH")
            .arg(self.key(cache_key::SOCKET_SETS))
            .arg("COUNT")
            .arg(SCAN_COUNT)
            .arg("TYPE")
            .arg("set")
            .query_async(&mut connection)
            .await
            .map_err(self.failed("look for sets of sockets"))?;
        let mut step = Step { cursor, sets: sets.len(), orphans: BTreeMap::new() };
        for set in sets {
            let orphans = self.orphans_of(&mut connection, &set).await?;
            if !orphans.is_empty() {
                step.orphans.insert(set, orphans);
            }
        }
        Ok(step)
    }

    async fn orphans_of(&self, connection: &mut Connection, set: &str) -> Result<Vec<String>, StoreError> {
        let (mut cursor, mut seen, mut orphans) = (0_u64, 0, Vec::new());
        loop {
            let (next, members): (u64, Vec<String>) = redis::cmd("SSCAN")
                .arg(set)
                .arg(cursor)
                .arg("COUNT")
                .arg(MEMBERS_COUNT)
                .query_async(connection)
                .await
                .map_err(self.failed("look at a set of sockets"))?;
            seen += members.len();
            orphans.extend(self.without_connection(connection, members).await?);
            cursor = next;
            if cursor == 0 || seen >= MEMBERS_MAX {
                return Ok(orphans);
            }
        }
    }

    async fn without_connection(
        &self,
        connection: &mut Connection,
        members: Vec<String>,
    ) -> Result<Vec<String>, StoreError> {
        if members.is_empty() {
            return Ok(members);
        }
        let mut pipeline = redis::pipe();
        for member in &members {
            pipeline.cmd("EXISTS").arg(self.key(&cache_key::socket(member)));
        }
        let there: Vec<bool> =
            pipeline.query_async(connection).await.map_err(self.failed("look for sockets"))?;
        Ok(members.into_iter().zip(there).filter(|(_, there)| !there).map(|(member, _)| member).collect())
    }

    /// Removes those of these members that still have no connection. Returns how many went.
    pub async fn remove_orphans(&self, orphans: BTreeMap<String, Vec<String>>) -> Result<u64, StoreError> {
        let mut connection = self.connection().await?;
        let mut removed = 0;
        for (set, members) in orphans {
            for members in members.chunks(MEMBERS_COUNT) {
                let still = self.without_connection(&mut connection, members.to_vec()).await?;
                if still.is_empty() {
                    continue;
                }
                let gone: u64 = redis::cmd("SREM")
                    .arg(&set)
                    .arg(still)
                    .query_async(&mut connection)
                    .await
                    .map_err(self.failed("remove orphaned sockets"))?;
                removed += gone;
            }
        }
        Ok(removed)
    }
}
