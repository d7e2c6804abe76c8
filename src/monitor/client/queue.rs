//! A queue between two tasks that is empty most of the time, and then takes next to no memory. tokio's own channel has room for 32
//! pieces from the beginning: two kilobytes, twice for each monitor.

use std::{
    collections::VecDeque,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::Notify;

/// The end that puts in. Its drop ends the queue, once that is empty.
#[derive(Debug)]
pub(super) struct Sender<T>(Arc<Shared<T>>);

/// The end that takes out. When it is dropped, nothing more goes in.
#[derive(Debug)]
pub(super) struct Receiver<T>(Arc<Shared<T>>);

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    /// There is something, or the end.
    changed: Notify,
}

#[derive(Debug)]
struct State<T> {
    waiting: VecDeque<T>,
    /// One of the ends is gone.
    closed: bool,
}

/// A queue.
pub(super) fn new<T>() -> (Sender<T>, Receiver<T>) {
    let shared = Arc::new(Shared {
        state: Mutex::new(State {
            waiting: VecDeque::new(),
            closed: false,
        }),
        changed: Notify::new(),
    });
    (Sender(Arc::clone(&shared)), Receiver(shared))
}

impl<T> Shared<T> {
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T> Sender<T> {
    /// Puts `piece` at the end.
    ///
    /// # Errors
    /// Gives it back when nobody takes it any more.
    pub fn send(&self, piece: T) -> Result<(), T> {
        let mut state = self.0.lock();
        if state.closed {
            return Err(piece);
        }
        state.waiting.push_back(piece);
        drop(state);
        self.0.changed.notify_one();
        Ok(())
    }
}

impl<T> Receiver<T> {
    /// The first piece; `None` when there is none and will be none. Cancel-safe.
    pub async fn recv(&mut self) -> Option<T> {
        loop {
            {
                let mut state = self.0.lock();
                if let Some(piece) = state.waiting.pop_front() {
                    if state.waiting.is_empty() {
                        // Its memory is not needed for a long time.
                        state.waiting = VecDeque::new();
                    }
                    return Some(piece);
                }
                if state.closed {
                    return None;
                }
            }
            // What comes in between is kept for the next to wait.
            self.0.changed.notified().await;
        }
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.changed.notify_one();
    }
}

impl<T> Drop for Receiver<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.closed = true;
        // What they hold, descriptors for example, goes now, and outside of the lock.
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        drop(waiting);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pieces_come_in_order_and_then_the_end() {
        let (sender, mut receiver) = new();
        for n in 0..100 {
            sender.send(n).unwrap();
        }
        for n in 0..100 {
            assert_eq!(receiver.recv().await, Some(n));
        }
        assert_eq!(receiver.0.lock().waiting.capacity(), 0, "nothing is kept");
        let later = tokio::spawn(async move { (receiver.recv().await, receiver.recv().await) });
        tokio::task::yield_now().await;
        sender.send(7).unwrap();
        drop(sender);
        assert_eq!(later.await.unwrap(), (Some(7), None));
    }

    #[tokio::test]
    async fn a_wait_that_is_given_up_loses_nothing() {
        let (sender, mut receiver) = new();
        for n in 0..10 {
            {
                let mut waiting = std::pin::pin!(receiver.recv());
                assert!(futures_util::poll!(&mut waiting).is_pending());
                sender.send(n).unwrap();
            }
            assert_eq!(receiver.recv().await, Some(n));
        }
    }

    #[test]
    fn nothing_goes_in_when_nobody_takes_it_and_what_waits_is_dropped() {
        let (sender, receiver) = new();
        let piece = Arc::new(());
        sender.send(Arc::clone(&piece)).unwrap();
        drop(receiver);
        assert_eq!(Arc::strong_count(&piece), 1);
        assert!(sender.send(piece).is_err());
    }
}
