//! logind's sessions: who sits at this machine, who looks at it from afar, and for how long nobody has touched it.

use std::collections::HashMap;

use zbus::zvariant::OwnedValue;

use crate::shown;

/// One session as logind describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Session {
    pub(crate) uid: u32,
    pub(crate) user: String,
    pub(crate) active: bool,
    /// `x11`, `wayland`, `mir`, `tty`, `unspecified`
    pub(crate) kind: String,
    /// `user`, `greeter`, `lock-screen`, `background`, `manager`
    pub(crate) class: String,
    /// What opened it: `gdm-password`, `xrdp-sesman`, `sshd`
    pub(crate) service: String,
    pub(crate) remote: bool,
    pub(crate) remote_host: String,
    /// `:0`, for X11
    pub(crate) display: String,
    pub(crate) idle_hint: bool,
    /// When the hint changed, or the console was last typed at; microseconds since 1970, 0 if never.
    pub(crate) idle_since_us: u64,
    /// Where a service shows its screen elsewhere: who is connected. logind does not know; see `remote`.
    pub(crate) visit: Visit,
}

/// Whether somebody is connected to a session that a service shows elsewhere. Such a session outlives its visitors and
/// is active all the time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) enum Visit {
    #[default]
    Nobody,
    /// Somebody at this address; empty if it cannot be told.
    From(String),
    /// Nothing tells; says why.
    Unknown(String),
}

impl Session {
    /// From the properties of `org.freedesktop.login1.Session`.
    pub(crate) fn from_properties(properties: &HashMap<String, OwnedValue>) -> Self {
        let text = |name: &str| {
            let value = properties.get(name).and_then(|value| value.downcast_ref::<&str>().ok());
            value.map(shown).unwrap_or_default()
        };
        let flag = |name: &str| properties.get(name).is_some_and(|value| value.downcast_ref() == Ok(true));
        let idle_since = properties.get("IdleSinceHint").and_then(|value| value.downcast_ref().ok());
        let user = properties
            .get("User")
            .and_then(|value| value.downcast_ref::<zbus::zvariant::Structure<'_>>().ok());
        let uid = user.as_ref().and_then(|user| user.fields().first()?.downcast_ref::<u32>().ok());
        Self {
            uid: uid.unwrap_or(u32::MAX),
            user: text("Name"),
            active: flag("Active"),
            kind: text("Type"),
            class: text("Class"),
            service: text("Service"),
            remote: flag("Remote"),
            remote_host: text("RemoteHost"),
            display: text("Display"),
            idle_hint: flag("IdleHint"),
            idle_since_us: idle_since.unwrap_or(0),
            visit: Visit::default(),
        }
    }

    pub(crate) fn graphical(&self) -> bool {
        matches!(self.kind.as_str(), "x11" | "wayland" | "mir")
    }

    /// Somebody sits at this machine in it.
    fn sits_here(&self) -> bool {
        self.active && !self.remote && !self.serves_afar() && self.class.starts_with("user")
    }

    /// A service shows it elsewhere.
    pub(crate) fn serves_afar(&self) -> bool {
        let service = self.service.to_lowercase();
        ["xrdp", "vnc", "nxserver", "x2go", "chrome-remote-desktop"]
            .iter()
            .any(|known| service.contains(known))
    }

    /// Who looks at its desktop from afar, if somebody does; or why nobody can tell.
    pub(crate) fn watched_by(&self) -> Result<Option<String>, String> {
        if !(self.active && self.class.starts_with("user")) {
            return Ok(None);
        }
        let mut from = self.remote_host.as_str();
        if self.serves_afar() {
            match &self.visit {
                Visit::Nobody => return Ok(None),
                Visit::Unknown(why) => return Err(why.clone()),
                // logind has the host of whoever opened it, perhaps long ago.
                Visit::From(peer) if !peer.is_empty() => from = peer,
                Visit::From(_) => {}
            }
        } else if !(self.remote && self.graphical()) {
            return Ok(None);
        }
        let from = if from.is_empty() { String::new() } else { format!(" from {from}") };
        let by = if self.service.is_empty() { String::new() } else { format!(" by {}", self.service) };
        Ok(Some(format!("{}{by}{from}", self.user)))
    }
}

/// How long nobody has touched the machine, as far as logind knows.
///
/// `covered` says of a session that its display was asked itself, which is better: a desktop tells logind only after
/// minutes that it rests, and many never do.
pub(crate) fn idle_ms(
    sessions: &[Session],
    now_us: u64,
    covered: impl Fn(&Session) -> bool,
) -> Option<Result<u64, String>> {
    let mut shortest: Option<u64> = None;
    let mut silent = None;
    for session in sessions.iter().filter(|session| session.sits_here() && !covered(session)) {
        let since_ms = now_us.saturating_sub(session.idle_since_us) / 1000;
        let idle = match (session.graphical(), session.idle_hint) {
            (_, _) if session.idle_since_us == 0 => None,
            // Of a console logind tells when it was last typed at.
            (false, _) | (true, true) => Some(since_ms),
            // It has told before that it rests, so it would tell now.
            (true, false) => Some(0),
        };
        match idle {
            Some(idle) => shortest = Some(shortest.map_or(idle, |known| known.min(idle))),
            None => {
                silent =
                    Some(format!("the desktop of {} does not tell logind whether it rests", session.user))
            }
        }
    }
    shortest.map(Ok).or(silent.map(Err))
}

#[cfg(test)]
mod tests {
    use super::{Session, Visit, idle_ms};

