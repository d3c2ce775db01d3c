//! What the agent says of itself, line by line: to standard error, and to a file that is kept small.
//!
//! Two files at most, `story.log` and the one before it. Must never end the agent: what cannot be written is left out.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::daemon::lock;
use crate::limits::STORY_BYTES_MAX;

/// Where the story of the agent in `data_dir` is, and the part before it.
pub(crate) fn files(data_dir: &Path) -> [PathBuf; 2] {
    [data_dir.join("story.log"), data_dir.join("story.1.log")]
}

/// The file, shared by all who write to it.
#[derive(Clone)]
pub(crate) struct Story {
    inner: Arc<Mutex<Inner>>,
}

struct Inner {
    files: [PathBuf; 2],
    file: Option<File>,
    bytes: u64,
}

impl Story {
    /// Goes on with the story of the agent in `data_dir`.
    pub(crate) fn open(data_dir: &Path) -> Self {
        let inner = Inner { files: files(data_dir), file: None, bytes: 0 };
        Self { inner: Arc::new(Mutex::new(inner)) }
    }
}

impl Inner {
    fn write(&mut self, line: &[u8]) -> io::Result<()> {
        if self.bytes.saturating_add(line.len() as u64) > STORY_BYTES_MAX {
            self.file = None;
            fs::rename(&self.files[0], &self.files[1])?;
        }
        let file = match &mut self.file {
            Some(file) => file,
            None => {
                let file = File::options().create(true).append(true).open(&self.files[0])?;
                self.bytes = file.metadata()?.len();
                self.file.insert(file)
            }
        };
        file.write_all(line)?;
        self.bytes += line.len() as u64;
        Ok(())
    }
}

impl Write for Story {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        let _ = lock(&self.inner).write(line);
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_story_stays_small_and_its_end_is_kept() {
        let folder = tempfile::tempdir().unwrap();
        let mut story = Story::open(folder.path());
        let line = vec![b'x'; 1 << 20];
        for _ in 0..20 {
            story.write_all(&line).unwrap();
        }
        drop(story);
        let mut story = Story::open(folder.path());
        story.write_all(b"the end\n").unwrap();
        let [now, before] = files(folder.path()).map(|path| fs::read(path).unwrap());
        assert!(now.ends_with(b"the end\n"));
        assert!(now.len() as u64 <= STORY_BYTES_MAX && before.len() as u64 <= STORY_BYTES_MAX);
        assert!(fs::read_dir(folder.path()).unwrap().count() == 2);
    }
}
