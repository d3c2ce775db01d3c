//! `skein service` on Linux: a unit of systemd, the user's own or the machine's.
//!
//! The units are those of `packaging/systemd/`, with this binary's place in them; `install.sh` and the packages write the
//! same. Beside the user's own lies the entry by which a desktop starts the icon: a service knows no display. Must never
//! leave a unit or an entry that starts another binary than this one.

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};

use anyhow::{Context, Result, bail};

use super::say;
use crate::cli::DataDir;

const FOR_USER: &str = include_str!("../../../packaging/systemd/skein-user.service");
const FOR_SYSTEM: &str = include_str!("../../../packaging/systemd/skein.service");
const ICON: &str = include_str!("../../../packaging/desktop/skein-tray.desktop");
/// What the units have in place of this binary's path.
const PLACE_FOR_USER: &str = "%h/.local/bin/skein";
const PLACE_FOR_SYSTEM: &str = "/usr/bin/skein";

/// Writes the unit, and has it started now and at every log-in or boot.
///
/// # Errors
/// When there is no systemd, or it or the disk refuses.
pub(crate) fn install(data_dir: DataDir, system: bool, headless: bool) -> Result<ExitCode> {
    let binary = std::env::current_exe().context("cannot find this binary's own path")?;
    let path = unit(system)?;
    if system {
        fits_system(&binary, data_dir.data_dir.as_deref())?;
        if !has_user("skein")? {
            bail!("there is no user `skein` for the service to run as\nhint: {MAKE_USER}");
        }
    }
    let data_dir = data_dir.data_dir.map(|given| crate::config::data_dir(Some(given))).transpose()?;
    let text = text(system, headless, &binary, data_dir.as_deref())?;
    manager(system, &["--version"])?;
    let hint = if system {
        "run it by sudo, or without --system for yourself alone"
    } else {
        "check the folder's owner"
    };
    write(&path, &text, hint)?;
    if !system {
        if headless {
            remove(&icon_entry()?)?;
        } else {
            write(&icon_entry()?, &icon_text(&binary, data_dir.as_deref())?, hint)?;
        }
    }
    manager(system, &["daemon-reload"])?;
    manager(system, &["enable", "skein.service"])?;
    // Not `enable --now`: what runs already would go on, by the unit and the binary of before.
    manager(system, &["restart", "skein.service"])?;
    say(&format!("{} runs {} now and from every start on", path.display(), binary.display()))?;
    if system {
        say(
            "it is for machines at which nobody sits: no rule about an owner's use holds; on a desktop leave out --system",
        )?;
    } else {
        if !headless {
            say("the tray icon is there from the next log-in on; `skein tray` shows it now")?;
        }
        say("to have it run while nobody is logged in: loginctl enable-linger")?;
    }
    Ok(ExitCode::SUCCESS)
}

/// Stops the agent and removes the unit, and the icon's entry; its data stays.
///
/// # Errors
/// When there is none, or systemd refuses.
pub(crate) fn uninstall(system: bool) -> Result<ExitCode> {
    let path = unit(system)?;
    if !path.exists() {
        bail!("there is no {}\nhint: `skein service install` would write it", path.display());
    }
    manager(system, &["disable", "--now", "skein.service"])?;
    remove(&path)?;
    if !system {
        remove(&icon_entry()?)?;
    }
    manager(system, &["daemon-reload"])?;
    say("the service is removed; keys, log and data stay")?;
    Ok(ExitCode::SUCCESS)
}

