//! Wayland: how long ago the last input was, by ext-idle-notify-v1.
//!
//! The compositor says when a second has passed without input and when input comes back. It is asked once a reading
//! what it has said meanwhile, so a time may be told too short by one interval of reading, never too long. A program that
//! keeps the screen awake is as good as input: whoever sees a film uses the machine.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use wayland_client::globals::{GlobalListContents, registry_queue_init};
use wayland_client::protocol::wl_registry::WlRegistry;
use wayland_client::protocol::wl_seat::{self, WlSeat};
use wayland_client::{Connection, Dispatch, EventQueue, QueueHandle, delegate_noop};
use wayland_protocols::ext::idle_notify::v1::client::ext_idle_notification_v1::{
    self, ExtIdleNotificationV1,
};
use wayland_protocols::ext::idle_notify::v1::client::ext_idle_notifier_v1::ExtIdleNotifierV1;

use super::displays::{self, Hints};
use super::locked;
use crate::{Places, shown};

/// The shortest rest that the compositor tells.
const STEP: Duration = Duration::from_secs(1);
const RETRY: Duration = Duration::from_secs(30);
const SEATS_MAX: usize = 16;

/// What the compositors say.
#[derive(Clone, Debug, Default)]
pub(crate) struct Answer {
    /// Some compositor runs.
    pub(crate) present: bool,
    /// The shortest of their idle times, or why there is none.
    pub(crate) idle_ms: Option<Result<u64, String>>,
}

/// The connections to this machine's compositors.
pub(crate) struct Compositors {
    places: Places,
    hints: Arc<Mutex<Hints>>,
    open: BTreeMap<PathBuf, Compositor>,
    refused: BTreeMap<PathBuf, (String, bool, Instant)>,
}

impl Compositors {
    pub(crate) fn new(places: Places, hints: Arc<Mutex<Hints>>) -> Self {
        Self { places, hints, open: BTreeMap::new(), refused: BTreeMap::new() }
    }

    pub(crate) fn read(&mut self) -> Answer {
        let hints = locked(&self.hints).clone();
        let sockets = displays::wayland(&self.places, &hints);
        self.open.retain(|socket, _| sockets.contains(socket));
        self.refused.retain(|socket, (_, _, at)| sockets.contains(socket) && at.elapsed() < RETRY);
        let mut answer = Answer::default();
        for socket in sockets {
            let idle = self.one(&socket);
            answer.present |= match &idle {
                Ok(_) => true,
                Err((_, present)) => *present,
            };
            let idle = idle.map_err(|(why, _)| why);
            answer.idle_ms = Some(match (answer.idle_ms.take(), idle) {
                (Some(Ok(one)), Ok(other)) => Ok(one.min(other)),
                (Some(Ok(known)), Err(_)) | (Some(Err(_)) | None, Ok(known)) => Ok(known),
                (Some(Err(why)), Err(_)) | (None, Err(why)) => Err(why),
            });
        }
        answer
    }

    /// One compositor's idle time; the error says whether there is a compositor at all.
    fn one(&mut self, socket: &Path) -> Result<u64, (String, bool)> {
        if let Some((why, present, _)) = self.refused.get(socket) {
            return Err((why.clone(), *present));
        }
        let mut compositor = match self.open.remove(socket) {
            Some(open) => open,
            None => Compositor::connect(socket).inspect_err(|(why, present)| {
                self.refused.insert(socket.to_owned(), (why.clone(), *present, Instant::now()));
            })?,
        };
        let idle = compositor.idle_ms().map_err(|why| (why, true))?;
        self.open.insert(socket.to_owned(), compositor);
        idle.map_err(|why| (why, true))
    }
}

struct Compositor {
    queue: EventQueue<Seats>,
    seats: Seats,
    since: Instant,
}

/// What was said of each seat's rest.
#[derive(Default)]
struct Seats {
    rests: Vec<Option<Instant>>,
    said: bool,
}

