//! The schemas of what people and programs ask for in a body, beside commands: with the bounds that the handlers read by.

use serde_json::{Map, Value, json};
use taskflow_core::api_key::{NAME_MAX, SOURCE_PREFIX_MAX, Scope};
use taskflow_core::command::{EMAIL_MAX, TYPES};
use taskflow_core::state::Role;
use taskflow_core::{dead_letter, schema};
use taskflow_stores::postgres::dead_letter_replays::{RATE_MAX, RATE_MIN};
use taskflow_stores::postgres::{job_schedules, legal_holds, pauses};

use super::shapes::{ID, NO_NUL, reference, simple, words};
use crate::passwords::{PASSWORD_MAX, PASSWORD_MIN};
use crate::routes;

/// An object without fields that are not named.
fn order(required: &[&str], properties: Value, example: Value) -> Value {
    json!({
        "type": "object", "required": required, "properties": properties, "additionalProperties": false,
        "examples": [example],
    })
}

/// Text without NUL. `min` and `max` are characters.
fn text(min: usize, max: usize) -> Value {
    json!({ "type": "string", "minLength": min, "maxLength": max, "pattern": NO_NUL })
}

/// The value, or null, which means the same as leaving it out.
fn or_null(value: &Value) -> Value {
    json!({ "anyOf": [value, { "type": "null" }] })
}

/// A password: its bytes are bounded, so this says less than the handler does.
fn password(min: usize) -> Value {
    json!({ "type": "string", "format": "password", "minLength": min, "maxLength": PASSWORD_MAX })
}

pub(super) fn all() -> Map<String, Value> {
    let (uuid, time) = (simple("uuid"), simple("time"));
    let mut orders: Map<String, Value> = Map::new();
    let mut put = |name: &str, shape: Value| drop(orders.insert(name.to_owned(), shape));
    let (email, secret) = (text(1, EMAIL_MAX), "correct horse battery staple");
    put(
        "Login",
        order(
            &["email", "password"],
            json!({ "email": email, "password": password(0) }),
            json!({ "email": "ada@example.org", "password": secret }),
        ),
    );
    put(
        "NewUser",
        order(
            &["email", "password"],
            json!({
                "id": or_null(&uuid), "password": password(PASSWORD_MIN), "profile": { "type": ["object", "null"] },
                "email": { "type": "string", "maxLength": EMAIL_MAX, "format": "email" },
            }),
            json!({ "email": "ada@example.org", "password": secret }),
        ),
    );
    put("NewRole", order(&["role"], json!({ "role": words(&Role::WORDS) }), json!({ "role": "admin" })));
    put(
        "NewPassword",
        order(&["password"], json!({ "password": password(PASSWORD_MIN) }), json!({ "password": secret })),
    );
    put(
        "OwnPassword",
        order(
            &["current", "password"],
            json!({ "current": password(0), "password": password(PASSWORD_MIN) }),
            json!({ "current": "the one before", "password": secret }),
        ),
    );
    let scopes = json!({ "type": "array", "items": words(&Scope::WORDS), "minItems": 1 });
    put(
        "NewApiKey",
        order(
            &["name", "scopes"],
            json!({
                "name": text(1, NAME_MAX), "scopes": scopes,
                "sourceprefix": or_null(&text(1, SOURCE_PREFIX_MAX)), "expiresat": or_null(&time),
            }),
            json!({ "name": "crm", "scopes": ["commands:write"], "sourceprefix": "/crm" }),
        ),
    );
    put(
        "NewPause",
        order(
            &["scope", "reason"],
            json!({
                "scope": { "type": "string", "pattern": "^(all|partition:.+|type:.+)$", "maxLength": 200 },
                "reason": text(1, pauses::REASON_MAX),
            }),
            json!({ "scope": "type:task.create", "reason": "upstream sends nonsense" }),
        ),
    );
    letters(&mut put);
    put(
        "NewRun",
        order(
            &[],
            json!({
                "dryrun": { "type": "boolean" },
                "arguments": { "type": "object", "additionalProperties": { "type": "boolean" } },
            }),
            json!({ "dryrun": true }),
        ),
    );
    let reason = text(1, job_schedules::REASON_MAX);
    put("PauseReason", order(&["reason"], json!({ "reason": reason }), json!({ "reason": "a load test" })));
    let why = text(1, legal_holds::WHY_MAX);
    let hold = |of: &str| {
        order(&[of, "why"], json!({ of: uuid, "why": why }), json!({ of: ID, "why": "case 4711" }))
    };
    let either = [hold("entity"), hold("actor")];
    let samples: Vec<&Value> = either.iter().map(|hold| &hold["examples"][0]).collect();
    put("NewHold", json!({ "oneOf": either, "examples": samples }));
    orders
}

/// What is decided about dead letters.
fn letters(put: &mut impl FnMut(&str, Value)) {
    let why = text(0, routes::dead_letters::WHY_MAX);
    let word = json!({ "type": ["string", "null"], "pattern": NO_NUL });
    let (uuid, time) = (or_null(&simple("uuid")), or_null(&simple("time")));
    put("Why", order(&[], json!({ "why": or_null(&why) }), json!({ "why": "upstream has mended it" })));
    let given = text(1, routes::dead_letters::WHY_MAX);
    put("WhyNot", order(&["why"], json!({ "why": given }), json!({ "why": "sent by mistake" })));
    let sample = schema::command(TYPES[0], schema::MAJOR).map(|command| command["examples"][0].clone());
    put(
        "Edit",
        order(
            &["command"],
            json!({ "command": reference("Command"), "why": or_null(&why) }),
            json!({ "command": sample, "why": "the title was too long" }),
        ),
    );
    put(
        "Rehearsal",
        order(
            &[],
            json!({ "command": or_null(&reference("Command")), "why": or_null(&why) }),
            json!({ "why": "only to see" }),
        ),
    );
    let filter = json!({
        "type": "object", "minProperties": 1, "additionalProperties": false,
        "properties": {
            "reason": word, "type": word, "source": word, "fingerprint": word,
            "state": or_null(&json!({ "const": dead_letter::State::Kept.as_str() })),
            "subject": uuid, "command": uuid, "from": time, "to": time,
        },
    });
    put(
        "NewReplay",
        order(
            &["filter"],
            json!({
                "filter": filter, "why": or_null(&why),
                "rate": { "type": "number", "minimum": RATE_MIN, "maximum": RATE_MAX },
            }),
            json!({ "filter": { "state": dead_letter::State::Kept.as_str() }, "rate": 10 }),
        ),
    );
}
