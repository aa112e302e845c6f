//! Threads that are created once and wait between jobs.
//!
//! A job is a whole pass. Every worker runs it from its first phase to its last and meets the others
//! at a [`Barrier`] between two: nothing is handed out, queued or allocated on the way. The calling
//! thread is worker 0. Rejected: a job for each phase, dealt by the caller, whose dealing cost a
//! twentieth of a decode step; and rayon, whose fork and join costs microseconds and whose stealing
//! moves rows between caches.

mod affinity;
mod barrier;
mod sync;

use std::any::Any;
use std::cell::UnsafeCell;
use std::collections::BTreeMap;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::{self, JoinHandle};
use std::{fmt, io};

use parking_lot::{FairMutex, FairMutexGuard};

use self::affinity::Cores;
use self::barrier::Barrier;
pub(crate) use self::barrier::Poisoned;

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
    /// Where they run, if that is settled.
    cores: Option<Cores>,
}

/// A job panicked; the message is the panic's.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Panicked(pub(crate) String);

/// A thread's place in a job.
#[derive(Debug)]
pub(crate) struct Worker<'p> {
    number: usize,
    workers: usize,
    phases: &'p Barrier,
}

struct Shared {
    /// Where all wait for a job, and for its end. Poisoned when the pool ends.
    gate: Barrier,
    /// Where the workers of a job wait for each other.
    phases: Barrier,
    /// Valid between the two times that `gate` opens for a job. Written by the caller only while it
    /// is closed.
    job: UnsafeCell<Option<Job>>,
    /// First panic of the newest job.
    panic: Mutex<Option<String>>,
}

type Job = &'static (dyn Fn(usize) + Sync);

// SAFETY: all fields but `job` are `Sync`. `job` is written only by `Pool::run`, which has the pool
// exclusively, while all workers are at the gate, and read after the gate has opened. What it holds
// may be shared: the closure is `Sync`.
unsafe impl Sync for Shared {}
// SAFETY: as above; a reference to a `Sync` closure may be sent.
unsafe impl Send for Shared {}

impl Pool {
    /// A pool of `threads` workers, the caller of [`run`](Self::run) included; at least one.
    pub(crate) fn new(threads: usize) -> io::Result<Self> {
        let threads = threads.max(1);
        let shared = Arc::new(Shared {
            gate: Barrier::new(threads as u32),
            phases: Barrier::new(threads as u32),
            job: UnsafeCell::new(None),
            panic: Mutex::new(None),
        });
        // From here on, an error ends those that run: they wait at a gate that needs all of them.
        let mut pool = Self { shared, handles: Vec::new(), cores: Cores::of(threads) };
        for worker in 1..threads {
            let (shared, cores) = (Arc::clone(&pool.shared), pool.cores.clone());
            let name = format!("rewind-cpu-{worker}");
            pool.handles.push(thread::Builder::new().name(name).spawn(move || {
                if let Some(cores) = cores {
                    cores.pin(worker);
                }
                shared.serve(worker);
            })?);
        }
        Ok(pool)
    }

    /// Workers, the caller included.
    pub(crate) fn threads(&self) -> usize {
        self.handles.len() + 1
    }

    /// Calls `job` on every worker at once and waits for all. Each has one of `own` for itself.
    ///
    /// # Errors
    /// `job` panicked on a worker; the others got errors at its barriers.
    pub(crate) fn run<T: Send>(
        &mut self,
        own: &mut [T],
        job: impl Fn(&mut Worker<'_>, &mut T) -> Result<(), Poisoned> + Sync,
    ) -> Result<(), Panicked> {
        let workers = self.threads();
        assert!(own.len() >= workers, "{} for {workers} workers", own.len());
        let own = Each(std::ptr::from_mut(own));
        let shared = &*self.shared;
        let run = |number: usize| {
            // SAFETY: numbers differ, and are below the length.
            let own = unsafe { own.of(number) };
            let mut worker = Worker { number, workers, phases: &shared.phases };
            // An error says no more than that another worker has panicked.
            let _ = job(&mut worker, own);
        };
        let run: &(dyn Fn(usize) + Sync) = &run;
        let _pinned = self.cores.as_ref().map(|cores| cores.pin_for_now(0));
        // SAFETY: only the lifetime changes. Workers use the reference between the two times that the
        // gate opens, and this function does not return before the second.
        let run = unsafe { std::mem::transmute::<&(dyn Fn(usize) + Sync), Job>(run) };
        // SAFETY: all workers are at the gate, and `&mut self` keeps other callers out.
        unsafe { *shared.job.get() = Some(run) };
        shared.phases.heal();
        // No errors: the gate is poisoned when the pool ends.
        let _ = shared.gate.wait();
        shared.work(0, run);
        let _ = shared.gate.wait();
        let panic = shared.panic.lock().unwrap_or_else(PoisonError::into_inner).take();
        panic.map_or(Ok(()), |message| Err(Panicked(message)))
    }
}

/// Elements of a slice, one for each worker.
struct Each<T>(*mut [T]);

// SAFETY: each element goes to one thread.
unsafe impl<T: Send> Sync for Each<T> {}

impl<T> Each<T> {
    /// # Safety
    /// Each number is taken by one thread at a time, while the slice is borrowed, and is below its length.
    #[expect(clippy::mut_from_ref, reason = "each thread has an element of its own")]
    unsafe fn of(&self, number: usize) -> &mut T {
        // SAFETY: said above.
        unsafe { &mut *self.0.cast::<T>().add(number) }
    }
}

impl Worker<'_> {
    /// Its number, from 0.
    pub(crate) fn number(&self) -> usize {
        self.number
    }

