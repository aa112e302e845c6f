"""Wrong requests and wrong models: a precise error for the one who sent it, and nothing for the others."""

import json
import time

import numpy as np
import pytest
import tritonclient.grpc as triton

from harness.call import Call, ask, ask_error
from harness.repository import INFLIGHT, ITERATIVE

PROMPT = "Once upon a time"
NEIGHBOUR = {"temperature": 0.8, "seed": 21, "max_tokens": 8, "ignore_eos": True, "policy": "step", "threshold": 2.5}

BAD_REQUESTS = {
    "empty prompt": ({"prompt": ""}, ["prompt is empty", "at least one"]),
    "no prompt": ({}, ["text_input", "input_ids"]),
    "two prompts": ({"prompt": PROMPT, "input_ids": [1, 2]}, ["text_input", "input_ids"]),
    "no token ids": ({"prompt": []}, ["empty"]),
    "unknown token id": ({"prompt": [1, 49152]}, ["49152", "index 1"]),
    "negative token id": ({"prompt": [1, 2, -5]}, ["-5", "index 2"]),
    "invalid UTF-8": ({"prompt": b"caf\xe9 au lait"}, ["text_input", "UTF-8", "byte 3"]),
    "invalid UTF-8 in the settings": (
        {"prompt": PROMPT, "raw_json": b"{\xff}"},
        ["sampling_parameters", "UTF-8", "byte 1"],
    ),
    "max_tokens 0 as tensor": ({"prompt": PROMPT, "max_tokens": 0}, ["max_tokens is 0", "at least 1"]),
    "max_tokens -3 as tensor": ({"prompt": PROMPT, "max_tokens": -3}, ["max_tokens is -3", "at least 1"]),
    "max_tokens 0": ({"prompt": PROMPT, "sampling": {"max_tokens": 0}}, ["max_tokens is 0", "at least 1"]),
    "max_tokens -1": ({"prompt": PROMPT, "parameters": {"max_tokens": -1}}, ["max_tokens is -1", "at least 1"]),
    "max_tokens as a word": (
        {"prompt": PROMPT, "sampling": {"max_tokens": "many"}},
        ["max_tokens", "many", "at least 1"],
    ),
    "unknown key": ({"prompt": PROMPT, "sampling": {"temprature": 1}}, ["temprature", "temperature"]),
    "NaN in JSON": ({"prompt": PROMPT, "sampling": {"temperature": float("nan")}}, ["sampling_parameters", "NaN"]),
    "NaN as text": ({"prompt": PROMPT, "sampling": {"temperature": "NaN"}}, ["temperature", "NaN", "finite"]),
    "NaN as parameter": (
        {"prompt": PROMPT, "parameters": {"temperature": float("nan")}},
        ["temperature", "NaN", "finite"],
    ),
    "infinite temperature": (
        {"prompt": PROMPT, "parameters": {"temperature": float("inf")}},
        ["temperature", "inf", "finite"],
    ),
    "negative temperature": (
        {"prompt": PROMPT, "sampling": {"temperature": -0.5}},
        ["temperature is -0.5", "at least 0"],
    ),
    "JSON list": ({"prompt": PROMPT, "sampling": "[1, 2]"}, ["sampling_parameters", "a list", "object"]),
    "JSON number": ({"prompt": PROMPT, "sampling": "3"}, ["sampling_parameters", "a number", "object"]),
    "JSON null": ({"prompt": PROMPT, "sampling": "null"}, ["sampling_parameters", "null", "object"]),
    "no JSON": ({"prompt": PROMPT, "sampling": "{max_tokens: 3"}, ["sampling_parameters", "not valid JSON"]),
    "empty JSON": ({"prompt": PROMPT, "sampling": ""}, ["sampling_parameters", "not valid JSON"]),
    "unknown profile": ({"prompt": PROMPT, "sampling": {"profile": "cookery"}}, ["profile", "cookery", "default"]),
    "unknown policy": ({"prompt": PROMPT, "sampling": {"policy": "yolo"}}, ["policy", "yolo", "lossless"]),
    "unknown detector": ({"prompt": PROMPT, "sampling": {"detector": "nose"}}, ["detector", "nose", "margin"]),
    "NaN threshold": ({"prompt": PROMPT, "parameters": {"threshold": float("nan")}}, ["threshold", "NaN"]),
    "window 0": ({"prompt": PROMPT, "sampling": {"window": 0}}, ["window is 0", "from 1"]),
    "top_p 0": ({"prompt": PROMPT, "sampling": {"top_p": 0}}, ["top_p is 0", "above 0"]),
    "top_p 2": ({"prompt": PROMPT, "sampling": {"top_p": 2}}, ["top_p is 2", "at most 1"]),
    "top_k -2": ({"prompt": PROMPT, "sampling": {"top_k": -2}}, ["top_k is -2", "-1"]),
    "logprobs 21": ({"prompt": PROMPT, "sampling": {"logprobs": 21}}, ["logprobs is 21", "20"]),
    "n 2": ({"prompt": PROMPT, "sampling": {"n": 2}}, ["n = 2", "1"]),
    "logit_bias list": ({"prompt": PROMPT, "sampling": {"logit_bias": [1]}}, ["logit_bias", "[1]", "object"]),
    "logit_bias of an unknown token": (
        {"prompt": PROMPT, "sampling": {"logit_bias": {"99999": 1}}},
        ["logit_bias", "99999"],
    ),
    "empty stop": ({"prompt": PROMPT, "sampling": {"stop": [""]}}, ["stop", "1 to"]),
    "negative seed": ({"prompt": PROMPT, "sampling": {"seed": -1}}, ["seed is -1", "from 0"]),
    "chat with token ids": ({"prompt": [1, 2], "sampling": {"chat": True}}, ["chat"]),
}


