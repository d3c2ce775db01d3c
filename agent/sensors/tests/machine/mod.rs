//! A machine made of files, for tests: nothing of the real one is read unless a test says so.
#![expect(dead_code, unreachable_pub, reason = "each test file uses a part of it")]

use std::collections::BTreeSet;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use skein_sensors::{Config, Places, Readings, Sensors};

/// The longest wait for anything.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The longest that a reading may take: a second by promise, and what a busy machine adds.
pub const READING_MAX: Duration = Duration::from_secs(4);

/// A root of files and the places in it.
pub struct Machine {
    pub dir: tempfile::TempDir,
    pub places: Places,
}

impl Machine {
    /// No display, no bus, no library, no files.
    pub fn bare() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let places = Places {
            root: dir.path().to_owned(),
            system_bus: Some("unix:path=/nonexistent/system".to_owned()),
            session_bus: Some("unix:path=/nonexistent/session".to_owned()),
            x11_displays: Some(Vec::new()),
            wayland_sockets: Some(Vec::new()),
            nvml: Some(PathBuf::from("/nonexistent/libnvidia-ml.so.1")),
        };
        Self { dir, places }
    }

    pub fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    /// Writes a file and the directories above it.
    pub fn write(&self, path: &str, text: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    /// Writes several files of one directory: `name text` lines.
    pub fn files(&self, dir: &str, lines: &str) {
        for line in lines.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let (name, text) = line.split_once(' ').unwrap();
            self.write(&format!("{dir}/{name}"), &format!("{text}\n"));
        }
    }

    pub fn link(&self, path: &str, target: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        symlink(target, path).unwrap();
    }

    pub fn config(&self, own: &[u32]) -> Config {
        let own: BTreeSet<u32> = own.iter().copied().collect();
        let mut config = Config::new(self.dir.path().to_owned(), Arc::new(move || own.clone()));
        config.places = self.places.clone();
        config
    }

    pub fn sensors(&self) -> Sensors {
        Sensors::new(self.config(&[]))
    }
}

/// Reads once, within the time that is promised.
pub fn read(sensors: &mut Sensors) -> Readings {
    let began = Instant::now();
    let readings = sensors.read();
    assert!(began.elapsed() < READING_MAX, "the reading took {:?}", began.elapsed());
    readings
}

/// Reads until something is so.
pub fn until(sensors: &mut Sensors, what: &str, so: impl Fn(&Readings) -> bool) -> Readings {
    let began = Instant::now();
    loop {
        let readings = read(sensors);
        if so(&readings) {
            return readings;
        }
        assert!(began.elapsed() < PATIENCE, "{what}: {readings:?}");
        std::thread::park_timeout(Duration::from_millis(50));
    }
}

/// A program of the test, ended with it.
pub struct Program(pub Child);

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Starts a program that says one line about itself; none, loudly, if it is not installed.
pub fn start(name: &str, arguments: &[&str]) -> Option<(Program, String)> {
    let spawned = Command::new(name).args(arguments).stdout(Stdio::piped()).stderr(Stdio::null()).spawn();
    let Ok(mut child) = spawned else {
        skipped(name);
        return None;
    };
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    Some((Program(child), line.trim().to_owned()))
}

/// Whether a program is installed; says so loudly if not.
pub fn installed(name: &str) -> bool {
    let places = std::env::var_os("PATH").unwrap_or_default();
    let there = std::env::split_paths(&places).any(|place| Path::new(&place).join(name).exists());
    if !there {
        skipped(name);
    }
    there
}

/// Past what the test runner keeps to itself.
fn skipped(name: &str) {
    let _ = writeln!(std::io::stderr(), "SKIPPED: {name} is not installed, so a test tests nothing");
}
