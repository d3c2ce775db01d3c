//! What the publisher does: make keys, sign a directory of files as a release, verify one as a stranger would.
//!
//! Used by `skein-release` and by tests. Must never print or copy a secret key, and never overwrite one.

use std::fs::{self, File, OpenOptions};
use std::io::{Cursor, Read as _, Write as _};
use std::path::{Path, PathBuf};

use ed25519_dalek::{Signer as _, SigningKey};
use semver::Version;
use sha2::{Digest as _, Sha256};
use ssh_key::private::{Ed25519Keypair, KeypairData};
use ssh_key::{HashAlg, LineEnding, PrivateKey, PublicKey, SshSig};
use zipsign_api::{sign as zip_sign, verify as zip_verify};

use crate::error::{Result, UpdateError, io_error};
use crate::keys::{TrustedKeys, signature_line};
use crate::manifest::{ARCHIVE, FILE_BYTES_MAX, FILES_MAX, Manifest, ReleaseFile, is_file_name};

/// The namespace of the SSHSIG, as in `ssh-keygen -Y verify -n skein-release`.
pub const SSH_NAMESPACE: &str = "skein-release";
/// The manifest's name beside the files of a release.
pub const MANIFEST_NAME: &str = "manifest.json";

/// The platforms that releases are built for, with their names in deb and rpm packages.
const TARGETS: [(&str, &str, &str); 5] = [
    ("x86_64-unknown-linux-gnu", "amd64", "x86_64"),
    ("aarch64-unknown-linux-gnu", "arm64", "aarch64"),
    ("x86_64-apple-darwin", "", ""),
    ("aarch64-apple-darwin", "", ""),
    ("x86_64-pc-windows-gnu", "", ""),
];

/// Makes a key: the secret goes into a new file `path` with mode 0600, the public key comes back as hex.
pub fn generate_key(path: &Path) -> Result<String> {
    let bad = |reason: String| UpdateError::BadSecretKey {
        path: path.to_owned(),
        reason,
        hint: "choose a new file in a directory that only you can read",
    };
    let mut seed = [0; 32];
    getrandom::fill(&mut seed).map_err(|error| bad(error.to_string()))?;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    {
        use std::os::unix::fs::OpenOptionsExt as _;
        options.mode(0o600);
    }
    let mut file = options.open(path).map_err(|error| bad(error.to_string()))?;
    writeln!(file, "{}", hex::encode(seed)).map_err(io_error("write", path))?;
    file.sync_all().map_err(io_error("write", path))?;
    Ok(hex::encode(SigningKey::from_bytes(&seed).verifying_key()))
}

/// Reads a secret key; refuses one that others can read.
pub fn read_key(path: &Path) -> Result<SigningKey> {
    let bad = |reason: &str, hint| UpdateError::BadSecretKey {
        path: path.to_owned(),
        reason: reason.to_owned(),
        hint,
    };
    let file = File::open(path).map_err(io_error("read", path))?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        let mode = file.metadata().map_err(io_error("read", path))?.mode();
        if mode & 0o077 != 0 {
            return Err(bad(
                "others can read it",
                "`chmod 600` it, and think about whether it is still secret",
            ));
        }
    }
    let mut text = String::new();
    file.take(256).read_to_string(&mut text).map_err(io_error("read", path))?;
    let mut seed = [0; 32];
    hex::decode_to_slice(text.trim(), &mut seed)
        .map_err(|_| bad("it is not 64 hex digits", "`skein-release keygen FILE` makes one"))?;
    Ok(SigningKey::from_bytes(&seed))
}

