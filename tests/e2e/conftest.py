"""One server for the whole run, with both shipped models; other models are loaded into it where a test needs one."""

from collections.abc import Iterator

import pytest

from harness.call import Call
from harness.repository import INFLIGHT, ITERATIVE, Repository
from harness.server import Server


@pytest.fixture(scope="session")
def repository(tmp_path_factory, shipped_models, weights) -> Repository:
    repository = Repository(tmp_path_factory.mktemp("models"), shipped_models, weights)
    for model in (INFLIGHT, ITERATIVE):
        repository.add(model, base=model)
    return repository


@pytest.fixture(scope="session")
def server(tmp_path_factory, server_binary, backend_directory, repository) -> Iterator[Server]:
    log = tmp_path_factory.mktemp("log") / "tritonserver.log"
    with Server(server_binary, backend_directory, repository.folder, log, [INFLIGHT, ITERATIVE]) as server:
        yield server


@pytest.fixture(params=[INFLIGHT, ITERATIVE])
def model(request) -> str:
    """Both drivers."""
    return request.param


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item, call):
    """Adds what the server said during a test to the report of its failure."""
    report = yield
    server = item.funcargs.get("server") if hasattr(item, "funcargs") else None
    if report.failed and server is not None:
        report.sections.append(("tritonserver", server.tail(item.stash.get(_LOG_START, 0))))
    return report


_LOG_START = pytest.StashKey[int]()


@pytest.fixture(autouse=True)
def _watch(request):
    if "server" in request.fixturenames:
        request.node.stash[_LOG_START] = request.getfixturevalue("server").log.stat().st_size
    yield
    for call in list(Call.open):
        call.cancel()
    if "server" in request.fixturenames:
        assert request.getfixturevalue("server").is_alive(), "the server died"
