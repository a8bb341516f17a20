"""The road from labelled prompts to a router: held-out scores, temperature, threshold, then a fit on all rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from ..router.calibration import Floats, Targets, threshold_for_precision
from ..router.classifier import About, Classifier
from ..router.encoder import Encoder
from ..router.manifest import DataRecord, Manifest
from ..router.novelty import LIMIT as NOVELTY_LIMIT
from ..router.novelty import NOVELTY, Novelty
from ..router.risk import RiskControl
from ..router.seen import SEEN, seen_file
from .calibrate import Calibrated, calibrate
from .data import DataError, Prompt, data_hash
from .features import Progress, quiet
from .learners import Learner
from .metrics import Scores, score
from .novelty import fit_novelty
from .recipes import DEFAULTS, Options, learner_of
from .split import Positions, folds, near_duplicate_groups, rounds, source_folds

FOLDS = 5
MANY_ROWS = 20_000  # from here on one held-out fold is enough
SLOW_FOLDS = 20  # where one fit takes an hour, a twentieth of the rows is held out
SELF_TESTS = ("What is 17% of 340?", "write a python function that reverses a list", "hello, how are you today?")


@dataclass(frozen=True, slots=True)
class Report:
    """What training found. Scores are of `rows` held-out rows, near-duplicates kept on one side."""

    rows: int
    duplicates: int
    held_out: Scores
    temperature: float
    calibration: Calibrated

    @property
    def ece_before(self) -> float:
        return self.calibration.before.ece

    def as_dict(self) -> dict[str, JsonValue]:
        return {
            "rows": self.rows,
            "duplicates": self.duplicates,
            "temperature": self.temperature,
            "calibration": self.calibration.as_dict(),
            "held_out": self.held_out.as_dict(),
        }


@dataclass(frozen=True, slots=True)
class Trained:
    """A fitted router that is not written yet."""

    classifier: Classifier
    about: About
    report: Report
    novelty: Novelty | None = None
    risk: RiskControl | None = None

    def save(self, folder: Path) -> Manifest:
        """Write the artefact.

        Raises:
            ArtefactError: it cannot be written there.
        """
        return self.classifier.save(folder, self.about)


def train(
    prompts: Sequence[Prompt],
    kind: str,
    encoder: Encoder | None = None,
    options: Options = DEFAULTS,
    cache: Path | None = None,
    progress: Progress = quiet,
    groups: Positions | None = None,
) -> Trained:
    """Fit a kind of router on checked prompts (see data.load_prompts). Only `tfidf` needs no encoder.

    `groups` are the near-duplicate groups of the prompts, where these are known already.

    Raises:
        DataError: a label has near-duplicates of one prompt only.
        ValueError: the kind is not known, or needs an encoder; a label comes from one source only.
    """
    labels = np.array([prompt.label for prompt in prompts])
    if groups is None:
        groups = near_duplicate_groups([prompt.text for prompt in prompts])
    _refuse_one_prompt_labels(labels, groups)
    learner = learner_of(kind, prompts, encoder, options, cache, progress)
    classifier = learner.classifier
    parts = _rounds(prompts, labels, groups, options, learner.slow)
    logits, rows = _held_out_logits(learner, parts)
    learner.fit(np.arange(len(labels)))
    targets = np.searchsorted(classifier.classes_, labels[rows])
    sources = np.unique([prompt.source or "" for prompt in prompts], return_inverse=True)[1]
    apart = (sources if options.hold_out_sources else groups)[rows]
    like = len(prompts) > MANY_ROWS and not options.hold_out_sources
    calibration = calibrate(classifier, logits, targets, apart, like)
    novelty = fit_novelty(learner, parts)
    report = _report(classifier, calibration, logits, targets, len(prompts) - len(np.unique(groups)), options)
    about = About(
        name=options.name,
        threshold=report.held_out.threshold,
        novelty_limit=NOVELTY_LIMIT if novelty else None,
        data=DataRecord(hash=data_hash(prompts), rows=dict(sorted(Counter(labels.tolist()).items()))),
        metrics=report.as_dict(),
        self_test=SELF_TESTS,
        extra={SEEN: seen_file([prompt.text for prompt in prompts])}
        | ({NOVELTY: novelty.to_bytes()} if novelty else {}),
    )
    return Trained(classifier, about, report, novelty)


def _rounds(
    prompts: Sequence[Prompt], labels: NDArray[np.str_], groups: Targets, options: Options, slow: bool
) -> list[tuple[Targets, Targets]]:
    """(rows to train on, rows held out): five rounds, one from MANY_ROWS on, one twentieth where a fit is slow."""
    count = SLOW_FOLDS if slow and len(prompts) > MANY_ROWS else FOLDS
    if options.hold_out_sources:
        assigned = source_folds(labels.tolist(), [prompt.source or "" for prompt in prompts], count)
    else:
        assigned = folds(labels.tolist(), groups, count, options.seed)
    parts = [part for part in rounds(assigned, count) if len(part[1])]
    if slow:
        share = len(prompts) / count
        return [min(parts, key=lambda part: abs(len(part[1]) - share))]
    return parts if options.hold_out_sources or len(prompts) <= MANY_ROWS else parts[:1]


def _held_out_logits(learner: Learner, parts: Sequence[tuple[Targets, Targets]]) -> tuple[Floats, Targets]:
    """Logits of rows by classifiers that did not see them or a near duplicate, and which rows these are."""
    logits: list[Floats] = []
    for train_rows, held in parts:
        learner.fit(train_rows)
        learner.settle(held)
        logits.append(learner.logits(held))
    return np.concatenate(logits), np.concatenate([held for _, held in parts])


def _report(
    classifier: Classifier,
    calibration: Calibrated,
    logits: Floats,
    targets: Targets,
    duplicates: int,
    options: Options,
) -> Report:
    probabilities = classifier.calibrated(logits)
    threshold = threshold_for_precision(probabilities, targets, options.precision)
    return Report(
        rows=len(targets),
        duplicates=duplicates,
        held_out=score(probabilities, targets, classifier.classes_.tolist(), threshold),
        temperature=classifier.temperature,
        calibration=calibration,
    )


def _refuse_one_prompt_labels(labels: NDArray[np.str_], groups: Targets) -> None:
    for label in np.unique(labels):
        if len(np.unique(groups[labels == label])) < 2:
            raise DataError(f"all rows of label {str(label)!r} are near-duplicates of one prompt; give different ones")
