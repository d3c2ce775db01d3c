//! Fetches manifests and archives: few bytes, in bounded time, from one server, over TLS.
//!
//! Built on `self_update`: its HTTP client carries our agent, `backends::custom` gets a release source that holds
//! nothing but a verified manifest and chooses version and asset, and its zipsign check runs over the archive. Its
//! own last step, which replaces the binary at once and downloads without a bound, is not used: `swap` does that.
//! Blocking: call it in `smol::unblock`. Must never give out bytes that are not verified.

use std::fs::File;
use std::io::{Read as _, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use self_update::backends::custom;
use self_update::http_client::{HeaderMap, HttpClient as _, UreqClient};
use self_update::{ReleaseAsset, ReleaseSource, http, ureq};
use semver::Version;
use sha2::{Digest as _, Sha256};

use crate::error::{Result, UpdateError, io_error};
use crate::keys::{SIGNATURE_BYTES_MAX, TrustedKeys};
use crate::manifest::{MANIFEST_BYTES_MAX, Manifest, ReleaseFile};
use crate::sign::check_measure;

/// How long the network may take.
#[derive(Clone, Copy, Debug)]
pub struct NetworkLimits {
    /// To connect.
    pub connect: Duration,
    /// Without a byte arriving.
    pub stall: Duration,
    /// For a manifest or a signature as a whole.
    pub manifest: Duration,
    /// For an archive as a whole.
    pub archive: Duration,
}

impl Default for NetworkLimits {
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(15),
            stall: Duration::from_secs(60),
            manifest: Duration::from_secs(60),
            // 20 MB at 64 kbit/s.
            archive: Duration::from_secs(45 * 60),
        }
    }
}

/// A server with releases.
pub(crate) struct Server<'a> {
    base: &'a str,
    loopback: bool,
    limits: NetworkLimits,
}

