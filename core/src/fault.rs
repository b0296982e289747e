//! What is wrong with an input, and where: one fault for each place, named by its JSON pointer (RFC 6901).
//!
//! [`Object`] reads a JSON object field by field, takes each value out, and keeps going after a fault, so that a
//! caller learns of all faults at once. What is left at the end is unknown and refused by name.

use chrono::{DateTime, Datelike, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

/// One thing that is wrong with an input.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fault {
    /// JSON pointer to the value, `""` for the whole document.
    pub pointer: String,
    /// What is wrong and what would be right.
    pub detail: String,
}

impl Fault {
    pub fn new(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self { pointer: pointer.into(), detail: detail.into() }
    }
}

/// Faults of one input that are named. What is wrong with a small input may take many times its size to say.
pub const FAULTS_MAX: usize = 50;

/// All faults of one input; of more than [`FAULTS_MAX`] the first, and that there are more.
#[derive(Debug, Default)]
pub struct Faults(pub Vec<Fault>);

impl Faults {
    pub fn add(&mut self, pointer: impl Into<String>, detail: impl Into<String>) {
        match self.0.len() {
            0..FAULTS_MAX => self.0.push(Fault::new(pointer, detail)),
            FAULTS_MAX => {
                self.0.push(Fault::new(
                    "",
                    format!("there are more faults than these {FAULTS_MAX}: mend them first"),
                ));
            }
            _ => {}
        }
    }

    fn are_too_many(&self) -> bool {
        self.0.len() > FAULTS_MAX
    }
}

/// Reads one JSON object, taking each known field out of it.
pub struct Object<'f> {
    fields: Map<String, Value>,
    /// JSON pointer of the object itself.
    base: &'static str,
    known: Vec<&'static str>,
    faults: &'f mut Faults,
}

/// Deepest nesting of free-form JSON (profiles).
const DEPTH_MAX: usize = 8;

impl<'f> Object<'f> {
    pub fn new(fields: Map<String, Value>, base: &'static str, faults: &'f mut Faults) -> Self {
        Self { fields, base, known: Vec::with_capacity(20), faults }
    }

    pub fn fault(&mut self, name: &str, detail: impl Into<String>) {
        self.faults.add(format!("{}/{}", self.base, escape(name)), detail);
    }

    /// A fault of what stands under `key` in the object `name`.
    pub fn fault_within(&mut self, name: &str, key: &str, detail: impl Into<String>) {
        self.faults.add(format!("{}/{}/{}", self.base, escape(name), escape(key)), detail);
    }

    /// A fault of the object as a whole.
    pub fn fault_whole(&mut self, detail: impl Into<String>) {
        self.faults.add(self.base, detail);
    }

    /// Takes a field out; JSON `null` counts as absent.
    fn take(&mut self, name: &'static str) -> Option<Value> {
        self.known.push(name);
        self.fields.remove(name).filter(|value| !value.is_null())
    }

    /// Whether a field is there at all, even as `null`.
    pub fn has(&self, name: &str) -> bool {
        self.fields.contains_key(name)
    }

