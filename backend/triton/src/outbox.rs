//! From the engine's thread to the sender's: a queue that is emptied all at once.
//!
//! An iteration brings a message for each sequence. Whoever waits is woken by the first of them and takes
//! all that have come by then, and it sleeps at once when there are none. Rejected: a channel, which spins
//! and yields for a while before it sleeps; with a token every few milliseconds that never pays, and it
//! was two fifths of the sender's time, on cores that compute.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// The sending end; cloned for each sender.
#[derive(Debug)]
pub(crate) struct Outbox<T>(Arc<Open<T>>);

/// The receiving end.
#[derive(Debug)]
pub(crate) struct Inbox<T>(Arc<Shared<T>>);

/// Lives as long as there is a sender.
#[derive(Debug)]
struct Open<T>(Arc<Shared<T>>);

#[derive(Debug)]
struct Shared<T> {
    state: Mutex<State<T>>,
    /// Told when the first message comes, and when no more can.
    changed: Condvar,
}

#[derive(Debug)]
struct State<T> {
    messages: Vec<T>,
    /// No sender is left.
    closed: bool,
    /// The receiver is gone.
    abandoned: bool,
}

/// A queue's two ends.
pub(crate) fn outbox<T>() -> (Outbox<T>, Inbox<T>) {
    let state = State { messages: Vec::new(), closed: false, abandoned: false };
    let shared = Arc::new(Shared { state: Mutex::new(state), changed: Condvar::new() });
    (Outbox(Arc::new(Open(Arc::clone(&shared)))), Inbox(shared))
}

impl<T> Outbox<T> {
    /// Hands a message over; without a receiver it is dropped.
    pub(crate) fn send(&self, message: T) {
        let shared = &self.0.0;
        let mut state = shared.lock();
        if state.abandoned {
            // Dropping a message may run code of its own.
            drop(state);
            return;
        }
        let first = state.messages.is_empty();
        state.messages.push(message);
        drop(state);
        if first {
            shared.changed.notify_one();
        }
    }
}

impl<T> Clone for Outbox<T> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<T> Drop for Open<T> {
    fn drop(&mut self) {
        self.0.lock().closed = true;
        self.0.changed.notify_one();
    }
}

impl<T> Inbox<T> {
    /// Waits for messages and puts all there are into `messages`, which must be empty and whose memory is
    /// used for those to come. False once all senders are gone and everything was taken.
    pub(crate) fn receive(&self, messages: &mut Vec<T>) -> bool {
        debug_assert!(messages.is_empty(), "messages would be handed back");
        let mut state = self.0.lock();
        while state.messages.is_empty() {
            if state.closed {
                return false;
            }
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
        std::mem::swap(&mut state.messages, messages);
        true
    }
}

impl<T> Drop for Inbox<T> {
    fn drop(&mut self) {
        let mut state = self.0.lock();
        state.abandoned = true;
        let unread = std::mem::take(&mut state.messages);
        drop(state);
        drop(unread);
    }
}

impl<T> Shared<T> {
    /// Nothing that can panic runs while the lock is held.
    fn lock(&self) -> MutexGuard<'_, State<T>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    fn all<T>(inbox: &Inbox<T>) -> Vec<T> {
        let (mut all, mut some) = (Vec::new(), Vec::new());
        while inbox.receive(&mut some) {
            all.append(&mut some);
        }
        all
    }

    #[test]
    fn what_was_sent_comes_at_once_and_in_order() {
        let (outbox, inbox) = outbox();
        for message in 0..5 {
            outbox.send(message);
        }
        let mut messages = Vec::new();
        assert!(inbox.receive(&mut messages));
        assert_eq!(messages, [0, 1, 2, 3, 4]);
        messages.clear();
        outbox.send(5);
        drop(outbox);
        // The end does not overtake what was sent before.
        assert!(inbox.receive(&mut messages));
        assert_eq!(messages, [5]);
        messages.clear();
        assert!(!inbox.receive(&mut messages));
    }

    #[test]
    fn many_senders_lose_nothing_and_each_keeps_its_order() {
        let (outbox, inbox) = outbox();
        let senders: Vec<_> = (0..4)
            .map(|sender| {
                let outbox = outbox.clone();
                thread::spawn(move || {
                    for number in 0..1000 {
                        outbox.send((sender, number));
                        if number % 100 == 0 {
                            thread::yield_now();
                        }
                    }
                })
            })
            .collect();
        drop(outbox);
        let received = all(&inbox);
        for sender in senders {
            sender.join().unwrap();
        }
        assert_eq!(received.len(), 4000);
        for sender in 0..4 {
            let own =
                received.iter().filter(|(from, _)| *from == sender).map(|(_, number)| *number);
            assert!(own.eq(0..1000));
        }
    }

    #[test]
    fn a_receiver_that_waits_hears_of_the_end() {
        let (outbox, inbox) = outbox::<()>();
        let waiting = thread::spawn(move || all(&inbox).len());
        let other = outbox.clone();
        drop(outbox);
        other.send(());
        drop(other);
        assert_eq!(waiting.join().unwrap(), 1);
    }

    #[test]
    fn without_a_receiver_messages_are_dropped() {
        let message = Arc::new(());
        let (outbox, inbox) = outbox();
        outbox.send(Arc::clone(&message));
        drop(inbox);
        assert_eq!(Arc::strong_count(&message), 1);
        outbox.send(Arc::clone(&message));
        assert_eq!(Arc::strong_count(&message), 1);
    }
}
