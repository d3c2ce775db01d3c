//! What the tests of updates share: a server on loopback, releases made of shell scripts, a machine to update.
//!
//! Releases are built by the library's own signing; whether that is right is judged by foreign tools in `foreign`.

#![expect(clippy::unwrap_used, reason = "clippy takes helpers of tests for the product")]
#![expect(dead_code, reason = "each test file uses a part")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use ed25519_dalek::{Signer as _, SigningKey};
use skein_update::manifest::{Manifest, ReleaseFile};
use skein_update::{
    Health, NetworkLimits, Proven, Result, Staged, TrustedKeys, Updater, Version, keys, sign,
};

pub(crate) const TARGET: &str = "x86_64-unknown-linux-gnu";
pub(crate) const OLD: &str = "#!/bin/sh\necho version 0.1.0\n";

/// How long a version on trial must stay healthy here.
pub(crate) const STEADY: Duration = Duration::from_millis(300);

/// A release that works: says its version where it is told to, and ends when its standard input ends.
pub(crate) fn good(version: &str) -> String {
    format!("#!/bin/sh\necho {version} > \"$1.part\"\nmv \"$1.part\" \"$1\"\nexec cat > /dev/null\n")
}

pub(crate) fn key(seed: u8) -> SigningKey {
    SigningKey::from_bytes(&[seed; 32])
}

pub(crate) fn trust(seeds: &[u8]) -> TrustedKeys {
    TrustedKeys::from_hex(seeds.iter().map(|&seed| hex::encode(key(seed).verifying_key()))).unwrap()
}

pub(crate) fn version(text: &str) -> Version {
    Version::parse(text).unwrap()
}

/// What the server answers instead of a file.
#[derive(Clone)]
pub(crate) enum Answer {
    /// These bytes.
    Bytes(Vec<u8>),
    /// The right length, but only so many bytes.
    Cut(usize),
    /// Zeros without an end.
    Endless,
    /// Nothing but single bytes, now and then, without an end.
    Drip,
    /// Nothing, with the connection left open.
    Silence,
    /// Go elsewhere.
    Redirect(String),
}

/// Serves a directory on loopback.
pub(crate) struct Server {
    pub(crate) url: String,
    pub(crate) root: PathBuf,
    answers: Arc<Mutex<BTreeMap<String, Answer>>>,
    asked: Arc<Mutex<Vec<String>>>,
    _folder: Option<tempfile::TempDir>,
}

impl Server {
    pub(crate) fn start() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().to_owned();
        Self { _folder: Some(folder), ..Self::serve(root) }
    }

    pub(crate) fn serve(root: PathBuf) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let answers: Arc<Mutex<BTreeMap<String, Answer>>> = Arc::default();
        let asked: Arc<Mutex<Vec<String>>> = Arc::default();
        let (shared, files, heard) = (Arc::clone(&answers), root.clone(), Arc::clone(&asked));
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(std::result::Result::ok) {
                let (shared, files, heard) = (Arc::clone(&shared), files.clone(), Arc::clone(&heard));
                std::thread::spawn(move || {
                    let _ = serve_one(stream, &files, &shared, &heard);
                });
            }
        });
        Self { url, root, answers, asked, _folder: None }
    }

    /// How often an archive was asked for.
    pub(crate) fn archives_asked(&self) -> usize {
        self.asked.lock().unwrap().iter().filter(|path| path.ends_with(".tar.gz")).count()
    }

    pub(crate) fn answer(&self, path: &str, answer: Answer) {
        self.answers.lock().unwrap().insert(path.to_owned(), answer);
    }

    /// Publishes files as a release in channel `stable`, signed by `seeds`.
    pub(crate) fn publish(&self, version: &str, archive: &[u8], seeds: &[u8]) -> Manifest {
        let name = archive_name(version);
        let directory = self.root.join(version);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(&name), archive).unwrap();
        let keys: Vec<_> = seeds.iter().map(|&seed| key(seed)).collect();
        let parsed = Version::parse(version).unwrap();
        let manifest = sign::sign_release(&directory, &keys, &parsed, "2026-11-23T00:00:00Z").unwrap();
        self.point("stable", version);
        manifest
    }

    /// Publishes an archive that the library would not sign in this form: only the manifest is signed.
    pub(crate) fn publish_by_hand(
        &self,
        version: &str,
        archive: &[u8],
        seed: u8,
        change: impl Fn(&mut ReleaseFile),
    ) {
        let name = archive_name(version);
        let directory = self.root.join(version);
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(&name), archive).unwrap();
        let mut file = ReleaseFile {
            name,
            target: TARGET.to_owned(),
            kind: "archive".to_owned(),
            bytes: archive.len() as u64,
            sha256: hex::encode(<sha2::Sha256 as sha2::Digest>::digest(archive)),
        };
        change(&mut file);
        let parsed = Version::parse(version).unwrap();
        let manifest =
            Manifest { version: parsed, released_at: "2026-11-23T00:00:00Z".to_owned(), files: vec![file] };
        let text = manifest.encode();
        let (id, signature) = (keys::key_id(&key(seed).verifying_key()), key(seed).sign(text.as_bytes()));
        use base64::Engine as _;
        let signature = base64::prelude::BASE64_STANDARD.encode(signature.to_bytes());
        fs::write(directory.join("manifest.json"), text).unwrap();
        fs::write(directory.join("manifest.json.sig"), format!("ed25519 {id} {signature}\n")).unwrap();
        self.point("stable", version);
    }

    pub(crate) fn point(&self, channel: &str, version: &str) {
        for end in ["json", "json.sig"] {
            let from = self.root.join(version).join(format!("manifest.{end}"));
            fs::copy(from, self.root.join(format!("{channel}.{end}"))).unwrap();
        }
    }
}

