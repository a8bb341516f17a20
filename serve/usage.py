"""Tokens of one answer: as the expert counted them, or estimated where it did not."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(slots=True)
class Usage:
    """`prompt` and `completion` are the expert's own counts; `pieces` counts a stream's events, about one a token."""

    prompt: int | None = None
    completion: int | None = None
    pieces: int = 0

    def see(self, answer: Mapping[str, object]) -> None:
        """Take note of a whole answer or of one event, of any of the APIs."""
        self.pieces += 1
        for holder in (answer, answer.get("response"), answer.get("message")):
            counts = holder.get("usage") if isinstance(holder, Mapping) else None
            if isinstance(counts, Mapping):
                self.prompt = _count(counts, "prompt_tokens", "input_tokens", self.prompt)
                self.completion = _count(counts, "completion_tokens", "output_tokens", self.completion)

    def tokens(self, prompt: int) -> int:
        """Prompt and completion; `prompt` is the estimate for an expert that counted nothing."""
        return (prompt if self.prompt is None else self.prompt) + (
            self.pieces if self.completion is None else self.completion
        )


def _count(counts: Mapping[object, object], name: str, other: str, before: int | None) -> int | None:
    """A count that a broken expert cannot make negative or absurd."""
    value = counts.get(name, counts.get(other))
    return value if type(value) is int and 0 <= value < 2**31 else before
