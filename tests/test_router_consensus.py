"""Asking several experts: the weights, the stop rule, and its order."""

from __future__ import annotations

import itertools

import pytest
from collegium.router.consensus import CallPolicy, Vote, consensus, next_call, trusted
from collegium.router.decision import Score
from hypothesis import given
from hypothesis import strategies as st

FREE = CallPolicy(call_price=0.0, trust=1.0)


def pool(*qualities: float) -> list[Score]:
    return [Score(f"e{number}", quality, 1.0, quality) for number, quality in enumerate(qualities)]


def test_the_probability_is_bayes_over_the_alternatives() -> None:
    scores = pool(0.7, 0.6, 0.4)
    votes = [Vote("e0", "A"), Vote("e1", "B"), Vote("e2", "B")]
    likelihood = dict.fromkeys("ABCD", 1.0)
    for vote, quality in zip(votes, (0.7, 0.6, 0.4), strict=True):
        for answer in likelihood:
            likelihood[answer] *= quality if answer == vote.answer else (1 - quality) / 3
    result = consensus(scores, votes, 4, FREE)
    assert result.answer == "B"
    assert result.shares["B"] == pytest.approx(likelihood["B"] / sum(likelihood.values()))
    assert result.calls == 3


def test_experts_are_asked_in_order_until_nothing_can_overturn_the_leader() -> None:
    scores = pool(0.9, 0.4, 0.4)
    assert next_call(scores, [], 4, FREE) == "e0"
    assert next_call(scores, [Vote("e0", "A")], 4, FREE) is None
    equal = pool(0.5, 0.5, 0.5)
    assert next_call(equal, [Vote("e0", "A")], 4, FREE) == "e1"
    assert next_call(equal, [Vote("e0", "A"), Vote("e1", "A")], 4, FREE) is None
    assert next_call(equal, [Vote("e0", "A"), Vote("e1", "B")], 4, FREE) == "e2"


@given(st.lists(st.floats(0.0, 1.0), min_size=2, max_size=4), st.integers(2, 5), st.data())
def test_a_free_stop_is_safe(qualities: list[float], alternatives: int, data: st.DataObject) -> None:
    """Where it stops, no answer of the remaining experts changes the winner (beyond a tie)."""
    scores = pool(*qualities)
    names = "ABCDE"[:alternatives]
    votes: list[Vote] = []
    while (expert := next_call(scores, votes, alternatives, FREE)) is not None:
        votes.append(Vote(expert, data.draw(st.sampled_from(names))))
    before = consensus(scores, votes, alternatives, FREE)
    rest = [score.expert for score in scores[len(votes) :]]
    for answers in itertools.product(names, repeat=len(rest)):
        more = [*votes, *(Vote(expert, answer) for expert, answer in zip(rest, answers, strict=True))]
        after = consensus(scores, more, alternatives, FREE)
        assert after.shares[before.answer or ""] >= max(after.shares.values()) * (1 - 1e-9)


def test_a_price_ends_the_asking_earlier() -> None:
    scores = pool(0.5, 0.45, 0.45, 0.45)
    votes = [Vote("e0", "A")]
    assert next_call(scores, votes, 4, FREE) == "e1"
    assert next_call(scores, votes, 4, CallPolicy(call_price=0.2, trust=1.0)) is None


def test_calls_are_bounded_and_excluded_experts_never_asked() -> None:
    scores = [*pool(0.5, 0.5, 0.5), Score("out", 0.9, 1.0, 0.9, excluded="not ready")]
    votes = [Vote("e0", "A"), Vote("e1", "B")]
    assert next_call(scores, votes, 4, CallPolicy(call_price=0.0, max_calls=2)) is None
    assert next_call(scores, [*votes, Vote("e2", "C")], 4, FREE) is None


def test_unreadable_answers_count_for_nobody() -> None:
    scores = pool(0.9, 0.4)
    assert next_call(scores, [Vote("e0", None)], 4, FREE) == "e1"
    result = consensus(scores, [Vote("e0", None), Vote("e1", "C")], 4, FREE)
    assert result.answer == "C"
    assert consensus(scores, [Vote("e0", None)], 4, FREE).answer is None


@pytest.mark.parametrize("trust", [0.3, 1.0])
def test_trust_tempers_the_odds(trust: float) -> None:
    assert trusted(0.6, 4, 1.0) == pytest.approx(0.6)
    odds = trusted(0.6, 4, trust) * 3 / (1 - trusted(0.6, 4, trust))
    assert odds == pytest.approx((0.6 * 3 / 0.4) ** trust)
    assert trusted(0.0, 4, trust) == pytest.approx(trusted(0.2, 4, trust))
    assert trusted(0.0, 4, trust) > 0.25


def test_bad_bounds_are_refused() -> None:
    with pytest.raises(ValueError, match="trust 0"):
        CallPolicy(trust=0)
    with pytest.raises(ValueError, match="1 possible answers"):
        next_call(pool(0.5, 0.5), [Vote("e0", "A")], 1, FREE)
