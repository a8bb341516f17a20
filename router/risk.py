"""The threshold that bounds the share of wrong routes, with a guarantee: Learn then Test (Angelopoulos et al. 2021)."""

from __future__ import annotations

from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from .calibration import NEVER, Floats

GRID = (*np.arange(0, 0.98, 0.02).round(2).tolist(), 0.98, 0.99, 0.995, 0.999, 0.9995, 0.9999)
STARTS = (0.9999, 0.999, 0.99, 0.94, 0.86, 0.7)
"""Where the tests begin on their way down; each start gets an equal part of the permitted error."""


@dataclass(frozen=True, slots=True)
class RiskControl:
    """A threshold with its proof: of `rows` held-out prompts `routed` stand at or above it, `wrong` of these wrongly.

    `bound` is the upper end, at `level`, of the share of wrong routes at the threshold; None where nothing is routed.
    """

    alpha: float
    level: float
    threshold: float
    rows: int
    routed: int
    wrong: int
    bound: float | None

    @property
    def possible(self) -> bool:
        return self.bound is not None

    @property
    def guarantee(self) -> str:
        """What is promised, and for which prompts, in words."""
        if not self.possible:
            return (
                f"No threshold can promise that at most {self.alpha:.1%} of the routed prompts go to a wrong domain: "
                f"{self.rows} held-out prompts do not show it with confidence {self.level:.0%}. "
                "Nothing is routed; the generalist answers every prompt."
            )
        return (
            f"With confidence {self.level:.0%} over the draw of the {self.rows} held-out prompts, at most "
            f"{self.alpha:.1%} of the routed prompts go to a wrong domain. This holds for prompts exchangeable with "
            "the held-out ones only: other sources, styles, languages or shares of domains are not covered."
        )

    def as_dict(self) -> dict[str, JsonValue]:
        return {**asdict(self), "guarantee": self.guarantee}


def check_risk(alpha: float, level: float) -> None:
    """Refuse what cannot be promised.

    Raises:
        ValueError: alpha or the level is not over 0 and under 1.
    """
    for name, value in (("alpha", alpha), ("confidence", level)):
        if not 0 < value < 1:
            raise ValueError(f"{name} is {value}; it must be over 0 and under 1")


def control_risk(confidences: Floats, right: NDArray[np.bool_], alpha: float, level: float = 0.9) -> RiskControl:
    """The least threshold of GRID at which P(wrong domain | routed) <= alpha, with probability `level` over the rows.

    The rows, (n,) each, must be independent draws that neither the classifier nor its calibration saw. Prompts that
    are never routed have confidence -1. Each threshold is tested by the exact binomial bound (Clopper and Pearson
    1934): given how many rows are routed, the wrong ones are binomial. From every start the tests go down the grid
    until one fails (fixed-sequence testing), so no other correction than that for the starts is due.

    Raises:
        ValueError: alpha or the level is not over 0 and under 1.
    """
    check_risk(alpha, level)
    each = 1 - (1 - level) / len(STARTS)
    passed = [threshold for start in STARTS for threshold in _passing(start, confidences, right, alpha, each)]
    threshold = min(passed, default=NEVER)
    routed = confidences >= threshold
    wrong = int((routed & ~right).sum())
    bound = upper_bound(wrong, int(routed.sum()), each) if passed else None
    return RiskControl(alpha, level, threshold, len(right), int(routed.sum()), wrong, bound)


def upper_bound(wrong: int, routed: int, level: float) -> float:
    """Clopper and Pearson's one-sided upper bound of a share, exact; 1.0 without a trial."""
    from scipy.stats import beta

    return 1.0 if wrong >= routed else float(beta.ppf(level, wrong + 1, routed - wrong))


def _passing(start: float, confidences: Floats, right: NDArray[np.bool_], alpha: float, level: float) -> list[float]:
    passed: list[float] = []
    for threshold in sorted((value for value in GRID if value <= start), reverse=True):
        routed = confidences >= threshold
        if upper_bound(int((routed & ~right).sum()), int(routed.sum()), level) > alpha:
            break
        passed.append(threshold)
    return passed
