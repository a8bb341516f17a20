"""Calibration against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from collegium.router.calibration import NEVER, brier, ece, fit_temperature, nll, softmax, threshold_for_precision


def test_softmax_and_nll_by_hand() -> None:
    logits = np.log(np.array([[0.2, 0.8], [0.5, 0.5]]))
    assert softmax(logits) == pytest.approx(np.array([[0.2, 0.8], [0.5, 0.5]]))
    assert nll(logits, np.array([1, 0])) == pytest.approx(-(np.log(0.8) + np.log(0.5)) / 2)
    assert softmax(np.array([1e4, 0.0])) == pytest.approx([1.0, 0.0])


@pytest.mark.parametrize("true_temperature", [0.3, 1.0, 4.0])
def test_temperature_is_recovered(true_temperature: float) -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20_000, 4)) * 2
    cumulative = softmax(logits).cumsum(axis=1)
    targets = (rng.random((20_000, 1)) > cumulative).sum(axis=1)
    assert fit_temperature(logits * true_temperature, targets) == pytest.approx(true_temperature, rel=0.05)


def test_ece_and_brier_by_hand() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6], [0.4, 0.6]])
    targets = np.array([0, 1, 1, 1])
    assert ece(probabilities, targets) == pytest.approx(0.5 * abs(0.5 - 0.9) + 0.5 * abs(1.0 - 0.6))
    assert brier(probabilities, targets) == pytest.approx((0.02 + 2 * 0.81 + 2 * 0.32) / 4)


def test_threshold_keeps_the_precision_asked_for() -> None:
    confidence = np.array([0.95, 0.9, 0.8, 0.7, 0.6])
    probabilities = np.stack([confidence, 1 - confidence], axis=1)
    targets = np.array([0, 0, 1, 0, 1])
    assert threshold_for_precision(probabilities, targets, 1.0) == pytest.approx(0.9)
    assert threshold_for_precision(probabilities, targets, 0.75) == pytest.approx(0.7)
    assert threshold_for_precision(probabilities, targets, 0.5) == pytest.approx(0.6)
    assert threshold_for_precision(probabilities, 1 - targets, 1.0) == NEVER


def test_rows_of_one_confidence_are_taken_together() -> None:
    probabilities = np.array([[0.8, 0.2], [0.8, 0.2]])
    assert threshold_for_precision(probabilities, np.array([0, 1]), 0.9) == NEVER
