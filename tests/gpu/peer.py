"""Decode steps of Llama- and Qwen-shaped models in PyTorch, for gpu-bench to compare with.

The work is that of gpu-bench: one step of a batch, each sequence seeing `context` positions, from token
to the next token (argmax), with random weights. It is done the way PyTorch does it well without a
compiler: bf16, joined projections, a static cache, scaled_dot_product_attention, one CUDA graph for the
whole step.

Prints a line of JSON for each measurement. Exits with 3, and says why on the last line, where PyTorch
or its GPU is missing.
"""

import argparse
import json
import sys
import time
from dataclasses import dataclass

MISSING = 3

try:
    import torch
    import torch.nn.functional as F
except ImportError:
    print("torch is not installed")
    sys.exit(MISSING)


@dataclass(frozen=True)
class Shape:
    """Sizes of a decoder, from its published configuration."""

    name: str
    vocabulary: int
    hidden: int
    wide: int
    layers: int
    heads: int
    kv_heads: int
    dim: int
    theta: float
    tied: bool
    qk_norm: bool


SHAPES = [
    Shape("Llama-3.1-8B", 128256, 4096, 14336, 32, 32, 8, 128, 5e5, False, False),
    Shape("Qwen3-4B", 151936, 2560, 9728, 36, 32, 8, 128, 1e6, True, True),
    Shape("Llama-3.2-1B", 128256, 2048, 8192, 16, 32, 8, 64, 5e5, True, False),
]
BATCHES = [1, 4, 16, 64]
CONTEXTS = [512, 8192]

WARM_UP = 3
PASSES = 50

# Memory that stays free for activations and the allocator, bytes.
RESERVE = 2 << 30


