"""The road from recorded answers to an outcome router: held-out qualities, what they are worth, then a fit on all."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from ..router.classifier import About
from ..router.encoder import Encoder
from ..router.manifest import DataRecord, Manifest, TextRecord
from ..router.outcome import OutcomeClassifier
from ..router.outcome_model import Fit
from ..router.seen import SEEN, seen_file
from .data import DataError, Prompt, data_hash
from .features import Progress, quiet, vectors_of
from .split import folds, near_duplicate_groups
from .train import SELF_TESTS

FOLDS = 3
BINS = 15
TEXT = TextRecord(head=1_200, tail=400, tokens=256)


@dataclass(frozen=True, eq=False, slots=True)
class Outcomes:
    """Prompts with their domain as label, and which of `experts` answered them right: `correct` (n, experts)."""

    prompts: Sequence[Prompt]
    experts: tuple[str, ...]
    correct: NDArray[np.bool_]

    def __post_init__(self) -> None:
        expected = (len(self.prompts), len(self.experts))
        if self.correct.shape != expected:
            raise ValueError(f"correct has shape {self.correct.shape}; prompts by experts is {expected}")


@dataclass(frozen=True, slots=True)
class ExpertReport:
    """One expert: how often it was right, and the Brier score and calibration error of its held-out qualities."""

    accuracy: float
    brier: float
    ece: float


@dataclass(frozen=True, slots=True)
class OutcomeReport:
    """What held-out folds say: `routed` is the accuracy of the expert with the highest quality.

    The penalties and the calibration were chosen on the same folds, so `collegium eval replay --policy outcome`, which
    keeps a fold apart from all of it, is the judge.
    """

    rows: int
    experts: dict[str, ExpertReport]
    routed: float
    best_single: float
    regions: int
    difficulty_penalty: float | None
    difference_penalty: float | None

    def as_dict(self) -> dict[str, JsonValue]:
        return {
            "rows": self.rows,
            "routed": self.routed,
            "best_single": self.best_single,
            "regions": self.regions,
            "difficulty_penalty": self.difficulty_penalty,
            "difference_penalty": self.difference_penalty,
            "experts": {
                name: {"accuracy": one.accuracy, "brier": one.brier, "ece": one.ece}
                for name, one in self.experts.items()
            },
        }


@dataclass(frozen=True, slots=True)
class TrainedOutcome:
    """A fitted outcome router that is not written yet."""

    classifier: OutcomeClassifier
    about: About
    report: OutcomeReport

    def save(self, folder: Path) -> Manifest:
        """Write the artefact.

        Raises:
            ArtefactError: it cannot be written there.
        """
        return self.classifier.save(folder, self.about)


def train_outcome(
    outcomes: Outcomes,
    encoder: Encoder,
    name: str = "outcome",
    seed: int = 0,
    cache: Path | None = None,
    progress: Progress = quiet,
) -> TrainedOutcome:
    """Fit an outcome router; near duplicates stay in one fold.

    Raises:
        DataError: fewer than 2 domains or experts, or a domain of one prompt only.
    """
    texts = [prompt.text for prompt in outcomes.prompts]
    labels = [prompt.label for prompt in outcomes.prompts]
    classifier = OutcomeClassifier(encoder, TEXT, seed)
    vectors = vectors_of([classifier.prepare(text) for text in texts], encoder, cache, progress)
    fold = folds(labels, near_duplicate_groups(texts), FOLDS, seed)
    try:
        fit = classifier.fit_outcomes(vectors, labels, outcomes.experts, outcomes.correct, fold)
    except ValueError as error:
        raise DataError(str(error)) from error
    report = _report(outcomes, fit)
    about = About(
        name=name,
        data=DataRecord(hash=data_hash(outcomes.prompts), rows=dict(sorted(Counter(labels).items()))),
        metrics=report.as_dict(),
        self_test=SELF_TESTS,
        extra={SEEN: seen_file(texts)},
    )
    return TrainedOutcome(classifier, about, report)


def _report(outcomes: Outcomes, fit: Fit) -> OutcomeReport:
    correct = outcomes.correct.astype(np.float64)
    rows = np.arange(len(correct))
    return OutcomeReport(
        rows=len(correct),
        experts={
            name: ExpertReport(
                accuracy=float(correct[:, column].mean()),
                brier=float(((fit.held_out[:, column] - correct[:, column]) ** 2).mean()),
                ece=_ece(fit.held_out[:, column], correct[:, column]),
            )
            for column, name in enumerate(outcomes.experts)
        },
        routed=float(correct[rows, fit.held_out.argmax(axis=1)].mean()),
        best_single=float(correct.mean(axis=0).max()),
        regions=fit.model.regions.columns - fit.model.regions.domains,
        difficulty_penalty=fit.difficulty.best,
        difference_penalty=fit.difference.best,
    )


def _ece(quality: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    """Mean |accuracy - quality| over bins of equal counts."""
    bins = np.array_split(np.argsort(quality, kind="stable"), min(BINS, len(quality)))
    return float(sum(abs(right[rows].mean() - quality[rows].mean()) * len(rows) for rows in bins) / len(quality))
