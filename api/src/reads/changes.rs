//! The recent changes of a task: a list in Redis, made from the audit trail when it is missing or not the newest.
//!
//! The audit trail follows the commits. What it lacks still waits in the outbox, so the two together are never older
//! than a receipt.

use std::sync::Arc;

use serde::Serialize;
use serde_json::value::RawValue;
use taskflow_core::change::{self, Change};
use taskflow_core::{cache_key, etag};
use taskflow_stores::mongo::{self, event_query};
use taskflow_stores::postgres::{PgPool, outbox};
use taskflow_stores::redis::document::Document;
use uuid::Uuid;

use super::{Answer, Reads, count, turn, version_of};
use crate::problem::Problem;

#[derive(Serialize)]
struct Shown<'c> {
    items: Vec<&'c RawValue>,
}

impl Reads {
    /// The newest changes of a task, if there is one that may be shown to somebody: by its creator and its assignee.
    pub(crate) async fn changes(
        &self,
        mongo: &mongo::Database,
        id: Uuid,
        may: impl Fn(Uuid, Option<Uuid>) -> bool,
    ) -> Result<Option<Answer>, Problem> {
        let key = cache_key::task_recent(id);
        let (state, held) = tokio::join!(self.moment.task(id), self.shelf.recent(&key));
        let Some(state) = state?.filter(|state| !state.deleted && may(state.creator, state.assignee)) else {
            return Ok(None);
        };
        let newest = held.as_ref().map(|held| held.first().and_then(|first| version_of(first.as_bytes())));
        let result = match newest {
            None => "away",
            Some(None) => "miss",
            Some(Some(version)) if version == state.version => "hit",
            Some(Some(_)) => "stale",
        };
        count("changes", result);
        if result == "hit" {
            let body = body(&held.unwrap_or_default());
            return Ok(Some(Answer { etag: etag::of(&body), body: body.into(), hit: true }));
        }
        let (mongo, postgres, shelf) = (mongo.clone(), self.postgres.clone(), Arc::clone(&self.shelf));
        let pagers = Arc::clone(&self.pagers);
        let list = key.clone();
        let make = async move {
            let _turn = turn(pagers).await?;
            let Gathered { changes, whole } = gather(&mongo, &postgres, id, state.version).await?;
            let texts: Vec<String> =
                changes.iter().filter_map(|change| serde_json::to_string(change).ok()).collect();
            let document = Document::new(i64::from(state.version), 0, 0.0, body(&texts));
            if whole {
                shelf.put_recent(list, texts, cache_key::RECENT_TTL_S).await;
            }
            Ok(Arc::new(document))
        };
        let made = self.flights.fly(&key, i64::from(state.version), make).await?;
        // Of what is shown, not of the version: what is not whole yet may still change.
        Ok(Some(Answer { etag: made.etag.clone(), body: made.body.clone(), hit: false }))
    }
}

fn body(changes: &[String]) -> Vec<u8> {
    let items = changes.iter().filter_map(|text| serde_json::from_str(text).ok()).collect();
    serde_json::to_vec(&Shown { items }).unwrap_or_default()
}

/// Whether changes go from a version down without a gap. A task's commands may go through two partitions, each with a way of
/// its own to the trail: a newer one may be there before an older one.
fn is_whole(changes: &[Change], version: i32) -> bool {
    let mut versions: Vec<i32> = changes.iter().map(|change| change.version).collect();
    versions.sort_unstable_by(|a, b| b.cmp(a));
    versions.first().is_some_and(|newest| *newest >= version)
        && versions.windows(2).all(|pair| pair[0] - pair[1] <= 1)
}

struct Gathered {
    changes: Vec<Change>,
    /// Nothing is missing that will come.
    whole: bool,
}

/// What the audit trail has; if some may be missing there, what waits for it too.
async fn gather(
    mongo: &mongo::Database,
    postgres: &PgPool,
    id: Uuid,
    version: i32,
) -> Result<Gathered, Problem> {
    let audited = event_query::changes(mongo, id).await?;
    if is_whole(&audited, version) {
        return Ok(Gathered { changes: change::newest(audited), whole: true });
    }
    let Some(waiting) = outbox::events_of(postgres, id).await? else {
        if audited.iter().any(|change| change.version >= version) {
            // The newest is there. What lies between may have been removed in its time; if not, it comes.
            return Ok(Gathered { changes: change::newest(audited), whole: false });
        }
        return Err(Problem::unavailable("the audit trail is behind with this task's newest changes"));
    };
    // Read again: what left the outbox meanwhile is there now. A task without events was not made by a command, or they
    // have been removed in their time.
    let mut changes = event_query::changes(mongo, id).await?;
    changes.extend(waiting.iter().filter_map(Change::of));
    Ok(Gathered { changes: change::newest(changes), whole: true })
}

#[cfg(test)]
mod tests {
    use serde_json::value::RawValue;
    use taskflow_core::event::EventId;

    use super::*;

    fn changes(versions: &[i32]) -> Vec<Change> {
        let change = |version: &i32| Change {
            version: *version,
            id: EventId([0; 12]),
            kind: "task.updated".to_owned(),
            actorid: Uuid::nil(),
            createdat: chrono::DateTime::UNIX_EPOCH,
            data: RawValue::NULL.to_owned(),
        };
        versions.iter().map(change).collect()
    }

    #[test]
    fn changes_are_whole_without_a_gap_down_from_the_present_version() {
        for (versions, whole) in [
            (&[3, 2, 1][..], true),
            (&[1, 2, 3], true),
            // Several of one version; older ones were removed in their time.
            (&[7, 7, 6, 5], true),
            // A newer one was read than the version is.
            (&[4, 3, 2], true),
            (&[2, 1], false),
            (&[3, 1], false),
            (&[], false),
        ] {
            assert_eq!(is_whole(&changes(versions), 3), whole, "{versions:?}");
        }
    }
}
