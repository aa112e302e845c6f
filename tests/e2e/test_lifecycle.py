"""Loading, unloading and warming up, with and without traffic; and what the iterative driver must survive."""

import struct
import threading
import time

import pytest

from harness.call import Call, ask, ask_error
from harness.repository import INFLIGHT, ITERATIVE

PROMPT = "Once upon a time"
SHORT = {"temperature": 0, "max_tokens": 6, "ignore_eos": True}
LIMIT = 96
"""Tokens of the longest sequence of the small model."""


def test_unload_and_reload_during_traffic(server, model):
    """Requests that were taken are answered in full; those that come while the model is away are told so."""
    expected = ask(server, model, PROMPT, sampling=SHORT).text
    stop = threading.Event()
    answered, refused, wrong = [], [], []

    def traffic():
        while not stop.is_set():
            answer = Call(server, model, PROMPT, sampling=SHORT).wait()
            if answer.error is None:
                (answered if answer.text == expected else wrong).append(answer.text)
            else:
                refused.append(answer.error)
                time.sleep(0.01)

    threads = [threading.Thread(target=traffic) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        while len(answered) < 4:
            time.sleep(0.01)
        in_flight = Call(server, model, PROMPT, sampling={**SHORT, "max_tokens": 60}, return_num_output_tokens=True)
        time.sleep(0.1)

        def answered_in_full():
            # It was taken before the unload.
            assert in_flight.wait().all("num_output_tokens") == [60]

        server.unload(model, within=30, meanwhile=answered_in_full)
        time.sleep(0.2)
        server.load(model)
        seen = len(answered)
        deadline = time.monotonic() + 20
        while len(answered) < seen + 4:
            assert time.monotonic() < deadline, "no answers after the reload"
            time.sleep(0.01)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert not wrong
    assert refused, "nobody asked while the model was away"
    wrong = {error for error in refused if "no available versions" not in error and "not ready" not in error}
    assert not wrong
    server.wait_idle(model)


def test_loading_again_replaces_the_model(server):
    """A load of a loaded model with a changed config takes the new one."""
    # The same config again: Triton keeps the model or makes it anew; either way it serves.
    expected = ask(server, INFLIGHT, PROMPT, sampling=SHORT).text
    server.load(INFLIGHT)
    assert ask(server, INFLIGHT, PROMPT, sampling=SHORT).text == expected


def warm_up(config, folder):
    text = PROMPT.encode()
    (folder / "warmup").mkdir()
    (folder / "warmup" / "prompt").write_bytes(struct.pack("<I", len(text)) + text)
    sample = config.model_warmup.add(name="first words", batch_size=1, count=2)
    sample.inputs["text_input"].data_type = 13  # TYPE_STRING
    sample.inputs["text_input"].dims.append(1)
    sample.inputs["text_input"].input_data_file = "prompt"


def test_warm_up(server, repository):
    name = repository.add("warmed", edit=warm_up)
    before = server.log.stat().st_size
    server.load(name)
    try:
        assert server.is_batched(name) is False
        told = server.log.read_bytes()[before:].decode(errors="replace")
        assert "failed to run warmup" not in told.lower(), told
        server.wait_idle(name)
        assert ask(server, name, PROMPT, sampling=SHORT).text == ask(server, INFLIGHT, PROMPT, sampling=SHORT).text
    finally:
        server.unload(name)


def test_start_and_end_on_one_request(server):
    """A client-driven sequence of one request cannot be iterated: it is told, and nothing is stuck."""
    error = ask_error(server, ITERATIVE, PROMPT, sampling=SHORT, sequence=(77, True, True))
    assert "starts and ends" in error and "sequence_id" in error, error
    assert ask(server, ITERATIVE, PROMPT, sampling=SHORT).text
    server.wait_idle(ITERATIVE)
    server.unload(ITERATIVE, within=5)
    server.load(ITERATIVE)
    assert ask(server, ITERATIVE, PROMPT, sampling=SHORT).text


def test_a_sequence_id_with_start_alone_is_served(server):
    plain = ask(server, ITERATIVE, PROMPT, sampling=SHORT).text
    assert ask(server, ITERATIVE, PROMPT, sampling=SHORT, sequence=(78, True, False)).text == plain


def test_a_sequence_id_without_start_is_refused(server):
    error = ask_error(server, ITERATIVE, PROMPT, sampling=SHORT, sequence=(79, False, False))
    assert "START" in error


@pytest.fixture(scope="module")
def small(server, repository):
    """A model with room for little: what waits, what is refused, and what is cut short."""
    parameters = {"max_sequence_length": str(LIMIT), "max_queue": "3", "max_sequences": "1", "threads": "1"}
    name = repository.add("small", parameters=parameters)
    server.load(name)
    yield name
    server.unload(name)


def test_more_tokens_than_fit_end_by_length(server, small):
    for tokens in (2**31 - 1, 500):
        answer = ask(
            server,
            small,
            PROMPT,
            max_tokens=tokens,
            sampling={"temperature": 0, "ignore_eos": True},
            return_finish_reason=True,
            return_num_input_tokens=True,
            return_num_output_tokens=True,
        )
        assert answer.finish_reason == "length"
        assert answer.all("num_input_tokens")[0] + answer.all("num_output_tokens")[0] == LIMIT


def test_a_prompt_longer_than_the_limit(server, small):
    for prompt in ("a " * LIMIT, list(range(100, 100 + LIMIT))):
        error = ask_error(server, small, prompt)
        assert str(LIMIT) in error and "tokens" in error and "at most" in error


def test_a_full_queue_is_unavailable(server, small):
    running = Call(server, small, PROMPT, sampling={**SHORT, "max_tokens": 80}, stream=True)
    running.wait_for(1)
    waiting = [Call(server, small, PROMPT, sampling=SHORT) for _ in range(3)]
    time.sleep(0.1)
    fields = {"text_input": PROMPT, "max_tokens": 2}
    refused = server.generate(small, **fields)
    # Triton means 503, but drops the code of a model's error before it maps it: see docs/requests.md.
    assert refused.status_code in (400, 503), refused.text
    assert "limit is 3" in refused.json()["error"]
    # One that waits can be cancelled too, and frees its place.
    waiting.pop().cancel()
    for call in (running, *waiting):
        assert call.wait().error is None
    server.wait_idle(small)


def test_a_request_that_never_fits_the_cache(server, repository):
    name = repository.add("cramped", parameters={"kv_memory": "4MiB", "threads": "1"})
    server.load(name)
    try:
        error = ask_error(server, name, PROMPT, sampling={"max_tokens": 1500})
        assert "kv_memory" in error and "pages" in error
        assert ask(server, name, PROMPT, sampling=SHORT).text
        server.wait_idle(name)
    finally:
        server.unload(name)
