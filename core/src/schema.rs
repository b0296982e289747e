//! What a command is, for machines: one JSON Schema (draft 2020-12) for each type and major version.
//!
//! The limits are the constants that [`crate::command`] and [`crate::envelope`] read by; `core/tests/schema.rs` holds
//! the two against each other with made-up commands, good and bad. What a schema can't say (the size and depth of a
//! profile, whole numbers written as `1.0`, years at the edge of a time zone) stands in a `$comment`.

pub mod compare;

use serde_json::{Map, Value, json};

use crate::command::{
    BCRYPT_COST, DESCRIPTION_MAX, EMAIL_MAX, NAME_MAX, PROFILE_MAX, PROFILE_NAMES, SESSION_MAX, TITLE_MAX,
    TYPES,
};
use crate::envelope::SOURCE_MAX;
use crate::state::{Role, TaskPriority, TaskStatus};

/// The major version of every type so far.
pub const MAJOR: u32 = 1;

/// How a schema is named, in `dataschema` and elsewhere.
pub fn name(kind: &str) -> String {
    format!("taskflow:/schemas/{kind}/{MAJOR}")
}

/// The schema of a command of this type; `None` if there is no such type or version.
pub fn command(kind: &str, major: u32) -> Option<Value> {
    if major != MAJOR || !TYPES.contains(&kind) {
        return None;
    }
    let data = data(kind);
    Some(json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$id": name(kind),
        "title": kind,
        "description": describe(kind),
        "type": "object",
        "required": ["specversion", "id", "source", "type", "subject", "actorid", "data"],
        "additionalProperties": false,
        "properties": {
            "specversion": { "const": "1.0" },
            "id": described(uuid(), "The idempotency key: one id takes effect at most once"),
            "source": described(
                json!({ "type": "string", "minLength": 1, "maxLength": SOURCE_MAX, "pattern": NO_BLANK }),
                "The upstream system, a URI reference such as /crm/eu",
            ),
            "type": { "const": kind },
            "subject": described(uuid(), "The entity that is changed: commands of one subject apply in their order"),
            "actorid": described(uuid(), "The user on whose behalf it is done"),
            "correlationid": optional(uuid()),
            "time": optional(time()),
            "datacontenttype": optional(json!({ "const": "application/json" })),
            "dataschema": optional(json!({ "const": name(kind) })),
            "priority": optional(json!({ "enum": ["normal", "low"] })),
            "notbefore": described(optional(time()), "The command waits until then"),
            "expirytime": described(optional(time()), "Not applied after it"),
            "traceparent": optional(json!({ "type": "string", "pattern": TRACEPARENT })),
            "tracestate": optional(text(0, 512)),
            "useragent": optional(text(0, 512)),
            "ipaddress": optional(text(0, 64)),
            "sessionid": optional(text(0, 128)),
            "data": data,
        },
        "examples": [example(kind)],
    }))
}

/// Every schema by its type and version, such as `task.create/1`.
pub fn all() -> Map<String, Value> {
    let schemas = TYPES.iter().filter_map(|kind| Some((format!("{kind}/{MAJOR}"), command(kind, MAJOR)?)));
    schemas.collect()
}

const NO_NUL: &str = "^[^\\u0000]*$";
const NO_BLANK: &str = "^[^\\s\\u0000-\\u001f\\u007f-\\u009f]*$";
const UUID: &str = "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}$";
const TRACEPARENT: &str = "^(?!ff)[0-9a-f]{2}-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$";
/// 1970 to 9999.
const YEARS: &str = "^(19[7-9][0-9]|[2-9][0-9]{3})-";
const EMAIL: &str = "^[!#-'*+./0-9=?A-Z^-~-]{1,64}@[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?(\\.[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?)*$";

fn text(min: usize, max: usize) -> Value {
    json!({ "type": "string", "minLength": min, "maxLength": max, "pattern": NO_NUL })
}

fn uuid() -> Value {
    json!({ "type": "string", "format": "uuid", "pattern": UUID })
}

fn time() -> Value {
    json!({ "type": "string", "format": "date-time", "pattern": YEARS })
}

fn version() -> Value {
    json!({
        "type": "integer", "minimum": 1, "maximum": i32::MAX,
        "$comment": "written without a fraction; the command is rejected if the entity has another version",
    })
}

/// `null` is as good as absent.
fn optional(mut schema: Value) -> Value {
    match schema.as_object_mut() {
        Some(fields) if fields.contains_key("type") => {
            let kind = fields.remove("type").unwrap_or_default();
            fields.insert("type".to_owned(), json!([kind, "null"]));
        }
        Some(fields) if fields.contains_key("const") => {
            let word = fields.remove("const").unwrap_or_default();
            fields.insert("enum".to_owned(), json!([word, null]));
        }
        Some(fields) => {
            if let Some(Value::Array(words)) = fields.get_mut("enum") {
                words.push(Value::Null);
            }
        }
        None => {}
    }
    schema
}

fn described(mut schema: Value, description: &str) -> Value {
    if let Some(fields) = schema.as_object_mut() {
        fields.insert("description".to_owned(), json!(description));
    }
    schema
}

