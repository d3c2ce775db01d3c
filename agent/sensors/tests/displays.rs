//! Idle time and full screen against a real X server, and displays that do not answer.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "clippy takes helpers of tests for the product")]

mod machine;

use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use machine::{Machine, PATIENCE, Program, installed, read, start, until};
use skein_sensors::{Reading, Sensors};
use x11rb::connection::Connection;
use x11rb::protocol::xproto::{
    AtomEnum, ConfigureWindowAux, ConnectionExt as _, InputFocus, MapState, PropMode, Window,
};
use x11rb::rust_connection::RustConnection;
use x11rb::wrapper::ConnectionExt as _;

const SIZE: (u16, u16) = (1024, 768);

/// A display of its own, asked by sensors that see nothing else but this machine's processes.
fn display() -> Option<(Program, String, Sensors)> {
    let size = format!("{}x{}x24", SIZE.0, SIZE.1);
    let arguments = ["-displayfd", "1", "-nolisten", "tcp", "-noreset", "-screen", "0", size.as_str()];
    let (server, number) = start("Xvfb", &arguments)?;
    let mut machine = Machine::bare();
    machine.places.root = PathBuf::from("/");
    machine.places.x11_displays = Some(vec![number.parse().unwrap()]);
    let sensors = machine.sensors();
    Some((server, format!(":{number}"), sensors))
}

fn idle(sensors: &mut Sensors) -> Duration {
    Duration::from_millis(*read(sensors).owner_idle_ms.known().unwrap())
}

#[test]
fn the_idle_time_grows_and_falls_when_the_mouse_moves() {
    if !installed("xdotool") {
        return;
    }
    let Some((server, display, mut sensors)) = display() else { return };
    let first = idle(&mut sensors);
    until(&mut sensors, "the idle time grows", |readings| {
        readings
            .owner_idle_ms
            .known()
            .is_some_and(|ms| Duration::from_millis(*ms) > first + Duration::from_millis(500))
    });
    let began = Instant::now();
    let moved =
        Command::new("xdotool").args(["mousemove", "300", "200"]).env("DISPLAY", &display).status().unwrap();
    assert!(moved.success());
    let after = idle(&mut sensors);
    // The server counts in milliseconds of its own clock.
    assert!(after <= began.elapsed() + Duration::from_millis(20), "{after:?} since the mouse moved");
    drop(server);
    until(&mut sensors, "a display that is gone is missing", |readings| {
        readings.owner_idle_ms.known().is_none()
    });
}

/// The window manager's part, played by the test.
struct Manager {
    connection: RustConnection,
    root: Window,
}

impl Manager {
    fn new(display: &str) -> Self {
        let (connection, screen) = x11rb::connect(Some(display)).unwrap();
        let root = connection.setup().roots[screen].root;
        Self { connection, root }
    }

    fn atom(&self, name: &str) -> u32 {
        self.connection.intern_atom(false, name.as_bytes()).unwrap().reply().unwrap().atom
    }

    fn set(&self, window: Window, name: &str, kind: AtomEnum, values: &[u32]) {
        let atom = self.atom(name);
        self.connection
            .change_property32(PropMode::REPLACE, window, atom, kind, values)
            .unwrap()
            .check()
            .unwrap();
    }

