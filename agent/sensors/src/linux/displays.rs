//! Where the displays of this machine's sessions are, and the cookies that open X11's.
//!
//! A service has no DISPLAY. What is known comes from our own environment, from the environments of the owner's
//! programs (`processes`), and from the places where display managers put sockets and cookies.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use super::{bounded, runtime_dirs};
use crate::Places;

/// More displays than anybody has.
pub(crate) const DISPLAYS_MAX: usize = 8;
const HINTS_MAX: usize = 64;
const COOKIE_FILES_MAX: usize = 64;
const COOKIES_MAX: usize = 8;

/// What the environments of the owner's programs say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Hints {
    pub(crate) x11: BTreeSet<u32>,
    pub(crate) cookie_files: BTreeSet<PathBuf>,
    pub(crate) wayland: BTreeSet<PathBuf>,
    /// A server of X11 displays runs.
    pub(crate) x_server: bool,
}

impl Hints {
    /// Learns from one variable of an environment; `runtime_dir` is that environment's.
    pub(crate) fn learn(&mut self, name: &str, value: &str, runtime_dir: Option<&str>) {
        if value.len() > 512 {
            return;
        }
        if self.x11.len() + self.cookie_files.len() + self.wayland.len() > HINTS_MAX {
            // Those of sessions that are long gone; the living ones are learnt again.
            *self = Self { x_server: self.x_server, ..Self::default() };
        }
        match name {
            "DISPLAY" => self.x11.extend(number(value)),
            "XAUTHORITY" if value.starts_with('/') => {
                self.cookie_files.insert(PathBuf::from(value));
            }
            "WAYLAND_DISPLAY" if value.starts_with('/') => {
                self.wayland.insert(PathBuf::from(value));
            }
            "WAYLAND_DISPLAY" => self.wayland.extend(runtime_dir.map(|dir| Path::new(dir).join(value))),
            _ => {}
        }
    }
}

/// The number of a display on this machine: `:1`, `:1.0`, `unix:1`. Forwarded displays (`localhost:10.0`) are not its.
fn number(display: &str) -> Option<u32> {
    let rest = display.strip_prefix("unix").unwrap_or(display).strip_prefix(':')?;
    rest.split('.').next()?.parse().ok()
}

/// The X11 displays to ask.
pub(crate) fn x11(places: &Places, hints: &Hints) -> Vec<u32> {
    if let Some(displays) = &places.x11_displays {
        return displays.clone();
    }
    if !hints.x_server && !wayland(places, hints).is_empty() {
        // A Wayland desktop starts Xwayland for whoever asks its X11 display; it shall not be us.
        return Vec::new();
    }
    let mut found = hints.x11.clone();
    found.extend(std::env::var("DISPLAY").ok().as_deref().and_then(number));
    let sockets = std::fs::read_dir(places.root.join("tmp/.X11-unix"));
    let names =
        sockets.into_iter().flatten().flatten().filter_map(|entry| entry.file_name().into_string().ok());
    found.extend(names.take(64).filter_map(|name| name.strip_prefix('X')?.parse::<u32>().ok()));
    found.into_iter().take(DISPLAYS_MAX).collect()
}

/// The Wayland sockets to ask.
pub(crate) fn wayland(places: &Places, hints: &Hints) -> Vec<PathBuf> {
    if let Some(sockets) = &places.wayland_sockets {
        return sockets.clone();
    }
    let mut found = hints.wayland.clone();
    if let Ok(display) = std::env::var("WAYLAND_DISPLAY") {
        let dir = std::env::var("XDG_RUNTIME_DIR").unwrap_or_default();
        found.insert(Path::new(&dir).join(display));
    }
    for dir in runtime_dirs(&places.root) {
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().take(1024);
        found.extend(entries.map(|entry| entry.path()).filter(|path| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            name.starts_with("wayland-") && !name.ends_with(".lock")
        }));
    }
    found.into_iter().take(DISPLAYS_MAX).collect()
}

/// Cookies that may open a display, likeliest first; each is tried once.
pub(crate) fn cookies(places: &Places, hints: &Hints, display: u32) -> Vec<Vec<u8>> {
    let mut files: Vec<PathBuf> = Vec::new();
    files.extend(std::env::var_os("XAUTHORITY").map(PathBuf::from));
    files.extend(hints.cookie_files.iter().cloned());
    files.extend(std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".Xauthority")));
    for dir in runtime_dirs(&places.root) {
        files.push(dir.join("gdm/Xauthority"));
        let entries = std::fs::read_dir(dir).into_iter().flatten().flatten().take(1024);
        files.extend(entries.map(|entry| entry.path()).filter(|path| cookie_file(path)));
    }
    let temporary = std::fs::read_dir(places.root.join("tmp")).into_iter().flatten().flatten().take(1024);
    files.extend(temporary.map(|entry| entry.path()).filter(|path| cookie_file(path)));
    files.push(places.root.join(format!("run/lightdm/root/:{display}")));
    let mut cookies = Vec::new();
    for file in files.iter().take(COOKIE_FILES_MAX) {
        for cookie in cookies_in(&bounded(file, 64 << 10), display) {
            if !cookies.contains(&cookie) && cookies.len() < COOKIES_MAX {
                cookies.push(cookie);
            }
        }
    }
    cookies
}

/// Where KWin and Mutter, SDDM and Xwayland leave their cookies.
fn cookie_file(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.starts_with("xauth_") || name.starts_with(".mutter-Xwaylandauth.")
}

/// The MIT cookies for one display in a file of cookies (Xau(3)): family, address, number, name, data.
fn cookies_in(mut bytes: &[u8], display: u32) -> Vec<Vec<u8>> {
    let number = display.to_string();
    let mut cookies = Vec::new();
    loop {
        let Some((_family, rest)) = bytes.split_at_checked(2) else { return cookies };
        bytes = rest;
        let mut fields: [&[u8]; 4] = [&[]; 4];
        for field in &mut fields {
            let Some((length, rest)) = bytes.split_first_chunk::<2>() else { return cookies };
            let Some((text, rest)) = rest.split_at_checked(usize::from(u16::from_be_bytes(*length))) else {
                return cookies;
            };
            *field = text;
            bytes = rest;
        }
        let [_address, for_display, name, data] = fields;
        let ours = for_display.is_empty() || for_display == number.as_bytes();
        if ours && name == b"MIT-MAGIC-COOKIE-1" && data.len() == 16 && cookies.len() < COOKIES_MAX {
            cookies.push(data.to_vec());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{cookies_in, number};

    #[test]
    fn displays_of_this_machine_and_no_others() {
        assert_eq!(number(":0"), Some(0));
        assert_eq!(number(":1.0"), Some(1));
        assert_eq!(number("unix:2"), Some(2));
        assert_eq!(number("localhost:10.0"), None);
        assert_eq!(number("junk"), None);
    }

    #[test]
    fn cookies_are_read_and_a_torn_file_is_no_harm() {
        let mut file = Vec::new();
        for (display, cookie) in [("0", 1_u8), ("1", 2)] {
            file.extend([1, 0]);
            for field in [b"host".as_slice(), display.as_bytes(), b"MIT-MAGIC-COOKIE-1", &[cookie; 16]] {
                file.extend(u16::try_from(field.len()).unwrap().to_be_bytes());
                file.extend(field);
            }
        }
        assert_eq!(cookies_in(&file, 1), vec![vec![2; 16]]);
        for cut in 0..file.len() {
            assert!(cookies_in(&file[..cut], 1).is_empty());
        }
    }
}
