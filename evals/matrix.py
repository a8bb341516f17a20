"""Experts by domains: what each answers right, and its paired difference to the generalist."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .statistics import Comparison, Interval, compare, wilson
from .table import Table


@dataclass(frozen=True, slots=True)
class ExpertCell:
    """One expert on the questions of one domain, or of `all`. p is McNemar's, not corrected."""

    expert: str
    domain: str
    right: Interval
    against_generalist: Comparison


def expert_matrix(table: Table, generalist: str) -> list[ExpertCell]:
    """Every expert of the table on every domain, `all` first.

    Raises:
        ValueError: the table has no such generalist.
    """
    rival = table.correct[:, table.column(generalist)]
    masks = {"all": np.ones(len(rival), dtype=bool)}
    masks |= {domain: table.domain_index == place for place, domain in enumerate(table.domains)}
    return [
        ExpertCell(
            expert,
            domain,
            wilson(int(own[mask].sum()), int(mask.sum())),
            compare(own[mask], rival[mask]),
        )
        for expert, own in ((expert, table.correct[:, place]) for place, expert in enumerate(table.experts))
        for domain, mask in masks.items()
    ]
