//! The files beside the installed binary, and the one change of names that installs another.
//!
//! `skein` is the installed binary, `skein.new` what was never proven, `skein.old` the version before. Only whole
//! files change names, and everything is durable before the next name changes. So the installed path holds, at
//! every moment, a binary that ran healthy before. On Windows a running binary cannot be replaced: it is moved
//! aside first, and the path is empty between two renames. Must never write into the installed file itself.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::path::{Path, PathBuf};

use crate::error::{Result, UpdateError, io_error};
use crate::state::sync_directory;

/// The installed binary and its neighbours.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) binary: PathBuf,
    pub(crate) new: PathBuf,
    pub(crate) old: PathBuf,
    old_part: PathBuf,
    directory: PathBuf,
}

/// Tells one file from another that has its name later: device and inode, or length and time of change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity(u64, u64);

impl Place {
    /// Follows links to where the binary really is.
    pub(crate) fn find(binary: &Path) -> Result<Self> {
        let binary = binary.canonicalize().map_err(io_error("find", binary))?;
        let directory = binary.parent().unwrap_or(Path::new("/")).to_owned();
        let beside = |word: &str| {
            let mut name = OsString::from(binary.file_stem().unwrap_or_default());
            name.push(word);
            if let Some(extension) = binary.extension() {
                name.push(".");
                name.push(extension);
            }
            directory.join(name)
        };
        Ok(Self {
            new: beside(".new"),
            old: beside(".old"),
            old_part: beside(".old-part"),
            binary,
            directory,
        })
    }

    /// Refuses what must not be changed by us: packages of the system, binaries of others.
    pub(crate) fn check(&self) -> Result<()> {
        if let Some((manager, hint)) = package_manager(&self.binary) {
            return Err(UpdateError::PackageManaged { binary: self.binary.clone(), manager, hint });
        }
        #[cfg(unix)]
        {
            use std::os::unix::fs::MetadataExt as _;
            let owner = fs::metadata(&self.binary).map_err(io_error("read", &self.binary))?.uid();
            let me = rustix::process::geteuid().as_raw();
            if owner != me {
                return Err(UpdateError::OtherOwner { binary: self.binary.clone(), owner, me });
            }
        }
        Ok(())
    }

    /// Creates an empty `skein.new`: finds out early that the directory cannot be written or the disk is full.
    pub(crate) fn reserve(&self) -> Result<()> {
        remove(&self.new)?;
        match OpenOptions::new().write(true).create_new(true).open(&self.new) {
            Ok(_) => Ok(()),
            Err(error)
                if [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem]
                    .contains(&error.kind()) =>
            {
                Err(UpdateError::NotWritable { directory: self.directory.clone(), reason: error.to_string() })
            }
            Err(error) => Err(io_error("create", &self.new)(error)),
        }
    }

    /// Copies a verified binary into `skein.new` with the installed one's mode, durably.
    /// `on_write` is called after the first piece was written.
    pub(crate) fn write_new(&self, from: &Path, on_write: &mut dyn FnMut()) -> Result<()> {
        let mut source = File::open(from).map_err(io_error("read", from))?;
        let write = io_error_writing(&self.new);
        let mut target = OpenOptions::new().write(true).truncate(true).open(&self.new).map_err(write)?;
        let mut buffer = vec![0; 1 << 16];
        let mut first = true;
        loop {
            let read = source.read(&mut buffer).map_err(io_error("read", from))?;
            if read == 0 {
                break;
            }
            target.write_all(&buffer[..read]).map_err(write)?;
            if std::mem::take(&mut first) {
                on_write();
            }
        }
        #[cfg(unix)]
        {
            use std::os::unix::fs::PermissionsExt as _;
            let installed = fs::metadata(&self.binary).map_err(io_error("read", &self.binary))?;
            // Never set-user-id, whatever the installed one has; always executable for its owner.
            let mode = installed.permissions().mode() & 0o777 | 0o500;
            target.set_permissions(fs::Permissions::from_mode(mode)).map_err(write)?;
        }
        target.sync_all().map_err(write)?;
        drop(target);
        sync_directory(&self.directory)
    }

    /// Which file the installed path leads to.
    pub(crate) fn identity(&self) -> Result<Identity> {
        identity(&self.binary).map_err(io_error("read", &self.binary))
    }

    /// Keeps the installed binary as `skein.old`, without a moment in which there is no `skein.old` if there was one.
    pub(crate) fn keep_old(&self) -> Result<()> {
        self.link_part()?;
        self.part_to_old()?;
        sync_directory(&self.directory)
    }

    /// Puts `from` (a neighbour) under the installed name, durably.
    pub(crate) fn install(&self, from: &Path) -> Result<()> {
        let failed = |error| io_error("replace", &self.binary)(error);
        #[cfg(not(windows))]
        fs::rename(from, &self.binary).map_err(failed)?;
        #[cfg(windows)]
        {
            // A running binary cannot be replaced, but moved. `skein.old` may be the same file by another name.
            let aside = self.binary.with_extension("running");
            remove(&aside)?;
            fs::rename(&self.binary, &aside).map_err(failed)?;
            if let Err(error) = fs::rename(from, &self.binary) {
                fs::rename(&aside, &self.binary).map_err(failed)?;
                return Err(failed(error));
            }
        }
        sync_directory(&self.directory)
    }

    /// Changes `skein` and `skein.old` round, so that going back can be gone back on.
    pub(crate) fn swap_with_old(&self) -> Result<()> {
        if !fs::symlink_metadata(&self.old).is_ok_and(|metadata| metadata.is_file()) {
            return Err(UpdateError::NoOld { binary: self.binary.clone() });
        }
        if identity(&self.old).ok() == identity(&self.binary).ok() {
            return Err(UpdateError::NoOld { binary: self.binary.clone() });
        }
        self.link_part()?;
        self.install(&self.old)?;
        self.part_to_old()?;
        sync_directory(&self.directory)
    }

