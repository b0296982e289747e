//! The OpenAPI 3.1 document, made from one table of calls ([`calls`]) and the schemas of [`shapes`].
//!
//! `tests/it/contract/openapi.rs` holds the table against the routes in the code, and the document against OpenAPI's own
//! schema.

mod access;
mod calls;
mod orders;
mod shapes;
mod upkeep;

use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use calls::{Body, CALLS, Call, Given, Parameter, Who};

static DOCUMENT: LazyLock<String> = LazyLock::new(|| document().to_string());

/// The document's text.
pub(crate) fn text() -> &'static str {
    &DOCUMENT
}

fn document() -> Value {
    let mut paths: Map<String, Value> = Map::new();
    for call in CALLS.iter().chain(access::CALLS).chain(upkeep::CALLS) {
        let path = paths.entry(call.path).or_insert_with(|| json!({}));
        path[call.method] = operation(call);
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "TaskFlow",
            "version": env!("CARGO_PKG_VERSION"),
            "summary": "Commands in, applied once and in order; reads that are never older than a receipt",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "servers": [{ "url": "/" }],
        "security": [{ "bearer": [] }],
        "paths": paths,
        "components": {
            "securitySchemes": { "bearer": { "type": "http", "scheme": "bearer" } },
            "schemas": shapes::all(),
            "responses": errors(),
        },
    })
}

fn operation(call: &Call) -> Value {
    let mut responses = Map::new();
    for given in call.gives {
        responses.insert(given.status.to_string(), answer(given));
    }
    for status in call.errors {
        let (name, ..) = error(*status);
        let given = responses.get_mut(&status.to_string()).map(|given| &mut given["content"]);
        if let Some(content) = given {
            // The same status has two bodies: what came of each of many, or what is wrong with all.
            content["application/problem+json"] = json!({ "schema": shapes::reference("Problem") });
        } else {
            responses.insert(status.to_string(), json!({ "$ref": format!("#/components/responses/{name}") }));
        }
    }
    if call.who != Who::Anybody {
        responses.entry("401").or_insert_with(|| json!({ "$ref": "#/components/responses/Unauthorized" }));
    }
    if call.who == Who::Admin {
        responses.entry("403").or_insert_with(|| json!({ "$ref": "#/components/responses/Forbidden" }));
    }
    let mut operation = json!({
        "operationId": call.name,
        "summary": call.says,
        "tags": [call.tag],
        "parameters": call.takes.iter().map(parameter).collect::<Vec<_>>(),
        "responses": responses,
    });
    if call.who == Who::Anybody {
        operation["security"] = json!([]);
    }
    if let Some(body) = &call.body {
        operation["requestBody"] = request(body);
    }
    operation
}

fn answer(given: &Given) -> Value {
    let mut answer = json!({ "description": given.says });
    if let Some((kind, shape)) = given.body {
        answer["content"] = json!({ kind: { "schema": shapes::reference(shape) } });
    }
    if given.cached {
        answer["headers"] = json!({
            "etag": { "description": "For if-none-match", "schema": { "type": "string" } },
            "x-cache": { "schema": { "enum": ["hit", "miss"] } },
        });
    }
    answer
}

fn parameter(parameter: &Parameter) -> Value {
    let place = parameter.place;
    json!({
        "name": parameter.name,
        "in": place,
        "required": place == "path" || parameter.kind == "search",
        "description": parameter.says,
        "schema": shapes::simple(parameter.kind),
    })
}

fn request(body: &Body) -> Value {
    let content: Map<String, Value> = body
        .forms
        .iter()
        .map(|(kind, shape)| ((*kind).to_owned(), json!({ "schema": shapes::reference(shape) })))
        .collect();
    json!({ "required": body.required, "content": content })
}

/// The name of an error's response, and when it comes.
fn error(status: u16) -> (&'static str, &'static str) {
    match status {
        400 => ("Invalid", "The input breaks rules; errors names each place by its JSON pointer"),
        401 => ("Unauthorized", "No token, or one that is not valid (any more)"),
        403 => ("Forbidden", "The token is good, but not for this"),
        404 => ("NotFound", "There is no such thing, or none that the caller may see"),
        409 => ("Conflict", "Not in this state, or the id was used for another command"),
        413 => ("TooLarge", "The body or the array is too large"),
        415 => ("WrongType", "This content type is not taken"),
        429 => {
            ("TooMany", "Too many requests, or the workers are behind; retry-after says when to try again")
        }
        _ => (
            "Unavailable",
            "A store is away; retry-after says when to try again. Sending the same again is safe",
        ),
    }
}

fn errors() -> Map<String, Value> {
    let statuses = [400, 401, 403, 404, 409, 413, 415, 429, 503];
    let response = |status: u16| {
        let (name, says) = error(status);
        let content = json!({
            "application/problem+json": { "schema": shapes::reference("Problem"), "example": shapes::problem(status) },
        });
        let mut response = json!({ "description": says, "content": content });
        if matches!(status, 429 | 503) {
            let seconds = json!({ "description": "Seconds", "schema": { "type": "integer", "minimum": 0 } });
            response["headers"] = json!({ "retry-after": seconds });
        }
        (name.to_owned(), response)
    };
    statuses.into_iter().map(response).collect()
}
