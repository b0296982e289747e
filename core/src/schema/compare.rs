//! Whether a schema still takes what an older one took.
//!
//! Knows the keywords that our schemas use. What it can't judge (another pattern or format) it calls breaking: a person
//! looks.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::{Map, Value};

/// One difference between two schemas.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Difference {
    /// JSON pointer into the schema.
    pub pointer: String,
    pub detail: String,
    /// Something that was taken before is refused now.
    pub breaking: bool,
}

/// All differences that matter, between sets of schemas by name.
pub fn compare(old: &Map<String, Value>, new: &Map<String, Value>) -> Vec<Difference> {
    let mut differences = Vec::new();
    for (name, before) in old {
        match new.get(name) {
            None => differences.push(breaking(name.clone(), "is gone".to_owned())),
            Some(after) => {
                let mut narrowed = Vec::new();
                narrows(before, after, name, &mut narrowed);
                let mut widened = Vec::new();
                narrows(after, before, name, &mut widened);
                let wider = |(pointer, _)| Difference {
                    pointer,
                    detail: "takes more than before".to_owned(),
                    breaking: false,
                };
                let known: BTreeSet<String> = narrowed.iter().map(|(pointer, _)| pointer.clone()).collect();
                differences.extend(widened.into_iter().filter(|(at, _)| !known.contains(at)).map(wider));
                differences.extend(narrowed.into_iter().map(|(pointer, detail)| breaking(pointer, detail)));
            }
        }
    }
    for name in new.keys().filter(|name| !old.contains_key(*name)) {
        differences.push(Difference { pointer: name.clone(), detail: "is new".to_owned(), breaking: false });
    }
    differences
}

fn breaking(pointer: String, detail: String) -> Difference {
    Difference { pointer, detail, breaking: true }
}

/// Finds where `new` refuses what `old` takes.
fn narrows(old: &Value, new: &Value, at: &str, found: &mut Vec<(String, String)>) {
    let mut say = |place: &str, detail: String| found.push((format!("{at}{place}"), detail));
    let (kinds_old, kinds_new) = (kinds(old), kinds(new));
    if let (Some(before), Some(after)) = (&kinds_old, &kinds_new) {
        before.difference(after).for_each(|kind| say("/type", format!("{kind} was taken")));
    } else if kinds_new.is_some() && values(old).is_none() {
        say("/type", "any type was taken".to_owned());
    }
    match (values(old), values(new)) {
        (Some(before), Some(after)) => {
            before.iter().filter(|value| !after.contains(value)).for_each(|value| {
                say("/enum", format!("{value} was taken"));
            });
        }
        (None, Some(_)) => say("/enum", "other values were taken".to_owned()),
        _ => {}
    }
    for (bound, lowest) in [("minLength", true), ("minimum", true), ("maxLength", false), ("maximum", false)]
    {
        let (before, after) = (number(old, bound), number(new, bound));
        let tighter = match (before, after) {
            (_, None) => false,
            (None, Some(_)) => true,
            (Some(before), Some(after)) => {
                if lowest {
                    after > before
                } else {
                    after < before
                }
            }
        };
        if tighter {
            say(&format!("/{bound}"), format!("it was {}", before.map_or("open".into(), |b| b.to_string())));
        }
    }
    for form in ["pattern", "format", "anyOf"] {
        if new.get(form).is_some() && new.get(form) != old.get(form) {
            say(&format!("/{form}"), "it has changed; whether it takes less can't be told".to_owned());
        }
    }
    let required: BTreeSet<&str> = names(old, "required");
    names(new, "required").difference(&required).for_each(|name| {
        say("/required", format!("{name} was not required"));
    });
    let closed = |schema: &Value| schema.get("additionalProperties") == Some(&Value::Bool(false));
    if closed(new) && !closed(old) {
        say("/additionalProperties", "unknown fields were taken".to_owned());
    }
    let properties =
        |schema: &Value| schema.get("properties").and_then(Value::as_object).cloned().unwrap_or_default();
    let (before, after) = (properties(old), properties(new));
    for (name, schema) in &before {
        match after.get(name) {
            Some(new) => narrows(schema, new, &format!("{at}/properties/{name}"), found),
            None if closed(new) => {
                found.push((format!("{at}/properties/{name}"), "this field was taken".to_owned()));
            }
            None => {}
        }
    }
}

