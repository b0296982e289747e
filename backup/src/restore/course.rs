//! The course of a restore: from which base backup, and along which log.

use chrono::SecondsFormat;
use taskflow_core::backup::wal::{Lsn, Segment};

use super::cluster::{Order, Target};
use crate::error::{Error, Result, Trouble};
use crate::keys::Identities;
use crate::manifest::{Kind, Manifest};
use crate::postgres::archive::{self, Archive, Pieces, Reached};
use crate::postgres::timeline::History;
use crate::vault::Vault;

/// The log that a restore takes.
pub(super) struct Log {
    pub pieces: Pieces,
    pub reached: Reached,
    /// The timelines that it goes along.
    pub history: History,
}

/// The base backup that was asked for, or the newest before the target: of the cluster whose log was archived last, since
/// the folder may hold those of an earlier one.
pub(super) async fn choose(vault: &Vault, identities: &Identities, order: &Order<'_>) -> Result<Manifest> {
    let before = |manifest: &Manifest| {
        let ended = manifest.position.through.unwrap_or(manifest.ended_at);
        match &order.target {
            // A name does not say when it was given: whoever knows names the base backup too.
            Target::Newest | Target::Point(_) => true,
            Target::Lsn(lsn) => manifest.position.lsn.is_some_and(|end| end <= *lsn),
            Target::Time(at) => ended <= *at,
            Target::Before { not_before, .. } => not_before.is_none_or(|at| ended <= at),
        }
    };
    if let Some(id) = order.base {
        let manifest = vault.read(id).await?;
        if manifest.kind != Kind::PostgresBase {
            return Err(Error::refused(format!("{id} is a backup of {}, not a base backup", manifest.kind)));
        }
        if !before(&manifest) {
            return Err(Error::refused(format!(
                "{id} ended after that moment; name an older base backup, or none"
            )));
        }
        return Ok(manifest);
    }
    let found = vault.list().await?;
    let bases = found.into_iter().rev().filter_map(|found| found.manifest.ok().flatten());
    let bases: Vec<Manifest> = bases.filter(|manifest| manifest.kind == Kind::PostgresBase).collect();
    if bases.is_empty() {
        return Err(Error::new(
            Trouble::Missing,
            "there is no base backup; a point in time takes one (`taskflow backup create postgres-base`)",
        ));
    }
    let clusters = archive::clusters(vault).await?;
    let early: Vec<Manifest> = bases.into_iter().filter(before).collect();
    let of = |system: &str| {
        let system = system.to_owned();
        move |base: &&Manifest| base.position.system.as_deref() == Some(system.as_str())
    };
    let mut passed = None;
    for (system, reached) in &clusters {
        let archive = Archive::of(vault, system);
        for base in early.iter().filter(of(system)) {
            let Some(end) = base.position.lsn else { continue };
            match way(&archive, base, end, reached, identities).await {
                Ok(_) => return Ok(base.clone()),
                // It lies on a timeline that its cluster has left before.
                Err(error) if error.trouble == Trouble::Refused => passed = passed.or(Some(error)),
                Err(error) => return Err(error),
            }
        }
        // Only a moment may lie before a move to another cluster: that one's data is not what is newest here.
        if order.target.time().is_none() {
            break;
        }
    }
    if let Some(passed) = passed {
        return Err(passed);
    }
    Err(match (clusters.first(), early.first()) {
        (None, Some(base)) => {
            Error::new(Trouble::Missing, format!("there is no archived log for {}", base.id))
        }
        (Some((system, reached)), Some(base)) => Error::new(
            Trouble::Missing,
            format!(
                "there is no base backup of the cluster {system}, whose log was archived last ({}); {} is of another one: \
                 name it, if that is what is wanted",
                reached.at.to_rfc3339_opts(SecondsFormat::Secs, true),
                base.id
            ),
        ),
        (_, None) => Error::new(
            Trouble::Missing,
            "every base backup is later than that moment; it can't be reached any more",
        ),
    })
}

/// The timelines that lead from a base backup to where the archive has come.
async fn way(
    archive: &Archive<'_>,
    base: &Manifest,
    end: Lsn,
    reached: &Reached,
    identities: &Identities,
) -> Result<History> {
    let own = base.position.timeline.unwrap_or(reached.timeline);
    if own == reached.timeline {
        return Ok(History::alone(own));
    }
    let history = archive.history(reached.timeline, identities).await?;
    if history.holds(own, end) {
        return Ok(history);
    }
    Err(Error::refused(format!(
        "{} lies on timeline {own}, which its cluster has left before, when it was restored to an earlier moment: no log \
         leads on from there; name an older base backup, or one that was made since",
        base.id
    )))
}

/// The log that the restore takes: from the base backup's start, through its end, to the target.
pub(super) async fn log(
    archive: &Archive<'_>,
    identities: &Identities,
    base: &Manifest,
    (start, end): (Lsn, Lsn),
    target: &Target,
) -> Result<Log> {
    let none = || Error::new(Trouble::Missing, format!("there is no archived log for {}", base.id));
    let reached = archive.reached().await?.ok_or_else(none)?;
    let history = way(archive, base, end, &reached, identities).await?;
    if reached.lsn < end {
        return Err(Error::new(
            Trouble::Missing,
            format!("the archived log ends at {}, before the end of {}", reached.lsn, base.id),
        ));
    }
    let at = target.time();
    if let Some(at) = at
        && at > reached.at
    {
        return Err(Error::new(
            Trouble::Missing,
            format!(
                "the archived log goes up to {}; leave --to out to restore as far as that",
                reached.at.to_rfc3339_opts(SecondsFormat::Micros, true)
            ),
        ));
    }
    let pieces = archive.pieces(start, &reached, &history, at).await?;
    must_lead_on(&pieces, end, reached.segment_bytes, target)?;
    Ok(Log { pieces, reached, history })
}

/// Where the log has a gap: all of it is wanted, or not even the base backup is whole without it. What lies before the
/// gap can be reached.
pub(super) fn must_lead_on(pieces: &Pieces, end: Lsn, segment_bytes: u64, target: &Target) -> Result<()> {
    let Some(gap) = &pieces.gap else { return Ok(()) };
    let reached = |wanted: Lsn| {
        let numbers = pieces.files.keys().filter_map(|name| Segment::from_name(name, segment_bytes));
        // The place before the first byte that is not needed.
        let last = wanted.0.saturating_sub(1) / segment_bytes.max(1);
        numbers.map(|segment| segment.number).max().is_some_and(|newest| newest >= last)
    };
    let wanted = match target {
        Target::Newest => None,
        Target::Lsn(lsn) => Some(*lsn.max(&end)),
        Target::Time(_) | Target::Point(_) | Target::Before { .. } => Some(end),
    };
    if wanted.is_some_and(reached) { Ok(()) } else { Err(gap.clone()) }
}
