//! What a verification asks about single events: who has ordered an erasure, and where an event belongs that is no part of
//! the batches that were looked at.

use std::collections::HashSet;

use taskflow_core::audit::finding::{Finding, Kind};
use taskflow_core::audit::link;
use taskflow_core::audit::trail::{self, Counts, Known, Seen};
use taskflow_core::event::EventId;
use taskflow_stores::postgres::{audit_chain, audit_seals};
use uuid::Uuid;

use super::verify::{Error, Verifier};

impl Verifier {
    /// Whether somebody has ordered what was erased.
    pub(super) async fn erased(&mut self, erased: &[(EventId, Uuid, Uuid)]) -> Result<(), Error> {
        let subjects: HashSet<Uuid> =
            erased.iter().flat_map(|(_, entity, actor)| [*entity, *actor]).collect();
        if subjects.is_empty() {
            return Ok(());
        }
        let subjects: Vec<Uuid> = subjects.into_iter().collect();
        let ordered = audit_seals::ordered(&self.stores.postgres, &subjects).await?;
        for (id, entity, actor) in erased {
            let asked = |scope: &str, subject: &Uuid| ordered.contains(&(scope.to_owned(), *subject));
            if !asked("entity", entity) && !asked("actor", actor) {
                let detail = "what it told was erased, and there is no order to do so";
                self.report.add(Finding::new(Kind::ErasedUnasked, detail).event(*id));
            }
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
        for stray in strays {
            let place = &stray.place;
            let classes =
                texts.get(&(place.partition.clone(), place.number)).and_then(|text| link::read(text));
            let known = Known {
                sealed: self.newest.as_ref().map_or(0, |seal| seal.head(&place.partition).number),
                begun: self
                    .first
                    .as_ref()
                    .map_or((0, 0), |seal| (seal.head(&place.partition).number, seal.at_ms)),
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
