//! The loop behind the icon: look at the agent, show what changed, do what was clicked.
//!
//! Runs in a thread of its own and knows no toolkit; the icon's thread hands events in by a bounded queue and is
//! never waited for nor made to wait. Must do nothing while no icon can be seen.

use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};

use crate::Agent;
use crate::client::{Client, Look};
use crate::menu::{Action, Menu};

/// Clicks that may wait while an order is under way.
const EVENTS_QUEUED_MAX: usize = 32;
const LOOK_EVERY: Duration = Duration::from_secs(2);
/// After an order the answer should be seen at once.
const LOOK_EVERY_AFTER_ORDER: Duration = Duration::from_millis(500);
const AFTER_ORDER: Duration = Duration::from_secs(5);
/// How long a failure stays at the menu's top.
const NOTICE_SHOWN: Duration = Duration::from_secs(30);

/// What the icon's side reports.
pub(crate) enum Event {
    /// The owner chose this.
    Chosen(Action),
    /// Something that was started for the owner failed later.
    Failed(String),
    /// [`Door::seen`] changed.
    Nudge,
    /// The desktop session is over.
    SessionOver,
}

/// Why the loop ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The owner removed the icon.
    QuitTray,
    /// The owner stopped Skein.
    QuitSkein,
    /// The desktop session is over.
    SessionOver,
    /// The icon cannot be shown any more, or could not for the time given.
    Unseen,
}

/// The icon's end of the queue.
#[derive(Clone)]
pub(crate) struct Door {
    events: SyncSender<Event>,
    seen: Arc<AtomicBool>,
}

impl Door {
    pub(crate) fn new() -> (Self, Receiver<Event>) {
        let (events, inbox) = sync_channel(EVENTS_QUEUED_MAX);
        (Self { events, seen: Arc::new(AtomicBool::new(false)) }, inbox)
    }

    /// Hands in what happened; drops it when the loop is that far behind.
    pub(crate) fn report(&self, event: Event) {
        let _ = self.events.try_send(event);
    }

    /// Whether something shows the icon.
    pub(crate) fn set_seen(&self, seen: bool) {
        self.seen.store(seen, Ordering::Release);
        self.report(Event::Nudge);
    }

    pub(crate) fn seen(&self) -> bool {
        self.seen.load(Ordering::Acquire)
    }

    /// Ends the loop, however long its queue is.
    #[cfg(target_os = "linux")]
    pub(crate) fn session_over(&self) {
        let _ = self.events.send(Event::SessionOver);
    }
}

/// Shows the agent's state until the owner, or the end of the session, ends it. `show` answers whether the icon
/// could be told. Gives up when the icon was not seen for `unseen_max`.
pub(crate) fn follow<F: Fn() -> Result<Agent>>(
    client: &mut Client<F>,
    door: &Door,
    inbox: &Receiver<Event>,
    unseen_max: Duration,
    mut show: impl FnMut(&Menu) -> bool,
) -> End {
    let mut shown: Option<Menu> = None;
    let mut notice: Option<(String, Instant)> = None;
    let mut ordered: Option<Instant> = None;
    let mut look_at = Instant::now();
    let mut unseen_since: Option<Instant> = None;
    loop {
        let now = Instant::now();
        notice = notice.filter(|(_, at)| now.duration_since(*at) < NOTICE_SHOWN);
        let wait = if door.seen() {
            unseen_since = None;
            if now >= look_at {
                let menu = menu(client.look(), notice.as_ref());
                if shown.as_ref() != Some(&menu) {
                    if !show(&menu) {
                        return End::Unseen;
                    }
                    tracing::debug!(state = menu.state.word(), "the tray icon changed");
                    shown = Some(menu);
                }
                let soon = ordered.is_some_and(|at| at.elapsed() < AFTER_ORDER);
                look_at = Instant::now() + if soon { LOOK_EVERY_AFTER_ORDER } else { LOOK_EVERY };
            }
            look_at.saturating_duration_since(Instant::now())
        } else {
            let since = *unseen_since.get_or_insert(now);
            let left = unseen_max.saturating_sub(since.elapsed());
            if left.is_zero() {
                return End::Unseen;
            }
            left
        };
        let action = match inbox.recv_timeout(wait) {
            Ok(Event::Chosen(action)) => action,
            Ok(Event::Failed(why)) => {
                notice = Some((why, Instant::now()));
                look_at = Instant::now();
                continue;
            }
            Ok(Event::Nudge) | Err(RecvTimeoutError::Timeout) => continue,
            Ok(Event::SessionOver) | Err(RecvTimeoutError::Disconnected) => return End::SessionOver,
        };
        match perform(client, door, action) {
            Ok(()) => match action {
                Action::QuitTray => return End::QuitTray,
                Action::QuitSkein => return End::QuitSkein,
                Action::PauseHalfHour
                | Action::PauseUntilTomorrow
                | Action::PauseGpu
                | Action::Resume
                | Action::Finish => ordered = Some(Instant::now()),
                Action::OpenDashboard => {}
            },
            Err(error) => {
                tracing::warn!("the tray could not {}: {error:#}", action.deed());
                notice = Some((format!("could not {}: {error:#}", action.deed()), Instant::now()));
            }
        }
        look_at = Instant::now();
    }
}

fn menu(look: Look, notice: Option<&(String, Instant)>) -> Menu {
    let menu = match look {
        Look::Here(status) => Menu::of(&status),
        Look::Away(why) => Menu::away(&why),
    };
    match notice {
        Some((notice, _)) => menu.with_notice(notice),
        None => menu,
    }
}

fn perform<F: Fn() -> Result<Agent>>(client: &Client<F>, door: &Door, action: Action) -> Result<()> {
    if action == Action::OpenDashboard {
        let (address, plain) = client.dashboard()?;
        return open(&address, plain, door.clone());
    }
    client.order(action)
}

/// Has the desktop open a page. What becomes of it is awaited elsewhere: some openers end with the browser.
fn open(address: &str, plain: String, door: Door) -> Result<()> {
    let (program, before): (&str, &[&str]) = if cfg!(windows) {
        ("rundll32.exe", &["url.dll,FileProtocolHandler"])
    } else if cfg!(target_os = "macos") {
        ("open", &[])
    } else {
        ("xdg-open", &[])
    };
    let mut child = Command::new(program)
        .args(before)
        .arg(address)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("`{program}` cannot be run; the dashboard is at {plain}"))?;
    let waiting = std::thread::Builder::new().name("tray browser".to_owned()).spawn(move || {
        if child.wait().is_ok_and(|status| !status.success()) {
            door.report(Event::Failed(format!("no browser opened; the dashboard is at {plain}")));
        }
    });
    waiting.map(drop).context("no thread can be started")
}