fn serve_one(
    stream: TcpStream,
    root: &Path,
    answers: &Mutex<BTreeMap<String, Answer>>,
    asked: &Mutex<Vec<String>>,
) -> std::io::Result<()> {
    let mut reader = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    reader.read_line(&mut line)?;
    let path = line.split(' ').nth(1).unwrap_or("/").trim_start_matches('/').to_owned();
    while reader.read_line(&mut line)? > 2 {}
    asked.lock().unwrap().push(path.clone());
    let mut stream = stream;
    let special = answers.lock().unwrap().get(&path).cloned();
    let file = fs::read(root.join(&path));
    let ok =
        |length: usize| format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n");
    match (special, file) {
        (Some(Answer::Bytes(bytes)), _) | (None, Ok(bytes)) => {
            stream.write_all(ok(bytes.len()).as_bytes())?;
            stream.write_all(&bytes)
        }
        (Some(Answer::Cut(length)), Ok(bytes)) => {
            stream.write_all(ok(bytes.len()).as_bytes())?;
            stream.write_all(&bytes[..length])
        }
        (Some(Answer::Endless), _) => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")?;
            loop {
                stream.write_all(&[0; 4096])?;
            }
        }
        (Some(Answer::Drip), _) => {
            stream.write_all(b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")?;
            loop {
                stream.write_all(&[0])?;
                std::thread::sleep(Duration::from_millis(20));
            }
        }
        (Some(Answer::Silence), _) => {
            // Ends when the client closes.
            reader.read_line(&mut line).map(|_| ())
        }
        (Some(Answer::Redirect(to)), _) => write!(
            stream,
            "HTTP/1.1 302 Found\r\nlocation: {to}\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"
        ),
        (Some(Answer::Cut(_)) | None, Err(_)) => {
            stream.write_all(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\nconnection: close\r\n\r\n")
        }
    }
}

pub(crate) fn archive_name(version: &str) -> String {
    format!("skein-{version}-{TARGET}.tar.gz")
}

/// One entry of a tar archive; the name may be a wicked one.
pub(crate) struct Entry<'a> {
    pub(crate) name: &'a str,
    pub(crate) kind: tar::EntryType,
    pub(crate) bytes: &'a [u8],
}

pub(crate) fn file<'a>(name: &'a str, text: &'a str) -> Entry<'a> {
    Entry { name, kind: tar::EntryType::Regular, bytes: text.as_bytes() }
}

