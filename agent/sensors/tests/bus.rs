//! D-Bus: a private bus with small doubles of logind, NetworkManager, GameMode and GNOME's idle monitor.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "clippy takes helpers of tests for the product")]

mod machine;

use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

use machine::{Machine, Program, read, start, until};
use skein_sensors::Reading;
use zbus::blocking::{Connection, connection::Builder};
use zbus::interface;
use zbus::zvariant::OwnedObjectPath;

const SESSION: &str = "/org/freedesktop/login1/session/_32";

/// A bus of its own and its address.
fn bus() -> Option<(Program, String)> {
    start("dbus-daemon", &["--session", "--nofork", "--nopidfile", "--print-address=1"])
}

fn named(address: &str, name: &'static str) -> Builder<'static> {
    Builder::address(address).unwrap().name(name).unwrap()
}

struct NetworkManager(u32);

#[interface(name = "org.freedesktop.NetworkManager")]
impl NetworkManager {
    #[zbus(property)]
    fn metered(&self) -> u32 {
        self.0
    }
}

struct Logind;

#[interface(name = "org.freedesktop.login1.Manager")]
impl Logind {
    fn list_sessions(&self) -> Vec<(String, u32, String, String, OwnedObjectPath)> {
        let path = OwnedObjectPath::try_from(SESSION).unwrap();
        let gone = OwnedObjectPath::try_from("/org/freedesktop/login1/session/gone").unwrap();
        let text = str::to_owned;
        vec![
            (text("1"), 7, text("gone"), text("seat0"), gone),
            (text("2"), 4_000_000, text("ada"), text("seat0"), path),
        ]
    }
}

/// A session of another user, whose displays nobody else can ask.
#[derive(Clone)]
struct Login {
    service: String,
    remote: bool,
    idle_since_us: u64,
}

#[interface(name = "org.freedesktop.login1.Session")]
impl Login {
    #[zbus(property)]
    fn user(&self) -> (u32, OwnedObjectPath) {
        (4_000_000, OwnedObjectPath::try_from("/org/freedesktop/login1/user/x").unwrap())
    }
    #[zbus(property)]
    fn name(&self) -> String {
        "ada".to_owned()
    }
    #[zbus(property)]
    fn active(&self) -> bool {
        true
    }
    #[zbus(property, name = "Type")]
    fn kind(&self) -> String {
        "wayland".to_owned()
    }
    #[zbus(property)]
    fn class(&self) -> String {
        "user".to_owned()
    }
    #[zbus(property)]
    fn service(&self) -> String {
        self.service.clone()
    }
    #[zbus(property)]
    fn remote(&self) -> bool {
        self.remote
    }
    #[zbus(property)]
    fn remote_host(&self) -> String {
        if self.remote { "10.0.0.9".to_owned() } else { String::new() }
    }
    #[zbus(property)]
    fn idle_hint(&self) -> bool {
        true
    }
    #[zbus(property)]
    fn idle_since_hint(&self) -> u64 {
        self.idle_since_us
    }
}

fn logind(address: &str, login: Login) -> Connection {
    let builder = named(address, "org.freedesktop.login1");
    let builder = builder.serve_at("/org/freedesktop/login1", Logind).unwrap();
    builder.serve_at(SESSION, login).unwrap().build().unwrap()
}

fn network_manager(address: &str, metered: u32) -> Connection {
    let builder = named(address, "org.freedesktop.NetworkManager");
    builder.serve_at("/org/freedesktop/NetworkManager", NetworkManager(metered)).unwrap().build().unwrap()
}

#[test]
fn the_link_is_metered_as_network_manager_says() {
    let Some((_daemon, address)) = bus() else { return };
    let mut machine = Machine::bare();
    machine.places.system_bus = Some(address.clone());
    let mut sensors = machine.sensors();
    let absent = read(&mut sensors).metered;
    assert!(
        matches!(&absent, Reading::Missing(why) if why.contains("NetworkManager does not run")),
        "{absent:?}"
    );
    for (told, wanted) in [(1, Some(true)), (2, Some(false)), (3, Some(true)), (4, Some(false)), (0, None)] {
        let manager = network_manager(&address, told);
        assert_eq!(read(&mut sensors).metered.known().copied(), wanted, "NMMetered {told}");
        manager.close().unwrap();
        until(
            &mut sensors,
            "it is gone",
            |readings| matches!(&readings.metered, Reading::Missing(why) if why.contains("does not run")),
        );
    }
}

#[test]
fn logind_tells_of_those_whose_screens_cannot_be_asked_and_of_visitors() {
    let Some((_daemon, address)) = bus() else { return };
    let mut machine = Machine::bare();
    machine.places.system_bus = Some(address.clone());
    let mut sensors = machine.sensors();
    assert!(read(&mut sensors).owner_idle_ms.known().is_none());
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
    let since = u64::try_from(now.as_micros()).unwrap() - 90_000_000;
    let here = Login { service: "gdm-password".to_owned(), remote: false, idle_since_us: since };
    let service = logind(&address, here.clone());
    let readings = read(&mut sensors);
    let idle = *readings.owner_idle_ms.known().unwrap();
    assert!((90_000..200_000).contains(&idle), "{idle}");
    assert_eq!(readings.remote_desktop, Reading::Known(None));
    service.close().unwrap();
    until(&mut sensors, "logind is gone", |readings| readings.owner_idle_ms.known().is_none());

    let _service = logind(&address, Login { service: "xdm".to_owned(), remote: true, ..here });
    let readings = read(&mut sensors);
    assert_eq!(readings.remote_desktop, Reading::Known(Some("ada by xdm from 10.0.0.9".to_owned())));
    assert!(readings.owner_idle_ms.known().is_none(), "a visitor's rest is not the owner's");
}

/// The table of sockets with a server that listens on a port, and whoever is connected to it.
fn connected(machine: &Machine, port: u16, peers: &[[u8; 4]]) {
    let mut table = "  sl  local_address rem_address   st tx_queue\n".to_owned();
    table += &format!("   0: 00000000:{port:04X} 00000000:0000 0A 00000000\n");
    for peer in peers {
        table += &format!("   1: 0A00000A:{port:04X} {:08X}:A2B1 01 00000000\n", u32::from_ne_bytes(*peer));
    }
    machine.write("proc/net/tcp", &table);
}

#[test]
fn a_session_that_is_shown_elsewhere_counts_while_somebody_is_connected() {
    for (service, port) in [("tigervnc", 5901), ("xrdp-sesman", 3389)] {
        let Some((_daemon, address)) = bus() else { return };
        let mut machine = Machine::bare();
        machine.places.system_bus = Some(address.clone());
        connected(&machine, port, &[[10, 0, 0, 2]]);
        // It says for ever that it is remote, from where it was opened.
        let login = Login { service: service.to_owned(), remote: true, idle_since_us: 0 };
        let _service = logind(&address, login);
        let mut sensors = machine.sensors();
        let visit = Reading::Known(Some(format!("ada by {service} from 10.0.0.2")));
        until(&mut sensors, "the visit is seen", |readings| readings.remote_desktop == visit);
        connected(&machine, port, &[]);
        until(&mut sensors, "it is over", |readings| readings.remote_desktop == Reading::Known(None));
        connected(&machine, port, &[[10, 0, 0, 2]]);
        until(&mut sensors, "there is another", |readings| readings.remote_desktop == visit);
    }
}

#[test]
fn a_session_whose_visitors_cannot_be_seen_is_missing() {
    let Some((_daemon, address)) = bus() else { return };
    let mut machine = Machine::bare();
    machine.places.system_bus = Some(address.clone());
    let login = Login { service: "chrome-remote-desktop".to_owned(), remote: false, idle_since_us: 0 };
    let _service = logind(&address, login);
    let why = "a session by chrome-remote-desktop runs, and nothing tells whether somebody looks at it";
    until(&mut machine.sensors(), "logind answers", |readings| {
        readings.remote_desktop == Reading::Missing(why.to_owned())
    });
}

struct GameMode(Vec<i32>);

#[interface(name = "com.feralinteractive.GameMode")]
impl GameMode {
    fn list_games(&self) -> Vec<(i32, OwnedObjectPath)> {
        let path = OwnedObjectPath::try_from("/com/feralinteractive/GameMode/Games/1").unwrap();
        self.0.iter().map(|pid| (*pid, path.clone())).collect()
    }
}

struct IdleMonitor;

#[interface(name = "org.gnome.Mutter.IdleMonitor")]
impl IdleMonitor {
    #[zbus(name = "GetIdletime")]
    fn idle_time(&self) -> u64 {
        4321
    }
}

#[test]
fn game_mode_and_gnome_on_the_session_bus() {
    let Some((_daemon, address)) = bus() else { return };
    let mut machine = Machine::bare();
    machine.places.session_bus = Some(address.clone());
    machine.write("proc/77/cmdline", "/opt/strategy\0--fast\0");
    machine.write("proc/77/comm", "strategy\n");
    let mut sensors = machine.sensors();
    assert_eq!(read(&mut sensors).game, Reading::Known(None));
    let builder = named(&address, "com.feralinteractive.GameMode");
    let builder = builder.serve_at("/com/feralinteractive/GameMode", GameMode(vec![77])).unwrap();
    let game_mode = builder.build().unwrap();
    assert_eq!(read(&mut sensors).game, Reading::Known(Some("strategy".to_owned())));
    game_mode.close().unwrap();
    until(&mut sensors, "the game ended", |readings| readings.game == Reading::Known(None));

    let builder = named(&address, "org.gnome.Mutter.IdleMonitor");
    let builder = builder.serve_at("/org/gnome/Mutter/IdleMonitor/Core", IdleMonitor).unwrap();
    let _monitor = builder.build().unwrap();
    assert_eq!(read(&mut sensors).owner_idle_ms, Reading::Known(4321));
}

#[test]
fn a_service_that_hangs_does_not_hold_the_reading() {
    let Some((_daemon, address)) = bus() else { return };
    let mut machine = Machine::bare();
    machine.places.system_bus = Some(address.clone());
    // It has the name and never answers.
    let hanging = named(&address, "org.freedesktop.NetworkManager").build().unwrap();
    let mut sensors = machine.sensors();
    let metered = read(&mut sensors).metered;
    assert!(
        matches!(&metered, Reading::Missing(why) if why.starts_with("the system's D-Bus has not answered for"))
    );
    until(&mut sensors, "the service itself is named", |readings| {
        readings.metered == Reading::Missing("NetworkManager has not answered for 5 s".to_owned())
    });
    drop(hanging);
    let _manager = network_manager(&address, 2);
    until(&mut sensors, "another one answers", |readings| readings.metered == Reading::Known(false));
}

#[test]
fn a_bus_that_hangs_does_not_hold_the_reading() {
    let mut machine = Machine::bare();
    let socket: PathBuf = machine.path("silent");
    let _silent = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    machine.places.system_bus = Some(format!("unix:path={}", socket.display()));
    let readings = read(&mut machine.sensors());
    let hangs = |why: &str| why.starts_with("the system's D-Bus has not answered for");
    assert!(matches!(&readings.metered, Reading::Missing(why) if hangs(why)), "{:?}", readings.metered);
    assert!(readings.disk_free_bytes.known().is_some(), "the others go on");
}
