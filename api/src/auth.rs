//! Who is calling: the bearer of a session's token, or of an API key. What they may do is [`crate::authority`]'s matter.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderMap, header};
use chrono::{DateTime, Utc};
use sha2::{Digest, Sha256};
use taskflow_core::api_key::{self, ApiKey};
use taskflow_core::command::Metadata;
use taskflow_core::hex;
use taskflow_core::state::Role;
use uuid::Uuid;

use crate::App;
use crate::problem::Problem;

/// Bytes of a token: as many as a key.
const TOKEN_BYTES: usize = 32;

/// Whoever has sent a request, with a valid token or key. The gate finds out ([`crate::gate`]); handlers take it as an
/// argument.
#[derive(Debug, Clone)]
pub(crate) struct Caller {
    /// The user; for an API key the key's own id.
    pub user: Uuid,
    /// An API key with the scope `admin` counts as an admin.
    pub role: Role,
    /// The digest of the token, as the session is stored; for an API key `api-key:` and its id.
    pub session: String,
    /// When the session ends by itself.
    pub until: Option<DateTime<Utc>>,
    pub ip: Option<IpAddr>,
    pub user_agent: Option<String>,
    /// What the API key may do, if it is one.
    pub key: Option<Arc<ApiKey>>,
}

impl Caller {
    /// Who and what, for the audit trail.
    pub(crate) fn metadata(&self) -> Metadata {
        Metadata {
            user_agent: self.user_agent.clone(),
            ip_address: self.ip.map(|ip| ip.to_string()),
            session_id: Some(self.session.clone()),
        }
    }
}

impl FromRequestParts<Arc<App>> for Caller {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Arc<App>) -> Result<Self, Problem> {
        // Nobody comes to a closed route without the gate; on an open one nobody has said who they are.
        parts.extensions.get::<Self>().cloned().ok_or_else(missing)
    }
}

fn missing() -> Problem {
    Problem::unauthorized("send the header Authorization: Bearer <token>; POST /v1/sessions gives one")
}

/// What a caller shows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Credential {
    /// A session's token, as its digest.
    Session(String),
    /// An API key: its id and the digest of the whole.
    Key(Uuid, [u8; 32]),
}

impl Credential {
    /// Reads the header `Authorization`.
    pub(crate) fn of(headers: &HeaderMap) -> Result<Self, Problem> {
        let value = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let (scheme, token) = value.and_then(|value| value.split_once(' ')).ok_or_else(missing)?;
        if !scheme.eq_ignore_ascii_case("bearer") || token.len() > 256 {
            return Err(Problem::unauthorized("the header Authorization must have the form Bearer <token>"));
        }
        let token = token.trim();
        if !token.starts_with(api_key::PREFIX) {
            return Ok(Self::Session(token_digest(token)));
        }
        let id = api_key::id_of(token)
            .ok_or_else(|| Problem::unauthorized("this is no complete API key; was a part of it cut off?"))?;
        Ok(Self::Key(id, api_key::digest(token)))
    }
}

/// What the client calls itself, as far as it is text without NUL.
pub(crate) fn user_agent(headers: &HeaderMap) -> Option<String> {
    let text = headers.get(header::USER_AGENT)?.to_str().ok()?;
    Some(text.chars().take(256).collect())
}

/// A new token: 256 random bits.
pub(crate) fn new_token() -> String {
    let bytes: [u8; TOKEN_BYTES] = rand::random();
    format!("tfs_{}", hex::of(&bytes))
}

/// What is stored of a token.
pub(crate) fn token_digest(token: &str) -> String {
    hex::of(&Sha256::digest(token.as_bytes()))
}
