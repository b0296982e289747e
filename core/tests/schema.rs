//! The schemas say what the code does: of made-up commands, good and bad, both take the same ones.

use proptest::prelude::*;
use serde_json::{Value, json};
use taskflow_core::command::TYPES;
use taskflow_core::{envelope, schema};

/// Values to put in the place of others. Left out is what a schema can't say, as `schema.rs` tells.
fn values() -> Vec<Value> {
    let long = |length: usize| Value::String("ä".repeat(length));
    let mut values = vec![
        json!(null),
        json!(true),
        json!(0),
        json!(1),
        json!(-3),
        json!(2_147_483_647_i64),
        json!(2_147_483_648_i64),
        json!(1.5),
        json!([]),
        json!(["x"]),
        json!({}),
        json!({ "firstName": "Ada" }),
        json!({ "firstName": "é".repeat(255), "lastName": null }),
        json!({ "firstName": "Ada", "lastName": "x".repeat(256) }),
        json!({ "firstName": ["Ada"] }),
        json!({ "title": null }),
    ];
    values.extend([0, 1, 63, 64, 65, 128, 129, 254, 255, 256, 512, 513, 20_000, 20_001].map(long));
    let texts = [
        "1.0",
        "2.0",
        "normal",
        "low",
        "high",
        "urgent",
        "lowest",
        "todo",
        "done",
        "admin",
        "user",
        "root",
        "task.create",
        "task.update",
        "application/json",
        "text/plain",
        "taskflow:/schemas/task.create/1",
        "/crm/eu",
        "a b",
        "a\tb",
        "nul\0",
        "a\u{85}b",
        "0189f7a0-6d3c-7e4b-9a51-3f0c2f4f7a10",
        "0189F7A0-6D3C-7E4B-9A51-3F0C2F4F7A10",
        "0189f7a06d3c7e4b9a513f0c2f4f7a10",
        "0189f7a0-6d3c-7e4b-9a51-3f0c2f4f7a1",
        "{0189f7a0-6d3c-7e4b-9a51-3f0c2f4f7a10}",
        "0189f7a0-6d3c-7e4b-9a51-3f0c2f4f7a1g",
        "2099-01-31T08:00:00Z",
        "2099-01-31T08:00:00.123456+02:00",
        "2099-13-31T08:00:00Z",
        "1969-06-30T00:00:00Z",
        "2099-01-31",
        "2099-01-31T08:00:00",
        "yesterday",
        "ada@example.org",
        "Ada.L+x@sub-1.example.org",
        "ada@",
        "@example.org",
        "ada@-example.org",
        "ada@example..org",
        "a@b@c.org",
        "ädä@example.org",
        "ada example@example.org",
        "a@b",
        "$2b$12$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234",
        "$2a$12$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234",
        "$2b$09$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234",
        "$2b$12$short",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
        "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-x",
    ];
    values.extend(texts.map(Value::from));
    values
}

const ENVELOPE: [&str; 18] = [
    "specversion",
    "id",
    "source",
    "type",
    "subject",
    "actorid",
    "correlationid",
    "time",
    "datacontenttype",
    "dataschema",
    "priority",
    "notbefore",
    "expirytime",
    "traceparent",
    "tracestate",
    "useragent",
    "sessionid",
    "data",
];
const DATA: [&str; 13] = [
    "email",
    "passwordhash",
    "role",
    "profile",
    "sessionid",
    "title",
    "description",
    "priority",
    "assigneeid",
    "duedate",
    "status",
    "expectedversion",
    "colour",
];

#[derive(Debug, Clone)]
struct Change {
    inside: bool,
    field: usize,
    /// `None` takes the field away.
    value: Option<usize>,
}

fn change() -> impl Strategy<Value = Change> {
    let value = proptest::option::weighted(0.9, 0..values().len());
    (any::<bool>(), 0..64usize, value).prop_map(|(inside, field, value)| Change { inside, field, value })
}

fn apply(command: &mut Value, change: &Change, values: &[Value]) {
    let (target, field) = if change.inside {
        (command.get_mut("data"), DATA[change.field % DATA.len()])
    } else {
        (Some(command), ENVELOPE[change.field % ENVELOPE.len()])
    };
    let Some(fields) = target.and_then(Value::as_object_mut) else { return };
    match change.value {
        Some(value) => drop(fields.insert(field.to_owned(), values[value].clone())),
        None => drop(fields.remove(field)),
    }
}

fn validator(kind: &str) -> jsonschema::Validator {
    let schema = schema::command(kind, schema::MAJOR).expect("a schema");
    jsonschema::options().should_validate_formats(true).build(&schema).expect("a valid schema")
}

#[test]
fn every_schema_is_valid_and_takes_its_example() {
    for kind in TYPES {
        let schema = schema::command(kind, schema::MAJOR).expect("a schema");
        assert!(jsonschema::meta::is_valid(&schema), "{kind}");
        let example = &schema["examples"][0];
        assert!(validator(kind).is_valid(example), "{kind}: {example}");
        envelope::read(example.clone()).expect("a good example");
    }
    assert_eq!(schema::command("task.paint", 1), None);
    assert_eq!(schema::command("task.create", 2), None);
}

#[test]
fn schemas_and_code_take_the_same_commands() {
    let values = values();
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig::with_cases(3_000));
    for kind in TYPES {
        let validator = validator(kind);
        let example = schema::command(kind, schema::MAJOR).expect("a schema")["examples"][0].clone();
        runner
            .run(&proptest::collection::vec(change(), 0..4), |changes| {
                let mut command = example.clone();
                for change in &changes {
                    apply(&mut command, change, &values);
                }
                // Another type has a schema of its own.
                prop_assume!(command["type"] == kind);
                let read = envelope::read(command.clone());
                let faults = read.as_ref().err().map(ToString::to_string);
                prop_assert_eq!(validator.is_valid(&command), read.is_ok(), "{}\n{:?}", command, faults);
                Ok(())
            })
            .unwrap_or_else(|error| panic!("{kind}: {error}"));
    }
}
