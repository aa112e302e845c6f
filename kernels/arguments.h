// Arguments of the kernels: what the host passes, field by field as in src/arguments.rs.
//
// Everything is 4 or 8 bytes wide and 8-byte fields come first, so that no struct has padding. A null
// Global means "there is none". "stride" counts elements between two rows.
#pragma once

// Weights, packed in tiles of 16 rows for the matrix products; matrix.cuh says how.
struct Matrix {
    Global<const uint8_t> codes;
    Global<const uint8_t> scales; // matrix.cuh says which; null for floats
    uint32_t rows;                // outputs
    uint32_t cols;                // inputs
    uint32_t units;               // packing units along a row of tiles
    uint32_t group;               // weights that share a scale: 32, 64, 128; 0: the row, or none
    uint32_t format;              // enum Format
    uint32_t interleave;          // 1: tiles of two matrices alternate (gate, up); `rows` counts both
};

enum Format : uint32_t {
    FORMAT_F32,
    FORMAT_F16,
    FORMAT_BF16,
    FORMAT_INT8,
    FORMAT_INT8_GROUP,
    FORMAT_INT4_GROUP,
    FORMAT_FP8,
    FORMAT_INT4_AFFINE,
    FORMAT_INT6_GROUP,
    FORMAT_NF4,
};

// One row of a pass.
struct Row {
    uint32_t token;    // token id; or LAST_OF | slot: the token that this slot chose last
    uint32_t position; // absolute, from 0; PADDING: the row is none, nothing is read or written for it
    uint32_t table;    // where its sequence's page table starts in `pages`
    uint32_t slot;
};
constexpr uint32_t LAST_OF = 1u << 31;
constexpr uint32_t PADDING = ~0u;
constexpr uint32_t NONE = ~0u;

// Keys and values of all sequences. A page holds PAGE_TOKENS positions of every layer:
// [page][layer][head]{ keys [position][dim], values [dim][position] }, f16, `dim` padded to a multiple of 32
// with zeros. Keys by position and values by dimension: both are then rows of the 16-row operand of a matrix product.
constexpr uint32_t PAGE_TOKENS = 32;
struct Cache {
    Global<F16> data;
    uint32_t layers;
    uint32_t heads; // key-value heads
    uint32_t dim;   // padded
    uint32_t pages;
};

// Embeddings of the rows' tokens: stream[row][0..cols] = matrix[token]. Zero for padding.
struct EmbedArguments {
    Matrix matrix;
    Global<const Row> rows;
    Global<const uint32_t> last; // last token of each slot
    Global<float> stream;
    uint32_t count;
    uint32_t stride;
};

// out[i] = rms_norm(stream[index[i]]) · weight, f32 or f16; columns behind `cols` are not written.
struct NormArguments {
    Global<const float> stream;
    Global<const uint32_t> index; // row of the stream for each output row; null: i
    Global<const float> weight;
    Global<uint8_t> out; // f32 or f16, by kernel
    uint32_t count;
    uint32_t cols;
    uint32_t stream_stride;
    uint32_t out_stride;
    float epsilon;
    uint32_t unused;
};

// out = x · matrixᵀ for `count` rows. x is f32 (float formats) or f16 (integer formats), its columns padded with
// zeros to whole packing units.
enum Epilogue : uint32_t {
    EPILOGUE_STORE,  // out f32
    EPILOGUE_ADD,    // out f32 += product
    EPILOGUE_SWIGLU, // interleaved matrix: out = silu(gate) · up, in the type of x, matrix.rows / 2 columns
};
struct ProductArguments {
    Matrix matrix;
    Global<const uint8_t> x;
    Global<uint8_t> out;
    uint32_t count;
    uint32_t x_stride;
    uint32_t out_stride;
    uint32_t epilogue;
};

// Biases, norms and rotation of queries and keys; keys and values into the cache.
struct RotateArguments {
    Global<const float> qkv;        // [row][queries, keys, values], heads · head_dim each
    Global<const float> bias;       // as a row of qkv; null: none
    Global<const float> query_norm; // [head_dim]; null: none
    Global<const float> key_norm;
    Global<const float> cosines; // [position][head_dim / 2]
    Global<const float> sines;
    Global<const Row> rows;
    Global<const uint32_t> pages; // page tables
    Global<float> queries;        // [row][head][cache.dim], padding zero
    Cache cache;
    uint32_t layer;
    uint32_t count;
    uint32_t heads;
    uint32_t head_dim;
    uint32_t qkv_stride;
    float epsilon;
};

// Causal attention of queries over the cache, positions 0 ..= row.position.
//
// Positions are cut into splits of SPLIT, aligned at 0. Generated rows: one block per (row, key-value head,
// split) leaves a partial result, and a second kernel merges the splits in ascending order. Prompt rows: one
// block per (tile of rows, key-value head) walks the splits itself.
constexpr uint32_t SPLIT = 256;
struct AttendArguments {
    Global<const float> queries;
    Global<const Row> rows;
    Global<const uint32_t> pages;
    Cache cache;
    Global<const uint32_t> tiles; // prompt: (first row, rows) pairs; rows of one sequence, ascending positions, then padding. else null
    Global<float> partials;       // generated: [row][head][split][cache.dim + 2]: output, maximum, sum
    Global<uint8_t> out;          // [row][out_stride], f32 or f16 by `out_f16`; heads · head_dim columns
    uint32_t layer;
    uint32_t count; // rows; prompt: tiles
    uint32_t heads;
    uint32_t head_dim;
    uint32_t splits; // of the longest sequence that the partials have room for
    uint32_t out_stride;
    uint32_t out_f16;
    float scale; // 1 / sqrt(head_dim)
};