/// The types that a schema takes; `None`: any.
fn kinds(schema: &Value) -> Option<BTreeSet<&str>> {
    match schema.get("type")? {
        Value::String(kind) => Some(BTreeSet::from([kind.as_str()])),
        Value::Array(kinds) => Some(kinds.iter().filter_map(Value::as_str).collect()),
        _ => None,
    }
}

/// The values that a schema takes; `None`: more than can be named.
fn values(schema: &Value) -> Option<Vec<&Value>> {
    match (schema.get("const"), schema.get("enum")) {
        (Some(value), _) => Some(vec![value]),
        (None, Some(Value::Array(values))) => Some(values.iter().collect()),
        _ => None,
    }
}

fn number(schema: &Value, bound: &str) -> Option<i64> {
    schema.get(bound).and_then(Value::as_i64)
}

fn names<'s>(schema: &'s Value, list: &str) -> BTreeSet<&'s str> {
    schema.get(list).and_then(Value::as_array).into_iter().flatten().filter_map(Value::as_str).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::schema;

    fn changed(change: impl FnOnce(&mut Value)) -> Vec<Difference> {
        let old = schema::all();
        let mut new = Value::Object(old.clone());
        change(&mut new);
        compare(&old, new.as_object().expect("an object"))
    }

    #[test]
    fn the_same_is_the_same() {
        assert!(changed(|_| {}).is_empty());
    }

    #[test]
    fn what_takes_less_is_breaking_and_what_takes_more_is_not() {
        type Change = fn(&mut Value);
        let title = "/properties/data/properties/title";
        let changes: [(&str, bool, Change); 11] = [
            ("task.create/1", true, |all| drop(all.as_object_mut().expect("all").remove("task.create/1"))),
            ("/maxLength", true, |all| {
                all["task.create/1"]["properties"]["data"]["properties"]["title"]["maxLength"] = json!(100);
            }),
            (title, false, |all| {
                all["task.create/1"]["properties"]["data"]["properties"]["title"]["maxLength"] = json!(1_000);
            }),
            ("/pattern", true, |all| all["task.create/1"]["properties"]["id"]["pattern"] = json!("^x$")),
            ("/required", true, |all| {
                all["task.create/1"]["required"] =
                    json!(["specversion", "id", "source", "type", "subject", "actorid", "data", "time"]);
            }),
            ("/required", false, |all| all["task.create/1"]["required"] = json!(["id"])),
            ("/enum", true, |all| {
                all["task.create/1"]["properties"]["priority"]["enum"] = json!(["normal", null]);
            }),
            ("/enum", false, |all| {
                all["task.create/1"]["properties"]["priority"]["enum"] =
                    json!(["normal", "low", "lowest", null]);
            }),
            ("/type", true, |all| all["task.create/1"]["properties"]["time"]["type"] = json!("string")),
            ("/colour", false, |all| {
                all["task.create/1"]["properties"]["colour"] = json!({ "type": "string" });
            }),
            ("task.paint/1", false, |all| all["task.paint/1"] = json!({})),
        ];
        for (number, (place, breaking, change)) in changes.into_iter().enumerate() {
            let found = changed(change);
            assert!(
                found.iter().any(|one| one.breaking == breaking && one.pointer.contains(place)),
                "{number}: {found:?}"
            );
            assert!(breaking || found.iter().all(|one| !one.breaking), "{number}: {found:?}");
        }
        assert!(
            changed(|all| {
                drop(all["task.create/1"]["properties"].as_object_mut().expect("properties").remove("time"));
            })
            .iter()
            .any(|one| one.breaking)
        );
    }
}
