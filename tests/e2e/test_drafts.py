"""What the draft is stored in: formats of every kind, and plans with one for each layer."""

import pytest

from harness.call import ask
from harness.repository import INFLIGHT

PROMPT = "The capital of France is"
SAMPLING = {"temperature": 0, "max_tokens": 16, "ignore_eos": True}
LAYERS = 30
"""Of the demo model."""


def plan(layers):
    formats = ", ".join(f'"{name}"' for name in layers)
    return f'version = 1\nembedding = "int8-g32"\nhead = "int8-g32"\nlayers = [{formats}]\n'


def answers(server, name):
    """By the draft alone, and by the shadow through it."""
    told = [ask(server, name, PROMPT, sampling={**SAMPLING, "policy": policy}) for policy in ("off", "lossless")]
    return [answer.text for answer in told]


@pytest.fixture(scope="module")
def shadow(server):
    return ask(server, INFLIGHT, PROMPT, sampling={**SAMPLING, "policy": "shadow"}).text


# `stored` is what the demo model's file has.
STORED = "int4a-g32"


@pytest.mark.parametrize("draft", ["int6-g64", "int4a-g32", "nf4", "fp8", "stored"])
def test_every_kind_of_format_is_served(server, repository, shadow, draft):
    name = repository.add("drafted", parameters={"draft": draft, "threads": "1"})
    server.load(name)
    try:
        off, lossless = answers(server, name)
        assert off and lossless == shadow
        draft = STORED if draft == "stored" else draft
        assert f"draft: {draft} (embedding and head int8-g32)" in server.log.read_text(errors="replace")
        server.wait_idle(name)
    finally:
        server.unload(name)


def test_a_plan_is_served(server, repository, shadow):
    # Integers beside floats, which are multiplied in other ways.
    formats = ["int8"] * 4 + ["int4-g128"] * 20 + ["nf4"] * 5 + ["f16"]

    def write(_config, folder):
        (folder / "1").mkdir(exist_ok=True)
        (folder / "1" / "plan.toml").write_text(plan(formats))

    name = repository.add("planned", parameters={"draft": "plan:plan.toml", "threads": "1"}, edit=write)
    server.load(name)
    try:
        off, lossless = answers(server, name)
        assert off and lossless == shadow
        runs = "draft: 4 × int8, 20 × int4-g128, 5 × nf4, 1 × f16 (embedding and head int8-g32)"
        assert runs in server.log.read_text(errors="replace")
        server.wait_idle(name)
    finally:
        server.unload(name)


BAD_PLANS = {
    "missing": (None, ["plan.toml", "cannot read"]),
    "no TOML": ("layers = [", ["plan.toml", "not a valid plan"]),
    "of another version": ("version = 2\n", ["plan.toml", "version 2", "version 1"]),
    "without layers": (plan([]), ["plan.toml", "no layers"]),
    "unknown format": (plan(["int8"] * 7 + ["int5"]), ["plan.toml", "layers[7]", "int5", "int4-g32"]),
    "unknown key": (plan(["int8"] * LAYERS) + "heads = 3\n", ["plan.toml", "heads"]),
    "of another model": (plan(["int8"] * 12), ["plan.toml", "12 layers", "has 30"]),
    "endless": ("#" * (2 << 20), ["plan.toml", "at most"]),
    "no text": (b"\xff\xfe\x00", ["plan.toml"]),
}


@pytest.mark.parametrize("case", BAD_PLANS)
def test_a_plan_that_cannot_be_used(server, repository, case):
    content, parts = BAD_PLANS[case]

    def write(_config, folder):
        (folder / "1").mkdir(exist_ok=True)
        if content is not None:
            data = content.encode() if isinstance(content, str) else content
            (folder / "1" / "plan.toml").write_bytes(data)

    name = repository.add("misplanned", parameters={"draft": "plan:plan.toml"}, edit=write)
    error = server.load_error(name)
    for part in parts:
        assert part in error, f"{error!r} lacks {part!r}"
