//! Events come from the exchange one by one, those of a batch in any order, and some of them again after a worker's
//! crash. Here they are put together into whole batches, each once, in the order of their numbers.

use std::collections::HashMap;

use super::Place;

/// Something is missing between what came and what comes: whoever listens has to begin anew.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hole;

/// Puts batches together, of all partitions.
#[derive(Debug)]
pub struct Order<T>(HashMap<String, Partition<T>>);

#[derive(Debug)]
struct Partition<T> {
    /// The newest batch that is whole; none before the first.
    whole: Option<i64>,
    coming: Option<Coming<T>>,
}

/// A batch of which some events have come.
#[derive(Debug)]
struct Coming<T> {
    number: i64,
    missing: u32,
    events: Vec<Option<T>>,
}

impl<T> Default for Order<T> {
    fn default() -> Self {
        Self(HashMap::new())
    }
}

impl<T> Order<T> {
    /// Takes an event; returns its batch when it is whole.
    ///
    /// # Errors
    /// The batch before it never became whole. Of the first batch of a partition the beginning may have come before
    /// anybody listened; it is left out.
    pub fn take(&mut self, place: &Place, event: T) -> Result<Option<Vec<T>>, Hole> {
        if !self.0.contains_key(&place.partition) {
            self.0.insert(place.partition.clone(), Partition { whole: None, coming: None });
        }
        let Some(partition) = self.0.get_mut(&place.partition) else { return Err(Hole) };
        if partition.whole.is_some_and(|whole| place.number <= whole) {
            return Ok(None);
        }
        match &partition.coming {
            // Told again.
            Some(coming) if place.number < coming.number => return Ok(None),
            Some(coming) if place.number > coming.number && partition.whole.is_some() => return Err(Hole),
            Some(coming) if place.number == coming.number => {
                if coming.events.len() != place.count as usize {
                    return Err(Hole);
                }
            }
            _ => {
                let events = (0..place.count).map(|_| None).collect();
                partition.coming = Some(Coming { number: place.number, missing: place.count, events });
            }
        }
        let Some(coming) = &mut partition.coming else { return Err(Hole) };
        let Some(room) = coming.events.get_mut(place.index as usize) else { return Err(Hole) };
        if room.replace(event).is_none() {
            coming.missing -= 1;
        }
        if coming.missing > 0 {
            return Ok(None);
        }
        partition.whole = Some(coming.number);
        Ok(partition.coming.take().map(|coming| coming.events.into_iter().flatten().collect()))
    }
}
