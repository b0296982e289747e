//! Passwords of the servers: made once, kept in a file that only its owner reads.

use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use anyhow::{Context, Result};

/// The password in a file, made at the first call: 24 random bytes in hexadecimal digits.
pub(crate) fn password(file: &Path) -> Result<String> {
    if let Ok(password) = std::fs::read_to_string(file) {
        return Ok(password.trim().to_owned());
    }
    let mut bytes = [0; 24];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    let password: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    if let Some(folder) = file.parent() {
        std::fs::create_dir_all(folder)?;
    }
    std::fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(file)
        .and_then(|mut file| file.write_all(password.as_bytes()))
        .with_context(|| format!("write {}", file.display()))?;
    Ok(password)
}
