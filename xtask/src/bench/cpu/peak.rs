//! How many f32 operations a second the processor can do at the very most: what a prompt's products are held against.
//!
//! Nothing but fused multiply-adds, on the widest vectors there are, in chains enough to hide their latency, with all
//! operands in registers.

use std::hint::black_box;
use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use pulp::{Arch, Simd, WithSimd};

/// Processors start two multiply-adds in a cycle and finish them after four or five; with the two operands that all
/// share, this many fill the 16 registers of AVX2 nearly.
const CHAINS: usize = 12;
/// Between two looks at the clock.
const TURNS: u64 = 100_000;

/// Operations a second (a multiply-add is two) of `threads` threads together, over `time`.
pub(super) fn measure(threads: u32, time: Duration) -> f64 {
    let start = Barrier::new(threads as usize);
    let alone = || {
        start.wait();
        let (started, mut operations) = (Instant::now(), 0);
        while started.elapsed() < time {
            operations += Arch::new().dispatch(Chains);
        }
        operations as f64 / started.elapsed().as_secs_f64()
    };
    thread::scope(|scope| {
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(alone)).collect();
        // A thread that panicked did nothing.
        running.into_iter().map(|thread| thread.join().unwrap_or(0.0)).sum()
    })
}

struct Chains;

impl WithSimd for Chains {
    /// Operations done.
    type Output = u64;

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) -> u64 {
        // Values that stay finite and that the compiler does not know.
        let (factor, term) = (simd.splat_f32s(black_box(0.5)), simd.splat_f32s(black_box(0.25)));
        let mut chains = [simd.splat_f32s(black_box(1.0)); CHAINS];
        for _ in 0..TURNS {
            for chain in &mut chains {
                *chain = simd.mul_add_f32s(*chain, factor, term);
            }
        }
        for chain in chains {
            black_box(simd.reduce_sum_f32s(chain));
        }
        2 * TURNS * (CHAINS * S::F32_LANES) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_operations_are_counted() {
        // Whatever the machine, a multiply-add is not slower than a microsecond nor faster than a 10⁻¹⁴ of a second.
        let found = measure(1, Duration::from_millis(5));
        assert!((1e6..1e14).contains(&found), "{found}");
    }

    #[test]
    fn a_dispatch_counts_every_lane_of_every_chain() {
        let lanes = Arch::new().dispatch(Chains) / (2 * TURNS * CHAINS as u64);
        assert!([1, 4, 8, 16].contains(&lanes), "{lanes}");
    }
}