impl<'a> Server<'a> {
    /// Checks the address: https, or http to this machine.
    pub(crate) fn new(address: &'a str, limits: NetworkLimits) -> Result<Self> {
        let bad = |reason| UpdateError::BadAddress { address: address.chars().take(200).collect(), reason };
        let base = address.trim_end_matches('/');
        let uri: http::Uri = base.parse().map_err(|_| bad("it is not a URL"))?;
        let host = uri.host().unwrap_or("");
        if host.is_empty() || uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err(bad("it needs a host and no user name"));
        }
        if uri.query().is_some() || base.contains('#') {
            return Err(bad("`?` and `#` cannot be part of it"));
        }
        let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        let loopback = host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback());
        match uri.scheme_str() {
            Some("https") => {}
            Some("http") if loopback => {}
            Some("http") => return Err(bad("http is not protected against changes on the way")),
            _ => return Err(bad("it does not begin with https://")),
        }
        Ok(Self { base, loopback, limits })
    }

    /// Fetches and verifies the manifest at `path` (without `.json`).
    pub(crate) fn manifest(&self, path: &str, keys: &TrustedKeys) -> Result<Manifest> {
        // Before anything is asked for: without keys the answer would be worth nothing.
        if keys.is_empty() {
            return Err(UpdateError::NoTrustedKey);
        }
        let mut text = Vec::new();
        let mut signatures = Vec::new();
        let limit = self.limits.manifest;
        self.get(&format!("{path}.json"), MANIFEST_BYTES_MAX as u64, limit, &mut text, &mut |_| {})?;
        self.get(
            &format!("{path}.json.sig"),
            SIGNATURE_BYTES_MAX as u64,
            limit,
            &mut signatures,
            &mut |_| {},
        )?;
        keys.verify(&text, &signatures)?;
        Manifest::parse(&text)
    }

    /// Fetches an archive into `directory` and verifies length, SHA-256 and zipsign's signature.
    pub(crate) fn archive(
        &self,
        version: &Version,
        file: &ReleaseFile,
        keys: &TrustedKeys,
        directory: &Path,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<PathBuf> {
        let path = directory.join(&file.name);
        let mut sink = Hashing {
            file: File::create(&path).map_err(io_error("write", &path))?,
            path: &path,
            hash: Sha256::new(),
            bytes: 0,
            failure: None,
        };
        let fetched = self.get(
            &format!("{version}/{}", file.name),
            file.bytes,
            self.limits.archive,
            &mut sink,
            &mut |done| progress(done.min(file.bytes), file.bytes),
        );
        if let Some(failure) = sink.failure.take() {
            return Err(failure);
        }
        fetched?;
        check_measure(file, sink.bytes, &hex::encode(sink.hash.finalize()))?;
        check_signature(&path, file, keys)?;
        Ok(path)
    }

    /// Copies at most `max` bytes of `BASE/path` into `sink`.
    fn get(
        &self,
        path: &str,
        max: u64,
        limit: Duration,
        sink: &mut dyn Write,
        progress: &mut dyn FnMut(u64),
    ) -> Result<()> {
        let url = format!("{}/{path}", self.base);
        let failed = |reason: String| UpdateError::Network { url: url.clone(), reason };
        let answer = match UreqClient::from(self.agent(limit)).get(&url, &HeaderMap::new(), None) {
            Ok(answer) => answer,
            Err(self_update::Error::NotFound { .. }) => return Err(UpdateError::NotFound(url)),
            Err(error) => return Err(failed(error.to_string())),
        };
        // The body is torn where the connection ends early; the caller compares lengths where it knows one.
        let mut body = answer.body();
        let mut buffer = vec![0; 1 << 16];
        let mut done = 0_u64;
        loop {
            let read = body.read(&mut buffer).map_err(|error| failed(error.to_string()))?;
            if read == 0 {
                return Ok(());
            }
            done += read as u64;
            if done > max {
                return Err(UpdateError::TooLarge { what: url, max });
            }
            sink.write_all(&buffer[..read]).map_err(|error| failed(error.to_string()))?;
            progress(done);
        }
    }

    fn agent(&self, limit: Duration) -> ureq::Agent {
        let mut config = ureq::Agent::config_builder()
            .user_agent(concat!("skein/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .https_only(!self.loopback)
            .http_status_as_error(false)
            .timeout_connect(Some(self.limits.connect))
            .timeout_per_read(Some(self.limits.stall))
            .timeout_global(Some(limit));
        if self.loopback {
            // What is on this machine is not asked for through a proxy, and does not lead elsewhere.
            config = config.proxy(None).max_redirects(0);
        } else {
            config = config.max_redirects(5);
        }
        config.build().into()
    }
}

fn check_signature(path: &Path, file: &ReleaseFile, keys: &TrustedKeys) -> Result<()> {
    // An empty list of keys would pass; `manifest` has refused that, and this must not depend on it.
    if keys.is_empty() {
        return Err(UpdateError::NoTrustedKey);
    }
    self_update::verify_signature(path, &keys.raw()).map_err(|error| UpdateError::BadArchiveSignature {
        name: file.name.clone(),
        reason: error.to_string(),
    })
}

/// Takes an archive that was fetched before into `directory`, if it is there and passes every check of a new one.
pub(crate) fn kept_archive(
    kept: &Path,
    file: &ReleaseFile,
    keys: &TrustedKeys,
    directory: &Path,
) -> Option<PathBuf> {
    let path = directory.join(&file.name);
    std::fs::rename(kept, &path).ok()?;
    let mut hash = Sha256::new();
    let mut content = File::open(&path).ok()?.take(file.bytes + 1);
    let bytes = std::io::copy(&mut content, &mut hash).ok()?;
    check_measure(file, bytes, &hex::encode(hash.finalize())).ok()?;
    check_signature(&path, file, keys).ok()?;
    Some(path)
}

/// The newest release that `self_update` finds in a verified manifest, if it is newer than `current`.
pub(crate) fn newer(manifest: &Manifest, base: &str, target: &str, current: &Version) -> Result<bool> {
    let bad = |error: self_update::Error| UpdateError::BadManifest(error.to_string());
    let mut release = self_update::Release::builder();
    release.version(manifest.version.to_string()).date(manifest.released_at.clone());
    if let Some(file) = manifest.archive(target) {
        let url = format!("{}/{}/{}", base.trim_end_matches('/'), manifest.version, file.name);
        release.asset(ReleaseAsset::new(&file.name, url).with_digest(format!("sha256:{}", file.sha256)));
    }
    let source = Verified(release.build().map_err(bad)?);
    let update = custom::Update::configure()
        .source(source)
        .bin_name("skein")
        .target(target)
        .current_version(current.to_string())
        .unattended()
        .build()
        .map_err(bad)?;
    Ok(update.is_update_available().map_err(bad)?.is_some())
}

/// A release source that knows one release: the one whose signature was checked.
struct Verified(self_update::Release);

impl ReleaseSource for Verified {
    fn get_releases(&self) -> self_update::Result<Vec<self_update::Release>> {
        Ok(vec![self.0.clone()])
    }
}

/// Writes to a file, counts and hashes on the way, and keeps the error of a full disk apart from the network's.
struct Hashing<'a> {
    file: File,
    path: &'a Path,
    hash: Sha256,
    bytes: u64,
    failure: Option<UpdateError>,
}

impl Write for Hashing<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if let Err(error) = self.file.write_all(bytes) {
            self.failure = Some(io_error("write", self.path)(error));
            return Err(std::io::Error::other("the disk"));
        }
        self.hash.update(bytes);
        self.bytes += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_protected_addresses_are_asked() {
        let limits = NetworkLimits::default();
        for good in [
            "https://releases.example.org",
            "https://releases.example.org/skein/",
            "http://127.0.0.1:8080",
            "http://127.8.8.8/a",
            "http://[::1]:80",
            "http://localhost:1",
        ] {
            assert!(Server::new(good, limits).is_ok(), "{good}");
        }
        for bad in [
            "http://releases.example.org",
            "http://127.0.0.1.example.org",
            "http://localhost.example.org",
            "http://127.0.0.1@example.org",
            "https://user@example.org",
            "https://example.org/?a",
            "https://example.org/#a",
            "ftp://example.org",
            "file:///etc",
            "example.org",
            "",
        ] {
            assert!(matches!(Server::new(bad, limits), Err(UpdateError::BadAddress { .. })), "{bad}");
        }
    }

    #[test]
    fn self_update_agrees_on_what_is_newer() {
        let manifest = |version: &str| Manifest {
            version: Version::parse(version).unwrap(),
            released_at: "2026-11-23T00:00:00Z".to_owned(),
            files: Vec::new(),
        };
        let order = ["0.1.0", "0.2.0-beta.1", "0.2.0-beta.2", "0.2.0-beta.10", "0.2.0", "0.10.0", "1.0.0"];
        for (place, offered) in order.iter().enumerate() {
            for (mine, current) in order.iter().enumerate() {
                let current = Version::parse(current).unwrap();
                let found = newer(&manifest(offered), "https://a.example", "any", &current).unwrap();
                assert_eq!(found, place > mine, "{offered} over {current}");
            }
        }
    }
}
