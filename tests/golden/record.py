#!/usr/bin/env python3
"""Records what llama.cpp answers with the demo model's F16 weights.

The figures are the yardstick for the shadow weights: `greedy.json` holds the greedy continuation of every prompt in
`prompts.json` with the two best log-probabilities of each step, `perplexity.json` the perplexity of `eighty_days.txt`.
README.md beside this file says how to run it and which versions were used.

    pip install llama-cpp-python==0.3.36 numpy
    python record.py --model SmolLM2-135M-Instruct.Q4_1.gguf
"""

import argparse
import ctypes
import hashlib
import json
import math
import platform
import re
import tempfile
from importlib.metadata import version
from pathlib import Path

import numpy as np
from llama_cpp import llama_cpp as llama

HERE = Path(__file__).parent
STEPS = 48
CHUNK = 512
NEAR_TIE = 0.05
"""Nats between the two best tokens below which two right implementations may choose differently."""


class Model:
    """One GGUF file in llama.cpp, with a context of `length` tokens that sees nothing twice."""

    def __init__(self, path: Path, length: int, threads: int):
        parameters = llama.llama_model_default_params()
        self.model = llama.llama_model_load_from_file(str(path).encode(), parameters)
        assert self.model, f"llama.cpp could not load {path.name}"
        self.vocabulary = llama.llama_model_get_vocab(self.model)
        self.width = llama.llama_vocab_n_tokens(self.vocabulary)
        parameters = llama.llama_context_default_params()
        parameters.n_ctx = parameters.n_batch = parameters.n_ubatch = length
        parameters.n_threads = parameters.n_threads_batch = threads
        self.context = llama.llama_init_from_model(self.model, parameters)
        assert self.context, "llama.cpp could not make a context"
        self.batch = llama.llama_batch_init(length, 0, 1)

    def close(self):
        llama.llama_batch_free(self.batch)
        llama.llama_free(self.context)
        llama.llama_model_free(self.model)

    def tokenize(self, text: str, special: bool = False) -> list[int]:
        """Token ids; `special` reads control tokens in the text. A first token is added only if the model asks."""
        raw = text.encode()
        ids = (llama.llama_token * (len(raw) + 8))()
        count = llama.llama_tokenize(self.vocabulary, raw, len(raw), ids, len(ids), True, special)
        assert count >= 0
        return list(ids[:count])

    def text(self, ids: list[int]) -> str:
        raw = b""
        for token in ids:
            piece = ctypes.create_string_buffer(256)
            count = llama.llama_token_to_piece(self.vocabulary, token, piece, len(piece), 0, False)
            raw += piece.raw[:count]
        return raw.decode(errors="replace")

    def forget(self):
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)

    def logprobs(self, ids: list[int], position: int, first: int) -> np.ndarray:
        """Feeds `ids` from `position` on; log-probabilities after each of them from index `first` on, in f64."""
        self.batch.n_tokens = len(ids)
        for index, token in enumerate(ids):
            self.batch.token[index] = token
            self.batch.pos[index] = position + index
            self.batch.n_seq_id[index] = 1
            self.batch.seq_id[index][0] = 0
            self.batch.logits[index] = index >= first
        assert llama.llama_decode(self.context, self.batch) == 0
        rows = len(ids) - first
        pointer = llama.llama_get_logits(self.context)
        logits = np.ctypeslib.as_array(pointer, shape=(rows, self.width)).astype(np.float64)
        logits -= logits.max(axis=1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))

    def greedy(self, prompt: list[int]) -> list[dict]:
        """Steps of the greedy continuation: the two best tokens and their log-probabilities, best first."""
        self.forget()
        steps, ids, position = [], prompt, 0
        while len(steps) < STEPS:
            row = self.logprobs(ids, position, len(ids) - 1)[0]
            position += len(ids)
            best = np.argsort(-row, kind="stable")[:2]
            steps.append({"ids": best.tolist(), "logprobs": [round(float(row[i]), 5) for i in best]})
            if llama.llama_vocab_is_eog(self.vocabulary, int(best[0])):
                break
            ids = [int(best[0])]
        return steps

    def perplexity(self, ids: list[int]) -> dict:
        """As llama.cpp's own tool: whole chunks, each from an empty cache, the second half of each is scored."""
        first = CHUNK // 2
        chunks = []
        for start in range(0, len(ids) - CHUNK + 1, CHUNK):
            chunk = ids[start : start + CHUNK]
            self.forget()
            rows = self.logprobs(chunk, 0, first)[: CHUNK - first - 1]
            chunks.append(-rows[np.arange(len(rows)), chunk[first + 1 :]])
        losses = np.concatenate(chunks)
        return {
            "perplexity": round(math.exp(losses.mean()), 5),
            "mean_loss": round(float(losses.mean()), 6),
            "standard_error_of_mean_loss": round(float(losses.std(ddof=1) / math.sqrt(len(losses))), 6),
            "scored_tokens": len(losses),
            "chunk_mean_losses": [round(float(chunk.mean()), 6) for chunk in chunks],
        }


