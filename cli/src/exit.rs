//! How the program ends: 0 done, 1 done but something failed, 2 wrong use, 69 a store is unavailable.

use std::process::ExitCode;

use taskflow_stores::{Kind, StoreError};

/// Done, but something failed.
pub(crate) const FAILED: u8 = 1;
/// Wrong use: arguments or settings.
const USAGE: u8 = 2;
/// A store is unavailable (`EX_UNAVAILABLE` of sysexits.h).
const UNAVAILABLE: u8 = 69;

/// An end that is not a success, with what a person is told.
#[derive(Debug)]
pub(crate) struct Exit {
    code: u8,
    message: String,
}

impl Exit {
    pub(crate) fn usage(message: impl Into<String>) -> Self {
        Self { code: USAGE, message: message.into() }
    }

    pub(crate) fn failed(message: impl Into<String>) -> Self {
        Self { code: FAILED, message: message.into() }
    }

    pub(crate) fn unavailable(message: impl Into<String>) -> Self {
        Self { code: UNAVAILABLE, message: message.into() }
    }

    /// What a person is told.
    pub(crate) fn message(&self) -> &str {
        &self.message
    }

    pub(crate) fn report(&self, json: bool) -> ExitCode {
        if json {
            eprintln!("{}", serde_json::json!({ "error": self.message, "exit": self.code }));
        } else {
            eprintln!("taskflow: {}", self.message);
        }
        ExitCode::from(self.code)
    }
}

impl From<StoreError> for Exit {
    fn from(error: StoreError) -> Self {
        if error.kind == Kind::Unavailable {
            let message =
                format!("{error}; `taskflow doctor` says where each store is looked for, and what answers");
            return Self { code: UNAVAILABLE, message };
        }
        Self { code: FAILED, message: error.to_string() }
    }
}

impl From<anyhow::Error> for Exit {
    fn from(error: anyhow::Error) -> Self {
        let message = format!("{error:#}");
        let unavailable = error
            .chain()
            .filter_map(|cause| cause.downcast_ref::<StoreError>())
            .any(|cause| cause.kind == Kind::Unavailable);
        Self { code: if unavailable { UNAVAILABLE } else { FAILED }, message }
    }
}