/// Whether the service runs; fails if it does not.
///
/// # Errors
/// When there is no systemd.
pub(crate) fn status(system: bool) -> Result<ExitCode> {
    let mut command = systemctl(system);
    let answer = command.args(["is-active", "skein.service"]).output().context(NO_SYSTEMD)?;
    say(String::from_utf8_lossy(&answer.stdout).trim())?;
    Ok(if answer.status.success() { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// As `install.sh --system` makes it: with the groups that own the GPU's nodes.
const MAKE_USER: &str = "make it, then run this again:\n  sudo useradd --system --user-group --home-dir /var/lib/skein --no-create-home --shell /usr/sbin/nologin skein\n  \
     for group in render video; do sudo usermod -a -G $group skein; done";

/// What the machine's unit cannot see or does not heed.
fn fits_system(binary: &Path, data_dir: Option<&Path>) -> Result<()> {
    if let Some(given) = data_dir {
        bail!(
            "the machine's service keeps its data in /var/lib/skein, not in {}\nhint: leave out --data-dir, or --system",
            given.display()
        );
    }
    let hidden = ["/home", "/root", "/run/user", "/tmp", "/var/tmp"];
    if hidden.iter().any(|hidden| binary.starts_with(hidden)) {
        bail!(
            "the machine's service cannot see {}: its unit hides homes and temporary directories\n\
             hint: sudo install -m 755 {0} /usr/local/bin/skein && sudo /usr/local/bin/skein service install --system",
            binary.display()
        );
    }
    Ok(())
}

fn has_user(name: &str) -> Result<bool> {
    let mut command = Command::new("id");
    command.args(["-u", name]).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Ok(command.status().context("cannot ask `id` for users\nhint: install coreutils")?.success())
}

const NO_SYSTEMD: &str = "this system has no systemd\nhint: let your service manager start `skein up`, which leaves within seconds of SIGTERM";

fn systemctl(system: bool) -> Command {
    let mut command = Command::new("systemctl");
    if !system {
        command.arg("--user");
    }
    command.stdin(Stdio::null());
    command
}

fn manager(system: bool, arguments: &[&str]) -> Result<()> {
    let answer = systemctl(system).args(arguments).output().context(NO_SYSTEMD)?;
    if !answer.status.success() {
        let said = String::from_utf8_lossy(&answer.stderr).trim().to_owned();
        let hint = if system {
            "run it by sudo"
        } else {
            "log in to a session of your own; over SSH, `loginctl enable-linger` helps"
        };
        bail!("systemctl {}: {said}\nhint: {hint}", arguments.join(" "));
    }
    Ok(())
}

fn unit(system: bool) -> Result<PathBuf> {
    if system {
        return Ok(PathBuf::from("/etc/systemd/system/skein.service"));
    }
    Ok(config_dir()?.join("systemd/user/skein.service"))
}

fn icon_entry() -> Result<PathBuf> {
    Ok(config_dir()?.join("autostart/skein-tray.desktop"))
}

/// Where a user's own settings are.
fn config_dir() -> Result<PathBuf> {
    let from =
        |variable: &str| std::env::var_os(variable).filter(|value| !value.is_empty()).map(PathBuf::from);
    let config = from("XDG_CONFIG_HOME").or_else(|| from("HOME").map(|home| home.join(".config")));
    config.context("no home directory to write a unit to\nhint: set HOME, or use --system")
}

fn write(path: &Path, text: &str, hint: &str) -> Result<()> {
    let folder = path.parent().context("the unit has no folder")?;
    std::fs::create_dir_all(folder)
        .and_then(|()| std::fs::write(path, text))
        .with_context(|| format!("cannot write {}\nhint: {hint}", path.display()))
}

/// Removes a file if it is there.
fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Ok(()) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", path.display())),
    }
}

/// The unit with this binary in it.
fn text(system: bool, headless: bool, binary: &Path, data_dir: Option<&Path>) -> Result<String> {
    let (unit, place) = if system { (FOR_SYSTEM, PLACE_FOR_SYSTEM) } else { (FOR_USER, PLACE_FOR_USER) };
    let binary = plain(binary)?;
    let mut start = format!("ExecStart={binary} up");
    if system || headless {
        start.push_str(" --headless");
    }
    if let Some(data_dir) = data_dir {
        start.push_str(&format!("\nEnvironment=SKEIN_DATA_DIR={}", plain(data_dir)?));
    }
    let own = |line: &str| line.starts_with("ExecStart=") && line.contains(place);
    let lines: Vec<&str> = unit.lines().map(|line| if own(line) { &start } else { line }).collect();
    Ok(lines.join("\n") + "\n")
}

/// The icon's entry with this binary in it, as `install.sh` writes it.
fn icon_text(binary: &Path, data_dir: Option<&Path>) -> Result<String> {
    // Of what is special between an entry's quotes, `plain` lets nothing else through.
    let quoted = |path: &Path| plain(path).map(|path| format!("\"{}\"", path.replace('`', r"\\`")));
    let mut start = format!("Exec={} tray", quoted(binary)?);
    if let Some(data_dir) = data_dir {
        start.push_str(&format!(" --data-dir {}", quoted(data_dir)?));
    }
    let lines: Vec<&str> =
        ICON.lines().map(|line| if line.starts_with("Exec=") { start.as_str() } else { line }).collect();
    Ok(lines.join("\n") + "\n")
}

/// A path that systemd reads as it is written.
fn plain(path: &Path) -> Result<&str> {
    let text = path.to_str().context("a path is no text")?;
    if text.chars().any(|letter| letter.is_whitespace() || "%\"'\\$".contains(letter)) {
        bail!("systemd would misread the path {text}\nhint: choose a place without spaces and signs");
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_start_this_binary_and_nothing_else() {
        for system in [false, true] {
            for headless in [false, true] {
                let text = text(system, headless, Path::new("/opt/skein/bin/skein"), None).unwrap();
                let starts: Vec<&str> = text.lines().filter(|line| line.starts_with("ExecStart=")).collect();
                let wanted = if system || headless {
                    "ExecStart=/opt/skein/bin/skein up --headless"
                } else {
                    "ExecStart=/opt/skein/bin/skein up"
                };
                assert_eq!(starts, [wanted]);
            }
        }
        let text = |binary: &str, data: &str| text(false, false, Path::new(binary), Some(Path::new(data)));
        assert!(text("/opt/skein", "/data/a").unwrap().contains("\nEnvironment=SKEIN_DATA_DIR=/data/a\n"));
        assert!(text("/opt/my games/skein", "/data").is_err() && text("/opt/skein", "/my data").is_err());
    }

    #[test]
    fn the_icons_entry_starts_this_binary_and_knows_its_data() {
        let text =
            |data: Option<&str>| icon_text(Path::new("/opt/skein/bin/skein"), data.map(Path::new)).unwrap();
        let own = |text: &str| -> Vec<String> {
            text.lines().filter(|line| line.starts_with("Exec=")).map(str::to_owned).collect()
        };
        assert_eq!(own(&text(None)), [r#"Exec="/opt/skein/bin/skein" tray"#]);
        assert_eq!(own(&text(Some("/a`b"))), [r#"Exec="/opt/skein/bin/skein" tray --data-dir "/a\\`b""#]);
        let others = |text: &str| text.lines().filter(|line| !line.starts_with("Exec=")).count();
        assert_eq!(others(&text(None)), others(ICON));
        assert!(icon_text(Path::new("/opt/my games/skein"), None).is_err());
    }

    #[test]
    fn the_machines_service_takes_no_binary_that_it_cannot_see_and_no_data_elsewhere() {
        assert!(fits_system(Path::new("/usr/local/bin/skein"), None).is_ok());
        for hidden in ["/home/a/.local/bin/skein", "/root/skein", "/tmp/skein", "/run/user/1000/skein"] {
            let error = fits_system(Path::new(hidden), None).unwrap_err().to_string();
            assert!(error.contains(hidden) && error.contains("hint: sudo install -m 755 /"), "{error}");
        }
        assert!(fits_system(Path::new("/homes/skein"), None).is_ok());
        let error = fits_system(Path::new("/opt/skein"), Some(Path::new("/data"))).unwrap_err().to_string();
        assert!(error.contains("/data") && error.contains("hint: leave out --data-dir"), "{error}");
        assert!(has_user("root").unwrap() && !has_user("nobody-has-this-name").unwrap());
    }
}
