//! Passwords of the servers: made once, kept in a file that only its owner reads.

use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;

use anyhow::{Context, Result};
use base64::Engine;
use sha2::{Digest, Sha256};

/// The password in a file, made at the first call: 24 random bytes in hexadecimal digits.
pub(crate) fn password(file: &Path) -> Result<String> {
    match std::fs::read_to_string(file) {
        Ok(password) if !password.trim().is_empty() => return Ok(password.trim().to_owned()),
        Err(error) if error.kind() != ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("read {}", file.display()));
        }
        _ => {}
    }
    let bytes: [u8; 24] = random()?;
    let password = bytes.iter().fold(String::new(), |digits, byte| digits + &format!("{byte:02x}"));
    if let Some(folder) = file.parent() {
        std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    // Moved when it is whole: half a password would lock its owner out at the next start.
    let fresh = file.with_extension(format!("fresh{}", std::process::id()));
    write_private(&fresh, &password)?;
    std::fs::rename(&fresh, file).with_context(|| format!("write {}", file.display()))?;
    Ok(password)
}

/// Writes a new file that only its owner reads.
pub(crate) fn write_private(file: &Path, text: &str) -> Result<()> {
    let mut open = std::fs::OpenOptions::new();
    open.write(true).create_new(true).mode(0o600);
    open.open(file)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("write {}", file.display()))
}

/// A password as RabbitMQ keeps it (`rabbit_password_hashing_sha256`): four bytes of salt, then SHA-256 of salt and
/// password.
pub(crate) fn rabbitmq_hash(password: &str) -> Result<String> {
    let salt: [u8; 4] = random()?;
    let digest = Sha256::new().chain_update(salt).chain_update(password).finalize();
    Ok(base64::engine::general_purpose::STANDARD.encode([salt.as_slice(), &digest].concat()))
}

fn random<const LENGTH: usize>() -> Result<[u8; LENGTH]> {
    let mut bytes = [0; LENGTH];
    std::fs::File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes)
}
