//! A client of the HTTP interface.

use anyhow::{Context, Result};
use reqwest::{RequestBuilder, Response};
use serde_json::{Value, json};

#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    base: String,
    token: Option<String>,
}

impl Client {
    pub fn new(base: &str) -> Result<Self> {
        Ok(Self { http: reqwest::Client::builder().build()?, base: base.to_owned(), token: None })
    }

    pub fn base(&self) -> &str {
        &self.base
    }

    pub fn token(&self) -> Option<String> {
        self.token.clone()
    }

    /// The same client, logged in.
    pub async fn logged_in(&self, email: &str, password: &str) -> Result<Self> {
        let answer =
            self.post("/v1/sessions").json(&json!({ "email": email, "password": password })).send().await?;
        let answer: Value = answer.error_for_status()?.json().await?;
        let token = answer["token"].as_str().context("no token")?.to_owned();
        Ok(Self { token: Some(token), ..self.clone() })
    }

    /// The same client with another token, or an API key.
    #[must_use]
    pub fn with(&self, token: &str) -> Self {
        Self { token: Some(token.to_owned()), ..self.clone() }
    }

    /// The same client at another process of the API.
    #[must_use]
    pub fn at(&self, base: &str) -> Self {
        Self { base: base.to_owned(), ..self.clone() }
    }

    /// A request that is not sent yet.
    pub fn request(&self, method: reqwest::Method, path: &str) -> RequestBuilder {
        self.with_token(self.http.request(method, format!("{}{path}", self.base)))
    }

    pub async fn admin(&self) -> Result<Self> {
        self.logged_in(crate::commands::ADMIN_EMAIL, crate::commands::ADMIN_PASSWORD).await
    }

    pub async fn user(&self) -> Result<Self> {
        self.logged_in(crate::commands::USER_EMAIL, crate::commands::USER_PASSWORD).await
    }

    pub async fn get(&self, path: &str) -> Result<Response> {
        Ok(self.with_token(self.http.get(format!("{}{path}", self.base))).send().await?)
    }

    pub async fn delete(&self, path: &str) -> Result<Response> {
        Ok(self.with_token(self.http.delete(format!("{}{path}", self.base))).send().await?)
    }

    pub fn post(&self, path: &str) -> RequestBuilder {
        self.with_token(self.http.post(format!("{}{path}", self.base)))
    }

    fn with_token(&self, request: RequestBuilder) -> RequestBuilder {
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Sends a body of some type; returns the status and the JSON answer.
    pub async fn send(&self, content_type: &str, body: impl Into<reqwest::Body>) -> Result<(u16, Value)> {
        let request = self.post("/v1/commands").header("content-type", content_type).body(body);
        let answer = request.send().await?;
        Ok((answer.status().as_u16(), answer.json().await?))
    }

    /// Sends one command and waits for its receipt.
    pub async fn apply(&self, command: &Value) -> Result<Value> {
        let request = self.post("/v1/commands").header("prefer", "wait=20").json(command);
        let answer = request.send().await?;
        let status = answer.status().as_u16();
        let value: Value = answer.json().await?;
        anyhow::ensure!(status == 200, "{status}: {value}");
        Ok(value)
    }
}
