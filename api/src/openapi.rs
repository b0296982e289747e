//! The OpenAPI 3.1 document, made from one table of calls ([`calls`]) and the schemas of [`shapes`].
//!
//! `tests/it/contract/openapi.rs` holds the table against the routes in the code, and the document against OpenAPI's own
//! schema.

mod access;
mod answers;
mod calls;
mod errors;
mod orders;
mod shapes;
mod upkeep;

use std::sync::LazyLock;

use serde_json::{Map, Value, json};

use calls::{Body, CALLS, Call, Given, Parameter, Who};

static SHAPES: LazyLock<Map<String, Value>> = LazyLock::new(shapes::all);

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
            "schemas": *SHAPES,
            "headers": errors::headers(),
            "responses": errors::responses(),
        },
    })
}

fn operation(call: &Call) -> Value {
    let mut responses = Map::new();
    for given in call.gives {
        responses.insert(given.status.to_string(), answer(given, errors::is_gated(call)));
    }
    for status in errors::of(call) {
        let given = responses.get_mut(&status.to_string()).map(|given| &mut given["content"]);
        if let Some(content) = given {
            // The same status has two bodies: what came of each of many, or what is wrong with all.
            content["application/problem+json"] =
                json!({ "schema": shapes::reference("Problem"), "example": shapes::problem(status) });
        } else {
            responses.insert(status.to_string(), errors::reference(status));
        }
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

fn answer(given: &Given, limited: bool) -> Value {
    let mut answer = json!({ "description": given.says });
    let mut headers = if limited { errors::limits() } else { Map::new() };
    if let Some((kind, shape)) = given.body {
        answer["content"] = json!({ kind: media(shape) });
    }
    if given.cached {
        let etag = json!({ "description": "For if-none-match", "schema": { "type": "string" } });
        headers.insert("etag".to_owned(), etag);
        headers.insert("x-cache".to_owned(), json!({ "schema": { "enum": ["hit", "miss"] } }));
    }
    if !headers.is_empty() {
        answer["headers"] = headers.into();
    }
    answer
}

/// A body of a shape: its schema, and the samples that the schema has, where readers of the document look for them.
fn media(shape: &str) -> Value {
    let samples = SHAPES.get(shape).and_then(|shape| shape["examples"].as_array());
    let samples = samples.into_iter().flatten().enumerate();
    let samples: Map<String, Value> =
        samples.map(|(nth, sample)| (format!("sample{}", nth + 1), json!({ "value": sample }))).collect();
    json!({ "schema": shapes::reference(shape), "examples": samples })
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
    let content: Map<String, Value> =
        body.forms.iter().map(|(kind, shape)| ((*kind).to_owned(), media(shape))).collect();
    json!({ "required": body.required, "content": content })
}