    /// The first window that is shown.
    fn window(&self) -> Window {
        let began = Instant::now();
        loop {
            let tree = self.connection.query_tree(self.root).unwrap().reply().unwrap();
            let shown = tree.children.into_iter().find(|window| {
                let attributes = self.connection.get_window_attributes(*window).unwrap().reply();
                attributes.is_ok_and(|attributes| attributes.map_state == MapState::VIEWABLE)
            });
            if let Some(window) = shown {
                return window;
            }
            assert!(began.elapsed() < PATIENCE, "no window came up");
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }

    fn place(&self, window: Window, size: (u16, u16)) {
        let (width, height) = (u32::from(size.0), u32::from(size.1));
        let place = ConfigureWindowAux::new().x(0).y(0).width(width).height(height).border_width(0);
        self.connection.configure_window(window, &place).unwrap().check().unwrap();
        self.connection
            .set_input_focus(InputFocus::PARENT, window, x11rb::CURRENT_TIME)
            .unwrap()
            .check()
            .unwrap();
    }
}

#[test]
fn a_window_that_fills_the_screen_is_seen_by_its_programs_name_and_gone_when_it_closes() {
    if !installed("xterm") {
        return;
    }
    let Some((_server, display, mut sensors)) = display() else { return };
    assert_eq!(read(&mut sensors).full_screen, Reading::Known(None));
    let arguments = ["-e", "sleep", "1000"];
    let terminal =
        Command::new("xterm").args(arguments).env("DISPLAY", &display).stderr(Stdio::null()).spawn();
    let terminal = Program(terminal.unwrap());
    let manager = Manager::new(&display);
    let window = manager.window();
    let xterm = Reading::Known(Some("xterm".to_owned()));
    assert_eq!(read(&mut sensors).full_screen, Reading::Known(None), "a window is not the screen");

    // Without a window manager: by its size.
    manager.place(window, SIZE);
    until(&mut sensors, "by its size", |readings| readings.full_screen == xterm);

    // A window manager may lay out one tile as large as the screen: that alone is no full screen.
    manager.set(manager.root, "_NET_SUPPORTING_WM_CHECK", AtomEnum::WINDOW, &[manager.root]);
    manager.set(manager.root, "_NET_ACTIVE_WINDOW", AtomEnum::WINDOW, &[window]);
    manager.set(manager.root, "_NET_CLIENT_LIST_STACKING", AtomEnum::WINDOW, &[window]);
    assert_eq!(read(&mut sensors).full_screen, Reading::Known(None), "a tile");
    let full = manager.atom("_NET_WM_STATE_FULLSCREEN");
    manager.set(window, "_NET_WM_STATE", AtomEnum::ATOM, &[full]);
    assert_eq!(read(&mut sensors).full_screen, xterm, "it says so itself");
    manager.set(manager.root, "_NET_CURRENT_DESKTOP", AtomEnum::CARDINAL, &[0]);
    manager.set(window, "_NET_WM_DESKTOP", AtomEnum::CARDINAL, &[1]);
    assert_eq!(read(&mut sensors).full_screen, Reading::Known(None), "on another desktop");
    manager.set(window, "_NET_WM_DESKTOP", AtomEnum::CARDINAL, &[u32::MAX]);
    assert_eq!(read(&mut sensors).full_screen, xterm, "on all desktops");

    // A game's window without a frame.
    manager.set(window, "_NET_WM_STATE", AtomEnum::ATOM, &[]);
    manager.set(window, "_MOTIF_WM_HINTS", AtomEnum::CARDINAL, &[2, 0, 0, 0, 0]);
    assert_eq!(read(&mut sensors).full_screen, xterm, "without a frame");
    drop(terminal);
    until(&mut sensors, "closed", |readings| readings.full_screen == Reading::Known(None));
}

#[test]
fn displays_that_do_not_answer_do_not_hold_the_reading() {
    let mut machine = Machine::bare();
    std::fs::create_dir_all(machine.path("tmp/.X11-unix")).unwrap();
    let _silent_x = UnixListener::bind(machine.path("tmp/.X11-unix/X7")).unwrap();
    let _silent_wayland = UnixListener::bind(machine.path("wayland-0")).unwrap();
    machine.places.x11_displays = Some(vec![7]);
    machine.places.wayland_sockets = Some(vec![machine.path("wayland-0")]);
    let mut sensors = machine.sensors();
    for _ in 0..2 {
        let readings = read(&mut sensors);
        let missing = |text: &str| text.contains("the X server has not answered for");
        assert!(matches!(&readings.owner_idle_ms, Reading::Missing(why) if missing(why)), "{readings:?}");
        assert!(matches!(&readings.full_screen, Reading::Missing(why) if missing(why)), "{readings:?}");
        assert!(readings.disk_free_bytes.known().is_some(), "the others go on");
    }
}
