//! Verifies the trail, from one seal to the next.
//!
//! Between two seals nothing is taken on trust: the links of each chain must lead from the head that the first seal has
//! to that of the second, and the events must have the roots that the links have. So a verification may begin at any
//! seal. Memory is bounded: batches go through in slices, and findings end at a number.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::RangeInclusive;

use chrono::{DateTime, Utc};
use serde::Serialize;
use taskflow_core::audit::chain::{self, Batch};
use taskflow_core::audit::copies::{self, Place, Trusted};
use taskflow_core::audit::finding::{Finding, Kind};
use taskflow_core::audit::key::PublicKey;
use taskflow_core::audit::link::ClassRoot;
use taskflow_core::audit::seal::{Head, Seal};
use taskflow_core::audit::trail::{self, Counts, Seen, Trail};
use taskflow_stores::postgres::{audit_chain, audit_seals};
use taskflow_stores::{StoreError, mongo};

use super::blocking;
use super::erasures::Emptied;
use super::files::{FileError, Outside};
use super::restores::{self, Restore};
use crate::Stores;

/// Seals that are read at once.
pub const SEALS_TOGETHER: i64 = 200;
/// Links that are read at once.
const LINKS_TOGETHER: i64 = 2_000;
/// Batches whose events are looked at together: of the largest batches, a quarter of a million events.
const SLICE: usize = 1_000;
/// Batches of which the times are sorted together.
const SORTED: usize = 20_000;
/// Stray events that are looked into together, and findings that are told of.
pub(super) const STRAYS: usize = 5_000;
const FINDINGS: usize = 1_000;

/// What could not be done, though nothing is wrong with the trail.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    File(#[from] FileError),
}

/// What a verification has shown.
#[derive(Debug, Clone, Default, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    pub seals: u64,
    #[serde(flatten)]
    pub counts: Counts,
    /// Batches that were not looked at, since their events may be on their way.
    pub pending: u64,
    pub findings: Vec<Finding>,
    /// How many there are of each kind, those too that are not told of one by one.
    pub found: BTreeMap<&'static str, u64>,
    /// What is not wrong, but should be known.
    pub notes: BTreeSet<String>,
}

impl Report {
    pub(super) fn add(&mut self, finding: Finding) {
        let same = |one: &Finding| one.kind == finding.kind && one.event == finding.event;
        if finding.event.is_some() && self.findings.iter().any(same) {
            return;
        }
        *self.found.entry(finding.kind.as_str()).or_default() += 1;
        if self.findings.len() < FINDINGS {
            self.findings.push(finding);
        }
    }

    fn is_full(&self) -> bool {
        self.findings.len() >= FINDINGS
    }
}

/// One verification.
pub struct Verifier {
    pub(super) stores: Stores,
    keys: Vec<PublicKey>,
    outside: Option<Outside>,
    now: DateTime<Utc>,
    /// The newest seal that can be believed: it says what may be gone by now, and how far the chains are sealed.
    pub(super) newest: Option<Seal>,
    /// The first one: what is older need not have a leaf.
    pub(super) first: Option<Seal>,
    /// Of each partition the first batch with leaves.
    pub(super) first_links: HashMap<String, i64>,
    /// Postgres may be older than the trail: what it does not know of need not be wrong.
    pub(super) set_back: bool,
    restores: Vec<Restore>,
    present: HashMap<String, i64>,
    /// The stretch of the trail that was read last, with those before that touch it (milliseconds since 1970).
    covered: Option<RangeInclusive<i64>>,
    pub(super) report: Report,
}

