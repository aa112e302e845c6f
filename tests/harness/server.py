"""One real tritonserver on loopback ports."""

import json
import re
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import requests
import tritonclient.grpc as triton
from tritonclient.utils import InferenceServerException

from harness.metrics import Metrics

READY_WITHIN = 120.0
STOPPED_WITHIN = 30.0


def _free_ports(count: int) -> list[int]:
    # All are held at once, so that no port comes twice.
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [listener.getsockname()[1] for listener in held]
    for listener in held:
        listener.close()
    return ports


class Server:
    """A server over a model repository, with explicit model control. Use as a context manager."""

    def __init__(self, binary: Path, backends: Path, repository: Path, log: Path, models: list[str]):
        self.log = log
        self.http, self.grpc, self.metrics_port = _free_ports(3)
        self.command = [
            str(binary),
            *("--model-repository", str(repository)),
            *("--backend-directory", str(backends)),
            *("--model-control-mode", "explicit"),
            *(f"--load-model={model}" for model in models),
            *("--http-address", "127.0.0.1", "--http-port", str(self.http)),
            *("--grpc-address", "127.0.0.1", "--grpc-port", str(self.grpc)),
            *("--metrics-address", "127.0.0.1", "--metrics-port", str(self.metrics_port)),
            *("--allow-gpu-metrics", "false"),
            # A request that is never answered shows as a stop that takes this long.
            *("--exit-timeout-secs", "15"),
        ]
        self.process: subprocess.Popen | None = None
        self.session = requests.Session()
        self.session.trust_env = False
        # A connection that is kept alive keeps a stopping server waiting until its time limit.
        self.session.headers["Connection"] = "close"
        self._batched: dict[str, bool] = {}

    def __enter__(self) -> "Server":
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def start(self):
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(self.command, stdout=log, stderr=subprocess.STDOUT)
        self.control = triton.InferenceServerClient(f"127.0.0.1:{self.grpc}")
        deadline = time.monotonic() + READY_WITHIN
        while True:
            assert self.process.poll() is None, f"the server stopped by itself:\n{self.tail()}"
            assert time.monotonic() < deadline, f"the server is not ready after {READY_WITHIN} s:\n{self.tail()}"
            try:
                if self.session.get(self.url("/v2/health/ready"), timeout=5).ok:
                    return
            except requests.ConnectionError:
                pass
            time.sleep(0.05)

    def stop(self) -> float:
        """Asks the server to stop and returns the seconds it took. It must end well and in time."""
        self.control.close()
        self.session.close()
        started = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            status = self.process.wait(STOPPED_WITHIN)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"the server did not stop within {STOPPED_WITHIN} s:\n{self.tail()}") from None
        assert status == 0, f"the server ended with status {status}:\n{self.tail()}"
        assert "panicked" not in self.log.read_text(errors="replace"), f"something panicked:\n{self.tail()}"
        return time.monotonic() - started

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.http}{path}"

    def tail(self, since: int = 0, lines: int = 80) -> str:
        """Last lines of the log, from byte `since` on."""
        text = self.log.read_bytes()[since:].decode(errors="replace")
        return "\n".join(text.splitlines()[-lines:])

    def is_alive(self) -> bool:
        return self.process.poll() is None and self.control.is_server_live()

    # Models.

    def load(self, model: str) -> float:
        """Loads a model and returns the seconds it took; raises with the server's message if it cannot."""
        started = time.monotonic()
        self.control.load_model(model, client_timeout=READY_WITHIN)
        return time.monotonic() - started

    def load_error(self, model: str) -> str:
        """Tries to load a model that cannot be loaded and returns the reason."""
        try:
            self.load(model)
        except InferenceServerException as error:
            return error.message()
        raise AssertionError(f"{model} was loaded")

    def unload(self, model: str, within: float = 5.0, meanwhile: Callable[[], None] = lambda: None) -> float:
        """Unloads a model, waits until it is gone, and returns the seconds that took.

        `meanwhile` runs once the unload was asked for. Triton's gRPC front end keeps a model as long as a stream is
        open that had an answer of it: what is in flight must be waited for in there.
        """
        started = time.monotonic()
        self.control.unload_model(model)
        meanwhile()
        while (state := self.state(model)) != ("UNAVAILABLE", "unloaded"):
            assert time.monotonic() - started < within, f"{model} is {state} {within} s after the unload"
            time.sleep(0.01)
        return time.monotonic() - started

    def state(self, model: str) -> tuple[str, str]:
        """State and reason of a model."""
        index = self.control.get_model_repository_index()
        found = [(entry.state, entry.reason) for entry in index.models if entry.name == model]
        return found[0] if found else ("UNKNOWN", "")

    def config(self, model: str):
        return self.control.get_model_config(model).config

    def is_batched(self, model: str) -> bool:
        """Whether tensors of this model have a batch dimension."""
        if model not in self._batched:
            self._batched[model] = self.config(model).max_batch_size > 0
        return self._batched[model]

    def statistics(self, model: str):
        """Triton's own statistics of a model."""
        (found,) = self.control.get_inference_statistics(model).model_stats
        return found

    # Metrics.

    def metrics(self) -> Metrics:
        answer = self.session.get(f"http://127.0.0.1:{self.metrics_port}/metrics", timeout=10)
        answer.raise_for_status()
        return Metrics.parse(answer.text)

    def wait_idle(self, model: str, within: float = 5.0) -> float:
        """Waits until no sequence and no KV page of a model is in use, and returns the seconds that took."""
        started = time.monotonic()
        while not (metrics := self.metrics()).is_idle(model):
            assert time.monotonic() - started < within, (
                f"{model} is not idle after {within} s: {metrics.kv(model, 'used')} pages in use, sequences "
                f"{metrics.find('rewind_sequences', model=model)}"
            )
            time.sleep(0.005)
        return time.monotonic() - started

    def wait_busy(self, model: str, within: float = 5.0) -> Metrics:
        """Waits until the metrics show a sequence of a model with pages; gauges lag by some tenths of a second."""
        started = time.monotonic()
        while not (metrics := self.metrics()).kv(model, "used"):
            assert time.monotonic() - started < within, f"no request of {model} reached the engine in {within} s"
            time.sleep(0.01)
        return metrics

    # The generate extension.

    def generate(self, model: str, headers: dict | None = None, **fields) -> requests.Response:
        url = self.url(f"/v2/models/{model}/generate")
        return self.session.post(url, json=fields, headers=headers, timeout=120)

    def generate_stream(self, model: str, **fields) -> list[dict]:
        """Events of a whole answer."""
        url = self.url(f"/v2/models/{model}/generate_stream")
        with self.session.post(url, json=fields, stream=True, timeout=120) as answer:
            return list(events(answer))


def events(answer: requests.Response):
    """Server-sent events of a response, as they come."""
    for line in answer.iter_lines():
        if line:
            found = re.match(rb"data: (.*)", line)
            assert found, f"not a server-sent event: {line!r}"
            yield json.loads(found[1])
