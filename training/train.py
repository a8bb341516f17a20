"""The road from labelled prompts to a router: held-out scores, temperature, threshold, then a fit on all rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from ..router.calibration import Floats, Targets, ece, fit_temperature, softmax, threshold_for_precision
from ..router.classifier import About
from ..router.encoder import Encoder
from ..router.frozen import FrozenClassifier
from ..router.manifest import DataRecord, Manifest, TextRecord
from .data import DataError, Prompt, data_hash
from .features import Progress, quiet, vectors_of
from .metrics import Scores, score
from .split import folds, near_duplicate_groups, rounds

FOLDS = 5
MANY_ROWS = 20_000  # from here on one held-out fold is enough
SELF_TESTS = ("What is 17% of 340?", "write a python function that reverses a list", "hello, how are you today?")


@dataclass(frozen=True, slots=True)
class Options:
    """`precision` is what the threshold aims at: the share of routed held-out prompts that reach the right domain."""

    name: str = "router"
    seed: int = 0
    regularisation: float = 10.0
    precision: float = 0.9
    text: TextRecord = TextRecord()  # noqa: RUF009

    def __post_init__(self) -> None:
        if not 0 < self.precision <= 1:
            raise ValueError(f"precision is {self.precision}; it must be over 0 and at most 1")
        if not 0 < self.regularisation < float("inf"):
            raise ValueError(f"regularisation is {self.regularisation}; it must be a positive number")


@dataclass(frozen=True, slots=True)
class Report:
    """What training found. Scores are of `rows` held-out rows, near-duplicates kept on one side."""

    rows: int
    duplicates: int
    held_out: Scores
    temperature: float
    ece_before: float

    def as_dict(self) -> dict[str, JsonValue]:
        return {
            "rows": self.rows,
            "duplicates": self.duplicates,
            "temperature": self.temperature,
            "ece_before": self.ece_before,
            "held_out": self.held_out.as_dict(),
        }


@dataclass(frozen=True, slots=True)
class Trained:
    """A fitted router that is not written yet."""

    classifier: FrozenClassifier
    about: About
    report: Report

    def save(self, folder: Path) -> Manifest:
        """Write the artefact.

        Raises:
            ArtefactError: it cannot be written there.
        """
        return self.classifier.save(folder, self.about)


def train_frozen(
    prompts: Sequence[Prompt],
    encoder: Encoder,
    options: Options = Options(),
    cache: Path | None = None,
    progress: Progress = quiet,
) -> Trained:
    """Fit kind `frozen` on checked prompts (see data.load_prompts).

    Raises:
        DataError: a label has near-duplicates of one prompt only.
    """
    classifier = FrozenClassifier(encoder, options.text, options.seed, options.regularisation)
    labels = np.array([prompt.label for prompt in prompts])
    groups = near_duplicate_groups([prompt.text for prompt in prompts])
    _refuse_one_prompt_labels(labels, groups)
    vectors = vectors_of([classifier.prepare(prompt.text) for prompt in prompts], encoder, cache, progress)
    logits, rows = _held_out_logits(classifier, vectors, labels, folds(labels.tolist(), groups, FOLDS, options.seed))
    classifier.fit_vectors(vectors, labels.tolist())
    targets = np.searchsorted(classifier.classes_, labels[rows])
    classifier.temperature = fit_temperature(logits, targets)
    report = _report(classifier, logits, targets, len(prompts) - len(np.unique(groups)), options)
    about = About(
        name=options.name,
        threshold=report.held_out.threshold,
        data=DataRecord(hash=data_hash(prompts), rows=dict(sorted(Counter(labels.tolist()).items()))),
        metrics=report.as_dict(),
        self_test=SELF_TESTS,
    )
    return Trained(classifier, about, report)


def _held_out_logits(
    classifier: FrozenClassifier, vectors: NDArray[np.float32], labels: NDArray[np.str_], assigned: Targets
) -> tuple[Floats, Targets]:
    """Logits of rows by classifiers that did not see them or a near duplicate, and which rows these are."""
    logits: list[Floats] = []
    rows: list[Targets] = []
    for train, held in rounds(assigned, 1 if len(labels) > MANY_ROWS else FOLDS):
        if len(held):
            classifier.fit_vectors(vectors[train], labels[train].tolist())
            logits.append(classifier.logits_of_vectors(vectors[held]))
            rows.append(held)
    return np.concatenate(logits), np.concatenate(rows)


def _report(
    classifier: FrozenClassifier, logits: Floats, targets: Targets, duplicates: int, options: Options
) -> Report:
    probabilities = softmax(logits, classifier.temperature)
    threshold = threshold_for_precision(probabilities, targets, options.precision)
    return Report(
        rows=len(targets),
        duplicates=duplicates,
        held_out=score(probabilities, targets, classifier.classes_.tolist(), threshold),
        temperature=classifier.temperature,
        ece_before=ece(softmax(logits), targets),
    )


def _refuse_one_prompt_labels(labels: NDArray[np.str_], groups: Targets) -> None:
    for label in np.unique(labels):
        if len(np.unique(groups[labels == label])) < 2:
            raise DataError(f"all rows of label {str(label)!r} are near-duplicates of one prompt; give different ones")
