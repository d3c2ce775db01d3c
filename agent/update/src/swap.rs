//! The files beside the installed binary, and the one change of names that installs another.
//!
//! `skein` is the installed binary, `skein.new` what was never proven, `skein.old` the version before. Only whole
//! files change names, and everything is durable before the next name changes. So the installed path holds, at
//! every moment, a binary that ran healthy before.
//!
//! Windows moves what runs, and replaces and removes it not. There it is moved aside to `skein.gone-N`, and the name is
//! empty until the next rename; whoever starts the installed binary calls [`mend`] before. Must never write into the
//! installed file itself.

use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::error::{Result, UpdateError, io_error};
use crate::state::sync_directory;

/// So many files at once that still run and cannot be removed. Each update makes two at most, and the next removes those
/// whose processes have ended.
const GONE_MAX: usize = 16;

/// Tries after the first of what may pass, and the wait before each.
const TRIES: u32 = if cfg!(windows) { 20 } else { 0 };
const WAIT: Duration = Duration::from_millis(50);
/// Windows' `ERROR_SHARING_VIOLATION`: somebody has the file open and shares it with nobody.
const SHARED_WITH_NOBODY: i32 = 32;

/// Tries to take a lock, and the wait before each after the first.
const LOCK_TRIES: u32 = 10;
const LOCK_WAIT: Duration = Duration::from_millis(20);

/// The installed binary and its neighbours.
#[derive(Clone, Debug)]
pub(crate) struct Place {
    pub(crate) binary: PathBuf,
    pub(crate) new: PathBuf,
    pub(crate) old: PathBuf,
    old_part: PathBuf,
    directory: PathBuf,
}

/// Tells one file from another that has its name later, and from itself with other content.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    /// Device and inode, where there are such.
    file: (u64, u64),
    bytes: u64,
    changed: SystemTime,
}

impl Place {
    /// Follows links to where the binary really is.
    pub(crate) fn find(binary: &Path) -> Result<Self> {
        // What Windows makes of a path when it follows links is no name for every program.
        let found = if cfg!(windows) { std::path::absolute(binary) } else { binary.canonicalize() };
        found.map(Self::of).map_err(io_error("find", binary))
    }

    /// The names beside this path, whether or not there is anything.
    fn of(binary: PathBuf) -> Self {
        Self {
            new: beside(&binary, ".new"),
            old: beside(&binary, ".old"),
            old_part: beside(&binary, ".old-part"),
            directory: binary.parent().unwrap_or(Path::new("/")).to_owned(),
            binary,
        }
    }

    /// Keeps other updates of this binary out, whatever data directory they are for: agents may share it.
    pub(crate) fn lock(&self) -> Result<File> {
        // A directory can be locked itself, and nothing is left behind.
        #[cfg(unix)]
        let (path, opened) = (self.directory.clone(), File::open(&self.directory));
        #[cfg(not(unix))]
        let path = self.directory.join("skein.lock");
        #[cfg(not(unix))]
        let opened = OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = opened.map_err(|error| self.refused("lock", &path, error))?;
        held(file, &path)
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
        self.remove(&self.new)?;
        let created = OpenOptions::new().write(true).create_new(true).open(&self.new);
        created.map(|_| ()).map_err(|error| self.refused("create", &self.new, error))
    }

