//! The schemas that calls refer to. Those of commands come from `taskflow_core::schema`.

use serde_json::{Map, Value, json};
use taskflow_core::command::TYPES;
use taskflow_core::event::TYPES as TYPES_OF_EVENTS;
use taskflow_core::retention::SYSTEM_TYPES;
use taskflow_core::state::{Role, TaskPriority, TaskStatus};
use taskflow_core::{dead_letter, job, schema};

use super::{answers, errors, orders};

/// A pattern of JSON Schema.
pub(super) const NO_NUL: &str = "^[^\\u0000]*$";

/// A reference to a schema by its name.
pub(super) fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// The schema of a parameter.
pub(super) fn simple(kind: &str) -> Value {
    match kind {
        "uuid" => json!({ "type": "string", "format": "uuid" }),
        "time" => json!({ "type": "string", "format": "date-time" }),
        "page" => json!({ "type": "integer", "minimum": 1, "maximum": 10_000, "default": 1 }),
        "pagesize" => json!({ "type": "integer", "minimum": 1, "maximum": 100, "default": 20 }),
        "search" => json!({ "type": "string", "minLength": 1, "maxLength": 200, "pattern": NO_NUL }),
        "status" => {
            let words = words(&TaskStatus::WORDS);
            json!({ "anyOf": [words, { "const": "all" }] })
        }
        "letterstate" => json!({ "enum": dead_letter::State::ALL }),
        "runstate" => json!({ "enum": job::State::ALL }),
        "met" => json!({ "enum": job::Met::ALL }),
        "eventtype" => json!({
            "type": "string", "minLength": 1, "pattern": NO_NUL,
            "examples": TYPES_OF_EVENTS.into_iter().chain(SYSTEM_TYPES).collect::<Vec<_>>(),
        }),
        "flag" => json!({ "enum": ["true", "false"] }),
        "order" => json!({ "enum": ["newest", "work"], "default": "newest" }),
        _ => json!({ "type": "string", "pattern": NO_NUL }),
    }
}

