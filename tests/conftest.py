"""What every test may ask for: the programs and files under test, and the golden data.

`cargo xtask test` names the things under test in the environment. Without them a test is skipped, and says so.
"""

import os
from pathlib import Path

import pytest

from harness import golden


def _setting(name: str, what: str) -> Path:
    value = os.environ.get(name)
    if not value:
        pytest.skip(f"{name} is not set ({what}): run the tests with `cargo xtask test`")
    path = Path(value)
    assert path.exists(), f"{name} names {value}, which does not exist"
    return path.resolve()


@pytest.fixture(scope="session")
def server_binary() -> Path:
    return _setting("REWIND_SERVER_BIN", "the tritonserver program")


@pytest.fixture(scope="session")
def backend_directory() -> Path:
    return _setting("REWIND_BACKEND_DIR", "the folder that holds rewind/libtriton_rewind.so")


@pytest.fixture(scope="session")
def weights() -> Path:
    return _setting("REWIND_MODEL", "the demo model's GGUF file")


@pytest.fixture(scope="session")
def shipped_models() -> Path:
    return _setting("REWIND_MODEL_REPOSITORY", "the project's model_repository")


@pytest.fixture(scope="session")
def cli() -> Path:
    return _setting("REWIND_CLI", "the rewind program")


@pytest.fixture(scope="session")
def cargo_target() -> Path:
    return _setting("REWIND_CARGO_TARGET", "cargo's build folder")


@pytest.fixture(scope="session")
def greedy() -> list[golden.Continuation]:
    return golden.continuations()


@pytest.fixture(scope="session")
def prompts() -> list[str]:
    """What the benches ask."""
    return (Path(__file__).parent / "data" / "prompts.txt").read_text(encoding="utf-8").splitlines()
