//! Answers are made anew a little before their time ends, by one reader at a moment that chance picks: so they never end
//! for all readers at once. (Vattani, Chierichetti, Lowenstein: Optimal Probabilistic Cache Stampede Prevention, 2015.)

/// Whether this reader makes it anew, before `ends_ms`. `took_ms` is what making it has cost; `chance` is from (0, 1].
/// All times in milliseconds of the same clock.
pub fn is_due(now_ms: i64, ends_ms: i64, took_ms: f64, chance: f64) -> bool {
    let head_start = -took_ms * chance.clamp(f64::MIN_POSITIVE, 1.0).ln();
    now_ms as f64 + head_start >= ends_ms as f64
}

/// A time to live, up to a tenth shorter than asked for: what was made together does not end together.
pub fn jittered_s(ttl_s: u64, chance: f64) -> u64 {
    let shorter = ttl_s as f64 * 0.1 * chance.clamp(0.0, 1.0);
    (ttl_s - (shorter as u64).min(ttl_s / 10)).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dear_answers_are_made_anew_earlier_and_none_too_late() {
        assert!(is_due(1_000, 1_000, 0.0, 1.0));
        assert!(!is_due(0, 1_000, 100.0, 1.0));
        assert!(is_due(900, 1_000, 100.0, 0.3));
        assert!(!is_due(900, 1_000, 10.0, 0.3));
        assert!(is_due(0, 1_000, 10.0, 0.0));
    }

    #[test]
    fn times_to_live_stay_near_what_the_specification_says() {
        assert_eq!(jittered_s(60, 0.0), 60);
        assert_eq!(jittered_s(60, 1.0), 54);
        assert_eq!(jittered_s(1, 1.0), 1);
    }
}