fn words<T>(words: &[(&'static str, T)]) -> Value {
    json!({ "enum": words.iter().map(|(word, _)| *word).collect::<Vec<_>>() })
}

fn object(required: &[&str], properties: Value) -> Value {
    json!({ "type": "object", "required": required, "properties": properties, "additionalProperties": false })
}

fn profile() -> Value {
    let names = PROFILE_NAMES.into_iter().map(|name| (name.to_owned(), optional(text(0, NAME_MAX))));
    json!({
        "type": "object",
        "properties": names.collect::<Map<_, _>>(),
        "$comment": format!("at most {PROFILE_MAX} bytes of JSON and 8 levels, without NUL"),
    })
}

fn data(kind: &str) -> Value {
    let costs = BCRYPT_COST.map(|cost| cost.to_string()).collect::<Vec<_>>().join("|");
    let hash = json!({ "type": "string", "pattern": format!("^\\$2b\\$({costs})\\$[A-Za-z0-9./]{{53}}$") });
    match kind {
        "user.register" => object(
            &["email", "passwordhash"],
            json!({
                "email": { "type": "string", "minLength": 3, "maxLength": EMAIL_MAX, "pattern": EMAIL },
                "passwordhash": described(hash, "bcrypt; a clear password is never sent"),
                "role": optional(words(&Role::WORDS)),
                "profile": optional(profile()),
            }),
        ),
        "user.update_profile" => {
            object(&["profile"], json!({ "profile": described(profile(), "A JSON merge patch (RFC 7396)") }))
        }
        "user.record_login" | "user.record_logout" => object(
            &["sessionid"],
            json!({ "sessionid": described(text(1, SESSION_MAX), "A digest, never the token") }),
        ),
        "task.create" => object(
            &["title"],
            json!({
                "title": text(1, TITLE_MAX),
                "description": optional(text(0, DESCRIPTION_MAX)),
                "priority": optional(words(&TaskPriority::WORDS)),
                "assigneeid": optional(uuid()),
                "duedate": optional(time()),
            }),
        ),
        "task.update" => {
            let mut update = object(
                &[],
                json!({
                    "title": text(1, TITLE_MAX),
                    "description": optional(text(0, DESCRIPTION_MAX)),
                    "priority": words(&TaskPriority::WORDS),
                    "duedate": optional(time()),
                    "expectedversion": optional(version()),
                }),
            );
            let one_of_these = ["title", "description", "priority", "duedate"];
            update["anyOf"] = one_of_these.iter().map(|name| json!({ "required": [name] })).collect();
            update
        }
        "task.assign" => object(
            &["assigneeid"],
            json!({
                "assigneeid": described(optional(uuid()), "null takes the assignee away"),
                "expectedversion": optional(version()),
            }),
        ),
        "task.change_status" => object(
            &["status"],
            json!({ "status": words(&TaskStatus::WORDS), "expectedversion": optional(version()) }),
        ),
        _ => object(&[], json!({ "expectedversion": optional(version()) })),
    }
}

fn describe(kind: &str) -> &'static str {
    match kind {
        "user.register" => "A new user with the id of the subject. Only an admin registers an admin",
        "user.update_profile" => "Merges into the user's profile",
        "user.record_login" => "Writes a login to the audit trail",
        "user.record_logout" => "Writes a logout to the audit trail",
        "task.create" => "A new task with the id of the subject; the actor is its creator",
        "task.update" => "Changes fields of a task",
        "task.assign" => "Gives a task to somebody, or to nobody",
        "task.change_status" => "Moves a task; done sets its time of completion, another status clears it",
        _ => "Deletes a task softly",
    }
}

fn example(kind: &str) -> Value {
    let data = match kind {
        "user.register" => json!({
            "email": "ada@example.org",
            "passwordhash": "$2b$12$abcdefghijklmnopqrstuuABCDEFGHIJKLMNOPQRSTUVWXYZ01234",
            "profile": { "firstName": "Ada" },
        }),
        "user.update_profile" => json!({ "profile": { "lastName": "Lovelace", "nickName": null } }),
        "user.record_login" | "user.record_logout" => json!({ "sessionid": "9f86d081884c7d65" }),
        "task.create" => json!({
            "title": "Write the report", "priority": "high", "duedate": "2099-01-31T17:00:00Z",
        }),
        "task.update" => {
            json!({ "title": "Write the short report", "description": null, "expectedversion": 1 })
        }
        "task.assign" => json!({ "assigneeid": "0193b0f4-5e2c-7d31-9c55-2f6a1b0d9e77" }),
        "task.change_status" => json!({ "status": "in_progress" }),
        _ => json!({}),
    };
    json!({
        "specversion": "1.0", "id": "0189f7a0-6d3c-7e4b-9a51-3f0c2f4f7a10", "source": "/crm/eu", "type": kind,
        "subject": "0189f7a0-6d3c-7e4b-9a51-3f0c2f4f7a11", "actorid": "01930000-0000-7000-8000-000000000001",
        "data": data,
    })
}
