//! Idle time on Wayland, against a compositor of a few lines.
#![cfg(target_os = "linux")]
#![expect(clippy::unwrap_used, reason = "clippy takes helpers of tests for the product")]

mod machine;

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, Sender};
use std::time::{Duration, Instant};

use machine::{Machine, read, until};
use skein_sensors::Reading;
use wayland_protocols::ext::idle_notify::v1::server::ext_idle_notification_v1::{
    self, ExtIdleNotificationV1,
};
use wayland_protocols::ext::idle_notify::v1::server::ext_idle_notifier_v1::{self, ExtIdleNotifierV1};
use wayland_server::protocol::wl_seat::{self, WlSeat};
use wayland_server::{
    Client, DataInit, Dispatch, Display, DisplayHandle, GlobalDispatch, New, backend::ClientData,
};

/// What the test has the compositor say.
enum Say {
    Idled,
    Resumed,
}

#[derive(Default)]
struct Compositor {
    notifications: Vec<ExtIdleNotificationV1>,
    timeouts_ms: Vec<u32>,
}

struct Guest;
impl ClientData for Guest {}

impl GlobalDispatch<WlSeat, ()> for Compositor {
    fn bind(
        _: &mut Self,
        _: &DisplayHandle,
        _: &Client,
        seat: New<WlSeat>,
        (): &(),
        init: &mut DataInit<'_, Self>,
    ) {
        init.init(seat, ()).capabilities(wl_seat::Capability::Pointer);
    }
}

impl Dispatch<WlSeat, ()> for Compositor {
    fn request(
        _: &mut Self,
        _: &Client,
        _: &WlSeat,
        _: wl_seat::Request,
        (): &(),
        _: &DisplayHandle,
        _: &mut DataInit<'_, Self>,
    ) {
    }
}

impl GlobalDispatch<ExtIdleNotifierV1, ()> for Compositor {
    fn bind(
        _: &mut Self,
        _: &DisplayHandle,
        _: &Client,
        notifier: New<ExtIdleNotifierV1>,
        (): &(),
        init: &mut DataInit<'_, Self>,
    ) {
        init.init(notifier, ());
    }
}

impl Dispatch<ExtIdleNotifierV1, ()> for Compositor {
    fn request(
        compositor: &mut Self,
        _: &Client,
        _: &ExtIdleNotifierV1,
        request: ext_idle_notifier_v1::Request,
        (): &(),
        _: &DisplayHandle,
        init: &mut DataInit<'_, Self>,
    ) {
        // Only what counts a film too is answered; what counts input alone would never be told anything.
        if let ext_idle_notifier_v1::Request::GetIdleNotification { id, timeout, .. } = request {
            compositor.notifications.push(init.init(id, ()));
            compositor.timeouts_ms.push(timeout);
        }
    }
}

impl Dispatch<ExtIdleNotificationV1, ()> for Compositor {
    fn request(
        _: &mut Self,
        _: &Client,
        _: &ExtIdleNotificationV1,
        _: ext_idle_notification_v1::Request,
        (): &(),
        _: &DisplayHandle,
        _: &mut DataInit<'_, Self>,
    ) {
    }
}

/// Serves at a socket until the sender is dropped.
fn compositor(socket: &Path, tells_idle: bool) -> Sender<(Say, Sender<()>)> {
    let listener = UnixListener::bind(socket).unwrap();
    listener.set_nonblocking(true).unwrap();
    let (sender, orders) = mpsc::channel::<(Say, Sender<()>)>();
    std::thread::spawn(move || {
        let mut display = Display::<Compositor>::new().unwrap();
        let mut handle = display.handle();
        handle.create_global::<Compositor, WlSeat, ()>(1, ());
        if tells_idle {
            handle.create_global::<Compositor, ExtIdleNotifierV1, ()>(2, ());
        }
        let mut state = Compositor::default();
        loop {
            if let Ok((stream, _)) = listener.accept() {
                handle.insert_client(stream, Arc::new(Guest)).unwrap();
            }
            display.dispatch_clients(&mut state).unwrap();
            display.flush_clients().unwrap();
            match orders.recv_timeout(Duration::from_millis(2)) {
                Ok((say, done)) => {
                    assert_eq!(state.timeouts_ms, [1000]);
                    for notification in &state.notifications {
                        match say {
                            Say::Idled => notification.idled(),
                            Say::Resumed => notification.resumed(),
                        }
                    }
                    display.flush_clients().unwrap();
                    done.send(()).unwrap();
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => return,
            }
        }
    });
    sender
}

#[test]
fn the_compositors_word_is_followed() {
    let mut machine = Machine::bare();
    let socket = machine.path("wayland-0");
    machine.places.wayland_sockets = Some(vec![socket.clone()]);
    let orders = compositor(&socket, true);
    let say = |what| {
        let (done, said) = mpsc::channel();
        orders.send((what, done)).unwrap();
        said.recv().unwrap();
    };
    let mut sensors = machine.sensors();
    let first = read(&mut sensors);
    assert!(matches!(&first.owner_idle_ms, Reading::Missing(why) if why.contains("only now")), "{first:?}");
    assert!(matches!(&first.full_screen, Reading::Missing(why) if why.contains("Wayland")), "{first:?}");

    let began = Instant::now();
    say(Say::Idled);
    let idle = *read(&mut sensors).owner_idle_ms.known().unwrap();
    let longest = u64::try_from(began.elapsed().as_millis()).unwrap() + 1001;
    assert!((1000..=longest).contains(&idle), "{idle}: a second had passed when it was said");
    until(&mut sensors, "it grows", |readings| readings.owner_idle_ms.known().is_some_and(|ms| *ms > 1300));
    say(Say::Resumed);
    assert_eq!(read(&mut sensors).owner_idle_ms, Reading::Known(0));

    drop(orders);
    until(&mut sensors, "it is gone", |readings| readings.owner_idle_ms.known().is_none());
}

#[test]
fn a_compositor_that_does_not_tell_is_named() {
    let mut machine = Machine::bare();
    let socket = machine.path("wayland-0");
    machine.places.wayland_sockets = Some(vec![socket.clone()]);
    let _orders = compositor(&socket, false);
    let idle = read(&mut machine.sensors()).owner_idle_ms;
    assert!(matches!(&idle, Reading::Missing(why) if why.contains("ext-idle-notify-v1")), "{idle:?}");
}