// Whole pages, every layer: copies[i] = (from, to), done in order.
struct CopyPagesArguments {
    Cache cache;
    Global<const uint32_t> copies;
    uint32_t count;
    uint32_t unused;
};

// How the token of a head row is chosen and judged.
struct Choice {
    uint64_t seed;
    uint32_t slot;     // whose last token it becomes; NONE: no token is chosen
    uint32_t position; // of the token to choose; PADDING: the row is none
    uint32_t flags;    // CHOICE_*
    uint32_t detector; // DETECTOR_*
    float threshold;
    float temperature; // 0: greedy
    float top_p;
    float min_p;
    uint32_t top_k;
    float repetition;
    float presence;
    float frequency;
    uint32_t bias_first; // (token, f32) pairs, ascending tokens
    uint32_t bias_count;
    uint32_t seen_first; // (token, occurrences in the answer | IN_PROMPT) pairs, each token once
    uint32_t seen_count;
    uint32_t banned_first; // tokens; the host has dropped bans that would leave nothing
    uint32_t banned_count;
    uint32_t mask; // first word of the allowed tokens, 32 a word, for the whole vocabulary; NONE: all. The host has dropped masks that allow nothing
    uint32_t logprobs; // best ones wanted
    float fused_bias; // weights of DETECTOR_FUSED; finish.cu has the formula
    float fused_entropy;
    float fused_varentropy;
    float fused_ln_top1;
    float fused_margin;
    uint32_t unused;
};
constexpr uint32_t DETECTOR_ENTROPY = 0;
constexpr uint32_t DETECTOR_TOP1 = 1;
constexpr uint32_t DETECTOR_MARGIN = 2;
constexpr uint32_t DETECTOR_FUSED = 3;
constexpr uint32_t CHOICE_SUMS = 1;     // statistics are wanted or judged
constexpr uint32_t CHOICE_GATE = 2;     // compare with the threshold
constexpr uint32_t CHOICE_GENERAL = 4;  // bias, penalties, mask, bans or filters: not decided by tiles alone
constexpr uint32_t CHOICE_LOGPROBS = 8; // log-probabilities are wanted; needs CHOICE_SUMS
constexpr uint32_t CHOICE_QUIET = 16;   // the token is not the slot's last: a later row of the pass chooses for it too
constexpr uint32_t IN_PROMPT = 1u << 31;

// What one tile of HEAD_TILE logits says; tile.cuh has the formulas.
constexpr uint32_t HEAD_TILE = 32;
struct alignas(16) LogitTile {
    float max;          // largest raw logit; NaN: one is NaN or infinite, and nothing else here means anything
    float upper;        // no score that the choice is made from is above this
    float lower;        // largest and second largest lower bound of a score; -inf: none
    float second_lower;
    float z;            // sums over the tile relative to max, with CHOICE_SUMS
    float s;
    float q;
    uint32_t unused;
};

// The LM head with its statistics.
struct HeadArguments {
    Matrix matrix;
    Global<const uint8_t> x;
    Global<float> logits; // [row][logits_stride]; the stride is a multiple of 4
    Global<LogitTile> tiles; // [row][tile]
    Global<const Choice> choices;
    uint32_t count;
    uint32_t x_stride;
    uint32_t logits_stride;
    uint32_t tile_stride; // tiles of a row
};

// What a head row answers. Zero where nothing was wanted.
struct Answer {
    double log_z;
    uint32_t token; // NONE: none
    uint32_t runner_up;
    float entropy;
    float varentropy;
    float top1;
    float margin;
    uint32_t finite;
    uint32_t suspect;
};
struct LogprobEntry {
    uint32_t token; // NONE: the list ends
    float logprob;
    uint32_t rank;
};
constexpr uint32_t LOGPROB_ENTRIES = 21; // the chosen one, then the best

// Merges tiles, decides plain rows, judges. General rows: `choose` decides first, from the logits.
struct FinishArguments {
    Global<const float> logits;
    Global<const LogitTile> tiles;
    Global<const Choice> choices;
    Global<Answer> answers; // general rows: token, runner_up and margin are already there
    Global<uint32_t> last;  // by slot; 0 where the row was not finite, so that whoever reads it finds a token
    uint32_t count;
    uint32_t vocabulary;
    uint32_t logits_stride;
    uint32_t tile_stride;
};

// The whole sampling contract, for rows marked CHOICE_GENERAL.
struct ChooseArguments {
    Global<const float> logits;
    Global<float> processed; // [row][logits_stride], scratch
    Global<const Choice> choices;
    Global<const uint32_t> lists; // bias, seen, banned, masks
    Global<Answer> answers;
    uint32_t count;
    uint32_t vocabulary;
    uint32_t logits_stride;
    uint32_t unused;
};

// Log-probabilities, for rows marked CHOICE_LOGPROBS; after finish.
struct LogprobsArguments {
    Global<const float> logits;
    Global<const Choice> choices;
    Global<const Answer> answers;
    Global<LogprobEntry> entries; // [row][LOGPROB_ENTRIES]
    uint32_t count;
    uint32_t vocabulary;
    uint32_t logits_stride;
    uint32_t unused;
};
