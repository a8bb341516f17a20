"""Replay: judge routing policies on recorded answers, without any model but the prompt encoder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np

from .baselines import Baselines, DomainRow, Regret, advice, baselines, by_domain, regret
from .calls import CallPoint, calls_curve, equal_vote, has_answers
from .crossval import CrossValidated, choose
from .curve import CostCurve, cost_curve
from .statistics import Comparison, Interval, compare
from .table import Floats, Table


@dataclass(frozen=True, eq=False, slots=True)
class Judgement:
    """Everything the tables, the page and the JSON show of one pool on one set of questions."""

    policy: Mapping[str, object]
    experts: Mapping[str, float]
    n: int
    dropped: int
    unread: Mapping[str, int]
    accuracies: Mapping[str, float]
    against_generalist: Comparison
    against_best: Comparison
    domains: list[DomainRow]
    regret: Regret
    advice: str
    traffic: Mapping[str, float]
    curve: CostCurve | None
    calls: list[CallPoint]
    equal_vote: Interval | None
    base: Baselines = field(repr=False)

    def as_dict(self) -> dict[str, object]:
        """Plain values for JSON; shares in [0, 1]."""
        names = [name for name in self.__dataclass_fields__ if name != "base"]
        return {name: _plain(getattr(self, name)) for name in names}


def judge(
    table: Table,
    crossed: CrossValidated,
    policy: Mapping[str, object],
    generalist: str | None = None,
    cost_weight: float = 0.0,
    polling: bool = True,
) -> Judgement:
    """Route every question by the folds it is not in, and compare; `policy` is told in the result as it is.

    With `polling` the many-call policies are replayed too, where the records say what was answered.
    """
    routed = choose(crossed.quality, crossed.relative_cost, cost_weight)
    base = baselines(table, routed, crossed, generalist)
    polled = polling and has_answers(table) and len(table.experts) > 1
    return Judgement(
        policy=policy,
        experts=dict(zip(table.experts, map(float, table.correct.mean(axis=0)), strict=True)),
        n=len(table.samples),
        dropped=table.dropped,
        unread=dict(zip(table.experts, table.unread, strict=True)),
        accuracies=base.accuracies(),
        against_generalist=compare(base.routed, base.generalist),
        against_best=compare(base.routed, base.best_single),
        domains=by_domain(table, base),
        regret=regret(base),
        advice=advice(table, base),
        traffic=_traffic(table, np.bincount(routed, minlength=len(table.experts)) / len(routed)),
        curve=cost_curve(table, crossed, base.best_single) if table.cost.any() else None,
        calls=calls_curve(table, crossed.quality, crossed.relative_cost, base.best_single) if polled else [],
        equal_vote=compare(equal_vote(table), base.best_single).gain if polled else None,
        base=base,
    )


def _traffic(table: Table, shares: Floats) -> dict[str, float]:
    return {expert: float(share) for expert, share in zip(table.experts, shares, strict=True) if share > 0}


def _plain(value: object) -> object:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Interval | Comparison | DomainRow | Regret | CostCurve | CallPoint):
        return _plain(asdict(value))
    return value