def raw(name: str, array: np.ndarray, datatype: str) -> triton.InferInput:
    made = triton.InferInput(name, list(array.shape), datatype)
    made.set_data_from_numpy(array)
    return made


def with_raw_json(asked: dict, batched: bool) -> dict:
    """A `sampling_parameters` tensor of bytes that are not text."""
    asked = dict(asked)
    if (bytes_ := asked.pop("raw_json", None)) is not None:
        array = np.array([bytes_], dtype=np.object_)
        asked["raw"] = [raw("sampling_parameters", array[np.newaxis] if batched else array, "BYTES")]
    return asked


@pytest.fixture(scope="module")
def undisturbed(server):
    """What the neighbour says when nobody sends nonsense."""
    return ask(server, INFLIGHT, PROMPT, sampling=NEIGHBOUR, stream=True, return_rewind=True).trace


@pytest.mark.parametrize("case", BAD_REQUESTS)
def test_bad_request(server, model, undisturbed, case):
    asked, parts = BAD_REQUESTS[case]
    neighbour = Call(server, model, PROMPT, sampling=NEIGHBOUR, stream=True, return_rewind=True)
    error = ask_error(server, model, **with_raw_json(asked, server.is_batched(model)))
    for part in parts:
        assert part in error, f"{error!r} lacks {part!r}"
    assert len(error) < 500, "an error is a sentence, not a dump"
    assert neighbour.wait().trace == undisturbed