    fn session(kind: &str) -> Session {
        Session {
            uid: 1000,
            user: "ada".to_owned(),
            active: true,
            kind: kind.to_owned(),
            class: "user".to_owned(),
            ..Session::default()
        }
    }

    #[test]
    fn hints_are_believed_only_where_they_are_kept() {
        let now = 1_000_000_000;
        let one = |session: Session| idle_ms(&[session], now, |_| false);
        let rests = Session { idle_hint: true, idle_since_us: now - 7_000_000, ..session("wayland") };
        assert_eq!(one(rests.clone()), Some(Ok(7000)));
        let works = Session { idle_since_us: now - 7_000_000, ..session("wayland") };
        assert_eq!(one(works), Some(Ok(0)));
        assert!(
            matches!(one(session("x11")), Some(Err(why)) if why.contains("ada")),
            "a hint that was never kept"
        );
        let typed = Session { idle_since_us: now - 3_000_000, ..session("tty") };
        assert_eq!(one(typed.clone()), Some(Ok(3000)));
        assert_eq!(one(Session { remote: true, ..typed.clone() }), None, "ssh is not a seat");
        assert_eq!(one(Session { active: false, ..typed.clone() }), None, "switched away");
        assert_eq!(one(Session { class: "greeter".to_owned(), ..typed.clone() }), None, "the login screen");
        assert_eq!(
            idle_ms(&[rests, typed], now, |session| session.kind == "tty"),
            Some(Ok(7000)),
            "asked itself"
        );
    }

    #[test]
    fn those_who_look_from_afar() {
        let watched_by = |session: &Session| session.watched_by().map(Option::unwrap_or_default);
        let who = |text: &str| Ok::<String, String>(text.to_owned());
        let text = str::to_owned;
        let left = Session { service: text("xrdp-sesman"), ..session("x11") };
        assert_eq!(left.watched_by(), Ok(None), "it goes on without its visitor");
        let rdp = Session { visit: Visit::From(String::new()), ..left.clone() };
        assert_eq!(watched_by(&rdp), who("ada by xrdp-sesman"));
        let again = Session { visit: Visit::From(text("10.0.0.3")), remote_host: text("10.0.0.2"), ..left };
        assert_eq!(watched_by(&again), who("ada by xrdp-sesman from 10.0.0.3"));
        let gone = Session { active: false, ..again.clone() };
        assert_eq!(gone.watched_by(), Ok(None));
        let hidden = Session { visit: Visit::Unknown(text("nothing tells")), ..again };
        assert_eq!(hidden.watched_by(), Err(text("nothing tells")));
        let xdmcp = Session { remote: true, remote_host: text("10.0.0.2"), ..session("x11") };
        assert_eq!(watched_by(&xdmcp), who("ada from 10.0.0.2"));
        assert_eq!(session("x11").watched_by(), Ok(None));
        let ssh = Session { remote: true, ..session("tty") };
        assert_eq!(ssh.watched_by(), Ok(None));
    }
}
