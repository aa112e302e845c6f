"""Measures llama.cpp at the work that `rewind bench` measures Rewind at, and prints one JSON object.

A step is one `llama_decode`, and the choice of every row's next token: the largest logit, found by numpy's argmax, which
is vectorized and several times faster than llama.cpp's own samplers at this. Each sequence of a batch has its own cache
and goes on with the token it chose.

    decode, batch   `--steps` steps of one or several sequences, from empty caches
    prefill         one prompt of `--prompt` tokens in one batch; only its last row is asked for logits

Some of it is done before anything is timed. Threads are llama.cpp's own, as it was built; nothing is pinned.
"""

import argparse
import ctypes
import json
import statistics
import time
from importlib.metadata import version
from pathlib import Path

import numpy as np
from llama_cpp import llama_cpp as llama

WARM_UP_STEPS = 8


class Session:
    """One file in llama.cpp, with a cache for `sequences` sequences of `length` tokens."""

    def __init__(self, path: Path, threads: int, sequences: int, length: int):
        parameters = llama.llama_model_default_params()
        self.model = llama.llama_model_load_from_file(str(path).encode(), parameters)
        assert self.model, f"llama.cpp could not load {path.name}"
        self.vocabulary = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(self.model))
        parameters = llama.llama_context_default_params()
        parameters.n_ctx = sequences * length
        parameters.n_seq_max = sequences
        parameters.n_batch = parameters.n_ubatch = max(length, sequences)
        parameters.n_threads = parameters.n_threads_batch = threads
        self.context = llama.llama_init_from_model(self.model, parameters)
        assert self.context, "llama.cpp could not make a context"
        self.batch = llama.llama_batch_init(parameters.n_batch, 0, 1)
        self.logits = np.empty(0)

    def close(self):
        llama.llama_batch_free(self.batch)
        llama.llama_free(self.context)
        llama.llama_model_free(self.model)

    def forget(self):
        llama.llama_memory_clear(llama.llama_get_memory(self.context), True)

    def prefill(self, tokens: list[int]) -> int:
        """Feeds a prompt to the first sequence; the token that follows it."""
        batch = self.batch
        batch.n_tokens = len(tokens)
        for index, token in enumerate(tokens):
            batch.token[index] = token
            batch.pos[index] = index
            batch.n_seq_id[index] = 1
            batch.seq_id[index][0] = 0
            batch.logits[index] = index + 1 == len(tokens)
        self._decode()
        return self._chosen(1)[0]

    def line_up(self, sequences: int):
        """Makes the batch one row of each sequence, which `step` fills."""
        self.batch.n_tokens = sequences
        for index in range(sequences):
            self.batch.n_seq_id[index] = 1
            self.batch.seq_id[index][0] = index
            self.batch.logits[index] = True

    def step(self, tokens: list[int], position: int) -> list[int]:
        """Feeds one token of each sequence; those that follow."""
        for index, token in enumerate(tokens):
            self.batch.token[index] = token
            self.batch.pos[index] = position
        self._decode()
        return self._chosen(len(tokens))

    def _decode(self):
        assert llama.llama_decode(self.context, self.batch) == 0, "llama.cpp failed"

    def _chosen(self, rows: int) -> list[int]:
        pointer = llama.llama_get_logits(self.context)
        logits = np.ctypeslib.as_array(pointer, shape=(rows, self.vocabulary))
        return logits.argmax(axis=1).tolist()


def token(position: int, sequence: int, vocabulary: int) -> int:
    """Something to read, other for every sequence: what it is does not change the work."""
    return (7919 * (position + 1) + 104729 * sequence) % vocabulary


def time_steps(session: Session, sequences: int, steps: int) -> list[float]:
    """Seconds of each step."""
    session.forget()
    session.line_up(sequences)
    tokens = [token(0, each, session.vocabulary) for each in range(sequences)]
    seconds = []
    for position in range(steps):
        started = time.perf_counter()
        tokens = session.step(tokens, position)
        seconds.append(time.perf_counter() - started)
    return seconds


def measure_steps(options: argparse.Namespace, name: str, sequences: int) -> dict:
    session = Session(options.model, options.threads, sequences, options.steps)
    time_steps(session, sequences, min(WARM_UP_STEPS, options.steps))
    seconds = time_steps(session, sequences, options.steps)
    session.close()
    return {
        "name": name,
        "batch": sequences,
        "median_step_seconds": statistics.median(seconds),
    }


def measure_prefill(options: argparse.Namespace) -> dict:
    session = Session(options.model, options.threads, 1, options.prompt)
    tokens = [token(position, 0, session.vocabulary) for position in range(options.prompt)]
    seconds = []
    for _ in range(1 + options.prefills):
        session.forget()
        started = time.perf_counter()
        session.prefill(tokens)
        seconds.append(time.perf_counter() - started)
    session.close()
    # The first was the warm-up.
    del seconds[0]
    return {
        "name": "prefill",
        "batch": 1,
        "median_step_seconds": statistics.median(seconds),
    }


@llama.llama_log_callback
def silence(_level, _text, _data):
    """llama.cpp tells a great deal."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("work", choices=["decode", "prefill", "batch"])
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--steps", type=int, default=128, help="timed steps")
    parser.add_argument("--prompt", type=int, default=256, help="tokens of a prefill")
    parser.add_argument("--prefills", type=int, default=5, help="timed prefills; their median counts")
    parser.add_argument("--batches", type=int, nargs="+", default=[4, 8, 16], help="sequences of `batch`")
    options = parser.parse_args()

    llama.llama_log_set(silence, ctypes.c_void_p(0))
    if options.work == "prefill":
        measurements = [measure_prefill(options)]
    elif options.work == "decode":
        measurements = [measure_steps(options, "decode", 1)]
    else:
        measurements = [measure_steps(options, "batch", sequences) for sequences in options.batches]
    report = {
        "version": version("llama-cpp-python"),
        "system": llama.llama_print_system_info().decode().strip(),
        "threads": options.threads,
        "measurements": measurements,
    }
    print(json.dumps(report))


if __name__ == "__main__":
    main()
