//! Philox 4x32-10, the counter-based generator of Salmon et al., "Parallel random numbers: as easy
//! as 1, 2, 3" (SC 2011).
//!
//! A pure function from (key, counter) to four words: any token's noise can be had on any device
//! in any order, with no state to carry.

const MULTIPLIERS: [u32; 2] = [0xD251_1F53, 0xCD9E_8D57];
const WEYL: [u32; 2] = [0x9E37_79B9, 0xBB67_AE85];
const ROUNDS: usize = 10;

/// Four uniform words for a counter under a key.
#[inline]
pub fn philox4x32_10(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    let (mut c, mut k) = (counter, key);
    for round in 0..ROUNDS {
        if round > 0 {
            k = [k[0].wrapping_add(WEYL[0]), k[1].wrapping_add(WEYL[1])];
        }
        let (high0, low0) = wide_product(MULTIPLIERS[0], c[0]);
        let (high1, low1) = wide_product(MULTIPLIERS[1], c[2]);
        c = [high1 ^ c[1] ^ k[0], low1, high0 ^ c[3] ^ k[1], low0];
    }
    c
}

/// The noise words of tokens `4 * block .. 4 * block + 4` at an absolute position, under a seed.
/// The third counter word is the index of the choice, of which there is one.
#[inline]
pub fn token_words(seed: u64, block: u32, position: u32) -> [u32; 4] {
    philox4x32_10([block, position, 0, 0], [seed as u32, (seed >> 32) as u32])
}

fn wide_product(a: u32, b: u32) -> (u32, u32) {
    let product = u64::from(a) * u64::from(b);
    ((product >> 32) as u32, product as u32)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known-answer vectors that the authors publish with their Random123 library.
    #[test]
    fn gives_the_published_answers() {
        let vectors = [
            ([0; 4], [0; 2], [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]),
            ([!0; 4], [!0; 2], [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ];
        for (counter, key, answer) in vectors {
            assert_eq!(philox4x32_10(counter, key), answer);
        }
    }

    #[test]
    fn seed_and_position_enter_where_the_contract_says() {
        let seed = 0x0123_4567_89ab_cdef;
        assert_eq!(
            token_words(seed, 7, 9),
            philox4x32_10([7, 9, 0, 0], [0x89ab_cdef, 0x0123_4567])
        );
    }
}
