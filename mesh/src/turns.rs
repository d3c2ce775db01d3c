//! Whose turn it is while the owner's line is limited: so few transfers at once that each has a share to live on.
//!
//! First come, first served. Must never decide how many those are: `traffic.rs` says it.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use smol::channel::{self, Receiver, Sender};

/// The turns of one direction of the line.
#[derive(Debug)]
pub(crate) struct Turns(Mutex<State>);

#[derive(Debug)]
struct State {
    at_once: usize,
    taken: usize,
    waiting: VecDeque<Sender<Turn>>,
}

/// Leave to go on; the next in the queue has it when this is dropped.
#[derive(Debug)]
pub(crate) struct Turn(Arc<Turns>);

impl Default for Turns {
    fn default() -> Self {
        Self(Mutex::new(State { at_once: usize::MAX, taken: 0, waiting: VecDeque::new() }))
    }
}

impl Turns {
    /// How many may go on at once.
    pub(crate) fn at_once(&self) -> usize {
        self.state().at_once
    }

    /// Changes that. Those who have a turn keep it.
    pub(crate) fn limit(self: &Arc<Self>, at_once: usize) {
        self.state().at_once = at_once;
        self.call();
    }

    /// Waits for a turn. Dropping the wait gives up the place in the queue.
    pub(crate) async fn take(self: &Arc<Self>) -> Turn {
        loop {
            match self.ask() {
                Ok(turn) => return turn,
                Err(called) => {
                    if let Ok(turn) = called.recv().await {
                        return turn;
                    }
                }
            }
        }
    }

    /// A turn, or else where it will come.
    fn ask(self: &Arc<Self>) -> Result<Turn, Receiver<Turn>> {
        let mut state = self.state();
        // So that those who come and go do not add up behind one who takes long.
        state.waiting.retain(|waiting| !waiting.is_closed());
        if state.taken < state.at_once && state.waiting.is_empty() {
            state.taken += 1;
            return Ok(Turn(Arc::clone(self)));
        }
        let (call, called) = channel::bounded(1);
        state.waiting.push_back(call);
        Err(called)
    }

    /// Gives the turns that are free to those who wait.
    fn call(self: &Arc<Self>) {
        loop {
            let next = {
                let mut state = self.state();
                if state.taken >= state.at_once {
                    return;
                }
                let Some(next) = state.waiting.pop_front() else { return };
                if next.is_closed() {
                    continue;
                }
                state.taken += 1;
                next
            };
            // Outside the lock, which a turn takes when it is dropped; as it is if its taker went away just now.
            let _ = next.try_send(Turn(Arc::clone(self)));
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.state().taken -= 1;
        self.0.call();
    }
}

#[cfg(test)]
mod tests {
    use smol::future::{block_on, poll_once};

    use super::*;

    #[test]
    fn turns_come_in_order_and_nobody_holds_one_who_went_away() {
        block_on(async {
            let turns = Arc::new(Turns::default());
            turns.limit(1);
            let first = turns.take().await;
            let mut gone = Box::pin(turns.take());
            let mut second = Box::pin(turns.take());
            let mut third = Box::pin(turns.take());
            for waiting in [&mut gone, &mut second, &mut third] {
                assert!(poll_once(waiting.as_mut()).await.is_none());
            }
            drop(gone);
            drop(first);
            assert!(poll_once(third.as_mut()).await.is_none(), "it is the second's turn");
            // Called, it leaves without having heard of it.
            drop(second);
            let third = poll_once(third.as_mut()).await.expect("its turn");
            let mut fourth = Box::pin(turns.take());
            assert!(poll_once(fourth.as_mut()).await.is_none());
            turns.limit(2);
            let fourth = poll_once(fourth.as_mut()).await.expect("there is room for two");
            drop((third, fourth));
            assert_eq!(turns.state().taken, 0);
        });
    }
}