impl Verifier {
    /// Prepares a verification. `outside` is `None` where that place can't be reached.
    pub async fn new(
        stores: Stores,
        keys: Vec<PublicKey>,
        outside: Option<Outside>,
        now: DateTime<Utc>,
    ) -> Result<Self, Error> {
        let mut report = Report::default();
        if outside.is_none() {
            report.notes.insert(
                "the copies of the seals outside both databases were not compared: their folder is not here"
                    .into(),
            );
        }
        let mut newest = None;
        // The last few: a changed one at the end must not blind us.
        let (last, forged) = Self::last_number(&stores, &keys, outside.as_ref()).await?;
        forged.into_iter().for_each(|finding| report.add(finding));
        for (_, signed) in audit_seals::read(&stores.postgres, last - SEALS_TOGETHER, last).await? {
            newest = signed.open(&keys).ok().or(newest);
        }
        let first = audit_seals::read(&stores.postgres, 1, 1).await?;
        let first = first.into_iter().find_map(|(_, signed)| signed.open(&keys).ok());
        let restores = restores::read(&stores.postgres, &keys).await?;
        Ok(Self {
            first_links: audit_chain::first_links(&stores.postgres).await?,
            set_back: false,
            stores,
            keys,
            outside,
            now,
            newest,
            first,
            restores,
            present: HashMap::new(),
            covered: None,
            report,
        })
    }

    /// The number of the newest seal in any place, and what stands above it without being one.
    async fn last_number(
        stores: &Stores,
        keys: &[PublicKey],
        outside: Option<&Outside>,
    ) -> Result<(i64, Vec<Finding>), Error> {
        let mut places = vec![
            ("mongodb", mongo::audit_seals::newest(&stores.mongo, keys).await?),
            ("postgres", audit_seals::believed(&stores.postgres, keys).await?),
        ];
        if let Some(outside) = outside.cloned() {
            let keys = keys.to_vec();
            places.push(("outside", blocking(move || outside.extent(&keys)).await?));
        }
        let last = places.iter().map(|(_, newest)| newest.believed).max().unwrap_or(0);
        let forged = places.into_iter().filter_map(|(place, newest)| {
            let number = newest.forged.filter(|number| *number > last)?;
            let detail = "it stands above the newest seal, and none of the known keys has signed it";
            Some(Finding::new(Kind::SealChanged, detail).seal(number, Some(place)))
        });
        Ok((last, forged.collect()))
    }

    /// The number of the newest seal in any place.
    pub async fn last(&self) -> Result<i64, Error> {
        Ok(Self::last_number(&self.stores, &self.keys, self.outside.as_ref()).await?.0)
    }

    pub fn report(&self) -> &Report {
        &self.report
    }

    /// Ends the verification.
    pub fn end(mut self) -> Report {
        let before = count(&self.report.findings);
        trail::conclude(&mut self.report.findings, &self.present);
        for (kind, number) in count(&self.report.findings) {
            let found = self.report.found.entry(kind).or_default();
            *found = (*found + number).saturating_sub(before.get(kind).copied().unwrap_or(0));
        }
        let now = count(&self.report.findings);
        for (kind, number) in before.into_iter().filter(|(kind, _)| !now.contains_key(kind)) {
            let found = self.report.found.entry(kind).or_default();
            *found = found.saturating_sub(number);
        }
        self.report.found.retain(|_, count| *count > 0);
        self.report
    }

    /// Reads the seals from `first` to `last` in all places and holds them against each other. `before` is the seal
    /// before them, if it was read already.
    pub async fn seals(
        &mut self,
        first: i64,
        last: i64,
        before: Option<&Trusted>,
    ) -> Result<Vec<Trusted>, Error> {
        let mut places = vec![
            Place {
                name: "postgres",
                seals: audit_seals::read(&self.stores.postgres, first, last).await?.into_iter().collect(),
            },
            Place {
                name: "mongodb",
                seals: mongo::audit_seals::read(&self.stores.mongo, first, last).await?.into_iter().collect(),
            },
        ];
        if let Some(outside) = self.outside.clone() {
            let seals = blocking(move || outside.read(first, last)).await?;
            places.push(Place { name: "outside", seals });
        }
        let (seals, findings) = copies::compare(&places, &self.keys, first, before);
        findings.into_iter().for_each(|finding| self.report.add(finding));
        self.report.seals += seals.len() as u64;
        for one in &seals {
            if let Some(restored) = &one.seal.restored {
                let (number, by, why) = (one.seal.number, &restored.by, &restored.why);
                self.report
                    .notes
                    .insert(format!("seal {number} says that {by} has set Postgres back: {why}"));
            }
        }
        Ok(seals)
    }

