"""The training prompts nearest to a prompt, in the router's own vector space."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ..router.calibration import Floats
from ..router.classifier import Classifier
from ..router.committee import CommitteeClassifier, side_by_side
from ..router.frozen import FrozenClassifier
from ..router.ngrams import NgramClassifier
from .data import Prompt
from .features import vectors_of


@dataclass(frozen=True, slots=True)
class Neighbour:
    """A training prompt; `similarity` is the cosine to the prompt asked about."""

    text: str
    label: str
    similarity: float


def vectors_with(classifier: Classifier, texts: Sequence[str], cache: Path | None = None) -> Floats:
    """Unit vectors of many prepared prompts by a fitted classifier, shape (n, d); encodings go through the cache."""
    if isinstance(classifier, CommitteeClassifier):
        return side_by_side([vectors_with(member, texts, cache) for member in classifier.members])
    if isinstance(classifier, FrozenClassifier):
        return vectors_of(texts, classifier.encoder, cache).astype(np.float64)
    if isinstance(classifier, NgramClassifier):
        return classifier.vectors_of_features(classifier.features(texts))
    return np.stack([classifier.vector(text) for text in texts])


def nearest(
    classifier: Classifier, texts: Sequence[str], trained_on: Sequence[Prompt], count: int, cache: Path | None = None
) -> list[list[Neighbour]]:
    """For each text the `count` prompts of `trained_on` with the highest cosine, nearest first."""
    if not texts or not trained_on:
        return [[] for _ in texts]
    asked = vectors_with(classifier, [classifier.prepare(text) for text in texts], cache)
    known = vectors_with(classifier, [classifier.prepare(prompt.text) for prompt in trained_on], cache)
    cosines = asked @ known.T
    order = np.argsort(-cosines, axis=1, kind="stable")[:, :count]
    return [
        [Neighbour(trained_on[place].text, trained_on[place].label, float(row[place])) for place in places]
        for row, places in zip(cosines, order, strict=True)
    ]
