//! Where threads wait for each other.
//!
//! Waiting threads spin for a little while before they sleep: within a pass they never sleep, and
//! between passes they leave the cores to others (this process also serves requests, often on two
//! cores). Rejected: `std::sync::Barrier`, which sleeps at once; a sleeping thread costs 5–50 µs to
//! wake, and a decode step has two hundred barriers.

use super::sync::{AtomicU32, AtomicU64, Condvar, Mutex, Ordering, PoisonError, fence, spin_until};

/// Holds a fixed number of threads until all have come; then the same again.
///
/// Everything that a thread did before [`wait`](Self::wait) is seen by all after it.
#[derive(Debug)]
pub(crate) struct Barrier {
    threads: u32,
    /// Threads that have come to the barrier that is open.
    arrived: AtomicU32,
    /// Barriers that all have passed; [`POISON`] beside it.
    passed: AtomicU64,
    /// Threads that sleep, or are about to.
    sleepers: AtomicU32,
    bed: Mutex<()>,
    wake: Condvar,
}

/// A thread will never come; see [`Barrier::poison`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Poisoned;

/// Bit of [`Barrier::passed`]; the others last for ages.
const POISON: u64 = 1 << 63;

impl Barrier {
    /// A barrier for this many threads.
    pub(crate) fn new(threads: u32) -> Self {
        Self {
            threads,
            arrived: AtomicU32::new(0),
            passed: AtomicU64::new(0),
            sleepers: AtomicU32::new(0),
            bed: Mutex::new(()),
            wake: Condvar::new(),
        }
    }

    /// Waits until all have come.
    ///
    /// # Errors
    /// One of them will not come.
    pub(crate) fn wait(&self) -> Result<(), Poisoned> {
        let passed = self.passed.load(Ordering::Acquire);
        if passed & POISON != 0 {
            return Err(Poisoned);
        }
        if self.arrived.fetch_add(1, Ordering::AcqRel) + 1 == self.threads {
            // Before the others are let go, for they may come to the next barrier at once.
            self.arrived.store(0, Ordering::Relaxed);
            let before = self.passed.fetch_add(1, Ordering::AcqRel);
            self.wake_all();
            return if before & POISON == 0 { Ok(()) } else { Err(Poisoned) };
        }
        let opened = || self.passed.load(Ordering::Acquire) != passed;
        if !spin_until(opened) {
            self.sleep_until(opened);
        }
        let now = self.passed.load(Ordering::Acquire);
        if now & POISON == 0 { Ok(()) } else { Err(Poisoned) }
    }

    /// Says that the caller will not come again: whoever waits, now or later, gets an error.
    pub(crate) fn poison(&self) {
        self.passed.fetch_or(POISON, Ordering::AcqRel);
        self.wake_all();
    }

    /// Makes it as good as new. No thread may be at the barrier.
    pub(crate) fn heal(&self) {
        self.arrived.store(0, Ordering::Relaxed);
        self.passed.fetch_and(!POISON, Ordering::AcqRel);
    }

    fn sleep_until(&self, opened: impl Fn() -> bool) {
        let mut bed = self.bed.lock().unwrap_or_else(PoisonError::into_inner);
        self.sleepers.fetch_add(1, Ordering::Relaxed);
        // With the one in `wake_all`: either this thread sees the barrier open, or the thread that
        // opened it sees this one asleep.
        fence(Ordering::SeqCst);
        while !opened() {
            bed = self.wake.wait(bed).unwrap_or_else(PoisonError::into_inner);
        }
        self.sleepers.fetch_sub(1, Ordering::Relaxed);
    }

    fn wake_all(&self) {
        fence(Ordering::SeqCst);
        if self.sleepers.load(Ordering::Relaxed) > 0 {
            // Taken once, so that a thread that has looked but does not sleep yet is not missed.
            drop(self.bed.lock().unwrap_or_else(PoisonError::into_inner));
            self.wake.notify_all();
        }
    }
}
