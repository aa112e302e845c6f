"""Scores texts with llama.cpp as `rewind perplexity --compare` does with Rewind, and prints one JSON object.

A text is cut into whole chunks of 512 tokens; each is read from an empty cache and its second half is scored. A second
file is the shadow: how often its most likely token is the first file's, and the divergence KL(shadow ‖ model).
"""

import argparse
import ctypes
import json
import math
from importlib.metadata import version
from pathlib import Path

import numpy as np
from llama_cpp import llama_cpp as llama

CHUNK = 512


class Reader:
    """One file in llama.cpp, with a cache for a chunk."""

    def __init__(self, path: Path, threads: int):
        parameters = llama.llama_model_default_params()
        self.model = llama.llama_model_load_from_file(str(path).encode(), parameters)
        assert self.model, f"llama.cpp could not load {path.name}"
        self.vocabulary = llama.llama_model_get_vocab(self.model)
        self.width = llama.llama_vocab_n_tokens(self.vocabulary)
        parameters = llama.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = CHUNK
        parameters.n_threads = parameters.n_threads_batch = threads
        self.context = llama.llama_init_from_model(self.model, parameters)
        assert self.context, "llama.cpp could not make a context"
        self.batch = llama.llama_batch_init(CHUNK, 0, 1)

    def tokens(self, text: str) -> list[int]:
        raw = text.encode()
        ids = (llama.llama_token * (len(raw) + 8))()
        count = llama.llama_tokenize(self.vocabulary, raw, len(raw), ids, len(ids), True, False)
        assert count >= 0, "llama.cpp could not tokenize"
        return list(ids[:count])

    def logprobs(self, chunk: list[int]) -> np.ndarray:
        """Log-probabilities after each token of the second half but the last, in f64."""
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)
        first = CHUNK // 2
        batch = self.batch
        batch.n_tokens = CHUNK - 1
        for index, token in enumerate(chunk[:-1]):
            batch.token[index] = token
            batch.pos[index] = index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = index >= first
        assert llama.llama_decode(self.context, batch) == 0, "llama.cpp failed"
        pointer = llama.llama_get_logits(self.context)
        rows = np.ctypeslib.as_array(pointer, shape=(CHUNK - 1 - first, self.width))
        logits = rows.astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))


def score(model: Reader, shadow: Reader, path: Path, most: int | None) -> dict:
    ids = model.tokens(path.read_text(encoding="utf-8"))
    starts = range(0, len(ids) - CHUNK + 1, CHUNK)[:most]
    losses, of_shadow, same, divergence = [], [], [], []
    for start in starts:
        chunk = ids[start : start + CHUNK]
        ours, theirs = model.logprobs(chunk), shadow.logprobs(chunk)
        rows, following = np.arange(len(ours)), chunk[CHUNK // 2 + 1 :]
        losses.append(-ours[rows, following])
        of_shadow.append(-theirs[rows, following])
        same.append(ours.argmax(axis=1) == theirs.argmax(axis=1))
        divergence.append((np.exp(theirs) * (theirs - ours)).sum(axis=1))
    losses = np.concatenate(losses)
    perplexity = math.exp(losses.mean())
    return {
        "tokens": len(losses),
        "perplexity": perplexity,
        "perplexity_error": perplexity * float(losses.std()) / math.sqrt(len(losses) - 1),
        "shadow": {
            "perplexity": math.exp(np.concatenate(of_shadow).mean()),
            "agreement": float(np.concatenate(same).mean()),
            "divergence": float(np.concatenate(divergence).mean()),
        },
    }


@llama.llama_log_callback
def silence(_level, _text, _data):
    """llama.cpp tells a great deal."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file")
    parser.add_argument("--shadow", type=Path, required=True, help="the GGUF file to compare with")
    parser.add_argument("--texts", type=Path, nargs="+", required=True, help="UTF-8 files")
    parser.add_argument("--chunks", type=int, help="only so many chunks, from the start of each text")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()

    llama.llama_log_set(silence, ctypes.c_void_p(0))
    model, shadow = (Reader(path, options.threads) for path in (options.model, options.shadow))
    scores = [score(model, shadow, path, options.chunks) for path in options.texts]
    print(json.dumps({"version": version("llama-cpp-python"), "scores": scores}))


if __name__ == "__main__":
    main()
