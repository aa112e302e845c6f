"""Optional outputs, and the arrays of `return_rewind`."""

import json
import math

import numpy as np
import pytest

from harness.call import ask

PROMPT = "Water boils at a lower temperature on a mountain than at sea level because"
ALL = {
    "return_finish_reason": True,
    "return_logprobs": True,
    "return_num_input_tokens": True,
    "return_num_output_tokens": True,
    "return_rewind": True,
}
ARRAYS = ("token_ids", "entropy", "score", "threshold", "decision")


def sampling(**more):
    return {"temperature": 0, "max_tokens": 20, "ignore_eos": True, **more}


def test_nothing_comes_unasked(server, model):
    for stream in (False, True):
        answer = ask(server, model, PROMPT, sampling=sampling(), stream=stream)
        assert {name for response in answer.responses for name in response.outputs} == {"text_output"}


@pytest.mark.parametrize("stream", [False, True])
def test_counts(server, model, greedy, stream):
    (golden,) = [entry for entry in greedy if entry.name == "physics"]
    assert golden.prompt == PROMPT
    answer = ask(server, model, PROMPT, sampling=sampling(), stream=stream, **ALL)
    assert set(answer.all("num_input_tokens")) == {len(golden.prompt_ids)}
    # As vLLM has it: tokens since the response before.
    assert sum(answer.all("num_output_tokens")) == 20 == len(answer.ids)
    for response in answer.responses:
        assert len(response.outputs["token_ids"]) == response.outputs["num_output_tokens"][0]
    assert answer.finish_reason == "length"


@pytest.mark.parametrize("stream", [False, True])
def test_logprobs(server, model, stream):
    answer = ask(
        server, model, PROMPT, sampling=sampling(logprobs=3), stream=stream, exclude_input_in_output=True, **ALL
    )
    positions = [entry for part in answer.all("logprobs") for entry in json.loads(part) or []]
    assert len(positions) == len(answer.ids)
    text = ""
    for chosen, entries in zip(answer.ids, positions):
        assert str(chosen) in entries and 3 <= len(entries) <= 4
        ranks = sorted(entries.values(), key=lambda entry: entry["rank"])
        values = [entry["logprob"] for entry in ranks]
        assert values == sorted(values, reverse=True) and all(value <= 0 for value in values)
        assert sum(map(math.exp, values)) <= 1 + 1e-4
        assert ranks[0]["rank"] == 1 and entries[str(chosen)]["rank"] >= 1
        text += entries[str(chosen)]["decoded_token"]
    assert text == answer.text


def test_logprobs_of_greedy_tokens_are_the_best(server, model):
    answer = ask(server, model, PROMPT, sampling=sampling(policy="off", logprobs=2), **ALL)
    for chosen, entries in zip(answer.ids, json.loads(answer.all("logprobs")[0])):
        assert entries[str(chosen)]["rank"] == 1


@pytest.mark.parametrize("policy", ["observe", "step", "window", "lossless", "shadow"])
@pytest.mark.parametrize("detector", ["entropy", "top1", "margin"])
def test_rewind_arrays_agree(server, model, policy, detector):
    more = {"policy": policy, "detector": detector, "window": 4}
    for stream in (False, True):
        answer = ask(server, model, PROMPT, sampling=sampling(**more), stream=stream, **ALL)
        for response in answer.responses:
            lengths = {name: len(response.outputs[name]) for name in ARRAYS}
            assert len(set(lengths.values())) == 1, lengths
        decisions = answer.decisions
        entropy, score = np.array(answer.all("entropy")), np.array(answer.all("score"))
        (threshold,) = set(answer.all("threshold"))
        assert np.all(entropy >= 0) and np.all(entropy <= math.log(49152) + 1e-3)
        if detector == "entropy":
            assert np.array_equal(score, entropy)
        elif detector == "top1":
            assert np.all((0 <= score) & (score < 1))
        else:
            assert np.all(score <= 0)
        suspects = score > threshold
        if policy == "observe":
            assert set(decisions) == {"draft"}
        elif policy == "step":
            # The first token comes out of the shadow's prompt pass.
            assert decisions[0] == "verified"
            for suspect, decision in zip(suspects[1:], decisions[1:]):
                assert (decision in ("verified", "rewound")) if suspect else decision == "draft"
        elif policy == "window":
            assert decisions[0] == "verified"
            assert set(decisions) <= {"draft", "verified", "rewound"}
            for suspect, decision in zip(suspects[1:], decisions[1:]):
                assert not suspect or decision != "draft"
        elif policy == "lossless":
            assert set(decisions) <= {"verified", "rewound"}
        else:
            assert set(decisions) == {"shadow"}
        # As the token counts: since the response before.
        total = sum(answer.all("rewinds"))
        assert total >= decisions.count("rewound")
        if policy in ("observe", "shadow"):
            assert total == 0


def test_the_demo_rewinds(server, model):
    """The shipped settings show rewinds on ordinary text."""
    answer = ask(server, model, PROMPT, sampling={"temperature": 0, "max_tokens": 64, "ignore_eos": True}, **ALL)
    assert {"draft", "rewound"} <= set(answer.decisions)
    assert answer.all("rewinds")[0] > 0


def test_off_measures_nothing(server, model):
    answer = ask(server, model, PROMPT, sampling=sampling(policy="off"), **ALL)
    assert len(answer.ids) == 20
    assert set(answer.decisions) == {"draft"} and answer.all("rewinds") == [0]
    # A made-up number would be worse than none.
    for name in ("entropy", "score", "threshold"):
        assert answer.all(name) == [], name
    observed = ask(server, model, PROMPT, sampling=sampling(policy="observe"), **ALL)
    assert observed.ids == answer.ids, "watching changes nothing"


def test_the_threshold_decides(server, model):
    everything = ask(server, model, PROMPT, sampling=sampling(policy="step", threshold=-1), **ALL)
    assert set(everything.all("threshold")) == {-1.0}
    assert "draft" not in everything.decisions
    nothing = ask(server, model, PROMPT, sampling=sampling(policy="step", threshold=1e9), **ALL)
    assert nothing.decisions == ["verified"] + ["draft"] * 19
    assert nothing.all("rewinds") == [0]
