//! Arguments of the kernels, field by field as in `arguments.h`, which says what they mean.
//!
//! All structs are plain old data without padding, so that their bytes are what a launch passes. The
//! emulator's tests compare every size with the C++ side.

use bytemuck::{Pod, Zeroable};

/// Address in device memory; 0 is null.
#[repr(transparent)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
pub struct Address(pub u64);

impl Address {
    /// No memory.
    pub const NULL: Self = Self(0);

    /// This many bytes further.
    #[must_use]
    pub const fn offset(self, bytes: usize) -> Self {
        Self(self.0 + bytes as u64)
    }
}

/// Weights, packed in tiles of 16 rows for the matrix products; matrix.cuh says how.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Matrix {
    /// codes
    pub codes: Address,
    /// f16 per group, f32 per row; null for floats
    pub scales: Address,
    /// outputs
    pub rows: u32,
    /// inputs
    pub cols: u32,
    /// packing units along a row of tiles
    pub units: u32,
    /// weights that share a scale: 32, 64, 128; 0: the row, or none
    pub group: u32,
    /// enum Format
    pub format: u32,
    /// 1: tiles of two matrices alternate (gate, up); `rows` counts both
    pub interleave: u32,
}

/// FORMAT_F32
pub const FORMAT_F32: u32 = 0;
/// FORMAT_F16
pub const FORMAT_F16: u32 = 1;
/// FORMAT_BF16
pub const FORMAT_BF16: u32 = 2;
/// FORMAT_INT8
pub const FORMAT_INT8: u32 = 3;
/// FORMAT_INT8_GROUP
pub const FORMAT_INT8_GROUP: u32 = 4;
/// FORMAT_INT4_GROUP
pub const FORMAT_INT4_GROUP: u32 = 5;
/// FORMAT_FP8
pub const FORMAT_FP8: u32 = 6;
/// FORMAT_INT4_AFFINE
pub const FORMAT_INT4_AFFINE: u32 = 7;
/// FORMAT_INT6_GROUP
pub const FORMAT_INT6_GROUP: u32 = 8;
/// FORMAT_NF4
pub const FORMAT_NF4: u32 = 9;

/// One row of a pass.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Row {
    /// token id; or LAST_OF | slot: the token that this slot chose last
    pub token: u32,
    /// absolute, from 0; PADDING: the row is none, nothing is read or written for it
    pub position: u32,
    /// where its sequence's page table starts in `pages`
    pub table: u32,
    /// slot
    pub slot: u32,
}

/// LAST_OF
pub const LAST_OF: u32 = 1 << 31;

/// PADDING
pub const PADDING: u32 = u32::MAX;

/// NONE
pub const NONE: u32 = u32::MAX;

/// Keys and values of all sequences. A page holds PAGE_TOKENS positions of every layer: [page][layer][head]{ keys [position][dim], values [dim][position] }, f16, `dim` padded to a multiple of 32 with zeros. Keys by position and values by dimension: both are then rows of the 16-row operand of a matrix product.
pub const PAGE_TOKENS: u32 = 32;

/// Cache
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Cache {
    /// data
    pub data: Address,
    /// layers
    pub layers: u32,
    /// key-value heads
    pub heads: u32,
    /// padded
    pub dim: u32,
    /// pages
    pub pages: u32,
}

/// Embeddings of the rows' tokens: stream[row][0..cols] = matrix[token]. Zero for padding.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct EmbedArguments {
    /// matrix
    pub matrix: Matrix,
    /// rows
    pub rows: Address,
    /// last token of each slot
    pub last: Address,
    /// stream
    pub stream: Address,
    /// count
    pub count: u32,
    /// stride
    pub stride: u32,
}

/// out[i] = rms_norm(stream[index[i]]) · weight, f32 or f16; columns behind `cols` are not written.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct NormArguments {
    /// stream
    pub stream: Address,
    /// row of the stream for each output row; null: i
    pub index: Address,
    /// weight
    pub weight: Address,
    /// f32 or f16, by kernel
    pub out: Address,
    /// count
    pub count: u32,
    /// cols
    pub cols: u32,
    /// stream_stride
    pub stream_stride: u32,
    /// out_stride
    pub out_stride: u32,
    /// epsilon
    pub epsilon: f32,
    /// unused
    pub unused: u32,
}

/// out f32
pub const EPILOGUE_STORE: u32 = 0;
/// out f32 += product
pub const EPILOGUE_ADD: u32 = 1;
/// interleaved matrix: out = silu(gate) · up, in the type of x, matrix.rows / 2 columns
pub const EPILOGUE_SWIGLU: u32 = 2;

