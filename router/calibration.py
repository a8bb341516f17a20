"""Calibration: temperature scaling (Guo et al. 2017), ECE, Brier score, and the threshold to abstain under."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Targets = NDArray[np.intp]

TEMPERATURES = (0.05, 20.0)


def softmax(logits: Floats, temperature: float = 1.0) -> Floats:
    """Rows of probabilities from rows of logits, shape (..., classes)."""
    scaled = logits / temperature
    shifted = np.exp(scaled - scaled.max(axis=-1, keepdims=True))
    probabilities: Floats = shifted / shifted.sum(axis=-1, keepdims=True)
    return probabilities


def nll(logits: Floats, targets: Targets, temperature: float = 1.0) -> float:
    """Mean negative log-likelihood, in nats."""
    scaled = logits / temperature
    top = scaled.max(axis=1, keepdims=True)
    log_sum = np.log(np.exp(scaled - top).sum(axis=1)) + top[:, 0]
    return float(np.mean(log_sum - scaled[np.arange(len(targets)), targets]))


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


def brier(probabilities: Floats, targets: Targets) -> float:
    """Multi-class Brier score in [0, 2]: mean squared distance to the one-hot truth."""
    truth = np.eye(probabilities.shape[1])[targets]
    return float(np.mean(np.sum((probabilities - truth) ** 2, axis=1)))


def threshold_for_precision(probabilities: Floats, targets: Targets, precision: float) -> float:
    """The least confidence above which at least `precision` of the rows are right; 1.0 where none is.

    A row is routed when its confidence is at least the threshold, so ties are taken together.
    """
    confidence = probabilities.max(axis=1)
    right = probabilities.argmax(axis=1) == targets
    order = np.argsort(-confidence, kind="stable")
    sorted_confidence = confidence[order]
    precisions = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    last_of_tie = np.append(sorted_confidence[1:] < sorted_confidence[:-1], True)
    good = np.flatnonzero((precisions >= precision) & last_of_tie)
    return float(sorted_confidence[good[-1]]) if len(good) else 1.0
