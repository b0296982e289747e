//! Receipts that are past lie between others that are on hold: all of the ones go, in many steps, and none of the others.

use std::sync::Arc;

use anyhow::ensure;
use libtest_mimic::Trial;
use serde_json::Value;
use taskflow_tests::commands::ADMIN;
use taskflow_tests::{Result, Site};

use super::{by_hand, created, made, run, until_led};
use crate::{cluster, with_site};

pub(super) fn tests() -> Vec<Trial> {
    vec![with_site("receipts that are past go from between many that are on hold", between)]
}

/// On hold, and not; a step removes 2,000.
const HELD: i64 = 40_000;
const FREE: i64 = 9_000;
/// The newest of them are from one moment.
const AT_ONCE: i64 = 5_000;

async fn between(site: Arc<Site>) -> Result {
    let cluster = cluster(&site)?;
    cluster.write_settings(&by_hand("[retention]\nreceipts_days = 10\n"))?;
    let (task, create) = created(ADMIN);
    made(&site, &cluster, &[create]).await?;
    // Those on hold come every few minutes from a hundred days ago until ten days ago, the others among them.
    site.sql(&format!(
        "INSERT INTO receipts SELECT (jsonb_populate_record(one.whole, jsonb_build_object('id', gen_random_uuid(), 'subject',
             CASE WHEN n <= {HELD} THEN '{task}'::uuid ELSE gen_random_uuid() END, 'finished_at',
             CASE WHEN n <= {HELD} THEN now() - interval '100 days' + n * interval '90 days' / {HELD}
                  WHEN n <= {HELD} + {AT_ONCE} THEN now() - interval '11 days'
                  ELSE now() - interval '100 days' + (n - {HELD} - {AT_ONCE}) * interval '89 days' / ({FREE} - {AT_ONCE}) END))).*
         FROM (SELECT r AS whole FROM receipts r WHERE subject = '{task}' LIMIT 1) AS one, generate_series(1, {HELD} + {FREE}) AS n;
         INSERT INTO legal_holds (id, scope, subject, why, author, since) VALUES (gen_random_uuid(), 'entity', '{task}', 'a case', 'ada', now())"
    ))
    .await?;
    let scheduler = cluster.spawn("scheduler", &[])?;
    until_led(&site).await?;
    let held = format!("SELECT count(*) FROM receipts WHERE subject = '{task}'");
    let before = site.count(&held).await?;
    let done: Value = run(&cluster, &["retention.receipts"]).await?;
    ensure!(done["figures"]["receipts_removed"] == FREE, "{done}");
    ensure!(site.count(&held).await? == before, "what is on hold is gone");
    let old = "SELECT count(*) FROM receipts WHERE finished_at < now() - interval '10 days'";
    ensure!(site.count(old).await? == HELD, "something past is left, or something on hold is not");
    scheduler.stop().await
}
