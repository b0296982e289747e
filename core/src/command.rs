//! The command types, their payloads and the limits of each field.

use chrono::{DateTime, Utc};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use crate::fault::{Faults, Object};
use crate::state::{Role, TaskPriority, TaskStatus};

/// Characters of a task's title.
pub const TITLE_MAX: usize = 255;
/// Characters of a task's description.
pub const DESCRIPTION_MAX: usize = 20_000;
/// Bytes of a profile, as JSON.
pub const PROFILE_MAX: usize = 16 * 1024;
/// What a profile has that Postgres keeps in an index, whose rows are short.
pub const PROFILE_NAMES: [&str; 2] = ["firstName", "lastName"];
/// Characters of each of them.
pub const NAME_MAX: usize = 255;
/// Characters of an email address (RFC 5321).
pub const EMAIL_MAX: usize = 254;
/// Characters of a session's digest.
pub const SESSION_MAX: usize = 128;
/// Work factors of bcrypt that are accepted: below is weak, above lets one login occupy a core for seconds.
pub const BCRYPT_COST: std::ops::RangeInclusive<u32> = 10..=14;

/// Bytes that identify a command's content: two commands with one id must agree in it.
pub type Fingerprint = [u8; 16];

/// A valid command: what upstream asks for.
#[derive(Debug, Clone, PartialEq)]
pub struct Command {
    /// The idempotency key.
    pub id: Uuid,
    /// The upstream system.
    pub source: String,
    /// The entity that is changed; the ordering key.
    pub subject: Uuid,
    /// The user on whose behalf.
    pub actor: Uuid,
    /// Copied to every event that the command causes.
    pub correlation: Uuid,
    /// When upstream issued it.
    pub issued_at: Option<DateTime<Utc>>,
    pub priority: Priority,
    /// Not to be applied before.
    pub not_before: Option<DateTime<Utc>>,
    /// Not to be applied after.
    pub expires_at: Option<DateTime<Utc>>,
    /// W3C trace context.
    pub traceparent: Option<String>,
    pub metadata: Metadata,
    pub body: Body,
}

/// Which queue a command takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Priority {
    #[default]
    Normal,
    Low,
}

/// Who and what sent the command, for the audit trail. The HTTP intake fills it in.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Metadata {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub user_agent: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ip_address: Option<String>,
    /// A digest, never the session's token.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub session_id: Option<String>,
}

