//! What must hold of whatever removes events: nothing that is held or too young goes, whatever the policy was or becomes.

use chrono::{DateTime, TimeDelta, Utc};
use proptest::prelude::*;
use taskflow_core::event::TYPES;
use taskflow_core::retention::{
    Class, Classes, Holds, Kept, LegalMinimum, Retention, SYSTEM_TYPES, Verdict, held_until, mark, stamp,
    verdict,
};
use uuid::Uuid;

fn class() -> impl Strategy<Value = Class> {
    prop::sample::select(Class::ALL.to_vec())
}

fn kind() -> impl Strategy<Value = &'static str> {
    prop::sample::select(
        TYPES.into_iter().chain(SYSTEM_TYPES).chain(["system.of_tomorrow"]).collect::<Vec<_>>(),
    )
}

fn days() -> impl Strategy<Value = [u16; 4]> {
    prop::array::uniform4(prop_oneof![0_u16..10, 0_u16..4_000, Just(u16::MAX)])
}

prop_compose! {
    fn retention()(set in days(), legal in days(), moved in prop::collection::vec((kind(), class()), 0..5)) -> Retention {
        let mut classes = Classes::default();
        for (kind, class) in moved {
            // A type that is not known yet can't be moved.
            let _ = classes.set(kind, class);
        }
        let [user_activity_days, task_events_days, system_events_days, audit_logs_days] = set;
        let legal_minimum = LegalMinimum {
            user_activity_days: legal[0],
            task_events_days: legal[1],
            system_events_days: legal[2],
            audit_logs_days: legal[3],
        };
        Retention {
            user_activity_days, task_events_days, system_events_days, audit_logs_days, legal_minimum, classes,
            ..Retention::default()
        }
    }
}

fn legal_days(retention: &Retention, class: Class) -> u16 {
    let LegalMinimum { user_activity_days, task_events_days, system_events_days, audit_logs_days } =
        retention.legal_minimum;
    match class {
        Class::UserActivity => user_activity_days,
        Class::TaskEvents => task_events_days,
        Class::SystemEvents => system_events_days,
        Class::AuditLogs => audit_logs_days,
    }
}

fn start() -> DateTime<Utc> {
    DateTime::from_timestamp(1_900_000_000, 0).expect("a time")
}

proptest! {
    #[test]
    fn nothing_that_is_held_or_too_young_is_removed(
        retention in retention(), kind in kind(),
        age_s in prop_oneof![0_i64..1_000_000, 0_i64..400_000_000, -1_000_i64..1_000],
        stamped_s in prop_oneof![-1_000_000_i64..1_000_000, -400_000_000_i64..400_000_000],
        entity in 0_u128..4, actor in 0_u128..4,
        held in prop::collection::hash_set(0_u128..4, 0..3), acting in prop::collection::hash_set(0_u128..4, 0..3),
    ) {
        let now = start();
        let event = Kept {
            kind,
            entity: Uuid::from_u128(entity),
            actor: Uuid::from_u128(100 + actor),
            created_at: now - TimeDelta::seconds(age_s),
            expires_at: now + TimeDelta::seconds(stamped_s),
        };
        let holds = Holds {
            entities: held.iter().map(|id| Uuid::from_u128(*id)).collect(),
            actors: acting.iter().map(|id| Uuid::from_u128(100 + *id)).collect(),
        };
        let is_held = held.contains(&entity) || acting.contains(&actor);
        let least_days = retention.days_of(kind);
        let decided = verdict(&retention, &holds, &event, now);
        if decided == Verdict::Remove {
            prop_assert!(!is_held, "what is held was removed");
            prop_assert!(age_s >= i64::from(least_days) * 86_400, "{} s old, kept for {} days", age_s, least_days);
            prop_assert!(event.expires_at <= now, "before its own time");
        }
        if is_held {
            prop_assert!(decided == Verdict::Stamp(held_until()));
            let marked = Kept { expires_at: mark(now), ..event };
            prop_assert_eq!(verdict(&retention, &holds, &marked, now), Verdict::Keep);
        }
        // Whatever is stamped is right from then on; what is removed at some time is removed later too.
        let right = Kept { expires_at: stamp(&retention, &holds, &event), ..event };
        prop_assert!(matches!(verdict(&retention, &holds, &right, now), Verdict::Keep | Verdict::Remove));
        if !is_held {
            prop_assert_eq!(verdict(&retention, &holds, &right, right.expires_at), Verdict::Remove);
        }
    }

    /// A policy that changes changes its text; one that does not leaves every stamp as it is.
    #[test]
    fn stamps_follow_from_the_policys_text(one in retention(), two in retention(), kind in kind()) {
        if one.policy() == two.policy() {
            prop_assert_eq!(one.expires_at(kind, start()), two.expires_at(kind, start()));
        }
        prop_assert!(one.expires_at(kind, start()) >= start());
        // What the law asks of a type's own class holds in whichever class the settings put it.
        let least = TimeDelta::days(i64::from(legal_days(&one, Class::of(kind))));
        prop_assert!(one.expires_at(kind, start()) >= start() + least);
        if one.check().is_ok() {
            prop_assert!(one.expires_at(kind, start()) > start());
            // What passes is kept for as long as its class says: nothing was mended in silence.
            prop_assert_eq!(one.days_of(kind), one.days(one.class_of(kind)));
        }
    }

    #[test]
    fn settings_read_as_they_are_written(retention in retention()) {
        let text = serde_json::to_string(&retention).expect("JSON");
        prop_assert_eq!(serde_json::from_str::<Retention>(&text).expect("JSON"), retention);
    }
}

#[test]
fn the_specifications_times() {
    let retention = Retention::default();
    let days = |kind: &str| (retention.expires_at(kind, start()) - start()).num_days();
    assert_eq!(days("user.login"), 365);
    assert_eq!(days("task.created"), 180);
    assert_eq!(days("system.maintenance.started"), 90);
    assert_eq!(days("user.registered"), 2557);
    assert!(retention.check().is_ok());
    let short = Retention { audit_logs_days: 100, ..retention };
    assert!(short.check().expect_err("too short").contains("legal minimum of 2555"));
    assert_eq!(short.days(Class::AuditLogs), 2555);
}

#[test]
fn no_type_is_moved_below_the_minimum_of_its_own_class() {
    let moved = |kind: &str, class, days| {
        let mut classes = Classes::default();
        classes.set(kind, class).expect("a type");
        Retention { classes, user_activity_days: days, ..Retention::default() }
    };
    let short = moved("user.registered", Class::UserActivity, 365);
    let told = short.check().expect_err("too short");
    assert!(told.contains("user.registered") && told.contains("2555"), "{told}");
    assert_eq!(short.days_of("user.registered"), 2555);
    assert!(moved("user.registered", Class::UserActivity, 2555).check().is_ok());
    assert!(moved("task.created", Class::UserActivity, 10).check().is_ok());
}

proptest! {
    /// A newer hold changes the mark of an older one, and every mark is one of what is held.
    #[test]
    fn a_newer_hold_has_a_later_mark(since_s in 0_u32..1_000_000_000, later_s in 1_u32..1_000_000_000) {
        let since = start() + TimeDelta::seconds(i64::from(since_s));
        let later = since + TimeDelta::seconds(i64::from(later_s));
        prop_assert!(held_until() <= mark(since) && mark(since) < mark(later));
        prop_assert!(chrono::Datelike::year(&mark(later)) == 9999);
    }
}