def requantize(source: Path, target: Path, kind: int, threads: int):
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype = kind
    parameters.allow_requantize = True
    parameters.nthread = threads
    status = llama.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters))
    assert status == 0, f"llama.cpp could not write {target.name}"


def write(name: str, content: dict):
    text = json.dumps(content, indent=1, ensure_ascii=False)
    # Lists of numbers on one line each, so that a file can be read and a change seen.
    text = re.sub(r"\[\s+([-\d.,\s]+?)\s+\]", lambda found: "[" + " ".join(found[1].split()) + "]", text)
    (HERE / name).write_text(text + "\n")
    print(f"wrote {name}")


@llama.llama_log_callback
def silence(_level, _text, _data):
    """llama.cpp tells a great deal."""


def main():
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--model", type=Path, required=True, help="the demo model's GGUF file")
    arguments.add_argument("--threads", type=int, default=1)
    arguments = arguments.parse_args()

    llama.llama_log_set(silence, ctypes.c_void_p(0))
    made_with = {
        "llama-cpp-python": version("llama-cpp-python"),
        "numpy": np.__version__,
        "machine": platform.machine(),
        "model": arguments.model.name,
        "model_sha256": hashlib.sha256(arguments.model.read_bytes()).hexdigest(),
    }
    with tempfile.TemporaryDirectory() as folder:
        f16, f32 = Path(folder, "f16.gguf"), Path(folder, "f32.gguf")
        requantize(arguments.model, f16, llama.LLAMA_FTYPE_MOSTLY_F16, arguments.threads)
        requantize(f16, f32, llama.LLAMA_FTYPE_ALL_F32, arguments.threads)

        text = (HERE / "eighty_days.txt").read_text()
        perplexity, prompts = {}, []
        model = Model(f16, 1024, arguments.threads)
        ids = model.tokenize(text)
        perplexity["f16"] = model.perplexity(ids)
        for prompt in json.loads((HERE / "prompts.json").read_text()):
            prompt_ids = model.tokenize(prompt["text"], prompt.get("special", False))
            steps = model.greedy(prompt_ids)
            gaps = [step["logprobs"][0] - step["logprobs"][1] for step in steps]
            binding = next((i for i, gap in enumerate(gaps) if gap < NEAR_TIE), len(steps))
            prompts.append(
                {
                    "name": prompt["name"],
                    "prompt": prompt["text"],
                    "prompt_ids": prompt_ids,
                    "ids": [step["ids"][0] for step in steps],
                    "text": model.text([step["ids"][0] for step in steps]),
                    "ended": bool(llama.llama_vocab_is_eog(model.vocabulary, steps[-1]["ids"][0])),
                    "steps_before_near_tie": binding,
                    "runner_up": [step["ids"][1] for step in steps],
                    "logprob": [step["logprobs"][0] for step in steps],
                    "runner_up_logprob": [step["logprobs"][1] for step in steps],
                }
            )
        model.close()
        # The same weights with f32 activations: how much of the distance is llama.cpp's f16 rounding.
        model = Model(f32, 1024, arguments.threads)
        perplexity["f32_activations"] = model.perplexity(ids)
        model.close()

    digest = hashlib.sha256(",".join(map(str, ids)).encode()).hexdigest()
    write(
        "perplexity.json",
        {
            "made_with": made_with,
            "text": "eighty_days.txt",
            "context": CHUNK,
            "tokens": len(ids),
            "token_ids_sha256": digest,
            "first_token_ids": ids[:64],
            "weights": perplexity,
        },
    )
    write("greedy.json", {"made_with": made_with, "near_tie_nats": NEAR_TIE, "prompts": prompts})


if __name__ == "__main__":
    main()