    fn refused(&self, action: &'static str, path: &Path, error: io::Error) -> UpdateError {
        if [io::ErrorKind::PermissionDenied, io::ErrorKind::ReadOnlyFilesystem].contains(&error.kind()) {
            return UpdateError::NotWritable { directory: self.directory.clone(), reason: error.to_string() };
        }
        io_error(action, path)(error)
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

    /// Which file `skein.new` is.
    pub(crate) fn new_identity(&self) -> Result<Identity> {
        identity(&self.new).map_err(io_error("read", &self.new))
    }

    /// Whether what is installed is byte by byte what is new.
    pub(crate) fn is_installed(&self) -> Result<bool> {
        same(&self.binary, &self.new).map_err(io_error("read", &self.new))
    }

    /// Keeps the installed binary as `skein.old`, without a moment in which there is no `skein.old` if there was one.
    pub(crate) fn keep_old(&self) -> Result<()> {
        self.link_part()?;
        self.part_to_old()?;
        sync_directory(&self.directory)
    }

    /// Puts `from` (a neighbour) under the installed name, durably.
    pub(crate) fn install(&self, from: &Path) -> Result<()> {
        self.put(from, &self.binary).map_err(io_error("replace", &self.binary))?;
        sync_directory(&self.directory)
    }

    /// Changes `skein` and `skein.old` round, so that going back can be gone back on.
    pub(crate) fn swap_with_old(&self) -> Result<()> {
        self.swap_by(&|from, to| self.put(from, to))
    }

    fn swap_by(&self, put: &dyn Fn(&Path, &Path) -> io::Result<()>) -> Result<()> {
        if !fs::symlink_metadata(&self.old).is_ok_and(|metadata| metadata.is_file()) {
            return Err(UpdateError::NoOld { binary: self.binary.clone() });
        }
        if identity(&self.old).ok() == identity(&self.binary).ok() {
            return Err(UpdateError::NoOld { binary: self.binary.clone() });
        }
        self.link_part()?;
        put(&self.old, &self.binary).map_err(io_error("replace", &self.binary))?;
        sync_directory(&self.directory)?;
        self.part_to_old()?;
        sync_directory(&self.directory)
    }

    /// Removes what an interrupted update left beside the binary; gives what there was.
    pub(crate) fn clean(&self) -> Result<Vec<PathBuf>> {
        let mut removed = Vec::new();
        for path in [&self.new, &self.old_part] {
            if self.remove(path)? {
                removed.push(path.clone());
            }
        }
        if cfg!(windows) {
            for gone in self.gone_names() {
                // What runs still stays for the next time.
                let _ = fs::remove_file(gone);
            }
        }
        if !removed.is_empty() {
            sync_directory(&self.directory)?;
        }
        Ok(removed)
    }

    /// Removes a file if it is there; says whether it was.
    pub(crate) fn remove(&self, path: &Path) -> Result<bool> {
        match remove(path) {
            Err(_) if cfg!(windows) => {
                let moved = self.free_name().and_then(|gone| rename(path, &gone));
                moved.map(|()| true).map_err(io_error("remove", path))
            }
            removed => removed,
        }
    }

    fn link_part(&self) -> Result<()> {
        self.remove(&self.old_part)?;
        if fs::hard_link(&self.binary, &self.old_part).is_ok() {
            return Ok(());
        }
        // Some file systems have no second names for a file.
        let failed = io_error_writing(&self.old_part);
        fs::copy(&self.binary, &self.old_part).map_err(failed)?;
        // Windows makes nothing durable that was opened for reading; elsewhere the copy may be read-only.
        let part = OpenOptions::new().read(true).write(cfg!(windows)).open(&self.old_part);
        part.and_then(|file| file.sync_all()).map_err(failed)
    }

    fn part_to_old(&self) -> Result<()> {
        self.put(&self.old_part, &self.old).map_err(io_error("replace", &self.old))?;
        // A rename between two names of one file does nothing and leaves both.
        self.remove(&self.old_part).map(|_| ())
    }

    /// Gives a file another name, in place of what has it.
    fn put(&self, from: &Path, to: &Path) -> io::Result<()> {
        match rename(from, to) {
            Err(error) if cfg!(windows) && passes(&error) => self.put_aside(from, to, &mut || ()),
            put => put,
        }
    }

    /// The same where what has the name runs and can only be moved; `between` is called while nothing has it.
    fn put_aside(&self, from: &Path, to: &Path, between: &mut dyn FnMut()) -> io::Result<()> {
        let gone = self.free_name()?;
        rename(to, &gone)?;
        between();
        if let Err(error) = rename(from, to) {
            rename(&gone, to)?;
            return Err(error);
        }
        // If it runs no more; else `clean` does it some day.
        let _ = fs::remove_file(&gone);
        Ok(())
    }

    /// A name for what has to make room.
    fn free_name(&self) -> io::Result<PathBuf> {
        let free = self.gone_names().find(|path| remove(path).is_ok());
        free.ok_or_else(|| io::Error::other("too many versions of it run at once"))
    }

    fn gone_names(&self) -> impl Iterator<Item = PathBuf> {
        (0..GONE_MAX).map(move |number| beside(&self.binary, &format!(".gone-{number}")))
    }
}

/// Fills the gap in which an update was cut off on Windows: gives the installed name to what had it, if nothing has it.
/// Must be called before the installed binary is started, by whoever goes on when an update dies.
pub fn mend(binary: &Path) -> Result<()> {
    let place = Place::of(std::path::absolute(binary).map_err(io_error("find", binary))?);
    if place.binary.exists() {
        return Ok(());
    }
    // Where there are both, it was being swapped with `skein.old`.
    let Some(last) = [&place.old_part, &place.old].into_iter().find(|path| path.is_file()) else {
        return Err(UpdateError::NoOld { binary: place.binary });
    };
    let mended = match fs::hard_link(last, &place.binary) {
        // Some file systems have no second names for a file.
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => rename(last, &place.binary),
        Ok(()) | Err(_) => Ok(()),
    };
    mended.map_err(io_error("replace", &place.binary))?;
    sync_directory(&place.directory)
}

/// The name with a word behind its stem: `skein.old`, `skein.old.exe`.
fn beside(binary: &Path, word: &str) -> PathBuf {
    let mut name = OsString::from(binary.file_stem().unwrap_or_default());
    name.push(word);
    if let Some(extension) = binary.extension() {
        name.push(".");
        name.push(extension);
    }
    binary.with_file_name(name)
}

/// Locks a file for as long as it is held; the lock ends with the process.
pub(crate) fn held(file: File, path: &Path) -> Result<File> {
    for _ in 1..LOCK_TRIES {
        if file.try_lock().is_ok() {
            return Ok(file);
        }
        // An agent that starts looks after leftovers for a moment, and a child has its parent's files for one.
        std::thread::sleep(LOCK_WAIT);
    }
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(fs::TryLockError::WouldBlock) => Err(UpdateError::Busy),
        Err(fs::TryLockError::Error(error)) => Err(io_error("lock", path)(error)),
    }
}

