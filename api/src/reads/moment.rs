//! What is true now, as far as readers must know it before they use what is cached.
//!
//! The caches follow the workers' commits, so what they hold may be older than a receipt that the caller has read. Each
//! read therefore asks Postgres, after it has begun, for the version of its entity, or when the tasks that its answer
//! depends on were changed last. All reads of a moment ask in one statement.

use std::sync::Arc;

use taskflow_core::cache_tag::Tag;
use taskflow_core::window::{Position, Window};
use taskflow_core::{Task, User};
use taskflow_stores::postgres::moment::{self, Snapshot, TaskState, UserState};
use taskflow_stores::postgres::{PgPool, tasks, users};
use taskflow_stores::{Kind, StoreError};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use super::gather::{Asker, Gather};

/// What an answer is made of.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Depends {
    /// The tasks that a user has created or is assigned to.
    TasksOf(Uuid),
    AllTasks,
    /// It holds for its time, whatever happens.
    Nothing,
}

pub(crate) enum Question {
    Task(Uuid),
    User(Uuid),
    Since(Depends),
}

pub(crate) enum Answer {
    Task(Option<TaskState>),
    User(Option<UserState>),
    Since(Position),
}

pub(crate) struct Looker {
    postgres: PgPool,
    window: Window,
}

impl Asker for Looker {
    type Question = Question;
    type Answer = Answer;
    const NAME: &'static str = "moment";

    async fn ask(&mut self, questions: &[Question]) -> Result<Vec<Answer>, StoreError> {
        let tasks = questions.iter().filter_map(|question| match question {
            Question::Task(id) => Some(*id),
            _ => None,
        });
        let users = questions.iter().filter_map(|question| match question {
            Question::User(id) => Some(*id),
            _ => None,
        });
        let (tasks, users) = (distinct(tasks), distinct(users));
        let snapshot = moment::look(&self.postgres, self.window.heads(), &tasks, &users).await?;
        let Snapshot { seen, tasks, users } = snapshot;
        self.window.advance(seen);
        let answer = |question: &Question| match question {
            Question::Task(id) => Answer::Task(tasks.get(id).copied()),
            Question::User(id) => Answer::User(users.get(id).copied()),
            Question::Since(Depends::TasksOf(user)) => Answer::Since(self.window.tasks_of(Tag::of(*user))),
            Question::Since(Depends::AllTasks) => Answer::Since(self.window.all_tasks()),
            Question::Since(Depends::Nothing) => Answer::Since(0),
        };
        Ok(questions.iter().map(answer).collect())
    }
}

fn distinct(ids: impl Iterator<Item = Uuid>) -> Vec<Uuid> {
    let mut ids: Vec<Uuid> = ids.collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

/// The present, and what is read anew where a cache lacks it.
pub(crate) struct Moment {
    looks: Gather<Looker>,
    rows: Gather<Rows>,
}

impl Moment {
    pub(crate) fn start(postgres: &PgPool, stop: &CancellationToken) -> Self {
        let looker = Looker { postgres: postgres.clone(), window: Window::default() };
        Self {
            looks: Gather::start(looker, stop.clone()),
            rows: Gather::start(Rows(postgres.clone()), stop.clone()),
        }
    }

    /// A task's present state; `None` if there is none.
    pub(crate) async fn task(&self, id: Uuid) -> Result<Option<TaskState>, StoreError> {
        match self.looks.find(Question::Task(id)).await? {
            Answer::Task(state) => Ok(state),
            _ => Err(mixed_up()),
        }
    }

    /// A user's present state; `None` if there is no such user.
    pub(crate) async fn user(&self, id: Uuid) -> Result<Option<UserState>, StoreError> {
        match self.looks.find(Question::User(id)).await? {
            Answer::User(state) => Ok(state),
            _ => Err(mixed_up()),
        }
    }

    /// The lowest position at which an answer still holds.
    pub(crate) async fn since(&self, depends: Depends) -> Result<Position, StoreError> {
        if matches!(depends, Depends::Nothing) {
            return Ok(0);
        }
        match self.looks.find(Question::Since(depends)).await? {
            Answer::Since(position) => Ok(position),
            _ => Err(mixed_up()),
        }
    }

    /// A task as Postgres has it.
    pub(crate) async fn task_row(&self, id: Uuid) -> Result<Option<Arc<Task>>, StoreError> {
        match self.rows.find(Question::Task(id)).await? {
            Row::Task(task) => Ok(task),
            Row::User(_) => Err(mixed_up()),
        }
    }

    /// A user as Postgres has it.
    pub(crate) async fn user_row(&self, id: Uuid) -> Result<Option<Arc<User>>, StoreError> {
        match self.rows.find(Question::User(id)).await? {
            Row::User(user) => Ok(user),
            Row::Task(_) => Err(mixed_up()),
        }
    }
}

fn mixed_up() -> StoreError {
    StoreError::new("postgres", "moment", Kind::Bug, "an answer to another question")
}

pub(crate) enum Row {
    Task(Option<Arc<Task>>),
    User(Option<Arc<User>>),
}

/// Reads whole rows.
pub(crate) struct Rows(PgPool);

impl Asker for Rows {
    type Question = Question;
    type Answer = Row;
    const NAME: &'static str = "rows";

    async fn ask(&mut self, questions: &[Question]) -> Result<Vec<Row>, StoreError> {
        let (mut tasks, mut users) = (Vec::new(), Vec::new());
        for question in questions {
            match question {
                Question::Task(id) => tasks.push(*id),
                Question::User(id) => users.push(*id),
                Question::Since(_) => {}
            }
        }
        let away = |error| StoreError::unavailable("postgres", "read what the caches lack", error);
        let mut connection = self.0.acquire().await.map_err(away)?;
        let tasks = distinct(tasks.into_iter());
        let users = distinct(users.into_iter());
        let mut found_tasks = std::collections::HashMap::new();
        if !tasks.is_empty() {
            let read = tasks::read_many(&mut connection, &tasks).await?;
            found_tasks.extend(read.into_iter().map(|task| (task.id, Arc::new(task))));
        }
        let mut found_users = std::collections::HashMap::new();
        if !users.is_empty() {
            let read = users::read_many(&mut connection, &users).await?;
            found_users.extend(read.into_iter().map(|user| (user.id, Arc::new(user))));
        }
        let row = |question: &Question| match question {
            Question::Task(id) => Row::Task(found_tasks.get(id).cloned()),
            Question::User(id) => Row::User(found_users.get(id).cloned()),
            Question::Since(_) => Row::Task(None),
        };
        Ok(questions.iter().map(row).collect())
    }
}
