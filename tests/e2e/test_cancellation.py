"""Clients that go away: their sequences are freed at once, and nobody else notices."""

import subprocess
import sys
from pathlib import Path

import pytest

from harness.call import Call, ask
from harness.server import events

PROMPT = "Once upon a time, in a village between two rivers,"
LONG = {"temperature": 0, "max_tokens": 1000, "ignore_eos": True}

FREED_WITHIN = 1.0
"""Seconds from a cancellation to an idle engine: one iteration takes a tenth of that, a scrape the rest."""


def test_a_cancelled_stream_is_freed_at_once(server, model):
    server.wait_idle(model)
    before = server.statistics(model)
    call = Call(server, model, PROMPT, sampling=LONG, stream=True)
    call.wait_for(4)
    assert server.wait_busy(model).total("rewind_sequences", model=model) == 1
    call.cancel()
    server.wait_idle(model, within=FREED_WITHIN)
    assert len(call.answer.responses) < 500
    after = server.statistics(model)
    assert after.inference_stats.success.count == before.inference_stats.success.count


def test_a_cancelled_answer_that_was_not_streamed(server, model):
    call = Call(server, model, PROMPT, sampling=LONG)
    server.wait_busy(model)
    call.cancel()
    server.wait_idle(model, within=FREED_WITHIN)


def test_cancelling_one_of_eight_leaves_the_others_alone(server, model):
    sampling = {"temperature": 0.8, "seed": 6, "max_tokens": 16, "ignore_eos": True}
    expected = ask(server, model, PROMPT, sampling=sampling, exclude_input_in_output=True).text
    doomed = [Call(server, model, PROMPT, sampling=LONG, stream=True) for _ in range(4)]
    others = [Call(server, model, PROMPT, sampling=sampling, stream=True) for _ in range(4)]
    for call in doomed:
        call.wait_for(2)
        call.cancel()
    for call in others:
        assert call.wait().text == expected
    server.wait_idle(model, within=FREED_WITHIN)


@pytest.mark.parametrize("policy", ["window", "lossless", "shadow"])
def test_cancelling_while_tokens_are_held_back(server, model, policy):
    sampling = {**LONG, "policy": policy, "window": 8, "temperature": 1.2, "seed": 3}
    for responses in (1, 2, 3):
        call = Call(server, model, PROMPT, sampling=sampling, stream=True)
        call.wait_for(responses)
        call.cancel()
    server.wait_idle(model, within=FREED_WITHIN)


def test_cancelling_during_a_long_prompt(server, model):
    call = Call(server, model, list(range(1000, 2200)), sampling={**LONG, "max_tokens": 8})
    server.wait_busy(model)
    call.cancel()
    # The iteration that runs is one chunk of the prompt, much longer than a decode step.
    server.wait_idle(model, within=10 * FREED_WITHIN)


def test_a_closed_http_stream(server, model):
    fields = {"text_input": PROMPT, "stream": True, **LONG}
    url = server.url(f"/v2/models/{model}/generate_stream")
    with server.session.post(url, json=fields, stream=True, timeout=30) as answer:
        arriving = events(answer)
        for _ in range(3):
            next(arriving)
    server.wait_idle(model, within=2 * FREED_WITHIN)


def test_a_killed_client(server, model):
    kind = "batched" if server.is_batched(model) else "plain"
    script = Path(__file__).parent / "streaming_client.py"
    command = [sys.executable, str(script), f"127.0.0.1:{server.grpc}", model, kind]
    client = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        for _ in range(3):
            assert client.stdout.readline() == "response\n"
        server.wait_busy(model)
    finally:
        client.kill()
        client.wait()
        client.stdout.close()
    server.wait_idle(model, within=2 * FREED_WITHIN)
    assert ask(server, model, PROMPT, sampling={"max_tokens": 2, "temperature": 0}).text
