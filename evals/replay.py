"""Replay: judge routing policies on recorded answers, without any model but the prompt encoder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

import numpy as np

from .baselines import Baselines, DomainRow, Regret, advice, baselines, by_domain, picked, regret
from .calls import CallPoint, calls_curve, equal_vote, has_answers
from .crossval import CrossValidated, choose, cross_validate, given_posteriors
from .curve import CostCurve, cost_curve
from .records import Record, Sample
from .statistics import Comparison, Interval, compare
from .table import Bools, Ints, Table, build_table, fold_of

ROUTED = "auto"


@dataclass(frozen=True, eq=False, slots=True)
class Routed:
    """What routing did: right or wrong, (n,), and the share of questions that each expert answered."""

    right: Bools
    traffic: Mapping[str, float]


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
    routed: Routed | None = None,
) -> Judgement:
    """Route every question by the folds it is not in, and compare; `policy` is told in the result as it is.

    Where the endpoint itself `routed`, its answers are judged; what needs posteriors, the curves, is then left out.
    """
    columns = choose(crossed.quality, crossed.relative_cost, cost_weight)
    routed, live = routed or Routed(picked(table, columns), _traffic(table, columns)), routed is not None
    base = baselines(table, routed.right, crossed, generalist)
    polled = not live and has_answers(table) and len(table.experts) > 1
    priced = not live and bool(table.cost.any())
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
        traffic=routed.traffic,
        curve=cost_curve(table, crossed, base.best_single) if priced else None,
        calls=calls_curve(table, crossed.quality, crossed.relative_cost, base.best_single) if polled else [],
        equal_vote=compare(equal_vote(table), base.best_single).gain if polled else None,
        base=base,
    )


def judge_run(samples: Sequence[Sample], records: Sequence[Record], generalist: str | None = None) -> Judgement:
    """Judge a live run: `auto` against the experts that were asked by name.

    The best single expert and the skills of perfect domains are chosen on one half of the questions for the other.

    Raises:
        ValueError: `auto` or every expert is missing, or too few questions were answered by all.
    """
    targets = list(dict.fromkeys(record.target for record in records))
    experts = [target for target in targets if target != ROUTED]
    if ROUTED not in targets or not experts:
        raise ValueError(f"the run asked {targets}; a judgement needs {ROUTED!r} and at least one expert by name")
    whole = build_table(samples, records, [*experts, ROUTED])
    table = replace(
        whole,
        experts=tuple(experts),
        correct=whole.correct[:, :-1],
        cost=whole.cost[:, :-1],
        answers=tuple(answers[:-1] for answers in whole.answers),
        unread=whole.unread[:-1],
    )
    kept = {sample.id for sample in table.samples}
    answered_by = Counter(record.expert for record in records if record.target == ROUTED and record.sample in kept)
    traffic = {expert: count / len(kept) for expert, count in answered_by.most_common()}
    known = given_posteriors(np.eye(len(table.domains))[table.domain_index])
    crossed = cross_validate(table, fold_of(table.samples, 2), table.domains, known)
    policy = {"router": ", ".join(sorted({record.router for record in records if record.router})), "live": True}
    return judge(table, crossed, policy, generalist, routed=Routed(whole.correct[:, -1], traffic))


def _traffic(table: Table, columns: Ints) -> dict[str, float]:
    shares = np.bincount(columns, minlength=len(table.experts)) / len(columns)
    return {expert: float(share) for expert, share in zip(table.experts, shares, strict=True) if share > 0}


def _plain(value: object) -> object:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, Interval | Comparison | DomainRow | Regret | CostCurve | CallPoint):
        return _plain(asdict(value))
    return value
