"""The recordings of llama.cpp in `golden/`, and how an answer is held against them."""

import json
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parent.parent / "golden"


@dataclass(frozen=True)
class Continuation:
    """Greedy continuation of a prompt; `gaps` are the nats between the two best tokens of each step."""

    name: str
    prompt: str
    prompt_ids: list[int]
    ids: list[int]
    runner_up: list[int]
    gaps: list[float]
    near_tie: float
    ended: bool
    text: str

    def compare(self, ids: list[int]) -> int:
        """Checks `ids` against the recording and returns the number of equal leading tokens.

        The two may part only where the recorded gap is a near tie, and only for the runner-up; behind such a step
        nothing can be said.
        """
        expected = self.ids[:-1] if self.ended else self.ids
        for step, (wanted, got) in enumerate(zip(expected, ids)):
            if wanted != got:
                assert self.gaps[step] < self.near_tie, (
                    f"{self.name!r}: step {step} gave token {got}, llama.cpp {wanted} with a lead of "
                    f"{self.gaps[step]:.4f} nats over {self.runner_up[step]}"
                )
                assert got == self.runner_up[step], (
                    f"{self.name!r}: step {step} gave token {got}, which is neither of the two near best"
                )
                return step
        assert len(ids) >= len(expected), f"{self.name!r}: ended after {len(ids)} tokens of {len(expected)}"
        return len(expected)

    @property
    def binding(self) -> int:
        """Steps before the first near tie: those no right implementation can miss."""
        return next((i for i, gap in enumerate(self.gaps) if gap < self.near_tie), len(self.gaps))


def continuations() -> list[Continuation]:
    recording = json.loads((FOLDER / "greedy.json").read_text())
    return [
        Continuation(
            name=entry["name"],
            prompt=entry["prompt"],
            prompt_ids=entry["prompt_ids"],
            ids=entry["ids"],
            runner_up=entry["runner_up"],
            gaps=[best - next for best, next in zip(entry["logprob"], entry["runner_up_logprob"])],
            near_tie=recording["near_tie_nats"],
            ended=entry["ended"],
            text=entry["text"],
        )
        for entry in recording["prompts"]
    ]


def perplexity() -> dict:
    return json.loads((FOLDER / "perplexity.json").read_text())


TEXT = FOLDER / "eighty_days.txt"
