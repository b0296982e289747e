//! Dead letters as text for people, or as JSON for programs.

use chrono::{DateTime, SecondsFormat, Utc};
use serde_json::{Value, json};
use taskflow_stores::postgres::dead_letter_replays::View;
use taskflow_stores::postgres::dead_letters::{Cursor, Group, Summary};
use taskflow_stores::postgres::rehearse::Rehearsal;

/// Characters of an error in a list.
const DETAIL: usize = 90;

pub(super) fn line(json: bool, value: &Value, text: &str) {
    if json {
        println!("{value}");
    } else {
        println!("{text}");
    }
}

pub(super) fn list(letters: &[Summary], next: Option<Cursor>, json: bool) {
    let next = next.map(|next| next.to_string());
    if json {
        println!("{}", json!({ "items": letters, "next": next }));
        return;
    }
    for letter in letters {
        println!(
            "{}  {}  {:<9}  {:<20} {:<18} {}",
            letter.id,
            time(letter.lastdiedat),
            letter.state.as_str(),
            letter.fingerprint,
            letter.kind.as_deref().unwrap_or("-"),
            short(&letter.detail),
        );
    }
    match next {
        Some(next) => println!("… more with --cursor {next}"),
        None if letters.is_empty() => println!("no dead letters"),
        None => {}
    }
}

pub(super) fn groups(groups: &[Group], json: bool) {
    if json {
        println!("{}", json!({ "items": groups }));
        return;
    }
    for group in groups {
        println!(
            "{}  {} letters, {} kept, last {}",
            group.fingerprint,
            group.letters,
            group.kept,
            time(group.lastdiedat)
        );
        println!("    {}", short(&group.pattern));
        println!(
            "    types: {}; sources: {}; one of them: {}",
            group.types.join(", "),
            group.sources.join(", "),
            group.example
        );
    }
    if groups.is_empty() {
        println!("no dead letters");
    }
}

/// A letter with all that is known of it.
pub(super) fn letter(letter: &Value, json: bool) {
    if json {
        println!("{letter}");
        return;
    }
    for (name, value) in letter.as_object().into_iter().flatten() {
        match value {
            Value::Null => {}
            Value::String(_) if name == "body" || name == "editedbody" => {}
            Value::String(text) => println!("{name:<14} {text}"),
            Value::Object(_) => println!("{name}:\n{}", indented(value)),
            Value::Array(attempts) => {
                println!("{name}:");
                for attempt in attempts {
                    let word = |name: &str| attempt[name].as_str().unwrap_or_default().to_owned();
                    println!(
                        "  {} {} {}: {}",
                        attempt["number"],
                        word("diedat"),
                        word("reason"),
                        word("detail")
                    );
                }
            }
            other => println!("{name:<14} {other}"),
        }
    }
    println!("(the bytes themselves: `taskflow dead-letters show ID --body`)");
}

pub(super) fn rehearsal(rehearsal: &Rehearsal, json: bool) {
    if json {
        println!("{}", json!(rehearsal));
        return;
    }
    let code = rehearsal.code.as_ref().map(|code| format!(" ({code})")).unwrap_or_default();
    println!("would be {}{code}", rehearsal.outcome);
    if let Some(detail) = &rehearsal.detail {
        println!("  {detail}");
    }
    for event in &rehearsal.events {
        println!("event {}\n{}", event.kind, indented(&event.data));
    }
    for row in &rehearsal.rows {
        println!("{} {}", row.table, row.id);
        for (name, after) in row.after.as_object().into_iter().flatten() {
            let before = &row.before[name];
            if before != after {
                println!("  {name}: {before} → {after}");
            }
        }
    }
    println!("nothing of this has lasted");
}

pub(super) fn replays(replays: &[View], json: bool) {
    if json {
        println!("{}", json!({ "items": replays }));
        return;
    }
    for replay in replays {
        let why = replay.stoppedsince.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
        println!(
            "{}  {}  {}{why}; {} taken, {} lived, {} died; {} a second; {}",
            replay.id,
            time(replay.createdat),
            replay.state,
            replay.taken,
            replay.lived,
            replay.died,
            replay.rate,
            json!(replay.filter.0),
        );
    }
    if replays.is_empty() {
        println!("no replays");
    }
}

fn time(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(SecondsFormat::Secs, true)
}

fn short(text: &str) -> String {
    let mut short: String = text.chars().take(DETAIL).collect();
    if short.len() < text.len() {
        short.push('…');
    }
    short
}

fn indented(value: &Value) -> String {
    let text = serde_json::to_string_pretty(value).unwrap_or_default();
    text.lines().map(|line| format!("  {line}")).collect::<Vec<_>>().join("\n")
}
