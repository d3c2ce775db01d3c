//! GPUs: what their drivers tell, and which programs besides ours count as using one.

use skein_policy::readings::{Gpu, Reading};

#[cfg(target_os = "linux")]
pub(crate) mod fdinfo;
#[cfg(any(target_os = "linux", windows))]
pub(crate) mod nvml;
#[cfg(target_os = "linux")]
pub(crate) mod sysfs;

/// From this share of its time on, a program uses a GPU for more than its window.
const BUSY_PERCENT: u32 = 10;

/// The same for what draws everybody's windows.
const DESKTOP_BUSY_PERCENT: u32 = 30;

/// A program that holds so much of a GPU's memory uses it though it may rest at the moment (a paused game, a loaded
/// model). Browsers hold less.
const HELD_BYTES: u64 = 1 << 30;

/// Programs that draw the desktop, as the first 15 characters of their names.
const DESKTOPS: [&str; 32] = [
    "Xorg",
    "X",
    "Xwayland",
    "gnome-shell",
    "mutter",
    "kwin_x11",
    "kwin_wayland",
    "plasmashell",
    "sway",
    "Hyprland",
    "weston",
    "niri",
    "labwc",
    "river",
    "wayfire",
    "cosmic-comp",
    "cinnamon",
    "muffin",
    "marco",
    "xfwm4",
    "picom",
    "compton",
    "compiz",
    "budgie-wm",
    "gala",
    "gamescope-wl",
    "phoc",
    "cage",
    "dwm.exe",
    "explorer.exe",
    "csrss.exe",
    "ShellHost.exe",
];

/// How one program uses one GPU.
#[derive(Clone, Debug, Default)]
pub(crate) struct Share {
    /// It computes and does not draw.
    pub(crate) computes: bool,
    /// Its share of the GPU's time.
    pub(crate) busy_percent: Option<u32>,
    /// What it holds.
    pub(crate) memory_bytes: Option<u64>,
}

/// Whether a program uses a GPU to compute, or to draw more than a desktop does.
pub(crate) fn counts(name: &str, share: &Share) -> bool {
    if share.computes {
        return true;
    }
    let busy = share.busy_percent.unwrap_or(0);
    if DESKTOPS.contains(&name) {
        return busy >= DESKTOP_BUSY_PERCENT;
    }
    busy >= BUSY_PERCENT || share.memory_bytes.is_some_and(|bytes| bytes >= HELD_BYTES)
}

/// A worker lives besides the daemon: what other programs do on the GPUs has to be known within seconds.
#[cfg(any(target_os = "linux", windows))]
pub(crate) fn works(own: &std::collections::BTreeSet<u32>) -> bool {
    own.len() > 1
}

/// A GPU of which nothing but its place is known.
pub(crate) fn unknown(id: String, name: String, why: &str) -> Gpu {
    Gpu {
        id,
        name,
        busy_percent: missing(why),
        temperature_c: missing(why),
        power_mw: missing(why),
        power_limit_mw: missing(why),
        memory_used_bytes: missing(why),
        memory_total_bytes: missing(why),
        fan_percent: missing(why),
        others: missing(why),
    }
}

pub(crate) fn missing<T>(why: &str) -> Reading<T> {
    Reading::Missing(why.to_owned())
}

#[cfg(test)]
mod tests {
    use super::{Share, counts};

    #[test]
    fn desktops_and_windows_do_not_count_and_games_and_models_do() {
        let draws = |busy, memory: u64| Share {
            computes: false,
            busy_percent: busy,
            memory_bytes: Some(memory << 20),
        };
        assert!(!counts("gnome-shell", &draws(Some(12), 3000)), "a desktop draws");
        assert!(
            counts("gnome-shell", &draws(Some(45), 300)),
            "a desktop that draws that much draws for somebody"
        );
        assert!(!counts("firefox", &draws(Some(4), 600)), "a browser rests");
        assert!(counts("firefox", &draws(Some(25), 600)), "a browser plays");
        assert!(counts("eldenring.exe", &draws(Some(0), 5000)), "a paused game");
        assert!(!counts("foot", &draws(None, 20)), "nothing is known of its share");
        assert!(counts("python3", &Share { computes: true, busy_percent: Some(0), memory_bytes: None }));
    }
}
