"""Where a model runs: the parameter `device`, the kinds of instances, and what happens without a GPU."""

import ctypes

import pytest

from harness.call import ask
from harness.repository import INFLIGHT

PROMPT = "The capital of France is"
GREEDY = {"temperature": 0, "max_tokens": 4}


def _has_gpu() -> bool:
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    count = ctypes.c_int()
    return driver.cuInit(0) == 0 and driver.cuDeviceGetCount(ctypes.byref(count)) == 0 and count.value > 0


without_gpu = pytest.mark.skipif(_has_gpu(), reason="this machine has a GPU")


def put(kind: str, *gpus: int, device: str | None = None):
    """An edit that puts the model's one instance there."""

    def edit(config, _folder):
        (group,) = config.instance_group
        group.kind = group.Kind.Value(kind)
        group.gpus.extend(gpus)
        if device:
            config.parameters["device"].string_value = device

    return edit


def load_log(server, name: str) -> str:
    """Loads a model, asks it for something, unloads it, and returns what the server said meanwhile."""
    since = server.log.stat().st_size
    server.load(name)
    assert ask(server, name, PROMPT, sampling=GREEDY).text
    server.unload(name)
    return server.tail(since, lines=400)


@without_gpu
def test_auto_serves_on_the_cpu_and_says_so_once(server, repository):
    told = load_log(server, repository.add("anywhere", parameters={"device": "auto"}))
    lines = [line for line in told.splitlines() if "serving on the CPU" in line]
    assert len(lines) == 1, told
    assert "no GPU: " in lines[0]
    # Why: no driver, no GPU, or a build without kernels.
    assert len(lines[0].split("no GPU: ")[1]) > len("; serving on the CPU"), lines[0]


@without_gpu
def test_a_gpu_that_is_not_there_is_a_load_error(server, repository):
    error = server.load_error(repository.add("on_a_gpu", parameters={"device": "cuda:0"}))
    assert "device cuda:0 cannot be used: " in error
    assert any(why in error for why in ("driver", "GPU kernels", "no GPU")), error
    assert ask(server, INFLIGHT, PROMPT, sampling=GREEDY).text


@pytest.mark.parametrize("kind", ["KIND_CPU", "KIND_MODEL"])
def test_the_cpu_by_name_asks_for_no_gpu(server, repository, kind):
    told = load_log(server, repository.add("on_the_cpu", edit=put(kind, device="cpu")))
    assert "device: cpu" in told and "no GPU" not in told


def test_kind_cpu_is_the_cpu(server, repository):
    told = load_log(server, repository.add("kind_cpu", edit=put("KIND_CPU")))
    assert "device: cpu" in told and "no GPU" not in told


def test_where_nothing_is_said_the_model_decides(server, repository):
    name = repository.add("undecided", edit=lambda config, _folder: config.ClearField("instance_group"))
    server.load(name)
    try:
        (group,) = server.config(name).instance_group
        assert (group.Kind.Name(group.kind), group.count) == ("KIND_MODEL", 1)
    finally:
        server.unload(name)


@without_gpu
@pytest.mark.parametrize("gpus", [(), (0,)])
def test_a_server_without_gpus_refuses_gpu_instances(server, repository, gpus):
    """The backend is not asked then."""
    error = server.load_error(repository.add("kind_gpu", edit=put("KIND_GPU", *gpus)))
    assert "instance group kind_gpu_0 of model kind_gpu" in error, error
    assert any(part in error for part in ("no GPUs are available", "unsupported gpu id", "does not support GPUs")), error


@without_gpu
def test_a_group_without_a_kind_is_on_the_cpu(server, repository):
    """Triton makes KIND_CPU of it where it sees no GPU."""
    told = load_log(server, repository.add("kind_auto", edit=put("KIND_AUTO")))
    assert "(KIND_CPU)" in told and "device: cpu" in told


def test_an_instance_that_moves_needs_a_reload(server, repository):
    """Triton applies a changed instance group to a loaded model; one that still fits is taken."""
    name = repository.add("moving", edit=put("KIND_MODEL", device="cpu"))
    server.load(name)
    try:
        repository.rewrite(name, lambda config: put("KIND_CPU")(config, None))
        server.load(name)
        assert ask(server, name, PROMPT, sampling=GREEDY).text
    finally:
        server.unload(name)