/// ProductArguments
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct ProductArguments {
    /// matrix
    pub matrix: Matrix,
    /// x
    pub x: Address,
    /// out
    pub out: Address,
    /// count
    pub count: u32,
    /// x_stride
    pub x_stride: u32,
    /// out_stride
    pub out_stride: u32,
    /// epilogue
    pub epilogue: u32,
}

/// Biases, norms and rotation of queries and keys; keys and values into the cache.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct RotateArguments {
    /// [row][queries, keys, values], heads · head_dim each
    pub qkv: Address,
    /// as a row of qkv; null: none
    pub bias: Address,
    /// [head_dim]; null: none
    pub query_norm: Address,
    /// key_norm
    pub key_norm: Address,
    /// [position][head_dim / 2]
    pub cosines: Address,
    /// sines
    pub sines: Address,
    /// rows
    pub rows: Address,
    /// page tables
    pub pages: Address,
    /// [row][head][cache.dim], padding zero
    pub queries: Address,
    /// cache
    pub cache: Cache,
    /// layer
    pub layer: u32,
    /// count
    pub count: u32,
    /// heads
    pub heads: u32,
    /// head_dim
    pub head_dim: u32,
    /// qkv_stride
    pub qkv_stride: u32,
    /// epsilon
    pub epsilon: f32,
}

/// Causal attention of queries over the cache, positions 0 ..= row.position.  Positions are cut into splits of SPLIT, aligned at 0. Generated rows: one block per (row, key-value head, split) leaves a partial result, and a second kernel merges the splits in ascending order. Prompt rows: one block per (tile of rows, key-value head) walks the splits itself.
pub const SPLIT: u32 = 256;

/// AttendArguments
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct AttendArguments {
    /// queries
    pub queries: Address,
    /// rows
    pub rows: Address,
    /// pages
    pub pages: Address,
    /// cache
    pub cache: Cache,
    /// prompt: (first row, rows) pairs; rows of one sequence, ascending positions, then padding. else null
    pub tiles: Address,
    /// generated: `[row][head][split][cache.dim + 2]`: output, maximum, sum
    pub partials: Address,
    /// [row][out_stride], f32 or f16 by `out_f16`; heads · head_dim columns
    pub out: Address,
    /// layer
    pub layer: u32,
    /// rows; prompt: tiles
    pub count: u32,
    /// heads
    pub heads: u32,
    /// head_dim
    pub head_dim: u32,
    /// of the longest sequence that the partials have room for
    pub splits: u32,
    /// out_stride
    pub out_stride: u32,
    /// out_f16
    pub out_f16: u32,
    /// 1 / sqrt(head_dim)
    pub scale: f32,
}

/// Whole pages, every layer: copies[i] = (from, to), done in order.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct CopyPagesArguments {
    /// cache
    pub cache: Cache,
    /// copies
    pub copies: Address,
    /// count
    pub count: u32,
    /// unused
    pub unused: u32,
}

/// How the token of a head row is chosen and judged.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Choice {
    /// seed
    pub seed: u64,
    /// whose last token it becomes; NONE: no token is chosen
    pub slot: u32,
    /// of the token to choose; PADDING: the row is none
    pub position: u32,
    /// CHOICE_*
    pub flags: u32,
    /// DETECTOR_*
    pub detector: u32,
    /// threshold
    pub threshold: f32,
    /// 0: greedy
    pub temperature: f32,
    /// top_p
    pub top_p: f32,
    /// min_p
    pub min_p: f32,
    /// top_k
    pub top_k: u32,
    /// repetition
    pub repetition: f32,
    /// presence
    pub presence: f32,
    /// frequency
    pub frequency: f32,
    /// (token, f32) pairs, ascending tokens
    pub bias_first: u32,
    /// bias_count
    pub bias_count: u32,
    /// (token, occurrences in the answer | IN_PROMPT) pairs, each token once
    pub seen_first: u32,
    /// seen_count
    pub seen_count: u32,
    /// tokens; the host has dropped bans that would leave nothing
    pub banned_first: u32,
    /// banned_count
    pub banned_count: u32,
    /// first word of the allowed tokens, 32 a word, for the whole vocabulary; NONE: all. The host has dropped masks that allow nothing
    pub mask: u32,
    /// best ones wanted
    pub logprobs: u32,
    /// weights of DETECTOR_FUSED; finish.cu has the formula
    pub fused_bias: f32,
    /// fused_entropy
    pub fused_entropy: f32,
    /// fused_varentropy
    pub fused_varentropy: f32,
    /// fused_ln_top1
    pub fused_ln_top1: f32,
    /// fused_margin
    pub fused_margin: f32,
    /// unused
    pub unused: u32,
}

/// DETECTOR_ENTROPY
pub const DETECTOR_ENTROPY: u32 = 0;

