// Embeddings: a row of the packed matrix for each row of the pass, dequantized exactly.
//
// The matrix is the LM head's where the model ties the two, in the layout of the products. There a row of a unit is 64
// bytes in one piece, shared with another row. Bytes moved: twice a row's codes, its scales, and 4 · cols written;
// nothing beside a layer, so plain loops.
#include "matrix.cuh"

constexpr unsigned EMBED_THREADS = 256;

// One block a row.
KERNEL(embed, EmbedArguments, EMBED_THREADS, 1) {
    const Row row = arguments.rows.load(block_x());
    const Global<float> out = arguments.stream.offset(size_t(block_x()) * arguments.stride);
    const bool padding = row.position == PADDING;
    uint32_t token = row.token;
    if (!padding && (token & LAST_OF) != 0) {
        token = arguments.last.load(token & ~LAST_OF);
    }
    for (unsigned col = thread(); col < arguments.matrix.cols; col += EMBED_THREADS) {
        out.store(col, padding ? 0.0f : weight_at(arguments.matrix, token, col));
    }
}
