"""Ask several experts, weigh their answers by log-odds of quality, stop when a further call is not worth it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from .decision import Score

# Qualities are estimates: none may make an expert infallible, or its vote count for nothing.
MOST_QUALITY = 0.97
LEAST_WEIGHT = 0.01


@dataclass(frozen=True, slots=True)
class Vote:
    """An expert's answer in a form in which equal answers are equal, or None where it could not be read."""

    expert: str
    answer: str | None


@dataclass(frozen=True, slots=True)
class CallPolicy:
    """When to ask one expert more.

    `call_price`: the gain in probability of a right answer that a call must promise; 0 asks while any bundle of further
    calls could still overturn the leader. `trust`: the share of its log-odds that a vote counts, under 1 because
    experts err alike. `max_calls` bounds a question's calls.
    """

    call_price: float = 0.01
    max_calls: int = 6
    trust: float = 0.8

    def __post_init__(self) -> None:
        if not 0 <= self.call_price < 1 or not 0 < self.trust <= 1 or self.max_calls < 1:
            raise ValueError(
                f"call_price {self.call_price}, trust {self.trust}, max_calls {self.max_calls}: "
                "need 0 <= call_price < 1, 0 < trust <= 1, max_calls of 1 or more"
            )


@dataclass(frozen=True, slots=True)
class Consensus:
    """The answer that leads, or None while nobody gave a readable one; `shares` is p(right) of each answer given."""

    answer: str | None
    shares: Mapping[str, float]
    calls: int


def next_call(scores: Sequence[Score], votes: Sequence[Vote], alternatives: int, policy: CallPolicy) -> str | None:
    """The expert to ask now, or None: the leader stands.

    Experts are asked in the order of `scores`, a decision's, best first. `alternatives` is how many answers the
    question allows (a guess serves where it is open).
    """
    waiting = _waiting(scores, votes, policy)
    if not waiting or gain_per_call(scores, votes, alternatives, policy) <= policy.call_price:
        return None
    return waiting[0].expert


def gain_per_call(scores: Sequence[Score], votes: Sequence[Vote], alternatives: int, policy: CallPolicy) -> float:
    """What asking on promises: probability of a right answer gained, a call; infinite while nothing leads.

    The model: an expert is right with probability `trusted(quality)`, otherwise any wrong answer is as likely. Under it
    a bundle of the next j experts gains, where all j agree on another answer than the leader's, the excess of that
    answer's probability over the leader's; the best bundle counts, divided by j. Looking at bundles matters: after one
    answer no single second one can overturn it, two can.
    """
    shares = _shares(scores, votes, alternatives, policy)
    if not shares:
        return math.inf
    leader, *rivals = sorted(shares.values(), reverse=True)
    unseen = max(0, alternatives - len(shares))
    per_unseen = max(0.0, 1 - sum(shares.values())) / unseen if unseen else 0.0
    agree = differ = 1.0
    best = 0.0
    for size, score in enumerate(_waiting(scores, votes, policy), start=1):
        quality = trusted(score.quality, alternatives, policy.trust)
        agree *= quality
        differ *= (1 - quality) / (alternatives - 1)
        gain = unseen * max(0.0, per_unseen * agree - leader * differ)
        gain += sum(max(0.0, rival * agree - leader * differ) for rival in rivals)
        best = max(best, gain / size)
    return best


def consensus(scores: Sequence[Score], votes: Sequence[Vote], alternatives: int, policy: CallPolicy) -> Consensus:
    """The answer with the most weight; of equals the one given first."""
    shares = _shares(scores, votes, alternatives, policy)
    answer = max(shares, key=lambda given: shares[given]) if shares else None
    return Consensus(answer, shares, len(votes))


def trusted(quality: float, alternatives: int, trust: float) -> float:
    """The quality whose log-odds against any one wrong answer are `trust` times those of `quality`.

    Log-odds of this kind are the weights that make the best group decision of independent voters (Nitzan and Paroush
    1982); what is under the guessing rate is lifted just over it.
    """
    bounded = min(max(quality, 0.0), MOST_QUALITY)
    odds = bounded * (alternatives - 1) / (1 - bounded)
    factor = math.exp(trust * max(LEAST_WEIGHT, math.log(odds) if odds > 0 else LEAST_WEIGHT))
    return factor / (factor + alternatives - 1)


def _waiting(scores: Sequence[Score], votes: Sequence[Vote], policy: CallPolicy) -> Sequence[Score]:
    asked = {vote.expert for vote in votes}
    waiting = [score for score in scores if score.excluded is None and score.expert not in asked]
    return waiting[: max(0, policy.max_calls - len(votes))]


def _shares(
    scores: Sequence[Score], votes: Sequence[Vote], alternatives: int, policy: CallPolicy
) -> Mapping[str, float]:
    """Probability of each answer given so far; what is left belongs to the answers nobody gave."""
    if alternatives < 2:
        raise ValueError(f"a question with {alternatives} possible answers has nothing to vote on; need 2 or more")
    quality = {score.expert: score.quality for score in scores}
    factors: dict[str, float] = {}
    for vote in votes:
        if vote.answer is not None:
            right = trusted(quality[vote.expert], alternatives, policy.trust)
            factors[vote.answer] = factors.get(vote.answer, 1.0) * right * (alternatives - 1) / (1 - right)
    total = sum(factors.values()) + max(0, alternatives - len(factors))
    return {answer: factor / total for answer, factor in factors.items()}
