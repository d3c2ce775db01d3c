//! Admission: how many tokens may be in the caches of a served model at once, and who waits.
//!
//! First come, first served: a long request at the head of the queue is not overtaken, so nobody starves. An answer that
//! may become long takes a little room first and grows; where there is none to grow into, it queues again, at the end.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use smol::channel;

use crate::daemon::lock;

/// The queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{waiting} requests are waiting already")]
pub(crate) struct QueueFull {
    pub(crate) waiting: usize,
}

/// Places for answers under way. Clones share them.
#[derive(Clone)]
pub(crate) struct Slots {
    shared: Arc<Mutex<State>>,
    sessions_max: usize,
    waiting_max: usize,
}

struct State {
    tokens: usize,
    sessions: usize,
    queue: VecDeque<(usize, channel::Sender<()>)>,
}

impl State {
    /// Whether an answer of `tokens` that comes now need not wait.
    fn fits(&self, tokens: usize) -> bool {
        self.queue.is_empty() && self.room(tokens)
    }

    fn room(&self, tokens: usize) -> bool {
        self.tokens >= tokens && self.sessions > 0
    }

    /// Lets in whoever is next, as long as there is room.
    fn admit(&mut self) {
        while let Some((tokens, sender)) = self.queue.front()
            && self.room(*tokens)
        {
            // Who just went away takes no place.
            if sender.try_send(()).is_ok() {
                self.tokens -= tokens;
                self.sessions -= 1;
            }
            self.queue.pop_front();
        }
    }
}

/// A place; given back when dropped.
pub(crate) struct Slot {
    slots: Slots,
    tokens: usize,
}

impl Slot {
    /// Tokens that the answer may hold.
    pub(crate) fn tokens(&self) -> usize {
        self.tokens
    }

    /// Makes it `tokens`, if there is room now. Those who wait are overtaken: whoever is inside ends sooner or later,
    /// and lets them in.
    pub(crate) fn grow(&mut self, tokens: usize) -> bool {
        let mut state = lock(&self.slots.shared);
        let more = tokens.saturating_sub(self.tokens);
        let fits = state.tokens >= more;
        if fits {
            state.tokens -= more;
            self.tokens += more;
        }
        fits
    }
}

impl Slots {
    /// At most `sessions` answers at once, which hold at most `tokens` together; `waiting_max` more may wait.
    pub(crate) fn new(tokens: usize, sessions: usize, waiting_max: usize) -> Self {
        let state = State { tokens, sessions, queue: VecDeque::new() };
        Self { shared: Arc::new(Mutex::new(state)), sessions_max: sessions, waiting_max }
    }

    /// A place in the queue for an answer that may hold `tokens`, prompt included; at most what there is in all.
    ///
    /// # Errors
    /// [`QueueFull`].
    pub(crate) fn queue(&self, tokens: usize) -> Result<Turn, QueueFull> {
        let mut state = lock(&self.shared);
        if !state.fits(tokens) && state.queue.len() >= self.waiting_max {
            return Err(QueueFull { waiting: state.queue.len() });
        }
        Ok(self.line_up(&mut state, tokens))
    }

    /// The same for a further answer to a request that was let in: however many wait, it is not refused. One at a
    /// time of each request keeps the queue bounded and fair.
    pub(crate) fn queue_further(&self, tokens: usize) -> Turn {
        self.line_up(&mut lock(&self.shared), tokens)
    }

    fn line_up(&self, state: &mut State, tokens: usize) -> Turn {
        let (sender, turn) = channel::bounded(1);
        state.queue.push_back((tokens, sender));
        state.admit();
        Turn { slots: self.clone(), tokens, turn, entered: false }
    }

    /// How many answers are under way or wait.
    pub(crate) fn busy(&self) -> usize {
        let state = lock(&self.shared);
        self.sessions_max - state.sessions + state.queue.len()
    }

    fn give_back(&self, tokens: usize) {
        let mut state = lock(&self.shared);
        state.tokens += tokens;
        state.sessions += 1;
        state.admit();
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.slots.give_back(self.tokens);
    }
}

