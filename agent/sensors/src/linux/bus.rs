//! D-Bus: logind and NetworkManager on the system's bus, GameMode and GNOME's idle monitor on the session's.
//!
//! Only services that run are asked: a question would start those that a bus may start.

use std::collections::HashMap;
use std::io::ErrorKind;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use zbus::Message;
use zbus::blocking::{Connection, connection::Builder};
use zbus::zvariant::{OwnedObjectPath, OwnedValue, Value};

use super::logind::Session as LoginSession;
use super::processes::program_name;
use super::{remote, runtime_dirs};
use crate::shown;

/// The longest wait for one answer; the sensor's thread waits, not the reading.
const ANSWER_MAX: Duration = Duration::from_secs(5);
const RETRY: Duration = Duration::from_secs(30);
const SESSIONS_MAX: usize = 64;

/// What the system's bus says.
#[derive(Clone, Debug)]
pub(crate) struct SystemBus {
    pub(crate) sessions: Result<Vec<LoginSession>, String>,
    pub(crate) metered: Result<bool, String>,
}

/// What the session's bus says.
#[derive(Clone, Debug, Default)]
pub(crate) struct SessionBus {
    /// Programs that asked GameMode for the machine's best.
    pub(crate) games: Vec<String>,
    /// GNOME's idle time.
    pub(crate) mutter_idle_ms: Option<u64>,
}

/// A bus that is opened when it is there.
struct Bus {
    /// What the owner calls it.
    name: &'static str,
    open: Option<Connection>,
    failed: Option<(String, Instant)>,
}

impl Bus {
    fn new(name: &'static str) -> Self {
        Self { name, open: None, failed: None }
    }

    fn connected(
        &mut self,
        builder: impl FnOnce() -> zbus::Result<Builder<'static>>,
    ) -> Result<Connection, String> {
        if let Some(open) = &self.open {
            return Ok(open.clone());
        }
        if let Some((why, at)) = &self.failed
            && at.elapsed() < RETRY
        {
            return Err(why.clone());
        }
        match builder().and_then(|builder| builder.method_timeout(ANSWER_MAX).build()) {
            Ok(connection) => {
                self.failed = None;
                self.open = Some(connection.clone());
                Ok(connection)
            }
            Err(error) => {
                let why = format!("{} cannot be reached: {}", self.name, shown(&error.to_string()));
                self.failed = Some((why.clone(), Instant::now()));
                Err(why)
            }
        }
    }

    /// Whether a service runs; starts none. A bus that does not answer is closed.
    fn runs(&mut self, connection: &Connection, service: &str) -> Result<bool, String> {
        const DAEMON: &str = "org.freedesktop.DBus";
        let path = "/org/freedesktop/DBus";
        let reply = connection.call_method(Some(DAEMON), path, Some(DAEMON), "NameHasOwner", &service);
        reply.and_then(|reply| reply.body().deserialize::<bool>()).map_err(|error| {
            self.open = None;
            words(self.name, &error)
        })
    }
}

/// What went wrong, in words.
fn words(who: &str, error: &zbus::Error) -> String {
    if let zbus::Error::InputOutput(inner) = error
        && inner.kind() == ErrorKind::TimedOut
    {
        return format!("{who} has not answered for {} s", ANSWER_MAX.as_secs());
    }
    format!("{who} says: {}", shown(&error.to_string()))
}

/// The system's bus.
pub(crate) struct System {
    address: Option<String>,
    root: PathBuf,
    bus: Bus,
}

impl System {
    pub(crate) fn new(address: Option<String>, root: PathBuf) -> Self {
        Self { address, root, bus: Bus::new("the system's D-Bus") }
    }

    pub(crate) fn read(&mut self) -> Result<SystemBus, String> {
        let address = self.address.clone();
        let connection = self.bus.connected(|| match address {
            Some(address) => Builder::address(address.as_str()),
            None => Builder::system(),
        })?;
        let logind = self.bus.runs(&connection, "org.freedesktop.login1")?;
        let manager = self.bus.runs(&connection, "org.freedesktop.NetworkManager")?;
        let mut sessions = if logind { sessions(&connection) } else { Err("logind does not run".to_owned()) };
        for session in sessions.iter_mut().flatten() {
            session.visit = remote::visit(&self.root, session);
        }
        Ok(SystemBus {
            sessions,
            metered: if manager {
                metered(&connection)
            } else {
                Err("NetworkManager does not run, and nothing else tells whether a link is metered"
                    .to_owned())
            },
        })
    }
}

