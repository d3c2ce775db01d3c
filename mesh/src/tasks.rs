//! Where the tasks of a process run: one executor with one thread, and the same for quinn.
//!
//! Not smol's own executor: its thread waits in `async_io::block_on`, and while any thread does, async-io's driver
//! looks for work up to a hundred times a second instead of sleeping until the system has some. That was a third of
//! what an idle agent cost. So nothing here may wait in `smol::block_on`; `smol::future::block_on` only parks.

use std::future::Future;
use std::io;
use std::net::UdpSocket;
use std::panic::catch_unwind;
use std::pin::Pin;
use std::sync::{Arc, LazyLock};
use std::thread;
use std::time::Instant;

use quinn::{AsyncTimer, AsyncUdpSocket, Runtime, SmolRuntime};
use smol::{Executor, Task, future};

static EXECUTOR: LazyLock<Executor<'static>> = LazyLock::new(|| {
    let started = thread::Builder::new().name("tasks".into()).spawn(|| {
        // A task that panics ends alone; who awaits it hears of it.
        while catch_unwind(|| future::block_on(EXECUTOR.run(future::pending::<()>()))).is_err() {}
    });
    if let Err(error) = started {
        // Nothing would ever run, and whoever waits for a task would wait without end.
        panic!("the system gives no thread for tasks: {error}");
    }
    let executor = Executor::new();
    // Hears of child processes that ended; async-process would start a thread of its own for it.
    executor.spawn(smol::process::driver()).detach();
    executor
});

/// Runs a future in the background. Dropping the task cancels it, unless it was detached.
///
/// # Panics
/// At the first task, if the system gives no thread.
pub fn spawn<T: Send + 'static>(future: impl Future<Output = T> + Send + 'static) -> Task<T> {
    EXECUTOR.spawn(future)
}

/// [`spawn`] and smol's timers and sockets, as quinn asks for them.
#[derive(Debug)]
pub(crate) struct OurTasks;

impl Runtime for OurTasks {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        SmolRuntime.new_timer(at)
    }

    fn spawn(&self, future: Pin<Box<dyn Future<Output = ()> + Send>>) {
        spawn(future).detach();
    }

    fn wrap_udp_socket(&self, socket: UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        SmolRuntime.wrap_udp_socket(socket)
    }
}
