//! X11: how long ago the last input was, and which window fills a screen.
//!
//! Connections stay open between readings. Nothing is selected, grabbed or changed on a display.

use std::collections::BTreeMap;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixStream};
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use x11rb::connection::{Connection, RequestConnection};
use x11rb::errors::ReplyError;
use x11rb::protocol::randr::{self, ConnectionExt as _};
use x11rb::protocol::res::{self, ConnectionExt as _};
use x11rb::protocol::screensaver::{self, ConnectionExt as _};
use x11rb::protocol::xproto::{Atom, AtomEnum, ConnectionExt as _, MapState, Window};
use x11rb::rust_connection::{DefaultStream, RustConnection};

use super::displays::{self, Hints};
use super::locked;
use super::processes::program_name;
use crate::{Places, shown};

/// A display that let nobody in is asked again after so long.
const RETRY: Duration = Duration::from_secs(30);
/// More windows than a desktop has.
const WINDOWS_MAX: usize = 512;
/// More monitors than a desktop has.
const MONITORS_MAX: usize = 64;

/// Programs that fill the screen because nobody is there.
const LOCKERS: [&str; 12] = [
    "xscreensaver",
    "i3lock",
    "slock",
    "xsecurelock",
    "swaylock",
    "kscreenlocker_g",
    "gnome-screensav",
    "light-locker",
    "mate-screensave",
    "cinnamon-screen",
    "xfce4-screensav",
    "xlock",
];

x11rb::atom_manager! {
    /// The names that EWMH gives to what windows say of themselves.
    Atoms: AtomsCookie {
        _NET_CLIENT_LIST_STACKING,
        _NET_CURRENT_DESKTOP,
        _NET_ACTIVE_WINDOW,
        _NET_SUPPORTING_WM_CHECK,
        _NET_WM_DESKTOP,
        _NET_WM_PID,
        _NET_WM_STATE,
        _NET_WM_STATE_FULLSCREEN,
        _NET_WM_STATE_HIDDEN,
        _NET_WM_WINDOW_TYPE,
        _NET_WM_WINDOW_TYPE_DESKTOP,
        _NET_WM_WINDOW_TYPE_DOCK,
        _MOTIF_WM_HINTS,
    }
}

/// What all displays say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Displays {
    pub(crate) seen: Vec<Seen>,
    /// Why others could not be asked.
    pub(crate) refused: Vec<String>,
}

/// What one display says.
#[derive(Clone, Debug)]
pub(crate) struct Seen {
    /// `:0`
    pub(crate) display: String,
    /// It shows X11 programs on a Wayland desktop and sees neither all input nor all windows.
    pub(crate) xwayland: bool,
    pub(crate) idle_ms: Result<u64, String>,
    pub(crate) full_screen: Result<Option<String>, String>,
}

/// The connections to this machine's displays.
pub(crate) struct Servers {
    places: Places,
    hints: Arc<Mutex<Hints>>,
    open: BTreeMap<u32, Server>,
    refused: BTreeMap<u32, (String, Instant)>,
}

struct Server {
    connection: RustConnection,
    root: Window,
    atoms: Atoms,
    xwayland: bool,
    names_clients: bool,
}

impl Servers {
    pub(crate) fn new(places: Places, hints: Arc<Mutex<Hints>>) -> Self {
        Self { places, hints, open: BTreeMap::new(), refused: BTreeMap::new() }
    }

