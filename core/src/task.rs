//! The rules of a task: who may change it, what a change does, what is told about it.

use chrono::{DateTime, Utc};
use serde_json::{Map, Value, json};
use uuid::Uuid;

use crate::command::{AssignTask, ChangeStatus, Command, CreateTask, DeleteTask, UpdateTask};
use crate::decide::{Change, Draft, Effect, actor_role, forbidden, unknown_user};
use crate::receipt::{Code, Rejection};
use crate::state::{Role, State, Task, TaskStatus};

pub(crate) fn create(
    state: &State,
    command: &Command,
    body: &CreateTask,
    accepted_at: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<Effect, Rejection> {
    actor_role(state, command)?;
    if state.tasks.contains_key(&command.subject) {
        return Err(Rejection::new(
            Code::AlreadyExists,
            format!("task {} exists (or existed) already; use a new id", command.subject),
        ));
    }
    must_exist(state, body.assigneeid)?;
    must_be_after(body.duedate, accepted_at)?;
    let task = Task {
        version: 1,
        id: command.subject,
        title: body.title.clone(),
        description: body.description.clone(),
        status: TaskStatus::Todo,
        priority: body.priority,
        assignee: body.assigneeid,
        creator: command.actor,
        created_at: accepted_at,
        updated_at: now,
        completed_at: None,
        due_date: body.duedate,
        deleted_at: None,
    };
    let mut payload = json!({
        "title": task.title, "status": task.status, "priority": task.priority, "creatorId": task.creator,
    });
    for (name, value) in [
        ("description", json!(task.description)),
        ("assigneeId", json!(task.assignee)),
        ("dueDate", json!(task.due_date)),
    ] {
        if !value.is_null() {
            payload[name] = value;
        }
    }
    let mut events = vec![Draft::new("task.created", payload)];
    if task.assignee.is_some() {
        events.push(assigned(None, task.assignee));
    }
    Ok(Effect { version: Some(1), change: Change::Task(task), events })
}

pub(crate) fn update(
    state: &State,
    command: &Command,
    body: &UpdateTask,
    accepted_at: DateTime<Utc>,
    now: DateTime<Utc>,
) -> Result<Effect, Rejection> {
    let task = changeable(state, command, body.expectedversion)?;
    if let Some(due) = body.duedate
        && due != task.due_date
    {
        // Also after the creation: the table's own rule, which clocks that differ must not break.
        must_be_after(due, accepted_at.max(task.created_at))?;
    }
    let mut next = task.clone();
    let (mut new, mut old) = (Map::new(), Map::new());
    let mut note = |name: &str, before: Value, after: Value| {
        if before != after {
            old.insert(name.into(), before);
            new.insert(name.into(), after);
        }
    };
    if let Some(title) = &body.title {
        note("title", json!(task.title), json!(title));
        next.title.clone_from(title);
    }
    if let Some(description) = &body.description {
        note("description", json!(task.description), json!(description));
        next.description.clone_from(description);
    }
    if let Some(priority) = body.priority {
        note("priority", json!(task.priority), json!(priority));
        next.priority = priority;
    }
    if let Some(due) = body.duedate {
        note("dueDate", json!(task.due_date), json!(due));
        next.due_date = due;
    }
    if new.is_empty() {
        return Ok(unchanged(task));
    }
    new.insert("previous".into(), Value::Object(old));
    Ok(changed(next, now, vec![Draft::new("task.updated", Value::Object(new))]))
}

pub(crate) fn assign(
    state: &State,
    command: &Command,
    body: &AssignTask,
    now: DateTime<Utc>,
) -> Result<Effect, Rejection> {
    let task = changeable(state, command, body.expectedversion)?;
    must_exist(state, body.assigneeid)?;
    if task.assignee == body.assigneeid {
        return Ok(unchanged(task));
    }
    let event = assigned(task.assignee, body.assigneeid);
    Ok(changed(Task { assignee: body.assigneeid, ..task.clone() }, now, vec![event]))
}

pub(crate) fn change_status(
    state: &State,
    command: &Command,
    body: &ChangeStatus,
    now: DateTime<Utc>,
) -> Result<Effect, Rejection> {
    let task = changeable(state, command, body.expectedversion)?;
    if task.status == body.status {
        return Ok(unchanged(task));
    }
    let completed_at = (body.status == TaskStatus::Done).then_some(now);
    let mut payload = json!({
        "status": body.status,
        "previous": { "status": task.status },
    });
    if completed_at != task.completed_at {
        payload["completedAt"] = json!(completed_at);
        payload["previous"]["completedAt"] = json!(task.completed_at);
    }
    let next = Task { status: body.status, completed_at, ..task.clone() };
    Ok(changed(next, now, vec![Draft::new("task.status_changed", payload)]))
}

pub(crate) fn delete(
    state: &State,
    command: &Command,
    body: &DeleteTask,
    now: DateTime<Utc>,
) -> Result<Effect, Rejection> {
    let role = actor_role(state, command)?;
    let task = live(state, command)?;
    if task.creator != command.actor && role != Role::Admin {
        return Err(forbidden("only a task's creator and an admin may delete it"));
    }
    must_match(task, body.expectedversion)?;
    let event = Draft::new("task.deleted", json!({ "deletedAt": now, "previous": { "deletedAt": null } }));
    Ok(changed(Task { deleted_at: Some(now), ..task.clone() }, now, vec![event]))
}

fn live<'s>(state: &'s State, command: &Command) -> Result<&'s Task, Rejection> {
    state.live_task(command.subject).ok_or_else(|| {
        Rejection::new(Code::NotFound, format!("there is no task {} (or it was deleted)", command.subject))
    })
}

