"""The shadow through the whole stack, against the tokens that llama.cpp chose."""

from harness.call import Call
from harness.repository import INFLIGHT, ITERATIVE

SAMPLING = {"temperature": 0, "max_tokens": 48, "policy": "shadow"}


def test_shadow_says_what_llama_cpp_says(server, greedy):
    """All prompts at once, half by text and half by ids, so that batches mix."""
    calls = []
    for index, golden in enumerate(greedy):
        by_text = index % 2 == 0 and "<|" not in golden.prompt
        prompt = golden.prompt if by_text else golden.prompt_ids
        calls.append(Call(server, INFLIGHT, prompt, sampling=SAMPLING, return_rewind=True))
    agreed = 0
    for golden, call in zip(greedy, calls):
        answer = call.wait()
        assert answer.error is None, f"{golden.name}: {answer.error}"
        assert set(answer.decisions) == {"shadow"}
        agreed += golden.compare(answer.ids)
    assert agreed >= sum(golden.binding for golden in greedy) > 400


def test_the_iterative_driver_says_it_too(server, greedy):
    some = [golden for golden in greedy if golden.name in ("json", "physics", "arithmetic")]
    calls = [Call(server, ITERATIVE, golden.prompt_ids, sampling=SAMPLING, return_rewind=True) for golden in some]
    for golden, call in zip(some, calls):
        assert golden.compare(call.wait().ids) >= golden.binding
