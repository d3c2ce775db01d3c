//! Who looks at this machine's desktop from afar.
//!
//! Known are logind's remote sessions; VNC and RDP servers by their established connections; Sunshine by the sockets
//! that it opens for a stream; RustDesk and TeamViewer by the process that they start for a visit. AnyDesk and Chrome
//! Remote Desktop show nothing of this kind and are not seen. A session that a server shows elsewhere is there for ever:
//! it counts while somebody is connected, and is missing where nothing tells that.

use std::collections::BTreeSet;
use std::path::Path;

use skein_policy::readings::Reading;

use super::bounded;
use super::logind::{Session, Visit};
use super::processes::Scan;

/// What a kind of server shows while somebody looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Server {
    /// An established connection to one of these ports.
    Tcp { name: &'static str, first: u16, last: u16 },
    /// A socket on one of these ports.
    Udp { name: &'static str, first: u16, last: u16 },
    /// Its process alone.
    Process { name: &'static str },
}

/// First and last of their usual ports.
const VNC_PORTS: (u16, u16) = (5900, 5999);
const RDP_PORTS: (u16, u16) = (3389, 3399);

const VNC: [&str; 9] = [
    "x11vnc",
    "x0vncserver",
    "x0tigervncserve",
    "Xvnc",
    "Xtigervnc",
    "vncserver-x11-c",
    "krfb",
    "vino-server",
    "wayvnc",
];

/// What a process serves, by its name and arguments.
pub(crate) fn server(name: &str, arguments: &[String]) -> Option<Server> {
    let has = |wanted: &str| arguments.iter().any(|argument| argument.starts_with(wanted));
    if VNC.iter().any(|known| name.starts_with(known)) {
        let (first, last) = VNC_PORTS;
        return Some(Server::Tcp { name: "VNC", first, last });
    }
    match name {
        "xrdp" | "gnome-remote-desktop-daemon" | "gnome-remote-de" | "krdpserver" => {
            let (first, last) = RDP_PORTS;
            Some(Server::Tcp { name: "RDP", first, last })
        }
        "sunshine" => Some(Server::Udp { name: "Sunshine", first: 47_998, last: 48_000 }),
        "rustdesk" if has("--cm") => Some(Server::Process { name: "RustDesk" }),
        _ if name.starts_with("TeamViewer_Desk") => Some(Server::Process { name: "TeamViewer" }),
        _ => None,
    }
}

/// Those of the servers that serve somebody now. The tables of sockets are read only if a server needs them.
pub(crate) fn visitors(root: &Path, servers: &BTreeSet<Server>) -> Vec<String> {
    let mut seen = Vec::new();
    for server in servers {
        let visit = match server {
            Server::Process { name } => Some((*name).to_owned()),
            Server::Tcp { name, first, last } => {
                let from = socket(root, ["tcp", "tcp6"], *first, *last, true);
                from.map(
                    |peer| if peer.is_empty() { (*name).to_owned() } else { format!("{name} from {peer}") },
                )
            }
            Server::Udp { name, first, last } => {
                socket(root, ["udp", "udp6"], *first, *last, false).map(|_| (*name).to_owned())
            }
        };
        seen.extend(visit);
    }
    seen
}

/// Who is connected to a session that a service shows elsewhere. The tables are read only for such a session.
pub(crate) fn visit(root: &Path, session: &Session) -> Visit {
    if !(session.active && session.serves_afar()) {
        return Visit::Nobody;
    }
    let service = session.service.to_lowercase();
    let runs = format!("a session by {} runs", session.service);
    let (first, last) = if service.contains("vnc") {
        VNC_PORTS
    } else if service.contains("xrdp") {
        RDP_PORTS
    } else {
        return Visit::Unknown(format!("{runs}, and nothing tells whether somebody looks at it"));
    };
    let tables = ["tcp", "tcp6"];
    match socket(root, tables, first, last, true) {
        Some(peer) => Visit::From(peer),
        // Its server listens where one looks, so a visitor would be seen.
        None if socket(root, tables, first, last, false).is_some() => Visit::Nobody,
        None => Visit::Unknown(format!("{runs}, and its server is at none of the ports {first} to {last}")),
    }
}

/// The peer of a socket on one of our ports; empty if it is not an IPv4 address.
fn socket(root: &Path, tables: [&str; 2], first: u16, last: u16, established: bool) -> Option<String> {
    for table in tables {
        let text = bounded(&root.join("proc/net").join(table), 4 << 20);
        for line in String::from_utf8_lossy(&text).lines().skip(1) {
            // 0: 0100007F:170C 0200000A:A2B1 01 …, the addresses in the machine's order of bytes.
            let mut fields = line.split_whitespace().skip(1);
            let (Some(local), Some(peer), Some(state)) = (fields.next(), fields.next(), fields.next()) else {
                continue;
            };
            let port = local.rsplit_once(':').and_then(|(_, port)| u16::from_str_radix(port, 16).ok());
            let ours = port.is_some_and(|port| (first..=last).contains(&port));
            if ours && (!established || state == "01") {
                let address = peer.split_once(':').filter(|(address, _)| address.len() == 8);
                let address = address.and_then(|(address, _)| u32::from_str_radix(address, 16).ok());
                let text = address.map(|raw| std::net::Ipv4Addr::from(raw.to_ne_bytes()).to_string());
                return Some(text.unwrap_or_default());
            }
        }
    }
    None
}

/// Joins logind's sessions and the servers' visitors.
pub(crate) fn reading(
    sessions: &Result<Vec<Session>, String>,
    scan: &Result<Scan, String>,
) -> Reading<Option<String>> {
    let watched = || sessions.iter().flatten().map(Session::watched_by);
    let session = watched().find_map(|who| who.ok().flatten());
    let visitor = scan.as_ref().ok().and_then(|scan| scan.visitors.first().cloned());
    if let Some(who) = session.or(visitor) {
        return Reading::Known(Some(who));
    }
    match (watched().find_map(Result::err), sessions, scan) {
        (Some(why), _, _) => Reading::Missing(why),
        (None, Err(why), Err(other)) => Reading::Missing(format!("{why}; {other}")),
        (None, _, _) => Reading::Known(None),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::fs;

    use super::{Server, Session, Visit, server, visit, visitors};

    #[test]
    fn a_visitor_is_seen_and_a_waiting_server_is_none() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("proc/net")).unwrap();
        let vnc = server("x11vnc", &[]).unwrap();
        let sunshine = server("sunshine", &[]).unwrap();
        let servers = BTreeSet::from([vnc, sunshine]);
        let head = "  sl  local_address rem_address   st tx_queue\n";
        let listening = "   0: 00000000:170C 00000000:0000 0A 00000000\n";
        fs::write(root.path().join("proc/net/tcp"), format!("{head}{listening}")).unwrap();
        assert_eq!(visitors(root.path(), &servers), Vec::<String>::new());
        let visit =
            format!("   1: 0A00000A:170C {:08X}:A2B1 01 00000000\n", u32::from_ne_bytes([10, 0, 0, 2]));
        fs::write(root.path().join("proc/net/tcp"), format!("{head}{listening}{visit}junk\n")).unwrap();
        fs::write(root.path().join("proc/net/udp6"), format!("{head}  9: 0000:BB7F 0000:0000 07 0\n"))
            .unwrap();
        assert_eq!(visitors(root.path(), &servers), ["VNC from 10.0.0.2", "Sunshine"]);
    }

    #[test]
    fn a_session_whose_server_is_elsewhere_is_not_known_to_be_alone() {
        let root = tempfile::tempdir().unwrap();
        let session =
            |service: &str| Session { active: true, service: service.to_owned(), ..Session::default() };
        let unknown = |service: &str| match visit(root.path(), &session(service)) {
            Visit::Unknown(why) => why.contains(service),
            Visit::Nobody | Visit::From(_) => false,
        };
        assert!(unknown("tigervnc"), "no table of sockets");
        assert!(unknown("chrome-remote-desktop") && unknown("nxserver") && unknown("x2go"));
        fs::create_dir_all(root.path().join("proc/net")).unwrap();
        let table = "  sl  local_address rem_address   st\n   0: 00000000:170D 00000000:0000 0A 0\n";
        fs::write(root.path().join("proc/net/tcp6"), table).unwrap();
        assert_eq!(visit(root.path(), &session("tigervnc")), Visit::Nobody);
        assert!(unknown("xrdp-sesman"), "that is VNC's port");
        assert_eq!(visit(root.path(), &session("gdm-password")), Visit::Nobody);
    }

    #[test]
    fn helpers_of_a_visit() {
        assert_eq!(server("rustdesk", &["rustdesk".to_owned(), "--service".to_owned()]), None);
        let visit = server("rustdesk", &["rustdesk".to_owned(), "--cm".to_owned()]);
        assert_eq!(visit, Some(Server::Process { name: "RustDesk" }));
        assert!(server("TeamViewer_Desktop", &[]).is_some());
        assert_eq!(server("teamviewerd", &[]), None);
    }
}
