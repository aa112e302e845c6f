"""Makes the weights that llama.cpp is measured with: those of Rewind's shadow, in llama.cpp's own formats.

Rewind's shadow of a quantized GGUF file is its exact 16-bit dequantization. So llama.cpp's quantizer first makes an F16
file of it, which holds the same numbers, and then the others from that one, with its defaults.

Writes NAME.gguf for every format into the folder, and `files.json`: what each holds, and what of it a token reads.
"""

import argparse
import ctypes
import json
from collections import Counter
from pathlib import Path

from gguf import GGUFReader
from llama_cpp import llama_cpp as llama

# The first is made from the checkpoint, every other from the first.
FORMATS = {
    "F16": llama.LLAMA_FTYPE_MOSTLY_F16,
    "BF16": llama.LLAMA_FTYPE_MOSTLY_BF16,
    "Q8_0": llama.LLAMA_FTYPE_MOSTLY_Q8_0,
    "Q4_0": llama.LLAMA_FTYPE_MOSTLY_Q4_0,
}


def quantize(source: Path, target: Path, kind: int, threads: int):
    parameters = llama.llama_model_quantize_default_params()
    parameters.ftype = kind
    parameters.allow_requantize = True
    parameters.nthread = threads
    status = llama.llama_model_quantize(str(source).encode(), str(target).encode(), ctypes.byref(parameters))
    assert status == 0, f"llama.cpp could not write {target.name}"


def contents(path: Path) -> dict:
    """Bytes that one decode step reads of the weights, and how many of them the head takes.

    A tied embedding is the head, and read as a whole; another one is looked up row by row, which is next to nothing.
    """
    tensors = {tensor.name: tensor for tensor in GGUFReader(path).tensors}
    tied = "output.weight" not in tensors
    head = tensors["token_embd.weight" if tied else "output.weight"]
    read = [tensor for name, tensor in tensors.items() if tied or name != "token_embd.weight"]
    types = Counter()
    for tensor in read:
        types[tensor.tensor_type.name] += int(tensor.n_bytes)
    return {
        "bytes_per_token": sum(types.values()),
        "bytes_by_type": dict(types.most_common()),
        "head_bytes": int(head.n_bytes),
        "head_weights": int(head.n_elements),
        "head_type": head.tensor_type.name,
    }


@llama.llama_log_callback
def silence(_level, _text, _data):
    """llama.cpp tells a great deal."""


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--model", type=Path, required=True, help="the GGUF file to start from")
    parser.add_argument("--folder", type=Path, required=True, help="where the files go; made if it is not there")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()

    llama.llama_log_set(silence, ctypes.c_void_p(0))
    options.folder.mkdir(parents=True, exist_ok=True)
    source, files = options.model, {}
    for name, kind in FORMATS.items():
        target = options.folder / f"{name}.gguf"
        quantize(source, target, kind, options.threads)
        files[name] = contents(target)
        if name == "F16":
            source = target
    (options.folder / "files.json").write_text(json.dumps(files, indent=1) + "\n")


if __name__ == "__main__":
    main()
