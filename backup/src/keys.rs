//! Who may read the backups (age recipients), and the keys that open them (age identities).

use std::path::Path;
use std::str::FromStr;
use std::sync::Arc;

use crate::error::{Error, Result, Trouble};
use crate::settings::Settings;

/// Those for whom files are encrypted. None: they are not.
#[derive(Clone, Default)]
pub struct Recipients(Arc<Vec<age::x25519::Recipient>>);

impl Recipients {
    /// Reads `backup.recipients`.
    pub fn read(settings: &Settings) -> Result<Self> {
        let read = |text: &String| {
            age::x25519::Recipient::from_str(text.trim()).map_err(|error| {
                Error::refused(format!("backup.recipients: {text:?} is no age recipient (age1…): {error}"))
            })
        };
        Ok(Self(Arc::new(settings.recipients.iter().map(read).collect::<Result<_>>()?)))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn names(&self) -> Vec<String> {
        self.0.iter().map(ToString::to_string).collect()
    }

    /// Begins an encrypted file; `None` where there are no recipients.
    pub(crate) fn encryptor(&self) -> Result<Option<age::Encryptor>> {
        if self.is_empty() {
            return Ok(None);
        }
        let recipients = self.0.iter().map(|recipient| recipient as &dyn age::Recipient);
        let encryptor = age::Encryptor::with_recipients(recipients);
        Ok(Some(encryptor.map_err(|error| Error::failed(format!("encrypt for backup.recipients: {error}")))?))
    }
}

/// The keys that open encrypted files.
#[derive(Clone, Default)]
pub struct Identities(Arc<Vec<Box<dyn age::Identity + Send + Sync>>>);

impl Identities {
    /// Reads `backup.identity_path`; no file is no key, which matters only for what is encrypted.
    pub fn read(settings: &Settings) -> Result<Self> {
        if settings.identity_path.as_os_str().is_empty() {
            return Ok(Self::default());
        }
        Self::from_file(&settings.identity_path)
    }

    pub fn from_file(file: &Path) -> Result<Self> {
        let wrong = |error: String| {
            Error::new(Trouble::Key, format!("backup.identity_path {}: {error}", file.display()))
        };
        // Each on a line of its own, as age-keygen writes them.
        let text = std::fs::read_to_string(file).map_err(|error| wrong(error.to_string()))?;
        let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
        let read = |line: &str| -> Result<Box<dyn age::Identity + Send + Sync>> {
            let identity = age::x25519::Identity::from_str(line);
            Ok(Box::new(identity.map_err(|error| wrong(format!("a line is no age identity: {error}")))?))
        };
        let identities: Vec<_> = lines.map(read).collect::<Result<_>>()?;
        if identities.is_empty() {
            return Err(wrong("it has no age identity (AGE-SECRET-KEY-1…)".to_owned()));
        }
        Ok(Self(Arc::new(identities)))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = &dyn age::Identity> {
        self.0.iter().map(|identity| &**identity as &dyn age::Identity)
    }
}
