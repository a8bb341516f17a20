"""The road from labelled prompts to a router: held-out scores, temperature, threshold, then a fit on all rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from ..router.calibration import Floats, Targets, threshold_for_precision
from ..router.classifier import About, Classifier
from ..router.committee import CommitteeClassifier
from ..router.encoder import Encoder
from ..router.finetuned import FinetunedClassifier
from ..router.frozen import FrozenClassifier
from ..router.kinds import KINDS
from ..router.manifest import DataRecord, Manifest, TextRecord
from ..router.ngrams import NgramClassifier
from ..router.seen import SEEN, seen_file
from .calibrate import Calibrated, calibrate
from .data import DataError, Prompt, data_hash
from .features import Progress, quiet, vectors_of
from .learners import CommitteeLearner, FinetunedLearner, FrozenLearner, Learner, NgramLearner
from .metrics import Scores, score
from .split import Positions, folds, near_duplicate_groups, rounds, source_folds
from .tuning import Tuning

FOLDS = 5
MANY_ROWS = 20_000  # from here on one held-out fold is enough
SLOW_FOLDS = 20  # where one fit takes an hour, a twentieth of the rows is held out
COMMITTEE = ("frozen", "tfidf")
SELF_TESTS = ("What is 17% of 340?", "write a python function that reverses a list", "hello, how are you today?")


@dataclass(frozen=True, slots=True)
class Options:
    """`precision` is what the threshold aims at: the share of routed held-out prompts that reach the right domain.

    `hold_out_sources` holds out whole sources, so that scores, temperature and threshold are those of unlike prompts.
    """

    name: str = "router"
    seed: int = 0
    regularisation: float = 10.0
    precision: float = 0.9
    hold_out_sources: bool = False
    members: tuple[str, ...] = COMMITTEE
    tuning: Tuning = Tuning()  # noqa: RUF009
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
    options: Options = Options(),
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
    logits, rows = _held_out_logits(learner, _rounds(prompts, labels, groups, options, learner.slow))
    learner.fit(np.arange(len(labels)))
    targets = np.searchsorted(classifier.classes_, labels[rows])
    sources = np.unique([prompt.source or "" for prompt in prompts], return_inverse=True)[1]
    calibration = calibrate(classifier, logits, targets, (sources if options.hold_out_sources else groups)[rows])
    report = _report(classifier, calibration, logits, targets, len(prompts) - len(np.unique(groups)), options)
    about = About(
        name=options.name,
        threshold=report.held_out.threshold,
        data=DataRecord(hash=data_hash(prompts), rows=dict(sorted(Counter(labels.tolist()).items()))),
        metrics=report.as_dict(),
        self_test=SELF_TESTS,
        extra={SEEN: seen_file([prompt.text for prompt in prompts])},
    )
    return Trained(classifier, about, report)


def learner_of(
    kind: str,
    prompts: Sequence[Prompt],
    encoder: Encoder | None,
    options: Options,
    cache: Path | None = None,
    progress: Progress = quiet,
) -> Learner:
    """An unfitted router of a kind, with the features of the prompts.

    Raises:
        ValueError: the kind is not known, or needs an encoder.
    """
    labels = np.array([prompt.label for prompt in prompts])
    if kind == "tfidf":
        ngrams = NgramClassifier(options.text, options.seed, options.regularisation)
        return NgramLearner(ngrams, ngrams.features([ngrams.prepare(prompt.text) for prompt in prompts]), labels)
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r} is not known; known: {', '.join(KINDS)}")
    if encoder is None:
        raise ValueError(f"kind {kind!r} needs an encoder")
    if kind == "frozen":
        frozen = FrozenClassifier(encoder, options.text, options.seed, options.regularisation)
        texts = [frozen.prepare(prompt.text) for prompt in prompts]
        return FrozenLearner(frozen, vectors_of(texts, encoder, cache, progress), labels)
    if kind == "finetuned":
        return _finetuned(prompts, labels, encoder, options, cache, progress)
    members = [learner_of(member, prompts, encoder, options, cache, progress) for member in options.members]
    committee = CommitteeClassifier([member.classifier for member in members], options.text, options.seed)
    return CommitteeLearner(committee, members)


def _finetuned(
    prompts: Sequence[Prompt],
    labels: NDArray[np.str_],
    encoder: Encoder,
    options: Options,
    cache: Path | None,
    progress: Progress,
) -> FinetunedLearner:
    tuned = FinetunedClassifier(encoder, options.text, options.seed, options.regularisation)
    texts = [tuned.prepare(prompt.text) for prompt in prompts]
    sources = [prompt.source or "" for prompt in prompts]
    tuning = replace(options.tuning, seed=options.seed)
    vectors = vectors_of(texts, encoder, cache, progress)
    return FinetunedLearner(tuned, texts, vectors, labels, sources, tuning, cache, progress)


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
