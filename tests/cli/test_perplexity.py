"""The shadow's perplexity against llama.cpp's over the same tokens."""

import math

import pytest

from harness import golden

CHUNKS = 6
"""Chunks of the recording's sixteen: enough for a figure, few enough for a minute."""


def recorded(chunks: int) -> float:
    losses = golden.perplexity()["weights"]["f16"]["chunk_mean_losses"]
    return math.exp(sum(losses[:chunks]) / chunks)


def measure(rewind_json, weights, what, chunks):
    return rewind_json(
        "perplexity", "--model", weights, "--weights", what, "--text", golden.TEXT, "--context", 512, "--chunks", chunks
    )


@pytest.fixture(scope="module")
def shadow(rewind_json, weights):
    return measure(rewind_json, weights, "shadow", CHUNKS)


def test_the_shadow_has_the_perplexity_of_llama_cpp(shadow):
    assert shadow["perplexity"] == pytest.approx(recorded(CHUNKS), rel=0.002)


def test_the_protocol_is_llama_cpps(shadow):
    """Second halves only: 255 scored tokens in a chunk of 512."""
    assert shadow["chunks"] == CHUNKS
    assert shadow["tokens"] == CHUNKS * 255
    assert shadow["perplexity"] == pytest.approx(math.exp(shadow["nll"]))
    # Losses spread by about three nats, so that a mean of 1,530 is known to about eight hundredths.
    assert 0.03 < shadow["nll_error"] < 0.2
    assert shadow["perplexity_error"] == pytest.approx(shadow["perplexity"] * shadow["nll_error"])


def test_a_draft_is_worse(rewind_json, weights, shadow):
    draft = measure(rewind_json, weights, "int4-g32", 2)
    near = measure(rewind_json, weights, "int8", 2)
    reference = recorded(2)
    assert draft["perplexity"] > reference * 1.02, "4 bits cost something"
    assert near["perplexity"] == pytest.approx(reference, rel=0.03)


def without(weights, layers):
    text = ["--text", golden.TEXT, "--context", 128, "--chunks", 2]
    return ["perplexity", "--model", weights, *text, "--without-layers", layers]


def test_a_layer_that_is_left_out_is_missed(rewind_json, weights):
    """One of the middle is worth little, the first one nearly everything."""
    middle = rewind_json(*without(weights, "14"), "--weights", "int8", "--compare")
    first = rewind_json(*without(weights, "0,14"), "--weights", "int8")
    assert middle["without_layers"] == [14]
    assert first["without_layers"] == [0, 14]
    # The shadow beside it has all its layers.
    assert middle["shadow"]["perplexity"] < middle["perplexity"] < first["perplexity"] / 10
    assert 0.02 < middle["shadow"]["divergence"] < 1
    assert 0.5 < middle["shadow"]["agreement"] < 0.99


@pytest.mark.parametrize(
    ("layers", "said"),
    [
        ("30", "there is no layer 30 to leave out: this model has 30, from 0 to 29"),
        ("3,5,3", "layer 3 is left out twice"),
        (",".join(map(str, range(30))), "at least one must stay"),
    ],
)
def test_layers_that_cannot_be_left_out_are_named(rewind, weights, layers, said):
    assert said in rewind(*without(weights, layers), fails=True).stderr