fn sessions(connection: &Connection) -> Result<Vec<LoginSession>, String> {
    const SERVICE: &str = "org.freedesktop.login1";
    let says = |error: zbus::Error| words("logind", &error);
    let path = "/org/freedesktop/login1";
    let interface = "org.freedesktop.login1.Manager";
    let reply =
        connection.call_method(Some(SERVICE), path, Some(interface), "ListSessions", &()).map_err(says)?;
    let listed: Vec<(String, u32, String, String, OwnedObjectPath)> =
        reply.body().deserialize().map_err(says)?;
    let mut sessions = Vec::new();
    for (_, _, _, _, path) in listed.into_iter().take(SESSIONS_MAX) {
        let interface = "org.freedesktop.DBus.Properties";
        let body = "org.freedesktop.login1.Session";
        let reply = connection.call_method(Some(SERVICE), &path, Some(interface), "GetAll", &body);
        let reply = match reply {
            Ok(reply) => reply,
            // A session may end while it is asked about.
            Err(zbus::Error::MethodError(..)) => continue,
            Err(error) => return Err(says(error)),
        };
        let properties: HashMap<String, OwnedValue> = reply.body().deserialize().map_err(says)?;
        sessions.push(LoginSession::from_properties(&properties));
    }
    Ok(sessions)
}

fn metered(connection: &Connection) -> Result<bool, String> {
    let says = |error: zbus::Error| words("NetworkManager", &error);
    let service = "org.freedesktop.NetworkManager";
    let reply =
        property(connection, service, "/org/freedesktop/NetworkManager", service, "Metered").map_err(says)?;
    let body = reply.body();
    let value: Value<'_> = body.deserialize().map_err(says)?;
    match value.downcast::<u32>() {
        // NMMetered: 1 yes, 2 no, 3 and 4 the same as guesses.
        Ok(1 | 3) => Ok(true),
        Ok(2 | 4) => Ok(false),
        Ok(_) | Err(_) => Err("NetworkManager does not know whether the link is metered".to_owned()),
    }
}

fn property(
    connection: &Connection,
    service: &str,
    path: &str,
    interface: &str,
    name: &str,
) -> zbus::Result<Message> {
    let properties = "org.freedesktop.DBus.Properties";
    connection.call_method(Some(service), path, Some(properties), "Get", &(interface, name))
}

/// The owner's session bus.
pub(crate) struct Session {
    address: Option<String>,
    root: PathBuf,
    bus: Bus,
}

impl Session {
    pub(crate) fn new(address: Option<String>, root: PathBuf) -> Self {
        Self { address, root, bus: Bus::new("the session's D-Bus") }
    }

    pub(crate) fn read(&mut self) -> Result<SessionBus, String> {
        let told = self.address.clone().or_else(|| std::env::var("DBUS_SESSION_BUS_ADDRESS").ok());
        let usual =
            runtime_dirs(&self.root).into_iter().map(|dir| dir.join("bus")).find(|socket| socket.exists());
        let address = told.or_else(|| usual.map(|socket| format!("unix:path={}", socket.display())));
        let Some(address) = address else { return Err("no session's D-Bus was found".to_owned()) };
        let connection = self.bus.connected(|| Builder::address(address.as_str()))?;
        let mut answer = SessionBus::default();
        if self.bus.runs(&connection, "com.feralinteractive.GameMode")? {
            answer.games = game_mode(&connection, &self.root)?;
        }
        if self.bus.runs(&connection, "org.gnome.Mutter.IdleMonitor")? {
            let service = "org.gnome.Mutter.IdleMonitor";
            let path = "/org/gnome/Mutter/IdleMonitor/Core";
            let reply = connection.call_method(Some(service), path, Some(service), "GetIdletime", &());
            answer.mutter_idle_ms = reply.ok().and_then(|reply| reply.body().deserialize().ok());
        }
        Ok(answer)
    }
}

/// Programs that are registered with GameMode.
fn game_mode(connection: &Connection, root: &std::path::Path) -> Result<Vec<String>, String> {
    let service = "com.feralinteractive.GameMode";
    let path = "/com/feralinteractive/GameMode";
    let says = |error: zbus::Error| words("GameMode", &error);
    if let Ok(reply) = connection.call_method(Some(service), path, Some(service), "ListGames", &()) {
        let games: Vec<(i32, OwnedObjectPath)> = reply.body().deserialize().map_err(says)?;
        let named = games.into_iter().take(64).map(|(pid, _)| {
            let name = u32::try_from(pid).map(|pid| program_name(root, pid)).unwrap_or_default();
            if name.is_empty() { format!("process {pid}") } else { name }
        });
        return Ok(named.collect());
    }
    // Before 1.3 it only counted.
    let reply = property(connection, service, path, service, "ClientCount").map_err(says)?;
    let body = reply.body();
    let count = body.deserialize::<Value<'_>>().map_err(says)?.downcast::<i32>().unwrap_or(0);
    Ok(if count > 0 { vec!["a program in game mode".to_owned()] } else { Vec::new() })
}
