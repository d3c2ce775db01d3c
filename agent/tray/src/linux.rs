//! The icon on Linux: a StatusNotifierItem on the session's D-Bus.
//!
//! ksni answers D-Bus from its own thread and only ever reads the menu that was last handed to it; it never waits for
//! the agent. A tray host may come, go, and come back. Must end when the session's bus does.

use std::time::Duration;

use anyhow::{Context, Result};
use ksni::blocking::{Handle, TrayMethods};

use crate::client::Client;
use crate::follow::{Door, End, Event, follow};
use crate::icon::{SIZES, draw};
use crate::menu::{Entry, Menu, State};
use crate::{Agent, Ended};

/// A host that came up in the moment between our question and our listening is noticed by asking again.
const ASK_AGAIN_AFTER: Duration = Duration::from_secs(30);

pub(crate) fn run(find: impl Fn() -> Result<Agent>) -> Result<Ended> {
    let (door, inbox) = Door::new();
    // A connection of our own, because ksni does not tell when the bus goes away.
    let bus = match zbus::blocking::Connection::session() {
        Ok(bus) => bus,
        Err(error) => return Ok(Ended::NoHost(error.to_string())),
    };
    watch(bus, door.clone())?;
    let mut client = Client::new(find);
    let mut told = false;
    loop {
        let item = Item { menu: Menu::away("looking for the agent"), door: door.clone() };
        door.set_seen(true);
        let handle = match item.assume_sni_available(true).spawn() {
            Ok(handle) => Some(handle),
            Err(ksni::Error::Dbus(error)) => {
                return Ok(if told { Ended::SessionOver } else { Ended::NoHost(error.to_string()) });
            }
            Err(error) => {
                tracing::debug!(%error, "the tray host refuses the icon");
                door.set_seen(false);
                None
            }
        };
        if !door.seen() && !told {
            tracing::info!("no tray host answers yet; the icon appears as soon as one does");
        }
        told = true;
        let end = follow(&mut client, &door, &inbox, ASK_AGAIN_AFTER, |menu| show(handle.as_ref(), menu));
        if let Some(handle) = handle {
            handle.shutdown().wait();
        }
        match end {
            End::QuitTray => return Ok(Ended::QuitTray),
            End::QuitSkein => return Ok(Ended::QuitSkein),
            End::SessionOver => return Ok(Ended::SessionOver),
            End::Unseen => {}
        }
    }
}

/// Hands the menu over; false when the icon's thread has ended.
fn show(handle: Option<&Handle<Item>>, menu: &Menu) -> bool {
    handle.is_some_and(|handle| handle.update(|item| item.menu = menu.clone()).is_some())
}

/// Reports the end of the bus, by which a session's end is known.
fn watch(bus: zbus::blocking::Connection, door: Door) -> Result<()> {
    let watching = std::thread::Builder::new().name("tray session".to_owned()).spawn(move || {
        zbus::blocking::MessageIterator::from(bus).take_while(Result::is_ok).for_each(drop);
        door.session_over();
    });
    watching.map(drop).context("no thread can be started\nhint: too many processes may be running")
}

/// The icon as ksni asks for it.
struct Item {
    menu: Menu,
    door: Door,
}

impl ksni::Tray for Item {
    /// Every click opens the menu: it says first why the machine works or does not.
    const MENU_ON_ACTIVATE: bool = true;

    fn id(&self) -> String {
        "skein".to_owned()
    }

    fn title(&self) -> String {
        self.menu.title.clone()
    }

    fn status(&self) -> ksni::Status {
        if self.menu.state == State::Trouble { ksni::Status::NeedsAttention } else { ksni::Status::Active }
    }

    fn icon_pixmap(&self) -> Vec<ksni::Icon> {
        pixmaps(self.menu.state)
    }

    fn attention_icon_pixmap(&self) -> Vec<ksni::Icon> {
        pixmaps(State::Trouble)
    }

    fn tool_tip(&self) -> ksni::ToolTip {
        ksni::ToolTip {
            title: self.menu.title.clone(),
            description: marked_up(&self.menu.tooltip),
            ..ksni::ToolTip::default()
        }
    }

    fn menu(&self) -> Vec<ksni::MenuItem<Self>> {
        self.menu.entries.iter().map(entry).collect()
    }

    fn watcher_online(&self) {
        tracing::info!("a tray host shows the icon");
        self.door.set_seen(true);
    }

    fn watcher_offline(&self, reason: ksni::OfflineReason) -> bool {
        tracing::debug!(?reason, "no tray host");
        self.door.set_seen(false);
        true
    }
}

fn pixmaps(state: State) -> Vec<ksni::Icon> {
    let pixmap = |size: usize| {
        let side = i32::try_from(size).unwrap_or_default();
        let mut data = draw(state, size).rgba;
        // ARGB in network order.
        data.chunks_exact_mut(4).for_each(|pixel| pixel.rotate_right(1));
        ksni::Icon { width: side, height: side, data }
    };
    SIZES.into_iter().map(pixmap).collect()
}

fn entry(entry: &Entry) -> ksni::MenuItem<Item> {
    match entry {
        Entry::Separator => ksni::MenuItem::Separator,
        Entry::Text(text) => {
            ksni::menu::StandardItem { label: plain(text), enabled: false, ..Default::default() }.into()
        }
        Entry::Item { label, action, enabled, checked } => {
            let (label, enabled, action) = (plain(label), *enabled, *action);
            let activate = Box::new(move |item: &mut Item| item.door.report(Event::Chosen(action)));
            match *checked {
                Some(checked) => {
                    ksni::menu::CheckmarkItem { label, enabled, checked, activate, ..Default::default() }
                        .into()
                }
                None => ksni::menu::StandardItem { label, enabled, activate, ..Default::default() }.into(),
            }
        }
    }
}

/// A menu's label takes an underscore as the mark of an access key unless it is doubled.
fn plain(text: &str) -> String {
    text.replace('_', "__")
}

/// A tooltip may carry markup, so what only looks like it is escaped.
fn marked_up(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}