/// Signs what lies in `directory` as release `version`: first the archives themselves, then the manifest of all
/// files. Writes manifest.json, manifest.json.sig and manifest.json.sshsig. Signing again changes nothing in
/// archives that carry these signatures already.
pub fn sign_release(
    directory: &Path,
    keys: &[SigningKey],
    version: &Version,
    released_at: &str,
) -> Result<Manifest> {
    let Some(first) = keys.first() else {
        return Err(bad_tree(directory, "no key signs it".to_owned(), "give one or two with --key"));
    };
    let mut files = Vec::new();
    for name in names(directory)? {
        let Some((target, kind)) = classify(&name, version) else {
            return Err(bad_tree(
                &directory.join(&name),
                format!("nothing in release {version} is called so"),
                "remove it from the directory, or check --version",
            ));
        };
        let path = directory.join(&name);
        if kind == ARCHIVE {
            sign_archive(&path, &name, keys)?;
        }
        let (bytes, sha256) = measure(&path)?;
        files.push(ReleaseFile { name, target: target.to_owned(), kind: kind.to_owned(), bytes, sha256 });
    }
    let manifest = Manifest { version: version.clone(), released_at: released_at.to_owned(), files };
    manifest.check()?;
    let text = manifest.encode();
    let lines: String =
        keys.iter().map(|key| signature_line(&key.verifying_key(), &key.sign(text.as_bytes()))).collect();
    // The manifest comes last: a tree without it is recognised as unfinished.
    write(&directory.join(format!("{MANIFEST_NAME}.sig")), lines.as_bytes())?;
    write(
        &directory.join(format!("{MANIFEST_NAME}.sshsig")),
        ssh_signature(first, text.as_bytes())?.as_bytes(),
    )?;
    write(&directory.join(MANIFEST_NAME), text.as_bytes())?;
    Ok(manifest)
}

/// Verifies a signed tree: both forms of signature, every file's length and checksum, every archive's signature,
/// and that nothing lies there unsigned.
pub fn verify_release(directory: &Path, keys: &TrustedKeys) -> Result<Manifest> {
    let text = read(&directory.join(MANIFEST_NAME))?;
    keys.verify(&text, &read(&directory.join(format!("{MANIFEST_NAME}.sig")))?)?;
    let path = directory.join(format!("{MANIFEST_NAME}.sshsig"));
    let bad = || bad_tree(&path, "no trusted key made it".to_owned(), "sign the release again");
    let signature = SshSig::from_pem(read(&path)?).map_err(|_| bad())?;
    let verifies = |key: &ed25519_dalek::VerifyingKey| {
        ssh_public(&key.to_bytes()).verify(SSH_NAMESPACE, &text, &signature).is_ok()
    };
    if !keys.iter().any(verifies) {
        return Err(bad());
    }
    let manifest = Manifest::parse(&text)?;
    for name in names(directory)? {
        if !manifest.files.iter().any(|file| file.name == name) {
            return Err(bad_tree(
                &directory.join(name),
                "it is not in the signed manifest".to_owned(),
                "remove it, or sign again",
            ));
        }
    }
    for file in &manifest.files {
        let path = directory.join(&file.name);
        let (bytes, sha256) = measure(&path)?;
        check_measure(file, bytes, &sha256)?;
        if file.kind == ARCHIVE {
            check_archive_signature(&path, &file.name, &keys.raw())?;
        }
    }
    Ok(manifest)
}

/// The public key as a line for ssh's `allowed_signers` and as PEM for openssl.
pub fn public_forms(key: &[u8; 32]) -> Result<(String, String)> {
    use base64::Engine as _;
    let ssh = ssh_public(key)
        .to_openssh()
        .map_err(|error| UpdateError::BadKey(format!("{}: {error}", hex::encode(key))))?;
    let mut der = hex::decode("302a300506032b6570032100").unwrap_or_default();
    der.extend(key);
    let body = base64::prelude::BASE64_STANDARD.encode(der);
    let pem = format!("-----BEGIN PUBLIC KEY-----\n{body}\n-----END PUBLIC KEY-----\n");
    Ok((format!("skein-release namespaces=\"{SSH_NAMESPACE}\" {ssh}"), pem))
}

/// Compares what was found with the manifest.
pub(crate) fn check_measure(file: &ReleaseFile, bytes: u64, sha256: &str) -> Result<()> {
    if bytes != file.bytes {
        return Err(UpdateError::WrongSize { name: file.name.clone(), expected: file.bytes, found: bytes });
    }
    if sha256 != file.sha256 {
        return Err(UpdateError::WrongChecksum {
            name: file.name.clone(),
            expected: file.sha256.clone(),
            found: sha256.to_owned(),
        });
    }
    Ok(())
}

