//! What displays, compositors, logind and consoles say together of the owner.
//!
//! The shortest idle time counts. A screen of which nobody knows anything makes long times of others worthless: the
//! owner may sit there.

use std::path::PathBuf;
use std::time::SystemTime;

use skein_policy::readings::Reading;

use super::logind::{self, Session};
use super::{wayland, x11};

/// Somebody who touched one screen so shortly ago is active, whatever the others do.
const JUST_NOW_MS: u64 = 60_000;

/// What all sources say.
pub(crate) struct Seen {
    pub(crate) x11: Result<x11::Displays, String>,
    pub(crate) wayland: Result<wayland::Answer, String>,
    pub(crate) mutter_idle_ms: Option<u64>,
    pub(crate) sessions: Result<Vec<Session>, String>,
    pub(crate) console_idle_ms: Option<u64>,
    /// The user that we are.
    pub(crate) uid: u32,
}

impl Seen {
    fn displays(&self) -> &[x11::Seen] {
        self.x11.as_ref().map_or(&[], |displays| displays.seen.as_slice())
    }

    fn wayland_present(&self) -> bool {
        self.wayland.as_ref().is_ok_and(|answer| answer.present)
            || self.displays().iter().any(|seen| seen.xwayland)
    }

    fn wayland_idle_ms(&self) -> Option<u64> {
        let told =
            self.wayland.as_ref().ok().and_then(|answer| answer.idle_ms.as_ref()?.as_ref().ok().copied());
        told.into_iter().chain(self.mutter_idle_ms).min()
    }

    /// Whether a session's own display tells its idle time.
    fn covered(&self, session: &Session) -> bool {
        if !session.graphical() {
            return false;
        }
        let of_x11 = |display: &str| {
            let mut displays = self.displays().iter().filter(|seen| !seen.xwayland && seen.idle_ms.is_ok());
            displays.any(|seen| display.is_empty() || seen.display == display)
        };
        if session.kind == "x11" && !session.display.is_empty() {
            return of_x11(&session.display);
        }
        let wayland = self.wayland_idle_ms().is_some();
        session.uid == self.uid && (wayland || (session.kind == "x11" && of_x11("")))
    }

    /// The owner's idle time.
    pub(crate) fn idle(&self) -> Reading<u64> {
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let now_us = u64::try_from(now.as_micros()).unwrap_or(u64::MAX);
        let sessions = self.sessions.as_deref().unwrap_or_default();
        let by_logind = logind::idle_ms(sessions, now_us, |session| self.covered(session));

        // Xwayland sees only what its programs get: its time is never too short, so it may shorten others, no more.
        let mut bounds: Vec<u64> =
            self.displays().iter().filter_map(|seen| seen.idle_ms.clone().ok()).collect();
        bounds.extend(self.console_idle_ms);
        let on_displays = self.displays().iter().any(|seen| !seen.xwayland && seen.idle_ms.is_ok());
        let mut told: Vec<u64> = self.wayland_idle_ms().into_iter().collect();
        told.extend(by_logind.as_ref().and_then(|idle| idle.as_ref().ok().copied()));
        let shortest = bounds.iter().chain(&told).min().copied();

        let unknown = match &by_logind {
            Some(Err(why)) => Some(why.clone()),
            // logind speaks for the Wayland session, or there is nothing that it would have to speak for.
            Some(Ok(_)) => None,
            None if self.wayland_present() && self.wayland_idle_ms().is_none() => Some(self.why_no_wayland()),
            None if told.is_empty() && !on_displays && self.screens() => Some(self.why_no_display()),
            None => None,
        };
        match (shortest, unknown) {
            (Some(ms), None) => Reading::Known(ms),
            (Some(ms), Some(_)) if ms < JUST_NOW_MS => Reading::Known(ms),
            (_, Some(why)) => Reading::Missing(why),
            (None, None) => Reading::Missing(self.why_no_display()),
        }
    }

    /// The program that fills a screen.
    pub(crate) fn full_screen(&self) -> Reading<Option<String>> {
        let mut told = Vec::new();
        let mut broken = None;
        for seen in self.displays() {
            match &seen.full_screen {
                Ok(Some(name)) => return Reading::Known(Some(name.clone())),
                Ok(None) => told.push(seen),
                Err(why) => broken = Some(why.clone()),
            }
        }
        if self.wayland_present() {
            let seen = if told.is_empty() { "" } else { "; of programs that run through Xwayland none does" };
            return Reading::Missing(format!(
                "Wayland has no common way to tell which window fills the screen{seen}"
            ));
        }
        match broken {
            Some(why) => Reading::Missing(why),
            None if told.is_empty() => Reading::Missing(self.why_no_display()),
            None => Reading::Known(None),
        }
    }

    /// Some screen is there, whether or not it tells anything.
    fn screens(&self) -> bool {
        let x11 = self.x11.as_ref().map_or(true, |x11| !x11.seen.is_empty() || !x11.refused.is_empty());
        let wayland = self.wayland.as_ref().map_or(true, |wayland| wayland.present);
        x11 || wayland
    }

