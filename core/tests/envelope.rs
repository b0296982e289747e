//! Reading and writing commands: a round trip changes nothing, and no bytes make the reader panic.

use proptest::prelude::*;
use serde_json::{Value, json};
use taskflow_core::Command;
use taskflow_core::envelope::{parse, read};
use taskflow_core::fault::FAULTS_MAX;

fn valid(kind: &str, data: Value) -> Value {
    json!({
        "specversion": "1.0", "id": "0189f7a0-6d3c-7e4b-9a51-3f0c2f4f7a10", "source": "/crm/eu", "type": kind,
        "subject": "0189f7a0-6d3c-7e4b-9a51-3f0c2f4f7a11", "actorid": "0189f7a0-6d3c-7e4b-9a51-3f0c2f4f7a12",
        "data": data,
    })
}

fn payloads() -> Vec<Value> {
    let hash = "$2b$12$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234";
    vec![
        valid(
            "user.register",
            json!({ "email": "Ada@example.org", "passwordhash": hash, "profile": { "a": [1, null] } }),
        ),
        valid("user.update_profile", json!({ "profile": { "firstName": null } })),
        valid("user.record_login", json!({ "sessionid": "digest" })),
        valid("user.record_logout", json!({ "sessionid": "digest" })),
        valid(
            "task.create",
            json!({ "title": "é".repeat(255), "duedate": "2099-01-01T00:00:00.123456+02:00" }),
        ),
        valid(
            "task.update",
            json!({ "description": null, "duedate": null, "priority": "low", "expectedversion": 3 }),
        ),
        valid("task.assign", json!({ "assigneeid": null })),
        valid("task.change_status", json!({ "status": "in_progress" })),
        valid("task.delete", json!({})),
    ]
}

fn command(value: Value) -> Command {
    read(value).unwrap_or_else(|malformed| panic!("{malformed}"))
}

#[test]
fn every_type_survives_a_round_trip() {
    for value in payloads() {
        let mut value = value;
        value["time"] = json!("2026-11-23T14:00:00Z");
        value["priority"] = json!("low");
        value["expirytime"] = json!("2030-01-01T00:00:00Z");
        value["traceparent"] = json!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        value["useragent"] = json!("test/1");
        let first = command(value);
        let second = parse(&first.to_json()).expect("what was written can be read");
        assert_eq!(first, second);
        assert_eq!(first.fingerprint(), second.fingerprint());
    }
}

#[test]
fn a_fingerprint_is_of_what_is_asked_for() {
    for value in payloads() {
        let first = command(value.clone()).fingerprint();
        let mut stamped = value.clone();
        stamped["time"] = json!("2026-11-23T14:00:00Z");
        stamped["useragent"] = json!("another client");
        stamped["traceparent"] = json!("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01");
        assert_eq!(command(stamped).fingerprint(), first, "an intake's stamps count");
        let mut other = value;
        other["actorid"] = json!("0189f7a0-6d3c-7e4b-9a51-3f0c2f4f7aff");
        assert_ne!(command(other).fingerprint(), first);
    }
    let title = |title: &str| command(valid("task.create", json!({ "title": title }))).fingerprint();
    assert_ne!(title("one"), title("other"));
}

#[test]
fn all_faults_are_named_at_once() {
    let mut value = valid("task.create", json!({ "title": "", "colour": 1, "priority": "soon" }));
    value["subject"] = json!("x");
    value["surprise"] = json!(1);
    let malformed = read(value).expect_err("faults");
    let mut pointers: Vec<&str> = malformed.faults.iter().map(|fault| fault.pointer.as_str()).collect();
    pointers.sort_unstable();
    assert_eq!(pointers, ["/data/colour", "/data/priority", "/data/title", "/subject", "/surprise"]);
    assert!(malformed.id.is_some(), "its id could be read");
}

#[test]
fn a_clear_password_is_never_repeated() {
    let secret = "correct horse battery staple";
    let value = valid("user.register", json!({ "email": "a@b.example", "passwordhash": secret }));
    assert!(!read(value).expect_err("no hash").summary().contains("horse"));
}

proptest! {
    #[test]
    fn no_bytes_make_the_reader_panic(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
        if let Err(malformed) = parse(&bytes) {
            prop_assert!(!malformed.faults.is_empty());
        }
    }

    #[test]
    fn no_damage_makes_the_reader_panic(
        which in 0..9_usize, cut in 0..600_usize, flips in prop::collection::vec((0..600_usize, any::<u8>()), 0..6),
    ) {
        let mut bytes = payloads()[which].to_string().into_bytes();
        for (place, byte) in flips {
            let place = place % bytes.len();
            bytes[place] = byte;
        }
        bytes.truncate(cut.max(1));
        if let Err(malformed) = parse(&bytes) {
            prop_assert!(!malformed.faults.is_empty());
        }
    }

    /// Any JSON in any field: refused by a fault at that field or below it, or taken.
    #[test]
    fn a_fault_is_where_the_damage_is(
        which in 0..9_usize, field in 0..12_usize,
        value in prop_oneof![Just(Value::Null), any::<bool>().prop_map(Value::from), any::<i64>().prop_map(Value::from),
                             ".{0,40}".prop_map(Value::from), Just(json!([1])), Just(json!({ "x": 1 }))],
    ) {
        let names = ["specversion", "id", "source", "type", "subject", "actorid", "correlationid", "time", "priority",
                     "expirytime", "traceparent", "useragent"];
        let name = names[field];
        let mut event = payloads()[which].clone();
        event[name] = value;
        if let Err(malformed) = read(event) {
            let here = format!("/{name}");
            let elsewhere = malformed.faults.iter().find(|fault| !fault.pointer.starts_with(&here));
            prop_assert!(elsewhere.is_none(), "{:?} for damage at {}", elsewhere, here);
        }
    }
}

#[test]
fn what_is_wrong_with_a_small_input_is_told_in_bounds() {
    let mut command = json!({ "specversion": "1.0" });
    for number in 0..100_000 {
        command[format!("{number}")] = 0.into();
    }
    let malformed = parse(command.to_string().as_bytes()).unwrap_err();
    assert!(malformed.faults.len() <= FAULTS_MAX + 1, "{} faults", malformed.faults.len());
    assert!(malformed.faults.last().unwrap().detail.contains("more faults"), "{:?}", malformed.faults.last());
    assert!(malformed.summary().len() < 4_096, "{}", malformed.summary());
}
