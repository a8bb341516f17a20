"""Replay of policies that ask several experts a question: the accuracy-calls curve."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ..router.consensus import CallPolicy, Vote, consensus, gain_per_call
from ..router.decision import Score
from .statistics import Interval, paired_bootstrap
from .table import Bools, Floats, Ints, Table

CALL_PRICES = (0.05, 0.03, 0.02, 0.015, 0.01, 0.0075, 0.005, 0.0025, 0.001, 0.0)
OPEN_ALTERNATIVES = 10
"""How many answers an open question is taken to have."""


@dataclass(frozen=True, eq=False, slots=True)
class Polled:
    """What a policy did: right or wrong, calls and cost of each question, (n,)."""

    right: Bools
    calls: Ints
    cost: Floats


@dataclass(frozen=True, slots=True)
class CallPoint:
    """One policy's mean calls a question, cost, accuracy and gain over the baseline given."""

    policy: CallPolicy
    calls: float
    cost: float
    accuracy: float
    gain: Interval


@dataclass(frozen=True, eq=False, slots=True)
class Walks:
    """Every question asked of the whole pool, best expert first; (n, m) each.

    Column t tells, after t + 1 calls: whether the leading answer is right, what was spent, and what asking on promises
    a call (minus infinity at the end). A policy is a price at which to stop, so one walk serves all prices.
    """

    right: Bools
    cost: Floats
    gain: Floats

    def stopped(self, call_price: float) -> Polled:
        """Each question where `next_call` would end it."""
        last = (self.gain <= call_price).argmax(axis=1)
        rows = np.arange(len(last))
        return Polled(self.right[rows, last], np.asarray(last + 1, dtype=np.int64), self.cost[rows, last])


def walk(table: Table, quality: Floats, relative_cost: Floats, policy: CallPolicy, cost_weight: float = 0.0) -> Walks:
    """Ask from the records in order of utility; an answer is right if an expert that gave it was.

    `quality` and `relative_cost` are (n, m); the price in `policy` plays no part here.
    """
    shape = table.correct.shape
    right, cost, gain = np.zeros(shape, dtype=bool), np.zeros(shape), np.full(shape, -np.inf)
    order = np.lexsort((relative_cost, cost_weight * relative_cost - quality))
    steps = min(policy.max_calls, shape[1])
    for row in range(shape[0]):
        alternatives = len(table.samples[row].choices) or OPEN_ALTERNATIVES
        scores = [
            Score(table.experts[e], float(quality[row, e]), float(relative_cost[row, e]), float(quality[row, e]))
            for e in order[row]
        ]
        votes: list[Vote] = []
        for step, e in enumerate(order[row][:steps]):
            votes.append(Vote(table.experts[e], table.answers[row][e]))
            winner = consensus(scores, votes, alternatives, policy).answer
            right[row, step] = winner is not None and _is_right(table, row, winner)
            if step + 1 < steps:
                gain[row, step] = gain_per_call(scores, votes, alternatives, policy)
        cost[row, :] = table.cost[row, order[row]].cumsum()
    return Walks(right, cost, gain)


def calls_curve(
    table: Table, quality: Floats, relative_cost: Floats, baseline: Bools, policy: CallPolicy | None = None
) -> list[CallPoint]:
    """The policy at every price of CALL_PRICES; gains are over `baseline`, (n,)."""
    policy = policy or CallPolicy(max_calls=len(table.experts))
    walks = walk(table, quality, relative_cost, policy)
    points = []
    for price in CALL_PRICES:
        polled = walks.stopped(price)
        points.append(
            CallPoint(
                policy=replace(policy, call_price=price),
                calls=float(polled.calls.mean()),
                cost=float(polled.cost.mean()),
                accuracy=float(polled.right.mean()),
                gain=paired_bootstrap(polled.right, baseline),
            )
        )
    return points


def equal_vote(table: Table) -> Bools:
    """(n,) whether the most frequent readable answer of all experts is right; of equals the one given first."""
    right = np.zeros(len(table.samples), dtype=bool)
    for row, answers in enumerate(table.answers):
        readable = [answer for answer in answers if answer is not None]
        right[row] = bool(readable) and _is_right(table, row, max(readable, key=readable.count))
    return right


def has_answers(table: Table) -> bool:
    """Whether the records say what was answered, and not only whether it was right."""
    return all(answer != "" for answers in table.answers for answer in answers)


def _is_right(table: Table, row: int, answer: str) -> bool:
    """Whether an expert that gave this answer was right."""
    given = zip(table.answers[row], table.correct[row], strict=True)
    return any(bool(right) for other, right in given if other == answer)
