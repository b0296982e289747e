//! Backups as the API shows them: the same as `taskflow backup list` and `show` with `--json`.

use futures_util::future::BoxFuture;
use serde_json::{Value, json};
use taskflow_backup::{Settings, Vault};

use super::print::row_json;

/// Looks at the place of the backups whenever it is asked.
pub(crate) struct Look(pub(crate) Settings);

impl taskflow_api::Backups for Look {
    fn list(&self) -> BoxFuture<'_, Result<Vec<Value>, String>> {
        Box::pin(async {
            let found = async { Vault::open(&self.0)?.list().await };
            Ok(found.await.map_err(|error| error.to_string())?.iter().map(row_json).collect())
        })
    }

    fn show<'b>(&'b self, id: &'b str) -> BoxFuture<'b, Result<Option<Value>, String>> {
        Box::pin(async move {
            let found = async { Vault::open(&self.0)?.list().await };
            let found = found.await.map_err(|error| error.to_string())?;
            let found = found.into_iter().find(|found| found.id == id);
            Ok(found.map(|found| {
                let mut row = row_json(&found);
                row["manifest"] = json!(found.good());
                row["proof"] = json!(found.proof);
                row
            }))
        })
    }
}
