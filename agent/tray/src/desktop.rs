//! The icon on Windows and macOS.
//!
//! Both want the icon in the main thread's event loop; the agent is followed from another thread, which sends what
//! changed to that loop. Untested on either system.

use std::time::Duration;

use anyhow::{Context, Result};
use tray_icon::menu::{CheckMenuItem, IsMenuItem, Menu as List, MenuEvent, MenuItem, PredefinedMenuItem};
use tray_icon::{Icon, TrayIcon, TrayIconBuilder};
use winit::application::ApplicationHandler;
use winit::event::WindowEvent;
use winit::event_loop::{ActiveEventLoop, ControlFlow, EventLoop};
use winit::window::WindowId;

use crate::client::Client;
use crate::follow::{Door, End, Event, follow};
use crate::icon::draw;
use crate::menu::{Action, Entry, Menu};
use crate::{Agent, Ended};

/// Both systems scale this one down where they show less.
const ICON_PIXELS: usize = 32;
/// Windows cuts tooltips there.
const TOOLTIP_CHARS_MAX: usize = 120;

enum Wake {
    Show(Menu),
    End(End),
}

pub(crate) fn run(find: impl Fn() -> Result<Agent> + Send + 'static) -> Result<Ended> {
    let mut events = EventLoop::with_user_event();
    #[cfg(target_os = "macos")]
    winit::platform::macos::EventLoopBuilderExtMacOS::with_activation_policy(
        &mut events,
        winit::platform::macos::ActivationPolicy::Accessory,
    );
    let events = match events.build() {
        Ok(events) => events,
        Err(error) => return Ok(Ended::NoHost(error.to_string())),
    };
    events.set_control_flow(ControlFlow::Wait);
    let (door, inbox) = Door::new();
    door.set_seen(true);
    let clicks = door.clone();
    MenuEvent::set_event_handler(Some(move |event: MenuEvent| {
        if let Some(action) = Action::ALL.into_iter().find(|action| event.id.as_ref() == name(*action)) {
            clicks.report(Event::Chosen(action));
        }
    }));
    let wake = events.create_proxy();
    let leaving = door.clone();
    std::thread::Builder::new()
        .name("tray".to_owned())
        .spawn(move || {
            let show = |menu: &Menu| wake.send_event(Wake::Show(menu.clone())).is_ok();
            let end = follow(&mut Client::new(find), &door, &inbox, Duration::MAX, show);
            let _ = wake.send_event(Wake::End(end));
        })
        .context("no thread can be started\nhint: too many processes may be running")?;
    let mut shown = Shown { icon: None, ended: Ended::SessionOver, door: leaving };
    events.run_app(&mut shown).context("the desktop's event loop failed\nhint: start `skein tray` again")?;
    Ok(shown.ended)
}

struct Shown {
    icon: Option<TrayIcon>,
    ended: Ended,
    door: Door,
}

impl ApplicationHandler<Wake> for Shown {
    fn resumed(&mut self, _: &ActiveEventLoop) {}

    fn window_event(&mut self, _: &ActiveEventLoop, _: WindowId, _: WindowEvent) {}

    fn exiting(&mut self, _: &ActiveEventLoop) {
        self.door.report(Event::SessionOver);
    }

    fn user_event(&mut self, events: &ActiveEventLoop, wake: Wake) {
        match wake {
            Wake::Show(menu) => {
                if let Err(error) = self.show(&menu) {
                    self.ended = Ended::NoHost(format!("{error:#}"));
                    events.exit();
                }
            }
            Wake::End(end) => {
                self.ended = match end {
                    End::QuitTray => Ended::QuitTray,
                    End::QuitSkein => Ended::QuitSkein,
                    End::SessionOver | End::Unseen => Ended::SessionOver,
                };
                self.icon = None;
                events.exit();
            }
        }
    }
}

impl Shown {
    fn show(&mut self, menu: &Menu) -> Result<()> {
        let picture = draw(menu.state, ICON_PIXELS);
        let side = u32::try_from(picture.size)?;
        let icon = Icon::from_rgba(picture.rgba, side, side)?;
        let tooltip: String =
            format!("{}\n{}", menu.title, menu.tooltip).chars().take(TOOLTIP_CHARS_MAX).collect();
        let list = list(menu)?;
        match &self.icon {
            Some(shown) => {
                shown.set_icon(Some(icon))?;
                shown.set_tooltip(Some(tooltip))?;
                shown.set_menu(Some(Box::new(list)));
            }
            None => {
                let builder = TrayIconBuilder::new().with_icon(icon).with_tooltip(tooltip);
                self.icon = Some(builder.with_menu(Box::new(list)).build()?);
            }
        }
        Ok(())
    }
}

fn list(menu: &Menu) -> Result<List> {
    let list = List::new();
    for entry in &menu.entries {
        let item: Box<dyn IsMenuItem> = match entry {
            Entry::Separator => Box::new(PredefinedMenuItem::separator()),
            Entry::Text(text) => Box::new(MenuItem::new(plain(text), false, None)),
            Entry::Item { label, action, enabled, checked: None } => {
                Box::new(MenuItem::with_id(name(*action), plain(label), *enabled, None))
            }
            Entry::Item { label, action, enabled, checked: Some(checked) } => {
                Box::new(CheckMenuItem::with_id(name(*action), plain(label), *enabled, *checked, None))
            }
        };
        list.append(item.as_ref())?;
    }
    Ok(list)
}

/// A label takes `&` as the mark of an access key unless it is doubled.
fn plain(text: &str) -> String {
    text.replace('&', "&&")
}

/// What an entry is called in the toolkit's events.
fn name(action: Action) -> &'static str {
    match action {
        Action::PauseHalfHour => "pause-half-hour",
        Action::PauseUntilTomorrow => "pause-until-tomorrow",
        Action::PauseGpu => "pause-gpu",
        Action::Resume => "resume",
        Action::Finish => "finish",
        Action::OpenDashboard => "open-dashboard",
        Action::QuitTray => "quit-tray",
        Action::QuitSkein => "quit-skein",
    }
}
