//! Threads that are created once and wait between jobs.
//!
//! A decode step is some two hundred short jobs with a barrier after each, so workers spin for a
//! little while before they sleep: within a pass they never sleep, and between passes they leave the
//! cores to others (this process also serves requests, often on two cores). The calling thread is
//! worker 0. Rejected: rayon, whose fork and join costs microseconds and whose stealing moves rows
//! between caches.
//!
//! Concurrency: `generation` publishes a job, `running` counts the workers that have not finished it.
//! Both sides sleep with `park`, whose token makes an early `unpark` harmless, and re-check their
//! condition after each return.

use std::any::Any;
use std::cell::UnsafeCell;
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};
use std::{fmt, hint, io};

use parking_lot::{FairMutex, FairMutexGuard};

/// How long a thread spins before it sleeps. A pass has serial stretches of a few microseconds; a
/// sleeping worker costs 5–50 µs to wake.
const SPIN: Duration = Duration::from_micros(40);

/// The one [`Pool`] of this many threads in the process, for all that compute on as many.
#[derive(Clone, Debug)]
pub(crate) struct SharedPool(Arc<FairMutex<Pool>>);

impl SharedPool {
    /// Joins the pool, or starts it if nobody is in it.
    ///
    /// # Errors
    /// The system gives no threads.
    pub(crate) fn get(threads: usize) -> io::Result<Self> {
        static ALL: Mutex<BTreeMap<usize, Weak<FairMutex<Pool>>>> = Mutex::new(BTreeMap::new());
        let mut all = ALL.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = all.get(&threads).and_then(Weak::upgrade) {
            return Ok(Self(pool));
        }
        let pool = Arc::new(FairMutex::new(Pool::new(threads)?));
        all.insert(threads, Arc::downgrade(&pool));
        Ok(Self(pool))
    }

    /// Waits for its turn; turns are given first come, first served.
    pub(crate) fn turn(&self) -> FairMutexGuard<'_, Pool> {
        self.0.lock()
    }
}

/// A fixed set of threads that run one job at a time.
pub(crate) struct Pool {
    shared: Arc<Shared>,
    handles: Vec<JoinHandle<()>>,
}

/// A job panicked; the message is the panic's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Panicked(pub(crate) String);

struct Shared {
    /// Number of the newest job. Written by the caller, after `job`; workers wait for it to change.
    generation: AtomicU32,
    /// Workers that have not finished the newest job.
    running: AtomicU32,
    stop: AtomicBool,
    /// Valid from the change of `generation` until `running` is 0. Written by the caller only while
    /// `running` is 0.
    job: UnsafeCell<Option<Job>>,
    /// First panic of the newest job.
    panic: Mutex<Option<String>>,
}

#[derive(Clone, Copy)]
struct Job {
    run: &'static (dyn Fn(usize) + Sync),
    caller: &'static Thread,
}

// SAFETY: all fields but `job` are `Sync`. `job` is written only by `Pool::run`, which has the pool
// exclusively, while no worker reads it (`running` is 0); workers read it after the acquiring load of
// `generation` that follows that write. What it holds may be shared: the closure is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; a reference to a `Sync` closure may be sent.
unsafe impl Send for Shared {}

impl Pool {
    /// A pool of `threads` workers, the caller of [`run`](Self::run) included; at least one.
    pub(crate) fn new(threads: usize) -> io::Result<Self> {
        let shared = Arc::new(Shared {
            generation: AtomicU32::new(0),
            running: AtomicU32::new(0),
            stop: AtomicBool::new(false),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
        });
        let mut pool = Self { shared, handles: Vec::new() };
        for worker in 1..threads.max(1) {
            let shared = Arc::clone(&pool.shared);
            let name = format!("rewind-cpu-{worker}");
            pool.handles
                .push(thread::Builder::new().name(name).spawn(move || shared.serve(worker))?);
        }
        Ok(pool)
    }

    /// Workers, the caller included.
    pub(crate) fn threads(&self) -> usize {
        self.handles.len() + 1
    }

    /// Gives each worker one of `parts`, in order, and waits for all.
    ///
    /// There are at most as many parts as threads. One part runs on the calling thread alone.
    pub(crate) fn each<T: Send>(
        &mut self,
        parts: Vec<T>,
        job: impl Fn(T) + Sync,
    ) -> Result<(), Panicked> {
        assert!(parts.len() <= self.threads(), "{} parts, {} threads", parts.len(), self.threads());
        // Each lock is taken once, by the worker whose number it has, so none is ever contended.
        let parts: Vec<_> = parts.into_iter().map(|part| Mutex::new(Some(part))).collect();
        let run = |worker: usize| {
            let part = parts
                .get(worker)
                .and_then(|part| part.lock().unwrap_or_else(PoisonError::into_inner).take());
            if let Some(part) = part {
                job(part);
            }
        };
        if parts.len() == 1 { caught(|| run(0)) } else { self.run(&run) }
    }

    /// Calls `job(worker)` on every worker at once and waits for all.
    fn run(&mut self, job: &(dyn Fn(usize) + Sync)) -> Result<(), Panicked> {
        if self.handles.is_empty() {
            return caught(|| job(0));
        }
        let caller = thread::current();
        // SAFETY: only the lifetimes change. Both references are used by workers only until they have
        // decremented `running`, and this function does not return before it is 0.
        let published = unsafe {
            Job {
                run: std::mem::transmute::<&(dyn Fn(usize) + Sync), &'static (dyn Fn(usize) + Sync)>(
                    job,
                ),
                caller: std::mem::transmute::<&Thread, &'static Thread>(&caller),
            }
        };
        // SAFETY: `running` is 0 here (the last call waited for it), so no worker reads the cell until
        // `generation` changes below, and `&mut self` keeps other callers out.
        unsafe { *self.shared.job.get() = Some(published) };
        self.shared.running.store(self.handles.len() as u32, Ordering::Relaxed);
        self.shared.generation.fetch_add(1, Ordering::Release);
        for handle in &self.handles {
            handle.thread().unpark();
        }
        let own = caught(|| job(0));
        wait_until(|| self.shared.running.load(Ordering::Acquire) == 0);
        let theirs = self.shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        own?;
        theirs.map_or(Ok(()), |message| Err(Panicked(message)))
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.shared.generation.fetch_add(1, Ordering::Release);
        for handle in self.handles.drain(..) {
            handle.thread().unpark();
            // A worker catches the panics of its jobs and has none of its own.
            let _ = handle.join();
        }
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Pool({} threads)", self.threads())
    }
}