class Model:
    """Random weights on the GPU."""

    def __init__(self, shape, device):
        def matrix(rows, columns):
            weight = torch.empty(rows, columns, dtype=torch.bfloat16, device=device)
            return weight.normal_(std=columns**-0.5)

        def ones(size):
            return torch.ones(size, dtype=torch.bfloat16, device=device)

        self.shape = shape
        self.device = device
        queries, keys = shape.heads * shape.dim, shape.kv_heads * shape.dim
        self.embedding = matrix(shape.vocabulary, shape.hidden)
        self.head = self.embedding if shape.tied else matrix(shape.vocabulary, shape.hidden)
        self.layers = [
            {
                "attention_norm": ones(shape.hidden),
                "qkv": matrix(queries + 2 * keys, shape.hidden),
                "query_norm": ones(shape.dim),
                "key_norm": ones(shape.dim),
                "output": matrix(shape.hidden, queries),
                "feed_forward_norm": ones(shape.hidden),
                "gate_up": matrix(2 * shape.wide, shape.hidden),
                "down": matrix(shape.hidden, shape.wide),
            }
            for _ in range(shape.layers)
        ]
        self.norm = ones(shape.hidden)

    def angles(self, position):
        """Cosines and sines of a position, for both halves of a head."""
        pairs = torch.arange(0, self.shape.dim, 2, dtype=torch.float32, device=self.device)
        angle = position * self.shape.theta ** (-pairs / self.shape.dim)
        angle = torch.cat([angle, angle])
        return angle.cos().bfloat16(), angle.sin().bfloat16()

    def step(self, tokens, cache, position, cosines, sines):
        """The tokens after `tokens`, which stand at `position`, the last of the cache."""
        shape, batch = self.shape, tokens.shape[0]
        queries, keys = shape.heads * shape.dim, shape.kv_heads * shape.dim
        x = F.embedding(tokens, self.embedding)
        for layer, (cached_keys, cached_values) in zip(self.layers, cache):
            normed = norm(x, layer["attention_norm"])
            q, k, v = F.linear(normed, layer["qkv"]).split([queries, keys, keys], dim=-1)
            q = q.view(batch, shape.heads, shape.dim)
            k = k.view(batch, shape.kv_heads, shape.dim)
            if shape.qk_norm:
                q, k = norm(q, layer["query_norm"]), norm(k, layer["key_norm"])
            q, k = rotate(q, cosines, sines), rotate(k, cosines, sines)
            cached_keys[:, :, position] = k
            cached_values[:, :, position] = v.view(batch, shape.kv_heads, shape.dim)
            # All heads of a group see all positions, so they may stand as rows of one query: keys and
            # values are read once, not once for each head.
            q = q.view(batch, shape.kv_heads, shape.heads // shape.kv_heads, shape.dim)
            attended = F.scaled_dot_product_attention(q, cached_keys, cached_values)
            x = x + F.linear(attended.reshape(batch, queries), layer["output"])
            normed = norm(x, layer["feed_forward_norm"])
            gate, up = F.linear(normed, layer["gate_up"]).chunk(2, dim=-1)
            x = x + F.linear(F.silu(gate) * up, layer["down"])
        return F.linear(norm(x, self.norm), self.head).argmax(dim=-1)


def norm(x, weight):
    return F.rms_norm(x, (x.shape[-1],), weight, 1e-5)


def rotate(x, cosines, sines):
    low, high = x.chunk(2, dim=-1)
    return x * cosines + torch.cat([-high, low], dim=-1) * sines


def seconds_of_a_step(model, batch, context):
    """Mean time of a step that is recorded once and replayed, each on the tokens of the one before."""
    shape, device, position = model.shape, model.device, context - 1
    size = (batch, shape.kv_heads, context, shape.dim)

    def filled():
        return torch.empty(size, dtype=torch.bfloat16, device=device).normal_()

    cache = [(filled(), filled()) for _ in range(shape.layers)]
    tokens = torch.arange(batch, device=device)
    cosines, sines = model.angles(position)

    def step():
        tokens.copy_(model.step(tokens, cache, position, cosines, sines))

    # Recording wants everything to have run before, on another stream than the default one.
    beside = torch.cuda.Stream(device)
    beside.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(beside):
        for _ in range(WARM_UP):
            step()
    torch.cuda.current_stream(device).wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    for _ in range(WARM_UP):
        graph.replay()
    torch.cuda.synchronize(device)
    started = time.perf_counter()
    for _ in range(PASSES):
        graph.replay()
    torch.cuda.synchronize(device)
    return (time.perf_counter() - started) / PASSES


def tell(**what):
    print(json.dumps(what), flush=True)


def measure(shape, device, deadline):
    """Measures every batch and context that fits, until the deadline."""
    model = Model(shape, device)
    for batch in BATCHES:
        for context in CONTEXTS:
            if time.monotonic() > deadline:
                return
            cell = {"shape": shape.name, "batch": batch, "context": context}
            # What freed tensors held is given back, so that it counts as free.
            torch.cuda.empty_cache()
            free, _ = torch.cuda.mem_get_info(device)
            needed = 2 * 2 * shape.layers * batch * shape.kv_heads * context * shape.dim
            if needed + RESERVE > free:
                tell(**cell, skipped=f"does not fit, keys and values take {needed / 1e9:.1f} GB")
                continue
            tell(**cell, seconds=seconds_of_a_step(model, batch, context))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--gpu", type=int, default=0, help="the driver's number")
    parser.add_argument("--seconds", type=float, default=120.0, help="start nothing after so long")
    options = parser.parse_args()
    deadline = time.monotonic() + options.seconds
    if not torch.cuda.is_available():
        print("torch is installed, but sees no GPU")
        return MISSING
    if not hasattr(F, "rms_norm"):
        print(f"torch {torch.__version__} is older than 2.4")
        return MISSING
    device = torch.device("cuda", options.gpu)
    torch.cuda.set_device(device)
    name = torch.cuda.get_device_name(device)
    tell(torch=torch.__version__, cuda=str(torch.version.cuda), device=name)
    with torch.inference_mode():
        for shape in SHAPES:
            if time.monotonic() > deadline:
                break
            measure(shape, device, deadline)
    return 0


if __name__ == "__main__":
    sys.exit(main())
