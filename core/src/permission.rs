//! What a role permits, in words: what `GET /v1/users/{id}/permissions` answers and `user:permissions:{userId}` holds.
//!
//! `own` means what the user has created or is assigned to, or the user itself. The rules themselves are in
//! [`crate::task`] and [`crate::user`]; a test holds these words against them.

use crate::state::Role;

const USER: &[&str] = &[
    "task:create",
    "task:read",
    "task:update:own",
    "task:delete:own",
    "user:read:own",
    "user:update:own",
    "user:register",
];

const ADMIN: &[&str] = &[
    "task:create",
    "task:read",
    "task:update",
    "task:delete",
    "user:read",
    "user:update",
    "user:register",
    "user:register:admin",
    "event:read",
    "admin",
];

/// The permissions of a role.
pub fn of(role: Role) -> &'static [&'static str] {
    match role {
        Role::User => USER,
        Role::Admin => ADMIN,
    }
}
