//! What a verification finds, each by the ids that it concerns.

use std::fmt;

use serde::Serialize;

use crate::event::EventId;

macro_rules! kinds {
    ($($(#[$doc:meta])* $variant:ident = $word:literal),+ $(,)?) => {
        /// What is wrong.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize)]
        #[serde(rename_all = "snake_case")]
        pub enum Kind { $($(#[$doc])* $variant),+ }

        impl Kind {
            pub const ALL: &[Self] = &[$(Self::$variant),+];

            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }
        }
    };
}

kinds! {
    /// A seal's text, signature or key is not what was written.
    SealChanged = "seal_changed",
    /// A seal is not where it should be.
    SealMissing = "seal_missing",
    /// Two different seals have one number, and both were signed.
    SealForked = "seal_forked",
    /// A place lacks the newest seals that another one has.
    SealsSetBack = "seals_set_back",
    /// The links of a chain do not lead from one seal to the next.
    ChainBroken = "chain_broken",
    /// An event is not what was sealed.
    EventChanged = "event_changed",
    /// An event is gone before its time.
    EventMissing = "event_missing",
    /// An event was put into the trail by nobody who may.
    EventInserted = "event_inserted",
    /// What an event told was erased, and nobody has ordered that.
    ErasedUnasked = "erased_unasked",
    /// The list of a batch's leaves is gone or changed, so that what is wrong with the batch can't be told by ids.
    LeavesMissing = "leaves_missing",
    /// A partition's newest events are all gone: the collection was set back to an earlier time.
    TrailSetBack = "trail_set_back",
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One thing that is wrong.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Finding {
    pub kind: Kind,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub event: Option<EventId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub partition: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seal: Option<i64>,
    /// The place of the seals that it is about: one of the two databases, or the one outside.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub place: Option<&'static str>,
    pub detail: String,
}

impl Finding {
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        let detail = detail.into();
        Self { kind, event: None, partition: None, batch: None, seal: None, place: None, detail }
    }

    #[must_use]
    pub fn event(self, id: EventId) -> Self {
        Self { event: Some(id), ..self }
    }

    #[must_use]
    pub fn batch(self, partition: &str, number: i64) -> Self {
        Self { partition: Some(partition.to_owned()), batch: Some(number), ..self }
    }

    #[must_use]
    pub fn seal(self, number: i64, place: Option<&'static str>) -> Self {
        Self { seal: Some(number), place, ..self }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.kind.as_str())?;
        if let Some(event) = self.event {
            write!(f, " event {event}")?;
        }
        if let Some(partition) = &self.partition {
            write!(f, " partition {partition}")?;
        }
        if let Some(batch) = self.batch {
            write!(f, " batch {batch}")?;
        }
        if let Some(seal) = self.seal {
            write!(f, " seal {seal}")?;
        }
        if let Some(place) = self.place {
            write!(f, " in {place}")?;
        }
        write!(f, ": {}", self.detail)
    }
}