/// Gives a file another name, in place of any file that has it. On Windows, whoever has a file open may forbid it for a
/// moment, and virus scanners open every new file.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    let mut left = TRIES;
    loop {
        match fs::rename(from, to) {
            Err(error) if left > 0 && passes(&error) => {
                left -= 1;
                std::thread::sleep(WAIT);
            }
            renamed => return renamed,
        }
    }
}

fn passes(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::PermissionDenied || error.raw_os_error() == Some(SHARED_WITH_NOBODY)
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
    let file = {
        use std::os::unix::fs::MetadataExt as _;
        (metadata.dev(), metadata.ino())
    };
    #[cfg(not(unix))]
    let file = (0, 0);
    Ok(Identity { file, bytes: metadata.len(), changed: metadata.modified()? })
}

/// Whether two files have the same bytes.
fn same(one: &Path, other: &Path) -> io::Result<bool> {
    let (mut one, mut other) = (BufReader::new(File::open(one)?), BufReader::new(File::open(other)?));
    loop {
        let (ours, theirs) = (one.fill_buf()?, other.fill_buf()?);
        let bytes = ours.len().min(theirs.len());
        if bytes == 0 {
            return Ok(ours.len() == theirs.len());
        }
        if ours[..bytes] != theirs[..bytes] {
            return Ok(false);
        }
        one.consume(bytes);
        other.consume(bytes);
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

    fn names(place: &Place) -> Vec<String> {
        let entries = fs::read_dir(&place.directory).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// An installed "one", kept as `skein.old`, and a new "two".
    fn before_the_install(folder: &Path) -> Place {
        let place = place(folder);
        fs::write(&place.new, "two").unwrap();
        place.keep_old().unwrap();
        place
    }

    #[test]
    fn what_runs_is_moved_aside_and_whoever_starts_it_meanwhile_mends() {
        let folder = tempfile::tempdir().unwrap();
        let place = before_the_install(folder.path());
        let mut gaps = 0;
        place
            .put_aside(&place.new, &place.binary, &mut || {
                gaps += 1;
                assert!(!place.binary.exists());
                mend(&place.binary).unwrap();
                assert_eq!((read(&place.binary), read(&place.old)), ("one".to_owned(), "one".to_owned()));
                mend(&place.binary).unwrap();
            })
            .unwrap();
        assert_eq!((gaps, read(&place.binary), read(&place.old)), (1, "two".to_owned(), "one".to_owned()));
        assert_eq!(names(&place), ["skein", "skein.old"]);
    }

    #[test]
    fn a_move_without_a_successor_is_undone() {
        let folder = tempfile::tempdir().unwrap();
        let place = before_the_install(folder.path());
        let remove_it = &mut || fs::remove_file(&place.new).unwrap();
        let error = place.put_aside(&place.new, &place.binary, remove_it).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::NotFound);
        assert_eq!(read(&place.binary), "one");
        assert_eq!(names(&place), ["skein", "skein.old"]);
    }

    #[test]
    fn what_still_runs_has_a_name_of_its_own_each_time() {
        let folder = tempfile::tempdir().unwrap();
        let place = before_the_install(folder.path());
        // A directory with something in it can be removed as little as a program that runs.
        fs::create_dir_all(folder.path().join("skein.gone-0/it")).unwrap();
        assert_eq!(place.free_name().unwrap().file_name().unwrap(), "skein.gone-1");
        for number in 1..GONE_MAX {
            fs::create_dir_all(folder.path().join(format!("skein.gone-{number}/it"))).unwrap();
        }
        assert!(place.put_aside(&place.new, &place.binary, &mut || ()).is_err());
        assert_eq!(read(&place.binary), "one", "nothing has changed");
    }

    #[test]
    fn going_back_that_is_cut_off_in_the_gap_leaves_what_was_installed() {
        let folder = tempfile::tempdir().unwrap();
        let place = before_the_install(folder.path());
        place.install(&place.new).unwrap();
        let cut = |_: &Path, to: &Path| -> io::Result<()> {
            fs::rename(to, place.free_name()?)?;
            Err(io::Error::other("cut off"))
        };
        place.swap_by(&cut).unwrap_err();
        assert!(!place.binary.exists());
        mend(&place.binary).unwrap();
        assert_eq!((read(&place.binary), read(&place.old)), ("two".to_owned(), "one".to_owned()));
        place.clean().unwrap();
        place.swap_with_old().unwrap();
        assert_eq!((read(&place.binary), read(&place.old)), ("one".to_owned(), "two".to_owned()));
    }

    #[test]
    fn without_anything_to_mend_with_it_says_so() {
        let folder = tempfile::tempdir().unwrap();
        let binary = folder.path().join("skein");
        assert!(matches!(mend(&binary), Err(UpdateError::NoOld { .. })));
        assert!(!binary.exists());
    }

    #[test]
    fn a_file_is_another_when_its_name_or_its_content_is() {
        let folder = tempfile::tempdir().unwrap();
        let place = before_the_install(folder.path());
        let before = place.new_identity().unwrap();
        assert_eq!(place.new_identity().unwrap(), before);
        assert!(!place.is_installed().unwrap());
        fs::write(&place.new, "three").unwrap();
        assert_ne!(place.new_identity().unwrap(), before);
        fs::write(&place.new, "one").unwrap();
        assert!(place.is_installed().unwrap());
        fs::write(&place.new, "one and more").unwrap();
        assert!(!place.is_installed().unwrap());
    }
}
