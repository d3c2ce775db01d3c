//! Games: by GameMode, by the marks that launchers leave on processes, and by the owner's names.

use skein_policy::readings::Reading;

use super::bus::SessionBus;
use super::processes::{Lists, Scan};
use crate::{installed_to_play, shown};

/// What launchers start around a game, which may outlive it; none of them is one.
const AROUND: [&str; 38] = [
    "steam",
    "steam.exe",
    "steamwebhelper",
    "steamerrorrepor",
    "reaper",
    "fossilize_repla",
    "pressure-vessel",
    "pressure-vessel-wrap",
    "pv-adverb",
    "pv-bwrap",
    "srt-bwrap",
    "srt-logger",
    "steam-launch-wrapper",
    "steam-runtime-l",
    "gameoverlayui",
    "gldriverquery",
    "vulkandriverquery",
    "wine",
    "wine64",
    "wine-preloader",
    "wine64-preloader",
    "wineserver",
    "winedevice.exe",
    "services.exe",
    "plugplay.exe",
    "svchost.exe",
    "rpcss.exe",
    "explorer.exe",
    "tabtip.exe",
    "conhost.exe",
    "start.exe",
    "bash",
    "sh",
    "python3",
    "proton",
    "xalia.exe",
    "umu-run",
    "lutris-wrapper",
];

/// Steam's own number and that of "no game".
const NO_GAMES: [&str; 2] = ["0", "769"];

/// The first game that anybody knows of.
pub(crate) fn reading(
    bus: &Result<SessionBus, String>,
    scan: &Result<Scan, String>,
    lists: &Lists,
) -> Reading<Option<String>> {
    let registered = bus.iter().flat_map(|bus| &bus.games).find(|name| !lists.excluded(name));
    match scan {
        _ if registered.is_some() => Reading::Known(registered.cloned()),
        Ok(scan) => Reading::Known(scan.game.clone()),
        Err(why) => Reading::Missing(why.clone()),
    }
}

/// What a process is called if it is a game. `environment` is empty for other users' processes.
pub(crate) fn game(name: &str, arguments: &[String], environment: &[u8], lists: &Lists) -> Option<String> {
    if name.is_empty() || lists.excluded(name) {
        return None;
    }
    if lists.named(name) {
        return Some(name.to_owned());
    }
    if AROUND.iter().any(|known| name.eq_ignore_ascii_case(known)) {
        return None;
    }
    if name == "gamescope" || name == "gamescope-wl" {
        // A handheld's whole desktop is a gamescope too.
        let desktop = arguments.iter().any(|argument| argument == "-e" || argument == "--steam");
        return (!desktop).then(|| "gamescope".to_owned());
    }
    let program = arguments.first().map(|path| path.replace('\\', "/").to_lowercase()).unwrap_or_default();
    if installed_to_play(&program) {
        return Some(name.to_owned());
    }
    let installed = program.contains("/steamapps/common/");
    let started = variables(environment).any(|(variable, value)| match variable {
        "SteamAppId" | "SteamGameId" => !value.is_empty() && !NO_GAMES.contains(&value),
        "LUTRIS_GAME_UUID" | "HEROIC_APP_NAME" => !value.is_empty(),
        _ => false,
    });
    (started && !installed).then(|| name.to_owned())
}

/// The variables of an environment as `/proc/PID/environ` has it.
pub(crate) fn variables(environment: &[u8]) -> impl Iterator<Item = (&str, &str)> {
    let texts = environment.split(|byte| *byte == 0).filter_map(|entry| std::str::from_utf8(entry).ok());
    texts.filter_map(|entry| entry.split_once('='))
}

/// A program's name from what the kernel (`comm`, 15 letters at most) and the program itself (`argv[0]`) say.
pub(crate) fn program(comm: &str, first_argument: &str) -> String {
    let last = first_argument.rsplit(['/', '\\']).next().unwrap_or_default();
    let windows = last.to_lowercase().ends_with(".exe");
    let longer = comm.len() == 15 && last.starts_with(comm);
    shown(if windows || longer || comm.is_empty() { last } else { comm })
}

#[cfg(test)]
mod tests {
    use super::{game, program};
    use crate::platform::processes::Lists;

    fn look(command: &str, environment: &str) -> Option<String> {
        let arguments: Vec<String> = command.split('|').map(str::to_owned).collect();
        let name = program("", &arguments[0]);
        let lists = Lists::new(&["Factorio".to_owned()], &["blender".to_owned()]);
        game(&name, &arguments, environment.replace('|', "\0").as_bytes(), &lists)
    }

    #[test]
    fn games_are_known_by_their_marks() {
        let steam = "PATH=/bin|SteamAppId=1245620|SteamGameId=1245620";
        let proton = "Z:\\home\\ada\\.steam\\steamapps\\common\\ELDEN RING\\Game\\eldenring.exe";
        assert_eq!(look(proton, steam).as_deref(), Some("eldenring.exe"));
        assert_eq!(
            look(proton, "").as_deref(),
            Some("eldenring.exe"),
            "another user's, or no environment yet"
        );
        let native =
            "/home/ada/.local/share/Steam/steamapps/common/dota 2 beta/game/bin/linuxsteamrt64/dota2";
        assert_eq!(look(native, "").as_deref(), Some("dota2"));
        assert_eq!(look("C:\\windows\\launcher.exe", steam).as_deref(), Some("launcher.exe"));
        assert_eq!(look("/opt/game", "LUTRIS_GAME_UUID=ab-cd").as_deref(), Some("game"));
        assert_eq!(look("/usr/bin/factorio|--x", "").as_deref(), Some("factorio"), "the owner's name for it");
        assert_eq!(look("gamescope|-f|--|game", "").as_deref(), Some("gamescope"));
    }

    #[test]
    fn what_launchers_leave_behind_is_no_game() {
        let steam = "SteamAppId=1245620";
        assert_eq!(look("C:\\windows\\system32\\services.exe", steam), None);
        assert_eq!(look("/usr/bin/wineserver", steam), None);
        assert_eq!(look("/ubuntu12_32/reaper|SteamLaunch|AppId=1245620", steam), None);
        assert_eq!(look("/x/steamapps/common/Proton 9.0/files/bin/some-helper", steam), None);
        assert_eq!(look("/x/steamapps/common/SteamLinuxRuntime_sniper/pressure-vessel/bin/pv", steam), None);
        assert_eq!(look("Z:\\x\\steamapps\\common\\wallpaper_engine\\wallpaper64.exe", steam), None);
        assert_eq!(look("/x/steamapps/common/SteamVR/bin/linux64/vrserver", steam), None);
        assert_eq!(look("/usr/bin/steamd", "SteamAppId=0"), None);
        assert_eq!(look("/usr/bin/bash", "TERM=xterm"), None);
        assert_eq!(look("/usr/bin/blender", steam), None, "the owner says it is none");
        assert_eq!(look("gamescope|-e|--|steam", ""), None, "a handheld's desktop");
    }

    #[test]
    fn names_are_whole() {
        assert_eq!(program("eldenring.exe", "Z:\\games\\eldenring.exe"), "eldenring.exe");
        assert_eq!(program("linuxsteamrt64x", "/opt/linuxsteamrt64x_long"), "linuxsteamrt64x_long");
        assert_eq!(program("Web Content", "/usr/lib/firefox"), "Web Content");
    }
}
