//! Over the live stores, after a backup of them: the restored database takes the live one's name, and the old one is kept
//! under another. What can't be renamed (MongoDB's database) is removed and filled again; a run that dies goes on.

use serde::Serialize;
use taskflow_core::system_event;
use taskflow_stores::mongo::{Database, refill};
use taskflow_stores::postgres::{PgPool, backup as admin, restore_epochs, system_events, wal};
use taskflow_stores::{Kind as StoreKind, clock};

use super::agree::must_rest;
use super::{Restored, mongo as documents, postgres as dumps};
use crate::error::{Error, Result};
use crate::keys::Identities;
use crate::manifest::{Kind, Manifest};
use crate::mongo::dump as trail;
use crate::postgres::dump;
use crate::progress::Progress;
use crate::vault::Vault;

/// Begins the mark of a live database that is being emptied; the backup of it follows.
const EMPTIED: &str = "emptied after";

/// What was done.
#[derive(Debug, Clone, Serialize)]
pub struct Replaced {
    pub restored: Restored,
    /// The backup of what was live.
    pub saved: String,
    /// Where the old database is now, if it is still there.
    pub old: Option<String>,
    /// The restore point of just before, where the role may note one.
    pub restore_point: Option<String>,
}

/// The installation, and how its Postgres is logged in to.
pub struct Live<'l> {
    pub postgres: &'l PgPool,
    pub url: &'l str,
    pub mongo: &'l Database,
    /// Who does this.
    pub author: &'l str,
}

impl Live<'_> {
    /// Writes the event of a sensitive operation into the database that will be live: workers carry it on.
    async fn tell(&self, postgres: &PgPool, backup: &str, saved: &str) -> Result<()> {
        let event = system_event::replaced(clock::new_id(), backup, saved, self.author, clock::now());
        match system_events::record(postgres, &event).await {
            // A backup of an old schema has no table for it, and is restored all the same.
            Err(error) if error.kind == StoreKind::Bug => {
                tracing::warn!(%error, backup, "The audit trail can't be told that a backup took the place of what was live.");
                Ok(())
            }
            told => Ok(told?),
        }
    }
}

/// Puts a backup in the place of the live store that it is of.
pub async fn replace(
    vault: &Vault,
    identities: &Identities,
    manifest: &Manifest,
    live: &Live<'_>,
    progress: &Progress,
) -> Result<Replaced> {
    match manifest.kind {
        Kind::Postgres => postgres(vault, identities, manifest, live, progress).await,
        Kind::MongoDb | Kind::MongoDbIncremental => {
            mongodb(vault, identities, manifest, live, progress).await
        }
        other => Err(Error::refused(format!(
            "a backup of {other} takes the place of nothing; it is restored with --data"
        ))),
    }
}

/// Why what is live is backed up: the rules for keeping hold such a backup for longer.
fn reason(id: &str) -> String {
    format!("before {id} took the place of what was live")
}

async fn postgres(
    vault: &Vault,
    identities: &Identities,
    manifest: &Manifest,
    live: &Live<'_>,
    progress: &Progress,
) -> Result<Replaced> {
    let name = live.postgres.connect_options().get_database().unwrap_or_default().to_owned();
    // A database can't be renamed from within.
    let server = admin::other_database(live.postgres, "postgres");
    let stamp = clock::now().format("%Y%m%d_%H%M%S");
    let (new, old) = (format!("{name}_new_{stamp}"), format!("{name}_before_{stamp}"));
    must_rest(live.postgres).await?;
    let restore_point = wal::note_place(live.postgres, "restore").await;
    let saving = vault.because(reason(&manifest.id));
    let saved = dump::create(&saving, live.url, live.postgres, progress).await?;
    let order = dumps::Order { manifest, into: &new, url: live.url, pool: &server, only: None };
    let mut restored = dumps::restore(vault, identities, order, progress).await?;
    let told = admin::other_database(live.postgres, &new);
    let heard = live.tell(&told, &manifest.id, &saved.id).await;
    told.close().await;
    heard.map_err(|error| {
        error.during(format!("the live database is as it was; the restored one is {new}"))
    })?;
    // Whoever began to work meanwhile has written what would be lost.
    must_rest(live.postgres).await?;
    // Both or none: there is a live database whatever dies.
    admin::rename_databases(&server, &[(&name, &old), (&new, &name)]).await.map_err(|error| {
        Error::from(error).during(format!("the live database is as it was; the restored one is {new}"))
    })?;
    restored.database = name;
    Ok(Replaced { restored, saved: saved.id, old: Some(old), restore_point })
}

async fn mongodb(
    vault: &Vault,
    identities: &Identities,
    manifest: &Manifest,
    live: &Live<'_>,
    progress: &Progress,
) -> Result<Replaced> {
    must_rest(live.postgres).await?;
    // Before anything is removed: that it can be restored at all.
    let chain = super::chain::read(vault, &manifest.id).await?;
    for one in &chain {
        vault.verify(one, Some(identities), progress).await?;
    }
    let mark = refill::mark(live.mongo).await?.map(|(backups, _)| backups);
    // A run that died has looked before it removed anything.
    if mark.is_none() {
        super::fits::check_live(&chain, live.mongo).await?;
    }
    let ids: Vec<String> = chain.into_iter().map(|one| one.id).collect();
    let mut restore_point = None;
    // Before anything is removed: nobody works on half a trail, nor on a whole one with which Postgres does not agree.
    let begin_epoch = async || restore_epochs::begin(live.postgres, live.author).await;
    let saved = match mark {
        // A run that died while it emptied the database: what is left of it is saved.
        Some(mark) if mark.first().is_some_and(|first| first == EMPTIED) => {
            let saved = mark.into_iter().nth(1).unwrap_or_default();
            begin_epoch().await?;
            empty(live.mongo, &ids).await?;
            saved
        }
        // A run that died: what was live is saved already, and what is there now is half of what it should be.
        Some(_) => {
            begin_epoch().await?;
            let why = reason(&manifest.id);
            let saved = vault.newest_of(Kind::MongoDb, |one| one.reason.as_ref() == Some(&why)).await?;
            saved.map(|saved| saved.id).unwrap_or_default()
        }
        None => {
            restore_point = wal::note_place(live.postgres, "restore").await;
            let saving = vault.because(reason(&manifest.id));
            let saved = trail::create(&saving, live.mongo, clock::now(), progress).await?.id;
            // Whoever began to work meanwhile has written what is not saved and would be lost.
            must_rest(live.postgres).await?;
            begin_epoch().await?;
            // Before anything is removed: an empty database without a mark would be backed up as the newest good one.
            refill::set_mark(live.mongo, &[EMPTIED.to_owned(), saved.clone()], &[]).await?;
            taskflow_stores::crash::point("marked");
            empty(live.mongo, &ids).await?;
            saved
        }
    };
    let restored = documents::restore(vault, identities, &manifest.id, live.mongo, None, progress).await?;
    live.tell(live.postgres, &manifest.id, &saved)
        .await
        .map_err(|error| error.during("all is restored, but the audit trail could not be told".to_owned()))?;
    Ok(Replaced { restored, saved, old: None, restore_point })
}

/// Removes what is live but for the mark, which is the restore's own from then on.
async fn empty(database: &Database, ids: &[String]) -> Result<()> {
    refill::empty(database).await?;
    taskflow_stores::crash::point("emptied");
    Ok(refill::set_mark(database, ids, &[]).await?)
}