impl Shared {
    fn serve(&self, worker: usize) {
        let mut seen = 0;
        loop {
            wait_until(|| self.generation.load(Ordering::Acquire) != seen);
            seen = seen.wrapping_add(1);
            if self.stop.load(Ordering::Relaxed) {
                return;
            }
            // SAFETY: `generation` has changed, so the caller has written the cell and will not write
            // it again before this worker decrements `running`.
            let Some(job) = (unsafe { *self.job.get() }) else { return };
            if let Err(Panicked(message)) = caught(|| (job.run)(worker)) {
                let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
                first.get_or_insert(message);
            }
            // The job may be gone after the decrement, so the caller's handle is cloned before it.
            let caller = job.caller.clone();
            if self.running.fetch_sub(1, Ordering::Release) == 1 {
                caller.unpark();
            }
        }
    }
}

/// Spins for [`SPIN`], then sleeps between checks. Whoever makes `ready` true calls `unpark`.
fn wait_until(ready: impl Fn() -> bool) {
    const CHECKS_PER_LOOK_AT_THE_CLOCK: u32 = 64;
    let mut started: Option<Instant> = None;
    loop {
        for _ in 0..CHECKS_PER_LOOK_AT_THE_CLOCK {
            if ready() {
                return;
            }
            hint::spin_loop();
        }
        if started.get_or_insert_with(Instant::now).elapsed() > SPIN {
            break;
        }
    }
    while !ready() {
        thread::park();
    }
}

fn caught(job: impl FnOnce()) -> Result<(), Panicked> {
    // The data of a job that panicked is discarded with its pass, so nobody sees it half-changed.
    catch_unwind(AssertUnwindSafe(job)).map_err(|payload| Panicked(message(payload.as_ref())))
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic without a message").to_owned()
}

/// The share of `worker` when `units` units are dealt to `workers` workers: neighbours, in order,
/// as even as can be.
pub(crate) fn share(units: usize, workers: usize, worker: usize) -> std::ops::Range<usize> {
    let bound = |worker: usize| units * worker / workers;
    bound(worker)..bound(worker + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    #[test]
    fn every_part_is_done_once_by_its_worker() {
        for threads in [1, 2, 5] {
            let mut pool = Pool::new(threads).expect("threads");
            for round in 0..2000 {
                let mut data = vec![0; threads];
                let parts: Vec<_> = data.iter_mut().enumerate().collect();
                pool.each(parts, |(worker, value)| *value = worker + round).expect("no panic");
                assert!(data.iter().enumerate().all(|(worker, &value)| value == worker + round));
            }
        }
    }

    #[test]
    fn a_pool_is_shared_while_somebody_holds_it() {
        let [a, b, c] = [7, 7, 6].map(|threads| SharedPool::get(threads).expect("threads"));
        assert!(Arc::ptr_eq(&a.0, &b.0) && !Arc::ptr_eq(&a.0, &c.0));
        assert_eq!((a.turn().threads(), c.turn().threads()), (7, 6));
        let old = Arc::downgrade(&a.0);
        drop((a, b));
        assert!(old.upgrade().is_none());
        assert_eq!(SharedPool::get(7).expect("threads").turn().threads(), 7);
    }

    #[test]
    fn sleeping_workers_wake() {
        let mut pool = Pool::new(3).expect("threads");
        let count = AtomicUsize::new(0);
        for _ in 0..5 {
            thread::sleep(10 * SPIN);
            let parts = vec![(), (), ()];
            pool.each(parts, |()| {
                count.fetch_add(1, Ordering::Relaxed);
                thread::sleep(10 * SPIN);
            })
            .expect("no panic");
        }
        assert_eq!(count.into_inner(), 15);
    }

    #[test]
    fn a_panic_is_an_error_and_the_pool_goes_on() {
        for threads in [1, 3] {
            let mut pool = Pool::new(threads).expect("threads");
            for worker in 0..threads {
                let parts: Vec<_> = (0..threads).collect();
                let result = pool.each(parts, |part| assert!(part != worker, "part {part} is bad"));
                let Err(Panicked(message)) = result else { panic!("no panic was reported") };
                assert_eq!(message, format!("part {worker} is bad"));
                pool.each((0..threads).collect(), |_: usize| ()).expect("no panic");
            }
        }
    }

    #[test]
    fn fewer_parts_than_threads() {
        let mut pool = Pool::new(4).expect("threads");
        let count = AtomicUsize::new(0);
        for parts in 0..=4 {
            pool.each(vec![(); parts], |()| _ = count.fetch_add(1, Ordering::Relaxed))
                .expect("fine");
        }
        assert_eq!(count.into_inner(), 10);
    }

    #[test]
    fn shares_cover_everything_once() {
        for units in [0, 1, 7, 64] {
            for workers in 1..9 {
                let all: Vec<_> = (0..workers).flat_map(|w| share(units, workers, w)).collect();
                assert_eq!(all, (0..units).collect::<Vec<_>>());
            }
        }
    }
}