    /// Workers of the job.
    pub(crate) fn workers(&self) -> usize {
        self.workers
    }

    /// Its share of some units: neighbours, in order, as even as can be.
    pub(crate) fn share(&self, units: usize) -> Range<usize> {
        share(units, self.workers, self.number)
    }

    /// Waits until all workers have come; then each sees what the others have written.
    ///
    /// # Errors
    /// A worker has panicked: the job is to be left.
    pub(crate) fn barrier(&mut self) -> Result<(), Poisoned> {
        self.phases.wait()
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.gate.poison();
        for handle in self.handles.drain(..) {
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
        loop {
            if self.gate.wait().is_err() {
                return;
            }
            // SAFETY: the gate has opened, so the caller has written the cell and will not write it
            // again before this worker is back.
            let Some(job) = (unsafe { *self.job.get() }) else { return };
            self.work(worker, job);
            if self.gate.wait().is_err() {
                return;
            }
        }
    }

    fn work(&self, worker: usize, job: Job) {
        // The data of a job that panicked is discarded with its pass, so nobody sees it half-changed.
        let Err(payload) = catch_unwind(AssertUnwindSafe(|| job(worker))) else { return };
        let mut first = self.panic.lock().unwrap_or_else(PoisonError::into_inner);
        first.get_or_insert_with(|| message(payload.as_ref()));
        self.phases.poison();
    }
}

fn message(payload: &(dyn Any + Send)) -> String {
    let text = payload.downcast_ref::<&str>().copied();
    let text = text.or_else(|| payload.downcast_ref::<String>().map(String::as_str));
    text.unwrap_or("a panic without a message").to_owned()
}

/// The share of `worker` when `units` units are dealt to `workers` workers.
pub(crate) fn share(units: usize, workers: usize, worker: usize) -> Range<usize> {
    let bound = |worker: usize| units * worker / workers;
    bound(worker)..bound(worker + 1)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn every_worker_runs_once_with_its_own() {
        for threads in [1, 2, 5] {
            let mut pool = Pool::new(threads).expect("threads");
            for round in 0..2000 {
                let mut own = vec![0; threads];
                pool.run(&mut own, |worker, own| {
                    *own += worker.number() + round;
                    Ok(())
                })
                .expect("no panic");
                assert!(own.iter().enumerate().all(|(worker, &own)| own == worker + round));
            }
        }
    }

    #[test]
    fn after_a_barrier_all_see_what_was_done_before() {
        for threads in [1, 2, 4] {
            let mut pool = Pool::new(threads).expect("threads");
            let done = AtomicUsize::new(0);
            let phases = 500;
            pool.run(&mut vec![(); threads], |worker, ()| {
                for phase in 1..=phases {
                    done.fetch_add(1, Ordering::Relaxed);
                    worker.barrier()?;
                    assert_eq!(done.load(Ordering::Relaxed), phase * threads);
                    worker.barrier()?;
                }
                Ok(())
            })
            .expect("no panic");
            assert_eq!(done.into_inner(), phases * threads);
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
            thread::sleep(10 * sync::SPIN);
            pool.run(&mut [(); 3], |worker, ()| {
                count.fetch_add(1, Ordering::Relaxed);
                thread::sleep(10 * worker.number() as u32 * sync::SPIN);
                worker.barrier()?;
                assert_eq!(count.load(Ordering::Relaxed) % 3, 0);
                Ok(())
            })
            .expect("no panic");
        }
        assert_eq!(count.into_inner(), 15);
    }

    #[test]
    fn a_panic_in_any_phase_is_an_error_and_the_pool_goes_on() {
        for threads in [1, 3] {
            let mut pool = Pool::new(threads).expect("threads");
            for bad in 0..threads {
                for bad_phase in 0..3 {
                    let left = AtomicUsize::new(0);
                    let result = pool.run(&mut vec![(); threads], |worker, ()| {
                        for phase in 0..3 {
                            let here = (worker.number(), phase) == (bad, bad_phase);
                            assert!(!here, "worker {bad} is bad");
                            if let Err(poisoned) = worker.barrier() {
                                left.fetch_add(1, Ordering::Relaxed);
                                return Err(poisoned);
                            }
                        }
                        Ok(())
                    });
                    let Err(Panicked(message)) = result else { panic!("no panic was reported") };
                    assert_eq!(message, format!("worker {bad} is bad"));
                    assert_eq!(left.into_inner(), threads - 1);
                    pool.run(&mut vec![(); threads], |worker, ()| worker.barrier()).expect("fine");
                }
            }
        }
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
