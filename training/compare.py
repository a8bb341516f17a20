"""Two router versions on the same labelled prompts: accuracy, flips, and whether the difference is chance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..router.artefact import Router
from ..router.seen import seen_rows
from .data import DataError, Prompt


@dataclass(frozen=True, slots=True)
class Comparison:
    """Counts over `rows` prompts. A negative flip is a prompt that the old version had right and the new one has wrong.

    Flips as in MUSCLE (Echterhoff et al. 2024); `p_value` is McNemar's, exact and two-sided.
    """

    old: str
    new: str
    rows: int
    old_right: int
    new_right: int
    negative_flips: int
    positive_flips: int
    p_value: float

    @property
    def negative_flip_rate(self) -> float:
        return self.negative_flips / self.rows


def compare(old: Router, new: Router, prompts: Sequence[Prompt]) -> Comparison:
    """Route every prompt by both versions.

    Raises:
        DataError: there are no prompts.
    """
    if not prompts:
        raise DataError("there are no prompts to compare on")
    old_right, new_right = (_right(router, prompts) for router in (old, new))
    negative = int(np.sum(old_right & ~new_right))
    positive = int(np.sum(~old_right & new_right))
    return Comparison(
        old=old.version,
        new=new.version,
        rows=len(prompts),
        old_right=int(old_right.sum()),
        new_right=int(new_right.sum()),
        negative_flips=negative,
        positive_flips=positive,
        p_value=mcnemar(negative, positive),
    )


def refuse_seen(folders: Sequence[Path], prompts: Sequence[Prompt]) -> None:
    """Refuse to score routers on what they were trained on.

    Raises:
        DataError: some prompts, or near duplicates of them, were training prompts.
    """
    for folder in folders:
        seen = seen_rows(folder, [prompt.text for prompt in prompts])
        if len(seen):
            first = ", ".join(str(prompts[position].row) for position in seen[:5])
            raise DataError(
                f"{len(seen)} of {len(prompts)} rows are training prompts of {folder}, or near duplicates "
                f"(first rows: {first}); leave them out, or let --drop-seen do it"
            )


def unseen(folders: Sequence[Path], prompts: Sequence[Prompt]) -> list[Prompt]:
    """The prompts that none of the routers was trained on."""
    texts = [prompt.text for prompt in prompts]
    seen = {int(position) for folder in folders for position in seen_rows(folder, texts)}
    return [prompt for position, prompt in enumerate(prompts) if position not in seen]


def mcnemar(negative: int, positive: int) -> float:
    """Probability of flips at least as uneven as these if both versions were equally good."""
    from scipy.stats import binomtest

    return float(binomtest(negative, negative + positive).pvalue) if negative + positive else 1.0


def _right(router: Router, prompts: Sequence[Prompt]) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    return np.array([router.posterior(prompt.text).domain == prompt.label for prompt in prompts])
