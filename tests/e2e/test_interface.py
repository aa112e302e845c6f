"""What a client sees of a model: metadata, configuration, and the four ways to ask."""

import json

import pytest

from harness.call import TYPES, Call, ask, ask_error
from harness.repository import INFLIGHT, ITERATIVE
from harness.server import events

PROMPT = "The capital of France is"
GREEDY = {"temperature": 0, "max_tokens": 12}

OUTPUTS = {
    "text_output": "BYTES",
    "finish_reason": "BYTES",
    "logprobs": "BYTES",
    "num_input_tokens": "UINT32",
    "num_output_tokens": "UINT32",
    "token_ids": "INT32",
    "entropy": "FP32",
    "score": "FP32",
    "threshold": "FP32",
    "decision": "BYTES",
    "rewinds": "UINT32",
}


def test_metadata_names_every_tensor(server, model):
    metadata = server.control.get_model_metadata(model)
    assert {tensor.name: tensor.datatype for tensor in metadata.inputs} == TYPES
    assert {tensor.name: tensor.datatype for tensor in metadata.outputs} == OUTPUTS
    batch = [-1] if model == ITERATIVE else []
    shapes = {tensor.name: list(tensor.shape) for tensor in metadata.inputs}
    for name, shape in shapes.items():
        wide = name in ("input_ids", "stop_words")
        assert shape == [*batch, -1 if wide else 1], name


def test_config_is_completed(server, model):
    config = server.config(model)
    assert config.backend == "rewind"
    assert config.model_transaction_policy.decoupled
    assert all(tensor.optional for tensor in config.input)
    if model == ITERATIVE:
        assert config.max_batch_size > 0
        assert config.sequence_batching.iterative_sequence
        assert config.sequence_batching.max_sequence_idle_microseconds >= 60_000_000
    else:
        assert config.max_batch_size == 0
        assert not config.HasField("sequence_batching")


def test_a_config_needs_only_the_model(server, repository):
    def strip(config, _folder):
        config.Clear()
        config.backend = "rewind"
        config.parameters["model"].string_value = "weights.gguf"

    name = repository.add("minimal", edit=strip)
    server.load(name)
    try:
        config = server.config(name)
        assert config.max_batch_size == 0 and config.model_transaction_policy.decoupled
        assert {tensor.name for tensor in config.input} == set(TYPES)
        assert ask(server, name, PROMPT, sampling={**GREEDY, "max_tokens": 2}).text
    finally:
        server.unload(name)


def test_generate(server, model):
    answer = server.generate(model, text_input=PROMPT, temperature=0, max_tokens=12, id="question 7")
    assert answer.status_code == 200, answer.text
    body = answer.json()
    assert body["model_name"] == model and body["id"] == "question 7"
    assert body["text_output"].startswith(PROMPT)
    excluded = server.generate(model, text_input=PROMPT, temperature=0, max_tokens=12, exclude_input_in_output=True)
    assert PROMPT + excluded.json()["text_output"] == body["text_output"]
    assert body["text_output"] != PROMPT


def test_generate_stream(server, model):
    whole = server.generate(model, text_input=PROMPT, temperature=0, max_tokens=12, exclude_input_in_output=True)
    parts = server.generate_stream(model, text_input=PROMPT, temperature=0, max_tokens=12, stream=True)
    assert all(part["model_name"] == model for part in parts)
    assert len(parts) > 4, "a stream brings its text in pieces"
    assert "".join(part["text_output"] for part in parts) == whole.json()["text_output"]


def test_grpc_streaming(server, model):
    whole = ask(server, model, PROMPT, sampling=GREEDY, exclude_input_in_output=True)
    assert len(whole.responses) == 1
    stream = ask(server, model, PROMPT, sampling=GREEDY, stream=True)
    assert len(stream.responses) > 4
    assert stream.text == whole.text
    times = [response.at for response in stream.responses]
    assert times[-1] - times[0] > 0.005, "the pieces come as they are made, not all at the end"


def test_both_drivers_give_the_same_answer(server):
    for sampling in (GREEDY, {"temperature": 0.8, "seed": 11, "max_tokens": 12}):
        answers = [ask(server, model, PROMPT, sampling=sampling, return_rewind=True) for model in (INFLIGHT, ITERATIVE)]
        assert answers[0].trace == answers[1].trace


def test_the_prompt_is_prepended_as_vllm_does(server, model):
    excluded = ask(server, model, PROMPT, sampling=GREEDY, exclude_input_in_output=True).text
    assert not excluded.startswith(PROMPT)
    for options in ({}, {"exclude_input_in_output": False}):
        assert ask(server, model, PROMPT, sampling=GREEDY, **options).text == PROMPT + excluded
    for options in ({}, {"exclude_input_in_output": True}):
        assert ask(server, model, PROMPT, sampling=GREEDY, stream=True, **options).text == excluded
    error = ask_error(server, model, PROMPT, stream=True, exclude_input_in_output=False)
    assert "exclude_input_in_output is false" in error and "true" in error


