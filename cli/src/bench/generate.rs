//! Commands for the benchmark, always the same for the same numbers.

use chrono::{DateTime, Utc};
use taskflow_core::command::{AssignTask, Body, ChangeStatus, Command, CreateTask, DeleteTask, UpdateTask};
use taskflow_core::state::{TaskPriority, TaskStatus};
use uuid::Uuid;

/// The sample users of `taskflow seed`.
pub(super) const ADMIN: Uuid = Uuid::from_u128(0x0193_0000_0000_7000_8000_0000_0000_0001);
pub(super) const USER: Uuid = Uuid::from_u128(0x0193_0000_0000_7000_8000_0000_0000_0002);

/// A new id in the order of time, as upstream systems are advised to use.
fn id() -> Uuid {
    taskflow_stores::clock::new_id()
}

pub(super) fn command(subject: Uuid, now: DateTime<Utc>, body: Body) -> Command {
    Command { issued_at: Some(now), ..Command::new(id(), "/bench", subject, ADMIN, body) }
}

pub(super) fn create(number: usize, now: DateTime<Utc>) -> Command {
    command(
        id(),
        now,
        Body::CreateTask(CreateTask {
            title: format!("Task number {number} of the benchmark"),
            description: Some(
                "What is to be done, in a sentence or two that are as long as such texts are.".into(),
            ),
            priority: TaskPriority::Medium,
            assigneeid: None,
            duedate: None,
        }),
    )
}

/// A life of six commands: create, update, assign, two changes of status, and for every second task its end.
pub(super) fn mixed(count: usize, now: DateTime<Utc>) -> Vec<Command> {
    let mut commands = Vec::with_capacity(count);
    // Lives are interleaved, so that a batch has several commands of one subject, between those of others.
    const ABREAST: usize = 64;
    let mut number = 0;
    while commands.len() < count {
        let subjects: Vec<Uuid> = (0..ABREAST).map(|_| id()).collect();
        for step in 0..6 {
            for (index, subject) in subjects.iter().enumerate() {
                number += 1;
                let body = match step {
                    0 => create(number, now).body,
                    1 => Body::UpdateTask(UpdateTask {
                        title: Some(format!("A better title {number}")),
                        description: None,
                        priority: Some(TaskPriority::High),
                        duedate: None,
                        expectedversion: None,
                    }),
                    2 => Body::AssignTask(AssignTask { assigneeid: Some(USER), expectedversion: None }),
                    3 => Body::ChangeStatus(ChangeStatus {
                        status: TaskStatus::InProgress,
                        expectedversion: None,
                    }),
                    4 => Body::ChangeStatus(ChangeStatus { status: TaskStatus::Done, expectedversion: None }),
                    _ if index % 2 == 0 => Body::DeleteTask(DeleteTask { expectedversion: None }),
                    _ => {
                        Body::ChangeStatus(ChangeStatus { status: TaskStatus::Review, expectedversion: None })
                    }
                };
                commands.push(command(*subject, now, body));
            }
        }
    }
    commands.truncate(count);
    commands
}
