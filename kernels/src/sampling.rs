//! From logits to answers: how the four kernels are launched, and what the host prepares for them.
//!
//! They run in this order, each over the head rows of a pass: [`head`], [`choose`] (only if a row is
//! general), [`finish`], [`logprobs`] (only if a row wants them). What a row wants stands in its
//! [`Choice`]; lists of any length (bias, seen and banned tokens, masks) lie in one array that
//! [`Lists`] fills.

use crate::arguments::{
    CHOICE_GENERAL, Choice, DETECTOR_ENTROPY, DETECTOR_FUSED, HEAD_TILE, IN_PROMPT, Matrix, NONE,
    PADDING,
};
use crate::geometry::Geometry;
use crate::product;

/// The LM head's kernels: by format, then by the rows of a block.
const HEADS: [[&str; 3]; 10] = [
    ["head_f32_8", "head_f32_16", "head_f32_64"],
    ["head_f16_8", "head_f16_16", "head_f16_64"],
    ["head_bf16_8", "head_bf16_16", "head_bf16_64"],
    ["head_int8_8", "head_int8_16", "head_int8_64"],
    ["head_int8_group_8", "head_int8_group_16", "head_int8_group_64"],
    ["head_int4_group_8", "head_int4_group_16", "head_int4_group_64"],
    ["head_fp8_8", "head_fp8_16", "head_fp8_64"],
    ["head_int4_affine_8", "head_int4_affine_16", "head_int4_affine_32"],
    ["head_int6_group_8", "head_int6_group_16", "head_int6_group_64"],
    ["head_nf4_8", "head_nf4_16", "head_nf4_64"],
];

/// Threads of a block of `finish`.
const FINISH_THREADS: u32 = 256;
/// Bytes that a warp of `finish` leaves in shared memory: an `Extent`, `Sums`, `Leaders`.
const FINISH_WARP: u32 = 16 + 24 + 24;
/// Threads of a block of `choose`.
const CHOOSE_THREADS: u32 = 512;
/// Bytes of `Leaders` of 32 warps.
const LEADERS: u32 = 32 * 24;
/// Threads of a block of `logprobs`.
const LOGPROBS_THREADS: u32 = 512;
/// Bytes of two counters and twenty ranks.
const BEST: u32 = 8 + 20 * 8;
/// Bytes of a `SelectRoom`: two halves of 2048 bins, 32 sums, a `Found`.
const SELECT_ROOM: u32 = 2 * 2048 * 4 + 32 * 8 + 32;

/// f32 between the logits of two rows: multiples of 16 bytes, as the kernels read them.
#[must_use]
pub const fn logits_stride(vocabulary: u32) -> u32 {
    vocabulary.next_multiple_of(HEAD_TILE)
}

/// Tiles of a row.
#[must_use]
pub const fn tiles(vocabulary: u32) -> u32 {
    vocabulary.div_ceil(HEAD_TILE)
}

/// Logits and tiles of `rows` rows.
///
/// # Panics
/// If the matrix has none of the formats.
#[must_use]
pub fn head(matrix: &Matrix, rows: u32) -> Geometry {
    let size = product::size(rows);
    // The logits of the block, behind what the product takes.
    let logits = product::block_rows(matrix, rows) * HEAD_TILE * size_of::<f32>() as u32;
    Geometry {
        kernel: HEADS[matrix.format as usize][size],
        grid: product::grid(matrix, rows),
        threads: product::THREADS,
        shared: product::shared(rows) + logits,
    }
}

/// Merges, decides, judges `rows` rows.
#[must_use]
pub const fn finish(rows: u32) -> Geometry {
    let shared = FINISH_THREADS / 32 * FINISH_WARP;
    Geometry { kernel: "finish", grid: [rows, 1, 1], threads: FINISH_THREADS, shared }
}

/// The whole sampling contract, for the general ones of `rows` rows.
#[must_use]
pub const fn choose(rows: u32) -> Geometry {
    let shared = LEADERS + SELECT_ROOM;
    Geometry { kernel: "choose", grid: [rows, 1, 1], threads: CHOOSE_THREADS, shared }
}

/// Log-probabilities, for those of `rows` rows that want them.
#[must_use]
pub const fn logprobs(rows: u32) -> Geometry {
    let shared = BEST + SELECT_ROOM;
    Geometry { kernel: "logprobs", grid: [rows, 1, 1], threads: LOGPROBS_THREADS, shared }
}

