"""One request over gRPC streaming, with the official client, and all that came back."""

import json
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import tritonclient.grpc as triton

from harness.server import Server

TYPES = {
    "text_input": "BYTES",
    "input_ids": "INT32",
    "stream": "BOOL",
    "sampling_parameters": "BYTES",
    "exclude_input_in_output": "BOOL",
    "max_tokens": "INT32",
    "stop_words": "BYTES",
    "return_finish_reason": "BOOL",
    "return_logprobs": "BOOL",
    "return_num_input_tokens": "BOOL",
    "return_num_output_tokens": "BOOL",
    "return_rewind": "BOOL",
}
"""Inputs of the contract, all of them."""

_NUMPY = {"BYTES": np.object_, "INT32": np.int32, "BOOL": np.bool_}

Scalar = str | bytes | int | bool


def tensor(name: str, value: Scalar | Sequence, batched: bool) -> triton.InferInput:
    values = [value] if isinstance(value, Scalar) else list(value)
    values = [item.encode() if isinstance(item, str) else item for item in values]
    array = np.array(values, dtype=_NUMPY[TYPES[name]])
    if batched:
        array = array[np.newaxis, :]
    made = triton.InferInput(name, list(array.shape), TYPES[name])
    made.set_data_from_numpy(array)
    return made


@dataclass
class Response:
    """One response: its tensors, flattened, and its parameters."""

    outputs: dict[str, list]
    parameters: dict[str, object]
    at: float


@dataclass
class Answer:
    """Everything that one request brought."""

    responses: list[Response] = field(default_factory=list)
    error: str | None = None
    finals: int = 0

    @property
    def deltas(self) -> list[str]:
        """The text of each response that has any. Strict: text that is not UTF-8 fails here."""
        texts = [response.outputs["text_output"] for response in self.responses if "text_output" in response.outputs]
        return [b"".join(text).decode() for text in texts]

    @property
    def text(self) -> str:
        return "".join(self.deltas)

    def all(self, name: str) -> list:
        """Elements of an output over all responses."""
        return [item for response in self.responses for item in response.outputs.get(name, [])]

    @property
    def ids(self) -> list[int]:
        return self.all("token_ids")

    @property
    def decisions(self) -> list[str]:
        return [decision.decode() for decision in self.all("decision")]

    @property
    def finish_reason(self) -> str:
        return self.all("finish_reason")[-1].decode()

    def parameter(self, name: str):
        """A response parameter that every response that has it agrees on; None without any."""
        found = {response.parameters[name] for response in self.responses if name in response.parameters}
        assert len(found) <= 1, f"{name} changes between responses: {found}"
        return found.pop() if found else None

    @property
    def trace(self) -> tuple:
        """All that must not depend on neighbours, bit by bit."""
        floats = [np.array(self.all(name), np.float32).tobytes() for name in ("entropy", "score", "threshold")]
        return (self.ids, self.text, self.decisions, self.all("rewinds"), *floats)


class Call:
    """A request on a stream of its own.

    `tensors` become input tensors, `sampling` the JSON of `sampling_parameters` (a string is sent as it stands),
    `parameters` Triton request parameters. `raw` are ready-made tensors, for requests that are wrong on purpose.
    """

    open: ClassVar[set["Call"]] = set()
    """Those that were neither awaited nor cancelled yet; a test that fails leaves some."""

    def __init__(
        self,
        server: Server,
        model: str,
        prompt: str | bytes | Sequence[int] | None = None,
        *,
        sampling: Mapping | str | None = None,
        parameters: Mapping | None = None,
        raw: Sequence[triton.InferInput] = (),
        request_id: str = "",
        sequence: tuple[int, bool, bool] = (0, False, False),
        **tensors,
    ):
        if prompt is not None:
            tensors["text_input" if isinstance(prompt, str | bytes) else "input_ids"] = prompt
        if sampling is not None:
            tensors["sampling_parameters"] = sampling if isinstance(sampling, str) else json.dumps(sampling)
        batched = server.is_batched(model)
        inputs = [tensor(name, value, batched) for name, value in tensors.items()]
        self.answer = Answer()
        self._changed = threading.Condition()
        self._over = False
        self._client = triton.InferenceServerClient(f"127.0.0.1:{server.grpc}")
        self._client.start_stream(self._receive)
        self.open.add(self)
        sequence_id, start, end = sequence
        self._client.async_stream_infer(
            model,
            [*inputs, *raw],
            request_id=request_id,
            parameters=dict(parameters or {}),
            sequence_id=sequence_id,
            sequence_start=start,
            sequence_end=end,
            enable_empty_final_response=True,
        )

    def _receive(self, result, error):
        with self._changed:
            if error is not None:
                # The stream itself ends with an error too when it is cancelled: the first one counts.
                self.answer.error = self.answer.error or error.message()
                self._over = True
            else:
                response = result.get_response()
                parameters = {
                    name: getattr(value, value.WhichOneof("parameter_choice"))
                    for name, value in response.parameters.items()
                }
                if parameters.pop("triton_final_response", False):
                    self.answer.finals += 1
                    self._over = True
                outputs = {out.name: result.as_numpy(out.name).ravel().tolist() for out in response.outputs}
                if outputs:
                    self.answer.responses.append(Response(outputs, parameters, time.monotonic()))
            self._changed.notify_all()

    def wait_for(self, responses: int, within: float = 30.0) -> Answer:
        """Waits for this many responses, or the end."""
        with self._changed:
            done = self._changed.wait_for(lambda: self._over or len(self.answer.responses) >= responses, within)
        assert done, f"{len(self.answer.responses)} of {responses} responses after {within} s"
        return self.answer

    def wait(self, within: float = 90.0) -> Answer:
        """Waits for the end."""
        with self._changed:
            done = self._changed.wait_for(lambda: self._over, within)
        if not done:
            self.cancel()
        assert done, f"no final response after {within} s: {len(self.answer.responses)} responses so far"
        self.open.discard(self)
        self._client.stop_stream()
        self._client.close()
        assert self.answer.error or self.answer.finals == 1, f"{self.answer.finals} final responses"
        return self.answer

    def cancel(self):
        """Cancels the stream, as a client does that has heard enough."""
        self.open.discard(self)
        self._client.stop_stream(cancel_requests=True)
        self._client.close()


def ask(server: Server, model: str, prompt=None, **rest) -> Answer:
    """The whole answer to a request that must succeed."""
    answer = Call(server, model, prompt, **rest).wait()
    assert answer.error is None, answer.error
    return answer


def ask_error(server: Server, model: str, prompt=None, **rest) -> str:
    """The error of a request that must fail."""
    answer = Call(server, model, prompt, **rest).wait(20)
    assert answer.error is not None, f"answered {answer.text!r}"
    assert not answer.responses, f"an error after {len(answer.responses)} responses: {answer.error}"
    return answer.error
