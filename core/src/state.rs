//! The entities, and the part of them that a batch has loaded, as its decisions see it.

use std::collections::HashMap;

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use uuid::Uuid;

/// What a user may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Role {
    User,
    Admin,
}

/// Where a task stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskStatus {
    Todo,
    InProgress,
    Review,
    Done,
}

/// How urgent a task is. Declared from low to urgent: Postgres sorts by this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskPriority {
    Low,
    Medium,
    High,
    Urgent,
}

/// The words of an enumeration: in commands, in Postgres and in every answer alike.
macro_rules! words {
    ($kind:ident, $count:literal, $($word:literal => $variant:ident),+) => {
        impl $kind {
            pub const WORDS: [(&'static str, Self); $count] = [$(($word, Self::$variant)),+];

            pub fn as_str(self) -> &'static str {
                match self { $(Self::$variant => $word),+ }
            }

            /// The variant that a word names.
            pub fn from_word(word: &str) -> Option<Self> {
                Self::WORDS.iter().find(|(known, _)| *known == word).map(|(_, value)| *value)
            }
        }
    };
}

words!(Role, 2, "user" => User, "admin" => Admin);
words!(TaskStatus, 4, "todo" => Todo, "in_progress" => InProgress, "review" => Review, "done" => Done);
words!(TaskPriority, 4, "low" => Low, "medium" => Medium, "high" => High, "urgent" => Urgent);

/// A user. What others see of it is [`PublicUser`].
#[derive(Debug, Clone, PartialEq)]
pub struct User {
    pub id: Uuid,
    pub email: String,
    /// bcrypt; in no event, answer or log.
    pub password_hash: String,
    pub role: Role,
    pub profile: Option<Map<String, Value>>,
    pub created_at: DateTime<Utc>,
    pub updated_at: DateTime<Utc>,
    pub version: i32,
}

/// A task. `version` comes first in JSON: the caches' fence reads it there.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Task {
    pub version: i32,
    pub id: Uuid,
    pub title: String,
    pub description: Option<String>,
    pub status: TaskStatus,
    pub priority: TaskPriority,
    #[serde(rename = "assigneeid")]
    pub assignee: Option<Uuid>,
    #[serde(rename = "creatorid")]
    pub creator: Uuid,
    #[serde(rename = "createdat")]
    pub created_at: DateTime<Utc>,
    #[serde(rename = "updatedat")]
    pub updated_at: DateTime<Utc>,
    #[serde(rename = "completedat")]
    pub completed_at: Option<DateTime<Utc>>,
    #[serde(rename = "duedate")]
    pub due_date: Option<DateTime<Utc>>,
    #[serde(rename = "deletedat", default, skip_serializing_if = "Option::is_none")]
    pub deleted_at: Option<DateTime<Utc>>,
}

/// What others may see of a user.
#[derive(Debug, Serialize)]
pub struct PublicUser<'a> {
    version: i32,
    id: Uuid,
    email: &'a str,
    role: Role,
    profile: &'a Option<Map<String, Value>>,
    createdat: DateTime<Utc>,
    updatedat: DateTime<Utc>,
}

impl User {
    /// The user without its password hash.
    pub fn public(&self) -> PublicUser<'_> {
        PublicUser {
            version: self.version,
            id: self.id,
            email: &self.email,
            role: self.role,
            profile: &self.profile,
            createdat: self.created_at,
            updatedat: self.updated_at,
        }
    }
}

/// An email address as uniqueness sees it: capitals make no difference.
pub fn email_key(email: &str) -> String {
    email.to_ascii_lowercase()
}

/// What a batch has loaded; the fold keeps it up to date.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct State {
    /// Tasks that commands of the batch are about, soft-deleted ones included.
    pub tasks: HashMap<Uuid, Task>,
    /// Users that commands of the batch are about.
    pub users: HashMap<Uuid, User>,
    /// Roles of users that the batch names (actors, assignees). Who is missing does not exist.
    pub roles: HashMap<Uuid, Role>,
    /// Who holds an email address, by [`email_key`], for the addresses that the batch registers.
    pub emails: HashMap<String, Uuid>,
}

impl State {
    /// The role of a user that the batch names; `None` if there is no such user.
    pub fn role(&self, user: Uuid) -> Option<Role> {
        self.users.get(&user).map(|user| user.role).or_else(|| self.roles.get(&user).copied())
    }

    /// A task that has not been deleted.
    pub fn live_task(&self, id: Uuid) -> Option<&Task> {
        self.tasks.get(&id).filter(|task| task.deleted_at.is_none())
    }
}
