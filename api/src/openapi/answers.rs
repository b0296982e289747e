//! The schemas of what operators and programs are answered, beside what people read: each with a sample.

use serde_json::{Map, Value, json};
use taskflow_core::api_key::Scope;
use taskflow_core::state::Role;
use taskflow_core::{dead_letter, job};

use super::shapes::{ID, reference, simple, words};

const AT: &str = "2030-01-31T08:00:00.123456Z";
const SHA: &str = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08";

/// The schema of a field, by the word that the tables below use: one with `~` may be null.
fn kind(word: &str) -> Value {
    if let Some(word) = word.strip_suffix('~') {
        return json!({ "anyOf": [kind(word), { "type": "null" }] });
    }
    if let Some(name) = word.strip_suffix("[]") {
        return json!({ "type": "array", "items": kind(name) });
    }
    match word {
        "id" => simple("uuid"),
        "time" => simple("time"),
        "text" => json!({ "type": "string" }),
        "whole" => json!({ "type": "integer" }),
        "number" => json!({ "type": "number" }),
        "flag" => json!({ "type": "boolean" }),
        "object" => json!({ "type": "object" }),
        "value" => json!({}),
        "scope" => words(&Scope::WORDS),
        "role" => words(&Role::WORDS),
        "letterstate" => json!({ "enum": dead_letter::State::ALL }),
        "runstate" => json!({ "enum": job::State::ALL }),
        "met" => json!({ "enum": job::Met::ALL }),
        name => reference(name),
    }
}

/// An object. Fields are `name:kind`; one whose name ends in `?` may be missing. There are no others.
fn shape(fields: &[&str], sample: &Value) -> Value {
    let (mut required, mut properties) = (Vec::new(), Map::new());
    for field in fields {
        let (name, word) = field.split_once(':').unwrap_or((field, "value"));
        let optional = name.strip_suffix('?');
        if optional.is_none() {
            required.push(name);
        }
        properties.insert(optional.unwrap_or(name).to_owned(), kind(word));
    }
    json!({
        "type": "object", "required": required, "properties": properties, "additionalProperties": false,
        "examples": [sample],
    })
}

/// Items in a list of their own, without pages.
fn all_of(item: &str, sample: &Value) -> Value {
    shape(&[&format!("items:{item}[]")], &json!({ "items": [sample] }))
}

/// Items in pages.
fn page_of(item: &str, sample: &Value) -> Value {
    let fields = [&format!("items:{item}[]"), "pagesize:whole", "next?:text"];
    shape(&fields, &json!({ "items": [sample], "pagesize": 20 }))
}

pub(super) fn all() -> Map<String, Value> {
    let mut shapes = Map::new();
    let mut put = |name: &str, shape: Value| drop(shapes.insert(name.to_owned(), shape));
    about(&mut put);
    access(&mut put);
    letters(&mut put);
    replays(&mut put);
    jobs(&mut put);
    backups(&mut put);
    shapes
}

type Put<'p> = &'p mut dyn FnMut(&str, Value);

fn about(put: Put<'_>) {
    put("Alive", shape(&["status:text"], &json!({ "status": "ok" })));
    let row = json!({ "store": "postgres", "up": true, "needed": "logins and receipts" });
    put("StoreRow", shape(&["store:text", "up:flag", "needed:text", "detail?:text"], &row));
    put(
        "Readiness",
        shape(
            &["status:text", "stores:StoreRow[]", "faults:object", "notes:object"],
            &json!({
                "status": "ready", "stores": [row], "faults": {},
                "notes": { "partition:03": "paused by an operator" },
            }),
        ),
    );
    put(
        "SchemaList",
        shape(&["items:text[]"], &json!({ "items": ["/schemas/task.create/1", "/schemas/task.update/1"] })),
    );
    // Documents of other standards: what is in them is theirs to say.
    let document = |sample: Value| json!({ "type": "object", "examples": [sample] });
    put(
        "JsonSchema",
        document(json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema", "$id": "taskflow:/schemas/task.delete/1",
            "type": "object",
        })),
    );
    put(
        "OpenApi",
        document(json!({ "openapi": "3.1.0", "info": { "title": "TaskFlow", "version": "1" }, "paths": {} })),
    );
    put(
        "AsyncApi",
        document(
            json!({ "asyncapi": "3.0.0", "info": { "title": "TaskFlow", "version": "1" }, "channels": {} }),
        ),
    );
    let pause = json!({ "scope": "type:task.create", "reason": "upstream sends nonsense", "author": "user x", "since": AT });
    put("Pause", shape(&["scope:text", "reason:text", "author:text", "since:time"], &pause));
    put("Pauses", all_of("Pause", &pause));
}

