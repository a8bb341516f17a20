"""A class from a few examples: its prototype against those of the old classes, its gate and its calibration."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..router.calibration import Floats
from ..router.extension import Extension

FOLDS = 5
SHRINKAGE = 1.0
"""Times the mean variance, added to every variance: a few hundred prompts tell little of most directions."""


@dataclass(frozen=True, slots=True)
class Placed:
    """An extension, and margins that it did not see: of each example and of each old prompt."""

    extension: Extension
    examples: Floats
    old: Floats


def place(
    label: str, examples: Floats, old: Floats, routes: NDArray[np.intp], classes: int, max_changed: float
) -> Placed:
    """The extension of unit vectors of `examples`, (n, d), against those of `old` prompts, (m, d), by their routes.

    At most `max_changed` of the old prompts, each judged by prototypes made without it, lie above the gate. Odds are
    Platt's (1999), of a class as frequent as each of the `classes` old ones on average.

    Raises:
        ValueError: the examples lie where the old prompts lie.
    """
    order = np.random.default_rng(0).permutation(len(old)) % FOLDS
    margins = np.empty(len(old))
    for fold in range(FOLDS):
        held = order == fold
        background = _Background(old[~held], routes[~held])
        margins[held] = background.margins(examples.mean(axis=0)[np.newaxis], old[held])
    background = _Background(old, routes)
    alone = _without_each(examples)
    own = np.array(
        [background.margins(mean[np.newaxis], row[np.newaxis])[0] for mean, row in zip(alone, examples, strict=True)]
    )
    gate = float(np.sort(margins)[::-1][min(int(max_changed * len(margins)), len(margins) - 1)])
    slope, shift = _platt(own, margins, 1 / (classes + 1))
    if slope <= 0:
        raise ValueError(f"the examples of {label!r} lie among the prompts of other labels; give more telling ones")
    means = np.vstack([examples.mean(axis=0), background.means])
    prototypes, offsets = background.scoring(means)
    extension = Extension(
        label, prototypes.astype(np.float32), offsets.astype(np.float32), gate, slope, shift
    )  # fmt: skip
    return Placed(extension, own, margins)


class _Background:
    """Old classes' means, and the inverse of the covariance that they share: linear discriminants (Fisher 1936)."""

    def __init__(self, vectors: Floats, routes: NDArray[np.intp]) -> None:
        present, place = np.unique(routes, return_inverse=True)
        self.means: Floats = np.stack([vectors[routes == route].mean(axis=0) for route in present])
        within = vectors - self.means[place]
        covariance = within.T @ within / len(vectors)
        shrunk = covariance + SHRINKAGE * np.trace(covariance) / len(covariance) * np.eye(len(covariance))
        self._inverse: Floats = np.linalg.inv(shrunk)

    def scoring(self, means: Floats) -> tuple[Floats, Floats]:
        """Directions and offsets whose scores rank means by their distance."""
        directions = means @ self._inverse
        return directions, -0.5 * np.einsum("kd,kd->k", directions, means)

    def margins(self, new: Floats, vectors: Floats) -> Floats:
        """How much better the new mean, shape (1, d), scores each vector than the best old one does."""
        directions, offsets = self.scoring(np.vstack([new, self.means]))
        scores = vectors @ directions.T + offsets
        margins: Floats = scores[:, 0] - scores[:, 1:].max(axis=1)
        return margins


def _without_each(examples: Floats) -> Floats:
    """The mean of all examples but one, for each; a single example stands for itself."""
    if len(examples) == 1:
        return examples
    means: Floats = (examples.sum(axis=0) - examples) / (len(examples) - 1)
    return means


def _platt(positive: Floats, negative: Floats, prior: float, steps: int = 50) -> tuple[float, float]:
    """Slope and shift of the log-odds, by Newton's method; both sides weighed to `prior`."""
    margins = np.concatenate([positive, negative])
    centre, scale = margins.mean(), margins.std() + 1e-12
    features = np.stack([(margins - centre) / scale, np.ones_like(margins)], axis=1)
    targets = np.concatenate(
        [
            np.full(len(positive), (len(positive) + 1) / (len(positive) + 2)),
            np.full(len(negative), 1 / (len(negative) + 2)),
        ]
    )
    weights = np.concatenate(
        [np.full(len(positive), prior / len(positive)), np.full(len(negative), (1 - prior) / len(negative))]
    )
    solution = np.array([1.0, np.log(prior / (1 - prior))])
    ridge = np.diag([1e-4, 1e-6])
    for _ in range(steps):
        chances = 1 / (1 + np.exp(-np.clip(features @ solution, -30, 30)))
        gradient = features.T @ (weights * (chances - targets)) + ridge @ solution
        curvature = (features * (weights * chances * (1 - chances))[:, np.newaxis]).T @ features + ridge
        solution -= np.linalg.solve(curvature, gradient)
    slope, shift = solution
    return float(slope / scale), float(shift - slope * centre / scale)
