//! One configuration, parsed once: `config.toml`, then the environment, then flags.
//!
//! Everything after this file works with [`Config`] and never looks at a file, variable or flag again.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail};
use ed25519_dalek::VerifyingKey;
use serde::Deserialize;
use skein_mesh::PeerAddress;
use skein_proto::genesis::Genesis;
use skein_proto::ids::NodeId;

use crate::cli::UpArgs;
use crate::limits::RIG_NAME_CHARS_MAX;

const LISTEN_DEFAULT: &str = "0.0.0.0:7310";
const DISK_BYTES_DEFAULT: u64 = 64 << 30;
const API_DEFAULT: &str = "127.0.0.1:7311";

/// What an agent was told.
#[derive(Debug, Clone)]
pub(crate) struct Config {
    pub(crate) data_dir: PathBuf,
    /// Nobody sits at this machine: no tray, and no rule about an owner's use of it.
    pub(crate) headless: bool,
    pub(crate) listen: SocketAddr,
    /// Where others are told to reach this agent, if not where it listens.
    pub(crate) advertise: Option<SocketAddr>,
    pub(crate) api: SocketAddr,
    pub(crate) bootstrap: Vec<PeerAddress>,
    pub(crate) genesis: Genesis,
    /// Of each device.
    pub(crate) memory_bytes: Option<u64>,
    /// Most that blobs may take on disk.
    pub(crate) disk_bytes: u64,
    /// The devices that the owner named; none for all that are worth it.
    pub(crate) devices: Vec<String>,
    pub(crate) threads: usize,
    /// Where earnings are to go.
    pub(crate) payout: Option<String>,
    /// Whose orders from afar this agent obeys.
    pub(crate) owner: Option<NodeId>,
    /// What its owner's fleet calls it.
    pub(crate) name: String,
    pub(crate) update: UpdateConfig,
}

/// From where newer versions come.
#[derive(Debug, Clone)]
pub(crate) struct UpdateConfig {
    /// None in a build that was told of no place.
    pub(crate) url: Option<String>,
    /// `stable`, `beta`, or `off` for none without being asked.
    pub(crate) channel: String,
    /// In hexadecimal, instead of those that the build trusts.
    pub(crate) keys: Option<Vec<String>>,
}

/// `config.toml`: the same keys as the flags of `skein up`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    #[serde(default)]
    headless: bool,
    listen: Option<String>,
    advertise: Option<SocketAddr>,
    api: Option<String>,
    bootstrap: Option<Vec<String>>,
    network: Option<PathBuf>,
    memory: Option<u64>,
    disk: Option<u64>,
    device: Option<Names>,
    threads: Option<usize>,
    update_url: Option<String>,
    update_channel: Option<String>,
    update_keys: Option<Vec<String>>,
    payout: Option<String>,
    owner: Option<String>,
    name: Option<String>,
}

/// One name, or a list of them.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Names {
    One(String),
    Several(Vec<String>),
}

impl Config {
    /// Merges file and flags (clap has merged the environment into the flags already).
    ///
    /// # Errors
    /// Names the file and key that cannot be used.
    pub(crate) fn load(args: UpArgs) -> Result<Self> {
        let data_dir = data_dir(args.data_dir)?;
        let path = data_dir.join("config.toml");
        let file: File = match std::fs::read_to_string(&path) {
            Ok(text) => toml::from_str(&text).with_context(|| {
                format!(
                    "{} is not a valid configuration\nhint: mend the line named below, or move the file away",
                    path.display()
                )
            })?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => File::default(),
            Err(error) => {
                return Err(error).with_context(|| {
                    format!(
                        "cannot read {}\nhint: mend it, or choose another data directory by --data-dir",
                        path.display()
                    )
                });
            }
        };
        let bootstrap = if args.bootstrap.is_empty() {
            let listed = file.bootstrap.unwrap_or_default();
            listed
                .iter()
                .map(|text| text.parse().map_err(|error| anyhow!("bootstrap in {}: {error}", path.display())))
                .collect::<Result<_>>()?
        } else {
            args.bootstrap
        };
        let devices = match file.device {
            _ if !args.device.is_empty() => args.device,
            None => Vec::new(),
            Some(Names::One(name)) => vec![name],
            Some(Names::Several(names)) => names,
        };
        let bad =
            |key: &str, text: &str, why: String| anyhow!("{key} = \"{text}\" in {}: {why}", path.display());
        let owner = match (args.owner, file.owner) {
            (None, Some(text)) => Some(owner_key(&text).map_err(|why| bad("owner", &text, why))?),
            (given, _) => given,
        };
        let name = match (args.name, file.name) {
            (None, Some(text)) => Some(rig_name(&text).map_err(|why| bad("name", &text, why))?),
            (given, _) => given,
        };
        Ok(Self {
            listen: address(args.listen, file.listen.as_deref(), LISTEN_DEFAULT, "listen")?,
            api: address(args.api, file.api.as_deref(), API_DEFAULT, "api")?,
            bootstrap,
            genesis: genesis(args.network.or(file.network).as_deref())?,
            advertise: args.advertise.or(file.advertise),
            memory_bytes: args.memory.or(file.memory),
            disk_bytes: args.disk.or(file.disk).unwrap_or(DISK_BYTES_DEFAULT),
            devices,
            threads: args.threads.or(file.threads).unwrap_or(0),
            headless: args.headless || file.headless,
            payout: file.payout,
            owner,
            name: name.or_else(host_name).unwrap_or_else(|| "unnamed".to_owned()),
            update: UpdateConfig {
                url: file.update_url.or_else(|| built_for().map(str::to_owned)),
                channel: file.update_channel.unwrap_or_else(|| "stable".to_owned()),
                keys: file.update_keys,
            },
            data_dir,
        })
    }
}

