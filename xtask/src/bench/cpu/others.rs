//! How much of the machine other programs take.
//!
//! Threads that wait for each other by spinning, as both sides' do, lose far more to a neighbour than the time it runs: a
//! whole pass waits for the thread that was put aside. So figures are worth something only where nothing else runs, and
//! the document has to say whether it did.

use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use sysinfo::{MINIMUM_CPU_UPDATE_INTERVAL, System};

/// Above this many busy cores a machine does not count as quiet.
pub(super) const QUIET: f64 = 0.1;

/// Cores that are busy over `time` while this program sleeps.
///
/// # Errors
/// The system does not tell.
pub(super) fn busy(time: Duration) -> Result<f64> {
    let mut system = System::new().context("cannot tell what else runs on this machine")?;
    system.refresh_cpu_usage();
    thread::sleep(time.max(MINIMUM_CPU_UPDATE_INTERVAL));
    system.refresh_cpu_usage();
    Ok(f64::from(system.global_cpu_usage()) / 100.0 * system.cpus().len() as f64)
}

#[cfg(test)]
mod tests {
    use std::hint::spin_loop;
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;

    #[test]
    fn a_spinning_neighbour_is_seen() {
        let done = AtomicBool::new(false);
        let cores = thread::available_parallelism().map_or(1, usize::from) as f64;
        thread::scope(|scope| {
            scope.spawn(|| {
                while !done.load(Ordering::Relaxed) {
                    spin_loop();
                }
            });
            let busy = busy(Duration::from_millis(400)).unwrap();
            done.store(true, Ordering::Relaxed);
            // The thread may have to share its core, but some core is then busy with others.
            assert!((0.5..=cores + 0.1).contains(&busy), "{busy} of {cores}");
        });
    }
}
