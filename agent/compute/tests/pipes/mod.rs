//! Owns a worker in this process, as a daemon sees it over its pipes, and the model that it is told of.
//! Must never start a process.

use std::fs;
use std::io::{PipeReader, PipeWriter, pipe};
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::thread::{JoinHandle, spawn};

use skein_compute::device::DeviceChoice;
use skein_compute::protocol::{ModelTask, Reply, Request, Response, Task, read_frame, write_frame};
use skein_compute::trainee::Method;
use skein_compute::worker::{WorkerError, run_until};
use skein_engine::manifest::Manifest;
use skein_engine::source::TensorSource;

pub(crate) struct Worker {
    pub(crate) to: PipeWriter,
    pub(crate) from: PipeReader,
    pub(crate) thread: JoinHandle<Result<(), WorkerError>>,
    pub(crate) gone: Receiver<()>,
    next: u64,
}

impl Worker {
    pub(crate) fn start() -> Self {
        let ((input, to), (from, output)) = (pipe().unwrap(), pipe().unwrap());
        let (sender, gone) = channel();
        // A test that does not wait for the end drops the receiver.
        let notice = move || {
            let _ = sender.send(());
        };
        let thread = spawn(move || run_until(&DeviceChoice::Cpu, input, output, notice));
        Self { to, from, thread, gone, next: 0 }
    }

    pub(crate) fn send(&mut self, body: Task) -> u64 {
        self.next += 1;
        write_frame(&mut self.to, &Request { id: self.next, body }).unwrap();
        self.next
    }

    pub(crate) fn reply(&mut self) -> Response {
        read_frame(&mut self.from).unwrap().unwrap()
    }

    /// The final reply to one task, and how many progress replies came before it.
    pub(crate) fn ask(&mut self, body: Task) -> (Reply, usize) {
        let id = self.send(body);
        let mut progress = 0;
        loop {
            let reply = self.reply();
            assert_eq!(reply.id, id);
            match reply.body {
                Reply::Progress { .. } => progress += 1,
                body => return (body, progress),
            }
        }
    }

    pub(crate) fn fails(&mut self, body: Task) -> String {
        match self.ask(body).0 {
            Reply::Failed { message } => message,
            other => panic!("{other:?}"),
        }
    }

    pub(crate) fn end(self) -> Result<(), WorkerError> {
        drop(self.to);
        self.thread.join().unwrap()
    }
}

/// The path of a file in a folder.
pub(crate) fn text(path: &Path, name: &str) -> String {
    path.join(name).to_str().unwrap().to_owned()
}

/// Cuts a model into pieces that lie in `place`.
pub(crate) fn add_model(place: &Path, model: &dyn TensorSource) -> ModelTask {
    let mut put = |bytes: &[u8]| {
        let digest = blake3::hash(bytes);
        fs::write(place.join(digest.to_hex().as_str()), bytes).map(|()| *digest.as_bytes())
    };
    let manifest = Manifest::build(model, &[], &mut put, &mut |_, _| {}).unwrap();
    fs::write(place.join("manifest"), manifest.encode().unwrap()).unwrap();
    let pieces = place.to_str().unwrap().to_owned();
    ModelTask { job: [1; 32], manifest: text(place, "manifest"), pieces, method: Method::Full }
}
