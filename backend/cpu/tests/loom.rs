//! Every interleaving of a few threads at the pool's barrier.

#[path = "../src/pool/barrier.rs"]
mod barrier;

/// What the barrier is made of, watched by loom.
mod sync {
    pub(super) use std::sync::PoisonError;

    pub(super) use loom::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
    pub(super) use loom::sync::{Condvar, Mutex};

    /// Gives up after one look: what is slow is slept for.
    pub(super) fn spin_until(ready: impl Fn() -> bool) -> bool {
        ready()
    }
}

use barrier::{Barrier, Poisoned};
use loom::cell::UnsafeCell;
use loom::model::Builder;
use loom::sync::Arc;
use loom::thread;

/// Runs every interleaving of a model with up to this many switches away from a thread that could go
/// on: all of three threads' would take hours, and bugs need few.
fn check(switches: usize, model: impl Fn() + Send + Sync + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(switches);
    builder.check(model);
}

/// Each thread writes its own cell, waits, and reads all; loom reports every unordered access.
fn rounds(threads: usize, rounds: usize) {
    check(3, move || {
        let barrier = Arc::new(Barrier::new(threads as u32));
        let cells: Arc<Vec<_>> = Arc::new((0..threads).map(|_| UnsafeCell::new(0)).collect());
        let work = |own: usize| {
            let (barrier, cells) = (Arc::clone(&barrier), Arc::clone(&cells));
            move || {
                for round in 1..=rounds {
                    // SAFETY: loom checks that nobody reads or writes at the same time.
                    cells[own].with_mut(|cell| unsafe { *cell = round });
                    barrier.wait().expect("all come");
                    for cell in &*cells {
                        // SAFETY: as above.
                        cell.with(|cell| assert_eq!(unsafe { *cell }, round));
                    }
                    barrier.wait().expect("all come");
                }
            }
        };
        let others: Vec<_> = (1..threads).map(|own| thread::spawn(work(own))).collect();
        work(0)();
        others.into_iter().for_each(|other| other.join().expect("no panic"));
    });
}

#[test]
fn two_threads_see_what_each_other_wrote() {
    rounds(2, 2);
}

#[test]
fn three_threads_see_what_each_other_wrote() {
    rounds(3, 1);
}

#[test]
fn nobody_waits_for_a_thread_that_will_not_come() {
    check(2, || {
        let barrier = Arc::new(Barrier::new(3));
        let other = {
            let barrier = Arc::clone(&barrier);
            thread::spawn(move || barrier.wait())
        };
        let gone = {
            let barrier = Arc::clone(&barrier);
            thread::spawn(move || barrier.poison())
        };
        assert_eq!(barrier.wait(), Err(Poisoned));
        assert_eq!(other.join().expect("no panic"), Err(Poisoned));
        gone.join().expect("no panic");
        barrier.heal();
        let again: Vec<_> = (0..2)
            .map(|_| {
                let barrier = Arc::clone(&barrier);
                thread::spawn(move || barrier.wait())
            })
            .collect();
        assert_eq!(barrier.wait(), Ok(()));
        again.into_iter().for_each(|thread| assert_eq!(thread.join().expect("no panic"), Ok(())));
    });
}
