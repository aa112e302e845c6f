//! What [`super::barrier`] is made of; `tests/loom.rs` has the same from loom.

pub(super) use std::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
pub(super) use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// How long a thread spins before it sleeps: longer than the serial stretches of a pass.
pub(super) const SPIN: Duration = Duration::from_micros(40);

/// Spins until it is `ready`, but no longer than [`SPIN`]; says whether it is.
pub(super) fn spin_until(ready: impl Fn() -> bool) -> bool {
    const CHECKS_PER_LOOK_AT_THE_CLOCK: u32 = 64;
    let mut started: Option<Instant> = None;
    loop {
        for _ in 0..CHECKS_PER_LOOK_AT_THE_CLOCK {
            if ready() {
                return true;
            }
            std::hint::spin_loop();
        }
        if started.get_or_insert_with(Instant::now).elapsed() > SPIN {
            return false;
        }
    }
}
