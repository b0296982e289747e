//! Whether a server of MongoDB can take a backup, looked at before anything is written: its version, and the room on its
//! disk where it tells.

use taskflow_stores::mongo::{self, Database, upkeep};

use super::space;
use crate::error::{Error, Result, Trouble};
use crate::manifest::Manifest;

/// Looks; returns what is to be said of the room. `freed` is what becomes free before it is filled; `None` leaves the room
/// alone.
///
/// # Errors
/// The server is older than the one that the backups are of, or its disk has no room for them.
pub(super) async fn check(
    backups: &[Manifest],
    database: &Database,
    freed: Option<u64>,
) -> Result<Option<String>> {
    let server = mongo::version(database).await?;
    for manifest in backups {
        if is_older(&server, &manifest.server) {
            return Err(Error::new(
                Trouble::Newer,
                format!(
                    "{} was made by MongoDB {}, this server is {server}: restore into that version or a later one",
                    manifest.id, manifest.server
                ),
            ));
        }
    }
    let Some(freed) = freed else { return Ok(None) };
    let wanted = backups.iter().map(|manifest| manifest.restored_bytes).sum();
    let told = match upkeep::room(database).await? {
        Some(free) => {
            space::must_have("the disk of MongoDB's server", free + freed, wanted)?;
            format!("the disk of MongoDB's server had {} MiB free before", free >> 20)
        }
        None => {
            "the room on the disk of MongoDB's server is not known: the server does not tell it".to_owned()
        }
    };
    Ok(Some(told))
}

/// The same before a live database is removed, which makes the room free that it takes.
pub(super) async fn check_live(backups: &[Manifest], live: &Database) -> Result<()> {
    check(backups, live, Some(upkeep::taken(live).await?)).await.map(|_| ())
}

/// Whether a server is of an older line (the first two numbers) than another. What is no version is not compared.
fn is_older(server: &str, than: &str) -> bool {
    let line = |version: &str| -> Option<(u32, u32)> {
        let mut numbers = version.split('.').map(str::parse);
        Some((numbers.next()?.ok()?, numbers.next()?.ok()?))
    };
    line(server).zip(line(than)).is_some_and(|(server, than)| server < than)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_versions_are_compared_as_numbers() {
        for (server, than, older) in [
            ("7.0.12", "7.0.14", false),
            ("7.0.12", "8.0.0", true),
            ("10.0.1", "8.2.0", false),
            ("7.0.1", "7.3.0", true),
            ("unknown", "7.0.0", false),
            ("7.0.0", "unknown", false),
        ] {
            assert_eq!(is_older(server, than), older, "{server} and {than}");
        }
    }
}
