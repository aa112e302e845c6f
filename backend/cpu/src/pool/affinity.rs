//! Threads that stay on their cores.
//!
//! The workers of a pass wait for the slowest, so two that share a core while another idles halve the
//! speed. Where a pool has as many threads as its process has cores, each thread is given one. Where
//! it has fewer, the system decides: other processes may be pinned to the same few cores, as happens
//! in containers that are limited by time and not by cores.

#[cfg(all(target_os = "linux", not(miri)))]
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// One core for each worker.
#[derive(Clone, Debug)]
pub(super) struct Cores(Vec<usize>);

/// The calling thread is where it should be; when dropped, it may go where it could before.
pub(super) struct Pinned {
    #[cfg(all(target_os = "linux", not(miri)))]
    before: Option<CpuSet>,
}

#[cfg(all(target_os = "linux", not(miri)))]
impl Cores {
    /// The cores of this process, if there are `threads`, and more than one.
    pub(super) fn of(threads: usize) -> Option<Self> {
        let allowed = sched_getaffinity(None).ok()?;
        let cores: Vec<_> = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core)).collect();
        (threads > 1 && cores.len() == threads).then_some(Self(cores))
    }

    /// Keeps the calling thread on the core of this worker, if the system lets it.
    pub(super) fn pin(&self, worker: usize) {
        let mut core = CpuSet::new();
        core.set(self.0[worker]);
        // Refused where the cores have changed: then threads run where the system puts them.
        let _ = sched_setaffinity(None, &core);
    }

    /// As [`pin`](Self::pin), for a thread that has other things to do.
    pub(super) fn pin_for_now(&self, worker: usize) -> Pinned {
        let before = sched_getaffinity(None).ok();
        if before.is_some() {
            self.pin(worker);
        }
        Pinned { before }
    }
}

#[cfg(all(target_os = "linux", not(miri)))]
impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(before) = &self.before {
            // What could be set before can be set again, or the cores have changed.
            let _ = sched_setaffinity(None, before);
        }
    }
}

#[cfg(not(all(target_os = "linux", not(miri))))]
impl Cores {
    /// None: this system is not asked.
    pub(super) fn of(_: usize) -> Option<Self> {
        None
    }

    pub(super) fn pin(&self, _: usize) {}

    pub(super) fn pin_for_now(&self, _: usize) -> Pinned {
        Pinned {}
    }
}

#[cfg(all(test, target_os = "linux", not(miri)))]
mod tests {
    use super::*;

    fn here() -> Vec<usize> {
        let allowed = sched_getaffinity(None).expect("known");
        (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core)).collect()
    }

    #[test]
    fn threads_are_pinned_where_there_are_as_many_cores_and_let_go() {
        let all = here();
        let cores = Cores(all.clone());
        {
            let _pinned = cores.pin_for_now(all.len() - 1);
            assert_eq!(here(), all[all.len() - 1..]);
        }
        assert_eq!(here(), all);
        assert!(Cores::of(all.len() + 1).is_none() && Cores::of(1).is_none());
        assert_eq!(Cores::of(all.len()).map(|cores| cores.0), (all.len() > 1).then_some(all));
    }
}
