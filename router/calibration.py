"""Calibration: temperature and vector scaling (Guo et al. 2017), ECE, Brier score, the threshold to abstain under."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Targets = NDArray[np.intp]

TEMPERATURES = (0.05, 20.0)
NEVER = 2.0
"""The threshold that routes nothing: no confidence reaches it, not even 1.0."""
SCALING_PENALTY = 0.002
SCALING_FOLDS = 5


@dataclass(frozen=True, slots=True)
class VectorScaling:
    """A factor and a shift for the logits of each class, k of each; what temperature alone cannot mend."""

    factors: tuple[float, ...]
    shifts: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.factors) != len(self.shifts) or not np.isfinite([*self.factors, *self.shifts]).all():
            raise ValueError(f"factors {self.factors} and shifts {self.shifts} must be finite, one of each a class")

    def applied(self, logits: Floats) -> Floats:
        """Scaled logits, shape (..., k)."""
        scaled: Floats = logits * np.array(self.factors) + np.array(self.shifts)
        return scaled


def softmax(logits: Floats, temperature: float = 1.0) -> Floats:
    """Rows of probabilities from rows of logits, shape (..., classes)."""
    scaled = logits / temperature
    shifted = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    probabilities: Floats = shifted / shifted.sum(axis=-1, keepdims=True)
    return probabilities


def nll(logits: Floats, targets: Targets, temperature: float = 1.0) -> float:
    """Mean negative log-likelihood, in nats."""
    return float(np.mean(row_nll(logits / temperature, targets)))


def row_nll(logits: Floats, targets: Targets) -> Floats:
    """Negative log-likelihood of each row, in nats, shape (n,)."""
    top = logits.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(logits - top).sum(axis=1)) + top[:, 0]
    losses: Floats = log_sum - logits[np.arange(len(targets)), targets]
    return losses


def fit_temperature(logits: Floats, targets: Targets) -> float:
    """The temperature with the least NLL on held-out rows, within TEMPERATURES.

    NLL is convex in 1/T, so golden-section search over log T finds the minimum.
    """
    low, high = np.log(TEMPERATURES)
    ratio = (np.sqrt(5) - 1) / 2
    for _ in range(60):
        width = ratio * (high - low)
        if nll(logits, targets, np.exp(high - width)) < nll(logits, targets, np.exp(low + width)):
            high = low + width
        else:
            low = high - width
    return float(np.exp((low + high) / 2))


def fit_vector_scaling(logits: Floats, targets: Targets) -> VectorScaling:
    """Factors and shifts with the least NLL on held-out rows, drawn towards 1 and 0 by a small ridge penalty.

    `logits` are divided by the temperature already, so that factors near 1 leave it as it is.
    """
    from scipy.optimize import minimize

    classes = logits.shape[1]
    truth = np.eye(classes)[targets]

    def loss(parameters: Floats) -> tuple[float, Floats]:
        factors, shifts = parameters[:classes], parameters[classes:]
        scaled = logits * factors + shifts
        slope = (softmax(scaled) - truth) / len(targets)
        away = np.concatenate([factors - 1, shifts])
        gradient = np.concatenate([(slope * logits).sum(axis=0), slope.sum(axis=0)])
        penalty = SCALING_PENALTY / classes
        value = float(np.mean(row_nll(scaled, targets)))
        return value + penalty * float(away @ away), gradient + 2 * penalty * away

    start = np.concatenate([np.ones(classes), np.zeros(classes)])
    found = minimize(loss, start, jac=True, method="L-BFGS-B").x
    return VectorScaling(tuple(found[:classes].tolist()), tuple(found[classes:].tolist()))


def scaling_gain(logits: Floats, targets: Targets, groups: Targets) -> tuple[float, float]:
    """Mean NLL that vector scaling saves over temperature alone, and its standard error: cross-validated by `groups`.

    Rows of a group are never parted; with whole sources as groups the gain is that on sources unseen so far.
    """
    names, members = np.unique(groups, return_inverse=True)
    fold = np.random.default_rng(0).permutation(len(names))[members] % SCALING_FOLDS
    gains = np.zeros(len(targets))
    for held in range(min(SCALING_FOLDS, len(names))):
        rest, test = fold != held, fold == held
        if not rest.any():
            return 0.0, float("inf")
        temperature = fit_temperature(logits[rest], targets[rest])
        scaling = fit_vector_scaling(logits[rest] / temperature, targets[rest])
        plain = logits[test] / temperature
        gains[test] = row_nll(plain, targets[test]) - row_nll(scaling.applied(plain), targets[test])
    sums = np.bincount(members, gains - gains.mean())
    return float(gains.mean()), float(np.sqrt(np.sum(sums**2))) / len(targets)


def choose_vector_scaling(
    logits: Floats, targets: Targets, groups: Targets, temperature: float
) -> VectorScaling | None:
    """Vector scaling where it clearly helps: by over 1 % of the NLL and over two standard errors; else None."""
    gain, error = scaling_gain(logits, targets, groups)
    if gain < max(2 * error, 0.01 * nll(logits, targets, temperature)):
        return None
    return fit_vector_scaling(logits / temperature, targets)


def ece(probabilities: Floats, targets: Targets, bins: int = 15) -> float:
    """Expected calibration error over equal-width confidence bins: mean |accuracy - confidence|, weighted by rows."""
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == targets
    which = np.minimum((confidence * bins).astype(int), bins - 1)
    gaps = [
        abs(right[which == b].mean() - confidence[which == b].mean()) * np.mean(which == b)
        for b in range(bins)
        if np.any(which == b)
    ]
    return float(sum(gaps))


def classwise_ece(probabilities: Floats, targets: Targets, bins: int = 15) -> float:
    """Mean over the classes of the calibration error of p(class), in equal-width bins (Kull et al. 2019)."""
    classes = probabilities.shape[1]
    which = np.minimum((probabilities * bins).astype(int), bins - 1)
    total = 0.0
    for k in range(classes):
        said = np.bincount(which[:, k], probabilities[:, k], minlength=bins)
        true = np.bincount(which[:, k], targets == k, minlength=bins)
        total += float(np.abs(said - true).sum()) / len(targets)
    return float(total / classes)


def brier(probabilities: Floats, targets: Targets) -> float:
    """Multi-class Brier score in [0, 2]: mean squared distance to the one-hot truth."""
    truth = np.eye(probabilities.shape[1])[targets]
    return float(np.mean(np.sum((probabilities - truth) ** 2, axis=1)))


def threshold_for_precision(probabilities: Floats, targets: Targets, precision: float) -> float:
    """The least confidence above which at least `precision` of the rows are right; NEVER where none is.

    A row is routed when its confidence is at least the threshold, so ties are taken together.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == targets
    order = np.argsort(-confidence, kind="stable")
    sorted_confidence = confidence[order]
    precisions = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    last_of_tie = np.append(sorted_confidence[1:] < sorted_confidence[:-1], True)
    good = np.flatnonzero((precisions >= precision) & last_of_tie)
    return float(sorted_confidence[good[-1]]) if len(good) else NEVER
