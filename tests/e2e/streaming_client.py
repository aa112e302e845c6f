"""A client in a process of its own, to be killed: streams one long answer and prints a line for each response.

python streaming_client.py HOST:PORT MODEL BATCHED
"""

import json
import sys
import threading

import numpy as np
import tritonclient.grpc as triton


def main():
    address, model, batched = sys.argv[1:]
    shape = [1, 1] if batched == "batched" else [1]

    def tensor(name, value, kind, datatype):
        made = triton.InferInput(name, shape, datatype)
        made.set_data_from_numpy(np.array([value], dtype=kind).reshape(shape))
        return made

    over = threading.Event()

    def receive(result, error):
        print("error" if error else "response", flush=True)
        if error or result.get_response().parameters["triton_final_response"].bool_param:
            over.set()

    client = triton.InferenceServerClient(address)
    client.start_stream(receive)
    client.async_stream_infer(
        model,
        [
            tensor("text_input", b"Once upon a time", np.object_, "BYTES"),
            tensor("stream", True, np.bool_, "BOOL"),
            tensor("sampling_parameters", json.dumps({"max_tokens": 1000, "ignore_eos": True}), np.object_, "BYTES"),
        ],
        enable_empty_final_response=True,
    )
    over.wait()


main()