fn access(put: Put<'_>) {
    let known = json!({
        "id": ID, "name": "crm", "scopes": ["commands:write"], "sourceprefix": "/crm", "createdat": AT, "createdby": ID,
        "lastusedat": "2030-01-31T08:00:00Z",
    });
    let fields = [
        "id:id",
        "name:text",
        "scopes:scope[]",
        "sourceprefix?:text",
        "createdat:time",
        "createdby:id",
        "expiresat?:time",
        "lastusedat?:time",
        "revokedat?:time",
    ];
    put("ApiKey", shape(&fields, &known));
    put("ApiKeyPage", page_of("ApiKey", &known));
    let mut made = known;
    made["key"] = json!("tfk_<id>_<secret>_<checksum>");
    made.as_object_mut().map(|made| made.remove("lastusedat"));
    put("MadeApiKey", shape(&[&fields[..], &["key:text"]].concat(), &made));
    let changed = json!({ "id": ID, "version": 3, "sessions": "ended" });
    put("ChangedPassword", shape(&["id:id", "version:whole", "sessions:text"], &changed));
    let changed = json!({ "id": ID, "role": "admin", "version": 3, "sessions": "ended" });
    put("ChangedRole", shape(&["id:id", "role:role", "version:whole", "sessions:text"], &changed));
}

