//! Rows of Postgres: whoever holds what, only what is past and free goes.

use std::sync::Arc;

use anyhow::ensure;
use libtest_mimic::Trial;
use serde_json::Value;
use taskflow_tests::{Result, Site};

use super::{by_hand, created, made, run, until_led};
use crate::{cluster, with_site};
use taskflow_tests::commands::ADMIN;

pub(super) fn tests() -> Vec<Trial> {
    vec![with_site(
        "receipts, dead letters and deleted tasks go only when they are past and no hold of their entity or actor stands",
        every_way,
    )]
}

/// How an actor or an entity may be held: as what it is, as what it is not, not any more, never. Only the first keeps.
const WAYS: [&str; 4] = ["held", "otherwise", "released", "free"];
/// For how long each is kept, in days.
const RECEIPTS: i64 = 10;
const LETTERS: i64 = 20;
const TASKS: i64 = 15;

/// Rows of a table that a job removes.
struct Kind {
    /// The job's name, which is the table's.
    job: &'static str,
    /// What the table calls a combination.
    column: &'static str,
    /// What a dry run says.
    planned: &'static [(&'static str, i64)],
}

/// Rows of every age, actor and entity there can be, beside each other.
async fn every_way(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    cluster.write_settings(&by_hand(&format!(
        "[retention]\nreceipts_days = {RECEIPTS}\ndead_letters_days = {LETTERS}\ndeleted_tasks_days = {TASKS}\n"
    )))?;
    made(&site, &cluster, &[created(ADMIN).1]).await?;
    site.sql(&format!(
        "CREATE TABLE actors AS SELECT gen_random_uuid() AS id, way FROM UNNEST(ARRAY['{ways}']) AS way;
         INSERT INTO users SELECT (jsonb_populate_record(one.whole, jsonb_build_object('id', a.id, 'email', a.way || '@example.org'))).*
         FROM (SELECT u AS whole FROM users u LIMIT 1) AS one, actors a;
         CREATE TABLE combinations AS
         SELECT gen_random_uuid() AS id, a.id AS actor, a.way AS actor_way, e.way AS entity_way, past, NULL::uuid AS assignee
         FROM actors a, UNNEST(ARRAY['{ways}']) AS e (way), UNNEST(ARRAY[true, false]) AS past;
         -- Who was to do a task has to do with it too.
         INSERT INTO combinations SELECT gen_random_uuid(), free.id, 'free', 'free', true, a.id
         FROM actors a, (SELECT id FROM actors WHERE way = 'free') AS free WHERE a.way = 'held';
         INSERT INTO legal_holds (id, scope, subject, why, author, since, released_at, released_by)
         SELECT gen_random_uuid(), CASE way WHEN 'otherwise' THEN 'entity' ELSE 'actor' END, id, 'a case', 'ada', now(),
                CASE way WHEN 'released' THEN now() END, CASE way WHEN 'released' THEN 'ada' END
         FROM actors WHERE way <> 'free'
         UNION ALL
         SELECT gen_random_uuid(), CASE entity_way WHEN 'otherwise' THEN 'actor' ELSE 'entity' END, id, 'a case', 'ada', now(),
                CASE entity_way WHEN 'released' THEN now() END, CASE entity_way WHEN 'released' THEN 'ada' END
         FROM combinations WHERE entity_way <> 'free'",
        ways = WAYS.join("','"),
    ))
    .await?;
    // A day too young, or a day past.
    let at =
        |days: i64| format!("now() - CASE WHEN past THEN {days} + 1 ELSE {days} - 1 END * interval '1 day'");
    let copies = [
        format!(
            "INSERT INTO receipts SELECT (jsonb_populate_record(one.whole, jsonb_build_object('id', gen_random_uuid(), 'subject', c.id,
                 'actor', c.actor, 'finished_at', {}))).*
             FROM (SELECT r AS whole FROM receipts r LIMIT 1) AS one, combinations c WHERE assignee IS NULL",
            at(RECEIPTS)
        ),
        format!(
            "INSERT INTO tasks SELECT (jsonb_populate_record(one.whole, jsonb_build_object('id', c.id, 'creator_id', c.actor,
                 'assignee_id', c.assignee, 'created_at', now() - interval '90 days', 'deleted_at', {}))).*
             FROM (SELECT t AS whole FROM tasks t LIMIT 1) AS one, combinations c",
            at(TASKS)
        ),
        format!(
            "INSERT INTO dead_letters (id, key, command_id, subject, actor, reason, detail, pattern, fingerprint, exchange, queue,
                 routing_key, headers, body, state, attempt, attempts, copies, first_died_at, last_died_at)
             SELECT gen_random_uuid(), sha256(id::text::bytea), gen_random_uuid(), id, actor, 'failing', '', '', '', '', '', '',
                 '{{}}', 'x', 'kept', 1, '[]', 0, {0}, {0} FROM combinations WHERE assignee IS NULL",
            at(LETTERS)
        ),
    ];
    for copy in &copies {
        site.sql(copy).await?;
    }
    let scheduler = cluster.spawn("scheduler", &[])?;
    until_led(&site).await?;

    let free = "SELECT id FROM combinations WHERE past AND actor_way <> 'held' AND entity_way <> 'held'
                AND assignee IS NULL";
    // Of sixteen pairs, seven have an actor or an entity that is held.
    let kinds = [
        Kind { job: "receipts", column: "subject", planned: &[("receipts_past", 9)] },
        Kind { job: "dead_letters", column: "subject", planned: &[("letters_past", 9), ("letters_held", 7)] },
        Kind { job: "tasks", column: "id", planned: &[("tasks_past", 9), ("tasks_held", 8)] },
    ];
    for Kind { job: table, column, planned } in &kinds {
        let job = format!("retention.{table}");
        let of_ours = format!("SELECT count(*) FROM {table} WHERE {column} IN (SELECT id FROM combinations)");
        let before = site.count(&of_ours).await?;
        let plan: Value = run(&cluster, &[job.as_str(), "--dry-run"]).await?;
        for (figure, count) in *planned {
            ensure!(plan["figures"][figure] == *count, "{figure} is not {count}: {plan}");
        }
        ensure!(site.count(&of_ours).await? == before, "a dry run removed something: {plan}");
        run(&cluster, &[job.as_str()]).await?;
        let wrongly = format!("SELECT count(*) FROM {table} WHERE {column} IN ({free})");
        ensure!(site.count(&wrongly).await? == 0, "{job}: what is past and free is still there");
        ensure!(site.count(&of_ours).await? == before - 9, "{job}: what is held or too young is gone");
    }

    // After their release they go too, and what is too young stays.
    site.sql("UPDATE legal_holds SET released_at = now(), released_by = 'ada' WHERE released_at IS NULL")
        .await?;
    for Kind { job: table, column, .. } in &kinds {
        let job = format!("retention.{table}");
        run(&cluster, &[job.as_str()]).await?;
        let old = format!(
            "SELECT count(*) FROM {table} WHERE {column} IN (SELECT id FROM combinations WHERE past)"
        );
        let young = format!(
            "SELECT count(*) FROM {table} WHERE {column} IN (SELECT id FROM combinations WHERE NOT past)"
        );
        ensure!(site.count(&old).await? == 0, "{job}: what was released stays");
        ensure!(site.count(&young).await? == 16, "{job}: what is too young is gone");
    }
    scheduler.stop().await
}
