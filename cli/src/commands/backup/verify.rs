//! `taskflow backup verify`: what lies in each place, held against its manifests, and what the second place lacks.

use std::process::ExitCode;

use chrono::TimeDelta;
use serde_json::{Value, json};
use taskflow_backup::error::Trouble;
use taskflow_backup::keys::Identities;
use taskflow_backup::vault::Found;
use taskflow_backup::{Error, Kind, Progress, Vault, manifest};
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
    let mut said = Said { bar: bar::Bar::start(json), rows: Vec::new(), away: None };
    for (number, place) in vault.each_place().enumerate() {
        let copies = number > 0;
        match in_place(&place, ids, all, copies, identities.as_ref(), &mut said).await {
            // The other place is looked at all the same.
            Err(error) if error.trouble == Trouble::Away => said.is_away(&place, error),
            looked => looked?,
        }
    }
    if ids.is_empty() && said.away.is_none() {
        for (id, place) in vault.not_copied(clock::now() - COPYING).await? {
            let why =
                format!("it is not in {place}; `taskflow backup create` and each backup job copy what lacks");
            said.bar.say(&format!("{id}: {why}"));
            said.rows.push(json!({ "id": id, "place": place, "ok": false, "error": why }));
        }
    }
    let Said { bar, rows, away } = said;
    bar.end();
    if rows.is_empty() {
        return Err(Exit::failed(format!("there are no backups in {}", vault.place.name())));
    }
    if json {
        println!("{}", json!(rows));
    }
    match away {
        Some(error) => Err(error.into()),
        None if rows.iter().all(|row| row["ok"] == true) => Ok(ExitCode::SUCCESS),
        None => Ok(ExitCode::from(FAILED)),
    }
}

/// What was found so far.
struct Said {
    bar: bar::Bar,
    rows: Vec<Value>,
    /// Why a place could not be looked at.
    away: Option<Error>,
}

impl Said {
    fn is_away(&mut self, vault: &Vault, error: Error) {
        self.bar.say(&error.to_string());
        self.rows.push(json!({ "place": vault.place.name(), "ok": false, "error": error.text }));
        self.away = Some(error);
    }
}

/// One place. `copies`: what was made just now may not have come here yet.
async fn in_place(
    vault: &Vault,
    ids: &[String],
    all: bool,
    copies: bool,
    identities: Option<&Identities>,
    said: &mut Said,
) -> Result<(), Error> {
    let place = vault.place.name();
    let found = vault.list().await?;
    let is_on_its_way = |id: &str| {
        let whole = found.iter().any(|one| one.id == id && !matches!(one.manifest, Ok(None)));
        copies && !whole && manifest::read_id(id).is_some_and(|(at, _)| at > clock::now() - COPYING)
    };
    for id in wanted(&found, ids, all) {
        if is_on_its_way(&id) {
            said.bar.say(&format!("{id} in {place}: not there yet"));
            continue;
        }
        match one(vault, &id, identities, said.bar.progress()).await {
            Ok(deep) => {
                said.rows.push(json!({ "id": id, "place": place, "ok": true, "content": deep }));
                let bound = if deep { "" } else { " as the files lie there; their content takes a key" };
                said.bar.say(&format!("{id} in {place}: good{bound}"));
            }
            Err(error) if matches!(error.trouble, Trouble::Away | Trouble::Stopped) => return Err(error),
            Err(error) => {
                said.rows.push(json!({ "id": id, "place": place, "ok": false, "error": error.text }));
                said.bar.say(&format!("{id} in {place}: {error}"));
            }
        }
    }
    Ok(())
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
