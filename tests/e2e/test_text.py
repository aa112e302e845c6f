"""Text on its way out: whole characters only, and nothing of a stop string."""

import pytest

from harness.call import ask

ANIMALS = "🐶🐱🐭🐹🐰🦊🐻🐼🐶🐱🐭🐹🐰🦊🐻🐼🐶🐱🐭🐹🐰🦊🐻🐼🐶🐱"
STORY = "Once upon a time, in a village between two rivers,"


@pytest.mark.parametrize("policy", ["step", "lossless", "shadow"])
def test_characters_of_several_tokens_come_whole(server, model, policy):
    sampling = {"temperature": 0, "max_tokens": 30, "policy": policy, "ignore_eos": True}
    whole = ask(server, model, ANIMALS, sampling=sampling, exclude_input_in_output=True)
    # Decoding a delta that is not UTF-8 would have failed; a broken character would show as this one.
    assert "\N{REPLACEMENT CHARACTER}" not in whole.text[:-1]
    assert sum(ord(character) > 0xFFFF for character in whole.text) >= 3, f"no emoji in {whole.text!r}"
    stream = ask(server, model, ANIMALS, sampling=sampling, stream=True, return_rewind=True)
    assert stream.text == whole.text
    assert len(stream.ids) == 30
    empty = [delta for delta in stream.deltas if not delta]
    assert len(stream.deltas) - len(empty) < 30, "several tokens make one character"


def test_every_language_streams_as_it_is_answered_whole(server, greedy):
    for golden in greedy:
        if golden.prompt.isascii():
            continue
        sampling = {"temperature": 0.8, "seed": 4, "max_tokens": 24}
        whole = ask(server, "smollm2", golden.prompt, sampling=sampling, exclude_input_in_output=True)
        stream = ask(server, "smollm2", golden.prompt, sampling=sampling, stream=True)
        assert stream.text == whole.text, golden.name


@pytest.mark.parametrize("policy", ["step", "window", "lossless", "shadow"])
def test_stop_strings(server, model, policy):
    sampling = {"temperature": 0, "max_tokens": 30, "policy": policy, "ignore_eos": True}
    options = {"return_finish_reason": True, "return_rewind": True}
    free = ask(server, model, STORY, sampling=sampling, exclude_input_in_output=True, **options)
    # Parts that begin and end inside tokens, at several places.
    for start in (7, 21, 40):
        stop = free.text[start : start + 6]
        cut = free.text.index(stop)
        for stop_by in (
            {"sampling": {**sampling, "stop": [stop, "never said"]}},
            {"sampling": {**sampling, "stop": stop}},
        ):
            stopped = ask(server, model, STORY, stream=True, **stop_by, **options)
            assert stopped.text == free.text[:cut]
            assert stopped.finish_reason == "stop"
            assert free.ids[: len(stopped.ids)] == stopped.ids
    stopped = ask(
        server, model, STORY, sampling=sampling, stop_words=[stop, ""], exclude_input_in_output=True, **options
    )
    assert stopped.text == free.text[:cut] and stopped.finish_reason == "stop"


def test_a_stop_string_that_almost_comes_is_not_lost(server, model):
    sampling = {"temperature": 0, "max_tokens": 20, "ignore_eos": True}
    free = ask(server, model, STORY, sampling=sampling, exclude_input_in_output=True).text
    # The end of the text begins a stop string that is never completed.
    almost = free[-5:] + "qqqq"
    stream = ask(server, model, STORY, sampling={**sampling, "stop": [almost]}, stream=True)
    assert stream.text == free
