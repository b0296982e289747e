//! What errors have in common: their text without what differs from case to case.

use sha2::{Digest, Sha256};

use crate::hex;

/// Characters of a pattern.
const PATTERN_MAX: usize = 300;
/// A quoted word after one of these names a part of the schema, not a value: it tells errors apart.
const NAMED: [&str; 9] =
    ["relation", "constraint", "column", "table", "index", "type", "schema", "function", "field"];

/// The text of an error with ids and numbers as `#` and quoted values as `…`.
pub fn pattern(detail: &str) -> String {
    let mut pattern = String::new();
    let mut rest = detail;
    let mut previous = "";
    while let Some(first) = rest.chars().next() {
        if let Some(length) = quoted(rest, pattern.chars().next_back()) {
            let inside = &rest[1..length - 1];
            let name =
                NAMED.contains(&previous) && inside.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
            pattern.push_str(if name { inside } else { "…" });
            rest = &rest[length..];
        } else if first.is_alphanumeric() {
            let length =
                rest.find(|c: char| !(c.is_alphanumeric() || "-_".contains(c))).unwrap_or(rest.len());
            let word = &rest[..length];
            push_word(&mut pattern, word, previous);
            previous = word;
            rest = &rest[length..];
        } else {
            push_other(&mut pattern, first);
            rest = &rest[first.len_utf8()..];
        }
        if pattern.len() > PATTERN_MAX * 4 {
            break;
        }
    }
    pattern.trim().chars().take(PATTERN_MAX).collect()
}

/// The bytes of a quotation that begins here.
fn quoted(text: &str, before: Option<char>) -> Option<usize> {
    let mark = text.chars().next().filter(|c| "\"'`".contains(*c))?;
    // An apostrophe within a word begins nothing.
    if mark == '\'' && before.is_some_and(char::is_alphanumeric) {
        return None;
    }
    let mut escaped = false;
    for (place, c) in text.char_indices().skip(1) {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if c == mark => return Some(place + 1),
            _ => {}
        }
    }
    None
}

/// A word: an id or a number becomes `#`, digits within a word too.
fn push_word(pattern: &mut String, word: &str, previous: &str) {
    if previous == "SQLSTATE" {
        pattern.push_str(word);
        return;
    }
    let hex = word.len() >= 8 && word.bytes().all(|b| b.is_ascii_hexdigit() || b == b'-');
    if hex && word.bytes().any(|b| b.is_ascii_digit()) {
        return push_number(pattern);
    }
    for c in word.chars() {
        if c.is_numeric() {
            push_number(pattern);
        } else if c == 'T' && pattern.ends_with('#') {
            // In the middle of a time, most likely.
        } else {
            pattern.push(c);
        }
    }
}

fn push_other(pattern: &mut String, c: char) {
    let c = if c.is_whitespace() || c.is_control() { ' ' } else { c };
    if c != ' ' || !pattern.ends_with(' ') {
        pattern.push(c);
    }
}

/// Numbers that hang together (a time, a range, a version) are one.
fn push_number(pattern: &mut String) {
    let head = pattern.trim_end_matches(['.', ':', '-', ',', '/', '+']);
    if head.ends_with('#') {
        pattern.truncate(head.len());
    } else {
        pattern.push('#');
    }
}

/// What errors of one kind share: the reason and ten digits of a hash of the pattern.
pub fn fingerprint(reason: &str, pattern: &str) -> String {
    let mut hash = Sha256::new();
    hash.update(reason.as_bytes());
    hash.update([0]);
    hash.update(pattern.as_bytes());
    format!("{reason}-{}", hex::of(&hash.finalize()[..5]))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn patterns_of_real_errors() {
        for (detail, expected) in [
            (
                "postgres: record a batch: new row for relation \"tasks\" violates check constraint \"no_poison\" (SQLSTATE 23514)",
                "postgres: record a batch: new row for relation tasks violates check constraint no_poison (SQLSTATE 23514)",
            ),
            (
                "published with routing key \"14\", the subject's slot is \"10\": it would overtake or be overtaken",
                "published with routing key …, the subject's slot is …: it would overtake or be overtaken",
            ),
            (
                "not valid JSON: expected value at line 1 column 17",
                "not valid JSON: expected value at line # column #",
            ),
            (
                "another command with the id 0189f7a0-6d3c-7e4b-9a51-3f0c2f4f7a10 was there first",
                "another command with the id # was there first",
            ),
            (
                "/data/tags/3/name: must have 1 to 255 characters",
                "/data/tags/#/name: must have # to # characters",
            ),
            ("duedate 2026-11-23T14:00:00.123Z is not after now", "duedate #Z is not after now"),
        ] {
            assert_eq!(pattern(detail), expected);
        }
    }

    #[test]
    fn what_differs_in_meaning_differs_in_fingerprint() {
        let of = |reason, detail| fingerprint(reason, &pattern(detail));
        assert_ne!(of("failing", "violates constraint \"a\""), of("failing", "violates constraint \"b\""));
        assert_ne!(of("failing", "the same"), of("malformed", "the same"));
        assert!(of("failing", "x").starts_with("failing-"));
    }

    proptest! {
        #[test]
        fn values_make_no_difference(a in any::<u128>(), b in any::<u128>(), n in any::<u32>(), m in any::<u32>(), text in "[^\"\\\\]{0,40}") {
            let detail = |id: u128, n: u32, text: &str| {
                format!("task {} has {n} rows, title \"{text}\" at line {n}", uuid::Uuid::from_u128(id))
            };
            prop_assert_eq!(pattern(&detail(a, n, &text)), pattern(&detail(b, m, "another")));
        }

        #[test]
        fn any_text_has_a_short_pattern(text in "\\PC{0,2000}") {
            let short = pattern(&text);
            prop_assert!(short.chars().count() <= PATTERN_MAX);
            prop_assert!(!short.contains('\0'));
        }
    }
}
