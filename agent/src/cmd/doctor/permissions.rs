//! Whether this user may open the graphics cards that the Linux kernel shows.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use super::Finding;

pub(super) fn look() -> Vec<Finding> {
    let folders = ["/dev", "/dev/dri"].into_iter().filter_map(|folder| std::fs::read_dir(folder).ok());
    let paths = folders.flatten().filter_map(Result::ok).map(|entry| entry.path());
    let mut cards: Vec<PathBuf> = paths.filter(|path| is_card(path)).collect();
    cards.sort();
    let told = |path: &PathBuf| {
        let opened = File::options().read(true).write(true).open(path).map(drop);
        judge(path, opened, group(path).as_deref())
    };
    cards.iter().map(told).collect()
}

/// What computing opens: Mesa's nodes, AMD's compute and NVIDIA's own.
fn is_card(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let numbered =
        |prefix: &str| name.strip_prefix(prefix).is_some_and(|number| number.parse::<u32>().is_ok());
    numbered("renderD") || numbered("nvidia") || ["kfd", "nvidiactl", "nvidia-uvm"].contains(&&*name)
}

/// The group that a file belongs to.
fn group(path: &Path) -> Option<String> {
    let id = std::fs::metadata(path).ok()?.gid();
    named(id, &std::fs::read_to_string("/etc/group").ok()?).map(str::to_owned)
}

/// The name of a group, by the lines of `/etc/group`.
fn named(id: u32, groups: &str) -> Option<&str> {
    groups.lines().find_map(|line| {
        let mut parts = line.split(':');
        let name = parts.next()?;
        (parts.nth(1)?.parse() == Ok(id)).then_some(name)
    })
}

fn judge(path: &Path, opened: io::Result<()>, group: Option<&str>) -> Finding {
    let Err(error) = opened else {
        return Finding::good("permissions", format!("{} may be used", path.display()));
    };
    let remedy = match group {
        _ if error.kind() != io::ErrorKind::PermissionDenied => {
            "the kernel's log says why: `sudo dmesg`".to_owned()
        }
        Some("root") | None => {
            "it belongs to no group that can be joined: give it to `render` by a rule of udev \
             (`GROUP=\"render\", MODE=\"0660\"`), and the agent's user too: `sudo usermod -aG render $USER`"
                .to_owned()
        }
        Some(group) => format!(
            "add the agent's user to the group `{group}`: `sudo usermod -aG {group} $USER`, then log in again"
        ),
    };
    Finding::poor("permissions", format!("{} may not be used: {error}", path.display()), remedy)
}

#[cfg(test)]
mod tests {
    use super::super::Health;
    use super::*;

    #[test]
    fn a_card_that_this_user_may_not_open_is_told_with_its_group() {
        let judged = |opened, group| judge(Path::new("/dev/kfd"), opened, group);
        let denied = || Err(io::ErrorKind::PermissionDenied.into());
        assert_eq!(judged(Ok(()), None).state, Health::Good);
        let told = judged(denied(), Some("video"));
        assert_eq!(told.state, Health::Poor);
        assert!(told.told.contains("/dev/kfd"), "{told:?}");
        assert!(told.remedy.unwrap().contains("usermod -aG video "));
        assert!(!judged(denied(), Some("root")).remedy.unwrap().contains("-aG root"));
        let lost = judged(Err(io::ErrorKind::NotFound.into()), Some("video"));
        assert!(lost.remedy.unwrap().contains("dmesg"), "no right helps there");
    }

    #[test]
    fn the_nodes_of_all_makers_are_looked_at_and_no_others() {
        for name in ["dri/renderD128", "nvidia0", "nvidia15", "nvidiactl", "nvidia-uvm", "kfd"] {
            assert!(is_card(&Path::new("/dev").join(name)), "{name}");
        }
        for name in ["dri/card0", "nvidia-caps", "nvidia-modeset", "nvidia-uvm-tools", "null"] {
            assert!(!is_card(&Path::new("/dev").join(name)), "{name}");
        }
    }

    #[test]
    fn a_group_is_told_by_its_name() {
        let groups = "root:x:0:\n\nvideo:x:44:ada\nrender:x:104:\n";
        assert_eq!(named(104, groups), Some("render"));
        assert_eq!(named(4, groups), None);
    }
}
