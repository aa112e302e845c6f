"""`rewind generate` against the recordings, and its other commands."""

import json

import pytest


def generate(rewind_json, weights, golden, policy, *more):
    ids = ",".join(map(str, golden.prompt_ids))
    return rewind_json(
        "generate", "--model", weights, "--policy", policy, "--prompt-tokens", ids, "--max-tokens", 48, *more
    )


def test_shadow_says_what_llama_cpp_says(rewind_json, weights, greedy):
    """Every prompt of the recording; the server's test does the same through Triton."""
    agreed = 0
    for golden in greedy:
        answer = generate(rewind_json, weights, golden, "shadow", "--temperature", 0)
        agreed += golden.compare(answer["token_ids"])
    assert agreed >= sum(golden.binding for golden in greedy) > 400


def test_text_and_ids_are_the_same_prompt(rewind_json, weights, greedy):
    """The tokenizer, against llama.cpp's ids."""
    (golden,) = [entry for entry in greedy if entry.name == "white space"]
    common = ("generate", "--model", weights, "--policy", "shadow", "--temperature", 0, "--max-tokens", 4)
    by_text = rewind_json(*common, "--prompt", golden.prompt)
    by_ids = rewind_json(*common, "--prompt-tokens", ",".join(map(str, golden.prompt_ids)))
    assert by_text["token_ids"] == by_ids["token_ids"] and by_text["text"] == by_ids["text"]


def test_every_token_is_told(rewind_json, weights, greedy):
    (golden,) = [entry for entry in greedy if entry.name == "physics"]
    answer = generate(rewind_json, weights, golden, "step", "--temperature", 0)
    tokens = answer["tokens"]
    assert [token["id"] for token in tokens] == answer["token_ids"]
    # What is held back at the end belongs to no token.
    assert answer["text"].startswith("".join(token["text"] for token in tokens))
    for token in tokens:
        assert token["entropy"] >= 0 and token["decision"] in ("draft", "verified", "rewound")
        assert token["threshold"] == tokens[0]["threshold"]
    assert any(token["decision"] == "rewound" for token in tokens)


def test_lossless_is_the_shadow_on_any_number_of_threads(rewind_json, weights, greedy):
    (golden,) = [entry for entry in greedy if entry.name == "history"]

    def run(policy, threads):
        sampled = ("--temperature", 0.8, "--seed", 77, "--threads", threads)
        answer = generate(rewind_json, weights, golden, policy, *sampled)
        return {key: value for key, value in answer.items() if key != "timings"}

    shadow = run("shadow", 1)
    assert run("shadow", 2) == shadow
    lossless = run("lossless", 2)
    assert all(lossless[key] == shadow[key] for key in ("token_ids", "text", "finish_reason"))


def test_inspect(rewind, weights):
    told = rewind("inspect", "--model", weights).stdout
    for part in ("llama", "49152", "draft", "shadow", "Q4_1", "served on", "over the bus"):
        assert part.lower() in told.lower(), f"{part} is missing in:\n{told}"


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (("--policy", "yolo"), ["yolo", "lossless"]),
        (("--temperature", "nan"), ["temperature"]),
        (("--max-tokens", "0"), ["max-tokens", "0"]),
        (("--prompt", ""), ["prompt", "empty"]),
        (("--prompt-tokens", "1,frog"), ["frog"]),
        (("--prompt-tokens", "1,999999"), ["999999"]),
        (("--draft", "int3"), ["int3", "int4-g32"]),
    ],
)
def test_wrong_arguments_are_named(rewind, weights, arguments, parts):
    prompt = () if "--prompt" in arguments[0] else ("--prompt", "Hello")
    told = rewind("generate", "--model", weights, *prompt, *arguments, fails=True).stderr
    for part in parts:
        assert part in told, f"{told!r} lacks {part!r}"
    assert "panicked" not in told


def test_a_missing_model_is_named(rewind, tmp_path):
    told = rewind("inspect", "--model", tmp_path / "nothing.gguf", fails=True).stderr
    assert "nothing.gguf" in told


def test_json_is_one_object_on_standard_output(rewind, weights):
    done = rewind("generate", "--model", weights, "--prompt", "Hello", "--max-tokens", 2, "--json")
    assert set(json.loads(done.stdout)) >= {"token_ids", "text", "tokens"}