/// DETECTOR_TOP1
pub const DETECTOR_TOP1: u32 = 1;

/// DETECTOR_MARGIN
pub const DETECTOR_MARGIN: u32 = 2;

/// DETECTOR_FUSED
pub const DETECTOR_FUSED: u32 = 3;

/// statistics are wanted or judged
pub const CHOICE_SUMS: u32 = 1;

/// compare with the threshold
pub const CHOICE_GATE: u32 = 2;

/// bias, penalties, mask, bans or filters: not decided by tiles alone
pub const CHOICE_GENERAL: u32 = 4;

/// log-probabilities are wanted; needs CHOICE_SUMS
pub const CHOICE_LOGPROBS: u32 = 8;

/// the token is not the slot's last: a later row of the pass chooses for it too
pub const CHOICE_QUIET: u32 = 16;

/// Mark of a seen token that is in the prompt
pub const IN_PROMPT: u32 = 1 << 31;

/// What one tile of HEAD_TILE logits says; tile.cuh has the formulas.
pub const HEAD_TILE: u32 = 32;

/// LogitTile
#[repr(C, align(16))]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct LogitTile {
    /// largest raw logit; NaN: one is NaN or infinite, and nothing else here means anything
    pub max: f32,
    /// no score that the choice is made from is above this
    pub upper: f32,
    /// largest and second largest lower bound of a score; -inf: none
    pub lower: f32,
    /// second_lower
    pub second_lower: f32,
    /// sums over the tile relative to max, with CHOICE_SUMS
    pub z: f32,
    /// s
    pub s: f32,
    /// q
    pub q: f32,
    /// unused
    pub unused: u32,
}

/// The LM head with its statistics.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct HeadArguments {
    /// matrix
    pub matrix: Matrix,
    /// x
    pub x: Address,
    /// [row][logits_stride]; the stride is a multiple of 4
    pub logits: Address,
    /// [row][tile]
    pub tiles: Address,
    /// choices
    pub choices: Address,
    /// count
    pub count: u32,
    /// x_stride
    pub x_stride: u32,
    /// logits_stride
    pub logits_stride: u32,
    /// tiles of a row
    pub tile_stride: u32,
}

/// What a head row answers. Zero where nothing was wanted.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct Answer {
    /// log_z
    pub log_z: f64,
    /// NONE: none
    pub token: u32,
    /// runner_up
    pub runner_up: u32,
    /// entropy
    pub entropy: f32,
    /// varentropy
    pub varentropy: f32,
    /// top1
    pub top1: f32,
    /// margin
    pub margin: f32,
    /// finite
    pub finite: u32,
    /// suspect
    pub suspect: u32,
}

/// LogprobEntry
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct LogprobEntry {
    /// NONE: the list ends
    pub token: u32,
    /// logprob
    pub logprob: f32,
    /// rank
    pub rank: u32,
}

/// the chosen one, then the best
pub const LOGPROB_ENTRIES: u32 = 21;

/// Merges tiles, decides plain rows, judges. General rows: `choose` decides first, from the logits.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct FinishArguments {
    /// logits
    pub logits: Address,
    /// tiles
    pub tiles: Address,
    /// choices
    pub choices: Address,
    /// general rows: token, runner_up and margin are already there
    pub answers: Address,
    /// by slot; 0 where the row was not finite, so that whoever reads it finds a token
    pub last: Address,
    /// count
    pub count: u32,
    /// vocabulary
    pub vocabulary: u32,
    /// logits_stride
    pub logits_stride: u32,
    /// tile_stride
    pub tile_stride: u32,
}

/// The whole sampling contract, for rows marked CHOICE_GENERAL.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct ChooseArguments {
    /// logits
    pub logits: Address,
    /// [row][logits_stride], scratch
    pub processed: Address,
    /// choices
    pub choices: Address,
    /// bias, seen, banned, masks
    pub lists: Address,
    /// answers
    pub answers: Address,
    /// count
    pub count: u32,
    /// vocabulary
    pub vocabulary: u32,
    /// logits_stride
    pub logits_stride: u32,
    /// unused
    pub unused: u32,
}

/// Log-probabilities, for rows marked CHOICE_LOGPROBS; after finish.
#[repr(C)]
#[derive(Clone, Copy, Debug, Pod, Zeroable)]
pub struct LogprobsArguments {
    /// logits
    pub logits: Address,
    /// choices
    pub choices: Address,
    /// answers
    pub answers: Address,
    /// [row][LOGPROB_ENTRIES]
    pub entries: Address,
    /// count
    pub count: u32,
    /// vocabulary
    pub vocabulary: u32,
    /// logits_stride
    pub logits_stride: u32,
    /// unused
    pub unused: u32,
}