impl Choice {
    /// A row that is none: nothing is read or written for it but an empty answer.
    pub const PADDING: Self = Self {
        seed: 0,
        slot: NONE,
        position: PADDING,
        flags: 0,
        detector: DETECTOR_ENTROPY,
        threshold: 0.0,
        temperature: 0.0,
        top_p: 1.0,
        min_p: 0.0,
        top_k: 0,
        repetition: 1.0,
        presence: 0.0,
        frequency: 0.0,
        bias_first: 0,
        bias_count: 0,
        seen_first: 0,
        seen_count: 0,
        banned_first: 0,
        banned_count: 0,
        mask: NONE,
        logprobs: 0,
        fused_bias: 0.0,
        fused_entropy: 0.0,
        fused_varentropy: 0.0,
        fused_ln_top1: 0.0,
        fused_margin: 0.0,
        unused: 0,
    };

    /// Has the row judged by the fused detector: bias, then the weights of entropy, varentropy, ln top1
    /// and margin.
    pub fn judge_fused(&mut self, weights: [f32; 5]) {
        self.detector = DETECTOR_FUSED;
        [
            self.fused_bias,
            self.fused_entropy,
            self.fused_varentropy,
            self.fused_ln_top1,
            self.fused_margin,
        ] = weights;
    }

    /// Sets or clears [`CHOICE_GENERAL`], once everything else is in place: whether bias, penalties,
    /// exclusions or filters have a say.
    pub fn mark_general(&mut self, vocabulary: u32) {
        let lists = self.bias_count + self.seen_count + self.banned_count > 0 || self.mask != NONE;
        let top_k = (1..vocabulary).contains(&self.top_k);
        let filters = top_k || self.top_p < 1.0 || self.min_p > 0.0;
        let general = self.slot != NONE && (lists || self.temperature > 0.0 && filters);
        self.flags &= !CHOICE_GENERAL;
        self.flags |= if general { CHOICE_GENERAL } else { 0 };
    }
}

/// The lists of all rows of a pass, one behind the other.
#[derive(Clone, Debug, Default)]
pub struct Lists {
    words: Vec<u32>,
    /// Occurrences by token id while a history is counted; all zero in between.
    counts: Vec<u32>,
}

impl Lists {
    /// Forgets the lists of an earlier pass.
    pub fn clear(&mut self) {
        self.words.clear();
    }

    /// What the kernels read.
    #[must_use]
    pub fn words(&self) -> &[u32] {
        &self.words
    }

    /// Biases of distinct tokens.
    pub fn bias(&mut self, choice: &mut Choice, bias: &[(u32, f32)]) {
        choice.bias_first = self.start();
        choice.bias_count = bias.len() as u32;
        self.words.extend(bias.iter().flat_map(|&(token, bias)| [token, bias.to_bits()]));
    }

    /// Tokens before the one to choose, of which the first `prompt` are the prompt; for rows whose
    /// penalties need them. Ids from `vocabulary` on are left out.
    pub fn history(&mut self, choice: &mut Choice, vocabulary: u32, tokens: &[u32], prompt: usize) {
        choice.seen_first = self.start();
        self.counts.resize(self.counts.len().max(vocabulary as usize), 0);
        let known = |&&token: &&u32| token < vocabulary;
        let (prompt, answer) = tokens.split_at(prompt.min(tokens.len()));
        for &token in prompt.iter().filter(known) {
            self.counts[token as usize] |= IN_PROMPT;
        }
        for &token in answer.iter().filter(known) {
            self.counts[token as usize] += 1;
        }
        for &token in tokens.iter().filter(known) {
            // Taking the count leaves a clean table behind and lists the token once.
            let count = std::mem::take(&mut self.counts[token as usize]);
            if count > 0 {
                self.words.extend([token, count]);
            }
        }
        choice.seen_count = (self.start() - choice.seen_first) / 2;
    }