/// Which platform and kind a file of this name is; `None` for what does not belong into the release.
fn classify(name: &str, version: &Version) -> Option<(&'static str, &'static str)> {
    let any = "any";
    if ["install.sh", "install.ps1", "uninstall.sh", "uninstall.ps1"].contains(&name) {
        return Some((any, "installer"));
    }
    // rpm has `~` where a pre-release begins, deb too.
    let version = version.to_string();
    let packaged = version.replace('-', "~");
    if !name.contains(&version) && !name.contains(&packaged) {
        return None;
    }
    let has = |word: &str| !word.is_empty() && name.contains(word);
    let target = TARGETS.iter().find(|(target, _, _)| has(target)).map_or(any, |(target, _, _)| target);
    if [".spdx.json", ".cdx.json", ".sbom.json"].iter().any(|end| name.ends_with(end)) {
        return Some((target, "sbom"));
    }
    for (target, deb, rpm) in TARGETS {
        let end = if target.contains("windows") { "zip" } else { "tar.gz" };
        if name == format!("skein-{version}-{target}.{end}") {
            return Some((target, ARCHIVE));
        }
        if !deb.is_empty() && name.ends_with(&format!("_{deb}.deb")) {
            return Some((target, "deb"));
        }
        if !rpm.is_empty() && name.ends_with(&format!(".{rpm}.rpm")) {
            return Some((target, "rpm"));
        }
    }
    // HiveOS wants NAME-VERSION.tar.gz; it runs on x86_64 alone.
    let hive = name == format!("skein-{version}.tar.gz") || (has("hiveos") && name.ends_with(".tar.gz"));
    hive.then_some((TARGETS[0].0, "hiveos"))
}

/// The files to sign, sorted by name.
fn names(directory: &Path) -> Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(directory).map_err(io_error("read", directory))? {
        let entry = entry.map_err(io_error("read", directory))?;
        let path = entry.path();
        let name = entry.file_name().to_string_lossy().into_owned();
        // Lists of checksums may lie there for people; nothing that verifies reads them.
        let own = [".json", ".json.sig", ".json.sshsig"].iter().any(|end| name == format!("manifest{end}"));
        if own || name == "SHA256SUMS" {
            continue;
        }
        let kind = entry.file_type().map_err(io_error("read", &path))?;
        if !kind.is_file() || !is_file_name(&name) {
            return Err(bad_tree(&path, "it is not a plain file with a plain name".to_owned(), "remove it"));
        }
        names.push(name);
        if names.len() > FILES_MAX {
            return Err(bad_tree(directory, format!("it has more than {FILES_MAX} files"), "remove some"));
        }
    }
    names.sort();
    Ok(names)
}

/// Puts zipsign's signature into an archive, beside it first and then in its place.
fn sign_archive(path: &Path, name: &str, keys: &[SigningKey]) -> Result<()> {
    let raw: Vec<[u8; 32]> = keys.iter().map(|key| key.verifying_key().to_bytes()).collect();
    if raw.iter().all(|&key| check_archive_signature(path, name, &[key]).is_ok()) {
        return Ok(());
    }
    let bytes = read(path)?;
    if check_archive_signature(path, name, &raw).is_ok() {
        return Err(bad_tree(
            path,
            "it is signed by some of the keys already".to_owned(),
            "sign the archive as it was built",
        ));
    }
    let mut signed = Cursor::new(Vec::with_capacity(bytes.len() + 1024));
    let failed = |reason: String| bad_tree(path, reason, "build the archive again");
    let context = Some(name.as_bytes());
    if name.ends_with(".zip") {
        zip_sign::copy_and_sign_zip(&mut Cursor::new(bytes), &mut signed, keys, context)
            .map_err(|error| failed(error.to_string()))?;
    } else {
        zip_sign::copy_and_sign_tar(&mut Cursor::new(bytes), &mut signed, keys, context)
            .map_err(|error| failed(error.to_string()))?;
    }
    write(path, signed.get_ref())
}

