//! Who may do what: the whole of it, to be read in one sitting. The gate ([`crate::gate`]) asks here before a handler
//! runs, and a route that is not in the table is closed to everybody. docs/access.md has the same table, and a test
//! holds the routes that there are, the table and the behaviour against each other.
//!
//! What a command may change is not decided here but when it is applied, by the rules in `core`: rights may have changed
//! by then, and commands also come over AMQP.

use axum::http::Method;
use taskflow_core::Command;
use taskflow_core::api_key::{ApiKey, Scope};
use taskflow_core::command::Body;
use taskflow_core::state::Role;
use uuid::Uuid;

use crate::auth::Caller;
use crate::problem::Problem;

/// What a call asks of its caller.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Need {
    /// Nothing: health, and what a browser needs before anybody logs in.
    Open,
    /// Nothing yet: this is where people say who they are.
    Login,
    /// A person who is logged in; no API key.
    Session,
    /// A person, or a key with the scope `read`. Handlers show a person only what is theirs, unless it is an admin.
    Read,
    /// A person, or a key with the scope `commands:write`. For whom is a matter of [`Caller::may_send`].
    Write,
    /// A person, or a key with the scope `read` or `commands:write`: whoever sends learns what came of it.
    Follow,
    /// An admin, or a key with the scope `admin`.
    Admin,
}

use Need::{Admin, Follow, Login, Open, Read, Session, Write};

/// Every call there is.
const TABLE: &[(&str, &str, Need)] = &[
    ("GET", "/healthz", Open),
    ("GET", "/readyz", Open),
    ("GET", "/metrics", Admin),
    ("GET", "/docs", Open),
    ("GET", "/openapi.json", Open),
    ("GET", "/asyncapi.json", Open),
    ("GET", "/schemas", Open),
    ("GET", "/schemas/{type}/{major}", Open),
    ("POST", "/v1/sessions", Login),
    ("DELETE", "/v1/sessions/current", Session),
    ("POST", "/v1/commands", Write),
    ("GET", "/v1/commands/{id}", Follow),
    ("DELETE", "/v1/commands/{id}", Write),
    ("POST", "/v1/users", Write),
    ("GET", "/v1/tasks/search", Read),
    ("GET", "/v1/tasks/{id}", Read),
    ("GET", "/v1/tasks/{id}/changes", Read),
    ("GET", "/v1/users/{id}", Read),
    ("GET", "/v1/users/{id}/tasks", Read),
    ("GET", "/v1/users/{id}/task-stats", Read),
    ("GET", "/v1/users/{id}/permissions", Read),
    ("GET", "/v1/events", Admin),
    ("GET", "/v1/stream", Read),
    ("PUT", "/v1/users/{id}/password", Session),
    ("PUT", "/v1/admin/users/{id}/role", Admin),
    ("PUT", "/v1/admin/users/{id}/password", Admin),
    ("GET", "/v1/admin/api-keys", Admin),
    ("POST", "/v1/admin/api-keys", Admin),
    ("DELETE", "/v1/admin/api-keys/{id}", Admin),
    ("GET", "/v1/admin/pauses", Admin),
    ("POST", "/v1/admin/pauses", Admin),
    ("DELETE", "/v1/admin/pauses/{scope}", Admin),
    ("GET", "/v1/admin/jobs", Admin),
    ("GET", "/v1/admin/jobs/runs", Admin),
    ("GET", "/v1/admin/jobs/runs/{id}", Admin),
    ("DELETE", "/v1/admin/jobs/runs/{id}", Admin),
    ("GET", "/v1/admin/jobs/{schedule}", Admin),
    ("POST", "/v1/admin/jobs/{schedule}/runs", Admin),
    ("POST", "/v1/admin/jobs/{schedule}/pause", Admin),
    ("DELETE", "/v1/admin/jobs/{schedule}/pause", Admin),
    ("GET", "/v1/admin/backups", Admin),
    ("GET", "/v1/admin/backups/{id}", Admin),
    ("GET", "/v1/admin/holds", Admin),
    ("POST", "/v1/admin/holds", Admin),
    ("GET", "/v1/admin/holds/{id}", Admin),
    ("DELETE", "/v1/admin/holds/{id}", Admin),
    ("GET", "/v1/admin/dead-letters", Admin),
    ("GET", "/v1/admin/dead-letters/groups", Admin),
    ("GET", "/v1/admin/dead-letters/replays", Admin),
    ("POST", "/v1/admin/dead-letters/replays", Admin),
    ("GET", "/v1/admin/dead-letters/replays/{id}", Admin),
    ("DELETE", "/v1/admin/dead-letters/replays/{id}", Admin),
    ("GET", "/v1/admin/dead-letters/{id}", Admin),
    ("POST", "/v1/admin/dead-letters/{id}/dry-run", Admin),
    ("POST", "/v1/admin/dead-letters/{id}/replay", Admin),
    ("POST", "/v1/admin/dead-letters/{id}/edit", Admin),
    ("POST", "/v1/admin/dead-letters/{id}/discard", Admin),
];

