"""Triton's metrics endpoint, read as numbers."""

import re
from dataclasses import dataclass, field

_SAMPLE = re.compile(r"^([A-Za-z_:][\w:]*)(?:\{(.*)\})? (\S+)$")
_LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')


@dataclass
class Metrics:
    """One scrape: samples by name, each with its labels."""

    samples: dict[str, list[tuple[dict[str, str], float]]] = field(default_factory=dict)

    @classmethod
    def parse(cls, text: str) -> "Metrics":
        metrics = cls()
        for line in text.splitlines():
            if not line or line.startswith("#"):
                continue
            found = _SAMPLE.match(line)
            assert found, f"not a metrics line: {line!r}"
            name, labels, value = found.groups()
            metrics.samples.setdefault(name, []).append((dict(_LABEL.findall(labels or "")), float(value)))
        return metrics

    def find(self, name: str, **labels: str) -> list[tuple[dict[str, str], float]]:
        wanted = labels.items()
        return [(have, value) for have, value in self.samples.get(name, []) if wanted <= have.items()]

    def total(self, name: str, **labels: str) -> float:
        """Sum of the samples with these labels; 0 without any."""
        return sum(value for _, value in self.find(name, **labels))

    def one(self, name: str, **labels: str) -> float:
        """The only sample with these labels."""
        found = self.find(name, **labels)
        assert len(found) == 1, f"{name}{labels}: {len(found)} samples: {found}"
        return found[0][1]

    def kv(self, model: str, kind: str) -> float:
        """Pages of the KV cache, as TensorRT-LLM names them."""
        return self.one("nv_trt_llm_kv_cache_block_metrics", model=model, kv_cache_block_type=kind)

    def is_idle(self, model: str) -> bool:
        return self.kv(model, "used") == 0 and self.total("rewind_sequences", model=model) == 0
