//! Threads that take pieces of work, in any order; what a piece results in depends on the piece alone.

use std::sync::{Mutex, PoisonError};
use std::thread;

/// Hands items to threads until there is none left.
pub(crate) fn each<I: Iterator + Send>(threads: usize, items: I, work: impl Fn(I::Item) + Sync)
where
    I::Item: Send,
{
    if threads < 2 {
        return items.for_each(work);
    }
    let items = Mutex::new(items);
    let run = || {
        loop {
            // A poisoned lock means that another thread panicked: the scope will say so.
            let item = items.lock().unwrap_or_else(PoisonError::into_inner).next();
            let Some(item) = item else { break };
            work(item);
        }
    };
    thread::scope(|scope| {
        for _ in 1..threads {
            scope.spawn(run);
        }
        run();
    });
}

/// The result for each number below `count`, in order.
pub(crate) fn map<T: Send>(
    threads: usize,
    count: usize,
    work: impl Fn(usize) -> T + Sync,
) -> Vec<T> {
    let mut results: Vec<Option<T>> = (0..count).map(|_| None).collect();
    each(threads, results.iter_mut().enumerate(), |(number, result)| *result = Some(work(number)));
    results.into_iter().flatten().collect()
}
