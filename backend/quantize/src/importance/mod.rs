//! How important each layer is, by several measures; the higher the more.
//!
//! Sources: LIM and ZD, "Layer-Wise Quantization" (arXiv 2406.17415). A layer is a whole decoder block: LIM
//! says nothing of its parts.

mod modification;
mod outliers;

pub use modification::{ModificationError, input_modification};
pub use outliers::{OutliersError, Sides, outliers};

/// No measure at all, to compare with: uniform numbers, the same for the same seed.
pub fn random(layers: usize, seed: u64) -> Vec<f64> {
    // SplitMix64 (Steele, Lea, Flood, "Fast Splittable Pseudorandom Number Generators", 2014).
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = state;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    };
    (0..layers).map(|_| (next() >> 11) as f64 / (1_u64 << 53) as f64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn random_numbers_are_uniform_and_repeat() {
        let numbers = random(4000, 3);
        assert_eq!(numbers, random(4000, 3));
        assert_ne!(numbers[..10], random(10, 4)[..]);
        assert!(numbers.iter().all(|x| (0.0..1.0).contains(x)));
        let mean = numbers.iter().sum::<f64>() / 4000.0;
        assert!((mean - 0.5).abs() < 0.02, "{mean}");
    }
}
