//! What must hold for due times: in any zone, across every jump of its clocks, after any outage.

use chrono::{DateTime, NaiveDateTime, TimeDelta, Utc};
use chrono_tz::Tz;
use proptest::prelude::*;
use taskflow_core::job::expression::Expression;
use taskflow_core::job::outage::{MISSED_AFTER, ROWS_MAX, Timing};
use taskflow_core::job::window::Window;
use taskflow_core::job::{Met, Missed, Overlap, Overlapping, Retries, jitter};

/// Zones whose clocks jump by an hour, by half an hour, in either hemisphere, at midnight, or never.
const ZONES: [&str; 8] = [
    "Europe/Berlin",
    "America/New_York",
    "Australia/Lord_Howe",
    "Pacific/Auckland",
    "America/Santiago",
    "Africa/Casablanca",
    "Asia/Kathmandu",
    "UTC",
];
const BY_WALL: [&str; 6] = [
    "0 30 2 * * *",
    "0 0,15,30,45 1-3 * * *",
    "0 0 0 * * *",
    "0 5 */2 * * *",
    "0 0 3 * * Sun",
    "0 59 23 31 * *",
];
const BY_DISTANCE: [&str; 4] = ["0 */10 * * * *", "0 0 * * * *", "0 7,43 * * * Sun", "0 1 * 1,30 * *"];

fn at(text: &str) -> DateTime<Utc> {
    text.parse().expect(text)
}

fn expression(cron: &str, zone: &str) -> Expression {
    Expression::new(cron, zone).expect(cron)
}

fn due(cron: &str, zone: &str, from: &str, count: usize) -> Vec<String> {
    let expression = expression(cron, zone);
    expression.all_after(at(from)).take(count).map(|due| due.format("%m-%d %H:%M").to_string()).collect()
}

#[test]
fn a_time_that_the_clocks_skip_is_due_when_they_have_jumped() {
    // Berlin jumps from 2:00 to 3:00 (1:00 UTC) on 29 March 2026.
    assert_eq!(
        due("0 30 2 * * *", "Europe/Berlin", "2026-03-27T23:00:00Z", 3),
        ["03-28 01:30", "03-29 01:00", "03-30 00:30"]
    );
    // New York at 7:00 UTC on 8 March.
    assert_eq!(
        due("0 30 2 * * *", "America/New_York", "2026-03-07T12:00:00Z", 2),
        ["03-08 07:00", "03-09 06:30"]
    );
    // Lord Howe jumps by half an hour, from 2:00 to 2:30 (15:30 UTC of the day before) on 4 October.
    assert_eq!(
        due("0 15 2 * * *", "Australia/Lord_Howe", "2026-10-02T20:00:00Z", 2),
        ["10-03 15:30", "10-04 15:15"]
    );
    // Two times in the hour that is skipped are one moment, and one run.
    assert_eq!(
        due("0 10,50 2 * * *", "Europe/Berlin", "2026-03-28T12:00:00Z", 2),
        ["03-29 01:00", "03-30 00:10"]
    );
    // Samoa had no 30 December 2011.
    assert_eq!(
        due("0 0 12 30 * *", "Pacific/Apia", "2011-12-29T00:00:00Z", 2),
        ["12-30 10:00", "01-29 22:00"]
    );
}

#[test]
fn a_time_that_comes_twice_is_due_the_first_time() {
    // Berlin lives through 2:00 to 3:00 twice on 25 October 2026.
    assert_eq!(
        due("0 30 2 * * *", "Europe/Berlin", "2026-10-24T12:00:00Z", 2),
        ["10-25 00:30", "10-26 01:30"]
    );
    // Also when asked in between.
    assert_eq!(due("0 30 2 * * *", "Europe/Berlin", "2026-10-25T00:45:00Z", 1), ["10-26 01:30"]);
    assert_eq!(
        due("0 30 1 * * *", "America/New_York", "2026-10-31T12:00:00Z", 2),
        ["11-01 05:30", "11-02 06:30"]
    );
    assert_eq!(
        due("0 0 0 * * *", "America/Santiago", "2026-04-03T12:00:00Z", 3),
        ["04-04 03:00", "04-05 04:00", "04-06 04:00"]
    );
}

#[test]
fn a_distance_is_kept_across_a_jump() {
    let every_20 = "0 */20 * * * *";
    assert_eq!(
        due(every_20, "Europe/Berlin", "2026-03-29T00:30:00Z", 4),
        ["03-29 00:40", "03-29 01:00", "03-29 01:20", "03-29 01:40"]
    );
    assert_eq!(
        due(every_20, "Europe/Berlin", "2026-10-25T00:30:00Z", 4),
        ["10-25 00:40", "10-25 01:00", "10-25 01:20", "10-25 01:40"]
    );
    // Half an hour: the wall shows a whole hour half an hour late, once.
    assert_eq!(
        due("0 0 * * * *", "Australia/Lord_Howe", "2026-10-03T13:00:00Z", 4),
        ["10-03 13:30", "10-03 14:30", "10-03 16:00", "10-03 17:00"]
    );
}