@pytest.mark.parametrize(
    "case", ["two texts", "wrong type", "wrong type of flag", "unknown input", "two of max_tokens"]
)
def test_wrong_tensors(server, undisturbed, case):
    text = np.array([PROMPT.encode()], dtype=np.object_)
    tensors, parts = {
        "two texts": ([raw("text_input", np.array([b"a", b"b"], dtype=np.object_), "BYTES")], ["text_input", "[1]"]),
        "wrong type": ([raw("text_input", np.array([1], dtype=np.int32), "INT32")], ["text_input", "INT32"]),
        "wrong type of flag": (
            [raw("text_input", text, "BYTES"), raw("stream", np.array([1], dtype=np.int32), "INT32")],
            ["stream", "BOOL"],
        ),
        "unknown input": (
            [raw("text_input", text, "BYTES"), raw("temperature", np.array([1], dtype=np.float32), "FP32")],
            ["temperature"],
        ),
        "two of max_tokens": (
            [raw("text_input", text, "BYTES"), raw("max_tokens", np.array([1, 2], dtype=np.int32), "INT32")],
            ["max_tokens"],
        ),
    }[case]
    neighbour = Call(server, INFLIGHT, PROMPT, sampling=NEIGHBOUR, stream=True, return_rewind=True)
    error = ask_error(server, INFLIGHT, raw=tensors)
    for part in parts:
        assert part in error, f"{error!r} lacks {part!r}"
    assert neighbour.wait().trace == undisturbed


def test_a_string_that_lies_about_its_length(server, model):
    made = triton.InferInput("text_input", [1, 1] if server.is_batched(model) else [1], "BYTES")
    made._raw_content = b"\xff\xff\xff\x7fHello"
    assert "text_input" in ask_error(server, model, raw=[made])


def test_a_batch_is_refused_where_one_answer_is_streamed(server):
    array = np.array([[b"one"], [b"two"]], dtype=np.object_)
    assert ask_error(server, ITERATIVE, raw=[raw("text_input", array, "BYTES")])


