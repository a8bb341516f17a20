"""Mixed tasks: questions of several domains in one file, and splits of it that never share a question."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from .records import Sample
from .table import normalised
from .tasks import TaskError, load_samples


@dataclass(frozen=True, slots=True)
class Draw:
    """What is taken of each domain: `count` questions whose prompts, all choices together, have at most `characters`.

    `part`, from and below, are bounds in [0, 1] on the hash of a question's text.
    """

    count: int
    characters: int
    part: tuple[float, float] = (0.0, 1.0)
    seed: int = 0


def mixture(
    sources: Mapping[str, Sequence[Path | str]], draws: Mapping[str, Draw], without: Sequence[Path | str] = ()
) -> list[Sample]:
    """Questions of each domain from its files, drawn by the seed and shuffled together.

    Where a file's rows name domains of their own, only those of the same name count; a row that says which split it is
    from must say "test". A question whose text is in a file of `without` is never drawn.

    Raises:
        TaskError: a file cannot be read, or a domain has no question left.
    """
    mixed: list[Sample] = []
    barred = {normalised(sample.prompt) for file in without for sample in load_samples(file, "choice")}
    for domain, files in sources.items():
        draw = draws[domain]
        found: dict[str, Sample] = {}
        for file in files:
            for sample in load_samples(file, "choice", split="test"):
                if sample.domain in (domain, "all", sample.subject) and _fits(sample, draw):
                    text = normalised(sample.prompt)
                    if text not in barred:
                        found.setdefault(text, Sample(**{**asdict(sample), "domain": domain}))
        if not found:
            raise TaskError(f"no question of {domain} is left: {', '.join(map(str, files))}")
        kept = list(found.values())
        random.Random(draw.seed).shuffle(kept)  # noqa: S311 - a draw that can be repeated, no secret
        mixed += kept[: draw.count]
    random.Random(0).shuffle(mixed)  # noqa: S311 - as above
    return mixed


def write_task(samples: Sequence[Sample], file: Path) -> None:
    """The questions as a task file, one JSON object a line."""
    rows = (
        {"id": one.id, "question": one.prompt, "choices": one.choices, "answer": one.target, "domain": one.domain,
         "subject": one.subject}
        for one in samples
    )  # fmt: skip
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def _fits(sample: Sample, draw: Draw) -> bool:
    size = sum(len(sample.prompt) + len(choice) for choice in sample.choices)
    digest = hashlib.sha256(normalised(sample.prompt).encode()).digest()
    low, high = draw.part
    return size <= draw.characters and low <= int.from_bytes(digest[:4]) / 2**32 < high
