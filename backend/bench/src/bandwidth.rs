//! How fast this machine reads its memory: the floor under every decode step.
//!
//! Each thread reads a part of its own of an array far larger than the last cache, from start to end, as
//! the kernels read weights. The sums that it forms are what a compiler can make of the plainest loop:
//! with vectors of any width the loads outrun the memory, so no instruction set is asked for.

use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::Instant;

use memmap2::MmapMut;
use serde::{Deserialize, Serialize};

use crate::error::BenchError;
use crate::machine::Machine;
use crate::statistics::{Summary, median};

/// The array is at least this many times as large as the last-level cache …
const TIMES_CACHE: u64 = 8;
/// … and within these bounds, in bytes.
const LEAST_BYTES: u64 = 256 << 20;
const MOST_BYTES: u64 = 2 << 30;

/// Bandwidth at the measurement's number of threads, and at fewer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bandwidth {
    /// Threads that read, as many as compute.
    pub threads: usize,
    /// 10⁹ bytes a second, all threads together.
    pub gigabytes_per_second: Summary,
    /// Bytes of the array.
    pub array_bytes: u64,
    /// The same with fewer threads: powers of two, then all.
    pub by_threads: Vec<ThreadsBandwidth>,
}

/// Bandwidth at a number of threads.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ThreadsBandwidth {
    /// Threads that read.
    pub threads: usize,
    /// 10⁹ bytes a second, all threads together.
    pub gigabytes_per_second: Summary,
}

/// Reads an array again and again.
#[derive(Debug)]
pub struct ReadSweep {
    array: MmapMut,
    /// Numbers of threads, ascending, each with its samples in GB/s.
    samples: Vec<(usize, Vec<f64>)>,
}

impl ReadSweep {
    /// A sweep with up to `threads` threads, over an array that no cache of this machine holds.
    ///
    /// # Errors
    /// There is not enough memory.
    pub fn new(machine: &Machine, threads: usize) -> Result<Self, BenchError> {
        let cache = machine.last_level_cache_bytes.unwrap_or(0);
        let most = machine.memory_bytes.map_or(MOST_BYTES, |memory| memory / 4);
        let bytes = (TIMES_CACHE * cache).clamp(LEAST_BYTES, MOST_BYTES).min(most);
        Self::over(bytes as usize, threads)
    }

    /// A sweep over an array of this many bytes.
    ///
    /// # Errors
    /// There is not enough memory.
    pub fn over(bytes: usize, threads: usize) -> Result<Self, BenchError> {
        let threads = threads.max(1);
        let mut array = MmapMut::map_anon(bytes.next_multiple_of(LINE).max(LINE * threads))?;
        // As the weights have them where the system gives them; not having them is no error.
        #[cfg(target_os = "linux")]
        let _ = array.advise(memmap2::Advice::HugePage);
        // Memory that was never written is one page of zeros, read from the cache.
        array.fill(1);
        let counts = (0..usize::BITS).map(|bit| 1 << bit).take_while(|&count| count < threads);
        let samples = counts.chain([threads]).map(|count| (count, Vec::new())).collect();
        Ok(Self { array, samples })
    }

    /// Adds a sample for every number of threads.
    pub fn sample(&mut self) {
        for (threads, samples) in &mut self.samples {
            samples.push(read(&self.array, *threads) / 1e9);
        }
    }

    /// Median of the samples so far at all threads, in GB/s.
    pub(crate) fn median(&self) -> Option<f64> {
        let (_, samples) = self.samples.last()?;
        (!samples.is_empty()).then(|| median(samples))
    }

    /// What was sampled; one more sample is taken if there is none.
    pub fn bandwidth(mut self) -> Bandwidth {
        if self.samples.iter().any(|(_, samples)| samples.is_empty()) {
            self.sample();
        }
        let array_bytes = self.array.len() as u64;
        let by_threads: Vec<_> = self
            .samples
            .into_iter()
            .map(|(threads, samples)| ThreadsBandwidth {
                threads,
                gigabytes_per_second: Summary::of(samples),
            })
            .collect();
        let ThreadsBandwidth { threads, gigabytes_per_second } =
            by_threads.last().cloned().unwrap_or(ThreadsBandwidth {
                threads: 0,
                gigabytes_per_second: Summary::of(Vec::new()),
            });
        Bandwidth { threads, gigabytes_per_second, array_bytes, by_threads }
    }
}

/// Bytes that a thread's loop takes at a time, a whole number of cache lines.
const LINE: usize = 256;
type Lanes = [u64; LINE / 8];

/// Bytes a second that `threads` threads read of the array.
fn read(array: &[u8], threads: usize) -> f64 {
    // The array is page-aligned and a whole number of lines long.
    let lines: &[Lanes] = bytemuck::cast_slice(array);
    let start = Barrier::new(threads);
    let work = &|lines: &[Lanes]| {
        start.wait();
        let began = Instant::now();
        black_box(sum(lines));
        (began, Instant::now())
    };
    let times: Vec<_> = thread::scope(|scope| {
        let parts = (0..threads).map(|part| part * lines.len() / threads);
        let parts: Vec<_> = parts.chain([lines.len()]).collect();
        let workers: Vec<_> = parts
            .windows(2)
            .map(|part| (part[0], part[1]))
            .map(|(from, to)| scope.spawn(move || work(&lines[from..to])))
            .collect();
        workers.into_iter().filter_map(|worker| worker.join().ok()).collect()
    });
    let began = times.iter().map(|(began, _)| *began).min();
    let ended = times.iter().map(|(_, ended)| *ended).max();
    match (began, ended) {
        (Some(began), Some(ended)) => array.len() as f64 / (ended - began).as_secs_f64(),
        _ => f64::NAN,
    }
}

fn sum(lines: &[Lanes]) -> u64 {
    let mut sums: Lanes = [0; LINE / 8];
    for line in lines {
        for (sum, number) in sums.iter_mut().zip(line) {
            *sum = sum.wrapping_add(*number);
        }
    }
    sums.into_iter().fold(0, u64::wrapping_add)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_line_is_read_once() {
        let lines: Vec<Lanes> =
            (0..100).map(|i| std::array::from_fn(|j| i * 1000 + j as u64)).collect();
        let expected: u64 = lines.iter().flatten().sum();
        assert_eq!(sum(&lines), expected);
    }

    #[test]
    fn samples_for_every_number_of_threads() {
        let mut sweep = ReadSweep::over(1 << 20, 5).unwrap();
        sweep.sample();
        sweep.sample();
        let bandwidth = sweep.bandwidth();
        let threads: Vec<_> = bandwidth.by_threads.iter().map(|one| one.threads).collect();
        assert_eq!((threads, bandwidth.threads), (vec![1, 2, 4, 5], 5));
        for one in &bandwidth.by_threads {
            assert_eq!(one.gigabytes_per_second.samples.len(), 2);
            assert!(one.gigabytes_per_second.low > 0.0, "{one:?}");
        }
        assert_eq!(bandwidth.array_bytes, 1 << 20);
    }

    #[test]
    fn there_is_always_a_sample() {
        let bandwidth = ReadSweep::over(1, 1).unwrap().bandwidth();
        assert_eq!(bandwidth.gigabytes_per_second.samples.len(), 1);
        assert_eq!(bandwidth.by_threads.len(), 1);
    }
}
