//! Every call, as a table.

/// Who may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    Anybody,
    /// Whoever has a token; what it shows is the caller's own.
    Bearer,
    Admin,
}

pub(super) struct Parameter {
    pub name: &'static str,
    /// `path`, `query` or `header`.
    pub place: &'static str,
    /// As `shapes::simple` knows it.
    pub kind: &'static str,
    pub says: &'static str,
}

pub(super) struct Body {
    pub required: bool,
    /// Content types with their shapes.
    pub forms: &'static [(&'static str, &'static str)],
}

pub(super) struct Given {
    pub status: u16,
    pub says: &'static str,
    /// Content type and shape.
    pub body: Option<(&'static str, &'static str)>,
    /// It bears `etag` and `x-cache`.
    pub cached: bool,
}

pub(super) struct Call {
    pub method: &'static str,
    pub path: &'static str,
    pub name: &'static str,
    pub tag: &'static str,
    pub says: &'static str,
    pub who: Who,
    pub takes: &'static [Parameter],
    pub body: Option<Body>,
    pub gives: &'static [Given],
    /// Statuses beside those that `errors` adds to all.
    pub errors: &'static [u16],
}

pub(super) const JSON: &str = "application/json";

pub(super) const fn at(name: &'static str, kind: &'static str, says: &'static str) -> Parameter {
    Parameter { name, place: "path", kind, says }
}

pub(super) const fn query(name: &'static str, kind: &'static str, says: &'static str) -> Parameter {
    Parameter { name, place: "query", kind, says }
}

pub(super) const fn header(name: &'static str, says: &'static str) -> Parameter {
    Parameter { name, place: "header", kind: "text", says }
}

pub(super) const fn json(status: u16, says: &'static str, shape: &'static str) -> Given {
    Given { status, says, body: Some((JSON, shape)), cached: false }
}

pub(super) const fn nothing(status: u16, says: &'static str) -> Given {
    Given { status, says, body: None, cached: false }
}

pub(super) const fn cached(says: &'static str, shape: &'static str) -> Given {
    Given { status: 200, says, body: Some((JSON, shape)), cached: true }
}

pub(super) const SAME: Given = nothing(304, "The caller has it already (if-none-match)");
pub(super) const IF_NONE_MATCH: Parameter =
    header("if-none-match", "The etag of an answer that the caller has");
const PAGE: Parameter = query("page", "page", "From 1; pages reach as far as item 10,000");
pub(super) const PAGE_SIZE: Parameter = query("pagesize", "pagesize", "Items of a page");
pub(super) const CURSOR: Parameter = query("cursor", "text", "next of the page before");
pub(super) const ID: Parameter = at("id", "uuid", "The id");

/// A read of somebody's own.
const fn read(
    path: &'static str,
    name: &'static str,
    says: &'static str,
    takes: &'static [Parameter],
    gives: &'static [Given],
) -> Call {
    let errors = &[400, 403, 404, 503];
    Call { method: "get", path, name, tag: "reads", says, who: Who::Bearer, takes, body: None, gives, errors }
}

/// What operators do.
pub(super) const fn admin(
    method: &'static str,
    path: &'static str,
    name: &'static str,
    says: &'static str,
    takes: &'static [Parameter],
    gives: &'static [Given],
) -> Call {
    let errors = &[400, 404, 409, 503];
    Call { method, path, name, tag: "admin", says, who: Who::Admin, takes, body: None, gives, errors }
}

pub(super) const fn with_body(
    call: Call,
    shape: &'static [(&'static str, &'static str)],
    required: bool,
) -> Call {
    Call { body: Some(Body { required, forms: shape }), ..call }
}

/// Answers without a token.
const fn open(path: &'static str, name: &'static str, says: &'static str, gives: &'static [Given]) -> Call {
    let (who, takes, errors) = (Who::Anybody, &[], &[]);
    Call { method: "get", path, name, tag: "about", says, who, takes, body: None, gives, errors }
}

const LETTERS: &str = "/v1/admin/dead-letters";
const FILTER: &[Parameter] = &[
    query("reason", "text", "Only with this reason"),
    query("type", "text", "Only of this command type"),
    query("source", "text", "Only from this source"),
    query("fingerprint", "text", "Only with this fingerprint of their error"),
    query("state", "letterstate", "Only in this state"),
    query("subject", "uuid", "Only of this subject"),
    query("command", "uuid", "Only of the command with this id"),
    query("from", "time", "Died last at this time or later"),
    query("to", "time", "Died last before this time"),
    PAGE_SIZE,
    CURSOR,
];
/// Groups have one page.
const GROUPED: &[Parameter] = FILTER.split_at(FILTER.len() - 1).0;

