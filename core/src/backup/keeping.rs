//! Which backups are kept. It follows from what there is, the rules, and the time; nothing here removes anything.
//!
//! Two things hold whatever the rules say: the newest good backup of each kind stays (and the newest that a drill has
//! restored), and so does whatever one that stays needs.

use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Datelike, Days, TimeDelta, Utc};
use serde::{Deserialize, Serialize};

/// How many are kept. Of each of the last so many days (weeks, months, years) that have one, the newest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Keep {
    pub daily: u32,
    /// Weeks from Monday to Sunday.
    pub weekly: u32,
    pub monthly: u32,
    pub yearly: u32,
    /// Base backups of Postgres, the newest; the log of writes is kept from the oldest of them on, so this is how far
    /// back a point in time may lie.
    pub bases: u32,
    /// Days that incremental backups are kept.
    pub incremental_days: u32,
    /// Days that a backup is kept which was made of live data before something replaced it: nobody can make it again.
    pub safety_days: u32,
}

impl Default for Keep {
    fn default() -> Self {
        Self { daily: 7, weekly: 5, monthly: 12, yearly: 3, bases: 4, incremental_days: 14, safety_days: 30 }
    }
}

/// How a kind of backup is counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Count {
    /// By days, weeks, months and years.
    Calendar,
    /// The newest [`Keep::bases`].
    Newest,
    /// For [`Keep::incremental_days`].
    Age,
}

/// One backup, as far as keeping goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub id: String,
    /// Backups of one kind stand for each other.
    pub kind: String,
    pub count: Count,
    pub taken_at: DateTime<Utc>,
    /// It is whole: it has its manifest.
    pub good: bool,
    /// A drill has restored it.
    pub proven: bool,
    /// It was made of live data before something replaced it.
    pub safety: bool,
    /// Ids of those without which it can't be restored.
    pub needs: Vec<String>,
}

/// What becomes of a backup, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Keep(String),
    Remove(String),
}

impl Verdict {
    pub fn keeps(&self) -> bool {
        matches!(self, Self::Keep(_))
    }

    pub fn why(&self) -> &str {
        match self {
            Self::Keep(why) | Self::Remove(why) => why,
        }
    }
}

/// What is not whole is left alone for so long: it may be on its way.
pub fn patience() -> TimeDelta {
    TimeDelta::hours(48)
}

/// Decides about all backups at once.
pub fn decide(items: &[Item], rules: &Keep, now: DateTime<Utc>) -> BTreeMap<String, Verdict> {
    let mut kept: BTreeMap<String, String> = BTreeMap::new();
    let mut keep = |id: &str, why: String| {
        kept.entry(id.to_owned()).or_insert(why);
    };
    let kinds: BTreeSet<&str> = items.iter().map(|item| item.kind.as_str()).collect();
    for kind in kinds {
        let mut good: Vec<&Item> = items.iter().filter(|item| item.good && item.kind == kind).collect();
        good.sort_by(|a, b| (b.taken_at, &b.id).cmp(&(a.taken_at, &a.id)));
        if let Some(newest) = good.first() {
            keep(&newest.id, "the newest good one".to_owned());
        }
        if let Some(proven) = good.iter().find(|item| item.proven) {
            keep(&proven.id, "the newest that a drill has restored".to_owned());
        }
        for (id, why) in by_count(&good, rules, now) {
            keep(id, why);
        }
    }
    for item in items.iter().filter(|item| !item.good && now - item.taken_at < patience()) {
        keep(&item.id, "not whole; it may be on its way".to_owned());
    }
    // Whatever one that stays needs stays, however far that goes.
    let needs: BTreeMap<&str, &[String]> =
        items.iter().map(|item| (item.id.as_str(), item.needs.as_slice())).collect();
    let mut open: Vec<String> = kept.keys().cloned().collect();
    while let Some(id) = open.pop() {
        for need in needs.get(id.as_str()).copied().unwrap_or_default() {
            if !kept.contains_key(need) {
                kept.insert(need.clone(), format!("{id} needs it"));
                open.push(need.clone());
            }
        }
    }
    let verdict = |item: &Item| match kept.get(&item.id) {
        Some(why) => Verdict::Keep(why.clone()),
        None if item.good => Verdict::Remove("no rule keeps it".to_owned()),
        None => Verdict::Remove("it was never whole".to_owned()),
    };
    items.iter().map(|item| (item.id.clone(), verdict(item))).collect()
}

/// Which day, week, month or year a time belongs to.
type Span = fn(DateTime<Utc>) -> (i32, u32);

/// What the rules keep of one kind, the newest first.
fn by_count<'i>(good: &[&'i Item], rules: &Keep, now: DateTime<Utc>) -> Vec<(&'i str, String)> {
    let mut kept = Vec::new();
    let since = |days: u32| now.checked_sub_days(Days::new(days.into())).unwrap_or(DateTime::<Utc>::MIN_UTC);
    for item in good.iter().filter(|item| item.safety && item.taken_at >= since(rules.safety_days)) {
        let why = format!("made before live data was replaced, and younger than {} days", rules.safety_days);
        kept.push((item.id.as_str(), why));
    }
    let counted = |count: Count| good.iter().filter(move |item| item.count == count);
    for item in counted(Count::Newest).take(rules.bases as usize) {
        kept.push((item.id.as_str(), format!("one of the newest {}", rules.bases)));
    }
    for item in counted(Count::Age).filter(|item| item.taken_at >= since(rules.incremental_days)) {
        kept.push((item.id.as_str(), format!("younger than {} days", rules.incremental_days)));
    }
    let spans: [(&str, u32, Span); 4] = [
        ("day", rules.daily, |at| (at.year(), at.ordinal())),
        ("week", rules.weekly, |at| (at.iso_week().year(), at.iso_week().week())),
        ("month", rules.monthly, |at| (at.year(), at.month())),
        ("year", rules.yearly, |at| (at.year(), 0)),
    ];
    for (span, most, of) in spans {
        let mut seen = BTreeSet::new();
        for item in counted(Count::Calendar) {
            if seen.len() >= most as usize && !seen.contains(&of(item.taken_at)) {
                break;
            }
            if seen.insert(of(item.taken_at)) {
                kept.push((item.id.as_str(), format!("the newest of its {span}")));
            }
        }
    }
    kept
}
