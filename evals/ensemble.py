"""Domain-posterior ensembles on a run's recorded choice probabilities: accuracy against experts asked, for each k."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..router.ensemble import mixed, top_k
from .records import Record, Sample
from .statistics import Interval, compare, wilson
from .table import Bools, Floats, Ints, Table, build_table


@dataclass(frozen=True, eq=False, slots=True)
class Choices:
    """Log-probabilities of the choices, (n, experts, choices), -inf where a question has fewer; `target` is (n,)."""

    table: Table
    logprobs: Floats
    target: Ints


@dataclass(frozen=True, slots=True)
class EnsemblePoint:
    """The k most probable experts mixed: experts asked a question, their cost, and gains over one expert for all."""

    k: int
    calls: float
    cost: float
    accuracy: Interval
    against_generalist: Interval
    against_routed: Interval


def read_choices(samples: Sequence[Sample], records: Sequence[Record], experts: Sequence[str]) -> Choices:
    """The multiple-choice samples that every expert scored.

    Raises:
        ValueError: no sample has choices with log-probabilities from every expert.
    """
    scored = {(record.sample, record.target): record.logprobs for record in records}
    kept = [
        sample
        for sample in samples
        if sample.choices and all(len(scored.get((sample.id, one), ())) == len(sample.choices) for one in experts)
    ]
    if not kept:
        raise ValueError(f"no sample has log-probabilities of its choices from all of {', '.join(experts)}")
    table = build_table(kept, records, experts)
    logs = np.full((len(table.samples), len(experts), max(len(sample.choices) for sample in table.samples)), -np.inf)
    for row, sample in enumerate(table.samples):
        for column, expert in enumerate(experts):
            logs[row, column, : len(sample.choices)] = scored[sample.id, expert]
    return Choices(table, logs, np.array([ord(sample.target) - ord("A") for sample in table.samples]))


def ensemble_curve(choices: Choices, weights: Floats, generalist: str) -> list[EnsemblePoint]:
    """One point for each k from 1, which is plain routing, to all experts; `weights` (n, experts) are p(e | x).

    An expert of weight 0 is not asked and costs nothing.
    """
    alone = choices.table.correct[:, choices.table.column(generalist)]
    routed = _right(choices, top_k(weights, 1))
    return [_point(choices, top_k(weights, k), k, alone, routed) for k in range(1, weights.shape[1] + 1)]


def _point(choices: Choices, weights: Floats, k: int, alone: Bools, routed: Bools) -> EnsemblePoint:
    right, asked = _right(choices, weights), weights > 0
    return EnsemblePoint(
        k=k,
        calls=float(asked.sum(axis=1).mean()),
        cost=float((choices.table.cost * asked).sum(axis=1).mean()),
        accuracy=wilson(int(right.sum()), len(right)),
        against_generalist=compare(right, alone).gain,
        against_routed=compare(right, routed).gain,
    )


def _right(choices: Choices, weights: Floats) -> Bools:
    return np.asarray(mixed(weights, choices.logprobs).argmax(axis=1) == choices.target)