impl Compositor {
    fn connect(socket: &Path) -> Result<Self, (String, bool)> {
        let stream =
            UnixStream::connect(socket).map_err(|error| (format!("{}: {error}", socket.display()), false))?;
        let says = |error: &dyn std::fmt::Display| {
            (format!("the Wayland compositor says: {}", shown(&error.to_string())), true)
        };
        let connection = Connection::from_socket(stream).map_err(|error| says(&error))?;
        let (globals, mut queue) = registry_queue_init::<Seats>(&connection).map_err(|error| says(&error))?;
        let handle = queue.handle();
        let notifier: ExtIdleNotifierV1 = globals.bind(&handle, 1..=1, ()).map_err(|_| {
            (
                "this Wayland desktop does not tell the idle time (it lacks ext-idle-notify-v1)".to_owned(),
                true,
            )
        })?;
        let mut seats = Seats::default();
        let names: Vec<u32> = globals.contents().with_list(|list| {
            let seats = list.iter().filter(|global| global.interface == "wl_seat");
            seats.map(|global| global.name).take(SEATS_MAX).collect()
        });
        let step_ms = u32::try_from(STEP.as_millis()).unwrap_or(1000);
        for (index, name) in names.into_iter().enumerate() {
            let seat: WlSeat = globals.registry().bind(name, 1, &handle, ());
            seats.rests.push(None);
            // Not `get_input_idle_notification`, which counts nothing but input.
            notifier.get_idle_notification(step_ms, &seat, &handle, index);
        }
        if seats.rests.is_empty() {
            return Err(("the Wayland compositor has no seat: no mouse and no keyboard".to_owned(), true));
        }
        queue.roundtrip(&mut seats).map_err(|error| says(&error))?;
        Ok(Self { queue, seats, since: Instant::now() })
    }

    /// The idle time, or why it is not known yet; an outer error if the compositor is gone.
    fn idle_ms(&mut self) -> Result<Result<u64, String>, String> {
        let answered = self.queue.roundtrip(&mut self.seats);
        answered.map_err(|_| "the Wayland compositor closed the connection".to_owned())?;
        if !self.seats.said && self.since.elapsed() < STEP * 2 {
            return Ok(Err("the Wayland compositor was asked for the idle time only now".to_owned()));
        }
        let idle = |rest: &Option<Instant>| rest.map_or(0, |since| since.elapsed().as_millis());
        let shortest = self.seats.rests.iter().map(idle).min().unwrap_or(0);
        Ok(Ok(u64::try_from(shortest).unwrap_or(u64::MAX)))
    }
}

impl Dispatch<ExtIdleNotificationV1, usize> for Seats {
    fn event(
        seats: &mut Self,
        _: &ExtIdleNotificationV1,
        event: ext_idle_notification_v1::Event,
        index: &usize,
        _: &Connection,
        _: &QueueHandle<Self>,
    ) {
        let rest = match event {
            ext_idle_notification_v1::Event::Idled => {
                let now = Instant::now();
                Some(now.checked_sub(STEP).unwrap_or(now))
            }
            ext_idle_notification_v1::Event::Resumed => None,
            _ => return,
        };
        seats.said = true;
        if let Some(slot) = seats.rests.get_mut(*index) {
            *slot = rest;
        }
    }
}

impl Dispatch<WlRegistry, GlobalListContents> for Seats {
    fn event(
        _: &mut Self,
        _: &WlRegistry,
        _: <WlRegistry as wayland_client::Proxy>::Event,
        _: &GlobalListContents,
        _: &Connection,
        _: &QueueHandle<Self>,
    ) {
    }
}

impl Dispatch<WlSeat, ()> for Seats {
    fn event(_: &mut Self, _: &WlSeat, _: wl_seat::Event, (): &(), _: &Connection, _: &QueueHandle<Self>) {}
}

delegate_noop!(Seats: ExtIdleNotifierV1);
