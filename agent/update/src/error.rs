//! What can go wrong with a release or an update, in words for the owner of the machine.
//!
//! Every message says what failed, with which value, what stayed as it was where that is in doubt, and ends in a
//! line `hint: …`. Must never carry a key or a token.

use std::io;
use std::path::{Path, PathBuf};

use semver::Version;

/// What the functions of this crate return.
pub type Result<T> = std::result::Result<T, UpdateError>;

/// Why a release was refused or an update did not happen. The installed binary is unchanged in every case.
#[derive(Debug, thiserror::Error)]
pub enum UpdateError {
    /// Nobody has put a release key into this build or into the configuration.
    #[error(
        "this build trusts no release key, so it cannot tell a release from a forgery\nhint: install a published \
         build, or name the keys of your own builds as `update_keys` in config.toml"
    )]
    NoTrustedKey,
    /// A key is not 64 hex digits of a usable ed25519 public key.
    #[error(
        "`{0}` is not an ed25519 public key\nhint: a key is 64 hex digits, one per line; `#` begins a comment"
    )]
    BadKey(String),
    /// A file of a secret key cannot be used.
    #[error("the secret key {path} cannot be used: {reason}\nhint: {hint}")]
    BadSecretKey {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
    /// The signature file is not in the form of a `.sig`.
    #[error(
        "the signature file is malformed: {0}\nhint: somebody on the way may change what is downloaded; try \
         another network, and tell whoever publishes the releases"
    )]
    BadSignatureFile(String),
    /// There are signatures, none of them by a key that is trusted.
    #[error(
        "the release is signed by nobody this build trusts (signed by {signed_by}; trusted: {trusted})\nhint: do \
         not install it; if the publisher changed keys, install a newer build by hand from where you got this one"
    )]
    Untrusted {
        /// Key ids in the signature file.
        signed_by: String,
        /// Key ids that are trusted.
        trusted: String,
    },
    /// A trusted key is named, but its signature does not fit the bytes.
    #[error(
        "the signature by the trusted key {key} does not fit the manifest: it was changed after it was signed, or \
         it is just being published\nhint: try again in some minutes; if it stays so, do not install it"
    )]
    BadSignature {
        /// The key's id.
        key: String,
    },
    /// The manifest breaks its format.
    #[error("the release manifest is not valid: {0}\nhint: tell whoever publishes the releases")]
    BadManifest(String),
    /// A tree that should be signed or verified is not a release.
    #[error("{path} is not a release as it should be: {reason}\nhint: {hint}")]
    BadTree {
        /// The file or directory.
        path: PathBuf,
        /// What is wrong.
        reason: String,
        /// What to do.
        hint: &'static str,
    },
    /// Something is larger than it may be.
    #[error(
        "{what} is larger than the {max} bytes allowed\nhint: the server sends something else than the release; try again later"
    )]
    TooLarge {
        /// What is being read.
        what: String,
        /// Bytes.
        max: u64,
    },
    /// A file has not the length that the manifest says.
    #[error(
        "{name} has {found} bytes instead of {expected}: the download was cut off or changed\nhint: try again; nothing was installed"
    )]
    WrongSize {
        /// The file.
        name: String,
        /// Bytes in the manifest.
        expected: u64,
        /// Bytes that came.
        found: u64,
    },
    /// A file has another SHA-256 than the signed manifest says.
    #[error(
        "the checksum of {name} is wrong (expected {expected}, found {found})\nhint: nothing was installed; try again, or use another network"
    )]
    WrongChecksum {
        /// The file.
        name: String,
        /// Hex.
        expected: String,
        /// Hex.
        found: String,
    },
    /// The archive's own signature is missing or wrong.
    #[error(
        "the signature inside {name} is missing or by nobody trusted: {reason}\nhint: nothing was installed; tell whoever publishes the releases"
    )]
    BadArchiveSignature {
        /// The archive.
        name: String,
        /// The verifier's words.
        reason: String,
    },
    /// The archive holds what a release must not hold.
    #[error(
        "the archive {name} is not a release: {reason}\nhint: nothing was installed; tell whoever publishes the releases"
    )]
    BadArchive {
        /// The archive.
        name: String,
        /// What is wrong.
        reason: String,
    },
    /// The manifest under a version's address is for another version.
    #[error(
        "asked for version {asked}, the server sent {found}\nhint: try again later; if it stays so, tell whoever publishes the releases"
    )]
    WrongVersion {
        /// What was asked for.
        asked: Version,
        /// What the manifest says.
        found: Version,
    },
    /// A test version in the channel for everybody.
    #[error(
        "the channel `stable` offers the test version {0}\nhint: write update_channel = \"beta\" into config.toml of the data directory if you want test versions"
    )]
    PreRelease(Version),
    /// The channel offers something older.
    #[error(
        "the channel offers {offered}, older than the installed {current}; an older version is not installed by itself\nhint: `skein update --version {offered}` installs exactly that one"
    )]
    Downgrade {
        /// Installed.
        current: Version,
        /// Offered.
        offered: Version,
    },
    /// The version was tried on this machine and was not healthy.
    #[error(
        "version {version} did not work on this machine: {reason}\nhint: `skein update --version {version}` tries it once more"
    )]
    FailedBefore {
        /// The version.
        version: Version,
        /// What happened then.
        reason: String,
    },
    /// The release has nothing for this machine.
    #[error(
        "release {version} has no archive for {target}\nhint: build it from source, or wait for the next release"
    )]
    NoArchive {
        /// The release.
        version: Version,
        /// The platform.
        target: String,
    },
    /// The base address cannot be used.
    #[error(
        "`{address}` cannot be used for updates: {reason}\nhint: `update_url` must begin with https://, or with http:// and a loopback address"
    )]
    BadAddress {
        /// As configured.
        address: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// The server has no such file.
    #[error(
        "the server has no {0}\nhint: check the version's number, the channel (stable or beta) and `update_url`"
    )]
    NotFound(String),
    /// The server cannot be reached or broke off.
    #[error("cannot fetch {url}: {reason}\nhint: check the network connection; the next attempt may work")]
    Network {
        /// What was asked for.
        url: String,
        /// The client's words.
        reason: String,
    },
    /// dpkg or rpm owns the binary.
    #[error("{binary} was installed by {manager}: update with the package manager\nhint: {hint}")]
    PackageManaged {
        /// The binary.
        binary: PathBuf,
        /// dpkg, rpm, or "the system's package manager".
        manager: &'static str,
        /// The command.
        hint: &'static str,
    },
    /// The directory of the binary cannot be written.
    #[error(
        "cannot write to {directory}: {reason}\nhint: run the installer again, as it was run before (with --system for the whole machine)"
    )]
    NotWritable {
        /// Where the binary is.
        directory: PathBuf,
        /// The system's words.
        reason: String,
    },
    /// The binary is somebody else's.
    #[error(
        "{binary} belongs to user {owner}, this process runs as user {me}\nhint: {}",
        other_owner_hint(*.owner)
    )]
    OtherOwner {
        /// The binary.
        binary: PathBuf,
        /// User id.
        owner: u32,
        /// User id.
        me: u32,
    },
    /// The disk is full, or the quota is used up.
    #[error(
        "no space left to write {path}; the installed binary is unchanged\nhint: free some space (about 200 MB) and try again"
    )]
    NoSpace {
        /// What was written.
        path: PathBuf,
    },
    /// The new version did not become healthy.
    #[error(
        "version {version} was not healthy on this machine: {reason}; the installed version goes on\nhint: it is not tried again by itself; `skein update --version {version}` does"
    )]
    TrialFailed {
        /// The version.
        version: Version,
        /// What happened.
        reason: String,
    },
    /// The agent was told to leave while the new version was on trial.
    #[error(
        "the agent was told to leave while version {version} was on trial\nhint: `skein update` tries it again"
    )]
    Left {
        /// The version.
        version: Version,
    },
    /// The new version could not be tried, which was no fault of its own.
    #[error("version {version} cannot be tried now: {reason}\nhint: `skein update` tries it again")]
    NotNow {
        /// The version.
        version: Version,
        /// What is in the way.
        reason: String,
    },
    /// Another process updates this binary, or has this data directory.
    #[error("another update is at work\nhint: wait until it has ended, and try again")]
    Busy,
    /// Somebody else changed the installed binary, or the new one, while a trial ran.
    #[error(
        "{binary} was replaced while the new version was on trial, so nothing was installed\nhint: `skein status` shows which version runs"
    )]
    ChangedMeanwhile {
        /// The binary.
        binary: PathBuf,
    },
    /// There is nothing to go back to.
    #[error(
        "there is no previous version beside {binary}\nhint: `skein update --version V` installs any published version"
    )]
    NoOld {
        /// The binary.
        binary: PathBuf,
    },
    /// A file or directory cannot be read or written.
    #[error("cannot {action} {path}: {source}\nhint: check the disk, and the owner and mode of the path")]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's words.
        source: io::Error,
    },
}

/// What root installed serves an agent that is not root, and which may not replace it.
fn other_owner_hint(owner: u32) -> &'static str {
    match owner {
        0 => "run the installer again as root, with --system if it serves the whole machine",
        _ => "run `skein update` as the user who installed it",
    }
}

/// Turns an error of the system into ours; a full disk and a used-up quota have a message of their own.
pub(crate) fn io_error(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> UpdateError {
    let path = path.to_owned();
    move |source| {
        let full = [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded, io::ErrorKind::FileTooLarge];
        if full.contains(&source.kind()) {
            UpdateError::NoSpace { path }
        } else {
            UpdateError::Io { action, path, source }
        }
    }
}
