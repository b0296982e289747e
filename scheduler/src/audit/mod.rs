//! The seals of the audit trail: making them ([`sealing`]), the files of keys and seals ([`files`]), verifying the trail
//! ([`verify`]) and proving single events of it ([`prove`]). What is right is decided in `taskflow_core::audit`.

mod beside;
mod erasures;
pub mod files;
pub mod prove;
pub mod restored;
mod restores;
pub mod sealing;
pub mod verify;

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// Where the keys are, and where the third copy of the seals goes.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    /// The secret key of the seals. Only the scheduler may read it; `taskflow audit keygen` makes it.
    pub key_path: PathBuf,
    /// The public keys, one a line: who verifies needs them, and nothing else.
    pub public_keys_path: PathBuf,
    /// A folder into which each seal is written, beside the two databases. In production one that can only be added to,
    /// on another machine than theirs.
    pub seals_folder: PathBuf,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            key_path: "taskflow-audit/seal.key".into(),
            public_keys_path: "taskflow-audit/seal.pub".into(),
            seals_folder: "taskflow-audit/seals".into(),
        }
    }
}

/// Works with files on a thread of its own: a disk may be slow.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, files::FileError> + Send + 'static,
) -> Result<T, files::FileError> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| {
        Err(files::FileError {
            path: PathBuf::new(),
            why: format!("the thread that works with files has ended: {error}"),
        })
    })
}
