//! Many updates in one command, each of its own document. The client library has that only for servers from 8.0 on.

use mongodb::Database;
use mongodb::bson::{Document, doc};

use super::{STORE, failed};
use crate::{Kind, StoreError};

/// Updates documents of a collection, each with its `q` and `u`; when it returns they are as safe as the server makes
/// them. What an update does not find is no error.
pub(super) async fn update(
    database: &Database,
    collection: &str,
    updates: Vec<Document>,
    call: &'static str,
) -> Result<(), StoreError> {
    let command = doc! {
        "update": collection, "updates": updates, "ordered": false,
        "writeConcern": { "w": "majority", "j": true },
    };
    let answer = database.run_command(command).await.map_err(failed(call))?;
    judge(&answer, call)
}

/// A command that the server has carried out answers with `ok`, whatever became of its parts.
fn judge(answer: &Document, call: &'static str) -> Result<(), StoreError> {
    if let Some(first) = answer.get_array("writeErrors").ok().and_then(|errors| errors.first()) {
        return Err(StoreError::new(STORE, call, Kind::Data, first));
    }
    match answer.get("writeConcernError") {
        None => Ok(()),
        // Written, and not where it must be: a member of the set that takes over may not have it.
        Some(error) => Err(StoreError::new(STORE, call, Kind::Unavailable, error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_safe_is_no_success() {
        assert!(judge(&doc! { "ok": 1.0, "n": 2, "nModified": 1 }, "update").is_ok());
        let refused = doc! { "ok": 1.0, "writeErrors": [{ "index": 0, "code": 121, "errmsg": "refused" }] };
        assert_eq!(judge(&refused, "update").map_err(|error| error.kind), Err(Kind::Data));
        let unsafe_ = doc! { "ok": 1.0, "n": 1, "writeConcernError": { "code": 64, "errmsg": "waiting for replication timed out" } };
        let error = judge(&unsafe_, "update").expect_err("it is not safe");
        assert!(error.kind == Kind::Unavailable && error.to_string().contains("timed out"), "{error}");
    }
}
