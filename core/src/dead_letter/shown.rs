//! Bytes as a person may see them, and as the audit trail keeps them: whole, but without passwords.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, Value, json};

use super::key;
use crate::envelope::COMMAND_MAX;
use crate::fault::has_nul;
use crate::hex;

/// Bytes that are kept in the audit trail; of more only the digest is. Two versions must fit into one document.
const BYTES_MAX: usize = 1024 * 1024;
/// Levels of nesting that are kept: the audit trail's store has its own bound.
const DEPTH_MAX: usize = 50;
/// What stands for a password.
const KEPT_BACK: &str = "[kept back]";

/// Bytes as base64.
pub fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// The JSON that bytes are, without passwords; nothing of what is longer than a command, of which nobody reads more.
pub fn decoded(body: &[u8]) -> Option<Value> {
    if body.len() > COMMAND_MAX {
        return None;
    }
    let mut value: Value = serde_json::from_slice(body).ok()?;
    redact(&mut value, DEPTH_MAX);
    Some(value)
}

/// Bytes for the audit trail: their digest and size, and what they say.
pub fn audited(body: &[u8]) -> Value {
    let digest = hex::of(&key(body));
    let mut shown =
        Map::from_iter([("sha256".to_owned(), json!(digest)), ("bytes".to_owned(), json!(body.len()))]);
    if body.len() <= BYTES_MAX {
        match decoded(body) {
            Some(value) if !has_nul(&value) => drop(shown.insert("command".to_owned(), value)),
            _ if names_password(body) => {}
            _ => drop(shown.insert("base64".to_owned(), json!(base64(body)))),
        }
    }
    Value::Object(shown)
}

fn redact(value: &mut Value, depth: usize) {
    match value {
        Value::Array(_) | Value::Object(_) if depth == 0 => *value = json!("[nested too deep]"),
        Value::Array(items) => items.iter_mut().for_each(|item| redact(item, depth - 1)),
        Value::Object(fields) => {
            for (name, value) in fields {
                if names_password(name.as_bytes()) {
                    *value = json!(KEPT_BACK);
                } else {
                    redact(value, depth - 1);
                }
            }
        }
        _ => {}
    }
}

fn names_password(bytes: &[u8]) -> bool {
    const WORD: &[u8] = b"passw";
    bytes.windows(WORD.len()).any(|window| window.eq_ignore_ascii_case(WORD))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_shown() {
        let body = br#"{"data": {"passwordhash": "$2b$12$secret", "Password": ["secret"], "email": "a@b"}}"#;
        for shown in [audited(body).to_string(), decoded(body).unwrap().to_string()] {
            assert!(!shown.contains("secret") && shown.contains("a@b"), "{shown}");
        }
        let broken = audited(br#"{"password": "secret""#);
        assert!(broken.get("base64").is_none() && broken.get("sha256").is_some(), "{broken}");
    }

    #[test]
    fn any_bytes_have_a_form() {
        let shown = audited(b"\xff\xfe");
        assert_eq!(shown["base64"], "//4=");
        assert_eq!(shown["bytes"], 2);
        let deep = format!("{}1{}", "[".repeat(100), "]".repeat(100));
        assert!(audited(deep.as_bytes()).to_string().contains("nested too deep"));
    }
}
