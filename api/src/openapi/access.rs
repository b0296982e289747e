//! The calls about users, passwords, roles and API keys, and the live stream.

use super::calls::{
    CURSOR, Call, Given, ID, IF_NONE_MATCH, JSON, PAGE_SIZE, Parameter, SAME, Who, admin, cached, header,
    json, nothing, query, with_body,
};

const STREAM: &[Parameter] = &[
    query("lasteventid", "text", "The newest cursor that the reader has; what came since is filled in"),
    query("type", "text", "Only these types, divided by commas; task.* for all that begin so"),
    query("entity", "uuid", "Only of this entity"),
    query("actor", "uuid", "Only what this user did"),
];

/// What people and keys may do, beside what is read.
const fn bearer(
    method: &'static str,
    path: &'static str,
    name: &'static str,
    says: &'static str,
    takes: &'static [Parameter],
    gives: &'static [Given],
) -> Call {
    Call {
        who: Who::Bearer,
        tag: "users",
        errors: &[400, 403, 404, 409, 503],
        ..admin(method, path, name, says, takes, gives)
    }
}

pub(super) const CALLS: &[Call] = &[
    with_body(
        bearer(
            "post",
            "/v1/users",
            "registerUser",
            "Hashes the password, then does what POST /v1/commands does with user.register",
            &[header("prefer", "wait=N: wait up to N seconds (at most 30) for the receipt")],
            &[
                json(200, "With prefer: wait, the receipt", "Receipt"),
                json(202, "The broker has confirmed the command", "Accepted"),
            ],
        ),
        &[(JSON, "NewUser")],
        true,
    ),
    bearer(
        "get",
        "/v1/users/{id}/permissions",
        "readPermissions",
        "What a user may do, in words",
        &[ID, IF_NONE_MATCH],
        &[cached("The words", "Words"), SAME],
    ),
    with_body(
        bearer(
            "put",
            "/v1/users/{id}/password",
            "changeOwnPassword",
            "Changes one's own password and ends one's sessions",
            &[ID],
            &[json(200, "Changed", "ChangedPassword")],
        ),
        &[(JSON, "OwnPassword")],
        true,
    ),
    bearer(
        "get",
        "/v1/stream",
        "stream",
        "A WebSocket: the caller's own events as they happen; an admin's: all",
        STREAM,
        &[nothing(101, "The stream begins")],
    ),
    with_body(
        admin(
            "put",
            "/v1/admin/users/{id}/role",
            "changeRole",
            "Gives a user another role and ends the user's sessions",
            &[ID],
            &[json(200, "Changed", "ChangedRole")],
        ),
        &[(JSON, "NewRole")],
        true,
    ),
    with_body(
        admin(
            "put",
            "/v1/admin/users/{id}/password",
            "changePassword",
            "Gives a user another password and ends the user's sessions",
            &[ID],
            &[json(200, "Changed", "ChangedPassword")],
        ),
        &[(JSON, "NewPassword")],
        true,
    ),
    admin(
        "get",
        "/v1/admin/api-keys",
        "listApiKeys",
        "The API keys, without the keys themselves",
        &[PAGE_SIZE, CURSOR],
        &[json(200, "The keys", "ApiKeyPage")],
    ),
    with_body(
        admin(
            "post",
            "/v1/admin/api-keys",
            "createApiKey",
            "Makes an API key, which is shown this once",
            &[],
            &[json(201, "The key", "MadeApiKey")],
        ),
        &[(JSON, "NewApiKey")],
        true,
    ),
    admin(
        "delete",
        "/v1/admin/api-keys/{id}",
        "revokeApiKey",
        "Revokes an API key, everywhere within a second",
        &[ID],
        &[nothing(204, "It opens nothing any more")],
    ),
];
