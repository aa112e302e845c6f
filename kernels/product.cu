// Products of a layer: out = x · matrixᵀ, with what follows done on the sums while they are in registers.
//
// Bytes moved: those of product.cuh, and out once (read and written where it is added to). The SwiGLU needs no pass
// of its own: tiles of gate and up alternate, so a warp has both of an output in two of its lanes.
#include "exp.cuh"
#include "product.cuh"

// g / (1 + e⁻ᵍ), as on the CPU.
DEVICE float silu(float g) { return g / (1.0f + exponential(-g)); }

template <class Format, unsigned TILES> DEVICE void product(const ProductArguments &arguments) {
    const Matrix &matrix = arguments.matrix;
    multiply<Format, TILES>(
        matrix, arguments.x, arguments.x_stride, arguments.count, [&](unsigned row, unsigned output, float value) {
            const size_t start = size_t(row) * arguments.out_stride;
            if (arguments.epilogue == EPILOGUE_SWIGLU) {
                const float up = shuffle_xor(value, TILE_ROWS);
                const unsigned column = output / PANEL_ROWS * TILE_ROWS + output % PANEL_ROWS;
                if (lane() < TILE_ROWS && column < matrix.rows / 2) {
                    const float activated = silu(value) * up;
                    if (Format::INPUT_BYTES == sizeof(F16)) {
                        arguments.out.store_as((start + column) * sizeof(F16), to_f16(activated));
                    } else {
                        arguments.out.store_as((start + column) * sizeof(float), activated);
                    }
                }
            } else if (output < matrix.rows) {
                const size_t at = (start + output) * sizeof(float);
                const float before = arguments.epilogue == EPILOGUE_ADD ? arguments.out.load_as<float>(at) : 0.0f;
                arguments.out.store_as(at, arguments.epilogue == EPILOGUE_ADD ? before + value : value);
            }
        });
}

KERNEL(product_f32_8, ProductArguments, PRODUCT_THREADS, 2) { product<F32Weights, 1>(arguments); }
KERNEL(product_f32_16, ProductArguments, PRODUCT_THREADS, 2) { product<F32Weights, 2>(arguments); }
KERNEL(product_f32_64, ProductArguments, PRODUCT_THREADS, 1) { product<F32Weights, 8>(arguments); }

KERNEL(product_f16_8, ProductArguments, PRODUCT_THREADS, 2) { product<F16Weights, 1>(arguments); }
KERNEL(product_f16_16, ProductArguments, PRODUCT_THREADS, 2) { product<F16Weights, 2>(arguments); }
KERNEL(product_f16_64, ProductArguments, PRODUCT_THREADS, 1) { product<F16Weights, 8>(arguments); }

KERNEL(product_bf16_8, ProductArguments, PRODUCT_THREADS, 2) { product<Bf16Weights, 1>(arguments); }
KERNEL(product_bf16_16, ProductArguments, PRODUCT_THREADS, 2) { product<Bf16Weights, 2>(arguments); }
KERNEL(product_bf16_64, ProductArguments, PRODUCT_THREADS, 1) { product<Bf16Weights, 8>(arguments); }

KERNEL(product_int8_8, ProductArguments, PRODUCT_THREADS, 2) { product<Int8Row, 1>(arguments); }
KERNEL(product_int8_16, ProductArguments, PRODUCT_THREADS, 2) { product<Int8Row, 2>(arguments); }
KERNEL(product_int8_64, ProductArguments, PRODUCT_THREADS, 1) { product<Int8Row, 8>(arguments); }

KERNEL(product_int8_group_8, ProductArguments, PRODUCT_THREADS, 2) { product<Int8Group, 1>(arguments); }
KERNEL(product_int8_group_16, ProductArguments, PRODUCT_THREADS, 2) { product<Int8Group, 2>(arguments); }
KERNEL(product_int8_group_64, ProductArguments, PRODUCT_THREADS, 1) { product<Int8Group, 8>(arguments); }

KERNEL(product_int4_group_8, ProductArguments, PRODUCT_THREADS, 2) { product<Int4Group, 1>(arguments); }
KERNEL(product_int4_group_16, ProductArguments, PRODUCT_THREADS, 2) { product<Int4Group, 2>(arguments); }
KERNEL(product_int4_group_64, ProductArguments, PRODUCT_THREADS, 1) { product<Int4Group, 8>(arguments); }

KERNEL(product_fp8_8, ProductArguments, PRODUCT_THREADS, 2) { product<Fp8Row, 1>(arguments); }
KERNEL(product_fp8_16, ProductArguments, PRODUCT_THREADS, 2) { product<Fp8Row, 2>(arguments); }
KERNEL(product_fp8_64, ProductArguments, PRODUCT_THREADS, 1) { product<Fp8Row, 8>(arguments); }

KERNEL(product_int4_affine_8, ProductArguments, PRODUCT_THREADS, 2) { product<Int4Affine, 1>(arguments); }
KERNEL(product_int4_affine_16, ProductArguments, PRODUCT_THREADS, 2) { product<Int4Affine, 2>(arguments); }
KERNEL(product_int4_affine_32, ProductArguments, PRODUCT_THREADS, 1) { product<Int4Affine, 4>(arguments); }

KERNEL(product_int6_group_8, ProductArguments, PRODUCT_THREADS, 2) { product<Int6Group, 1>(arguments); }
KERNEL(product_int6_group_16, ProductArguments, PRODUCT_THREADS, 2) { product<Int6Group, 2>(arguments); }
KERNEL(product_int6_group_64, ProductArguments, PRODUCT_THREADS, 1) { product<Int6Group, 8>(arguments); }

KERNEL(product_nf4_8, ProductArguments, PRODUCT_THREADS, 2) { product<Nf4Nested, 1>(arguments); }
KERNEL(product_nf4_16, ProductArguments, PRODUCT_THREADS, 2) { product<Nf4Nested, 2>(arguments); }
KERNEL(product_nf4_64, ProductArguments, PRODUCT_THREADS, 1) { product<Nf4Nested, 8>(arguments); }