    pub fn required<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&mut Self, &'static str) -> Option<T>,
    ) -> Option<T> {
        if self.fields.get(name).is_none_or(Value::is_null) {
            self.take(name);
            self.fault(name, "is required");
            return None;
        }
        read(self, name)
    }

    /// A field that may be absent but not `null`.
    pub fn unless_absent<T>(
        &mut self,
        name: &'static str,
        read: impl FnOnce(&mut Self, &'static str) -> Option<T>,
    ) -> Option<T> {
        if self.has(name) {
            return self.required(name, read);
        }
        self.known.push(name);
        None
    }

    /// Text of `min` to `max` characters without NUL.
    pub fn text(&mut self, name: &'static str, min: usize, max: usize) -> Option<String> {
        match self.take(name)? {
            Value::String(text) => {
                // Bytes bound characters from above, so short texts are not counted.
                let long = text.len() > max && text.chars().count() > max;
                if text.len() < min || long {
                    self.fault(name, format!("must have {min} to {max} characters"));
                    None
                } else if text.contains('\0') {
                    self.fault(name, "must not contain the NUL character (U+0000)");
                    None
                } else {
                    Some(text)
                }
            }
            other => self.wrong(name, "a text", &other),
        }
    }

    pub fn uuid(&mut self, name: &'static str) -> Option<Uuid> {
        match self.take(name)? {
            // Only the form that the contract names: its last two digits are the routing key.
            Value::String(text) if text.len() == 36 => match Uuid::try_parse(&text) {
                Ok(id) => Some(id),
                Err(_) => self.wrong(name, "a UUID", &Value::String(text)),
            },
            other => self.wrong(name, "a UUID such as 0189f7a0-6d3c-7e4b-9a51-3f0c2f4f7a10", &other),
        }
    }

    pub fn time(&mut self, name: &'static str) -> Option<DateTime<Utc>> {
        const FORM: &str = "a time with zone (RFC 3339), such as 2026-11-23T14:00:00Z";
        match self.take(name)? {
            Value::String(text) => match DateTime::parse_from_rfc3339(&text) {
                // Both databases and every client can hold these years.
                Ok(time) if (1970..=9999).contains(&time.with_timezone(&Utc).year()) => {
                    // Postgres keeps microseconds: more would make "the same again" look like a change.
                    DateTime::from_timestamp_micros(time.timestamp_micros())
                }
                Ok(_) => {
                    self.fault(name, "must be in the years 1970 to 9999");
                    None
                }
                Err(_) => self.wrong(name, FORM, &Value::String(text)),
            },
            other => self.wrong(name, FORM, &other),
        }
    }

    pub fn version(&mut self, name: &'static str) -> Option<i32> {
        match self.take(name)? {
            Value::Number(number) => {
                let version = number.as_i64().and_then(|n| i32::try_from(n).ok()).filter(|n| *n > 0);
                if version.is_none() {
                    self.fault(name, format!("must be a whole number from 1 to {}", i32::MAX));
                }
                version
            }
            other => self.wrong(name, "a whole number", &other),
        }
    }

    /// One of a fixed set of words.
    pub fn word<T: Copy>(&mut self, name: &'static str, words: &[(&str, T)]) -> Option<T> {
        let value = self.take(name)?;
        let found = value.as_str().and_then(|text| words.iter().find(|(word, _)| *word == text));
        if found.is_none() {
            let list = words.iter().map(|(word, _)| *word).collect::<Vec<_>>().join(", ");
            self.fault(name, format!("must be one of: {list}"));
        }
        found.map(|(_, value)| *value)
    }

    /// A free-form JSON object of bounded size and depth.
    pub fn object(&mut self, name: &'static str, bytes_max: usize) -> Option<Map<String, Value>> {
        match self.take(name)? {
            Value::Object(map) => {
                let value = Value::Object(map);
                let problem = if has_nul(&value) {
                    Some("must not contain the NUL character (U+0000)".to_owned())
                } else if depth(&value) > DEPTH_MAX {
                    Some(format!("must not be nested deeper than {DEPTH_MAX} levels"))
                } else if value.to_string().len() > bytes_max {
                    Some(format!("must not be larger than {bytes_max} bytes"))
                } else {
                    None
                };
                match (problem, value) {
                    (None, Value::Object(map)) => Some(map),
                    (Some(problem), _) => {
                        self.fault(name, problem);
                        None
                    }
                    (None, _) => None,
                }
            }
            other => self.wrong(name, "an object", &other),
        }
    }

    /// The raw value of a field.
    pub fn value(&mut self, name: &'static str) -> Option<Value> {
        self.take(name)
    }

    fn wrong<T>(&mut self, name: &str, expected: &str, got: &Value) -> Option<T> {
        self.fault(name, format!("must be {expected}, not {}", describe(got)));
        None
    }

    /// Refuses by name whatever was not read.
    pub fn finish(self) {
        let unknown = self.fields.keys().filter(|name| !self.known.contains(&name.as_str()));
        for name in unknown {
            if self.faults.are_too_many() {
                return;
            }
            let shown: String = name.chars().take(64).collect();
            let list = self.known.join(", ");
            self.faults.add(
                format!("{}/{}", self.base, escape(&shown)),
                format!("unknown field; known here: {list}"),
            );
        }
    }
}

fn escape(name: &str) -> String {
    name.replace('~', "~0").replace('/', "~1")
}

fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".into(),
        Value::Bool(_) => "a boolean".into(),
        Value::Number(_) => "a number".into(),
        Value::String(text) => {
            let shown: String = text.chars().take(40).collect();
            format!("{shown:?}")
        }
        Value::Array(_) => "an array".into(),
        Value::Object(_) => "an object".into(),
    }
}

pub(crate) fn has_nul(value: &Value) -> bool {
    match value {
        Value::String(text) => text.contains('\0'),
        Value::Array(items) => items.iter().any(has_nul),
        Value::Object(map) => map.iter().any(|(key, value)| key.contains('\0') || has_nul(value)),
        _ => false,
    }
}

fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}