fn letters(put: Put<'_>) {
    let fingerprint = "5f1d7a84db00d2fc";
    let summary = json!({
        "id": ID, "commandid": ID, "type": "task.create", "source": "/crm", "subject": ID, "reason": "failing",
        "detail": "the table refused it", "fingerprint": fingerprint, "state": "kept", "attempt": 1,
        "firstdiedat": AT, "lastdiedat": AT,
    });
    put(
        "LetterSummary",
        shape(
            &[
                "id:id",
                "commandid:id~",
                "type:text~",
                "source:text~",
                "subject:id~",
                "reason:text",
                "detail:text",
                "fingerprint:text",
                "state:letterstate",
                "attempt:whole",
                "firstdiedat:time",
                "lastdiedat:time",
            ],
            &summary,
        ),
    );
    put("LetterPage", page_of("LetterSummary", &summary));
    let group = json!({
        "fingerprint": fingerprint, "reason": "failing", "pattern": "the table refused it", "letters": 12, "kept": 11,
        "firstdiedat": AT, "lastdiedat": AT, "types": ["task.create"], "sources": ["/crm"], "example": ID,
    });
    put(
        "LetterGroup",
        shape(
            &[
                "fingerprint:text",
                "reason:text",
                "pattern:text",
                "letters:whole",
                "kept:whole",
                "firstdiedat:time",
                "lastdiedat:time",
                "types:text[]",
                "sources:text[]",
                "example:id",
            ],
            &group,
        ),
    );
    put("LetterGroups", page_of("LetterGroup", &group));
    let attempt = json!({
        "number": 1, "diedat": AT, "reason": "failing", "detail": "the table refused it",
        "queue": "taskflow.commands.03", "routingkey": "10", "returns": 0,
    });
    put(
        "LetterAttempt",
        json!({ "type": "object", "required": ["number", "diedat"], "examples": [attempt] }),
    );
    put(
        "Letter",
        shape(
            &[
                "id:id",
                "commandid:id~",
                "type:text~",
                "source:text~",
                "subject:id~",
                "actorid:id~",
                "traceid:text~",
                "reason:text",
                "detail:text",
                "pattern:text",
                "fingerprint:text",
                "exchange:text",
                "queue:text",
                "routingkey:text",
                "headers:object",
                "command:value",
                "body:text",
                "bytes:whole",
                "editedcommand:value",
                "editedbody:text~",
                "acceptedat:time~",
                "state:letterstate",
                "attempt:whole",
                "attempts:LetterAttempt[]",
                "copies:whole",
                "firstdiedat:time",
                "lastdiedat:time",
                "decidedat:time~",
                "decidedby:id~",
                "why:text~",
                "replayid:id~",
            ],
            &json!({
                "id": ID, "commandid": ID, "type": "task.create", "source": "/crm", "subject": ID, "actorid": ID,
                "traceid": null, "reason": "failing", "detail": "the table refused it",
                "pattern": "the table refused it", "fingerprint": fingerprint, "exchange": "taskflow.slots",
                "queue": "taskflow.commands.03", "routingkey": "10", "headers": {},
                "command": { "specversion": "1.0", "id": ID, "type": "task.create" }, "body": "eyJzcGVjdmVyc2lvbiI6…",
                "bytes": 311, "editedcommand": null, "editedbody": null, "acceptedat": AT, "state": "kept",
                "attempt": 1, "attempts": [attempt], "copies": 0, "firstdiedat": AT, "lastdiedat": AT,
                "decidedat": null, "decidedby": null, "why": null, "replayid": null,
            }),
        ),
    );
    let begun = json!({ "id": ID, "state": "replaying", "attempt": 2 });
    put("LetterDecided", shape(&["id:id", "state:letterstate", "attempt?:whole"], &begun));
    let event = json!({ "type": "task.created", "data": { "title": "Write the report" } });
    put("RehearsedEvent", shape(&["type:text", "data:object"], &event));
    let row = json!({ "table": "tasks", "id": ID, "before": null, "after": { "title": "Write the report" } });
    put("RehearsedRow", shape(&["table:text", "id:id", "before:value", "after:value"], &row));
    put(
        "Rehearsed",
        shape(
            &[
                "outcome:text",
                "code?:text",
                "detail?:text",
                "version?:whole",
                "events:RehearsedEvent[]",
                "rows:RehearsedRow[]",
            ],
            &json!({ "outcome": "applied", "version": 1, "events": [event], "rows": [row] }),
        ),
    );
}

fn replays(put: Put<'_>) {
    let replay = json!({
        "id": ID, "filter": { "state": "kept" }, "rate": 10.0, "author": ID, "why": "the table is mended",
        "state": "running", "taken": 7, "died": 0, "lived": 6, "createdat": AT, "finishedat": null,
    });
    let fields = [
        "id:id",
        "filter:object",
        "rate:number",
        "author:id",
        "why:text~",
        "state:text",
        "stoppedsince?:text",
        "taken:whole",
        "died:whole",
        "lived:whole",
        "createdat:time",
        "finishedat:time~",
    ];
    put("Replay", shape(&fields, &replay));
    put("ReplayPage", page_of("Replay", &replay));
    let mut ordered = replay;
    ordered["letters"] = json!(12);
    put("OrderedReplay", shape(&[&fields[..], &["letters:whole"]].concat(), &ordered));
}

