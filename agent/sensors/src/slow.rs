//! A sensor that may hang, on a thread of its own.
//!
//! The thread sleeps until it is asked, reads once, publishes, and sleeps again. Whoever asks waits until a deadline
//! and then makes do with the last answer while that is fresh. A thread that hangs in a driver is left there; the
//! sensor is missing until it comes back. The thread never holds the lock while it reads.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The threads parse small files and messages.
const STACK_BYTES: usize = 512 * 1024;

/// A sensor on a thread of its own; the thread ends when this is dropped, or when it comes back after that.
pub(crate) struct Slow<T> {
    /// What the owner calls it: `the X server`.
    name: &'static str,
    shared: Arc<Shared<T>>,
    /// How old an answer may be.
    fresh: Duration,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    changed: Condvar,
}

struct State<T> {
    /// Since when a question is open.
    asked: Option<Instant>,
    answer: Option<(T, Instant)>,
    /// The thread could not be started, or nobody asks any more.
    over: bool,
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Clone + Send + 'static> Slow<T> {
    /// Starts the thread, which calls `read` whenever it is asked.
    pub(crate) fn start(
        name: &'static str,
        fresh: Duration,
        mut read: impl FnMut() -> T + Send + 'static,
    ) -> Self {
        let state = State { asked: None, answer: None, over: false };
        let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
        let theirs = Arc::clone(&shared);
        let thread = std::thread::Builder::new().name("skein-sensor".to_owned()).stack_size(STACK_BYTES);
        let started = thread.spawn(move || {
            loop {
                let mut state = theirs.lock();
                while state.asked.is_none() && !state.over {
                    state = theirs.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                if state.over {
                    return;
                }
                drop(state);
                let value = read();
                let mut state = theirs.lock();
                state.answer = Some((value, Instant::now()));
                state.asked = None;
                drop(state);
                theirs.changed.notify_all();
            }
        });
        if started.is_err() {
            shared.lock().over = true;
        }
        Self { name, shared, fresh }
    }

    /// Has it read again, if it is not at it.
    pub(crate) fn ask(&self) {
        let mut state = self.shared.lock();
        if state.asked.is_none() {
            state.asked = Some(Instant::now());
        }
        drop(state);
        self.shared.changed.notify_all();
    }

    /// Its answer: the new one if it comes in time, else the last one while that is fresh, else why not. The patience
    /// counts from the question: one that hangs since earlier readings is not waited for again.
    pub(crate) fn answer(&self, patience: Duration) -> Result<T, String> {
        let mut state = self.shared.lock();
        if state.over {
            return Err(format!("no thread could be started to ask {}", self.name));
        }
        while let Some(since) = state.asked {
            let now = Instant::now();
            let deadline = since + patience;
            if now >= deadline {
                let fresh = state.answer.as_ref().filter(|(_, at)| now.duration_since(*at) < self.fresh);
                return match fresh {
                    Some((value, _)) => Ok(value.clone()),
                    None => {
                        let seconds = now.duration_since(since).as_secs_f32().ceil();
                        Err(format!("{} has not answered for {seconds} s", self.name))
                    }
                };
            }
            let waited = self.shared.changed.wait_timeout(state, deadline - now);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        match &state.answer {
            Some((value, _)) => Ok(value.clone()),
            None => Err(format!("{} was not asked yet", self.name)),
        }
    }
}

impl<T> Drop for Slow<T> {
    fn drop(&mut self) {
        self.shared.lock().over = true;
        self.shared.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;
    use std::time::{Duration, Instant};

    use super::Slow;

    #[test]
    fn a_sensor_that_hangs_gives_its_last_answer_and_then_says_so_and_recovers() {
        let (release, gate) = mpsc::channel::<u32>();
        let slow = Slow::start("the driver", Duration::from_millis(300), move || gate.recv().unwrap());
        release.send(1).unwrap();
        slow.ask();
        assert_eq!(slow.answer(Duration::from_secs(10)), Ok(1));

        slow.ask();
        let began = Instant::now();
        assert_eq!(slow.answer(Duration::from_millis(20)), Ok(1), "the last answer is fresh");
        let late = slow.answer(Duration::from_millis(400)).unwrap_err();
        assert_eq!(late, "the driver has not answered for 1 s");
        assert!(began.elapsed() < Duration::from_secs(5), "the hanging sensor held the reading");

        release.send(2).unwrap();
        assert_eq!(slow.answer(Duration::from_secs(10)), Ok(2), "it came back");
    }
}
