//! Takes the one binary out of a verified archive.
//!
//! Signature and checksum were checked before; this is the second fence, against what a publisher's own tools may
//! have packed: nothing but plain files in one directory is accepted, and no archive unpacks to more than a bound.
//! Must never write outside the given directory.

use std::fs::File;
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use self_update::Extract;

use crate::error::{Result, UpdateError, io_error};

/// An archive unpacks to no more than this, in bytes.
pub(crate) const UNPACKED_BYTES_MAX: u64 = 1 << 30;
const ENTRIES_MAX: usize = 64;

/// Unpacks `TOP/BINARY` into `into` and gives its path.
pub(crate) fn unpack(archive: &Path, name: &str, top: &str, binary: &str, into: &Path) -> Result<PathBuf> {
    let bad = |reason: String| UpdateError::BadArchive { name: name.to_owned(), reason };
    let wanted = Path::new(top).join(binary);
    if !name.ends_with(".zip") {
        inspect(archive, name, top, &wanted)?;
    }
    // `Extract` refuses entries of zip archives that are links or lead outside.
    if let Err(error) = Extract::from_source(archive).extract_file(into, &wanted) {
        return Err(if let self_update::Error::Io(source) = error {
            io_error("unpack", archive)(source)
        } else {
            bad(error.to_string())
        });
    }
    let path = into.join(wanted);
    let metadata = std::fs::symlink_metadata(&path).map_err(io_error("read", &path))?;
    if !metadata.is_file() || metadata.len() == 0 || metadata.len() > UNPACKED_BYTES_MAX {
        return Err(bad(format!("`{binary}` is not a plain file of a sensible size")));
    }
    Ok(path)
}

/// Walks through the whole tar archive before anything is unpacked.
fn inspect(archive: &Path, name: &str, top: &str, wanted: &Path) -> Result<()> {
    let bad = |reason: String| UpdateError::BadArchive { name: name.to_owned(), reason };
    let torn = |error: io::Error| bad(format!("it cannot be read ({error})"));
    let file = File::open(archive).map_err(io_error("read", archive))?;
    let unpacked = Bounded { inner: flate2::read::GzDecoder::new(file), left: UNPACKED_BYTES_MAX };
    let mut tar = tar::Archive::new(unpacked);
    let mut found = 0;
    for (index, entry) in tar.entries().map_err(torn)?.enumerate() {
        let entry = entry.map_err(torn)?;
        if index >= ENTRIES_MAX {
            return Err(bad(format!("it has more than {ENTRIES_MAX} entries")));
        }
        let path = entry.path().map_err(torn)?.into_owned();
        let plain = path.components().all(|part| matches!(part, Component::Normal(_)));
        if !plain || !path.starts_with(top) || path.components().count() > 2 {
            return Err(bad(format!("`{}` lies outside of {top}/", path.display())));
        }
        let kind = entry.header().entry_type();
        if !kind.is_file() && !kind.is_dir() {
            return Err(bad(format!("`{}` is neither file nor directory", path.display())));
        }
        if path == wanted {
            found += 1;
        }
    }
    if found == 1 { Ok(()) } else { Err(bad(format!("it has {found} times `{}`", wanted.display()))) }
}

/// Ends with an error instead of reading on for ever.
struct Bounded<R> {
    inner: R,
    left: u64,
}

impl<R: Read> Read for Bounded<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(buffer)?;
        self.left = self
            .left
            .checked_sub(read as u64)
            .ok_or_else(|| io::Error::other(format!("it unpacks to more than {UNPACKED_BYTES_MAX} bytes")))?;
        Ok(read)
    }
}
