"""Accuracy against cost: the curve over cost_weight, and the areas that papers report (APGR, AIQ)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from .baselines import picked
from .crossval import CrossValidated, choose
from .statistics import Interval, paired_bootstrap
from .table import Bools, Floats, Table

COST_WEIGHTS = (0.0, *(float(weight) for weight in np.geomspace(0.001, 2.0, 40)))


@dataclass(frozen=True, slots=True)
class CurvePoint:
    """One setting: accuracy, mean cost a question with the best single expert's as 1, and the gain over that expert."""

    setting: float
    accuracy: float
    cost: float
    gain: Interval


@dataclass(frozen=True, slots=True)
class CostCurve:
    """Points over `cost_weight`; `area` and `aiq` are in accuracy, `apgr` in [0, 1] or beyond.

    `cheapest_equal` is the cheapest point at least as accurate as the best single expert, `best_within` the most
    accurate one that costs no more; both are read off the curve, None where it has no such point.
    """

    points: tuple[CurvePoint, ...]
    aiq: float
    apgr: float | None
    cheapest_equal: CurvePoint | None
    best_within: CurvePoint | None


def cost_curve(
    table: Table, crossed: CrossValidated, best_single: Bools, weights: Sequence[float] = COST_WEIGHTS
) -> CostCurve:
    """Route under every weight; costs are what the chosen answers really cost, not what the policy expected."""
    best_cost = _best_cost(table, crossed)
    points = []
    for weight in weights:
        columns = choose(crossed.quality, crossed.relative_cost, weight)
        right = picked(table, columns)
        cost = float(table.cost[np.arange(len(columns)), columns].mean()) / best_cost
        points.append(CurvePoint(weight, float(right.mean()), cost, paired_bootstrap(right, best_single)))
    equal = [point for point in points if point.gain.value >= 0]
    within = [point for point in points if point.cost <= 1 + 1e-9]
    return CostCurve(
        points=tuple(points),
        aiq=aiq([(point.cost, point.accuracy) for point in points]),
        apgr=_apgr_of_table(table, crossed),
        cheapest_equal=min(equal, key=lambda point: point.cost, default=None),
        best_within=max(within, key=lambda point: point.accuracy, default=None),
    )


def aiq(points: Sequence[tuple[float, float]]) -> float:
    """Average improvement in quality: mean height of the non-decreasing hull over its costs (RouterBench, section 3).

    Points are (cost, accuracy). One cost only gives the best accuracy there.
    """
    hull = pareto_hull(points)
    if len(hull) == 1:
        return hull[0][1]
    costs, accuracies = (np.array(axis) for axis in zip(*hull, strict=True))
    return float(np.trapezoid(accuracies, costs) / (costs[-1] - costs[0]))


def pareto_hull(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """Upper convex hull, from the cheapest point to the most accurate one."""
    top = max(points, key=lambda point: (point[1], -point[0]))
    hull: list[tuple[float, float]] = []
    for point in sorted(set(points), key=lambda point: (point[0], -point[1])):
        if point[0] > top[0] or (hull and point[0] == hull[-1][0]):
            continue
        while len(hull) >= 2 and _is_under(hull[-2], hull[-1], point):
            hull.pop()
        hull.append(point)
    return hull


def apgr(gap: Floats, strong: Bools, weak: Bools) -> float:
    """Average performance gap recovered (RouteLLM, section 2.2): 0 is the weak model's accuracy, 1 the strong one's.

    `gap` (n,) is how much better the router thinks the strong model to be; the share of questions sent to it, largest
    gap first, runs from 0 to 1.

    Raises:
        ValueError: both models are equally accurate.
    """
    difference = strong.astype(np.float64) - weak
    if difference.sum() == 0:
        raise ValueError("both models are equally accurate: there is no gap to recover")
    recovered = np.concatenate([[0.0], np.cumsum(difference[np.argsort(-gap, kind="stable")])]) / difference.sum()
    return float(np.trapezoid(recovered, np.linspace(0, 1, len(recovered))))


def _apgr_of_table(table: Table, crossed: CrossValidated) -> float | None:
    """Strong: the most accurate expert; weak: the cheapest. None where they are one, or equally accurate."""
    accuracy, cost = table.correct.mean(axis=0), table.cost.mean(axis=0)
    strong = int(accuracy.argmax())
    weak = int(np.lexsort((accuracy, cost))[0])
    if accuracy[strong] == accuracy[weak]:
        return None
    gap = crossed.quality[:, strong] - crossed.quality[:, weak]
    return apgr(gap, table.correct[:, strong], table.correct[:, weak])


def _best_cost(table: Table, crossed: CrossValidated) -> float:
    columns = choose(crossed.overall, crossed.relative_cost)
    return float(table.cost[np.arange(len(columns)), columns].mean()) or 1.0


def _is_under(a: tuple[float, float], b: tuple[float, float], c: tuple[float, float]) -> bool:
    """Whether b lies on or under the line from a to c."""
    return (b[1] - a[1]) * (c[0] - a[0]) <= (c[1] - a[1]) * (b[0] - a[0])