pub(crate) fn tar_gz(entries: &[Entry<'_>]) -> Vec<u8> {
    let mut tar =
        tar::Builder::new(flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default()));
    for entry in entries {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(entry.kind);
        header.set_mode(0o755);
        header.set_size(0);
        // Written raw: the library that writes archives refuses the names that must be refused when reading.
        header.as_old_mut().name[..entry.name.len()].copy_from_slice(entry.name.as_bytes());
        if entry.kind == tar::EntryType::Regular {
            header.set_size(entry.bytes.len() as u64);
            header.set_cksum();
            tar.append(&header, entry.bytes).unwrap();
        } else {
            header.as_old_mut().linkname[..entry.bytes.len()].copy_from_slice(entry.bytes);
            header.set_cksum();
            tar.append(&header, std::io::empty()).unwrap();
        }
    }
    tar.into_inner().unwrap().finish().unwrap()
}

/// An archive as releases have it, with this binary.
pub(crate) fn archive(version: &str, binary: &str) -> Vec<u8> {
    let top = format!("skein-{version}-{TARGET}");
    tar_gz(&[
        file(&format!("{top}/LICENSE"), "Apache-2.0"),
        file(&format!("{top}/skein"), binary),
        file(&format!("{top}/README.md"), "hello"),
    ])
}

/// A machine with an installed 0.1.0.
pub(crate) struct Machine {
    pub(crate) bin: PathBuf,
    pub(crate) data: PathBuf,
    _folder: Option<tempfile::TempDir>,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let machine = Self::at(folder.path());
        fs::create_dir(&machine.bin).unwrap();
        fs::create_dir(&machine.data).unwrap();
        machine.install(OLD);
        Self { _folder: Some(folder), ..machine }
    }

    pub(crate) fn at(folder: &Path) -> Self {
        Self { bin: folder.join("bin"), data: folder.join("data"), _folder: None }
    }

    pub(crate) fn folder(&self) -> &Path {
        self.bin.parent().unwrap()
    }

    pub(crate) fn install(&self, text: &str) {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.bin.join("skein");
        let part = self.bin.join("skein.part");
        fs::write(&part, text).unwrap();
        fs::set_permissions(&part, fs::Permissions::from_mode(0o755)).unwrap();
        fs::rename(&part, path).unwrap();
    }

    pub(crate) fn updater(&self, url: &str, trusted: &[u8]) -> Updater {
        Updater {
            base_url: url.to_owned(),
            channel: "stable".to_owned(),
            keys: trust(trusted),
            target: TARGET.to_owned(),
            current_version: Version::new(0, 1, 0),
            binary: self.bin.join("skein"),
            data_dir: self.data.clone(),
            network: NetworkLimits::default(),
            on_step: None,
        }
    }

    pub(crate) fn installed(&self) -> String {
        fs::read_to_string(self.bin.join("skein")).unwrap()
    }

    /// The names in the directory of the binary.
    pub(crate) fn names(&self) -> Vec<String> {
        let mut names: Vec<_> = fs::read_dir(&self.bin)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// That nothing has changed and nothing is left over.
    pub(crate) fn assert_untouched(&self) {
        assert_eq!(self.installed(), OLD);
        assert_eq!(self.names(), ["skein"]);
        assert!(!self.data.join("update-download").exists());
    }

    pub(crate) fn health_file(&self) -> PathBuf {
        self.data.join("healthy")
    }
}

/// Runs the trial as the daemon does, with a file in the place of the API.
pub(crate) fn trial(machine: &Machine, staged: Staged, limit: Duration) -> Result<Proven> {
    let path = machine.health_file();
    let _ = fs::remove_file(&path);
    let wanted = staged.version().to_string();
    let mut command = staged.command();
    command.arg(&path);
    let mut health = || match fs::read_to_string(&path) {
        Ok(text) if text.trim() == wanted => Health::Good,
        Ok(text) => Health::Missing(format!("it says it is {}", text.trim())),
        Err(_) => Health::Missing("its API does not answer".to_owned()),
    };
    staged.trial(command, &mut health, limit, STEADY)
}

/// Waits for a condition that another process brings about.
pub(crate) fn wait_until(what: &str, mut condition: impl FnMut() -> bool) {
    let start = Instant::now();
    while !condition() {
        assert!(start.elapsed() < Duration::from_secs(20), "in vain: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}