    pub(crate) fn read(&mut self) -> Displays {
        let hints = locked(&self.hints).clone();
        let numbers = displays::x11(&self.places, &hints);
        self.refused.retain(|number, (_, at)| numbers.contains(number) && at.elapsed() < RETRY);
        let mut answer = Displays::default();
        for number in numbers {
            if !self.open.contains_key(&number) && !self.refused.contains_key(&number) {
                match Server::connect(&self.places, &hints, number) {
                    Ok(server) => {
                        self.open.insert(number, server);
                    }
                    Err(why) => {
                        self.refused.insert(number, (why, Instant::now()));
                    }
                }
            }
            let Some(server) = self.open.get(&number) else { continue };
            match server.look(&self.places.root) {
                Ok((idle_ms, full_screen)) => answer.seen.push(Seen {
                    display: format!(":{number}"),
                    xwayland: server.xwayland,
                    idle_ms,
                    full_screen,
                }),
                // The display is gone; another may take its number at once.
                Err(why) => {
                    self.open.remove(&number);
                    answer.refused.push(why);
                }
            }
        }
        answer.refused.extend(self.refused.values().map(|(why, _)| why.clone()));
        answer
    }
}

impl Server {
    fn connect(places: &Places, hints: &Hints, number: u32) -> Result<Self, String> {
        let mut why = "nobody listens".to_owned();
        let cookies = displays::cookies(places, hints, number);
        let tries = std::iter::once(None).chain(cookies.into_iter().map(Some));
        for cookie in tries {
            let Some(stream) = stream(&places.root, number) else {
                return Err(format!("the X11 display :{number} does not answer"));
            };
            let (stream, _) = DefaultStream::from_unix_stream(stream).map_err(|error| error.to_string())?;
            let name = if cookie.is_some() { b"MIT-MAGIC-COOKIE-1".to_vec() } else { Vec::new() };
            let cookie = cookie.unwrap_or_default();
            match RustConnection::connect_to_stream_with_auth_info(stream, 0, name, cookie) {
                Ok(connection) => {
                    return Self::met(connection).map_err(|error| {
                        format!("the X11 display :{number} says: {}", shown(&error.to_string()))
                    });
                }
                Err(error) => why = shown(&error.to_string()),
            }
        }
        Err(format!("the X11 display :{number} lets the agent in with no cookie that it found: {why}"))
    }

    fn met(connection: RustConnection) -> Result<Self, ReplyError> {
        let root = connection.setup().roots.first().map_or(x11rb::NONE, |screen| screen.root);
        let atoms = Atoms::new(&connection)?.reply()?;
        let mut xwayland = connection.query_extension(b"XWAYLAND")?.reply()?.present;
        if !xwayland && connection.extension_information(randr::X11_EXTENSION_NAME)?.is_some() {
            // Before 23.1 it was known by the names of its outputs alone.
            let resources = connection.randr_get_screen_resources_current(root)?.reply()?;
            if let Some(output) = resources.outputs.first() {
                let output =
                    connection.randr_get_output_info(*output, resources.config_timestamp)?.reply()?;
                xwayland = output.name.starts_with(b"XWAYLAND");
            }
        }
        let names_clients = connection.extension_information(res::X11_EXTENSION_NAME)?.is_some()
            && connection.res_query_version(1, 2)?.reply().is_ok_and(|version| version.server_minor >= 2);
        Ok(Self { connection, root, atoms, xwayland, names_clients })
    }

    /// Idle time and full screen; an error if the display is gone.
    #[expect(clippy::type_complexity, reason = "two readings that fail apart from each other")]
    fn look(&self, root: &Path) -> Result<(Result<u64, String>, Result<Option<String>, String>), String> {
        let lost = |error: &ReplyError| matches!(error, ReplyError::ConnectionError(_));
        let words = |error: &ReplyError| format!("the X server says: {}", shown(&error.to_string()));
        let idle = self.idle_ms();
        let full = self.full_screen(root);
        for error in [idle.as_ref().err(), full.as_ref().err()].into_iter().flatten() {
            if lost(error) {
                return Err("the X server closed the connection".to_owned());
            }
        }
        let idle = match idle {
            Ok(Some(ms)) => Ok(ms),
            Ok(None) => {
                Err("the X server has no XScreenSaver extension, which tells the idle time".to_owned())
            }
            Err(error) => Err(words(&error)),
        };
        Ok((idle, full.map_err(|error| words(&error))))
    }