    /// Removes what an interrupted update left beside the binary; gives what there was.
    pub(crate) fn clean(&self) -> Result<Vec<PathBuf>> {
        let mut removed = Vec::new();
        for path in [&self.new, &self.old_part] {
            if remove(path)? {
                removed.push(path.clone());
            }
        }
        // The old image of a process that has ended; as long as it runs, Windows keeps it.
        #[cfg(windows)]
        let _ = fs::remove_file(self.binary.with_extension("running"));
        if !removed.is_empty() {
            sync_directory(&self.directory)?;
        }
        Ok(removed)
    }

    fn link_part(&self) -> Result<()> {
        remove(&self.old_part)?;
        if fs::hard_link(&self.binary, &self.old_part).is_ok() {
            return Ok(());
        }
        // Some file systems have no second names for a file.
        let failed = io_error_writing(&self.old_part);
        fs::copy(&self.binary, &self.old_part).map_err(failed)?;
        File::open(&self.old_part).and_then(|file| file.sync_all()).map_err(failed)
    }

    fn part_to_old(&self) -> Result<()> {
        fs::rename(&self.old_part, &self.old).map_err(io_error("replace", &self.old))?;
        // A rename between two names of one file does nothing and leaves both.
        remove(&self.old_part).map(|_| ())
    }
}

/// Removes a file if it is there; says whether it was.
pub(crate) fn remove(path: &Path) -> Result<bool> {
    match fs::remove_file(path) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(io_error("remove", path)(error)),
    }
}

fn io_error_writing(path: &Path) -> impl Fn(io::Error) -> UpdateError + Copy {
    move |error| io_error("write", path)(error)
}

fn identity(path: &Path) -> io::Result<Identity> {
    let metadata = fs::metadata(path)?;
    #[cfg(unix)]
    {
        use std::os::unix::fs::MetadataExt as _;
        Ok(Identity(metadata.dev(), metadata.ino()))
    }
    #[cfg(not(unix))]
    {
        let changed = metadata.modified()?.duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Ok(Identity(metadata.len(), u64::try_from(changed.as_millis()).unwrap_or(0)))
    }
}

/// Who owns a binary outside of /usr/local and home directories, and the command that updates it.
fn package_manager(binary: &Path) -> Option<(&'static str, &'static str)> {
    let system = binary.starts_with("/usr") && !binary.starts_with("/usr/local");
    let system =
        system || ["/bin", "/sbin", "/nix", "/gnu", "/snap"].iter().any(|root| binary.starts_with(root));
    let exists = |path: &str| Path::new(path).exists();
    if !system {
        None
    } else if exists("/var/lib/dpkg/info/skein.list") {
        Some(("dpkg", "`sudo apt install --only-upgrade skein`, or `sudo dpkg -i` with the newer package"))
    } else if exists("/var/lib/rpm") || exists("/usr/lib/sysimage/rpm") {
        Some(("rpm", "`sudo dnf upgrade skein`, or `sudo rpm -U` with the newer package"))
    } else {
        Some(("the system's package manager", "use the package manager that installed it"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn place(folder: &Path) -> Place {
        fs::write(folder.join("skein"), "one").unwrap();
        Place::find(&folder.join("skein")).unwrap()
    }

    fn read(path: &Path) -> String {
        fs::read_to_string(path).unwrap()
    }

    #[test]
    fn packages_are_left_alone() {
        for path in ["/usr/bin/skein", "/bin/skein", "/usr/lib/skein/skein", "/nix/store/x/bin/skein"] {
            assert!(package_manager(Path::new(path)).is_some(), "{path}");
        }
        for path in ["/usr/local/bin/skein", "/home/a/.local/bin/skein", "/opt/skein", "/hive/miners/skein"] {
            assert!(package_manager(Path::new(path)).is_none(), "{path}");
        }
    }

    #[test]
    fn links_are_followed_to_the_real_directory() {
        let folder = tempfile::tempdir().unwrap();
        let inner = folder.path().join("inner");
        fs::create_dir(&inner).unwrap();
        let real = place(&inner);
        #[cfg(unix)]
        {
            std::os::unix::fs::symlink(&real.binary, folder.path().join("skein")).unwrap();
            let found = Place::find(&folder.path().join("skein")).unwrap();
            assert_eq!(found.new, real.new);
            assert_eq!(found.new.file_name().unwrap(), "skein.new");
        }
    }

    #[test]
    fn each_way_there_and_back() {
        let folder = tempfile::tempdir().unwrap();
        let place = place(folder.path());
        place.reserve().unwrap();
        fs::write(folder.path().join("source"), "two").unwrap();
        place.write_new(&folder.path().join("source"), &mut || ()).unwrap();
        place.keep_old().unwrap();
        // Once more, as after a crash between the steps: both names lead to one file now.
        place.keep_old().unwrap();
        assert!(!place.old_part.exists());
        place.install(&place.new).unwrap();
        assert_eq!((read(&place.binary), read(&place.old)), ("two".to_owned(), "one".to_owned()));
        place.swap_with_old().unwrap();
        assert_eq!((read(&place.binary), read(&place.old)), ("one".to_owned(), "two".to_owned()));
        place.swap_with_old().unwrap();
        assert_eq!((read(&place.binary), read(&place.old)), ("two".to_owned(), "one".to_owned()));
        assert!(place.clean().unwrap().is_empty());
        remove(&place.old).unwrap();
        assert!(matches!(place.swap_with_old(), Err(UpdateError::NoOld { .. })));
        assert_eq!(read(&place.binary), "two");
    }
}