    /// Verifies what lies between two seals; everything up to `to` if there is no `from`. Returns whether all events of
    /// it can be in the trail by now.
    pub async fn stretch(&mut self, from: Option<&Seal>, to: &Seal) -> Result<bool, Error> {
        let mut pending = 0;
        let mut batches = Vec::new();
        let mut window = (from.map(|seal| seal.at_ms), to.at_ms);
        for head in &to.heads {
            let Some(mut at) = self.begin(from, to, head) else { continue };
            if at == *head {
                continue;
            }
            let on_their_way =
                audit_chain::pending(&self.stores.postgres, &head.partition, head.number).await?;
            loop {
                let postgres = &self.stores.postgres;
                let links =
                    audit_chain::links(postgres, &head.partition, at.number, head.number, LINKS_TOGETHER)
                        .await?;
                let more = links.len() == LINKS_TOGETHER as usize;
                let end = match links.last() {
                    Some(last) if more => Head { number: last.number, hash: last.hash, ..head.clone() },
                    _ => head.clone(),
                };
                let (walked, findings) = chain::walk(&at, &end, &links);
                findings.into_iter().for_each(|finding| self.report.add(finding));
                let (waiting, there): (Vec<Batch>, Vec<Batch>) =
                    walked.into_iter().partition(|batch| on_their_way.contains(&batch.number));
                pending += waiting.len() as u64;
                batches.extend(there);
                at = end;
                if batches.len() >= SORTED {
                    self.events(std::mem::take(&mut batches), window).await?;
                    // What lies before was looked at.
                    window.0 = Some(window.1);
                }
                if !more {
                    break;
                }
            }
        }
        self.events(batches, window).await?;
        self.report.pending += pending;
        Ok(pending == 0)
    }

    /// Where the walk along a chain begins; `None` if what the seal has of it was undone by a restore later.
    fn begin(&self, from: Option<&Seal>, to: &Seal, head: &Head) -> Option<Head> {
        let of_partition =
            || self.restores.iter().filter_map(|restore| Some((restore, restore.base(&head.partition)?)));
        if of_partition().any(|(restore, (base, _))| *base < to.number && to.number < restore.seal) {
            return None;
        }
        if let Some((_, (_, base))) = of_partition().find(|(restore, _)| restore.seal == to.number) {
            return Some(base.clone());
        }
        Some(from.map_or_else(|| Seal::beginning(&head.partition), |from| from.head(&head.partition)))
    }

    /// Looks at the events of batches, and at what else was made in their time: since `window.0` and up to `window.1`.
    async fn events(&mut self, mut batches: Vec<Batch>, window: (Option<i64>, i64)) -> Result<(), Error> {
        let times = |batch: &Batch| {
            let first = batch.classes.iter().map(|root| root.first_ms).min();
            first.zip(batch.classes.iter().map(|root| root.last_ms).max())
        };
        batches.sort_by_cached_key(|batch| times(batch).map(|(first, _)| first));
        let known: HashMap<(String, i64), Vec<ClassRoot>> = batches
            .iter()
            .map(|batch| ((batch.partition.clone(), batch.number), batch.classes.clone()))
            .collect();
        let (mut done_ms, mut slices) = (window.0, Vec::new());
        let mut rest = batches;
        loop {
            let later = if rest.len() > SLICE { rest.split_off(SLICE) } else { Vec::new() };
            slices.push(std::mem::replace(&mut rest, later));
            if rest.is_empty() {
                break;
            }
        }
        let last = slices.len() - 1;
        if window.0.is_none() && slices[0].iter().all(|batch| times(batch).is_none()) {
            // Nothing was there to be sealed; what is there is looked at all the same.
            self.before(window.1.saturating_add(1)).await?;
        }
        for (index, slice) in slices.into_iter().enumerate() {
            let first_ms = slice.iter().filter_map(&times).map(|(first, _)| first).min();
            let last_ms = slice.iter().filter_map(&times).map(|(_, last)| last).max();
            let until = if index == last { last_ms.max(Some(window.1)) } else { last_ms };
            let since = match (first_ms, done_ms) {
                (Some(first), Some(done)) => Some(first.min(done)),
                (first, done) => first.or(done),
            };
            if let (Some(since), Some(until)) = (since, until) {
                if done_ms.is_none() && index == 0 {
                    self.before(since).await?;
                }
                self.slice(slice, &known, since, until).await?;
                done_ms = Some(until);
            }
        }
        Ok(())
    }

