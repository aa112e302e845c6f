"""Writes ggml.txt: random GGML blocks and their values as the PyPI package `gguf` dequantizes them.

    pip install gguf==0.19.0 && python ggml.py > ggml.txt

A line is a type, two blocks in hexadecimal, and the values' f32 bits in hexadecimal, little endian.
"""

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType as T
from gguf.quants import dequantize

# Where each type keeps its half-precision numbers; random bits there could make NaN.
HALVES = {
    T.F16: [0],
    T.BF16: [],
    T.Q8_0: [0],
    T.Q4_0: [0],
    T.Q4_1: [0, 2],
    T.Q5_0: [0],
    T.Q5_1: [0, 2],
    T.Q4_K: [0, 2],
    T.Q5_K: [0, 2],
    T.Q6_K: [208],
}

random = np.random.default_rng(20240607)
for ty, halves in HALVES.items():
    _, size = GGML_QUANT_SIZES[ty]
    blocks = random.integers(0, 256, (2, size), dtype=np.uint8)
    for at in halves:
        values = random.normal(0, 0.02, 2).astype(np.float16)
        blocks[:, at : at + 2] = values.view(np.uint8).reshape(2, 2)
    if ty == T.BF16:
        blocks = random.normal(0, 0.02, 2).astype(np.float32).view(np.uint8).reshape(2, 4)[:, 2:].copy()
    values = dequantize(blocks, ty).astype("<f4")
    print(ty.name, blocks.tobytes().hex(), values.tobytes().hex())
