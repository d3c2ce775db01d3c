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
        }
    }

    pub(crate) fn graphical(&self) -> bool {
        matches!(self.kind.as_str(), "x11" | "wayland" | "mir")
    }

    /// Somebody sits at this machine in it.
    fn sits_here(&self) -> bool {
        self.active && !self.remote && !self.serves_afar() && self.class.starts_with("user")
    }

    /// Its programs' screens go over a network.
    fn serves_afar(&self) -> bool {
        let service = self.service.to_lowercase();
        ["xrdp", "vnc", "nxserver", "x2go", "chrome-remote-desktop"]
            .iter()
            .any(|known| service.contains(known))
    }

    /// Who looks at its desktop from afar, if it is such a session.
    pub(crate) fn watched_by(&self) -> Option<String> {
        if !(self.active && self.class.starts_with("user")) {
            return None;
        }
        if !((self.remote && self.graphical()) || self.serves_afar()) {
            return None;
        }
        let from =
            if self.remote_host.is_empty() { String::new() } else { format!(" from {}", self.remote_host) };
        let by = if self.service.is_empty() { String::new() } else { format!(" by {}", self.service) };
        Some(format!("{}{by}{from}", self.user))
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
    use super::{Session, idle_ms};

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
        let rdp = Session { service: "xrdp-sesman".to_owned(), ..session("x11") };
        assert_eq!(rdp.watched_by().as_deref(), Some("ada by xrdp-sesman"));
        let xdmcp = Session { remote: true, remote_host: "10.0.0.2".to_owned(), ..session("x11") };
        assert_eq!(xdmcp.watched_by().as_deref(), Some("ada from 10.0.0.2"));
        assert_eq!(session("x11").watched_by(), None);
        let ssh = Session { remote: true, ..session("tty") };
        assert_eq!(ssh.watched_by(), None);
    }
}
