"""Novelty in training and in reports: fitted beside a router, and compared with what confidence tells already."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from ..router.artefact import Router
from ..router.calibration import Floats
from ..router.novelty import Novelty
from .learners import Learner
from .split import Positions

STRANGE_PROMPTS = Path(__file__).parent / "strange_prompts.json"
MIN_ROWS = 500
"""With fewer held-out prompts their 99th percentile says too little of what is novel."""
MAX_ROWS = 10_000


@dataclass(frozen=True, slots=True)
class Separation:
    """Areas under the ROC curve: how well each score tells one kind of prompts from the reported ones; 0.5 is chance.

    `abstains` is the share of the strange prompts that the router leaves to the generalist, for either reason.
    """

    kind: str
    rows: int
    by_confidence: float
    by_novelty: float
    abstains: float


@dataclass(frozen=True, slots=True)
class NoveltyScores:
    """Novelty beside confidence: for finding errors among the reported prompts, and strange prompts of our own."""

    errors_by_confidence: float | None
    errors_by_novelty: float | None
    novel: float
    strange: tuple[Separation, ...]

    def as_dict(self) -> dict[str, JsonValue]:
        return asdict(self)


def fit_novelty(learner: Learner, parts: Sequence[tuple[Positions, Positions]]) -> Novelty | None:
    """Under the fitted classifier of a learner: quantiles of held-out rows' distances, then a fit on all rows.

    `parts` are (rows trained on, rows held out); None where too few are held out.
    """
    if sum(len(held) for _, held in parts) < MIN_ROWS:
        return None
    rows = np.unique(np.concatenate([np.concatenate(part) for part in parts]))
    rows = np.sort(np.random.default_rng(0).permutation(rows)[:MAX_ROWS])
    vectors = learner.vectors(rows)
    distances = [
        Novelty.fit(vectors[np.isin(rows, trained)]).distances(vectors[np.isin(rows, held)]) for trained, held in parts
    ]
    return Novelty.fit(vectors).measured(np.concatenate(distances))


def novelty_scores(
    router: Router, confidences: Floats, novelties: Floats | None, right: NDArray[np.bool_]
) -> NoveltyScores | None:
    """Scores of a router that knows novelty; None for one that does not."""
    if novelties is None:
        return None
    return NoveltyScores(
        errors_by_confidence=auroc(-confidences, ~right),
        errors_by_novelty=auroc(novelties, ~right),
        novel=float(np.mean(novelties > router.novelty_limit)),
        strange=tuple(_separation(router, confidences, novelties, kind, texts) for kind, texts in _strange().items()),
    )


def auroc(scores: Floats, positive: NDArray[np.bool_]) -> float | None:
    """Probability that a positive has a higher score than a negative, ties half; None where one sort is missing."""
    from scipy.stats import rankdata

    positives, negatives = int(positive.sum()), int((~positive).sum())
    if not positives or not negatives:
        return None
    above = float(rankdata(scores)[positive].sum()) - positives * (positives + 1) / 2
    return above / (positives * negatives)


def _separation(router: Router, confidences: Floats, novelties: Floats, kind: str, texts: Sequence[str]) -> Separation:
    found = router.posteriors(texts)
    said = np.array([posterior.confidence for posterior in found])
    strange = np.array([posterior.novelty for posterior in found])
    positive = np.arange(len(confidences) + len(texts)) >= len(confidences)
    by_confidence = auroc(-np.concatenate([confidences, said]), positive)
    by_novelty = auroc(np.concatenate([novelties, strange]), positive)
    return Separation(
        kind=kind,
        rows=len(texts),
        by_confidence=by_confidence if by_confidence is not None else 0.5,
        by_novelty=by_novelty if by_novelty is not None else 0.5,
        abstains=float(np.mean([posterior.abstained for posterior in found])),
    )


def _strange() -> dict[str, list[str]]:
    """Gibberish, foreign-language and hostile prompts of our own, by kind."""
    found: dict[str, list[str]] = json.loads(STRANGE_PROMPTS.read_text(encoding="utf-8"))
    return found
