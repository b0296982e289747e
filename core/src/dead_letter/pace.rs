//! When a replay of many goes on, waits, or stops by itself.

/// Letters whose fate is looked at: the newest.
pub const LOOKED_AT: usize = 100;
/// Letters that may be on their way. A replay that does harm is found out before it has done more.
const OPEN_MAX: usize = 50;
/// Deaths in a row after which a replay stops.
const ROW_MAX: usize = 3;
/// Fates that must be known before a share of them means anything.
const SHARE_OF: usize = 20;
/// The share of deaths at which a replay stops, in percent.
const SHARE_MAX: usize = 10;

/// What became of a letter that was replayed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fate {
    /// It died again.
    Died,
    /// Its command has a receipt, or waits for its time.
    Lived,
    /// Not known yet.
    Open,
}

/// How a replay goes on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pace {
    /// With at most so many letters; none means: wait.
    Go(usize),
    /// It stops, for this reason.
    Stop(String),
}

/// Judges by the fates of the letters that were replayed last, oldest first.
pub fn judge(fates: &[Fate]) -> Pace {
    let known: Vec<Fate> = fates.iter().copied().filter(|fate| *fate != Fate::Open).collect();
    let row = known.iter().rev().take_while(|fate| **fate == Fate::Died).count();
    if row >= ROW_MAX {
        return Pace::Stop(format!("{row} in a row died again"));
    }
    let died = known.iter().filter(|fate| **fate == Fate::Died).count();
    if known.len() >= SHARE_OF && died * 100 > known.len() * SHARE_MAX {
        return Pace::Stop(format!("{died} of the last {} died again", known.len()));
    }
    Pace::Go(OPEN_MAX.saturating_sub(fates.len() - known.len()))
}

#[cfg(test)]
mod tests {
    use super::Fate::{Died, Lived, Open};
    use super::*;

    #[test]
    fn three_deaths_in_a_row_stop_it_whatever_is_still_open() {
        assert_eq!(judge(&[Lived, Died, Died]), Pace::Go(50));
        assert_eq!(judge(&[Lived, Died, Open, Died, Open]), Pace::Go(48));
        assert!(matches!(judge(&[Lived, Died, Open, Died, Died, Open]), Pace::Stop(_)));
        assert_eq!(judge(&[Died, Died, Died, Lived]), Pace::Go(50));
    }

    #[test]
    fn a_tenth_of_deaths_stops_it() {
        let fates = |deaths: usize| -> Vec<Fate> {
            (0..40).map(|n| if n % 2 == 0 && n / 2 < deaths { Died } else { Lived }).collect()
        };
        assert_eq!(judge(&fates(4)), Pace::Go(50));
        assert!(matches!(judge(&fates(5)), Pace::Stop(_)));
    }

    #[test]
    fn too_many_on_their_way_are_waited_for() {
        assert_eq!(judge(&[Open; 50]), Pace::Go(0));
        assert_eq!(judge(&[]), Pace::Go(50));
    }
}
