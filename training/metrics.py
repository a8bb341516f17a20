"""How good a router is on labelled prompts: accuracy, macro-F1, calibration, precision and recall of each domain."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from ..router.calibration import Floats, Targets, brier, ece


@dataclass(frozen=True, slots=True)
class Share:
    """A share of `rows` with its 95 % interval (Wilson 1927); `value` is None where there are no rows."""

    value: float | None
    low: float
    high: float
    rows: int


def share(held: NDArray[np.bool_]) -> Share:
    """The share of rows for which something holds."""
    rows = len(held)
    if rows == 0:
        return Share(None, 0.0, 1.0, 0)
    value, z2 = float(np.mean(held)), 1.959964**2
    centre = (value + z2 / (2 * rows)) / (1 + z2 / rows)
    half = float(np.sqrt(value * (1 - value) * z2 / rows + z2**2 / (4 * rows**2))) / (1 + z2 / rows)
    return Share(value, min(value, max(0.0, centre - half)), max(value, min(1.0, centre + half)), rows)


@dataclass(frozen=True, slots=True)
class DomainScore:
    """`precision` is None where the domain was never predicted."""

    domain: str
    rows: int
    precision: float | None
    recall: float
    f1: float


@dataclass(frozen=True, slots=True)
class Scores:
    """`coverage` is the share of rows at or above the threshold, `precision` the share of those that are right."""

    rows: int
    accuracy: float
    macro_f1: float
    ece: float
    brier: float
    threshold: float
    coverage: float
    precision: float | None
    domains: tuple[DomainScore, ...]

    def as_dict(self) -> dict[str, JsonValue]:
        return {**asdict(self), "domains": [asdict(domain) for domain in self.domains]}


def score(probabilities: Floats, targets: Targets, labels: Sequence[str], threshold: float = 0.0) -> Scores:
    """Scores of probabilities, shape (n, k), against the true classes; domains without rows are left out of the mean.

    Raises:
        ValueError: there are no rows.
    """
    if not len(targets):
        raise ValueError("no rows to score")
    predicted = probabilities.argmax(axis=1)
    right = predicted == targets
    kept = probabilities.max(axis=1) >= threshold
    domains = tuple(
        _domain_score(labels[k], predicted == k, targets == k) for k in range(len(labels)) if np.any(targets == k)
    )
    return Scores(
        rows=len(targets),
        accuracy=float(right.mean()),
        macro_f1=float(np.mean([domain.f1 for domain in domains])),
        ece=ece(probabilities, targets),
        brier=brier(probabilities, targets),
        threshold=threshold,
        coverage=float(kept.mean()),
        precision=float(right[kept].mean()) if kept.any() else None,
        domains=domains,
    )


def _domain_score(domain: str, said: Sequence[bool], true: Sequence[bool]) -> DomainScore:
    both = int(np.sum(np.logical_and(said, true)))
    predicted, rows = int(np.sum(said)), int(np.sum(true))
    return DomainScore(
        domain=domain,
        rows=rows,
        precision=both / predicted if predicted else None,
        recall=both / rows,
        f1=2 * both / (predicted + rows),
    )
