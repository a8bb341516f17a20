"""Replay: judge routing policies on recorded answers, without any model but the prompt encoder."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, is_dataclass, replace

import numpy as np

from .baselines import Baselines, DomainRow, Regret, advice, baselines, by_domain, picked, regret
from .calls import CallPoint, calls_curve, equal_vote, has_answers
from .crossval import CrossValidated, choose, cross_validate, given_posteriors
from .curve import CostCurve, cost_curve
from .matrix import ExpertCell, expert_matrix
from .records import Record, Sample
from .statistics import Comparison, Interval, compare, wilson
from .table import Bools, Floats, Table, build_table, fold_of

ROUTED = "auto"
EXAMPLES = 5
BINS = 10


@dataclass(frozen=True, eq=False, slots=True)
class Routed:
    """What routing did: right or wrong, (n,), and the expert that answered each question."""

    right: Bools
    experts: Sequence[str]

    def traffic(self) -> dict[str, float]:
        """Share of the questions that each expert answered, largest first."""
        return {expert: count / len(self.experts) for expert, count in Counter(self.experts).most_common()}


@dataclass(frozen=True, slots=True)
class CalibrationBin:
    """Routed questions of like predicted quality: the mean prediction, and what came true."""

    predicted: float
    right: Interval
    n: int


@dataclass(frozen=True, slots=True)
class Example:
    """A question that routing won (`won`) or lost against the best single expert."""

    id: str
    domain: str
    prompt: str
    target: str
    expert: str
    won: bool


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
    calibration: list[CalibrationBin]
    examples: list[Example]
    matrix: list[ExpertCell]
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
    examples: int = EXAMPLES,
    curves: bool = True,
) -> Judgement:
    """Route every question by the folds it is not in, and compare; `policy` is told in the result as it is.

    `examples` of won questions are shown, and as many of lost ones. Where the endpoint itself `routed`, its answers are
    judged. `curves` False leaves out what needs the router's posteriors: cost, calls and calibration.
    """
    columns = choose(crossed.quality, crossed.relative_cost, cost_weight)
    if routed is not None:
        columns = np.array([table.column(expert) for expert in routed.experts], dtype=np.int64) if curves else columns
    routed = routed or Routed(picked(table, columns), [table.experts[column] for column in columns])
    base = baselines(table, routed.right, crossed, generalist)
    polled = curves and has_answers(table) and len(table.experts) > 1
    priced = curves and bool(table.cost.any())
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
        traffic=routed.traffic(),
        curve=cost_curve(table, crossed, base.best_single) if priced else None,
        calls=calls_curve(table, crossed.quality, crossed.relative_cost, base.best_single) if polled else [],
        equal_vote=compare(equal_vote(table), base.best_single).gain if polled else None,
        calibration=_calibration(crossed.quality[np.arange(len(columns)), columns], base.routed) if curves else [],
        examples=_examples(table, base, routed, examples),
        matrix=expert_matrix(table, generalist) if generalist else [],
        base=base,
    )


@dataclass(frozen=True, eq=False, slots=True)
class Known:
    """What the endpoint's router says of each question of a run, by its id: p(label | question)."""

    labels: tuple[str, ...]
    posterior: Mapping[str, Sequence[float]]


def judge_run(
    samples: Sequence[Sample],
    records: Sequence[Record],
    generalist: str | None = None,
    examples: int = EXAMPLES,
    known: Known | None = None,
) -> Judgement:
    """Judge a live run: `auto` against the experts that were asked by name.

    The best single expert and the skills are counted on one half of the questions for the other. With the posteriors
    `known`, the curves and the calibration are drawn too, from the run's own answers.

    Raises:
        ValueError: `auto` or every expert is missing, one that answered was not asked by name, or too few questions
            were answered by all.
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
    answered_by = {record.sample: record.expert for record in records if record.target == ROUTED}
    routed = Routed(whole.correct[:, -1], [answered_by[sample.id] for sample in table.samples])
    labels, posterior = table.domains, np.eye(len(table.domains))[table.domain_index]
    if known is not None:
        labels, posterior = known.labels, np.array([known.posterior[sample.id] for sample in table.samples])
    crossed = cross_validate(table, fold_of(table.samples, 2), labels, given_posteriors(posterior))
    policy = {"router": ", ".join(sorted({record.router for record in records if record.router})), "live": True}
    return judge(table, crossed, policy, generalist, routed=routed, examples=examples, curves=known is not None)


def _calibration(predicted: Floats, right: Bools) -> list[CalibrationBin]:
    """Equal counts a bin, in order of the prediction."""
    bins = np.array_split(np.argsort(predicted, kind="stable"), min(BINS, len(predicted)))
    return [
        CalibrationBin(float(predicted[rows].mean()), wilson(int(right[rows].sum()), len(rows)), len(rows))
        for rows in bins
    ]


def _examples(table: Table, base: Baselines, routed: Routed, count: int) -> list[Example]:
    """Won and lost questions, spread over the whole set."""
    found = []
    for won, mask in ((True, base.routed & ~base.best_single), (False, base.best_single & ~base.routed)):
        rows = np.flatnonzero(mask)
        for row in rows[np.linspace(0, len(rows) - 1, min(count, len(rows))).astype(int)]:
            sample = table.samples[row]
            found.append(Example(sample.id, sample.domain, sample.prompt, sample.target, routed.experts[row], won))
    return found


def _plain(value: object) -> object:
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    return value