    async fn slice(
        &mut self,
        batches: Vec<Batch>,
        known: &HashMap<(String, i64), Vec<ClassRoot>>,
        since: i64,
        until: i64,
    ) -> Result<(), Error> {
        let mut trail = Trail::new(batches);
        let (mut strays, mut erased) = (Vec::new(), Vec::new());
        // Stretches overlap where batches of several partitions do; each event that was set apart counts once.
        let touches = |covered: &RangeInclusive<i64>| since <= *covered.end() && until >= *covered.start();
        let covered = self.covered.clone().filter(touches);
        // Elsewhere in this stretch, and made when its batch was: it has its turn there.
        let is_elsewhere = |stray: &Seen| {
            let key = (stray.place.partition.clone(), stray.place.number);
            let class = known
                .get(&key)
                .and_then(|classes| classes.iter().find(|root| root.class == stray.place.class));
            class.is_some_and(|root| (root.first_ms..=root.last_ms).contains(&stray.created_ms))
        };
        let mut window = mongo::audit_trail::window(&self.stores.mongo, since, until).await?;
        while let Some(seen) = window.next().await? {
            if seen.erased {
                erased.push(Emptied::from(&seen));
            }
            if seen.undone && !covered.as_ref().is_some_and(|covered| covered.contains(&seen.created_ms)) {
                self.report.counts.undone += 1;
            }
            if let Some(stray) = trail.see(seen)
                && !is_elsewhere(&stray)
            {
                strays.push(stray);
                self.some_strays(&mut strays).await?;
            }
        }
        let covered = covered.unwrap_or(since..=until);
        self.covered = Some(*covered.start().min(&since)..=*covered.end().max(&until));
        self.erased(&erased).await?;
        self.strays(&strays).await?;
        let (newest, now) = (self.newest.clone(), self.now);
        let past = |class| newest.as_ref().map_or(i64::MIN, |seal| seal.past_ms(class, now));
        let judged = trail.end(past);
        self.report.counts.add(&judged.counts);
        self.report.counts.erased += erased.len() as u64;
        for (partition, number) in judged.present {
            let newest = self.present.entry(partition).or_insert(number);
            *newest = number.max(*newest);
        }
        for suspect in judged.suspects {
            if self.report.is_full() {
                *self.report.found.entry("more_batches").or_default() += 1;
                continue;
            }
            let lists =
                mongo::audit_leaves::read(&self.stores.mongo, &suspect.partition, suspect.number).await?;
            let (counts, findings) = suspect.explain(&lists, past);
            self.report.counts.add(&counts);
            findings.into_iter().for_each(|finding| self.report.add(finding));
        }
        Ok(())
    }
}

fn count(findings: &[Finding]) -> BTreeMap<&'static str, u64> {
    let mut counts = BTreeMap::new();
    for finding in findings {
        *counts.entry(finding.kind.as_str()).or_default() += 1;
    }
    counts
}
