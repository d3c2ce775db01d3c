//! No agent answers from the data directory: whether one is silent there, or runs from another, and what hinders a start.
//!
//! Must never advise to end a program without a word that it may be the owner's own agent.

use std::fs::{File, TryLockError};
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;

use super::{Finding, reach};
use crate::cli::UpArgs;
use crate::client::Client;
use crate::config::Config;
use crate::daemon::{Running, from_here};

/// Whoever has the API's port says within this who it is.
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// What lists the programs that have ports.
const LIST_PORTS: &str = if cfg!(windows) {
    "netstat -ano"
} else if cfg!(target_os = "macos") {
    "lsof -nP -i"
} else {
    "ss -lntup"
};

/// What an agent of any version tells whoever asks.
#[derive(Debug, Deserialize)]
struct Told {
    version: String,
    log: Log,
}

#[derive(Debug, Deserialize)]
struct Log {
    path: PathBuf,
}

pub(super) fn look(data_dir: &Path) -> Vec<Finding> {
    let args = UpArgs { data_dir: Some(data_dir.to_owned()), ..UpArgs::default() };
    let config = Config::load(args).ok();
    let held = is_held(data_dir);
    // One that was killed leaves its file, but not its lock.
    let running = Client::of(data_dir).ok().filter(|_| held == Some(true));
    let running = running.as_ref().map(Client::running);
    let api = running.map(|running| running.api).or(config.as_ref().map(|config| config.api));
    if let Some(told) = api.and_then(ask) {
        return vec![another(data_dir, &told)];
    }
    let here = data_dir.display();
    let agent = match held {
        Some(true) => return vec![silent(data_dir, running)],
        Some(false) => {
            Finding::poor("agent", "does not run", format!("`skein up --data-dir {here}` starts it"))
        }
        None => Finding::unknown(
            "agent",
            format!("this user may not see whether one runs in {here}"),
            format!("look as the agent's user, or as the administrator: `{}`", doctor_for(data_dir)),
        ),
    };
    let mut findings = vec![agent];
    if let Some(config) = config {
        findings.push(port("UDP", config.listen, UdpSocket::bind(config.listen).map(drop)));
        findings.push(port("TCP", config.api, TcpListener::bind(config.api).map(drop)));
        findings.extend(reach::look(&config.bootstrap));
    }
    findings
}

fn silent(data_dir: &Path, running: Option<&Running>) -> Finding {
    let process = running.map_or("its process".to_owned(), |running| format!("process {}", running.pid));
    Finding::bad(
        "agent",
        format!("runs and does not answer: {} is locked", data_dir.join("lock").display()),
        format!(
            "wait a minute, since it may be starting or updating; if it stays silent, start its service again, or end \
             {process} and `skein up --data-dir {}`",
            data_dir.display()
        ),
    )
}

