"""The data card: what labelled prompts are made of, and what in them may be wrong, before anything is trained."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from pydantic import JsonValue

from .data import Prompt, data_hash
from .split import Positions, near_duplicate_groups

QUANTILES = (0.0, 0.25, 0.5, 0.75, 0.95, 1.0)
SHOWN_CONFLICTS = 5
SHOWN_ROWS = 3


@dataclass(frozen=True, slots=True)
class Conflict:
    """One text, or near duplicates of it, under different labels; `rows` names the first rows of each label."""

    text: str
    rows: dict[str, list[str]]


@dataclass(frozen=True, slots=True)
class DataCard:
    """`labels` and `sources`: rows of each; a row without a source counts under "".

    `lengths`: quantiles QUANTILES of the characters that a router may read. `duplicates`: rows whose text stood before
    under whatever label, case and blanks aside; `near_duplicates`: rows beyond the first of each near-duplicate group,
    `duplicates` included. `conflicting_rows`: rows in groups of more than one label.
    """

    rows: int
    hash: str
    labels: dict[str, int]
    sources: dict[str, dict[str, int]]
    lengths: list[int]
    duplicates: int
    near_duplicates: int
    conflicts: int
    conflicting_rows: int
    first_conflicts: tuple[Conflict, ...]

    def as_dict(self) -> dict[str, JsonValue]:
        plain: dict[str, JsonValue] = asdict(self)
        return {**plain, "first_conflicts": [asdict(conflict) for conflict in self.first_conflicts]}


def data_card(prompts: Sequence[Prompt], groups: Positions | None = None) -> DataCard:
    """The card of prompts; `groups` are their near-duplicate groups where these are known.

    Raises:
        ValueError: there are no prompts.
    """
    if not prompts:
        raise ValueError("there are no prompts to describe")
    if groups is None:
        groups = near_duplicate_groups([prompt.text for prompt in prompts])
    sources: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for prompt in prompts:
        sources[prompt.source or ""][prompt.label] += 1
    lengths = np.quantile([len(prompt.text) for prompt in prompts], QUANTILES, method="nearest")
    together = _conflicting(prompts, groups)
    return DataCard(
        rows=len(prompts),
        hash=data_hash(prompts),
        labels=dict(sorted(Counter(prompt.label for prompt in prompts).items())),
        sources={source: dict(sorted(rows.items())) for source, rows in sorted(sources.items())},
        lengths=[int(length) for length in lengths],
        duplicates=len(prompts) - len({" ".join(prompt.text.casefold().split()) for prompt in prompts}),
        near_duplicates=len(prompts) - len(np.unique(groups)),
        conflicts=len(together),
        conflicting_rows=sum(map(len, together)),
        first_conflicts=tuple(map(_conflict, together[:SHOWN_CONFLICTS])),
    )


def _conflicting(prompts: Sequence[Prompt], groups: Positions) -> list[list[Prompt]]:
    """Near-duplicate groups of more than one label, in order of their first row."""
    members: defaultdict[int, list[Prompt]] = defaultdict(list)
    for prompt, group in zip(prompts, groups.tolist(), strict=True):
        members[group].append(prompt)
    return [group for group in members.values() if len({prompt.label for prompt in group}) > 1]


def _conflict(group: Sequence[Prompt]) -> Conflict:
    rows: defaultdict[str, list[str]] = defaultdict(list)
    for prompt in group:
        if len(rows[prompt.label]) < SHOWN_ROWS:
            rows[prompt.label].append(prompt.where)
    return Conflict(group[0].text[:200], dict(rows))
