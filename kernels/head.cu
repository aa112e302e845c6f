// The LM head with its statistics: raw logits, and what each 32 of them say.
//
// Bytes: those of product.cuh; 4 a logit and 1 a logit of tiles out, written while the next weights stream in. The
// logits leave registers through shared memory once, so that eight lanes can describe a tile of one row (tile.cuh)
// while it is there; statistics that are wanted cost no other pass over the vocabulary, which for one row would be a
// read as long as several layers of a small model.
//
// Rows that are padding are multiplied like all, it costs nothing, but leave nothing behind.
#include "product.cuh"
#include "tile.cuh"

static_assert(HEAD_TILE == PRODUCT_OUTPUTS, "a block's outputs are one tile of logits");

template <class Format, unsigned TILES> DEVICE void head(const HeadArguments &arguments) {
    constexpr unsigned ROWS = 8 * TILES;
    const uint32_t vocabulary = arguments.matrix.rows;
    const unsigned first = ROWS * block_y();
    // Logits of the block: [row][token].
    const auto logits = shared_array<float>(PRODUCT_SHARED<TILES>, ROWS * HEAD_TILE);

    multiply<Format, TILES>(
        arguments.matrix, arguments.x, arguments.x_stride, arguments.count,
        [&](unsigned row, unsigned token, float logit) {
            logits.store((row - first) * HEAD_TILE + lane(), logit);
            if (token < vocabulary && arguments.choices.load(row).position != PADDING) {
                arguments.logits.store(size_t(row) * arguments.logits_stride + token, logit);
            }
        });
    barrier();

    const unsigned part = lane() % TILE_LANES;
    const uint32_t token = HEAD_TILE * block_x() + 4 * part;
    // A warp takes four rows, all its lanes together, rows that are not there included.
    constexpr unsigned WARP_ROWS = 32 / TILE_LANES;
    for (unsigned base = WARP_ROWS * warp(); base < ROWS; base += WARP_ROWS * PRODUCT_WARPS) {
        const unsigned row = first + base + lane() / TILE_LANES;
        Choice choice = {};
        choice.position = PADDING;
        if (row < arguments.count) {
            choice = arguments.choices.load(row);
        }
        const bool present = choice.position != PADDING;
        float own[4] = {};
        if (present) {
            const Quad bits = logits.template load_as<Quad>((row - first) * HEAD_TILE + 4 * part);
#pragma unroll
            for (unsigned i = 0; i < 4; i++) {
                own[i] = from_bits(bits.word[i]);
            }
        }
        const bool plain = choice.slot != NONE && (choice.flags & CHOICE_GENERAL) == 0;
        const LogitTile tile =
            describe(own, token, vocabulary, Scores(choice, plain), (choice.flags & CHOICE_SUMS) != 0);
        if (present && part == 0) {
            arguments.tiles.store(size_t(row) * arguments.tile_stride + block_x(), tile);
        }
    }
}

KERNEL(head_f32_8, HeadArguments, PRODUCT_THREADS, 2) { head<F32Weights, 1>(arguments); }
KERNEL(head_f32_16, HeadArguments, PRODUCT_THREADS, 2) { head<F32Weights, 2>(arguments); }
KERNEL(head_f32_64, HeadArguments, PRODUCT_THREADS, 1) { head<F32Weights, 8>(arguments); }

KERNEL(head_f16_8, HeadArguments, PRODUCT_THREADS, 2) { head<F16Weights, 1>(arguments); }
KERNEL(head_f16_16, HeadArguments, PRODUCT_THREADS, 2) { head<F16Weights, 2>(arguments); }
KERNEL(head_f16_64, HeadArguments, PRODUCT_THREADS, 1) { head<F16Weights, 8>(arguments); }

KERNEL(head_bf16_8, HeadArguments, PRODUCT_THREADS, 2) { head<Bf16Weights, 1>(arguments); }
KERNEL(head_bf16_16, HeadArguments, PRODUCT_THREADS, 2) { head<Bf16Weights, 2>(arguments); }
KERNEL(head_bf16_64, HeadArguments, PRODUCT_THREADS, 1) { head<Bf16Weights, 8>(arguments); }

KERNEL(head_int8_8, HeadArguments, PRODUCT_THREADS, 2) { head<Int8Row, 1>(arguments); }
KERNEL(head_int8_16, HeadArguments, PRODUCT_THREADS, 2) { head<Int8Row, 2>(arguments); }
KERNEL(head_int8_64, HeadArguments, PRODUCT_THREADS, 1) { head<Int8Row, 8>(arguments); }

KERNEL(head_int8_group_8, HeadArguments, PRODUCT_THREADS, 2) { head<Int8Group, 1>(arguments); }
KERNEL(head_int8_group_16, HeadArguments, PRODUCT_THREADS, 2) { head<Int8Group, 2>(arguments); }
KERNEL(head_int8_group_64, HeadArguments, PRODUCT_THREADS, 1) { head<Int8Group, 8>(arguments); }

KERNEL(head_int4_group_8, HeadArguments, PRODUCT_THREADS, 2) { head<Int4Group, 1>(arguments); }
KERNEL(head_int4_group_16, HeadArguments, PRODUCT_THREADS, 2) { head<Int4Group, 2>(arguments); }
KERNEL(head_int4_group_64, HeadArguments, PRODUCT_THREADS, 1) { head<Int4Group, 8>(arguments); }

KERNEL(head_fp8_8, HeadArguments, PRODUCT_THREADS, 2) { head<Fp8Row, 1>(arguments); }
KERNEL(head_fp8_16, HeadArguments, PRODUCT_THREADS, 2) { head<Fp8Row, 2>(arguments); }
KERNEL(head_fp8_64, HeadArguments, PRODUCT_THREADS, 1) { head<Fp8Row, 8>(arguments); }

KERNEL(head_int4_affine_8, HeadArguments, PRODUCT_THREADS, 2) { head<Int4Affine, 1>(arguments); }
KERNEL(head_int4_affine_16, HeadArguments, PRODUCT_THREADS, 2) { head<Int4Affine, 2>(arguments); }
KERNEL(head_int4_affine_32, HeadArguments, PRODUCT_THREADS, 1) { head<Int4Affine, 4>(arguments); }

KERNEL(head_int6_group_8, HeadArguments, PRODUCT_THREADS, 2) { head<Int6Group, 1>(arguments); }
KERNEL(head_int6_group_16, HeadArguments, PRODUCT_THREADS, 2) { head<Int6Group, 2>(arguments); }
KERNEL(head_int6_group_64, HeadArguments, PRODUCT_THREADS, 1) { head<Int6Group, 8>(arguments); }

KERNEL(head_nf4_8, HeadArguments, PRODUCT_THREADS, 2) { head<Nf4Nested, 1>(arguments); }
KERNEL(head_nf4_16, HeadArguments, PRODUCT_THREADS, 2) { head<Nf4Nested, 2>(arguments); }
KERNEL(head_nf4_64, HeadArguments, PRODUCT_THREADS, 1) { head<Nf4Nested, 8>(arguments); }
