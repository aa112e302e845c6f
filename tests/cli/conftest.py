"""The command line under test."""

import json
import subprocess
from collections.abc import Callable

import pytest


@pytest.fixture(scope="session")
def rewind(cli) -> Callable[..., subprocess.CompletedProcess]:
    """Runs `rewind` with these arguments; it must succeed unless `fails`."""

    def run(*arguments: object, fails: bool = False) -> subprocess.CompletedProcess:
        command = [str(cli), *map(str, arguments)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=140)
        assert (done.returncode != 0) is fails, f"{command}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture(scope="session")
def rewind_json(rewind) -> Callable[..., dict]:
    """The JSON that `rewind … --json` prints."""
    return lambda *arguments: json.loads(rewind(*arguments, "--json").stdout)
