//! One error for all that has to do with backups. Its [`Trouble`] says what to do; nobody decides by the text.

use std::fmt;

use taskflow_stores::{Kind, StoreError};

/// What an error means for the one who called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// A store or the place of the backups does not answer: try again later.
    Away,
    /// A disk is full, here or there.
    Full,
    /// What lies there is not what was written.
    Damaged,
    /// Something that should be there is not.
    Missing,
    /// No key opens it, or the wrong one was given.
    Key,
    /// A later version of the program wrote it.
    Newer,
    /// It can't be done as asked; the text says what can.
    Refused,
    /// It was told to stop.
    Stopped,
    /// Anything else that trying again does not mend.
    Failed,
}

/// What went wrong, with the thing, the cause, and the way out in its text.
#[derive(Debug, Clone)]
pub struct Error {
    pub trouble: Trouble,
    pub text: String,
}

/// What everything here returns.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    pub fn new(trouble: Trouble, text: impl Into<String>) -> Self {
        Self { trouble, text: text.into() }
    }

    pub fn damaged(text: impl Into<String>) -> Self {
        Self::new(Trouble::Damaged, text)
    }

    pub fn refused(text: impl Into<String>) -> Self {
        Self::new(Trouble::Refused, text)
    }

    pub fn failed(text: impl Into<String>) -> Self {
        Self::new(Trouble::Failed, text)
    }

    /// Whether it may be better later.
    pub fn may_pass(&self) -> bool {
        matches!(self.trouble, Trouble::Away | Trouble::Full)
    }

    /// The same with a word of what was being done.
    #[must_use]
    pub fn during(mut self, what: impl fmt::Display) -> Self {
        self.text = format!("{what}: {}", self.text);
        self
    }

    /// What an error of the system means, when `what` was done.
    pub fn io(what: impl fmt::Display, error: &std::io::Error) -> Self {
        use std::io::ErrorKind as E;
        let trouble = match error.kind() {
            E::StorageFull | E::QuotaExceeded => Trouble::Full,
            E::NotFound => Trouble::Missing,
            E::PermissionDenied | E::ReadOnlyFilesystem => Trouble::Refused,
            _ => Trouble::Failed,
        };
        Self::new(trouble, format!("{what}: {error}"))
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Error {}

impl From<StoreError> for Error {
    fn from(error: StoreError) -> Self {
        let trouble = match error.kind {
            Kind::Unavailable | Kind::Conflict => Trouble::Away,
            Kind::Data | Kind::Bug => Trouble::Failed,
        };
        Self::new(trouble, error.to_string())
    }
}