    fn why_no_wayland(&self) -> String {
        let told = match &self.wayland {
            Err(why) => Some(why.clone()),
            Ok(answer) => answer.idle_ms.as_ref().and_then(|idle| idle.clone().err()),
        };
        told.unwrap_or_else(|| "the Wayland desktop cannot be asked for the idle time".to_owned())
    }

    fn why_no_display(&self) -> String {
        match (&self.x11, &self.wayland) {
            (Err(why), _) | (_, Err(why)) => why.clone(),
            (Ok(x11), Ok(_)) => {
                let broken = x11.seen.iter().find_map(|seen| seen.idle_ms.as_ref().err());
                let why = broken.or(x11.refused.first()).cloned();
                why.unwrap_or_else(|| {
                    "no desktop runs on this machine, or none that the agent can see".to_owned()
                })
            }
        }
    }
}

/// The text consoles: the kernel notes when a console was last typed at.
pub(crate) struct Consoles {
    root: PathBuf,
}

impl Consoles {
    pub(crate) fn new(root: PathBuf) -> Self {
        Self { root }
    }

    /// Milliseconds since somebody typed at a text console, or since boot; none where there are none (containers).
    pub(crate) fn idle_ms(&self) -> Option<u64> {
        let now = SystemTime::now();
        let ages = (1..=12).filter_map(|number| {
            let read = std::fs::metadata(self.root.join(format!("dev/tty{number}"))).ok()?.accessed().ok()?;
            // A clock that was set back: it was just now.
            u64::try_from(now.duration_since(read).unwrap_or_default().as_millis()).ok()
        });
        ages.min()
    }
}

#[cfg(test)]
mod tests {
    use skein_policy::readings::Reading;

    use super::{Seen, Session, wayland, x11};

    fn seen() -> Seen {
        Seen {
            x11: Ok(x11::Displays::default()),
            wayland: Ok(wayland::Answer::default()),
            mutter_idle_ms: None,
            sessions: Err("logind does not run".to_owned()),
            console_idle_ms: None,
            uid: 1000,
        }
    }

    fn display(number: u32, idle_ms: u64, xwayland: bool) -> x11::Seen {
        x11::Seen { display: format!(":{number}"), xwayland, idle_ms: Ok(idle_ms), full_screen: Ok(None) }
    }

    fn with(displays: Vec<x11::Seen>) -> Result<x11::Displays, String> {
        Ok(x11::Displays { seen: displays, refused: Vec::new() })
    }

    fn desktop(kind: &str, uid: u32) -> Result<Vec<Session>, String> {
        let text = str::to_owned;
        let session =
            Session { uid, active: true, kind: text(kind), class: text("user"), ..Session::default() };
        Ok(vec![Session { user: text("ada"), ..session }])
    }

    #[test]
    fn the_shortest_time_counts() {
        let x11 = with(vec![display(0, 500_000, false), display(1, 90_000, false)]);
        let all = Seen { x11, console_idle_ms: Some(70_000), ..seen() };
        assert_eq!(all.idle(), Reading::Known(70_000));
        assert_eq!(all.full_screen(), Reading::Known(None));
    }

    #[test]
    fn a_machine_without_screens_has_its_consoles() {
        assert!(matches!(seen().idle(), Reading::Missing(why) if why.contains("no desktop runs")));
        assert_eq!(Seen { console_idle_ms: Some(5), ..seen() }.idle(), Reading::Known(5));
    }

    #[test]
    fn a_wayland_desktop_that_tells_nothing_is_not_idle_because_a_virtual_display_is() {
        let lacks =
            "this Wayland desktop does not tell the idle time (it lacks ext-idle-notify-v1)".to_owned();
        let silent = wayland::Answer { present: true, idle_ms: Some(Err(lacks.clone())) };
        let x11 = with(vec![display(0, 800_000, true), display(9, 900_000, false)]);
        let all = Seen { x11, wayland: Ok(silent), sessions: desktop("wayland", 1000), ..seen() };
        assert!(matches!(all.idle(), Reading::Missing(why) if why.contains("logind")));
        let without_logind = Seen { sessions: Err(String::new()), ..all };
        assert_eq!(without_logind.idle(), Reading::Missing(lacks));
        assert!(matches!(without_logind.full_screen(), Reading::Missing(why) if why.contains("Wayland")));
        let gnome = Seen { mutter_idle_ms: Some(123), ..without_logind };
        assert_eq!(gnome.idle(), Reading::Known(123), "GNOME tells it in its own way");
    }

    #[test]
    fn another_user_at_the_screen_is_an_owner_too() {
        let x11 = with(vec![display(0, 900_000, false)]);
        let other = Seen { x11, sessions: desktop("wayland", 1001), ..seen() };
        assert!(matches!(other.idle(), Reading::Missing(_)), "nobody knows what the other does");
        let x11 = with(vec![display(0, 100, false)]);
        assert_eq!(Seen { x11, ..other }.idle(), Reading::Known(100), "but we know that somebody is here");
    }
}