    fn idle_ms(&self) -> Result<Option<u64>, ReplyError> {
        if self.connection.extension_information(screensaver::X11_EXTENSION_NAME)?.is_none() {
            return Ok(None);
        }
        let info = self.connection.screensaver_query_info(self.root)?.reply()?;
        Ok(Some(u64::from(info.ms_since_user_input)))
    }

    /// The name of a program whose window fills a monitor.
    fn full_screen(&self, root: &Path) -> Result<Option<String>, ReplyError> {
        let desktop = self.numbers(self.root, self.atoms._NET_CURRENT_DESKTOP, 1)?.first().copied();
        let windows = self.numbers(self.root, self.atoms._NET_CLIENT_LIST_STACKING, WINDOWS_MAX)?;
        // All questions first, then all answers: one round trip for all windows.
        let get =
            |window, property| self.connection.get_property(false, window, property, AtomEnum::ANY, 0, 64);
        let mut cookies = Vec::new();
        for window in &windows {
            let state = get(*window, self.atoms._NET_WM_STATE)?;
            cookies.push((*window, state, get(*window, self.atoms._NET_WM_DESKTOP)?));
        }
        let mut filling = Vec::new();
        for (window, state, on) in cookies {
            let (Some(state), Some(on)) = (there(state.reply())?, there(on.reply())?) else { continue };
            let state: Vec<u32> = state.value32().into_iter().flatten().collect();
            let on = on.value32().and_then(|mut numbers| numbers.next());
            let here = on.is_none() || desktop.is_none() || on == desktop || on == Some(u32::MAX);
            let full = state.contains(&self.atoms._NET_WM_STATE_FULLSCREEN);
            if full && here && !state.contains(&self.atoms._NET_WM_STATE_HIDDEN) {
                filling.push(window);
            }
        }
        filling.reverse();
        if let Some(window) = self.active()?
            && !filling.contains(&window)
            && self.fills_without_saying(window)?
        {
            filling.push(window);
        }
        for window in filling {
            if let Some(name) = self.name(window, root)?
                && !LOCKERS.iter().any(|locker| name.starts_with(locker))
            {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    /// The window that has the owner's attention: the window manager's word, or without one the input focus.
    fn active(&self) -> Result<Option<Window>, ReplyError> {
        if self.managed()? {
            return Ok(self
                .numbers(self.root, self.atoms._NET_ACTIVE_WINDOW, 1)?
                .first()
                .copied()
                .filter(|id| *id > 1));
        }
        let mut window = self.connection.get_input_focus()?.reply()?.focus;
        // 0 is none and 1 is the root window; the focus may lie in a part of a window.
        for _ in 0..16 {
            if window <= 1 || window == self.root {
                return Ok(None);
            }
            let Some(tree) = there(self.connection.query_tree(window)?.reply())? else { return Ok(None) };
            if tree.parent == self.root {
                return Ok(Some(window));
            }
            window = tree.parent;
        }
        Ok(None)
    }

    /// Whether a window manager says what windows are.
    fn managed(&self) -> Result<bool, ReplyError> {
        Ok(!self.numbers(self.root, self.atoms._NET_SUPPORTING_WM_CHECK, 1)?.is_empty())
    }

    /// Whether a window covers a monitor as games without a frame do, and is not just a tile, a panel or the desktop.
    fn fills_without_saying(&self, window: Window) -> Result<bool, ReplyError> {
        let kinds = self.numbers(window, self.atoms._NET_WM_WINDOW_TYPE, 8)?;
        let furniture = [self.atoms._NET_WM_WINDOW_TYPE_DESKTOP, self.atoms._NET_WM_WINDOW_TYPE_DOCK];
        if kinds.iter().any(|kind| furniture.contains(kind)) {
            return Ok(false);
        }
        let Some(attributes) = there(self.connection.get_window_attributes(window)?.reply())? else {
            return Ok(false);
        };
        // Motif's hints: flags, functions, decorations; bit 1 of the flags says that decorations are meant.
        let motif = self.numbers(window, self.atoms._MOTIF_WM_HINTS, 3)?;
        let frameless = matches!(motif.as_slice(), [flags, _, 0] if flags & 2 != 0);
        let free = attributes.override_redirect || frameless || !self.managed()?;
        if !free || attributes.map_state != MapState::VIEWABLE {
            return Ok(false);
        }
        let Some(size) = there(self.connection.get_geometry(window)?.reply())? else { return Ok(false) };
        let Some(at) = there(self.connection.translate_coordinates(window, self.root, 0, 0)?.reply())? else {
            return Ok(false);
        };
        let place = (at.dst_x, at.dst_y, size.width, size.height);
        let screen = self.connection.setup().roots.first();
        if screen.is_some_and(|screen| place == (0, 0, screen.width_in_pixels, screen.height_in_pixels)) {
            return Ok(true);
        }
        if self.connection.extension_information(randr::X11_EXTENSION_NAME)?.is_none() {
            return Ok(false);
        }
        let Some(monitors) = there(self.connection.randr_get_monitors(self.root, true)?.reply())? else {
            return Ok(false);
        };
        let mut monitors = monitors.monitors.iter().take(MONITORS_MAX);
        Ok(monitors.any(|monitor| place == (monitor.x, monitor.y, monitor.width, monitor.height)))
    }

    /// The program behind a window; none if the window is gone.
    fn name(&self, window: Window, root: &Path) -> Result<Option<String>, ReplyError> {
        // What the socket says is true even for a program in a container; its own word may count there from one.
        let mut pid = None;
        if self.names_clients {
            let spec = res::ClientIdSpec { client: window, mask: res::ClientIdMask::LOCAL_CLIENT_PID };
            if let Some(reply) = there(self.connection.res_query_client_ids(&[spec])?.reply())? {
                pid = reply.ids.first().and_then(|id| id.value.first().copied());
            }
        }
        if pid.is_none() {
            pid = self.numbers(window, self.atoms._NET_WM_PID, 1)?.first().copied();
        }
        let name = pid.map(|pid| program_name(root, pid)).unwrap_or_default();
        if !name.is_empty() {
            return Ok(Some(name));
        }
        let class =
            self.connection.get_property(false, window, AtomEnum::WM_CLASS, AtomEnum::STRING, 0, 64)?;
        let Some(class) = there(class.reply())? else { return Ok(None) };
        // Two texts, each ended by a zero: the instance and the class.
        let text = String::from_utf8_lossy(&class.value).into_owned();
        let name = text.split('\0').rfind(|part| !part.is_empty()).map(shown);
        Ok(Some(name.unwrap_or_else(|| "a window without a name".to_owned())))
    }

    /// A property that holds numbers; empty if there is none or the window is gone.
    fn numbers(&self, window: Window, property: Atom, count: usize) -> Result<Vec<u32>, ReplyError> {
        let count_max = u32::try_from(count).unwrap_or(u32::MAX);
        let cookie = self.connection.get_property(false, window, property, AtomEnum::ANY, 0, count_max)?;
        let reply = there(cookie.reply())?;
        Ok(reply.as_ref().and_then(|reply| reply.value32()).into_iter().flatten().collect())
    }
}

/// A window may go while it is asked about: that is no error.
fn there<T>(reply: Result<T, ReplyError>) -> Result<Option<T>, ReplyError> {
    match reply {
        Ok(reply) => Ok(Some(reply)),
        Err(ReplyError::X11Error(_)) => Ok(None),
        Err(error @ ReplyError::ConnectionError(_)) => Err(error),
    }
}

/// The display's socket; where a service has a /tmp of its own, the abstract one.
fn stream(root: &Path, number: u32) -> Option<UnixStream> {
    let path = root.join(format!("tmp/.X11-unix/X{number}"));
    UnixStream::connect(path).ok().or_else(|| {
        let address = SocketAddr::from_abstract_name(format!("/tmp/.X11-unix/X{number}")).ok()?;
        UnixStream::connect_addr(&address).ok()
    })
}
