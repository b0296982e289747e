//! The open sockets of the live stream: `ws:connection:{socketId}` says whose one is, `ws:user:{userId}:connections`
//! which ones a user has.
//!
//! A process that dies leaves its entries behind. They go by their time to live, and before that as soon as their owner
//! comes again: a socket's id begins with its process, and a process says from time to time that it lives.

use std::collections::HashSet;

use taskflow_core::cache_key;
use uuid::Uuid;

use super::Redis;
use crate::StoreError;

/// An open socket, as it is refreshed.
#[derive(Debug, Clone)]
pub struct Open {
    pub socket: String,
    pub user: Uuid,
    /// The digest of the session that it belongs to, if it belongs to one.
    pub session: Option<String>,
}

/// Sockets in one round trip.
const CHUNK: usize = 200;

impl Redis {
    /// Enters a socket. Returns how many its user has, this one included; first those of dead processes are removed, and
    /// those of this one that are not `here` any more: Redis may have been away when they closed.
    pub async fn enter_socket(
        &self,
        process: Uuid,
        socket: &str,
        user: Uuid,
        here: impl FnOnce() -> HashSet<String>,
    ) -> Result<usize, StoreError> {
        let own = process.to_string();
        let mut connection = self.connection().await?;
        let set = self.key(&cache_key::sockets_of(user));
        let known: Vec<String> = redis::cmd("SMEMBERS")
            .arg(&set)
            .query_async(&mut connection)
            .await
            .map_err(self.failed("list a user's sockets"))?;
        // After that: who has come since is not known there.
        let here = here();
        let mut dead = Vec::new();
        for some in known.chunks(CHUNK) {
            let mut pipeline = redis::pipe();
            for id in some {
                let process = id.split_once(':').map_or("", |(process, _)| process);
                pipeline.cmd("EXISTS").arg(self.key(&cache_key::socket(id)));
                pipeline.cmd("EXISTS").arg(self.key(&cache_key::socket_process(process)));
            }
            let alive: Vec<bool> = pipeline
                .query_async(&mut connection)
                .await
                .map_err(self.failed("look at a user's sockets"))?;
            let is_gone = |id: &str| {
                !here.contains(id) && id.split_once(':').is_some_and(|(process, _)| process == own)
            };
            let gone = some.iter().zip(alive.chunks(2));
            let gone = gone.filter(|(id, alive)| alive.contains(&false) || is_gone(id));
            dead.extend(gone.map(|(id, _)| id.clone()));
        }
        let mut pipeline = redis::pipe();
        for id in &dead {
            pipeline.cmd("SREM").arg(&set).arg(id).ignore();
            pipeline.cmd("UNLINK").arg(self.key(&cache_key::socket(id))).ignore();
        }
        pipeline.cmd("SET").arg(self.key(&cache_key::socket_process(&own))).arg(1);
        pipeline.arg("EX").arg(cache_key::SOCKET_PROCESS_TTL_S).ignore();
        pipeline.cmd("SET").arg(self.key(&cache_key::socket(socket))).arg(user.to_string());
        pipeline.arg("EX").arg(cache_key::SOCKET_TTL_S).ignore();
        pipeline.cmd("SADD").arg(&set).arg(socket).ignore();
        pipeline.cmd("EXPIRE").arg(&set).arg(cache_key::SOCKET_TTL_S).ignore();
        pipeline.cmd("SCARD").arg(&set);
        let (count,): (usize,) =
            pipeline.query_async(&mut connection).await.map_err(self.failed("enter a socket"))?;
        Ok(count)
    }

    /// Removes sockets that have closed.
    pub async fn remove_sockets(&self, sockets: &[(String, Uuid)]) -> Result<(), StoreError> {
        let mut connection = self.connection().await?;
        for some in sockets.chunks(CHUNK) {
            let mut pipeline = redis::pipe();
            for (socket, user) in some {
                pipeline.cmd("UNLINK").arg(self.key(&cache_key::socket(socket))).ignore();
                pipeline.cmd("SREM").arg(self.key(&cache_key::sockets_of(*user))).arg(socket).ignore();
            }
            pipeline.query_async::<()>(&mut connection).await.map_err(self.failed("remove sockets"))?;
        }
        Ok(())
    }

    /// Says that a process and its sockets live. Returns those whose session has ended.
    pub async fn refresh_sockets(&self, process: Uuid, open: &[Open]) -> Result<Vec<String>, StoreError> {
        let mut connection = self.connection().await?;
        let mut ended = Vec::new();
        for some in open.chunks(CHUNK) {
            let mut pipeline = redis::pipe();
            pipeline.cmd("SET").arg(self.key(&cache_key::socket_process(&process.to_string()))).arg(1);
            pipeline.arg("EX").arg(cache_key::SOCKET_PROCESS_TTL_S).ignore();
            for Open { socket, user, session } in some {
                pipeline.cmd("SET").arg(self.key(&cache_key::socket(socket))).arg(user.to_string());
                pipeline.arg("EX").arg(cache_key::SOCKET_TTL_S).ignore();
                // Redis may have lost them.
                let set = self.key(&cache_key::sockets_of(*user));
                pipeline.cmd("SADD").arg(&set).arg(socket).ignore();
                pipeline.cmd("EXPIRE").arg(&set).arg(cache_key::SOCKET_TTL_S).ignore();
                if let Some(session) = session {
                    pipeline.cmd("EXISTS").arg(self.key(&cache_key::session(session)));
                }
            }
            let there: Vec<bool> =
                pipeline.query_async(&mut connection).await.map_err(self.failed("refresh sockets"))?;
            let with_session = some.iter().filter(|one| one.session.is_some());
            let gone = with_session.zip(there).filter(|(_, there)| !there);
            ended.extend(gone.map(|(one, _)| one.socket.clone()));
        }
        Ok(ended)
    }
}
