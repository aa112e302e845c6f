"""`lossless(n)` is `shadow`, the whole table: 50 prompts, greedy and sampled, each window, alone and in a batch of eight,
one thread and two, both drivers. Long: `cargo xtask bench lossless` runs it.
"""

import itertools

import pytest

from harness.call import Call, ask
from harness.lossless import OUT, SAMPLINGS, essence
from harness.repository import INFLIGHT, ITERATIVE

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]

TOKENS = 16
BATCH = 8


@pytest.fixture(scope="module")
def shadow(server, prompts):
    """Answers of the shadow policy, each asked alone, of the shipped in-flight model."""
    return [
        [
            essence(
                ask(server, INFLIGHT, prompt, sampling={"policy": "shadow", "max_tokens": TOKENS, **sampling}, **OUT)
            )
            for prompt in prompts
        ]
        for sampling in SAMPLINGS
    ]


@pytest.fixture(
    scope="module",
    params=itertools.product([INFLIGHT, ITERATIVE], [1, 2]),
    ids=lambda param: f"{param[0]}-{param[1]}-threads",
)
def served(request, server, repository):
    """A driver with a number of threads."""
    driver, threads = request.param
    name = repository.add(f"{driver}_{threads}", base=driver, parameters={"threads": str(threads)})
    server.load(name)
    yield name
    server.unload(name)


@pytest.mark.parametrize("batch", [1, BATCH])
@pytest.mark.parametrize("window", [2, 4, 8])
def test_every_prompt(server, served, shadow, prompts, window, batch):
    rewinds = 0
    for sampling, expected in zip(SAMPLINGS, shadow, strict=True):
        asked = {"policy": "lossless", "window": window, "max_tokens": TOKENS, **sampling}
        for first in range(0, len(prompts), batch):
            numbers = range(first, min(first + batch, len(prompts)))
            calls = [(number, Call(server, served, prompts[number], sampling=asked, **OUT)) for number in numbers]
            for number, call in calls:
                answer = call.wait()
                assert essence(answer) == expected[number], (sampling, prompts[number])
                rewinds += answer.all("rewinds")[0]
    assert rewinds > 0, "the draft is never wrong: this shows nothing"
