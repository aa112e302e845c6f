"""A quantized folder of the demo model: made, interrupted, finished, and read by the other commands."""

import subprocess
import time

import pytest

from harness import golden


@pytest.fixture(scope="module")
def rtn(rewind_json, weights, tmp_path_factory):
    """The demo model, each weight to the nearest code."""
    out = tmp_path_factory.mktemp("quantized") / "rtn"
    told = rewind_json("quantize", "--model", weights, "--method", "rtn", "--draft", "int4-g32", "--out", out)
    assert told["seconds"] < 60
    assert told["peak_memory"] < 3e9
    return out


def perplexity(rewind_json, model, what, *more):
    text = ["--text", golden.TEXT, "--context", 128, "--chunks", 6]
    return rewind_json("perplexity", "--model", model, "--weights", what, *text, *more)


def test_rounding_is_what_loading_does(rewind_json, weights, rtn):
    stored = perplexity(rewind_json, rtn, "stored")
    at_load = perplexity(rewind_json, weights, "int4-g32")
    assert stored["nll"] == at_load["nll"]
    assert stored["identity"] == at_load["identity"]


def test_inspect_tells_the_formats(rewind_json, rtn):
    told = rewind_json("inspect", "--model", rtn, "--draft", "stored", "--device", "cpu")
    assert told["container"] == "Hugging Face"
    assert told["drafts"][0]["format"] == "stored (int4-g32 and int8-g32)"
    assert told["chat_template"]
    assert told["eos"] == [0, 2] and told["bos"] == 1


def test_lossless_with_a_stored_draft_is_the_shadow(rewind_json, weights, rtn, greedy):
    golden = greedy[0]
    fixed = ["--prompt", golden.prompt, "--max-tokens", 24, "--temperature", 0]
    pair = ["generate", "--model", rtn, "--draft", "stored", "--shadow", weights, "--policy", "lossless"]
    shadow = rewind_json("generate", "--model", weights, "--policy", "shadow", *fixed)
    assert rewind_json(*pair, *fixed)["token_ids"] == shadow["token_ids"]


def test_a_killed_run_goes_on(cli, rewind_json, weights, rtn, tmp_path):
    """Another process finishes what a killed one began, in the same bytes."""
    out = tmp_path / "killed"
    command = ["quantize", "--model", weights, "--method", "rtn", "--draft", "int4-g32", "--out", out]
    process = subprocess.Popen([str(cli), *map(str, command)], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        begun = time.monotonic()
        while not (out / ".parts" / "layer-002.safetensors").exists():
            assert process.poll() is None, "it ended before it could be killed"
            assert time.monotonic() - begun < 60
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert not (out / "manifest.json").exists()
    rewind_json(*command, "--threads", 1)
    for name in ["model.safetensors", "manifest.json", "config.json", "tokenizer.json", "chat_template.jinja"]:
        assert (out / name).read_bytes() == (rtn / name).read_bytes(), name
    assert not (out / ".parts").exists()


def test_what_is_there_stays(rewind, weights, rtn):
    before = (rtn / "manifest.json").read_bytes()
    told = rewind("quantize", "--model", weights, "--method", "rtn", "--out", rtn, fails=True).stderr
    assert "exists and is no unfinished run" in told
    assert (rtn / "manifest.json").read_bytes() == before