#[test]
fn what_is_no_expression_is_explained() {
    let wrong = |cron: &str, zone: &str| Expression::new(cron, zone).expect_err(cron);
    assert!(wrong("0 2 * * *", "UTC").contains("has six"), "{}", wrong("0 2 * * *", "UTC"));
    assert!(wrong("0 0 25 * * *", "UTC").contains("is no cron expression"));
    assert!(wrong("0 0 2 * * *", "Europe/Berlim").contains("is no time zone"));
    assert!(
        expression("0 0 0 30 2 *", "UTC").after(at("2026-01-01T00:00:00Z")).is_none(),
        "30 February never comes"
    );
}

#[test]
fn a_window_may_go_over_midnight() {
    let berlin: Tz = "Europe/Berlin".parse().expect("a zone");
    let night: Window = "22:00-05:30".parse().expect("a window");
    for (time, inside) in
        [("21:59", false), ("22:00", true), ("00:00", true), ("05:29", true), ("05:30", false)]
    {
        let moment =
            NaiveDateTime::parse_from_str(&format!("2026-01-15 {time}"), "%Y-%m-%d %H:%M").expect(time);
        let moment = moment.and_utc() - TimeDelta::hours(1);
        assert_eq!(night.contains(moment, berlin), inside, "{time}");
    }
    assert_eq!(night.to_string(), "22:00-05:30");
    assert!("22-5".parse::<Window>().is_err() && "25:00-05:00".parse::<Window>().is_err());
}

/// What an expression means, told slowly: the first moment at which the wall shows a named time or a later one.
fn due_by_wall(cron: &str, zone: Tz, from: DateTime<Utc>, to: DateTime<Utc>) -> Vec<DateTime<Utc>> {
    let schedule: cron::Schedule = cron.parse().expect(cron);
    let mut due: Vec<DateTime<Utc>> = Vec::new();
    let mut latest = from.with_timezone(&zone).naive_local();
    let mut moment = from;
    while moment < to {
        moment += TimeDelta::minutes(1);
        let wall = moment.with_timezone(&zone).naive_local();
        if wall > latest {
            let mut named = schedule.after(&latest.and_utc());
            if named.next().is_some_and(|named| named.naive_utc() <= wall) {
                due.push(moment);
            }
            latest = wall;
        }
    }
    due
}

fn due_by_distance(cron: &str, zone: Tz, from: DateTime<Utc>, to: DateTime<Utc>) -> Vec<DateTime<Utc>> {
    let schedule: cron::Schedule = cron.parse().expect(cron);
    let minutes = (to - from).num_minutes();
    let moments = (1..=minutes).map(|minute| from + TimeDelta::minutes(minute));
    moments.filter(|moment| schedule.includes(moment.with_timezone(&zone).naive_local().and_utc())).collect()
}

