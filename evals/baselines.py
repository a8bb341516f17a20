"""Routed accuracy beside what it must be compared with, the regret taken apart, and the advice that follows."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from .crossval import CrossValidated, choose
from .statistics import Comparison, Interval, compare, holm, wilson
from .table import Bools, Floats, Ints, Table

ADVICE_MARGIN = 0.005
"""Half a point: what is smaller is not worth a piece of advice."""


@dataclass(frozen=True, eq=False, slots=True)
class Baselines:
    """Right or wrong under each way to choose an expert, (n,) each; `random` is the expected share right.

    `best_single` is chosen on the training folds, `perfect_domain` and `perfect_subject` know the question's true class
    and use the same skills, `oracle` takes an expert that is right wherever there is one.
    """

    routed: Bools
    generalist: Bools
    best_single: Bools
    perfect_domain: Bools
    perfect_subject: Bools
    oracle: Bools
    random: Floats

    def accuracies(self) -> dict[str, float]:
        """Mean of each, in the order of the fields."""
        return {name: float(np.mean(getattr(self, name))) for name in self.__dataclass_fields__}


@dataclass(frozen=True, slots=True)
class Regret:
    """Accuracy lost between the routed answer and a pool that is always right, in three parts that add up."""

    router_error: Interval
    within_domains: float
    unanswered: float


@dataclass(frozen=True, slots=True)
class DomainRow:
    """One domain: routed and rivals; p-values are Holm-corrected over the table."""

    domain: str
    n: int
    routed: Interval
    against_generalist: Comparison
    against_best: Comparison
    perfect_domain: float
    oracle: float


def baselines(table: Table, routed: Bools, crossed: CrossValidated, generalist: str | None = None) -> Baselines:
    """Put `routed`, right or wrong (n,), beside the rest; the best single expert stands for a missing `generalist`."""
    best = choose(crossed.overall, crossed.relative_cost)
    general = np.full_like(best, table.column(generalist)) if generalist else best
    return Baselines(
        routed=routed,
        generalist=picked(table, general),
        best_single=picked(table, best),
        perfect_domain=picked(table, choose(crossed.by_domain, crossed.relative_cost)),
        perfect_subject=picked(table, choose(crossed.by_subject, crossed.relative_cost)),
        oracle=np.asarray(table.correct.any(axis=1), dtype=bool),
        random=table.correct.mean(axis=1),
    )


def picked(table: Table, columns: Ints) -> Bools:
    """(n,) whether the expert chosen for each question was right."""
    return np.asarray(table.correct[np.arange(len(columns)), columns])


def regret(base: Baselines) -> Regret:
    """1 - routed = (perfect domain - routed) + (oracle - perfect domain) + (1 - oracle)."""
    oracle = float(base.oracle.mean())
    return Regret(
        router_error=compare(base.perfect_domain, base.routed).gain,
        within_domains=oracle - float(base.perfect_domain.mean()),
        unanswered=1 - oracle,
    )


def by_domain(table: Table, base: Baselines) -> list[DomainRow]:
    """Every domain and `all`, with p-values corrected together (Holm), for the generalist and the best single apart."""
    index = table.domain_index
    masks = [("all", np.ones(len(index), dtype=bool))]
    masks += [(domain, index == position) for position, domain in enumerate(table.domains)]
    rows = [_row(name, base, mask) for name, mask in masks]
    general = holm([row.against_generalist.p for row in rows])
    best = holm([row.against_best.p for row in rows])
    return [
        DomainRow(
            row.domain, row.n, row.routed, _with_p(row.against_generalist, p), _with_p(row.against_best, q),
            row.perfect_domain, row.oracle,
        )
        for row, p, q in zip(rows, general, best, strict=True)
    ]  # fmt: skip


def advice(table: Table, base: Baselines) -> str:
    """One line: better labels, finer domains, a better expert, or stop."""
    lost = regret(base)
    weakest = _weakest_domain(table, base.oracle)
    if lost.router_error.low > 0 and lost.router_error.value >= ADVICE_MARGIN:
        worst = _weakest_domain(table, ~(base.perfect_domain & ~base.routed))
        return (
            f"Better labels: the router gives away {_points(lost.router_error.value)} against perfect domains, "
            f"most of it in {worst}."
        )
    finer = compare(base.perfect_subject, base.perfect_domain).gain
    if finer.low > 0 and finer.value >= ADVICE_MARGIN:
        return f"Finer domains: with perfect subjects instead of domains the same pool gains {_points(finer.value)}."
    ceiling = compare(base.perfect_domain, base.best_single).gain
    if ceiling.low <= 0:
        return (
            "Stop: even perfect domains do not clearly beat the best single expert; keep that one, "
            f"or find a better expert for {weakest}."
        )
    return (
        f"A better expert for {weakest}: no expert answers {_points(lost.unanswered)} of the questions, most of them "
        f"there; labels are good enough."
    )


def _row(name: str, base: Baselines, mask: Bools) -> DomainRow:
    routed = base.routed[mask]
    return DomainRow(
        domain=name,
        n=int(mask.sum()),
        routed=wilson(int(routed.sum()), len(routed)),
        against_generalist=compare(routed, base.generalist[mask]),
        against_best=compare(routed, base.best_single[mask]),
        perfect_domain=float(base.perfect_domain[mask].mean()),
        oracle=float(base.oracle[mask].mean()),
    )


def _with_p(comparison: Comparison, p: float) -> Comparison:
    return Comparison(comparison.gain, comparison.only_a, comparison.only_b, comparison.n, p)


def _weakest_domain(table: Table, right: Bools) -> str:
    """The domain with the most questions that are not right."""
    misses = np.bincount(table.domain_index, weights=~right, minlength=len(table.domains))
    return table.domains[int(misses.argmax())]


def _points(share: float) -> str:
    return f"{100 * share:.1f} points"
