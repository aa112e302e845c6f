"""Writes fp8.txt: what the PyPI package `ml_dtypes` makes of numbers in E4M3FN.

    pip install ml_dtypes==0.5.4 numpy && python fp8.py > fp8.txt

The first line holds the f32 bits of the values of all 256 codes, in hexadecimal, big endian (NaN twice). Every other
line is the f32 bits of a number, and its code.
"""

import ml_dtypes
import numpy as np

E4M3 = ml_dtypes.float8_e4m3fn
values = np.arange(256, dtype=np.uint8).view(E4M3).astype(np.float32)
print("".join(f"{bits:08x}" for bits in values.view(np.uint32)))

rng = np.random.default_rng(1)
finite = np.sort(values[np.isfinite(values)])
middles = (finite[:-1].astype(np.float64) + finite[1:]) / 2
numbers = np.concatenate(
    [
        middles,  # ties
        np.nextafter(middles.astype(np.float32), np.float32(500)),
        np.nextafter(middles.astype(np.float32), np.float32(-500)),
        rng.uniform(-448, 448, 200),
        rng.uniform(-1, 1, 200) * 2.0 ** rng.uniform(-14, 0, 200),
    ]
).astype(np.float32)
codes = numbers.astype(E4M3).view(np.uint8)
for bits, code in zip(numbers.view(np.uint32), codes, strict=True):
    print(f"{bits:08x} {code:02x}")
