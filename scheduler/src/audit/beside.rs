//! What a verification asks about single events: where one belongs that is no part of the batches that were looked at.

use std::collections::{HashMap, HashSet};

use taskflow_core::audit::link;
use taskflow_core::audit::seal::{Head, Seal};
use taskflow_core::audit::trail::{self, Counts, Known, Seen};
use taskflow_stores::mongo;
use taskflow_stores::postgres::audit_chain;

use super::verify::{Error, STRAYS, Verifier};

/// No event is of later: the year 9999, as an insertion may be dated.
const LATEST_MS: i64 = 253_402_300_799_999;

impl Verifier {
    /// Looks at what was made before the first batch that is vouched for, or says so: events from before there were
    /// leaves, and what was slipped in among them.
    pub(super) async fn before(&mut self, before_ms: i64) -> Result<(), Error> {
        let begun_ms = self.first.as_ref().map_or(0, |seal| seal.at_ms);
        let mut strays = Vec::new();
        let mut window =
            mongo::audit_trail::window(&self.stores.mongo, i64::MIN, before_ms.saturating_sub(1)).await?;
        while let Some(seen) = window.next().await? {
            self.report.counts.undone += u64::from(seen.undone);
            let place = &seen.place;
            let is_old = place.leaf.is_none()
                && seen.created_ms <= begun_ms
                && self
                    .first_links
                    .get(&place.partition)
                    .is_some_and(|first| (1..*first).contains(&place.number));
            if is_old {
                self.report.counts.unsealed += 1;
            } else {
                strays.push(seen);
                self.some_strays(&mut strays).await?;
            }
        }
        strays.extend(mongo::audit_trail::undated(&self.stores.mongo, STRAYS).await?);
        self.strays(&strays).await
    }

    /// Looks at what was made since the newest seal. No seal vouches for it yet, but Postgres's links do: a batch has its
    /// link before its events are told. To be called at the end.
    pub async fn since_newest(&mut self) -> Result<(), Error> {
        let Some(newest) = self.newest.clone().filter(|_| !self.set_back) else { return Ok(()) };
        let heads = audit_chain::heads(&self.stores.postgres).await?;
        let leads_on = |head: &Head| head.number >= newest.head(&head.partition).number;
        if !heads.iter().all(leads_on) {
            // Postgres was set back: the seals tell of that.
            return Ok(());
        }
        let number = newest.number + 1;
        let not_yet = Seal { number, at_ms: LATEST_MS, heads, restored: None, ..newest.clone() };
        self.stretch(Some(&newest), &not_yet).await.map(|_| ())
    }

    /// Judges those that there are so far, once they are many: memory is bounded.
    pub(super) async fn some_strays(&mut self, strays: &mut Vec<Seen>) -> Result<(), Error> {
        if strays.len() >= STRAYS {
            self.strays(strays).await?;
            strays.clear();
        }
        Ok(())
    }

    /// Judges events that belong to no batch of the stretch.
    pub(super) async fn strays(&mut self, strays: &[Seen]) -> Result<(), Error> {
        if strays.is_empty() {
            return Ok(());
        }
        let keys: HashSet<(String, i64)> =
            strays.iter().map(|stray| (stray.place.partition.clone(), stray.place.number)).collect();
        let keys: Vec<(String, i64)> = keys.into_iter().collect();
        let texts = audit_chain::classes_of(&self.stores.postgres, &keys).await?;
        // After the events were read: whatever is told has its link by now, and the chain leads there.
        let heads = audit_chain::heads(&self.stores.postgres).await?;
        let heads: HashMap<&str, i64> =
            heads.iter().map(|head| (head.partition.as_str(), head.number)).collect();
        for stray in strays {
            let place = &stray.place;
            let classes =
                texts.get(&(place.partition.clone(), place.number)).and_then(|text| link::read(text));
            let head = |seal: &Option<Seal>| seal.as_ref().map(|seal| seal.head(&place.partition).number);
            let known = Known {
                set_back: self.set_back,
                sealed: head(&self.newest).unwrap_or(0),
                head: heads.get(place.partition.as_str()).copied().unwrap_or(0),
                begun: (
                    match self.first_links.get(&place.partition) {
                        Some(first) => *first - 1,
                        None => head(&self.first).unwrap_or(0),
                    },
                    self.first.as_ref().map_or(0, |seal| seal.at_ms),
                ),
                classes: classes.as_deref(),
            };
            let mut counts = Counts::default();
            let finding = trail::stray(stray, known, &mut counts);
            self.report.counts.add(&counts);
            if let Some(finding) = finding {
                self.report.add(finding);
            }
        }
        Ok(())
    }
}
