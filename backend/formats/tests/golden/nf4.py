"""Writes nf4.txt: blocks of weights, and the codes that the PyPI package `bitsandbytes` gives them.

    pip install bitsandbytes==0.50.2 numpy && python nf4.py > nf4.txt

A line is the f32 bits of 64 weights in hexadecimal, big endian, and their 64 codes, a digit each.
"""

import bitsandbytes.functional as bnb
import numpy as np
import torch

rng = np.random.default_rng(1)
blocks = [rng.normal(0, scale, 64) for scale in (1e-3, 0.02, 0.7, 30.0) for _ in range(12)]
blocks += [rng.uniform(-1, 1, 64), rng.laplace(0, 0.1, 64), np.linspace(-0.5, 0.25, 64)]
for block in blocks:
    weights = torch.tensor(block, dtype=torch.float32)
    packed, _ = bnb.quantize_4bit(weights, blocksize=64, quant_type="nf4")
    codes = "".join(f"{byte:02x}" for byte in packed.flatten().tolist())
    bits = "".join(f"{word:08x}" for word in weights.numpy().view(np.uint32))
    print(bits, codes)
