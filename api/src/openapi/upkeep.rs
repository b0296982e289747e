//! The calls about scheduled jobs, backups and legal holds.

use super::calls::{
    CURSOR, Call, ID, JSON, PAGE_SIZE, Parameter, admin, at, json, nothing, query, with_body,
};

const SCHEDULE: Parameter = at("schedule", "text", "A schedule's name, such as retention.events");
const RUN: Parameter = at("id", "text", "A run's number");
const BACKUP: Parameter = at("id", "text", "A backup's name, as the list has it");

pub(super) const CALLS: &[Call] = &[
    admin(
        "get",
        "/v1/admin/jobs",
        "listJobs",
        "The schedules: what is due when, what is paused, how the last run ended; and who leads",
        &[],
        &[json(200, "The schedules and the leader", "Schedules")],
    ),
    admin(
        "get",
        "/v1/admin/jobs/runs",
        "listRuns",
        "Runs, and due times without one, the newest first",
        &[
            query("schedule", "text", "Only of this schedule"),
            query("state", "runstate", "Only in this state"),
            query("met", "met", "Only those that were met so"),
            PAGE_SIZE,
            CURSOR,
        ],
        &[json(200, "A page of runs", "RunPage")],
    ),
    admin(
        "get",
        "/v1/admin/jobs/runs/{id}",
        "readRun",
        "A run with its figures and its log",
        &[RUN],
        &[json(200, "The run", "Run")],
    ),
    admin(
        "delete",
        "/v1/admin/jobs/runs/{id}",
        "cancelRun",
        "Stops a run, or takes it out of the line",
        &[RUN],
        &[nothing(202, "It is told to stop")],
    ),
    admin(
        "get",
        "/v1/admin/jobs/{schedule}",
        "readJob",
        "A schedule with its newest completed run",
        &[SCHEDULE],
        &[json(200, "Both", "ScheduleAndRun")],
    ),
    with_body(
        admin(
            "post",
            "/v1/admin/jobs/{schedule}/runs",
            "runJob",
            "Asks for a run beside the schedule; dryrun only says what it would do",
            &[SCHEDULE],
            &[json(202, "The run's number", "AskedRun")],
        ),
        &[(JSON, "NewRun")],
        false,
    ),
    with_body(
        admin(
            "post",
            "/v1/admin/jobs/{schedule}/pause",
            "pauseJob",
            "Holds a schedule back, for a reason",
            &[SCHEDULE],
            &[json(200, "The schedule", "Schedule")],
        ),
        &[(JSON, "PauseReason")],
        true,
    ),
    admin(
        "delete",
        "/v1/admin/jobs/{schedule}/pause",
        "resumeJob",
        "Lets a schedule go on with its next due time",
        &[SCHEDULE],
        &[nothing(204, "It goes on")],
    ),
    admin(
        "get",
        "/v1/admin/backups",
        "listBackups",
        "The backups: age, size, whether a drill has restored each; they are made by the jobs backup.*",
        &[],
        &[json(200, "The backups, the oldest first", "Backups")],
    ),
    admin(
        "get",
        "/v1/admin/backups/{id}",
        "readBackup",
        "A backup with its manifest: what, when, sizes, sums, how to restore it",
        &[BACKUP],
        &[json(200, "The backup", "BackupAndManifest")],
    ),
    admin(
        "get",
        "/v1/admin/holds",
        "listHolds",
        "The legal holds that stand",
        &[query("all", "flag", "true: those that were released too")],
        &[json(200, "The holds", "Holds")],
    ),
    with_body(
        admin(
            "post",
            "/v1/admin/holds",
            "putHold",
            "Keeps everything about an entity, or everything that an actor did",
            &[],
            &[json(202, "The hold; carried out when its appliedat is set", "Hold")],
        ),
        &[(JSON, "NewHold")],
        true,
    ),
    admin("get", "/v1/admin/holds/{id}", "readHold", "A legal hold", &[ID], &[json(200, "The hold", "Hold")]),
    admin(
        "delete",
        "/v1/admin/holds/{id}",
        "releaseHold",
        "Ends a legal hold",
        &[ID],
        &[json(202, "The hold; carried out when its liftedat is set", "Hold")],
    ),
];