pub(super) const CALLS: &[Call] = &[
    Call {
        method: "post",
        path: "/v1/commands",
        name: "sendCommands",
        tag: "commands",
        says: "Sends one command, an array of up to 10,000, or a stream of JSON lines",
        who: Who::Bearer,
        takes: &[header(
            "prefer",
            "wait=N: wait up to N seconds (at most 30) for the receipt of one command",
        )],
        body: Some(Body {
            required: true,
            forms: &[
                (JSON, "CommandOrCommands"),
                ("application/cloudevents+json", "Command"),
                ("application/cloudevents-batch+json", "Commands"),
                ("application/x-ndjson", "Lines"),
            ],
        }),
        gives: &[
            json(200, "With prefer: wait, the receipt", "Receipt"),
            json(202, "The broker has confirmed each command that was accepted", "Accepted"),
            json(400, "Of many: none was accepted; refused says why", "Accepted"),
        ],
        errors: &[400, 403, 409, 413, 415, 429, 503],
    },
    Call {
        errors: &[404, 503],
        tag: "commands",
        ..read(
            "/v1/commands/{id}",
            "readReceipt",
            "How a command ended, or where it is",
            &[ID],
            &[json(200, "The receipt", "Receipt")],
        )
    },
    Call {
        method: "delete",
        errors: &[404, 409, 503],
        tag: "commands",
        ..read(
            "/v1/commands/{id}",
            "cancelCommand",
            "Cancels a command that waits for its notbefore",
            &[ID],
            &[json(200, "The receipt", "Receipt")],
        )
    },
    Call {
        method: "post",
        path: "/v1/sessions",
        name: "logIn",
        tag: "sessions",
        says: "Gives a token for an email address and a password",
        who: Who::Anybody,
        takes: &[],
        body: Some(Body { required: true, forms: &[(JSON, "Login")] }),
        gives: &[json(201, "The token", "Session")],
        errors: &[400, 401, 429, 503],
    },
    Call {
        method: "delete",
        errors: &[503],
        tag: "sessions",
        ..read(
            "/v1/sessions/current",
            "logOut",
            "Ends the session of the token",
            &[],
            &[nothing(204, "It has ended")],
        )
    },
    read("/v1/tasks/{id}", "readTask", "A task", &[ID, IF_NONE_MATCH], &[cached("The task", "Task"), SAME]),
    read(
        "/v1/tasks/{id}/changes",
        "readTaskChanges",
        "The 20 newest changes of a task",
        &[ID, IF_NONE_MATCH],
        &[cached("The changes", "Changes"), SAME],
    ),
    read(
        "/v1/tasks/search",
        "searchTasks",
        "Finds tasks by words of their titles and descriptions, the best matches first",
        &[
            query("q", "search", "Words, a \"phrase\", or, -without; a word also finds what begins with it"),
            PAGE,
            PAGE_SIZE,
            IF_NONE_MATCH,
        ],
        &[cached("A page of tasks", "TaskPage"), SAME],
    ),
    read("/v1/users/{id}", "readUser", "A user", &[ID, IF_NONE_MATCH], &[cached("The user", "User"), SAME]),
    read(
        "/v1/users/{id}/tasks",
        "listTasks",
        "The tasks that a user has created or is assigned to",
        &[
            ID,
            query("status", "status", "Only of this status"),
            query("order", "order", "newest first, or as one works them off"),
            PAGE,
            PAGE_SIZE,
            IF_NONE_MATCH,
        ],
        &[cached("A page of tasks", "TaskPage"), SAME],
    ),
    read(
        "/v1/users/{id}/task-stats",
        "countTasks",
        "How many tasks a user has",
        &[ID, IF_NONE_MATCH],
        &[cached("The numbers", "TaskStats"), SAME],
    ),
    Call {
        errors: &[400, 503],
        ..admin(
            "get",
            "/v1/events",
            "readEvents",
            "The audit trail, the newest first",
            &[
                query("entityid", "uuid", "Only of this task or user"),
                query("actorid", "uuid", "Only by this user"),
                query("type", "eventtype", "Only of this type"),
                query("correlationid", "uuid", "Only of this correlation"),
                query("from", "time", "At this time or later"),
                query("to", "time", "Before this time"),
                CURSOR,
                PAGE_SIZE,
                IF_NONE_MATCH,
            ],
            &[cached("A page of events", "EventPage"), SAME],
        )
    },
    admin(
        "get",
        "/v1/admin/pauses",
        "listPauses",
        "What is paused",
        &[],
        &[json(200, "The pauses", "Pauses")],
    ),
    with_body(
        admin(
            "post",
            "/v1/admin/pauses",
            "pause",
            "Pauses a partition, a type of command, or everything",
            &[],
            &[json(201, "The pause", "Pause")],
        ),
        &[(JSON, "NewPause")],
        true,
    ),
    admin(
        "delete",
        "/v1/admin/pauses/{scope}",
        "resume",
        "Lets what was paused go on",
        &[at("scope", "text", "all, partition:NN or type:T")],
        &[nothing(204, "It goes on")],
    ),
    admin(
        "get",
        LETTERS,
        "listDeadLetters",
        "Dead letters, the newest first",
        FILTER,
        &[json(200, "A page of letters", "LetterPage")],
    ),
    admin(
        "get",
        "/v1/admin/dead-letters/groups",
        "groupDeadLetters",
        "Dead letters grouped by their errors",
        GROUPED,
        &[json(200, "The groups", "LetterGroups")],
    ),
    admin(
        "get",
        "/v1/admin/dead-letters/replays",
        "listReplays",
        "Replays of many",
        &[],
        &[json(200, "The replays", "ReplayPage")],
    ),
    with_body(
        admin(
            "post",
            "/v1/admin/dead-letters/replays",
            "replayMany",
            "Replays the letters of a filter, at a rate",
            &[],
            &[json(202, "The replay", "OrderedReplay")],
        ),
        &[(JSON, "NewReplay")],
        true,
    ),
    admin(
        "get",
        "/v1/admin/dead-letters/replays/{id}",
        "readReplay",
        "How far a replay is",
        &[ID],
        &[json(200, "The replay", "Replay")],
    ),
    admin(
        "delete",
        "/v1/admin/dead-letters/replays/{id}",
        "cancelReplay",
        "Stops a replay",
        &[ID],
        &[json(200, "The replay", "Replay")],
    ),
    admin(
        "get",
        "/v1/admin/dead-letters/{id}",
        "readDeadLetter",
        "A dead letter, whole",
        &[ID],
        &[json(200, "The letter", "Letter")],
    ),
    with_body(
        admin(
            "post",
            "/v1/admin/dead-letters/{id}/dry-run",
            "rehearseDeadLetter",
            "What a replay would do, without doing it",
            &[ID],
            &[json(200, "What would happen", "Rehearsed")],
        ),
        &[(JSON, "Rehearsal")],
        false,
    ),
    with_body(
        admin(
            "post",
            "/v1/admin/dead-letters/{id}/replay",
            "replayDeadLetter",
            "Sends a dead letter again",
            &[ID],
            &[json(202, "It is on its way", "LetterDecided")],
        ),
        &[(JSON, "Why")],
        false,
    ),
    with_body(
        admin(
            "post",
            "/v1/admin/dead-letters/{id}/edit",
            "editDeadLetter",
            "Sends another command in the letter's place",
            &[ID],
            &[json(202, "It is on its way", "LetterDecided")],
        ),
        &[(JSON, "Edit")],
        true,
    ),
    with_body(
        admin(
            "post",
            "/v1/admin/dead-letters/{id}/discard",
            "discardDeadLetter",
            "Decides that a dead letter is never sent again",
            &[ID],
            &[json(200, "The letter", "LetterDecided")],
        ),
        &[(JSON, "WhyNot")],
        true,
    ),
    open("/healthz", "isAlive", "Whether the process lives", &[json(200, "It does", "Alive")]),
    open(
        "/readyz",
        "isReady",
        "Whether it can work: a row for each store",
        &[json(200, "It can, perhaps with faults", "Readiness"), json(503, "It can't", "Readiness")],
    ),
    Call {
        tag: "about",
        errors: &[],
        ..admin(
            "get",
            "/metrics",
            "readMetrics",
            "Metrics for Prometheus; they have a port of their own, which asks nobody",
            &[],
            &[Given { status: 200, says: "The metrics", body: Some(("text/plain", "Text")), cached: false }],
        )
    },
    open(
        "/schemas",
        "listSchemas",
        "The schemas of the command types",
        &[json(200, "Their paths", "SchemaList")],
    ),
    Call {
        takes: &[
            at("type", "text", "Such as task.create"),
            at("major", "text", "The major version, such as 1"),
        ],
        errors: &[404],
        ..open(
            "/schemas/{type}/{major}",
            "readSchema",
            "A JSON Schema (2020-12)",
            &[Given {
                status: 200,
                says: "The schema",
                body: Some(("application/schema+json", "JsonSchema")),
                cached: false,
            }],
        )
    },
    open("/openapi.json", "readOpenapi", "This document", &[json(200, "It", "OpenApi")]),
    open(
        "/asyncapi.json",
        "readAsyncapi",
        "What goes over AMQP (AsyncAPI 3)",
        &[json(200, "The document", "AsyncApi")],
    ),
    open(
        "/docs",
        "readDocs",
        "A page to read and try it",
        &[Given { status: 200, says: "The page", body: Some(("text/html", "Text")), cached: false }],
    ),
];