pub(super) fn words<T>(words: &[(&'static str, T)]) -> Value {
    json!({ "enum": words.iter().map(|(word, _)| *word).collect::<Vec<_>>() })
}

/// A sample of the problem document that comes with a status.
pub(super) fn problem(status: u16) -> Value {
    let (code, title, detail) = match status {
        400 => ("validation_failed", "Invalid input", "the input breaks the rules that errors names"),
        401 => ("unauthorized", "Who are you?", "this token is not (or no longer) valid"),
        403 => ("forbidden", "Not allowed", "you may read yourself and your own tasks"),
        404 => ("not_found", "Not found", "there is nothing at this path"),
        406 => ("not_acceptable", "No such form", "answers are application/json"),
        408 => ("too_slow", "Too slow", "the body did not come in time; nothing of it was taken"),
        409 => {
            ("idempotency_mismatch", "The id is taken", "another command with this id was accepted before")
        }
        413 => ("too_large", "Too large", "a body has at most 8388608 bytes"),
        414 => ("uri_too_long", "Address too long", "a path has at most 1024 bytes and a query 4096"),
        415 => ("unsupported_media_type", "Wrong content type", "send application/json"),
        429 => ("quota_exceeded", "Too many requests", "the quota of user is used up; it begins anew in 7 s"),
        500 => ("internal", "Our fault", "the log has the cause under this x-request-id"),
        _ => {
            ("unavailable", "Try again soon", "postgres is not available at the moment; send the same again")
        }
    };
    let mut problem = json!({
        "type": format!("taskflow:/problems/{code}"), "title": title, "status": status, "detail": detail, "code": code,
    });
    if status == 400 {
        problem["errors"] = json!([{ "pointer": "/data/title", "detail": "must have 1 to 255 characters" }]);
    }
    problem
}

pub(super) const ID: &str = "0189f7a0-6d3c-7e4b-9a51-3f0c2f4f7a10";
const AT: &str = "2030-01-31T08:00:00.123456Z";

fn object(required: &[&str], properties: Value, example: Value) -> Value {
    json!({ "type": "object", "required": required, "properties": properties, "examples": [example] })
}

/// Items in numbered pages, or up to a cursor.
fn list(name: &str, sample: &Value) -> Value {
    let items = reference(name);
    json!({
        "examples": [{ "items": [sample], "pagesize": 20 }],
        "type": "object",
        "required": ["items"],
        "properties": {
            "items": { "type": "array", "items": items },
            "page": { "type": "integer" },
            "pagesize": { "type": "integer" },
            "next": { "type": ["string", "integer"], "description": "Where the next page begins, if there is one" },
        },
    })
}

/// The schema of a command type, as a component's name.
fn command_name(kind: &str) -> String {
    format!("command.{kind}.{}", schema::MAJOR)
}

pub(super) fn all() -> Map<String, Value> {
    let (uuid, time) = (simple("uuid"), simple("time"));
    let or_null = |kind: &Value| json!({ "anyOf": [kind, { "type": "null" }] });
    let mut shapes: Map<String, Value> = Map::new();
    let mut put = |name: &str, shape: Value| drop(shapes.insert(name.to_owned(), shape));
    for kind in TYPES {
        if let Some(Value::Object(mut command)) = schema::command(kind, schema::MAJOR) {
            // The document says which draft its schemas are of.
            command.remove("$schema");
            command.remove("$id");
            put(&command_name(kind), Value::Object(command));
        }
    }
    let commands: Vec<Value> = TYPES.iter().map(|kind| reference(&command_name(kind))).collect();
    let samples: Vec<Value> = TYPES.iter().filter_map(|kind| schema::command(kind, schema::MAJOR)).collect();
    let samples: Vec<&Value> = samples.iter().map(|command| &command["examples"][0]).collect();
    put("Command", json!({ "oneOf": commands, "examples": samples }));
    put(
        "Commands",
        json!({
            "type": "array", "items": reference("Command"), "minItems": 1, "maxItems": 10_000, "examples": [samples],
        }),
    );
    let either = [reference("Command"), reference("Commands")];
    put("CommandOrCommands", json!({ "anyOf": either, "examples": [samples.first(), samples] }));
    let line = schema::command(TYPES[0], schema::MAJOR).map(|command| command["examples"][0].to_string());
    let lines = json!({
        "type": "string", "description": "One command a line, any number of lines", "examples": [line.unwrap_or_default() + "\n"],
    });
    put("Lines", lines);
    put("Text", json!({ "type": "string", "examples": ["…"] }));
    put(
        "Accepted",
        json!({
            "type": "object",
            "description": "Of one command: id, status, status_url. Of many: accepted, refused",
            "properties": {
                "id": uuid, "status": { "const": "accepted" }, "status_url": { "type": "string" },
                "accepted": { "type": "integer" },
                "refused": { "type": "array", "items": object(&["index", "problem"], json!({
                    "index": { "type": "integer" }, "id": uuid, "problem": reference("Problem"),
                }), json!({ "index": 3, "id": ID, "problem": problem(400) })) },
            },
            "examples": [
                { "id": ID, "status": "accepted", "status_url": format!("/v1/commands/{ID}") },
                { "accepted": 10_000, "refused": [] },
            ],
        }),
    );
    put(
        "Receipt",
        object(
            &["id", "status", "events", "attempts"],
            json!({
                "id": uuid, "type": { "type": ["string", "null"] }, "subject": or_null(&uuid),
                "status": { "enum": ["accepted", "scheduled", "parked", "applied", "rejected", "expired", "cancelled", "dead"] },
                "code": { "type": "string" }, "detail": { "type": "string" }, "version": { "type": "integer" },
                "events": { "type": "array", "items": { "type": "string" } },
                "acceptedat": or_null(&time), "finishedat": or_null(&time), "nextattemptat": time,
                "auditedat": time, "cachedat": time, "publishedat": time, "attempts": { "type": "integer" },
            }),
            json!({
                "id": ID, "type": "task.create", "subject": ID, "status": "applied", "version": 1,
                "events": ["652f1d20a1b2c3d4e5f60718"], "acceptedat": AT, "finishedat": AT, "attempts": 1,
            }),
        ),
    );
    put(
        "Session",
        object(
            &["token", "userid", "expiresat"],
            json!({ "token": { "type": "string" }, "userid": uuid, "expiresat": time }),
            json!({ "token": "tfs_…", "userid": ID, "expiresat": AT }),
        ),
    );
    let task = json!({
        "version": 1, "id": ID, "title": "Write the report", "description": null, "status": "todo",
        "priority": "high", "assigneeid": null, "creatorid": ID, "createdat": AT, "updatedat": AT,
        "completedat": null, "duedate": "2099-01-31T17:00:00Z",
    });
    put(
        "Task",
        object(
            &["version", "id", "title", "status", "priority", "creatorid", "createdat", "updatedat"],
            json!({
                "version": { "type": "integer" }, "id": uuid, "title": { "type": "string" },
                "description": { "type": ["string", "null"] }, "status": words(&TaskStatus::WORDS),
                "priority": words(&TaskPriority::WORDS), "assigneeid": or_null(&uuid), "creatorid": uuid,
                "createdat": time, "updatedat": time, "completedat": or_null(&time), "duedate": or_null(&time),
            }),
            task.clone(),
        ),
    );
    put("TaskPage", list("Task", &task));
    put(
        "User",
        object(
            &["version", "id", "email", "role", "createdat", "updatedat"],
            json!({
                "version": { "type": "integer" }, "id": uuid, "email": { "type": "string" },
                "role": words(&Role::WORDS), "profile": { "type": ["object", "null"] }, "createdat": time,
                "updatedat": time,
            }),
            json!({
                "version": 2, "id": ID, "email": "ada@example.org", "role": "user",
                "profile": { "firstName": "Ada" }, "createdat": AT, "updatedat": AT,
            }),
        ),
    );
    let number = json!({ "type": "integer", "minimum": 0 });
    put(
        "TaskStats",
        object(
            &["total", "byStatus", "overdue"],
            json!({
                "total": number, "overdue": number,
                "byStatus": { "type": "object", "additionalProperties": number },
            }),
            json!({
                "total": 25, "byStatus": { "todo": 10, "in_progress": 3, "review": 2, "done": 10 }, "overdue": 2,
            }),
        ),
    );
    let change = object(
        &["version", "id", "type", "actorid", "createdat", "data"],
        json!({
            "version": { "type": "integer" }, "id": { "type": "string" }, "type": { "type": "string" },
            "actorid": uuid, "createdat": time, "data": { "type": "object" },
        }),
        json!({
            "version": 2, "id": "652f1d20a1b2c3d4e5f60718", "type": "task.updated", "actorid": ID, "createdat": AT,
            "data": { "title": "The new title", "previous": { "title": "The old one" } },
        }),
    );
    let changes = list("Change", &change["examples"][0]);
    put("Change", change);
    put("Changes", changes);
    let event = object(
        &["id", "type", "actorId", "entityId", "entityType", "payload", "metadata", "createdAt", "expiresAt"],
        json!({
            "id": { "type": "string" }, "type": { "type": "string" }, "actorId": { "type": "string" },
            "entityId": { "type": "string" }, "entityType": { "enum": ["task", "user", "system"] },
            "version": { "type": "integer" }, "payload": { "type": "object" }, "metadata": { "type": "object" },
            "correlationId": { "type": "string" }, "commandId": { "type": "string" }, "run": { "type": "object" },
            "createdAt": time, "expiresAt": time,
        }),
        json!({
            "id": "652f1d20a1b2c3d4e5f60718", "type": "task.created", "actorId": ID, "entityId": ID,
            "entityType": "task", "version": 1, "payload": { "title": "Write the report" },
            "metadata": { "ipAddress": "192.0.2.7", "timestamp": AT }, "correlationId": ID, "commandId": ID,
            "createdAt": AT, "expiresAt": AT,
        }),
    );
    let events = list("Event", &event["examples"][0]);
    put("Event", event);
    put("EventPage", events);
    let words = json!(["task:create", "task:read", "task:update:own"]);
    put("Words", json!({ "type": "array", "items": { "type": "string" }, "examples": [words] }));
    put(
        "Problem",
        object(
            &["type", "title", "status", "detail", "code"],
            json!({
                "type": { "type": "string" }, "title": { "type": "string" }, "status": { "type": "integer" },
                "detail": { "type": "string" },
                "code": { "enum": errors::CODES, "description": "For programs; later versions may have more" },
                "violated-policies": {
                    "type": "array", "items": { "enum": ["user", "address"] },
                    "description": "With quota_exceeded: whose quota is used up",
                },
                "errors": { "type": "array", "items": {
                    "type": "object", "required": ["pointer", "detail"],
                    "properties": { "pointer": { "type": "string" }, "detail": { "type": "string" } },
                } },
                "accepted": { "type": "integer" },
            }),
            problem(400),
        ),
    );
    shapes.extend(orders::all());
    shapes.extend(answers::all());
    shapes
}
