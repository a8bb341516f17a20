"""Replay of policies that ask several experts a question: the accuracy-calls curve."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ..router.consensus import CallPolicy, Vote, consensus, next_call
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


def poll(table: Table, quality: Floats, relative_cost: Floats, policy: CallPolicy, cost_weight: float = 0.0) -> Polled:
    """Ask expert after expert from the records, as the policy says; `quality` and `relative_cost` are (n, m).

    The answer that wins is right if an expert that gave it was.
    """
    n = len(table.samples)
    right, calls, cost = np.zeros(n, dtype=bool), np.zeros(n, dtype=np.int64), np.zeros(n)
    column = {expert: position for position, expert in enumerate(table.experts)}
    order = np.lexsort((relative_cost, cost_weight * relative_cost - quality))
    for row in range(n):
        alternatives = len(table.samples[row].choices) or OPEN_ALTERNATIVES
        scores = [_score(table.experts[e], quality[row, e], relative_cost[row, e], cost_weight) for e in order[row]]
        votes: list[Vote] = []
        while (expert := next_call(scores, votes, alternatives, policy)) is not None:
            votes.append(Vote(expert, table.answers[row][column[expert]]))
        winner = consensus(scores, votes, alternatives, policy).answer
        asked = [column[vote.expert] for vote in votes]
        right[row] = winner is not None and _is_right(table, row, winner)
        calls[row], cost[row] = len(asked), table.cost[row, asked].sum()
    return Polled(right, calls, cost)


def calls_curve(
    table: Table, quality: Floats, relative_cost: Floats, baseline: Bools, policies: Sequence[CallPolicy] | None = None
) -> list[CallPoint]:
    """Poll under each policy, by default one a price of CALL_PRICES; gains are over `baseline`, (n,)."""
    points = []
    for policy in policies or [CallPolicy(call_price=price, max_calls=len(table.experts)) for price in CALL_PRICES]:
        polled = poll(table, quality, relative_cost, policy)
        points.append(
            CallPoint(
                policy=policy,
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


def _score(expert: str, quality: float, cost: float, cost_weight: float) -> Score:
    return Score(expert, quality=float(quality), cost=float(cost), utility=float(quality - cost_weight * cost))
