//! Who is calling: the bearer of a session's token.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::extract::{ConnectInfo, FromRequestParts};
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use sha2::{Digest, Sha256};
use taskflow_core::Command;
use taskflow_core::state::Role;
use uuid::Uuid;

use crate::App;
use crate::problem::Problem;

/// Bytes of a token: as many as a key.
const TOKEN_BYTES: usize = 32;

/// Whoever has sent a request, with a valid token.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    pub user: Uuid,
    pub role: Role,
    /// The digest of the token, as the session is stored.
    pub session: String,
    pub ip: Option<IpAddr>,
    pub user_agent: Option<String>,
}

impl Caller {
    /// A session's holder sends commands as itself, an admin as anyone.
    pub(crate) fn may_send(&self, command: &Command) -> Result<(), Problem> {
        if self.role == Role::Admin || command.actor == self.user {
            return Ok(());
        }
        Err(Problem::forbidden(
            "actor_not_allowed",
            format!("you may send commands as {} (actorid), not as somebody else", self.user),
        ))
    }

    /// What operators do is for admins.
    pub(crate) fn must_be_admin(&self) -> Result<(), Problem> {
        if self.role == Role::Admin {
            return Ok(());
        }
        Err(Problem::forbidden("forbidden", "this is for admins; log in as one"))
    }

    /// Whether the caller may see what this user has sent.
    pub(crate) fn may_see(&self, actor: Option<Uuid>) -> bool {
        self.role == Role::Admin || actor == Some(self.user)
    }
}

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, app: &Arc<App>) -> Result<Self, Problem> {
        let token = bearer(&parts.headers)?;
        let digest = token_digest(token);
        let session = app.stores.redis.session(&digest).await?;
        let Some(session) = session.filter(|session| session.expires_at > taskflow_stores::clock::now())
        else {
            return Err(Problem::unauthorized(
                "this token is not (or no longer) valid; log in with POST /v1/sessions",
            ));
        };
        Ok(Self {
            user: session.user_id,
            role: session.role,
            session: digest,
            ip: address(parts),
            user_agent: user_agent(&parts.headers),
        })
    }
}

/// The address that the connection comes from.
pub(crate) fn address(parts: &Parts) -> Option<IpAddr> {
    parts.extensions.get::<ConnectInfo<SocketAddr>>().map(|info| info.0.ip())
}

/// What the client calls itself, as far as it is text without NUL.
pub(crate) fn user_agent(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(header::USER_AGENT)?.to_str().ok()?;
    Some(text.chars().take(256).collect())
}

fn bearer(headers: &HeaderMap) -> Result<&str, Problem> {
    let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    let Some((scheme, token)) = value.and_then(|value| value.split_once(' ')) else {
        return Err(Problem::unauthorized(
            "send the header Authorization: Bearer <token>; POST /v1/sessions gives one",
        ));
    };
    if !scheme.eq_ignore_ascii_case("bearer") || token.len() > 256 {
        return Err(Problem::unauthorized("the header Authorization must have the form Bearer <token>"));
    }
    Ok(token.trim())
}

/// A new token: 256 random bits.
pub(crate) fn new_token() -> String {
    let bytes: [u8; TOKEN_BYTES] = rand::random();
    format!("tfs_{}", hex(&bytes))
}

/// What is stored of a token.
pub(crate) fn token_digest(token: &str) -> String {
    hex(&Sha256::digest(token.as_bytes()))
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}
