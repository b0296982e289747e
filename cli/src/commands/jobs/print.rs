//! Schedules and runs as text for people.

use chrono::{DateTime, Utc};
use serde_json::Value;
use taskflow_stores::postgres::job_history::Row;
use taskflow_stores::postgres::job_schedules::Listed;
use taskflow_stores::postgres::leader::Leader;

const TIME: &str = "%Y-%m-%d %H:%M:%S";

fn time(at: Option<DateTime<Utc>>) -> String {
    at.map_or_else(|| "-".to_owned(), |at| at.format(TIME).to_string())
}

pub(super) fn list(schedules: &[Listed], leader: &Leader) {
    match (&leader.host, leader.leads) {
        (Some(host), true) => {
            println!("led by {host} since {} UTC (epoch {})", time(leader.since), leader.epoch);
        }
        (Some(host), false) => println!("no scheduler leads: nothing runs (the last one was on {host})"),
        (None, _) => println!("no scheduler has ever led; start one with `taskflow scheduler`"),
    }
    println!(
        "{:<28} {:<34} {:<20} {:<12} last",
        "schedule", "due (expression, time zone)", "next (UTC)", "last"
    );
    for one in schedules {
        let next = match (one.enabled, one.pausedat) {
            (false, _) => "switched off".to_owned(),
            (true, Some(_)) => "paused".to_owned(),
            (true, None) => time(one.nextbeginsat),
        };
        let last = one.laststate.as_deref().unwrap_or("-");
        let last = if last == "not_run" { one.lastmet.as_deref().unwrap_or(last) } else { last };
        println!("{:<28} {:<34} {next:<20} {last:<12} {}", one.name, one.definition, time(one.lastdueat));
    }
}

pub(super) fn schedule(one: &Listed) {
    println!("{} runs {}: {}", one.name, one.job, one.definition);
    if let Some(paused) = one.pausedat {
        let (by, why) = (one.pausedby.as_deref().unwrap_or("-"), one.pausedwhy.as_deref().unwrap_or("-"));
        println!("paused since {} UTC, by {by}: {why}", paused.format(TIME));
    }
    if !one.enabled {
        println!("switched off in the settings");
    }
    println!("next due  {} UTC, begins {} UTC", time(one.nextdueat), time(one.nextbeginsat));
}

pub(super) fn history(rows: &[Row]) {
    println!(
        "{:>8} {:<28} {:<20} {:<14} {:<10} {:<9} detail",
        "run", "schedule", "due (UTC)", "met", "state", "took"
    );
    for row in rows {
        let detail = row.detail.as_deref().unwrap_or_default();
        println!(
            "{:>8} {:<28} {:<20} {:<14} {:<10} {:<9} {detail}",
            row.id,
            row.schedule,
            time(Some(row.dueat)),
            row.met,
            row.state,
            took(row)
        );
    }
}

fn took(row: &Row) -> String {
    match (row.startedat, row.endedat) {
        (Some(started), Some(ended)) => format!("{:.1} s", (ended - started).as_seconds_f64()),
        _ => "-".to_owned(),
    }
}

pub(super) fn row(row: &Row) {
    println!("run {} of {} ({}), try {}", row.id, row.schedule, row.job, row.attempt);
    println!("due       {} UTC, {}", time(Some(row.dueat)), row.met);
    println!("state     {}, took {}", row.state, took(row));
    if let Some(detail) = &row.detail {
        println!("detail    {detail}");
    }
    if let Some(host) = &row.host {
        println!("host      {host} (epoch {})", row.epoch);
    }
    if let Some(by) = &row.askedby {
        println!("asked by  {by}");
    }
    if let Some(figures) = &row.figures {
        print_figures(figures, 0);
    }
    for line in row.log.iter().flat_map(|log| &log.0) {
        println!("  {line}");
    }
}

fn print_figures(value: &Value, depth: usize) {
    let indent = "  ".repeat(depth);
    for (name, value) in value.as_object().into_iter().flatten() {
        match value {
            Value::Object(inner) if !inner.is_empty() => {
                println!("{indent}{name}:");
                print_figures(value, depth + 1);
            }
            Value::Array(items) => {
                println!("{indent}{name}:");
                items.iter().for_each(|item| println!("{indent}  {item}"));
            }
            Value::String(text) => println!("{indent}{name:<24} {text}"),
            value => println!("{indent}{name:<24} {value}"),
        }
    }
}
