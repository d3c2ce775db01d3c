//! The agent's key, and its owner's: made once, kept in one private file each, never shown.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use ed25519_dalek::SigningKey;

use crate::os;

const HEADER: &str = "skein-secret-key-1 ";

/// Loads the agent's key, or makes one when there is none.
///
/// # Errors
/// When the file is damaged (it is left as it is) or cannot be read or written.
pub(crate) fn load_or_create(data_dir: &Path) -> Result<SigningKey> {
    let path = data_dir.join("identity.key");
    let loss = "move it away to start under a new identity, which cannot claim what the old one earned";
    load(&path, loss)?.map_or_else(|| create(&path), Ok)
}

/// Loads the key by which an owner commands his rigs, if it is kept here.
///
/// # Errors
/// As [`load_or_create`].
pub(crate) fn owner(data_dir: &Path) -> Result<Option<SigningKey>> {
    load(&owner_file(data_dir), "move it away to make a new one, which every rig has to be told")
}

/// Loads that key, or makes one when there is none.
///
/// # Errors
/// As [`load_or_create`].
pub(crate) fn owner_or_create(data_dir: &Path) -> Result<SigningKey> {
    owner(data_dir)?.map_or_else(|| create(&owner_file(data_dir)), Ok)
}

/// Where that key is kept.
pub(crate) fn owner_file(data_dir: &Path) -> PathBuf {
    data_dir.join("owner.key")
}

fn load(path: &Path, otherwise: &str) -> Result<Option<SigningKey>> {
    let damaged = || {
        format!(
            "the key in {} is damaged\nhint: restore the file from a backup; or {otherwise}",
            path.display()
        )
    };
    match fs::read_to_string(path) {
        Ok(text) => parse(&text).map(Some).with_context(damaged),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::InvalidData => Err(error).with_context(damaged),
        Err(error) => Err(error).with_context(|| {
            format!("cannot read the key {}\nhint: the agent's user must be able to read it", path.display())
        }),
    }
}

fn parse(text: &str) -> Result<SigningKey> {
    let Some(digits) = text.trim_end().strip_prefix(HEADER) else {
        bail!("its first word is not `{}`", HEADER.trim())
    };
    let (secret, check) = digits.split_once(' ').context("it has no checksum")?;
    let mut bytes = [0; 32];
    hex::decode_to_slice(secret, &mut bytes).context("it does not hold 64 hexadecimal digits")?;
    // A flipped digit would be another valid key: the agent would silently be somebody else.
    if checksum(&bytes) != check {
        bail!("its checksum does not match");
    }
    Ok(SigningKey::from_bytes(&bytes))
}

fn create(path: &Path) -> Result<SigningKey> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes)
        .map_err(|error| anyhow::anyhow!("no randomness from the operating system: {error}"))?;
    let text = format!("{HEADER}{} {}\n", hex::encode(bytes), checksum(&bytes));
    write_private(path, text.as_bytes())
        .with_context(|| format!("cannot write a new key to {}", path.display()))?;
    Ok(SigningKey::from_bytes(&bytes))
}

fn checksum(secret: &[u8; 32]) -> String {
    hex::encode(&blake3::derive_key("skein identity file checksum", secret)[..4])
}

/// Writes a file that only its owner can read: whole or not at all, and durable.
///
/// # Errors
/// As the file system says.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> io::Result<()> {
    let temporary = path.with_extension("new");
    let mut file = os::create_private(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    skein_mesh::rename(&temporary, path)?;
    // The rename itself must survive a power cut; where directories cannot be opened, the system sees to it.
    match path.parent().map(fs::File::open) {
        Some(Ok(directory)) if cfg!(unix) => directory.sync_all(),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_survives_and_every_damaged_digit_is_noticed() {
        let dir = tempfile::tempdir().unwrap();
        let key = load_or_create(dir.path()).unwrap();
        assert_eq!(load_or_create(dir.path()).unwrap().to_bytes(), key.to_bytes());
        let path = dir.path().join("identity.key");
        let text = fs::read_to_string(&path).unwrap();
        for at in 0..text.len() - 1 {
            let mut damaged = text.clone().into_bytes();
            damaged[at] = if damaged[at] == b'0' { b'1' } else { b'0' };
            fs::write(&path, &damaged).unwrap();
            let error = format!("{:#}", load_or_create(dir.path()).unwrap_err());
            assert!(error.contains("damaged") && error.contains("hint:"), "byte {at}: {error}");
        }
    }
}