/// Whether an agent has locked this directory; nothing where this user may not look. Makes no file.
fn is_held(data_dir: &Path) -> Option<bool> {
    match File::open(data_dir.join("lock")).map(|file| file.try_lock_shared()) {
        Ok(Ok(())) => Some(false),
        Ok(Err(TryLockError::WouldBlock)) => Some(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Some(false),
        Ok(Err(TryLockError::Error(_))) | Err(_) => None,
    }
}

/// The agent that has this door, if it is one.
fn ask(api: SocketAddr) -> Option<Told> {
    let api = from_here(api);
    let config = ureq::Agent::config_builder().proxy(None).timeout_global(Some(ANSWER_MAX)).build();
    let agent: ureq::Agent = config.into();
    let mut answer = agent.get(format!("http://{api}/api/status")).call().ok()?;
    answer.body_mut().read_json().ok()
}

/// An agent answers, which this command did not find by the data directory.
fn another(data_dir: &Path, told: &Told) -> Finding {
    let theirs = told.log.path.parent().unwrap_or(&told.log.path);
    if theirs == data_dir {
        return Finding::poor(
            "agent",
            format!(
                "runs, version {}, and this command, version {}, cannot ask it more",
                told.version,
                crate::version()
            ),
            format!(
                "look as the agent's user, or as the administrator (`{}`); if the versions differ, restart the agent",
                doctor_for(theirs)
            ),
        );
    }
    Finding::poor(
        "agent",
        format!(
            "none answers from {}; version {} runs on this machine in {}",
            data_dir.display(),
            told.version,
            theirs.display()
        ),
        format!("`{}` looks at that one; a second one needs its own --listen and --api", doctor_for(theirs)),
    )
}

/// The command that looks there, with the rights that it takes.
fn doctor_for(data_dir: &Path) -> String {
    let closed = cfg!(unix) && std::fs::read_dir(data_dir).is_err();
    format!("{}skein doctor --data-dir {}", if closed { "sudo " } else { "" }, data_dir.display())
}

fn port(protocol: &str, address: SocketAddr, bound: io::Result<()>) -> Finding {
    match bound {
        Ok(()) => Finding::good("port", format!("{protocol} {address} is free")),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => Finding::bad(
            "port",
            format!("{protocol} {address}: {error}"),
            format!(
                "`{LIST_PORTS}` says which program has it: unless that is an agent of yours, end it, or choose another \
                 port in config.toml"
            ),
        ),
        Err(error) => Finding::bad(
            "port",
            format!("{protocol} {address}: {error}"),
            "choose another address in config.toml",
        ),
    }
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader, Write};

    use serde_json::json;

    use super::super::Health;
    use super::*;

    /// Somebody who answers every request with this.
    fn answers(text: String) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming().map_while(Result::ok) {
                let lines = BufReader::new(&stream).lines().map_while(Result::ok);
                lines.take_while(|line| !line.is_empty()).for_each(drop);
                let _ = (&stream).write_all(text.as_bytes());
            }
        });
        address
    }

    fn agent_of(data_dir: &Path) -> SocketAddr {
        let status = json!({ "version": "0.0.9", "log": { "path": data_dir.join("log"), "entries": 3 } });
        let body = status.to_string();
        let length = body.len();
        answers(format!("HTTP/1.1 200 OK\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}"))
    }

    fn directory(api: SocketAddr) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let config = format!("listen = \"127.0.0.1:0\"\napi = \"{api}\"\n");
        std::fs::write(folder.path().join("config.toml"), config).unwrap();
        folder
    }

    fn nobody() -> SocketAddr {
        "127.0.0.1:1".parse().unwrap()
    }

    #[test]
    fn an_agent_of_another_directory_is_named_and_not_to_be_ended() {
        let told = look(directory(agent_of(Path::new("/nowhere/lib/skein"))).path());
        assert!(told.iter().all(|finding| finding.state != Health::Bad), "{told:?}");
        assert!(told[0].told.contains("0.0.9 runs on this machine in /nowhere/lib/skein"), "{told:?}");
        let remedy = told[0].remedy.as_deref().unwrap();
        assert!(remedy.contains("skein doctor --data-dir /nowhere/lib/skein"), "{remedy}");
    }

    #[test]
    fn the_agent_of_this_directory_that_is_not_understood_runs() {
        let folder = directory(nobody());
        let lock = File::create(folder.path().join("lock")).unwrap();
        lock.try_lock().unwrap();
        let api = agent_of(folder.path());
        let node = "00".repeat(32);
        let running = json!({ "pid": 7, "node": node, "listen": api, "api": api, "token": "" });
        std::fs::write(folder.path().join(crate::daemon::RUNNING_FILE), running.to_string()).unwrap();
        let told = look(folder.path());
        assert_eq!(told.len(), 1, "{told:?}");
        assert!(told[0].told.starts_with("runs, version 0.0.9"), "{told:?}");
        assert_eq!(told[0].state, Health::Poor);
    }

    #[test]
    fn an_agent_that_holds_its_directory_runs_and_does_not_answer() {
        let folder = directory(nobody());
        let lock = File::create(folder.path().join("lock")).unwrap();
        lock.try_lock().unwrap();
        let told = look(folder.path());
        assert_eq!(told.len(), 1, "its ports are its own: {told:?}");
        assert!(told[0].told.starts_with("runs and does not answer"), "{told:?}");
        drop(lock);
        assert_eq!(look(folder.path())[0].told, "does not run");
    }

    #[test]
    fn nothing_is_made_where_nothing_is() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(is_held(folder.path()), Some(false));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[test]
    fn a_port_that_a_stranger_has_is_told_with_what_names_him() {
        let told = look(directory(answers("SSH-2.0-other\r\n".to_owned())).path());
        let taken: Vec<_> = told.iter().filter(|finding| finding.state == Health::Bad).collect();
        assert_eq!(taken.len(), 1, "{told:?}");
        assert!(taken[0].told.starts_with("TCP "), "{told:?}");
        let remedy = taken[0].remedy.as_deref().unwrap();
        assert!(
            remedy.contains(LIST_PORTS) && remedy.contains("unless that is an agent of yours"),
            "{remedy}"
        );
        assert!(!cfg!(target_os = "linux") || LIST_PORTS.contains("-lntup"), "both UDP and TCP");
    }
}
