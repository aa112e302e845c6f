"""Many clients at once, and many requests in a row; afterwards nothing is left over."""

import queue
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tritonclient.grpc as triton

from harness.call import Call, ask, tensor
from harness.repository import INFLIGHT

WORDS = ("the river rose over the old stone bridge and the miller counted his sacks again " * 6).split()


def request(index: int) -> dict:
    """Requests of different lengths, policies and samplings."""
    return {
        "prompt": " ".join(WORDS[: 2 + 7 * (index % 9)]),
        "sampling": {
            "max_tokens": 4 + 5 * (index % 5),
            "temperature": 0 if index % 2 else 0.9,
            "seed": index,
            "ignore_eos": True,
            "policy": ("step", "observe", "window", "step")[index % 4],
            "threshold": 3.0,
        },
        "stream": index % 3 == 0,
    }


def test_eight_at_once_with_different_lengths(server, model):
    out = {"return_rewind": True, "exclude_input_in_output": True}
    alone = [ask(server, model, **request(index), **out) for index in range(8)]
    calls = [Call(server, model, **request(index), **out) for index in range(8)]
    for index, (call, expected) in enumerate(zip(calls, alone)):
        answer = call.wait()
        assert answer.error is None
        assert answer.trace == expected.trace, request(index)
    server.wait_idle(model)


def test_sixty_four_at_once(server, model):
    before = server.statistics(model).inference_stats
    calls = []
    for index in range(64):
        asked = request(index)
        asked["sampling"]["max_tokens"] = 2 + index % 7
        calls.append((asked, Call(server, model, **asked, return_num_output_tokens=True)))
    for asked, call in calls:
        answer = call.wait()
        assert answer.error is None, answer.error
        assert sum(answer.all("num_output_tokens")) == asked["sampling"]["max_tokens"]
        assert answer.finals == 1
    server.wait_idle(model)
    after = server.statistics(model).inference_stats
    assert after.success.count - before.success.count == 64


def test_a_thousand_in_a_row(server, record_testsuite_property):
    """On one stream, each sent when the one before has been answered."""
    count, answers = 1000, queue.Queue()
    before = server.statistics(INFLIGHT).inference_stats
    client = triton.InferenceServerClient(f"127.0.0.1:{server.grpc}")
    client.start_stream(lambda result, error: answers.put((result, error)))
    started = time.monotonic()
    for index in range(count):
        sampling = '{"policy": "off", "temperature": 0, "ignore_eos": true}'
        inputs = [
            tensor("text_input", "Hi", False),
            tensor("max_tokens", 1 + index % 2, False),
            tensor("sampling_parameters", sampling, False),
        ]
        client.async_stream_infer(INFLIGHT, inputs, enable_empty_final_response=True)
        final = False
        while not final:
            result, error = answers.get(timeout=20)
            assert error is None, error
            final = result.get_response().parameters["triton_final_response"].bool_param
    took = time.monotonic() - started
    client.stop_stream()
    client.close()
    record_testsuite_property("a thousand short requests in a row, seconds", round(took, 2))
    assert answers.empty(), "more than one final response for a request"
    server.wait_idle(INFLIGHT)
    after = server.statistics(INFLIGHT).inference_stats
    assert after.success.count - before.success.count == count


@pytest.mark.parametrize("killed", [3])
def test_unloads_after_a_storm(server, model, killed):
    """64 at once with clients killed among them; then the model unloads within five seconds."""
    kind = "batched" if server.is_batched(model) else "plain"
    script = Path(__file__).parent / "streaming_client.py"
    command = [sys.executable, str(script), f"127.0.0.1:{server.grpc}", model, kind]
    clients = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(killed)]
    calls = []
    for index in range(61):
        asked = request(index)
        asked["sampling"]["max_tokens"] = 3
        calls.append(Call(server, model, **asked))
    for client in clients:
        assert client.stdout.readline() == "response\n"
        client.kill()
        client.wait()
        client.stdout.close()
    for call in calls:
        assert call.wait().error is None
    server.wait_idle(model)
    server.unload(model, within=5)
    server.load(model)
    assert ask(server, model, "Hello", sampling={"max_tokens": 2, "temperature": 0}).text
    server.wait_idle(model)