/// Where this build looks for updates: what is published was built with its own server's address.
fn built_for() -> Option<&'static str> {
    option_env!("SKEIN_RELEASES").filter(|url| !url.is_empty())
}

/// An owner's public key, as `skein fleet key` prints it.
///
/// # Errors
/// When it is none, with what to do.
pub(crate) fn owner_key(text: &str) -> Result<NodeId, String> {
    let hint = "hint: `skein fleet key` on the owner's machine prints it, 64 hexadecimal digits";
    let key: NodeId = text.parse().map_err(|_| format!("this is no owner's key\n{hint}"))?;
    match VerifyingKey::from_bytes(&key.0) {
        // For a key of small order anybody can sign.
        Ok(point) if !point.is_weak() => Ok(key),
        Ok(_) | Err(_) => Err(format!("nobody can have a key of these digits\n{hint}")),
    }
}

/// What a rig may be called.
///
/// # Errors
/// When it cannot, with what to do.
pub(crate) fn rig_name(text: &str) -> Result<String, String> {
    if text.is_empty() || text != crate::fleet::plain(text, RIG_NAME_CHARS_MAX) || text.trim() != text {
        return Err(format!(
            "this is no name\nhint: write 1 to {RIG_NAME_CHARS_MAX} letters, digits or signs"
        ));
    }
    Ok(text.to_owned())
}

fn host_name() -> Option<String> {
    let name = crate::fleet::plain(sysinfo::System::host_name()?.trim(), RIG_NAME_CHARS_MAX);
    (!name.is_empty()).then_some(name)
}

/// The directory given, or the platform's usual place.
///
/// # Errors
/// When there is no home directory to derive it from.
pub(crate) fn data_dir(given: Option<PathBuf>) -> Result<PathBuf> {
    if let Some(dir) = given {
        // The worker and its tasks have another working directory.
        return std::path::absolute(&dir).with_context(|| format!("{} is no directory", dir.display()));
    }
    let from = |variable: &str, below: &[&str]| {
        let base = std::env::var_os(variable).filter(|value| !value.is_empty())?;
        Some(below.iter().fold(PathBuf::from(base), |path, part| path.join(part)))
    };
    from("XDG_DATA_HOME", &["skein"])
        .or_else(|| from("LOCALAPPDATA", &["skein"]))
        .or_else(|| from("HOME", &[".local", "share", "skein"]))
        .context("no home directory to keep data in\nhint: pass --data-dir DIR")
}

fn address(flag: Option<SocketAddr>, file: Option<&str>, default: &str, key: &str) -> Result<SocketAddr> {
    if let Some(address) = flag {
        return Ok(address);
    }
    let text = file.unwrap_or(default);
    text.parse().with_context(|| {
        format!("{key} = `{text}` is not an address\nhint: write IP:PORT, such as {default}")
    })
}

/// The genesis in `path`, or that of the built-in test network.
///
/// # Errors
/// Names the file and what is wrong in it.
pub(crate) fn genesis(path: Option<&Path>) -> Result<Genesis> {
    let genesis = match path {
        Some(path) => {
            let text = std::fs::read_to_string(path).with_context(|| {
                format!(
                    "cannot read the network's genesis {}\nhint: --network names the file that the network's founder gave out",
                    path.display()
                )
            })?;
            toml::from_str(&text).with_context(|| {
                format!(
                    "{} is not a genesis file\nhint: it has the keys name, policy, started_at_ms and epoch_ms",
                    path.display()
                )
            })?
        }
        None => Genesis {
            name: "skein-test".into(),
            policy: "io".into(),
            // 2026-01-01 00:00 UTC, on the hour, so that epochs are hours of the clock.
            started_at_ms: 1_767_225_600_000,
            epoch_ms: 3_600_000,
        },
    };
    if let Err(error) = genesis.validate() {
        let place = path.map_or("the built-in genesis".into(), |path| path.display().to_string());
        bail!(
            "{place}: {error}\nhint: fetch the file again from the network's founder; every agent needs the same"
        );
    }
    Ok(genesis)
}