/// zipsign's check on both kinds of archive; the agent's own check is `self_update`'s, which calls the same.
fn check_archive_signature(path: &Path, name: &str, keys: &[[u8; 32]]) -> Result<()> {
    let bad = |reason: String| UpdateError::BadArchiveSignature { name: name.to_owned(), reason };
    let keys =
        zip_verify::collect_keys(keys.iter().copied().map(Ok)).map_err(|error| bad(error.to_string()))?;
    let mut file = File::open(path).map_err(io_error("read", path))?;
    let context = Some(name.as_bytes());
    if name.ends_with(".zip") {
        zip_verify::verify_zip(&mut file, &keys, context).map_err(|error| bad(error.to_string()))?;
    } else {
        zip_verify::verify_tar(&mut file, &keys, context).map_err(|error| bad(error.to_string()))?;
    }
    Ok(())
}

fn ssh_signature(key: &SigningKey, message: &[u8]) -> Result<String> {
    let pair = Ed25519Keypair::from_seed(&key.to_bytes());
    PrivateKey::new(KeypairData::Ed25519(pair), "")
        .and_then(|key| key.sign(SSH_NAMESPACE, HashAlg::Sha512, message))
        .and_then(|signature| signature.to_pem(LineEnding::LF))
        .map_err(|error| UpdateError::BadSignatureFile(format!("SSHSIG cannot be made: {error}")))
}

fn ssh_public(key: &[u8; 32]) -> PublicKey {
    PublicKey::from(ssh_key::public::Ed25519PublicKey(*key))
}

/// Length and SHA-256 of a file.
fn measure(path: &Path) -> Result<(u64, String)> {
    let mut file = File::open(path).map_err(io_error("read", path))?;
    let mut hash = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    let mut length = 0;
    loop {
        let read = file.read(&mut buffer).map_err(io_error("read", path))?;
        if read == 0 {
            return Ok((length, hex::encode(hash.finalize())));
        }
        length += read as u64;
        hash.update(&buffer[..read]);
    }
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let file = File::open(path).map_err(io_error("read", path))?;
    file.take(FILE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(io_error("read", path))?;
    if bytes.len() as u64 > FILE_BYTES_MAX {
        return Err(UpdateError::TooLarge { what: path.display().to_string(), max: FILE_BYTES_MAX });
    }
    Ok(bytes)
}

/// Writes a file in one step, so that a tree never holds half of one.
fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".part");
    let part: PathBuf = path.with_file_name(name);
    fs::write(&part, bytes).map_err(io_error("write", &part))?;
    fs::rename(&part, path).map_err(io_error("write", path))
}

fn bad_tree(path: &Path, reason: String, hint: &'static str) -> UpdateError {
    UpdateError::BadTree { path: path.to_owned(), reason, hint }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_say_platform_and_kind() {
        let version = Version::parse("0.2.0-beta.1").unwrap();
        let linux = "x86_64-unknown-linux-gnu";
        let cases = [
            ("skein-0.2.0-beta.1-x86_64-unknown-linux-gnu.tar.gz", Some((linux, "archive"))),
            ("skein-0.2.0-beta.1-x86_64-pc-windows-gnu.zip", Some(("x86_64-pc-windows-gnu", "archive"))),
            ("skein_0.2.0~beta.1_amd64.deb", Some((linux, "deb"))),
            ("skein_0.2.0~beta.1-1_arm64.deb", Some(("aarch64-unknown-linux-gnu", "deb"))),
            ("skein-0.2.0~beta.1-1.x86_64.rpm", Some((linux, "rpm"))),
            ("skein-0.2.0-beta.1.tar.gz", Some((linux, "hiveos"))),
            ("skein-0.2.0-beta.1.cdx.json", Some(("any", "sbom"))),
            ("skein-0.2.0-beta.1-aarch64-apple-darwin.spdx.json", Some(("aarch64-apple-darwin", "sbom"))),
            ("install.sh", Some(("any", "installer"))),
            ("skein-0.1.0-x86_64-unknown-linux-gnu.tar.gz", None),
            ("skein-0.2.0-beta.1-x86_64-unknown-linux-gnu.zip", None),
            ("notes.txt", None),
        ];
        for (name, expected) in cases {
            assert_eq!(classify(name, &version), expected, "{name}");
        }
    }
}