    /// Tokens that may not be chosen: those outside of the mask (bit `token % 64` of word
    /// `token / 64`; beyond its end nothing is allowed) and the banned ones, which ascend.
    ///
    /// A mask that allows no token of the vocabulary is ignored; so are bans that leave nothing.
    pub fn exclude(
        &mut self,
        choice: &mut Choice,
        vocabulary: u32,
        banned: &[u32],
        mask: Option<&[u64]>,
    ) {
        // The mask in words of 32 bits, no bit behind the vocabulary.
        let word = |mask: &[u64], i: u32| {
            let bits = mask.get(i as usize / 2).map_or(0, |word| (word >> (32 * (i % 2))) as u32);
            let used = (vocabulary - 32 * i).min(32);
            bits & (u32::MAX >> (32 - used))
        };
        let words = 0..vocabulary.div_ceil(32);
        let mask = mask.filter(|mask| words.clone().any(|i| word(mask, i) != 0));
        let allowed = |token: u32| {
            token < vocabulary
                && mask.is_none_or(|mask| word(mask, token / 32) >> (token % 32) & 1 == 1)
        };
        let candidates =
            mask.map_or(vocabulary, |mask| words.clone().map(|i| word(mask, i).count_ones()).sum());
        let bans = banned.iter().filter(|&&token| allowed(token));

        choice.mask = NONE;
        if let Some(mask) = mask {
            choice.mask = self.start();
            self.words.extend(words.map(|i| word(mask, i)));
        }
        choice.banned_first = self.start();
        choice.banned_count = 0;
        // Each ban that matters takes away one candidate.
        if bans.clone().count() < candidates as usize {
            self.words.extend(bans);
            choice.banned_count = self.start() - choice.banned_first;
        }
    }

    /// Where the next list starts. The lists of a pass are far shorter than 2³² words.
    fn start(&self) -> u32 {
        self.words.len() as u32
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn excluded(vocabulary: u32, banned: &[u32], mask: Option<&[u64]>) -> (Vec<u32>, Vec<u32>) {
        let (mut lists, mut choice) = (Lists::default(), Choice::PADDING);
        lists.words.push(7); // another row's
        lists.exclude(&mut choice, vocabulary, banned, mask);
        let mask = (choice.mask != NONE).then(|| &lists.words()[choice.mask as usize..]);
        let mask =
            mask.map_or(Vec::new(), |mask| mask[..vocabulary.div_ceil(32) as usize].to_vec());
        let bans = &lists.words()[choice.banned_first as usize..][..choice.banned_count as usize];
        (mask, bans.to_vec())
    }

    #[test]
    fn masks_end_with_the_vocabulary() {
        assert_eq!(excluded(33, &[], Some(&[!0])), (vec![!0, 1], vec![]));
        assert_eq!(excluded(70, &[], Some(&[1 << 40])), (vec![0, 1 << 8, 0], vec![]));
    }

    #[test]
    fn masks_and_bans_that_leave_nothing_are_dropped() {
        assert_eq!(excluded(3, &[0, 1, 2], None), (vec![], vec![]));
        assert_eq!(excluded(3, &[0, 1, 9], None), (vec![], vec![0, 1]));
        assert_eq!(excluded(3, &[1], Some(&[0b1000])), (vec![], vec![1]));
        assert_eq!(excluded(3, &[], Some(&[])), (vec![], vec![]));
        // Bans count only where the mask allows the token.
        assert_eq!(excluded(3, &[0, 2], Some(&[0b101])), (vec![0b101], vec![]));
        assert_eq!(excluded(3, &[0, 1], Some(&[0b101])), (vec![0b101], vec![0]));
    }

    #[test]
    fn a_token_is_listed_once_with_its_count() {
        let (mut lists, mut choice) = (Lists::default(), Choice::PADDING);
        lists.history(&mut choice, 10, &[3, 3, 5, 12, 5, 4, 5], 3);
        assert_eq!((choice.seen_first, choice.seen_count), (0, 3));
        assert_eq!(lists.words(), [3, IN_PROMPT, 5, IN_PROMPT | 2, 4, 1]);
        // The table is clean again.
        lists.clear();
        lists.history(&mut choice, 10, &[5], 9);
        assert_eq!(lists.words(), [5, IN_PROMPT]);
    }

    #[test]
    fn only_what_has_a_say_is_general() {
        let general = |change: fn(&mut Choice)| {
            let mut choice = Choice { slot: 1, position: 9, temperature: 0.5, ..Choice::PADDING };
            change(&mut choice);
            choice.mark_general(100);
            choice.flags & CHOICE_GENERAL != 0
        };
        assert!(!general(|_| ()));
        assert!(!general(|choice| choice.top_k = 100));
        assert!(general(|choice| choice.top_k = 99));
        assert!(general(|choice| choice.top_p = 0.99));
        assert!(general(|choice| choice.min_p = 0.01));
        assert!(!general(|choice| (choice.top_p, choice.temperature) = (0.99, 0.0)));
        assert!(general(|choice| (choice.seen_count, choice.temperature) = (1, 0.0)));
        assert!(general(|choice| (choice.mask, choice.temperature) = (0, 0.0)));
        assert!(!general(|choice| (choice.mask, choice.slot) = (0, NONE)));
    }
}
