//! Which thread runs on which core.
//!
//! With one compute thread, that thread has a core of its own on both sides, and everything else has another: a server's
//! remaining threads and its client there, nothing here. Then the ratio shows what a server takes from the compute
//! thread itself, not who won a core.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, getpriority_process, setpriority_process};
use rustix::thread::{CpuSet, sched_getaffinity, sched_setaffinity};

/// Two cores.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Cores {
    /// For the compute thread.
    pub(super) compute: usize,
    /// For everything else.
    pub(super) rest: usize,
}

/// CPU time of each thread of a process so far, in ticks of the system.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Ticks(BTreeMap<i32, u64>);

impl Cores {
    /// The first two that this process may use.
    pub(super) fn choose() -> Result<Self> {
        let allowed = sched_getaffinity(None).context("cannot tell which cores may be used")?;
        let mut cores = (0..CpuSet::MAX_CPU).filter(|&core| allowed.is_set(core));
        match (cores.next(), cores.next()) {
            (Some(compute), Some(rest)) => Ok(Self { compute, rest }),
            _ => {
                bail!("two cores are needed: one for the compute thread, one for server and client")
            }
        }
    }

    /// Keeps every thread of a process on `rest` but those in `computing`, of which one works at a time: they get
    /// `compute`. A thread that starts later comes from one of these and stays where that is.
    pub(super) fn split(self, process: u32, computing: &[i32]) -> Result<()> {
        let threads = Ticks::of(process)?.0;
        for id in computing {
            ensure!(threads.contains_key(id), "thread {id} of the server is gone");
        }
        for &id in threads.keys() {
            let computes = computing.contains(&id);
            match keep(Pid::from_raw(id), if computes { self.compute } else { self.rest }) {
                // It ended meanwhile.
                Err(_) if !computes && !alive(process, id) => {}
                kept => kept?,
            }
        }
        Ok(())
    }
}

/// Gives every thread of `process` the priority of `other`'s main thread: Triton sets that of its own threads, and where
/// it may, higher than that of the process.
pub(super) fn level(process: u32, other: u32) -> Result<()> {
    let nice = getpriority_process(pid(other)).context("cannot tell a priority")?;
    for &id in Ticks::of(process)?.0.keys() {
        match setpriority_process(Pid::from_raw(id), nice) {
            Err(_) if !alive(process, id) => {}
            set => set.context("cannot give both sides the same priority")?,
        }
    }
    Ok(())
}

/// Starts children that stay on `core`: what a thread starts inherits its cores.
pub(super) fn on<T>(core: Option<usize>, start: impl FnOnce() -> Result<T>) -> Result<T> {
    let Some(core) = core else { return start() };
    let own = sched_getaffinity(None).context("cannot tell which cores may be used")?;
    keep(None, core)?;
    let started = start();
    sched_setaffinity(None, &own).context("cannot leave a core again")?;
    started
}

fn keep(thread: Option<Pid>, core: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(core);
    sched_setaffinity(thread, &set).with_context(|| format!("cannot keep a thread on core {core}"))
}

fn pid(process: u32) -> Option<Pid> {
    i32::try_from(process).ok().and_then(Pid::from_raw)
}

fn alive(process: u32, thread: i32) -> bool {
    fs::exists(format!("/proc/{process}/task/{thread}")).unwrap_or(false)
}

impl Ticks {
    /// Those of `process`.
    pub(super) fn of(process: u32) -> Result<Self> {
        let folder = format!("/proc/{process}/task");
        let threads = fs::read_dir(&folder).with_context(|| format!("cannot list {folder}"))?;
        let mut ticks = BTreeMap::new();
        for thread in threads.flatten() {
            let Ok(stat) = fs::read_to_string(thread.path().join("stat")) else { continue };
            let id = thread.file_name().to_string_lossy().parse();
            if let (Ok(id), Some(spent)) = (id, spent(&stat)) {
                ticks.insert(id, spent);
            }
        }
        Ok(Self(ticks))
    }

    /// The thread that worked most since `before`.
    pub(super) fn busiest_since(&self, before: &Self) -> Option<i32> {
        let since = |(id, now): (&i32, &u64)| {
            (now.saturating_sub(before.0.get(id).copied().unwrap_or(0)), *id)
        };
        self.0.iter().map(since).max().filter(|(spent, _)| *spent > 0).map(|(_, id)| id)
    }
}

/// User and system time in a line of `/proc/…/stat`.
fn spent(stat: &str) -> Option<u64> {
    // The name of a thread is in brackets and may hold anything; fields 14 and 15 of proc_pid_stat(5).
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_whitespace().skip(11);
    let user: u64 = fields.next()?.parse().ok()?;
    let system: u64 = fields.next()?.parse().ok()?;
    Some(user + system)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_is_read_past_any_name() {
        let stat = "7 (a) b) c) S 1 7 7 0 -1 64 0 0 0 0 120 34 0 0 20 0 5 0 99 0 0";
        assert_eq!(spent(stat), Some(154));
        assert_eq!(spent("7 (x) S 1"), None);
    }

    #[test]
    fn the_busiest_is_judged_by_what_it_did_since() {
        let ticks = |list: &[(i32, u64)]| Ticks(list.iter().copied().collect());
        let before = ticks(&[(1, 500), (2, 10)]);
        assert_eq!(ticks(&[(1, 505), (2, 90), (3, 20)]).busiest_since(&before), Some(2));
        assert_eq!(ticks(&[(1, 505), (2, 10), (3, 20)]).busiest_since(&before), Some(3));
        assert_eq!(before.busiest_since(&before), None);
    }

    #[test]
    fn this_process_has_threads() {
        let ticks = Ticks::of(std::process::id()).unwrap();
        assert!(ticks.0.contains_key(&(std::process::id() as i32)));
    }

    #[test]
    fn a_process_is_as_nice_as_itself() {
        let own = std::process::id();
        let before = getpriority_process(None).unwrap();
        level(own, own).unwrap();
        assert_eq!(getpriority_process(None).unwrap(), before);
    }

    #[test]
    fn a_child_inherits_the_core_and_we_get_ours_back() {
        let before = sched_getaffinity(None).unwrap();
        let core = (0..CpuSet::MAX_CPU).find(|&core| before.is_set(core)).unwrap();
        let inside = on(Some(core), || Ok(sched_getaffinity(None)?)).unwrap();
        assert!(inside.is_set(core) && inside.count() == 1);
        assert_eq!(sched_getaffinity(None).unwrap(), before);
        assert!(on(None, || Ok(sched_getaffinity(None)?)).unwrap() == before);
    }
}
