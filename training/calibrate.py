"""Calibrate a classifier on held-out logits: temperature, vector scaling where it clearly helps, before and after."""

from __future__ import annotations

from dataclasses import asdict, dataclass

from pydantic import JsonValue

from ..router.calibration import (
    Floats,
    Targets,
    brier,
    choose_vector_scaling,
    classwise_ece,
    ece,
    fit_temperature,
    row_nll,
    softmax,
)
from ..router.classifier import Classifier


@dataclass(frozen=True, slots=True)
class CalibrationScores:
    """How far probabilities are from the truth; 0 is best in all four. `nll` is in nats, `brier` in [0, 2]."""

    nll: float
    brier: float
    ece: float
    classwise_ece: float


@dataclass(frozen=True, slots=True)
class Calibrated:
    """Scores of the held-out logits as they are and after calibration, which was fitted on these very rows."""

    before: CalibrationScores
    after: CalibrationScores
    vector_scaling: bool

    def as_dict(self) -> dict[str, JsonValue]:
        return asdict(self)


def calibrate(
    classifier: Classifier, logits: Floats, targets: Targets, groups: Targets, like: bool = False
) -> Calibrated:
    """Set the classifier's temperature and scaling. `groups`: rows that cross-validation must not part.

    Where rows are `like` those trained on, of the same sources and many, confidence is not sharpened and classes are
    not shifted: both would fit the mix of these sources, and cost prompts from elsewhere accuracy and calibration.
    """
    classifier.temperature = fit_temperature(logits, targets)
    if like:
        classifier.temperature = max(1.0, classifier.temperature)
    else:
        classifier.scaling = choose_vector_scaling(logits, targets, groups, classifier.temperature)
    return calibration_of(classifier, logits, targets)


def calibration_of(classifier: Classifier, logits: Floats, targets: Targets) -> Calibrated:
    """Scores of logits, shape (n, k), without and with the classifier's calibration."""
    scaled = logits / classifier.temperature
    if classifier.scaling:
        scaled = classifier.scaling.applied(scaled)
    return Calibrated(_scores(logits, targets), _scores(scaled, targets), classifier.scaling is not None)


def _scores(logits: Floats, targets: Targets) -> CalibrationScores:
    probabilities = softmax(logits)
    return CalibrationScores(
        nll=float(row_nll(logits, targets).mean()),
        brier=brier(probabilities, targets),
        ece=ece(probabilities, targets),
        classwise_ece=classwise_ece(probabilities, targets),
    )