/// An answer in the queue. If it is dropped after it was let in and before it knew, its place is given back.
pub(crate) struct Turn {
    slots: Slots,
    tokens: usize,
    turn: channel::Receiver<()>,
    entered: bool,
}

impl Turn {
    /// Waits for the place.
    pub(crate) async fn wait(mut self) -> Slot {
        // The sender lives in the queue until it has sent.
        self.entered = self.turn.recv().await.is_ok();
        Slot { slots: self.slots.clone(), tokens: self.tokens }
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        if self.entered {
            return;
        }
        self.turn.close();
        if self.turn.try_recv().is_ok() {
            self.slots.give_back(self.tokens);
        } else {
            // Whoever stood behind it may fit where it did not.
            let mut state = lock(&self.slots.shared);
            state.queue.retain(|(_, sender)| !sender.is_closed());
            state.admit();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use smol::future::{block_on, poll_once};

    /// The turn's place, if it has come.
    async fn entered(turn: &mut std::pin::Pin<Box<impl Future<Output = Slot>>>) -> Option<Slot> {
        poll_once(turn).await
    }

    #[test]
    fn first_come_first_served_and_nothing_is_lost() {
        block_on(async {
            let slots = Slots::new(100, 8, 2);
            let first = slots.queue(90).unwrap().wait().await;
            let mut long = Box::pin(slots.queue(60).unwrap().wait());
            assert!(entered(&mut long).await.is_none());
            // Small enough to fit now, but not its turn.
            let mut short = Box::pin(slots.queue(10).unwrap().wait());
            assert!(entered(&mut short).await.is_none());
            assert_eq!(slots.queue(1).err(), Some(QueueFull { waiting: 2 }));
            let further = slots.queue_further(1);
            drop(first);
            let long = entered(&mut long).await.unwrap();
            let short = entered(&mut short).await.unwrap();
            drop((long, short, further.wait().await));
            drop(slots.queue(100).unwrap().wait().await);
            assert_eq!(slots.busy(), 0);
        });
    }

    #[test]
    fn who_leaves_the_queue_leaves_no_hole() {
        block_on(async {
            let slots = Slots::new(10, 8, 8);
            let first = slots.queue(8).unwrap().wait().await;
            let too_long = slots.queue(10).unwrap();
            let mut behind = Box::pin(slots.queue(2).unwrap().wait());
            assert!(entered(&mut behind).await.is_none());
            drop(too_long);
            // The one behind need not wait for the first to end.
            let behind = entered(&mut behind).await.unwrap();
            let let_in = slots.queue(10).unwrap();
            drop((first, behind));
            // Let in, but dropped before it was asked.
            drop(let_in);
            assert_eq!(slots.busy(), 0);
            assert!(entered(&mut Box::pin(slots.queue(10).unwrap().wait())).await.is_some());
        });
    }

    #[test]
    fn a_place_grows_while_there_is_room() {
        block_on(async {
            let slots = Slots::new(100, 8, 8);
            let mut first = slots.queue(40).unwrap().wait().await;
            let second = slots.queue(40).unwrap().wait().await;
            assert!(first.grow(60) && first.tokens() == 60);
            assert!(!first.grow(61) && first.tokens() == 60);
            let mut waiting = Box::pin(slots.queue(50).unwrap().wait());
            drop(second);
            assert!(entered(&mut waiting).await.is_none(), "40 are free");
            drop(first);
            assert!(entered(&mut waiting).await.is_some());
        });
    }

    #[test]
    fn sessions_are_bounded_too() {
        block_on(async {
            let slots = Slots::new(1_000, 1, 1);
            let only = slots.queue(1).unwrap().wait().await;
            let mut next = Box::pin(slots.queue(1).unwrap().wait());
            assert!(entered(&mut next).await.is_none());
            drop(only);
            assert!(entered(&mut next).await.is_some());
        });
    }
}