proptest! {
    /// A scan of two days, minute by minute, around the jumps of a year and elsewhere.
    #[test]
    fn due_times_are_what_the_walls_clock_says(zone in 0..ZONES.len(), wall in any::<bool>(), which in 0_usize..6, hour in 0_i64..24 * 365 * 2) {
        let zone: Tz = ZONES[zone].parse().expect("a zone");
        let from = near_a_jump(zone, at("2026-01-01T00:00:00Z") + TimeDelta::hours(hour));
        let to = from + TimeDelta::days(2);
        let (cron, expected) = if wall {
            let cron = BY_WALL[which];
            (cron, due_by_wall(cron, zone, from, to))
        } else {
            let cron = BY_DISTANCE[which % BY_DISTANCE.len()];
            (cron, due_by_distance(cron, zone, from, to))
        };
        // What began before the scan in an hour that comes twice is no matter of it.
        let expression = expression(cron, zone.name());
        let found: Vec<_> = expression.all_after(from).take_while(|due| *due <= to).collect();
        prop_assert_eq!(found, expected, "{} in {} from {}", cron, zone, from);
    }

    /// Whatever the outage: each due time has one row (its own, or a shared one for the oldest), in order, none is
    /// forgotten, none is run that should not.
    #[test]
    fn each_due_time_is_told_of_once(
        cron in prop::sample::select(vec!["*/1 * * * * *", "0 * * * * *", "0 */10 * * * *", "0 0 * * * *", "0 30 2 * * *", "0 0 4 * * Mon"]),
        missed in prop::sample::select(Missed::ALL),
        outage_s in prop_oneof![0_i64..20, 0_i64..4_000, 0_i64..5_000_000],
        jitter_s in prop::sample::select(vec![0_u32, 1, 30, 600]),
        catch_up_max in 1_usize..40,
        start in 0_i64..100_000_000,
    ) {
        let expression = expression(cron, "Europe/Berlin");
        let timing = Timing { name: "a.job", expression: &expression, jitter_s, missed, catch_up_max };
        let armed = expression.after(at("2026-01-01T00:00:00Z") + TimeDelta::seconds(start)).expect("a due time");
        let now = armed + TimeDelta::seconds(outage_s);
        let plan = timing.plan(armed, now);
        prop_assert!(plan.dues.len() <= ROWS_MAX + 1);
        prop_assert!(plan.dues.windows(2).all(|pair| pair[0].at < pair[1].at && pair[0].through.is_none_or(|through| through < pair[1].at)));
        // The rows and what comes next are the due times without a gap.
        let mut expected = armed;
        for due in &plan.dues {
            prop_assert_eq!(due.at, expected);
            expected = expression.after(due.through.unwrap_or(due.at)).expect("a due time");
        }
        prop_assert_eq!(plan.next, Some(expected));
        let runs: Vec<_> = plan.dues.iter().filter(|due| due.met.runs()).collect();
        match missed {
            Missed::Skip | Missed::Once => prop_assert!(runs.len() <= 1),
            Missed::Each => prop_assert!(runs.len() <= catch_up_max.max(1)),
        }
        if let Some(newest) = plan.dues.last() {
            let lateness = now - timing.begins(newest.at);
            prop_assert!(lateness >= TimeDelta::zero(), "nothing begins before its time");
            prop_assert!(newest.met.runs() || (missed == Missed::Skip && lateness > MISSED_AFTER));
            prop_assert!(runs.iter().all(|run| run.met != Met::OnTime || std::ptr::eq(*run, newest)));
            // The one that looks next, at any later time, never tells of the same again.
            if let Some(next) = plan.next {
                let later = timing.plan(next, now + TimeDelta::seconds(90));
                prop_assert!(later.dues.first().is_none_or(|due| due.at > newest.through.unwrap_or(newest.at)));
            }
        } else {
            prop_assert!(timing.begins(armed) > now);
        }
    }

    #[test]
    fn jitter_is_bounded_and_the_same_everywhere(name in "[a-z.]{1,20}", second in 0_i64..4_000_000_000, most_s in 0_u32..7_200) {
        let due = DateTime::from_timestamp(second, 0).expect("a time");
        let shift = jitter(&name, due, most_s);
        prop_assert!(shift >= TimeDelta::zero() && shift <= TimeDelta::seconds(i64::from(most_s)));
        prop_assert_eq!(shift, jitter(&name, due, most_s));
    }

    #[test]
    fn retries_end_and_their_pauses_grow_up_to_a_bound(run in any::<i64>(), most in 0_u16..30, first_s in 1_u32..600, longest_s in 1_u32..3_600) {
        let retries = Retries { most, first_s, longest_s };
        for attempt in 1..=most {
            let pause = retries.pause(run, attempt).expect("a pause");
            prop_assert!(pause > TimeDelta::zero() && pause <= TimeDelta::seconds(i64::from(longest_s)));
        }
        prop_assert_eq!(retries.pause(run, most + 1), None);
    }

    #[test]
    fn runs_overlap_only_where_nothing_is_unfinished(overlap in prop::sample::select(Overlap::ALL), unfinished in 0_usize..200, caught_up in any::<bool>()) {
        let met = if caught_up { Met::CaughtUp } else { Met::OnTime };
        let decided = overlap.decide(met, unfinished);
        prop_assert!(unfinished > 0 || decided == Overlapping::Run);
        prop_assert!(unfinished < taskflow_core::job::QUEUE_MAX || decided != Overlapping::Run, "the queue is bounded");
        if overlap == Overlap::Skip && !caught_up && unfinished > 0 {
            prop_assert_eq!(decided, Overlapping::Skip);
        }
    }
}

/// The same moment, or one shortly before the next jump of the zone's clocks: there is where it is interesting.
fn near_a_jump(zone: Tz, moment: DateTime<Utc>) -> DateTime<Utc> {
    use chrono::Offset;
    let offset = |at: DateTime<Utc>| at.with_timezone(&zone).offset().fix();
    let days = (0..200).map(|day| moment + TimeDelta::days(day));
    days.into_iter().find(|day| offset(*day) != offset(*day + TimeDelta::days(1))).unwrap_or(moment)
}