/// What is to be done, one variant a command type. Serializes as the payload (`data`).
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(untagged)]
pub enum Body {
    RegisterUser(RegisterUser),
    UpdateProfile(UpdateProfile),
    RecordLogin(RecordSession),
    RecordLogout(RecordSession),
    CreateTask(CreateTask),
    UpdateTask(UpdateTask),
    AssignTask(AssignTask),
    ChangeStatus(ChangeStatus),
    DeleteTask(DeleteTask),
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RegisterUser {
    pub email: String,
    pub passwordhash: String,
    pub role: Role,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<Map<String, Value>>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct UpdateProfile {
    /// A JSON merge patch (RFC 7396).
    pub profile: Map<String, Value>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RecordSession {
    /// Digest of the session's token.
    pub sessionid: String,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct CreateTask {
    pub title: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    pub priority: TaskPriority,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub assigneeid: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duedate: Option<DateTime<Utc>>,
}

/// `Some(None)` clears a field, `None` leaves it as it is.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct UpdateTask {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub title: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub priority: Option<TaskPriority>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub duedate: Option<Option<DateTime<Utc>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expectedversion: Option<i32>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct AssignTask {
    pub assigneeid: Option<Uuid>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expectedversion: Option<i32>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ChangeStatus {
    pub status: TaskStatus,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expectedversion: Option<i32>,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct DeleteTask {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expectedversion: Option<i32>,
}

/// Every command type, in the contract's order.
pub const TYPES: [&str; 9] = [
    "user.register",
    "user.update_profile",
    "user.record_login",
    "user.record_logout",
    "task.create",
    "task.update",
    "task.assign",
    "task.change_status",
    "task.delete",
];

impl Command {
    /// A command with nothing but what it must have: its own correlation, no times, normal priority.
    pub fn new(id: Uuid, source: &str, subject: Uuid, actor: Uuid, body: Body) -> Self {
        Self {
            id,
            source: source.to_owned(),
            subject,
            actor,
            correlation: id,
            issued_at: None,
            priority: Priority::Normal,
            not_before: None,
            expires_at: None,
            traceparent: None,
            metadata: Metadata::default(),
            body,
        }
    }

    /// The command's type, as the contract names it.
    pub fn kind(&self) -> &'static str {
        self.body.kind()
    }

    /// Whether the subject is a task (else it is a user).
    pub fn is_about_task(&self) -> bool {
        self.kind().starts_with("task.")
    }

    /// Digest of what the command asks for. It leaves out what an intake stamps (time, trace, client's
    /// metadata), so that a resend through another intake is still the same command.
    pub fn fingerprint(&self) -> Fingerprint {
        let content = (
            (self.kind(), &self.source, self.subject, self.actor, self.correlation, self.priority),
            (self.not_before, self.expires_at),
            &self.body,
        );
        digest(&serde_json::to_vec(&content).unwrap_or_default())
    }
}

/// The first 16 bytes of a SHA-256.
pub fn digest(bytes: &[u8]) -> Fingerprint {
    let mut fingerprint = Fingerprint::default();
    fingerprint.copy_from_slice(&Sha256::digest(bytes)[..16]);
    fingerprint
}

impl Body {
    pub fn kind(&self) -> &'static str {
        match self {
            Self::RegisterUser(_) => TYPES[0],
            Self::UpdateProfile(_) => TYPES[1],
            Self::RecordLogin(_) => TYPES[2],
            Self::RecordLogout(_) => TYPES[3],
            Self::CreateTask(_) => TYPES[4],
            Self::UpdateTask(_) => TYPES[5],
            Self::AssignTask(_) => TYPES[6],
            Self::ChangeStatus(_) => TYPES[7],
            Self::DeleteTask(_) => TYPES[8],
        }
    }

    /// Reads the payload of a command type; `None` if a fault was found.
    pub(crate) fn read(kind: &str, data: Map<String, Value>, faults: &mut Faults) -> Option<Self> {
        let before = faults.0.len();
        let mut data = Object::new(data, "/data", faults);
        let body = match kind {
            "user.register" => {
                let email = data.required("email", read_email);
                let passwordhash = data.required("passwordhash", read_password_hash);
                let role = data.word("role", &Role::WORDS).unwrap_or(Role::User);
                let profile = read_profile(&mut data, "profile");
                email.zip(passwordhash).map(|(email, passwordhash)| {
                    Self::RegisterUser(RegisterUser { email, passwordhash, role, profile })
                })
            }
            "user.update_profile" => data
                .required("profile", read_profile)
                .map(|profile| Self::UpdateProfile(UpdateProfile { profile })),
            "user.record_login" => read_session(&mut data).map(Self::RecordLogin),
            "user.record_logout" => read_session(&mut data).map(Self::RecordLogout),
            "task.create" => {
                let title = data.required("title", |data, name| data.text(name, 1, TITLE_MAX));
                let description = data.text("description", 0, DESCRIPTION_MAX);
                let priority = data.word("priority", &TaskPriority::WORDS).unwrap_or(TaskPriority::Medium);
                let assigneeid = data.uuid("assigneeid");
                let duedate = data.time("duedate");
                title.map(|title| {
                    Self::CreateTask(CreateTask { title, description, priority, assigneeid, duedate })
                })
            }
            "task.update" => Some(Self::UpdateTask(read_update(&mut data))),
            "task.assign" => {
                let named = data.has("assigneeid");
                let assigneeid = data.uuid("assigneeid");
                if !named {
                    data.fault("assigneeid", "is required (null takes the assignee away)");
                }
                let expectedversion = data.version("expectedversion");
                Some(Self::AssignTask(AssignTask { assigneeid, expectedversion }))
            }
            "task.change_status" => {
                let status = data.required("status", |data, name| data.word(name, &TaskStatus::WORDS));
                let expectedversion = data.version("expectedversion");
                status.map(|status| Self::ChangeStatus(ChangeStatus { status, expectedversion }))
            }
            "task.delete" => {
                Some(Self::DeleteTask(DeleteTask { expectedversion: data.version("expectedversion") }))
            }
            // Whoever adds a type to `TYPES` and not here must not get one of the others.
            _ => {
                data.fault_whole("is of a type that this version knows by its name alone");
                None
            }
        };
        data.finish();
        body.filter(|_| faults.0.len() == before)
    }
}

fn read_update(data: &mut Object<'_>) -> UpdateTask {
    if !["title", "description", "priority", "duedate"].iter().any(|name| data.has(name)) {
        data.fault_whole("must name at least one of: title, description, priority, duedate");
    }
    let (describes, dates) = (data.has("description"), data.has("duedate"));
    UpdateTask {
        title: data.unless_absent("title", |data, name| data.text(name, 1, TITLE_MAX)),
        description: Some(data.text("description", 0, DESCRIPTION_MAX)).filter(|_| describes),
        priority: data.unless_absent("priority", |data, name| data.word(name, &TaskPriority::WORDS)),
        duedate: Some(data.time("duedate")).filter(|_| dates),
        expectedversion: data.version("expectedversion"),
    }
}

fn read_session(data: &mut Object<'_>) -> Option<RecordSession> {
    data.required("sessionid", |data, name| data.text(name, 1, SESSION_MAX))
        .map(|sessionid| RecordSession { sessionid })
}

fn read_profile(data: &mut Object<'_>, name: &'static str) -> Option<Map<String, Value>> {
    let profile = data.object(name, PROFILE_MAX)?;
    let wrong = |key: &&str| match profile.get(*key) {
        None | Some(Value::Null) => false,
        Some(Value::String(text)) => text.len() > NAME_MAX && text.chars().count() > NAME_MAX,
        Some(_) => true,
    };
    let wrong: Vec<&str> = PROFILE_NAMES.into_iter().filter(wrong).collect();
    for key in &wrong {
        data.fault_within(name, key, format!("must be a text of at most {NAME_MAX} characters, or null"));
    }
    wrong.is_empty().then_some(profile)
}

fn read_email(data: &mut Object<'_>, name: &'static str) -> Option<String> {
    let email = data.text(name, 3, EMAIL_MAX)?;
    if is_email(&email) {
        return Some(email);
    }
    data.fault(name, "must be an email address in ASCII, such as ada@example.org");
    None
}

/// A practical check: one `@`, a local part, a domain of labels. ASCII only, so that "the same address in other
/// capitals" means the same here and in Postgres.
fn is_email(email: &str) -> bool {
    let Some((local, domain)) = email.rsplit_once('@') else { return false };
    let plain = |c: char| c.is_ascii_graphic() && !"@<>()[]\\,;:\"".contains(c);
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    };
    (1..=64).contains(&local.len()) && local.chars().all(plain) && domain.split('.').all(label)
}

fn read_password_hash(data: &mut Object<'_>, name: &'static str) -> Option<String> {
    // Never echo the value: it may be a clear password sent by mistake.
    let hash = data.text(name, 0, 255)?;
    if is_bcrypt(&hash) {
        return Some(hash);
    }
    data.fault(
        name,
        format!(
            "must be a bcrypt hash of the form $2b$ with a cost of {} to {} (a clear password is never sent)",
            BCRYPT_COST.start(),
            BCRYPT_COST.end()
        ),
    );
    None
}

fn is_bcrypt(hash: &str) -> bool {
    let Some(rest) = hash.strip_prefix("$2b$") else { return false };
    let Some((cost, digits)) = rest.split_once('$') else { return false };
    cost.len() == 2
        && cost.parse().is_ok_and(|cost: u32| BCRYPT_COST.contains(&cost))
        && digits.len() == 53
        && digits.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'.' || b == b'/')
}