/// What a call needs; `None` if nobody has said so.
pub(crate) fn need(method: &Method, route: &str) -> Option<Need> {
    // HEAD is GET without the body.
    let method = if method == Method::HEAD { "GET" } else { method.as_str() };
    TABLE.iter().find(|(m, r, _)| *m == method && *r == route).map(|(_, _, need)| *need)
}

impl Caller {
    /// Whether the caller may make a call that needs this.
    pub(crate) fn may_call(&self, need: Need) -> Result<(), Problem> {
        let scope = |scope: Scope| self.key.as_ref().map(|key| key.has(scope));
        let lacks = |scope: &str| ("scope_missing", format!("this API key has not the scope {scope}"));
        let (allowed, (code, detail)) = match need {
            Open | Login => return Ok(()),
            Session => {
                (self.key.is_none(), ("session_only", "this is for people who are logged in".to_owned()))
            }
            Read => (scope(Scope::Read).unwrap_or(true), lacks("read")),
            Follow => (
                scope(Scope::Read).unwrap_or(true) || scope(Scope::CommandsWrite).unwrap_or(true),
                lacks("read, nor commands:write"),
            ),
            Write => (scope(Scope::CommandsWrite).unwrap_or(true), lacks("commands:write")),
            Admin => (
                scope(Scope::Admin).unwrap_or(self.role == Role::Admin),
                ("admin_only", "this is for admins, and for API keys with the scope admin".to_owned()),
            ),
        };
        if allowed { Ok(()) } else { Err(Problem::forbidden(code, detail)) }
    }

    /// A session's holder sends commands as itself, an admin as anyone; an API key as anyone, from the sources under
    /// its prefix. Only a key with the scope `admin` registers admins, whoever it speaks for: else a key that may write
    /// could make itself an admin.
    pub(crate) fn may_send(&self, command: &Command) -> Result<(), Problem> {
        let refused = |detail| Err(Problem::forbidden("actor_not_allowed", detail));
        let Some(key) = &self.key else {
            if self.role == Role::Admin || command.actor == self.user {
                return Ok(());
            }
            return refused(format!(
                "you may send commands as {} (actorid), not as somebody else",
                self.user
            ));
        };
        if !key.has(Scope::CommandsWrite) {
            return refused("the API key has no scope commands:write".to_owned());
        }
        if !key.speaks_for(&command.source) {
            let prefix = key.source_prefix.as_deref().unwrap_or_default();
            return refused(format!("this API key speaks for sources under {prefix}, which this is not"));
        }
        let makes_admin = matches!(&command.body, Body::RegisterUser(user) if user.role == Role::Admin);
        if makes_admin && !key.has(Scope::Admin) {
            return refused("only an API key with the scope admin may register an admin".to_owned());
        }
        Ok(())
    }

    /// People cancel what they may see, an API key what came from the sources under its prefix, also if it may read
    /// everything.
    pub(crate) fn may_cancel(&self, owner: Option<Uuid>, source: Option<&str>) -> bool {
        match &self.key {
            Some(key) => source.is_some_and(|source| key.speaks_for(source)),
            None => self.may_see(owner),
        }
    }

    /// Whether the caller may see a receipt: a person its own, a key that may read all of them, and one that may only
    /// send those of the sources under its prefix.
    pub(crate) fn may_see_receipt(&self, owner: Option<Uuid>, source: Option<&str>) -> bool {
        let speaks = |key: &ApiKey| source.is_some_and(|source| key.speaks_for(source));
        self.may_see(owner) || self.key.as_ref().is_some_and(|key| speaks(key))
    }

    /// Whether the caller may see what belongs to this user: its tasks, its permissions. An API key with the scope
    /// `read` reads everything.
    pub(crate) fn may_see(&self, owner: Option<Uuid>) -> bool {
        match &self.key {
            Some(key) => key.has(Scope::Read),
            None => self.role == Role::Admin || owner == Some(self.user),
        }
    }

    /// Whether the caller may see a task: who has created it, or is assigned to it.
    pub(crate) fn may_see_task(&self, creator: Uuid, assignee: Option<Uuid>) -> bool {
        self.may_see(Some(creator)) || assignee == Some(self.user)
    }

    /// Whether the caller may read a user and what belongs to it. Decided before anything is looked up: the answer does
    /// not tell whether the user exists.
    pub(crate) fn may_read_user(&self, user: Uuid) -> Result<(), Problem> {
        if self.may_see(Some(user)) {
            return Ok(());
        }
        let detail = "you may read yourself and your own tasks; an admin may read everybody's";
        Err(Problem::forbidden("forbidden", detail))
    }

    /// Whose tasks the caller finds; `None`: everybody's.
    pub(crate) fn finds_tasks_of(&self) -> Option<Uuid> {
        (!self.may_see(None)).then_some(self.user)
    }

    /// What operators do is for admins.
    pub(crate) fn must_be_admin(&self) -> Result<(), Problem> {
        self.may_call(Admin)
    }
}
