"""`lossless(n)` gives what `shadow` gives: ids, text and finish reason."""

import pytest

from harness.call import Call, ask
from harness.lossless import OUT, SAMPLINGS, essence
from harness.repository import INFLIGHT

TOKENS = 14


def prompts(greedy):
    names = (
        "story",
        "recipe",
        "python",
        "dialogue",
        "emoji and kanji",
        "history",
        "letter",
        "chat without system prompt",
    )
    return [golden for golden in greedy if golden.name in names]


@pytest.fixture(scope="module")
def shadow(server, greedy):
    """Answers of the shadow policy, each asked alone."""
    return {
        (golden.name, sampling["temperature"]): essence(
            ask(
                server,
                INFLIGHT,
                golden.prompt_ids,
                sampling={"policy": "shadow", "max_tokens": TOKENS, **sampling},
                **OUT,
            )
        )
        for golden in prompts(greedy)
        for sampling in SAMPLINGS
    }


@pytest.mark.parametrize("window", [2, 4, 8])
def test_in_a_batch_of_eight(server, model, greedy, shadow, window):
    rewinds = 0
    for sampling in SAMPLINGS:
        asked = {"policy": "lossless", "window": window, "max_tokens": TOKENS, **sampling}
        calls = [(golden, Call(server, model, golden.prompt_ids, sampling=asked, **OUT)) for golden in prompts(greedy)]
        assert len(calls) == 8
        for golden, call in calls:
            answer = call.wait()
            assert essence(answer) == shadow[golden.name, sampling["temperature"]], golden.name
            assert set(answer.decisions) <= {"verified", "rewound"}
            rewinds += answer.all("rewinds")[0]
    assert rewinds > 0, "the draft is never wrong: this shows nothing"


@pytest.mark.parametrize("window", [2, 4, 8])
def test_alone(server, model, greedy, shadow, window):
    for sampling in SAMPLINGS:
        for golden in prompts(greedy)[1:4:2]:
            asked = {"policy": "lossless", "window": window, "max_tokens": TOKENS, **sampling}
            answer = ask(server, model, golden.prompt_ids, sampling=asked, **OUT)
            assert essence(answer) == shadow[golden.name, sampling["temperature"]], golden.name


def test_streamed(server, model, greedy, shadow):
    for golden in prompts(greedy)[:2]:
        asked = {"policy": "lossless", "window": 4, "max_tokens": TOKENS, **SAMPLINGS[1]}
        answer = ask(
            server, model, golden.prompt_ids, sampling=asked, stream=True, return_rewind=True, return_finish_reason=True
        )
        assert essence(answer) == shadow[golden.name, 0.8]
