//! Holds the copies of the seals against each other: three places, one sequence.

use std::collections::BTreeMap;

use super::Hash;
use super::finding::{Finding, Kind};
use super::key::PublicKey;
use super::seal::{Seal, Signed};

/// The seals of one place, by the numbers under which it keeps them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    pub name: &'static str,
    pub seals: BTreeMap<i64, Signed>,
}

/// How far the seals of a place go. What none of the keys has signed does not count: whoever can insert there would have
/// the sequence go on where it likes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Newest {
    /// The number of the newest one that can be believed; 0 if there is none.
    pub believed: i64,
    /// The highest number above it, under which something else stands.
    pub forged: Option<i64>,
}

impl Newest {
    /// Takes what stands under the next number, from the highest down. Returns whether that is all.
    pub fn take(&mut self, number: i64, signed: &Signed, keys: &[PublicKey]) -> bool {
        let is_seal = signed.is_seal(number, keys);
        if is_seal {
            self.believed = number;
        } else {
            self.forged = self.forged.or(Some(number));
        }
        is_seal
    }
}

/// A seal that can be believed, and its digest.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Trusted {
    pub seal: Seal,
    pub hash: Hash,
}

/// Looks through the seals with numbers from `first` on, as the places have them. `before` is the last one that was
/// believed already, if there is one.
pub fn compare(
    places: &[Place],
    keys: &[PublicKey],
    first: i64,
    before: Option<&Trusted>,
) -> (Vec<Trusted>, Vec<Finding>) {
    let mut findings = Vec::new();
    let newest = |place: &Place| place.seals.keys().next_back().copied().unwrap_or(first - 1);
    let last = places.iter().map(newest).max().unwrap_or(first - 1);
    for place in places.iter().filter(|place| newest(place) < last) {
        let detail = format!("it has seals up to {}, others have up to {last}", newest(place));
        findings.push(Finding::new(Kind::SealsSetBack, detail).seal(newest(place) + 1, Some(place.name)));
    }
    let mut trusted: Vec<Trusted> = Vec::new();
    for number in first..=last {
        let mut believed: Option<(Trusted, &Signed)> = None;
        for place in places {
            let Some(signed) = place.seals.get(&number) else {
                if number <= newest(place) {
                    findings
                        .push(Finding::new(Kind::SealMissing, "it is gone").seal(number, Some(place.name)));
                }
                continue;
            };
            let seal = match signed.open(keys) {
                Ok(seal) if seal.number == number => seal,
                Ok(seal) => {
                    let detail = format!("seal {} stands in its place", seal.number);
                    findings.push(Finding::new(Kind::SealChanged, detail).seal(number, Some(place.name)));
                    continue;
                }
                Err(why) => {
                    findings.push(Finding::new(Kind::SealChanged, why).seal(number, Some(place.name)));
                    continue;
                }
            };
            match &believed {
                None => believed = Some((Trusted { seal, hash: signed.hash() }, signed)),
                Some((_, other)) if other.seal == signed.seal => {}
                Some(_) => {
                    let detail = "it is signed, and differs from another place's, which is signed as well";
                    findings.push(Finding::new(Kind::SealForked, detail).seal(number, Some(place.name)));
                }
            }
        }
        let Some((seal, _)) = believed else {
            if places.iter().all(|place| !place.seals.contains_key(&number)) {
                findings.push(Finding::new(Kind::SealMissing, "no place has it").seal(number, None));
            }
            continue;
        };
        let previous = trusted.last().or(before);
        // After a gap nothing can be said about the one before.
        let adjacent = previous.filter(|previous| previous.seal.number + 1 == number);
        let right = adjacent.map(|previous| previous.hash).or((number == 1).then_some(Hash([0; 32])));
        if right.is_some_and(|right| right != seal.seal.previous) {
            let detail = "it names another seal before it than the one that is there";
            findings.push(Finding::new(Kind::SealForked, detail).seal(number, None));
        }
        trusted.push(seal);
    }
    (trusted, findings)
}