def test_token_ids_as_prompt(server, model, greedy):
    (golden,) = [entry for entry in greedy if entry.name == "list of planets"]
    options = {"sampling": GREEDY, "return_rewind": True, "return_num_input_tokens": True}
    from_ids = ask(server, model, golden.prompt_ids, exclude_input_in_output=True, **options)
    from_text = ask(server, model, golden.prompt, exclude_input_in_output=True, **options)
    assert from_ids.trace == from_text.trace
    assert from_ids.all("num_input_tokens") == from_text.all("num_input_tokens") == [len(golden.prompt_ids)]


def test_chat_applies_the_template(server, model):
    question = "What is 2 + 2?"
    options = {"exclude_input_in_output": True, "return_finish_reason": True, "return_num_input_tokens": True}
    sampling = {"temperature": 0, "max_tokens": 40, "policy": "shadow"}
    chat = ask(server, model, question, sampling={**sampling, "chat": True}, **options)
    plain = ask(server, model, question, sampling=sampling, **options)
    assert "4" in chat.text and chat.finish_reason == "stop"
    # The template adds a system prompt and the marks around each turn.
    assert chat.all("num_input_tokens")[0] > plain.all("num_input_tokens")[0] + 20
    # What is echoed is what the client sent.
    echoed = ask(server, model, question, sampling={**sampling, "chat": True})
    assert echoed.text == question + chat.text


def test_load_metrics_header(server, server_binary):
    """Triton makes ORCA headers out of the KV metrics when a client asks for them."""
    if b"endpoint-load-metrics-format" not in server_binary.read_bytes():
        pytest.skip("this tritonserver was built without the ORCA header")
    answer = server.generate(
        INFLIGHT, {"endpoint-load-metrics-format": "json"}, text_input=PROMPT, max_tokens=1, temperature=0
    )
    header = answer.headers.get("endpoint-load-metrics")
    assert header, f"no header in {dict(answer.headers)}"
    load = json.loads(header.removeprefix("JSON").strip())["named_metrics"]
    assert load["max_token_capacity"] > 0 and 0 <= load["kv_cache_utilization"] <= 1


def test_unknown_request_parameters_are_ignored(server, model):
    plain = ask(server, model, PROMPT, sampling=GREEDY).text
    assert ask(server, model, PROMPT, sampling=GREEDY, parameters={"colour": "blue", "depth": 3}).text == plain


def test_every_response_but_the_last_comes_before_the_end(server, model):
    """The last event of a stream says why it ended, the ones before say that it has not."""
    answer = ask(server, model, PROMPT, sampling=GREEDY, stream=True, return_finish_reason=True)
    reasons = [reason.decode() for reason in answer.all("finish_reason")]
    assert reasons[-1] in ("length", "stop")
    assert set(reasons[:-1]) <= {"None"}


@pytest.mark.parametrize("path", ["generate", "generate_stream"])
def test_http_errors_are_json(server, path):
    url = server.url(f"/v2/models/{INFLIGHT}/{path}")
    answer = server.session.post(url, json={"text_input": PROMPT, "max_tokens": 0}, timeout=20)
    assert answer.status_code == 400
    body = next(events(answer)) if answer.text.startswith("data:") else answer.json()
    assert "max_tokens is 0" in body["error"]


def test_a_slow_reader_gets_everything(server):
    """Text waits for a reader that pauses; nothing is lost and nobody else waits."""
    sampling = {"temperature": 0, "max_tokens": 24, "ignore_eos": True}
    expected = ask(server, INFLIGHT, PROMPT, sampling=sampling, exclude_input_in_output=True).text
    url = server.url(f"/v2/models/{INFLIGHT}/generate_stream")
    fields = {"text_input": PROMPT, "stream": True, **sampling}
    with server.session.post(url, json=fields, stream=True, timeout=60) as answer:
        arriving = events(answer)
        text = next(arriving)["text_output"]
        assert ask(server, INFLIGHT, PROMPT, sampling=sampling, exclude_input_in_output=True).text == expected
        text += "".join(event["text_output"] for event in arriving)
    assert text == expected


def test_a_call_that_says_nothing_about_length_gets_sixteen_tokens(server, model):
    sampling = {"temperature": 0, "ignore_eos": True}
    answer = Call(server, model, PROMPT, sampling=sampling, return_num_output_tokens=True).wait()
    assert answer.all("num_output_tokens") == [16]
