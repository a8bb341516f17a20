"""Tests and intervals for paired right/wrong outcomes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri
from scipy.stats import binom, binomtest

Bools = NDArray[np.bool_]

RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with its two-sided interval."""

    value: float
    low: float
    high: float

    @property
    def excludes_zero(self) -> bool:
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, slots=True)
class Comparison:
    """A against B on the same `n` samples: `gain` in accuracy, `only_a` and `only_b` right alone, McNemar's p."""

    gain: Interval
    only_a: int
    only_b: int
    n: int
    p: float


def wilson(right: int, total: int, confidence: float = 0.95) -> Interval:
    """Wilson's score interval of a share (Wilson 1927); [0, 1] where there is no trial.

    Raises:
        ValueError: not 0 <= right <= total, or a confidence outside (0, 1).
    """
    if not 0 <= right <= total or not 0 < confidence < 1:
        raise ValueError(
            f"{right} right of {total} at confidence {confidence}: need 0 <= right <= total, 0 < confidence < 1"
        )
    if total == 0:
        return Interval(float("nan"), 0.0, 1.0)
    z2 = float(ndtri(0.5 + confidence / 2)) ** 2
    share = right / total
    centre = (share + z2 / (2 * total)) / (1 + z2 / total)
    half = np.sqrt(share * (1 - share) * z2 / total + z2**2 / (4 * total**2)) / (1 + z2 / total)
    low, high = centre - float(half), centre + float(half)
    return Interval(share, min(share, max(0.0, low)), max(share, min(1.0, high)))  # rounding may pass 0, 1, the share


def mcnemar(only_a: int, only_b: int) -> float:
    """Two-sided exact p of "A and B are equally good", from the samples that one alone had right (McNemar 1947)."""
    if only_a + only_b == 0:
        return 1.0
    return float(binomtest(only_a, only_a + only_b, 0.5).pvalue)


def mcnemar_greater(only_a: int, only_b: int) -> float:
    """One-sided exact p of "A is not better than B"."""
    return float(binom.sf(only_a - 1, only_a + only_b, 0.5))


def paired_bootstrap(a: Bools, b: Bools, confidence: float = 0.95, seed: int = 0) -> Interval:
    """Percentile bootstrap over samples (Efron 1979) of the difference in accuracy; right/wrong, (n,) each.

    A sample counts +1, 0 or -1, so resampling samples is drawing these three counts: exact, and fast.

    Raises:
        ValueError: no samples, or not as many in `a` as in `b`.
    """
    if len(a) != len(b) or len(a) == 0:
        raise ValueError(f"{len(a)} outcomes against {len(b)}: need as many, and at least one")
    n, only_a, only_b = len(a), int((a & ~b).sum()), int((b & ~a).sum())
    shares = [only_a / n, only_b / n, (n - only_a - only_b) / n]
    drawn = np.random.default_rng(seed).multinomial(n, shares, size=RESAMPLES)
    low, high = np.quantile((drawn[:, 0] - drawn[:, 1]) / n, [0.5 - confidence / 2, 0.5 + confidence / 2])
    return Interval((only_a - only_b) / n, float(low), float(high))


def compare(a: Bools, b: Bools, confidence: float = 0.95, seed: int = 0) -> Comparison:
    """Paired comparison of right/wrong, (n,) each."""
    only_a, only_b = int((a & ~b).sum()), int((b & ~a).sum())
    return Comparison(paired_bootstrap(a, b, confidence, seed), only_a, only_b, len(a), mcnemar(only_a, only_b))


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment (Holm 1979), in the order given."""
    adjusted = [0.0] * len(p_values)
    running = 0.0
    for rank, position in enumerate(sorted(range(len(p_values)), key=lambda index: p_values[index])):
        running = max(running, min(1.0, (len(p_values) - rank) * p_values[position]))
        adjusted[position] = running
    return adjusted


def unpaired_gain(right_a: int, right_b: int, n: int, confidence: float = 0.95) -> Interval:
    """Difference of two shares of the same `n`, pairs unknown: Newcombe's hybrid of Wilson's intervals (1998)."""
    a, b = wilson(right_a, n, confidence), wilson(right_b, n, confidence)
    difference = a.value - b.value
    low = difference - float(np.hypot(a.value - a.low, b.high - b.value))
    high = difference + float(np.hypot(a.high - a.value, b.value - b.low))
    return Interval(difference, low, high)


def unpaired_greater(right_a: int, right_b: int, n: int) -> float:
    """One-sided p of "A is not better than B", two proportions of the same `n`, pairs unknown (pooled z-test)."""
    pooled = (right_a + right_b) / (2 * n)
    if pooled in (0.0, 1.0):
        return 0.5
    z = (right_a - right_b) / np.sqrt(2 * n * pooled * (1 - pooled))
    return float(ndtr(-z))
