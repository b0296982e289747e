//! What the jobs that make backups have in common.

use taskflow_backup::{Manifest, Progress, Vault};

use super::Job;
use crate::context::{Context, Failure};

/// What holds of each of them, unless it says otherwise.
pub(super) const DEFAULT: Job =
    Job { jitter_s: 60, timeout_s: 6 * 3_600, retries: 4, word: Some("backup"), ..Job::DEFAULT };

/// The backups, if there is something to do: not for a dry run, nor where none are made, nor for a leader of the past.
pub(super) async fn begin(context: &Context) -> Result<Option<Vault>, Failure> {
    let vault = vault(context)?;
    if context.dry_run() {
        return Ok(None);
    }
    context.fence.holds().await?;
    Ok(vault)
}

/// The backups, unless none are made here.
pub(super) fn vault(context: &Context) -> Result<Option<Vault>, Failure> {
    if !context.stores.backups.settings.is_on() {
        context.set("skipped", "backup.destination is not set, so no backups are made");
        return Ok(None);
    }
    Ok(Some(Vault::open(&context.stores.backups.settings)?))
}

/// Ends with the run.
pub(super) fn progress(context: &Context) -> Progress {
    Progress::stopped_by(context.stop.token())
}

/// Tells of a backup that is whole, and copies it to the second place.
pub(super) async fn made(context: &Context, vault: &Vault, manifest: &Manifest) -> Result<(), Failure> {
    context.set("backup", manifest.id.as_str());
    context.set("bytes", manifest.bytes());
    context.set("content_bytes", manifest.content_bytes());
    for note in &manifest.notes {
        context.log(note.as_str());
    }
    context.stores.backups.known.note(manifest);
    let copied = vault
        .copy(&progress(context))
        .await
        .map_err(|error| error.during(format!("{} is made, but not copied to backup.second", manifest.id)))?;
    if !copied.is_empty() {
        context.set("copied", copied);
    }
    Ok(())
}