fn changeable<'s>(state: &'s State, command: &Command, expected: Option<i32>) -> Result<&'s Task, Rejection> {
    let role = actor_role(state, command)?;
    let task = live(state, command)?;
    let involved = task.creator == command.actor || task.assignee == Some(command.actor);
    if !involved && role != Role::Admin {
        return Err(forbidden("only a task's creator, its assignee and an admin may change it"));
    }
    must_match(task, expected)?;
    Ok(task)
}

fn must_match(task: &Task, expected: Option<i32>) -> Result<(), Rejection> {
    match expected {
        Some(expected) if expected != task.version => Err(Rejection::new(
            Code::VersionConflict,
            format!("expectedversion is {expected}, the task has version {}; read it again", task.version),
        )),
        _ => Ok(()),
    }
}

fn must_exist(state: &State, assignee: Option<Uuid>) -> Result<(), Rejection> {
    match assignee {
        Some(id) if state.role(id).is_none() => Err(unknown_user("assigneeid", id)),
        _ => Ok(()),
    }
}

fn must_be_after(due: Option<DateTime<Utc>>, accepted_at: DateTime<Utc>) -> Result<(), Rejection> {
    match due {
        Some(due) if due <= accepted_at => Err(Rejection::new(
            Code::DueDateInPast,
            format!(
                "duedate {} is not after {}, when the command was accepted",
                show(due),
                show(accepted_at)
            ),
        )),
        _ => Ok(()),
    }
}

fn show(time: DateTime<Utc>) -> String {
    time.to_rfc3339_opts(chrono::SecondsFormat::Millis, true)
}

fn assigned(before: Option<Uuid>, after: Option<Uuid>) -> Draft {
    Draft::new("task.assigned", json!({ "assigneeId": after, "previous": { "assigneeId": before } }))
}

fn unchanged(task: &Task) -> Effect {
    Effect { change: Change::Nothing, events: Vec::new(), version: Some(task.version) }
}

fn changed(mut next: Task, now: DateTime<Utc>, events: Vec<Draft>) -> Effect {
    next.version += 1;
    next.updated_at = now;
    Effect { version: Some(next.version), change: Change::Task(next), events }
}
