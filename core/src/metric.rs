//! Every metric's name, kind, labels, unit and help text. The exporter describes them from here, the code records
//! them by these names, and a test holds the documentation against them.

/// What a metric counts or measures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Kind {
    Counter,
    Gauge,
    /// With the upper bounds of its buckets, in the metric's unit.
    Histogram(&'static [f64]),
}

/// One metric.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Metric {
    pub name: &'static str,
    pub kind: Kind,
    pub labels: &'static [&'static str],
    pub help: &'static str,
}

const STEP_SECONDS: &[f64] =
    &[0.0002, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
/// A command may have waited in a queue for minutes: far longer than any step runs.
const LATENCY_SECONDS: &[f64] = &[
    0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 1800.0,
];
const BATCH_COMMANDS: &[f64] = &[1.0, 2.0, 5.0, 10.0, 25.0, 50.0, 100.0, 200.0, 350.0, 500.0, 1000.0];

/// From a look at a few rows to a night's upkeep.
const JOB_SECONDS: &[f64] =
    &[0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 900.0, 3600.0, 10_800.0, 28_800.0];

macro_rules! metrics {
    ($($ident:ident = $name:literal $kind:expr, [$($label:literal),*], $help:literal;)+) => {
        $(#[doc = $help] pub const $ident: Metric =
            Metric { name: $name, kind: $kind, labels: &[$($label),*], help: $help };)+
        /// All of them, in the order of the documentation.
        pub const ALL: &[Metric] = &[$($ident),+];
    };
}

metrics! {
    COMMANDS_ACCEPTED = "taskflow_commands_accepted_total" Kind::Counter, ["type"],
        "Commands that an HTTP intake has taken: the broker confirmed them.";
    COMMANDS_REFUSED = "taskflow_commands_refused_total" Kind::Counter, ["reason"],
        "Commands that an HTTP intake has refused: invalid, forbidden, mismatch, unavailable, backlog.";
    COMMANDS_FINISHED = "taskflow_commands_finished_total" Kind::Counter, ["type", "outcome"],
        "Commands that have their receipt.";
    COMMAND_DUPLICATES = "taskflow_command_duplicates_total" Kind::Counter, ["result"],
        "Messages whose command had its receipt already: same (dropped) or mismatch (dead letter).";
    COMMAND_LATENCY = "taskflow_command_latency_seconds" Kind::Histogram(LATENCY_SECONDS), ["type"],
        "Time from a command's acceptance to the commit of its receipt.";
    BATCH_SIZE = "taskflow_batch_size" Kind::Histogram(BATCH_COMMANDS), [],
        "Commands in one transaction.";
    BATCH_DURATION = "taskflow_batch_duration_seconds" Kind::Histogram(STEP_SECONDS), ["step"],
        "Time of each step of a batch: decode, claim, load, decide, write, commit, ack, relay.";
    BATCH_RETRIES = "taskflow_batch_retries_total" Kind::Counter, ["reason"],
        "Batches that were run again: conflict, unavailable, split (one command had to be isolated).";
    FENCED = "taskflow_fenced_batches_total" Kind::Counter, [],
        "Batches that were dropped since the partition's lease had gone to another worker.";
    PARTITION_ASSIGNED = "taskflow_partition_assigned" Kind::Gauge, ["partition"],
        "1 where this worker holds the partition's lease.";
    PARTITION_STUCK = "taskflow_partition_stuck" Kind::Gauge, ["partition"],
        "1 where this worker holds a partition in which messages wait and nothing is finished, for no known cause.";
    WATCHDOG_STEPS = "taskflow_watchdog_steps_total" Kind::Counter, ["step"],
        "What the watchdog did for a stuck partition: channel, connection, exit; renew is a routine of idle ones.";
    PAUSED = "taskflow_paused" Kind::Gauge, ["scope"],
        "1 for each scope that operators have paused: all, partition:NN, type:T.";
    TASK_RESTARTS = "taskflow_task_restarts_total" Kind::Counter, ["task"],
        "Tasks of this process that ended before their time and were started again.";
    DECLARED_AGAIN = "taskflow_declared_again_total" Kind::Counter, [],
        "Times that this process has declared queues and bindings again, since one was missing.";
    PARTITIONS = "taskflow_partitions" Kind::Gauge, [],
        "Partitions that are to be consumed, as each worker knows it.";
    PARTITIONS_CHANGING = "taskflow_partitions_changing" Kind::Gauge, [],
        "1 while the number of partitions is being changed.";
    QUEUE_AGE = "taskflow_queue_age_seconds" Kind::Gauge, ["queue"],
        "How long the oldest command of a partition queue has waited, as this intake sees it.";
    QUEUE_MESSAGES = "taskflow_queue_messages" Kind::Gauge, ["queue", "state"],
        "Messages in a queue, by state (ready), as the broker counts them.";
    PARKED = "taskflow_parked_commands" Kind::Gauge, [],
        "Commands that wait for what may come (a user, a version that knows their type), or behind one that does.";
    SCHEDULED = "taskflow_scheduled_commands" Kind::Gauge, [],
        "Commands that wait for their notbefore, about.";
    DEAD_LETTERS = "taskflow_dead_letters" Kind::Gauge, [],
        "Dead letters in Postgres that wait for a decision.";
    DEAD_LETTERED = "taskflow_dead_lettered_total" Kind::Counter, ["reason"],
        "Messages that this worker has sent to the dead letters.";
    DEAD_LETTERS_STORED = "taskflow_dead_letters_stored_total" Kind::Counter, ["kind"],
        "Messages taken from the dead-letter queue into Postgres: new, again (a replay died), copy (known already).";
    DEAD_LETTERS_REPLAYED = "taskflow_dead_letters_replayed_total" Kind::Counter, [],
        "Dead letters that were published again.";
    SYSTEM_EVENTS_PENDING = "taskflow_system_events_pending" Kind::Gauge, [],
        "System events that the audit trail and the event exchange do not have yet.";
    SCHEDULER_LEADS = "taskflow_scheduler_leader" Kind::Gauge, [],
        "1 where this scheduler leads.";
    JOB_RUNS = "taskflow_job_runs_total" Kind::Counter, ["job", "outcome"],
        "Runs of jobs that ended, and due times without a run: completed, failed, timed_out, cancelled, retried, missed, coalesced, overlapped, outside_window.";
    JOB_DUE_TIMES = "taskflow_job_due_times_total" Kind::Counter, ["job", "met"],
        "Due times of schedules, by how they were met: on_time, late, caught_up, missed, coalesced, overlapped, outside_window.";
    JOB_DURATION = "taskflow_job_duration_seconds" Kind::Histogram(JOB_SECONDS), ["job"],
        "Time of each try of a job.";
    JOB_LAST_SUCCESS = "taskflow_job_last_success_timestamp_seconds" Kind::Gauge, ["job"],
        "When the job was last completed, in seconds since 1970.";
    JOB_REARMED = "taskflow_job_rearmed_total" Kind::Counter, ["job"],
        "Schedules that had lost their next due time, or had a wrong one, and were given one by the reconciler.";
    POSTGRES_CONNECTIONS = "taskflow_postgres_connections" Kind::Gauge, ["state"],
        "Connections of the server by state (active, idle, idle_in_transaction), and its limit (max).";
    POSTGRES_OLDEST_TRANSACTION = "taskflow_postgres_oldest_transaction_seconds" Kind::Gauge, [],
        "Age of the oldest open transaction.";
    POSTGRES_LONG_TRANSACTIONS = "taskflow_postgres_long_transactions" Kind::Gauge, [],
        "Transactions that have been open for longer than half a minute.";
    POSTGRES_XMIN_AGE = "taskflow_postgres_oldest_xmin_age" Kind::Gauge, [],
        "Transactions since the oldest one that a session, a replication slot or a prepared transaction still holds: nothing younger can be vacuumed.";
    POSTGRES_WRAPAROUND_AGE = "taskflow_postgres_wraparound_age" Kind::Gauge, [],
        "Transactions since the oldest one that is not frozen; the server stops before two thousand million.";
    POSTGRES_TABLE_BYTES = "taskflow_postgres_table_bytes" Kind::Gauge, ["table"],
        "Size of a table with its indexes.";
    POSTGRES_DEAD_ROWS = "taskflow_postgres_dead_rows" Kind::Gauge, ["table"],
        "Dead rows of a table, as the server estimates them.";
    POSTGRES_INDEX_SCANS = "taskflow_postgres_index_scans" Kind::Gauge, ["index"],
        "Scans of an index since the server's statistics began.";
    POSTGRES_UNUSED_INDEXES = "taskflow_postgres_unused_indexes" Kind::Gauge, ["figure"],
        "Indexes that nothing has read since the server's statistics began and that no constraint needs: count, bytes.";
    POSTGRES_STATEMENT_SECONDS = "taskflow_postgres_statement_seconds" Kind::Gauge, ["statement"],
        "Time that the statements of a name have taken, as pg_stat_statements counts it; other for all that have taken little.";
    POSTGRES_STATEMENT_CALLS = "taskflow_postgres_statement_calls" Kind::Gauge, ["statement"],
        "Calls of the statements of a name, as pg_stat_statements counts them.";
    POSTGRES_SLOW_STATEMENTS = "taskflow_postgres_slow_statements" Kind::Gauge, [],
        "Statements that take longer than a second on average.";
    MONGODB_TRAIL = "taskflow_trail_figures" Kind::Gauge, ["figure"],
        "The audit trail's collection: events, bytes, index_bytes.";
    MONGODB_BEHIND = "taskflow_trail_replication_behind_seconds" Kind::Gauge, [],
        "How far the slowest member of the replica set is behind the newest.";
    REDIS_INFO = "taskflow_cache_server_figures" Kind::Gauge, ["figure"],
        "What Redis tells of itself: memory_bytes, memory_max_bytes, fragmentation, clients, evicted_keys, hits, misses.";
    AUDIT_SEAL = "taskflow_audit_seal" Kind::Gauge, [],
        "The number of the newest seal of the audit trail.";
    AUDIT_SEALED = "taskflow_audit_sealed_timestamp_seconds" Kind::Gauge, [],
        "When the audit trail was last sealed, in seconds since 1970.";
    AUDIT_VERIFIED = "taskflow_audit_verified_events_total" Kind::Counter, [],
        "Events that a verification found as they were sealed.";
    AUDIT_FINDINGS = "taskflow_audit_findings" Kind::Gauge, ["kind"],
        "What the last verification of the audit trail found wrong, by kind.";
    OUTBOX_PENDING = "taskflow_outbox_pending" Kind::Gauge, [],
        "Outbox rows (one a batch) that are not known to be relayed.";
    OUTBOX_OLDEST = "taskflow_outbox_oldest_seconds" Kind::Gauge, [],
        "Age of the oldest outbox row.";
    EVENTS_RELAYED = "taskflow_events_relayed_total" Kind::Counter, ["sink"],
        "Events delivered, by sink: audit (MongoDB), cache (Redis; entities), exchange (RabbitMQ).";
    EVENTS_REFUSED = "taskflow_events_refused_total" Kind::Counter, [],
        "Events that a queue bound to taskflow.events has refused to the end; other queues have them.";
    CANARY_COMMANDS = "taskflow_canary_commands_total" Kind::Counter, ["partition", "result"],
        "Canary commands by what became of them: sent, applied, lost, doubled, reordered, stuck.";
    CANARY_ROUND_TRIP = "taskflow_canary_round_trip_seconds" Kind::Histogram(LATENCY_SECONDS), ["partition"],
        "Time from the broker's confirm of a canary command until its receipt was seen.";
    CANARY_LAST_SUCCESS = "taskflow_canary_last_success_timestamp_seconds" Kind::Gauge, ["partition"],
        "When a pair of canary commands last went all the way as it should, in seconds since 1970.";
    BACKUP_LAST_SUCCESS = "taskflow_backup_last_success_timestamp_seconds" Kind::Gauge, ["kind"],
        "When the newest whole backup of a kind was begun, in seconds since 1970.";
    BACKUP_SIZE = "taskflow_backup_size_bytes" Kind::Gauge, ["kind"],
        "Size of the newest whole backup of a kind, as it lies there.";
    RECOVERY_POINT = "taskflow_recovery_point_seconds" Kind::Gauge, ["store"],
        "How much of a store's newest data would be lost if its server were gone now: the age of what the backups hold.";
    DRILL_DURATION = "taskflow_recovery_drill_duration_seconds" Kind::Gauge, ["store"],
        "How long the last drill took to restore a store's newest backups and to check them.";
    JOURNAL_DROPPED = "taskflow_journal_dropped_total" Kind::Counter, [],
        "Commands that were applied and are not in the journal, since they found no room on this machine.";
    WAL_KEPT = "taskflow_wal_kept_bytes" Kind::Gauge, [],
        "Bytes of Postgres's log of writes that the server keeps until they are archived.";
    STORE_UP = "taskflow_store_up" Kind::Gauge, ["store"],
        "1 where the last probe of the store succeeded.";
    STORE_CALL = "taskflow_store_call_duration_seconds" Kind::Histogram(STEP_SECONDS), ["store", "call"],
        "Time of calls to a store.";
    HTTP_REQUEST = "taskflow_http_request_duration_seconds" Kind::Histogram(STEP_SECONDS), ["route", "method", "status"],
        "Time of HTTP requests, by route pattern.";
    STREAMS = "taskflow_streams" Kind::Gauge, [],
        "Open sockets of the live stream.";
    STREAMS_ENDED = "taskflow_streams_ended_total" Kind::Counter, ["reason"],
        "Sockets of the live stream that ended: left, stopping, reset, slow, idle, session, gap, unavailable, talks.";
    CACHE_REQUESTS = "taskflow_cache_requests_total" Kind::Counter, ["cache", "result"],
        "Reads, by cache (task, profile, list, stats, search, response, changes, permissions) and what was there: hit, miss, stale, away.";
    LOGINS = "taskflow_logins_total" Kind::Counter, ["result"],
        "Logins, by result: ok, failed, busy, limited.";
    REQUESTS_LIMITED = "taskflow_requests_limited_total" Kind::Counter, ["policy"],
        "Requests that were refused with 429, by policy: user, address.";
    LIMITS_UNCHECKED = "taskflow_limits_unchecked_total" Kind::Counter, [],
        "Requests that passed without a look at their limits, since Redis did not answer.";
    SENSITIVE_OPERATIONS = "taskflow_sensitive_operations_total" Kind::Counter, ["operation"],
        "Sensitive operations whose events a worker has carried to the audit trail.";
    CONNECTIONS = "taskflow_http_connections" Kind::Gauge, [],
        "Open connections of an HTTP intake.";
    CONNECTIONS_CLOSED = "taskflow_http_connections_closed_total" Kind::Counter, ["reason"],
        "Connections that an HTTP intake closed: head (too slow), write (does not read), full, address (too many).";
    PUBLISH_IN_FLIGHT = "taskflow_publish_in_flight" Kind::Gauge, [],
        "Messages published and not yet confirmed.";
    TASKS = "taskflow_tasks" Kind::Gauge, [],
        "Asynchronous tasks of this process that have not ended.";
    BUILD_INFO = "taskflow_build_info" Kind::Gauge, ["version", "commit"],
        "1; the labels tell the build.";
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_prometheus_rules() {
        for metric in ALL {
            assert!(metric.name.starts_with("taskflow_"), "{}", metric.name);
            assert_eq!(metric.kind == Kind::Counter, metric.name.ends_with("_total"), "{}", metric.name);
            assert!(metric.help.ends_with('.'), "{}", metric.name);
            if let Kind::Histogram(bounds) = metric.kind {
                assert!(bounds.is_sorted(), "{}", metric.name);
            }
        }
    }
}
