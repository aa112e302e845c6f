"""Profiles of a folder, the detector that they bring, the prompt's own choice, and a rewind budget."""

import time

import pytest

from harness.call import Call, ask, ask_error
from harness.repository import INFLIGHT, ITERATIVE

PROMPT = "Water boils at a lower temperature on a mountain than at sea level because"
SAMPLING = {"temperature": 0, "max_tokens": 20, "ignore_eos": True}
OUT = {"return_rewind": True, "exclude_input_in_output": True}


def profile(name, base, mean):
    """Judges by the entropy through the fused detector; is for prompts of this mean entropy."""
    return f"""
version = 1
name = "{name}"
[detectors]
entropy = {{ base = 3.0, noise_floor = 0.1 }}
top1 = {{ base = 0.7, noise_floor = 0.1 }}
margin = {{ base = -0.3, noise_floor = 0.1 }}
fused = {{ base = {base}, noise_floor = 0.0, bias = 1.0, entropy = 2.0, varentropy = 0.0, ln_top1 = 0.0, margin = 0.0 }}
[prompt]
mean = {mean}
mean_deviation = 0.5
spread = 1.5
spread_deviation = 1.0
"""


@pytest.fixture(scope="module", params=[INFLIGHT, ITERATIVE])
def domains(request, server, repository):
    """A model whose requests can name `near` and `far`, of which the prompt is like the first."""

    def write(_config, folder):
        profiles = folder / "1" / "profiles"
        profiles.mkdir(parents=True)
        (profiles / "near.toml").write_text(profile("near", 5.0, 3.0))
        (profiles / "far.toml").write_text(profile("far", 50.0, 30.0))

    parameters = {"profiles": "profiles", "detector": "fused", "profile": "auto", "threads": "1"}
    # A name of its own for each: what inputs a model takes is asked once for a name.
    name = f"domains_of_{request.param}"
    repository.add(name, base=request.param, parameters=parameters, edit=write)
    server.load(name)
    yield name
    server.wait_idle(name)
    server.unload(name)


def test_the_fused_score_is_its_formula(server, domains):
    sampling = {**SAMPLING, "profile": "near", "policy": "step"}
    answer = ask(server, domains, PROMPT, sampling=sampling, **OUT)
    entropy, score = answer.all("entropy"), answer.all("score")
    assert score == pytest.approx([1 + 2 * value for value in entropy], rel=1e-6)
    assert set(answer.all("threshold")) == {5.0}
    assert answer.parameter("profile") == "near"
    suspects = [value > 5 for value in score]
    assert any(suspects[1:]) and not all(suspects[1:]), "nothing is shown"
    for suspect, decision in list(zip(suspects, answer.decisions))[1:]:
        assert (decision in ("verified", "rewound")) if suspect else decision == "draft"


@pytest.mark.parametrize("policy", ["observe", "step", "window", "lossless", "shadow"])
def test_the_prompt_chooses_as_if_it_had_named(server, domains, policy):
    sampling = {**SAMPLING, "policy": policy}
    named = ask(server, domains, PROMPT, sampling={**sampling, "profile": "near"}, **OUT)
    for more in ({}, {"profile": "auto"}):
        chosen = ask(server, domains, PROMPT, sampling={**sampling, **more}, **OUT)
        assert chosen.parameter("profile") == "near"
        assert chosen.trace == named.trace
        assert chosen.all("threshold") == named.all("threshold")


def test_the_choice_is_the_requests_own(server, domains):
    prompts = [PROMPT, "a", "def add(a, b):\n    return a + b\n\n\ndef multiply(a, b):\n" * 4]
    alone = [ask(server, domains, prompt, sampling=SAMPLING, **OUT) for prompt in prompts]
    calls = [Call(server, domains, prompt, sampling=SAMPLING, **OUT) for prompt in prompts]
    for call, expected in zip(calls, alone):
        answer = call.wait()
        assert answer.error is None
        assert answer.trace == expected.trace
        assert answer.parameter("profile") == expected.parameter("profile")


def test_profiles_that_cannot_do_what_is_asked(server, model, domains):
    error = ask_error(server, domains, PROMPT, sampling={"profile": "default"})
    assert '"default"' in error and "[detectors.fused]" in error and "rewind calibrate" in error
    error = ask_error(server, domains, PROMPT, sampling={"profile": "nearby"})
    assert "auto, default, far, near" in error and "nearby" in error
    # The shipped models have the built-in profile alone.
    error = ask_error(server, model, PROMPT, sampling={"profile": "auto"})
    assert "[prompt]" in error and "profiles" in error
    error = ask_error(server, model, PROMPT, sampling={"detector": "fused"})
    assert '"default"' in error and "[detectors.fused]" in error


def test_load_errors(server, repository):
    error = server.load_error(repository.add("no_fused", parameters={"detector": "fused"}))
    assert '"default"' in error and "[detectors.fused]" in error
    error = server.load_error(repository.add("no_auto", parameters={"profile": "auto"}))
    assert "[prompt]" in error
    error = server.load_error(repository.add("no_folder", parameters={"profiles": "nowhere"}))
    assert "nowhere" in error
    error = server.load_error(repository.add("no_share", parameters={"rewind_budget": "20"}))
    assert "rewind_budget" in error and "below 1" in error


@pytest.mark.parametrize("base", [INFLIGHT, ITERATIVE])
def test_a_budget_moves_the_threshold(server, repository, base):
    name = f"thrifty_{base}"
    repository.add(name, base=base, parameters={"rewind_budget": "0.9", "threads": "1"})
    server.load(name)
    try:
        sampling = {"temperature": 0, "max_tokens": 125, "ignore_eos": True, "policy": "step"}
        first = ask(server, name, PROMPT, sampling={**sampling, "max_tokens": 1}, **OUT)
        assert server.metrics().one("rewind_threshold_offset", model=name) == 0
        calls = [Call(server, name, PROMPT, sampling=sampling, **OUT) for _ in range(9)]
        answers = [call.wait() for call in calls]
        assert all(answer.error is None for answer in answers)
        threshold = {value for answer in answers for value in answer.all("threshold")}
        assert threshold == set(first.all("threshold")), "a request keeps its threshold"
        # Fewer rewinds than the budget has room for.
        assert sum(sum(answer.all("rewinds")) for answer in answers) < 0.8 * 9 * 125
        deadline = time.monotonic() + 5
        while server.metrics().one("rewind_threshold_offset", model=name) == 0:
            assert time.monotonic() < deadline, "the offset never moved"
            time.sleep(0.1)
        offset = server.metrics().one("rewind_threshold_offset", model=name)
        later = ask(server, name, PROMPT, sampling=sampling, **OUT)
        assert offset < 0
        # The default profile's noise floor for the entropy.
        assert later.all("threshold")[0] == pytest.approx(first.all("threshold")[0] + 0.15 * offset, abs=1e-5)
    finally:
        server.wait_idle(name)
        server.unload(name)


def test_without_a_budget_there_is_no_offset(server, model):
    ask(server, model, PROMPT, sampling=SAMPLING)
    assert server.metrics().find("rewind_threshold_offset", model=model) == []