def test_a_prompt_of_ten_megabytes(server, model, undisturbed):
    neighbour = Call(server, model, PROMPT, sampling=NEIGHBOUR, stream=True, return_rewind=True)
    prompt = "many words " * (10 * 1024 * 1024 // 11)
    started = time.monotonic()
    error = ask_error(server, model, prompt)
    assert time.monotonic() - started < 5, "it is judged by its bytes, not tokenized"
    assert str(len(prompt)) in error and "bytes" in error and "at most" in error
    answer = server.generate(model, text_input=prompt)
    assert answer.status_code == 400 and "bytes" in answer.json()["error"]
    assert neighbour.wait().trace == undisturbed


def test_a_prompt_of_too_many_tokens(server, model, undisturbed):
    neighbour = Call(server, model, PROMPT, sampling=NEIGHBOUR, stream=True, return_rewind=True)
    # Few enough bytes to be tokenized, too many tokens to be run.
    error = ask_error(server, model, [1000] * 100_000)
    assert "100000 tokens" in error and "at most" in error
    assert neighbour.wait().trace == undisturbed


def test_a_huge_max_tokens_is_capped(server, model):
    sampling = {"temperature": 0, "policy": "shadow", "chat": True}
    for huge in ({"max_tokens": 2**31 - 1}, {"sampling": {**sampling, "max_tokens": 10**12}}):
        options = {"sampling": sampling, **huge}
        answer = ask(server, model, "What is 2 + 2?", return_finish_reason=True, **options)
        assert answer.finish_reason == "stop" and "4" in answer.text


def test_infer_without_a_stream_is_refused_by_triton(server):
    text = raw("text_input", np.array([b"Hi"], dtype=np.object_), "BYTES")
    with pytest.raises(Exception, match="decoupled"):
        server.control.infer(INFLIGHT, [text])


CORRUPT = {
    "missing": (None, ["does not exist"]),
    "empty": (b"", ["is empty"]),
    "garbage": (b"This is not a model.\n" * 100, ["GGUF"]),
}


@pytest.mark.parametrize("case", [*CORRUPT, "truncated", "header only"])
def test_a_model_file_that_cannot_be_loaded(server, repository, weights, tmp_path, case):
    if case == "truncated":
        content, parts = weights.read_bytes()[: 40 * 1024 * 1024], ["blk.", "the file ends at 41943040"]
    elif case == "header only":
        content, parts = weights.read_bytes()[:200], ["the file ends at 200"]
    else:
        content, parts = CORRUPT[case]
    broken = tmp_path / "missing.gguf" if content is None else content
    name = repository.add("broken", weights=broken)
    error = server.load_error(name)
    for part in ["model.gguf", *parts]:
        assert part in error, f"{error!r} lacks {part!r}"
    assert ask(server, INFLIGHT, PROMPT, sampling={"max_tokens": 1, "temperature": 0}).text


BAD_CONFIGS = {
    "unknown key": ({"polici": "step"}, ["polici", "did you mean", "policy"]),
    "no model": ({"model": ""}, ["model"]),
    "unknown policy": ({"policy": "careful"}, ["policy", "careful", "lossless"]),
    "unknown draft": ({"draft": "int3"}, ["draft", "int3", "int4-g32"]),
    "a plan without a file": ({"draft": "plan:"}, ["draft", "plan:", "int4-g32"]),
    "unknown profile": ({"profile": "cookery"}, ["profile", "cookery", "default"]),
    "missing profile": ({"profile": "cookery.toml"}, ["profile", "cookery.toml"]),
    "window 0": ({"window": "0"}, ["window", '"0"', "from 1"]),
    "threads": ({"threads": "none"}, ["threads", "none", "from 1"]),
    "kv_memory": ({"kv_memory": "much"}, ["kv_memory", "much", "2GiB"]),
    "kv_memory too small": ({"kv_memory": "1"}, ["kv_memory"]),
    "prefill": ({"policy": "lossless", "prefill": "draft"}, ["prefill", "draft", "full"]),
    # No machine has that many.
    "cuda": ({"device": "cuda:4000"}, ["device", "cuda:4000", "cannot be used", "cpu"]),
    "two GPUs": ({"device": "cuda:0,1"}, ["device", "cuda:0,1", "yet"]),
    "shadow placement": ({"shadow_placement": "disk"}, ["shadow_placement", "disk", "gpu or host"]),
    "strange device": ({"device": "toaster"}, ["device", "toaster", "cpu"]),
    "too long": ({"max_sequence_length": "100000000"}, ["max_sequence_length", "100000000"]),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_bad_config(server, repository, case):
    parameters, parts = BAD_CONFIGS[case]

    def change(config):
        for key, value in parameters.items():
            config.parameters[key].string_value = value

    name = repository.add("misconfigured")
    repository.rewrite(name, change)
    error = server.load_error(name)
    for part in parts:
        assert part in error, f"{error!r} lacks {part!r}"
    assert server.state(name)[0] != "READY"


def test_a_batching_config_that_no_driver_serves(server, repository):
    def batch(config, _folder):
        config.max_batch_size = 4

    name = repository.add("batching", edit=batch)
    error = server.load_error(name)
    assert "max_batch_size" in error and "iterative_sequence" in error


def test_a_missing_model_folder_is_named(server, repository):
    def move(config):
        config.parameters["model"].string_value = "elsewhere/model.gguf"

    name = repository.add("moved")
    repository.rewrite(name, move)
    assert "elsewhere/model.gguf" in server.load_error(name)


def test_json_of_every_shape_never_hurts(server, undisturbed):
    """Nested, long and odd settings: errors or answers, never a dead server."""
    shapes = [
        json.dumps({"stop": ["x"] * 10_000}),
        json.dumps({"stop": "y" * 1_000_000}),
        json.dumps({"logit_bias": {str(i): 1 for i in range(49_152)}}),
        "[" * 10_000,
        '{"a":' * 5_000,
        json.dumps({"max_tokens": {"deep": [1, {"er": None}]}}),
        '{"max_tokens": 1e400}',
        '{"seed": 99999999999999999999999999}',
        '{"stop_token_ids": ["a"]}',
        '{"temperature": true}',
    ]
    calls = [Call(server, INFLIGHT, PROMPT, sampling=shape, max_tokens=1) for shape in shapes]
    outcomes = [call.wait() for call in calls]
    assert sum(outcome.error is not None for outcome in outcomes) >= 8
    assert all(len(outcome.error or "") < 500 for outcome in outcomes)
    assert ask(server, INFLIGHT, PROMPT, sampling=NEIGHBOUR, stream=True, return_rewind=True).trace == undisturbed
