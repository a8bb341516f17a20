"""From a prompt's vector and posterior to each expert's probability of answering right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from .calibration import Floats
from .regions import Bools, Ints, Regions, find_regions
from .skills import soft_skills

PENALTIES = (30.0, 100.0, 300.0, 1_000.0, 3_000.0)
"""Ridge penalties tried for what the vector says beyond the domain; none at all is tried too."""
LEAST, MOST = 0.01, 0.99


@dataclass(frozen=True, eq=False, slots=True)
class OutcomeModel:
    """q(e | x) = sigmoid(shift + slope * logit(sum over columns of p(column | x) * skill + weight * (x - mean))).

    `skills` (experts, columns of the regions), `weight` (experts, d), `mean` (d,), `shift` and `slope` (experts,).
    """

    regions: Regions
    skills: Floats
    weight: Floats
    mean: Floats
    shift: Floats
    slope: Floats

    def qualities(self, vectors: Floats, posterior: Floats) -> Floats:
        """(n, experts), calibrated, from (n, d) and (n, domains)."""
        return _sigmoid(self.shift + self.slope * _logit(self.raw(vectors, posterior)))

    def raw(self, vectors: Floats, posterior: Floats) -> Floats:
        """The same before calibration."""
        base: Floats = self.regions.spread(vectors, posterior) @ self.skills.T
        return base + (vectors - self.mean) @ self.weight.T


@dataclass(frozen=True, slots=True)
class Tried:
    """Mean squared error on held-out folds of each penalty; None stands for no correction."""

    error: Mapping[float | None, float]

    @property
    def best(self) -> float | None:
        return min(self.error, key=lambda penalty: self.error[penalty])


@dataclass(frozen=True, eq=False, slots=True)
class Fit:
    """A model and what was found on the way: `held_out` (n, experts) are qualities by folds without the prompt.

    `difficulty` is the correction that all experts share, `difference` the one that is each expert's own.
    """

    model: OutcomeModel
    difficulty: Tried
    difference: Tried
    held_out: Floats


def fit_outcome_model(
    vectors: Floats, posterior: Floats, domain: Ints, correct: Bools, fold: Ints, seed: int = 0
) -> Fit:
    """Learn from which experts were right, `correct` (n, experts).

    `posterior` (n, domains) comes from folds without the prompt, `fold` (n,) says which; skills are counted in the true
    `domain` (n,). How hard a prompt is for all and who is better at it are learnt apart, each with the ridge penalty
    that has the least error on held-out folds: where the vector tells nothing beyond the domain, with no correction.
    """
    right = correct.astype(np.float64)
    regions = find_regions(vectors, domain, correct, posterior.shape[1], seed)
    truth = regions.spread(vectors, np.eye(posterior.shape[1])[domain])
    spread = regions.spread(vectors, posterior)
    base = np.zeros_like(right)
    for held in np.unique(fold):
        rest = fold != held
        base[~rest] = spread[~rest] @ soft_skills(truth[rest], right[rest], right[rest].mean(axis=0)).T
    shared = (right - base).mean(axis=1, keepdims=True)
    mean = vectors.mean(axis=0)
    whole = _Ridge(vectors - mean)
    raw, weight, tried = base.copy(), np.zeros((right.shape[1], vectors.shape[1])), []
    for target in (shared, right - base - shared):
        predicted = _held_out(vectors, target, fold)
        tried.append(Tried({penalty: float(((made - target) ** 2).mean()) for penalty, made in predicted.items()}))
        raw += predicted[tried[-1].best]
        weight += whole.weights(target, tried[-1].best)
    shift, slope = _platt(raw, right)
    model = OutcomeModel(regions, soft_skills(truth, right, right.mean(axis=0)), weight, mean, shift, slope)
    return Fit(model, tried[0], tried[1], _sigmoid(shift + slope * _logit(raw)))


class _Ridge:
    """Ridge regressions of many targets and penalties on the same rows: one eigendecomposition serves all."""

    def __init__(self, rows: Floats) -> None:
        self._rows = rows
        self._values, self._basis = np.linalg.eigh(rows.T @ rows)

    def weights(self, targets: Floats, penalty: float | None) -> Floats:
        """(targets, d) from (n, targets); zeros where there is no penalty."""
        if penalty is None:
            return np.zeros((targets.shape[1], self._rows.shape[1]))
        projected = self._basis.T @ (self._rows.T @ (targets - targets.mean(axis=0)))
        found: Floats = (self._basis @ (projected / (self._values[:, None] + penalty))).T
        return found


def _held_out(vectors: Floats, targets: Floats, fold: Ints) -> dict[float | None, Floats]:
    """What ridge regressions on the other folds predict of `targets` (n, t), for each penalty."""
    made: dict[float | None, Floats] = {penalty: np.zeros_like(targets) for penalty in (None, *PENALTIES)}
    for held in np.unique(fold):
        rest = fold != held
        mean = vectors[rest].mean(axis=0)
        ridge = _Ridge(vectors[rest] - mean)
        for penalty, predicted in made.items():
            predicted[~rest] = (vectors[~rest] - mean) @ ridge.weights(targets[rest], penalty).T
    return made


def _platt(raw: Floats, right: Floats) -> tuple[Floats, Floats]:
    """Shift and slope of each expert, the least log-loss (Platt 1999); a slope under 0 would turn the order round."""
    from sklearn.linear_model import LogisticRegression

    shift, slope = np.zeros(raw.shape[1]), np.ones(raw.shape[1])
    for expert in range(raw.shape[1]):
        target = right[:, expert]
        if 0 < target.mean() < 1:
            line = LogisticRegression(C=1.0).fit(_logit(raw[:, [expert]]), target)
            if line.coef_[0, 0] > 0:
                shift[expert], slope[expert] = line.intercept_[0], line.coef_[0, 0]
    return shift, slope


def _logit(share: Floats) -> Floats:
    bounded = np.clip(share, LEAST, MOST)
    made: Floats = np.log(bounded / (1 - bounded))
    return made


def _sigmoid(score: Floats) -> Floats:
    made: Floats = 1 / (1 + np.exp(-score))
    return made