fn jobs(put: Put<'_>) {
    let schedule = json!({
        "name": "retention.events", "job": "retention.events", "definition": "7 * * * * (UTC)", "enabled": true,
        "nextdueat": AT, "nextbeginsat": AT, "pausedat": null, "pausedby": null, "pausedwhy": null, "lastid": 41,
        "lastdueat": AT, "lastmet": "on_time", "laststate": "completed", "lastdetail": null,
    });
    put(
        "Schedule",
        shape(
            &[
                "name:text",
                "job:text",
                "definition:text",
                "enabled:flag",
                "nextdueat:time~",
                "nextbeginsat:time~",
                "pausedat:time~",
                "pausedby:text~",
                "pausedwhy:text~",
                "lastid:whole~",
                "lastdueat:time~",
                "lastmet:met~",
                "laststate:runstate~",
                "lastdetail:text~",
            ],
            &schedule,
        ),
    );
    let leader = json!({ "epoch": 3, "host": "scheduler-1", "since": AT, "leads": true });
    put("Leader", shape(&["epoch:whole", "host:text~", "since:time~", "leads:flag"], &leader));
    put(
        "Schedules",
        shape(&["items:Schedule[]", "leader:Leader"], &json!({ "items": [schedule], "leader": leader })),
    );
    let run = json!({
        "id": 41, "schedule": "retention.events", "job": "retention.events", "dueat": AT, "met": "on_time",
        "state": "completed", "beginsat": AT, "attempt": 1, "epoch": 3, "host": "scheduler-1", "startedat": AT,
        "endedat": AT, "detail": null, "figures": { "removed": 1200 },
    });
    put(
        "Run",
        shape(
            &[
                "id:whole",
                "schedule:text",
                "job:text",
                "dueat:time",
                "through?:time",
                "met:met",
                "state:runstate",
                "beginsat:time",
                "attempt:whole",
                "epoch:whole",
                "host:text~",
                "startedat:time~",
                "endedat:time~",
                "detail:text~",
                "arguments?:object",
                "figures?:object",
                "log?:text[]",
                "askedby?:text",
                "cancelaskedby?:text",
            ],
            &run,
        ),
    );
    put("RunPage", page_of("Run", &run));
    put(
        "ScheduleAndRun",
        shape(&["schedule:Schedule", "newest:Run~"], &json!({ "schedule": schedule, "newest": run })),
    );
    let asked = json!({ "id": 42, "status_url": "/v1/admin/jobs/runs/42" });
    put("AskedRun", shape(&["id:whole", "status_url:text"], &asked));
    let hold = json!({
        "id": ID, "scope": "entity", "subject": ID, "why": "case 4711", "author": "user x", "since": AT,
        "appliedat": AT, "releasedat": null, "releasedby": null, "liftedat": null,
    });
    put(
        "Hold",
        shape(
            &[
                "id:id",
                "scope:text",
                "subject:id",
                "why:text",
                "author:text",
                "since:time",
                "appliedat:time~",
                "releasedat:time~",
                "releasedby:text~",
                "liftedat:time~",
            ],
            &hold,
        ),
    );
    put("Holds", all_of("Hold", &hold));
}

fn backups(put: Put<'_>) {
    let backup = json!({
        "id": "postgres-20300131T080000Z", "kind": "postgres", "takenat": AT, "state": "proven", "bytes": 73_400_320,
        "through": AT, "encrypted": true, "needs": [], "provenat": AT, "reason": null, "error": null,
    });
    let fields = [
        "id:text",
        "kind:text",
        "takenat:time",
        "state:text",
        "bytes:whole~",
        "through:time~",
        "encrypted:flag~",
        "needs:text[]~",
        "provenat:time~",
        "reason:text~",
        "error:text~",
    ];
    put("Backup", shape(&fields, &backup));
    put("Backups", all_of("Backup", &backup));
    let mut whole = backup;
    whole["manifest"] = json!({
        "format": 1, "id": "postgres-20300131T080000Z", "kind": "postgres", "database": "taskflow",
        "files": [{ "path": "dump.zst.age", "bytes": 73_400_320, "sha256": SHA }],
        "restore": ["taskflow restore postgres-20300131T080000Z"],
    });
    whole["proof"] = json!({ "at": AT, "took_s": 41.7, "detail": "checksums of 23 tables agree" });
    put("BackupAndManifest", shape(&[&fields[..], &["manifest:object~", "proof:object~"]].concat(), &whole));
}
