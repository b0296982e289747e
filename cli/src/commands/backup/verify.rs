//! `taskflow backup verify`: what lies in each place, held against its manifests, and what the second place lacks.

use std::process::ExitCode;

use chrono::TimeDelta;
use serde_json::json;
use taskflow_backup::error::Trouble;
use taskflow_backup::keys::Identities;
use taskflow_backup::vault::Found;
use taskflow_backup::{Error, Kind, Progress, Vault};
use taskflow_stores::clock;

use super::bar;
use crate::exit::{Exit, FAILED};

/// A backup that ended less than this ago may still be on its way to the second place.
const COPYING: TimeDelta = TimeDelta::hours(1);

pub(super) async fn run(
    vault: &Vault,
    ids: &[String],
    all: bool,
    shallow: bool,
    json: bool,
) -> Result<ExitCode, Exit> {
    let identities = if shallow { None } else { Some(vault.identities()?) };
    let bar = bar::Bar::start(json);
    let mut rows = Vec::new();
    for vault in vault.each_place() {
        let place = vault.place.name();
        let found = vault.list().await?;
        for id in wanted(&found, ids, all) {
            match one(&vault, &id, identities.as_ref(), bar.progress()).await {
                Ok(deep) => {
                    rows.push(json!({ "id": id, "place": place, "ok": true, "content": deep }));
                    let bound = if deep { "" } else { " as the files lie there; their content takes a key" };
                    bar.say(&format!("{id} in {place}: good{bound}"));
                }
                Err(error) if matches!(error.trouble, Trouble::Away | Trouble::Stopped) => {
                    return Err(error.into());
                }
                Err(error) => {
                    rows.push(json!({ "id": id, "place": place, "ok": false, "error": error.text }));
                    bar.say(&format!("{id} in {place}: {error}"));
                }
            }
        }
    }
    if all {
        for (id, place) in vault.not_copied(clock::now() - COPYING).await? {
            let why =
                format!("it is not in {place}; `taskflow backup create` and each backup job copy what lacks");
            bar.say(&format!("{id}: {why}"));
            rows.push(json!({ "id": id, "place": place, "ok": false, "error": why }));
        }
    }
    bar.end();
    if rows.is_empty() {
        return Err(Exit::failed(format!("there are no backups in {}", vault.place.name())));
    }
    let good = rows.iter().all(|row| row["ok"] == true);
    if json {
        println!("{}", json!(rows));
    }
    Ok(if good { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

/// Those that were named, all, or the newest of each kind.
fn wanted(found: &[Found], ids: &[String], all: bool) -> Vec<String> {
    if !ids.is_empty() {
        return ids.to_vec();
    }
    if all {
        return found.iter().map(|found| found.id.clone()).collect();
    }
    let newest = |kind: Kind| found.iter().rev().find(|found| found.kind == kind && found.good().is_some());
    Kind::ALL.into_iter().filter_map(newest).map(|found| found.id.clone()).collect()
}

/// Whether the content was looked at too.
async fn one(
    vault: &Vault,
    id: &str,
    identities: Option<&Identities>,
    progress: &Progress,
) -> Result<bool, Error> {
    let manifest = vault.read(id).await?;
    // Without a key, an encrypted one can only be looked at from outside.
    let open = identities.filter(|keys| manifest.recipients.is_empty() || !keys.is_empty());
    vault.verify(&manifest, open, progress).await?;
    Ok(open.is_some())
}
