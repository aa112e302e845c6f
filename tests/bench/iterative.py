"""A closed loop of streaming requests over one gRPC stream, with the official client.

perf_analyzer takes a model with `sequence_batching` for one whose sequences the client drives, which the iterative model
refuses; this client sends it what perf_analyzer sends to the in-flight model, from the same file (`--input-data`), and
writes what perf_analyzer writes (`--profile-export-file`): when each request was sent and each response came.

    python -m bench.iterative --url HOST:PORT --model NAME --requests FILE --concurrency N --count N --output FILE
"""

import argparse
import json
import sys
import threading
import time
from dataclasses import dataclass, field

import tritonclient.grpc as triton

from harness.call import TYPES, tensor


@dataclass
class Sent:
    """A request on its way."""

    place: int
    timestamp: int
    responses: list[int] = field(default_factory=list)


class Loop:
    """Keeps `concurrency` requests in flight until `count` were answered."""

    def __init__(self, client, model: str, entries: list[list], concurrency: int, count: int):
        self._client, self._model, self._entries = client, model, entries
        self._concurrency = concurrency
        # As perf_analyzer deals them out: place i of n sends entries i, i + n, i + 2n, …, each place as many.
        self._left = [count // concurrency + (place < count % concurrency) for place in range(concurrency)]
        self._next = list(range(concurrency))
        self._open: dict[str, Sent] = {}
        self._over = threading.Event()
        self._number = 0
        self.done: list[Sent] = []
        self.error: str | None = None

    def run(self):
        self._client.start_stream(self._receive)
        places = [place for place in range(self._concurrency) if self._left[place]]
        # Registered before any is sent: answers come on another thread.
        sendings = [self._prepare(place) for place in places]
        for sending in sendings:
            sending()
        self._over.wait()
        self._client.stop_stream(cancel_requests=self.error is not None)

    def _prepare(self, place: int):
        inputs = self._entries[self._next[place] % len(self._entries)]
        self._next[place] += self._concurrency
        self._left[place] -= 1
        self._number += 1
        request_id = str(self._number)
        sent = self._open[request_id] = Sent(place, 0)

        def send():
            sent.timestamp = time.time_ns()
            self._client.async_stream_infer(
                self._model, inputs, request_id=request_id, enable_empty_final_response=True
            )

        return send

    def _receive(self, result, error):
        now = time.time_ns()
        if error is not None:
            self.error = self.error or error.message()
            self._over.set()
            return
        response = result.get_response()
        sent = self._open[response.id]
        if response.outputs:
            sent.responses.append(now)
        if response.parameters["triton_final_response"].bool_param:
            self.done.append(self._open.pop(response.id))
            if self._left[sent.place]:
                self._prepare(sent.place)()
            elif not self._open:
                self._over.set()


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--requests", required=True, help="a file as perf_analyzer's --input-data")
    parser.add_argument("--concurrency", type=int, required=True)
    parser.add_argument("--count", type=int, required=True)
    parser.add_argument("--output", required=True)
    arguments = parser.parse_args()

    client = triton.InferenceServerClient(arguments.url)
    batched = client.get_model_config(arguments.model).config.max_batch_size > 0
    with open(arguments.requests, encoding="utf-8") as file:
        data = json.load(file)["data"]
    entries = [
        [tensor(name, values, batched) for name, values in entry.items() if name in TYPES] for entry in data
    ]
    loop = Loop(client, arguments.model, entries, arguments.concurrency, arguments.count)
    loop.run()
    client.close()
    if loop.error:
        sys.exit(f"a request failed: {loop.error}")
    requests = [{"timestamp": sent.timestamp, "response_timestamps": sent.responses} for sent in loop.done]
    with open(arguments.output, "w", encoding="utf-8") as file:
        json.dump({"experiments": [{"requests": requests}]}, file)


if __name__ == "__main__":
    main()
