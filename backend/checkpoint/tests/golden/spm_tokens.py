"""Writes spm_tokens.json: a small SentencePiece vocabulary, and token ids as llama.cpp finds them.

    pip install llama-cpp-python==0.3.36 gguf==0.19.0 && python spm_tokens.py > spm_tokens.json

The vocabulary has the layout of Llama 2's: three special tokens, 256 bytes, merged tokens by falling
score, single characters last. Its merges come from byte pair encoding over the texts themselves.
"""

import collections
import json
import pathlib
import tempfile

from gguf import GGUFWriter
from llama_cpp import Llama

from texts import TEXTS

MERGES = 300
NORMAL, UNKNOWN, CONTROL, USER, BYTE = 1, 2, 3, 4, 6
EXTRA = {"<|im_end|>": CONTROL, "<tool>": USER}


def merged_tokens(characters):
    words = collections.Counter()
    for text in TEXTS:
        words.update(
            tuple("▁" + word)
            for word in text.split(" ")
            if len(word) < 40 and set(word) <= set(characters)
        )
    merged = []
    while len(merged) < MERGES:
        pairs = collections.Counter()
        for word, count in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += count
        (left, right), _ = max(pairs.items(), key=lambda item: (item[1], item[0]))
        if left + right not in merged and left + right not in EXTRA:
            merged.append(left + right)
        after = collections.Counter()
        for word, count in words.items():
            joined, at = [], 0
            while at < len(word):
                both = word[at : at + 2] == (left, right)
                joined.append(left + right if both else word[at])
                at += 2 if both else 1
            after[tuple(joined)] += count
        words = after
    return merged + [spaces for spaces in ["▁▁", "▁▁▁▁"] if spaces not in merged]


counts = collections.Counter("".join(TEXTS).replace(" ", "▁"))
# Rare characters stay out, and so are spelled in bytes.
characters = [c for c, count in sorted(counts.items()) if count > 2 and c.isprintable()]
merged = merged_tokens(characters)
special = [("<unk>", UNKNOWN), ("<s>", CONTROL), ("</s>", CONTROL)]
tokens = [text for text, _ in special] + [f"<0x{byte:02X}>" for byte in range(256)]
types = [kind for _, kind in special] + [BYTE] * 256
scores = [0.0] * len(tokens)
for rank, text in enumerate(merged + characters):
    tokens.append(text)
    types.append(NORMAL)
    scores.append(-float(rank))
for text, kind in EXTRA.items():
    tokens.append(text)
    types.append(kind)
    scores.append(-1000.0)

with tempfile.TemporaryDirectory() as folder:
    path = str(pathlib.Path(folder, "vocabulary.gguf"))
    writer = GGUFWriter(path, "llama")
    writer.add_block_count(1)
    writer.add_context_length(512)
    writer.add_embedding_length(32)
    writer.add_feed_forward_length(32)
    writer.add_head_count(1)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_tokenizer_model("llama")
    writer.add_token_list(tokens)
    writer.add_token_scores(scores)
    writer.add_token_types(types)
    writer.add_unk_token_id(0)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.close()
    model = Llama(path, vocab_only=True, verbose=False)
    texts = TEXTS + ["<tool>x<tool> y", "</s>one<s>two", " <s> x"]
    ids = [model.tokenize(text.encode(), add_bos=False, special=True) for text in texts]

print(json.dumps({"tokens": tokens, "scores": scores, "types": types}, separators=(",", ":"))[:-1])
print(', "cases": [')
cases = [{"text": text, "ids": found} for text, found in zip(texts, ids)]
print(",\n".join(json.dumps(case, separators=(",", ":")) for case in cases))
print("]}")
