"""Paired statistics against values from papers and from the definitions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from collegium.evals.statistics import compare, holm, mcnemar, mcnemar_greater, paired_bootstrap, wilson
from hypothesis import given
from hypothesis import strategies as st


def test_wilson_matches_newcombe_1998() -> None:
    interval = wilson(81, 263)  # Newcombe (1998), table I, method 3
    assert (round(interval.low, 4), round(interval.high, 4)) == (0.2553, 0.3662)
    assert wilson(0, 20).low == 0.0
    assert round(wilson(0, 20).high, 4) == 0.1611


def test_wilson_refuses_what_is_no_share() -> None:
    with pytest.raises(ValueError, match="3 right of 2"):
        wilson(3, 2)


@pytest.mark.parametrize(("only_a", "only_b"), [(0, 0), (0, 5), (3, 7), (6, 6), (10, 1)])
def test_mcnemar_is_the_binomial_sum(only_a: int, only_b: int) -> None:
    flips = [sum(flip) for flip in itertools.product((0, 1), repeat=only_a + only_b)]
    tail = max(only_a, only_b)
    expected = min(1.0, 2 * sum(count >= tail for count in flips) / len(flips))
    assert mcnemar(only_a, only_b) == pytest.approx(expected)
    assert mcnemar_greater(only_a, only_b) == pytest.approx(sum(count >= only_a for count in flips) / len(flips))


def test_bootstrap_covers_the_gain_and_is_the_same_again() -> None:
    rng = np.random.default_rng(0)
    inside = 0
    for seed in range(200):
        a, b = rng.random(400) < 0.6, rng.random(400) < 0.55
        interval = paired_bootstrap(a, b, seed=seed)
        inside += interval.low <= 0.05 <= interval.high
    assert 0.90 <= inside / 200 <= 0.99
    assert paired_bootstrap(a, b) == paired_bootstrap(a, b)


def test_compare_counts_who_is_right_alone() -> None:
    a = np.array([True, True, True, False, False])
    b = np.array([True, False, False, True, False])
    result = compare(a, b)
    assert (result.only_a, result.only_b, result.n) == (2, 1, 5)
    assert result.gain.value == pytest.approx(0.2)


def test_holm_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_lies_between_the_raw_value_and_bonferroni(values: list[float]) -> None:
    for raw, adjusted in zip(values, holm(values), strict=True):
        assert raw <= adjusted <= min(1.0, len(values) * raw) + 1e-12
