"""An answer does not depend on what runs beside it (design invariant 5)."""

import random

from harness.call import Call, ask
from harness.repository import INFLIGHT, ITERATIVE

PROMPT = "A clockmaker, a baker and a lighthouse keeper met at the inn. The clockmaker said"
OUT = {"return_rewind": True, "return_finish_reason": True, "exclude_input_in_output": True}

# The threshold is the default one, but frozen, as design wants it for a replay.
CASES = {
    "off": {"policy": "off", "temperature": 0.8, "seed": 1},
    "observe": {"policy": "observe", "temperature": 0},
    "step": {"policy": "step", "temperature": 0, "threshold": 2.5},
    "step, sampled": {"policy": "step", "temperature": 0.8, "seed": 2, "threshold": 2.5, "refresh": 3},
    "window": {"policy": "window", "window": 4, "temperature": 0.8, "seed": 3, "threshold": 2.5},
    "lossless": {"policy": "lossless", "window": 3, "temperature": 0.8, "seed": 4},
    "shadow": {"policy": "shadow", "temperature": 0},
}


def neighbours(server, model, count, rng):
    """Requests of every kind, to be in the way."""
    calls = []
    for _ in range(count):
        words = rng.choices(["red", "river", "seven", "the", "clock", "walks", "of", "under"], k=rng.randint(1, 60))
        sampling = {
            "policy": rng.choice(["off", "observe", "step", "window", "lossless", "shadow"]),
            "window": rng.randint(1, 8),
            "max_tokens": rng.randint(2, 30),
            "temperature": rng.choice([0, 0.7, 1.3]),
            "top_k": rng.choice([0, 5, 50]),
            "seed": rng.getrandbits(63),
        }
        calls.append(Call(server, model, " ".join(words), sampling=sampling, stream=rng.random() < 0.5))
    return calls


def test_neighbours_change_nothing(server):
    rng = random.Random(20240)
    sampling = {name: {"max_tokens": 20, "ignore_eos": True, **case} for name, case in CASES.items()}
    alone = {name: ask(server, INFLIGHT, PROMPT, sampling=sampling[name], **OUT) for name in CASES}
    assert len({answer.text for answer in alone.values()}) > 3, "the cases differ"
    for model in (INFLIGHT, ITERATIVE):
        # All cases together, with one random neighbour.
        crowd = neighbours(server, model, 1, rng)
        calls = {name: Call(server, model, PROMPT, sampling=sampling[name], **OUT) for name in CASES}
        for name, call in calls.items():
            assert call.wait().trace == alone[name].trace, f"{name} on {model}, in company of the other cases"
        # One at a time among seven random ones.
        for name in ("step, sampled", "window"):
            crowd += neighbours(server, model, 4, rng)
            call = Call(server, model, PROMPT, sampling=sampling[name], **OUT)
            crowd += neighbours(server, model, 3, rng)
            assert call.wait().trace == alone[name].trace, f"{name} on {model}, among random neighbours"
        for other in crowd:
            assert other.wait().error is None


def test_length_and_streaming_change_nothing(server, model):
    """A longer request begins as a shorter one does: nothing looks ahead."""
    sampling = {"policy": "step", "threshold": 2.5, "temperature": 0.8, "seed": 9, "ignore_eos": True}
    short = ask(server, model, PROMPT, sampling={**sampling, "max_tokens": 7}, **OUT)
    long = ask(server, model, PROMPT, sampling={**sampling, "max_tokens": 21}, **OUT)
    assert long.ids[:7] == short.ids and long.text.startswith(short.text)
    stream = ask(server, model, PROMPT, sampling={**sampling, "max_tokens": 21}, stream=True, return_rewind=True)
    assert stream.ids == long.ids and stream.text == long.text
    assert stream.all("entropy") == long.all("entropy") and stream.decisions == long.decisions
