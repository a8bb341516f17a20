"""Measure a trained router on labelled prompts that it never saw: all that its report shows, as data."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from ..router.artefact import Router, load_router
from ..router.calibration import Floats, Targets
from ..router.encoder import Locate, as_given
from .calibrate import Calibrated, calibration_of
from .compare import refuse_seen
from .data import DataError, Prompt
from .learners import logits_of
from .metrics import Scores, Share, score, share
from .nearest import Neighbour, nearest, vectors_with
from .novelty import NoveltyScores, novelty_scores
from .robustness import Robustness, robustness

RELIABILITY_BINS = 10
MISTAKES = 12
NEIGHBOURS = 3
TIMED_PROMPTS = 200
ROBUSTNESS_PROMPTS = 1_000

Step = Callable[[str], None]
"""Called with what is measured next."""


@dataclass(frozen=True, slots=True)
class DomainRow:
    domain: str
    rows: int
    precision: Share
    recall: Share
    f1: float


@dataclass(frozen=True, slots=True)
class SourceRow:
    """Prompts of one source. `taken_for` is the wrong domain that most of them went to, None where none did."""

    source: str
    accuracy: Share
    confidence: float
    taken_for: str | None


@dataclass(frozen=True, slots=True)
class Bin:
    """Prompts whose confidence lies between `low` and `high`: what was said, and what came true."""

    low: float
    high: float
    confidence: float
    right: Share


@dataclass(frozen=True, slots=True)
class CoveragePoint:
    """Routing only prompts with at least this confidence: the share that is routed, and how many of these rightly."""

    confidence: float
    coverage: float
    accuracy: float


@dataclass(frozen=True, slots=True)
class Mistake:
    row: str
    text: str
    label: str
    predicted: str
    confidence: float
    neighbours: tuple[Neighbour, ...]


@dataclass(frozen=True, slots=True)
class Latency:
    """Milliseconds of one prompt at a time: on the clock, and of the processor (which other work disturbs less)."""

    prompts: int
    p50: float
    p99: float
    processor_p50: float
    processor_p99: float


@dataclass(frozen=True, slots=True)
class RouterReport:
    """One router on `rows` prompts, none of them seen in training. `confusion[i][j]`: of domain i, taken for j."""

    version: str
    kind: str
    parent: str | None
    rows: int
    accuracy: Share
    scores: Scores
    routed: Share
    routed_right: Share
    labels: tuple[str, ...]
    confusion: tuple[tuple[int, ...], ...]
    domains: tuple[DomainRow, ...]
    sources: tuple[SourceRow, ...]
    calibration: Calibrated
    reliability: tuple[Bin, ...]
    coverage: tuple[CoveragePoint, ...]
    mistakes: tuple[Mistake, ...]
    robustness: tuple[Robustness, ...]
    novelty: NoveltyScores | None
    guarantee: str | None
    latency: Latency
    bytes: int

    def as_dict(self) -> dict[str, JsonValue]:
        return asdict(self)


def measure(
    folder: Path,
    prompts: Sequence[Prompt],
    trained_on: Sequence[Prompt] = (),
    locate: Locate = as_given,
    cache: Path | None = None,
    seed: int = 0,
    step: Step = lambda name: None,
) -> RouterReport:
    """All that the report shows. `trained_on` are searched for the nearest prompts to the mistakes.

    Raises:
        ArtefactError, EncoderError: the router cannot be opened.
        DataError: there are no prompts, one has a label unknown to the router, or some were seen in training.
    """
    router = load_router(folder, locate)
    labels = router.labels
    _refuse_labels(prompts, labels)
    refuse_seen([folder], prompts)
    classifier = router.classifier
    step("routing")
    texts = [classifier.prepare(prompt.text) for prompt in prompts]
    logits = logits_of(classifier, texts, cache)
    probabilities = classifier.calibrated(logits)
    targets = np.array([labels.index(prompt.label) for prompt in prompts])
    predicted = probabilities.argmax(axis=1)
    confidences = probabilities.max(axis=1)
    right = predicted == targets
    novelties = router.novelty.percentiles(vectors_with(classifier, texts, cache)) if router.novelty else None
    routed = confidences >= router.threshold
    if novelties is not None:
        routed &= novelties <= router.novelty_limit
    step("nearest training prompts")
    mistakes = _mistakes(router, prompts, probabilities, right, trained_on, cache)
    step("perturbations")
    perturbed = robustness(classifier, _sample(prompts, ROBUSTNESS_PROMPTS, seed), seed, cache=cache)
    step("novelty")
    strange = novelty_scores(router, confidences, novelties, right)
    step("latency")
    risk = router.manifest.metrics.get("risk")
    return RouterReport(
        version=router.version,
        kind=router.manifest.kind,
        parent=router.manifest.parent,
        rows=len(prompts),
        accuracy=share(right),
        scores=score(probabilities, targets, labels, router.threshold),
        routed=share(routed),
        routed_right=share(right[routed]),
        labels=labels,
        confusion=_confusion(targets, predicted, len(labels)),
        domains=_domains(labels, targets, predicted),
        sources=_sources(prompts, labels, predicted, right, confidences),
        calibration=calibration_of(classifier, logits, targets),
        reliability=_reliability(confidences, right),
        coverage=_coverage(confidences, right),
        mistakes=mistakes,
        robustness=tuple(perturbed),
        novelty=strange,
        guarantee=str(risk["guarantee"]) if isinstance(risk, dict) and "guarantee" in risk else None,
        latency=_latency(router, _sample(prompts, TIMED_PROMPTS, seed)),
        bytes=sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()),
    )


def _refuse_labels(prompts: Sequence[Prompt], labels: Sequence[str]) -> None:
    if not prompts:
        raise DataError("there are no prompts to report on")
    unknown = [prompt for prompt in prompts if prompt.label not in labels]
    if unknown:
        raise DataError(
            f"{unknown[0].where}: the router has no label {unknown[0].label!r} ({len(unknown)} such rows); "
            f"it has {', '.join(labels)}"
        )


def _confusion(targets: Targets, predicted: Targets, count: int) -> tuple[tuple[int, ...], ...]:
    table = np.zeros((count, count), dtype=int)
    np.add.at(table, (targets, predicted), 1)
    return tuple(tuple(row) for row in table.tolist())


def _domains(labels: Sequence[str], targets: Targets, predicted: Targets) -> tuple[DomainRow, ...]:
    rows = []
    for k, domain in enumerate(labels):
        said, true = predicted == k, targets == k
        both, either = int((said & true).sum()), int(said.sum() + true.sum())
        f1 = 2 * both / either if either else 0.0
        rows.append(DomainRow(domain, int(true.sum()), share(true[said]), share(said[true]), f1))
    return tuple(rows)


def _sources(
    prompts: Sequence[Prompt], labels: Sequence[str], predicted: Targets, right: NDArray[np.bool_], confidences: Floats
) -> tuple[SourceRow, ...]:
    """Hardest source first; empty where no prompt names its source."""
    sources = np.array([prompt.source or "" for prompt in prompts])
    rows = []
    for source in np.unique(sources[sources != ""]):
        own = sources == source
        wrong = Counter(labels[k] for k in predicted[own & ~right])
        taken_for = min(wrong, key=lambda label: (-wrong[label], label)) if wrong else None
        rows.append(SourceRow(str(source), share(right[own]), float(confidences[own].mean()), taken_for))
    return tuple(sorted(rows, key=lambda row: (row.accuracy.value or 0.0, row.source)))


def _reliability(confidences: Floats, right: NDArray[np.bool_]) -> tuple[Bin, ...]:
    which = np.minimum((confidences * RELIABILITY_BINS).astype(int), RELIABILITY_BINS - 1)
    return tuple(
        Bin(
            number / RELIABILITY_BINS,
            (number + 1) / RELIABILITY_BINS,
            float(confidences[which == number].mean()),
            share(right[which == number]),
        )
        for number in np.unique(which).tolist()
    )


def _coverage(confidences: Floats, right: NDArray[np.bool_]) -> tuple[CoveragePoint, ...]:
    """From the surest prompts to all; rows of equal confidence are taken together."""
    order = np.argsort(-confidences, kind="stable")
    accuracies = np.cumsum(right[order]) / np.arange(1, len(order) + 1)
    last = np.flatnonzero(np.append(np.diff(confidences[order]) < 0, True))
    picked = last[np.unique(np.linspace(0, len(last) - 1, min(100, len(last))).round().astype(int))]
    return tuple(
        CoveragePoint(float(confidences[order[place]]), (place + 1) / len(order), float(accuracies[place]))
        for place in picked.tolist()
    )


def _mistakes(
    router: Router,
    prompts: Sequence[Prompt],
    probabilities: Floats,
    right: NDArray[np.bool_],
    trained_on: Sequence[Prompt],
    cache: Path | None,
) -> tuple[Mistake, ...]:
    """The wrong answers with the highest confidence, surest first."""
    confidences = probabilities.max(axis=1)
    wrong = np.flatnonzero(~right)
    worst = wrong[np.argsort(-confidences[wrong], kind="stable")][:MISTAKES].tolist()
    found = nearest(router.classifier, [prompts[place].text for place in worst], trained_on, NEIGHBOURS, cache)
    return tuple(
        Mistake(
            row=prompts[place].where,
            text=prompts[place].text,
            label=prompts[place].label,
            predicted=router.labels[int(probabilities[place].argmax())],
            confidence=float(confidences[place]),
            neighbours=tuple(neighbours),
        )
        for place, neighbours in zip(worst, found, strict=True)
    )


def _latency(router: Router, prompts: Sequence[Prompt]) -> Latency:
    router.posterior(prompts[0].text)  # the first one loads what is loaded late
    clock, processor = [], []
    for prompt in prompts:
        started, worked = time.perf_counter(), time.process_time()
        router.posterior(prompt.text)
        clock.append(1e3 * (time.perf_counter() - started))
        processor.append(1e3 * (time.process_time() - worked))
    p50, p99 = np.quantile(clock, [0.5, 0.99]).tolist()
    own50, own99 = np.quantile(processor, [0.5, 0.99]).tolist()
    return Latency(len(prompts), p50, p99, own50, own99)


def _sample(prompts: Sequence[Prompt], count: int, seed: int) -> list[Prompt]:
    """Up to `count` prompts, drawn without replacement."""
    taken = np.random.default_rng(seed).permutation(len(prompts))[:count]
    return [prompts[int(place)] for place in sorted(taken)]
