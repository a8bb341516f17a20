"""What training needs of each kind: features made once, then fits and logits on chosen rows."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..router.calibration import Floats
from ..router.classifier import Classifier
from ..router.committee import CommitteeClassifier, side_by_side
from ..router.frozen import FrozenClassifier
from ..router.ngrams import NgramClassifier
from .features import vectors_of
from .split import Positions

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Labels = NDArray[np.str_]


class Learner(ABC):
    """A classifier with the features and labels of all prompts, so that folds encode nothing twice."""

    classifier: Classifier

    @abstractmethod
    def fit(self, rows: Positions) -> None:
        """Fit the classifier on these rows."""

    @abstractmethod
    def logits(self, rows: Positions) -> Floats:
        """Logits of these rows, shape (len(rows), k)."""

    @abstractmethod
    def vectors(self, rows: Positions) -> Floats:
        """Vectors of these rows in the classifier's own space, shape (len(rows), d)."""


class FrozenLearner(Learner):
    """`vectors` are the encoder's, one row a prompt."""

    def __init__(self, classifier: FrozenClassifier, vectors: NDArray[np.float32], labels: Labels) -> None:
        self.classifier: FrozenClassifier = classifier
        self._vectors, self._labels = vectors, labels

    def fit(self, rows: Positions) -> None:
        self.classifier.fit_vectors(self._vectors[rows], self._labels[rows].tolist())

    def logits(self, rows: Positions) -> Floats:
        return self.classifier.logits_of_vectors(self._vectors[rows])

    def vectors(self, rows: Positions) -> Floats:
        return self._vectors[rows].astype(np.float64)


class NgramLearner(Learner):
    """`features` are sparse counts, one row a prompt."""

    def __init__(self, classifier: NgramClassifier, features: csr_matrix, labels: Labels) -> None:
        self.classifier: NgramClassifier = classifier
        self._features, self._labels = features, labels

    def fit(self, rows: Positions) -> None:
        self.classifier.fit_features(self._features[rows], self._labels[rows].tolist())

    def logits(self, rows: Positions) -> Floats:
        return self.classifier.logits_of_features(self._features[rows])

    def vectors(self, rows: Positions) -> Floats:
        return self.classifier.vectors_of_features(self._features[rows])


class CommitteeLearner(Learner):
    """Learners of the members."""

    def __init__(self, classifier: CommitteeClassifier, members: Sequence[Learner]) -> None:
        self.classifier: CommitteeClassifier = classifier
        self._members = members

    def fit(self, rows: Positions) -> None:
        for member in self._members:
            member.fit(rows)
        self.classifier.classes_ = self.classifier.members[0].classes_

    def logits(self, rows: Positions) -> Floats:
        return self.classifier.sum_of([member.logits(rows) for member in self._members])

    def vectors(self, rows: Positions) -> Floats:
        return side_by_side([member.vectors(rows) for member in self._members])


def logits_of(classifier: Classifier, texts: Sequence[str], cache: Path | None = None) -> Floats:
    """Logits of many prepared prompts by a fitted classifier, shape (n, k); vectors go through the cache."""
    if isinstance(classifier, CommitteeClassifier):
        return classifier.sum_of([logits_of(member, texts, cache) for member in classifier.members])
    if isinstance(classifier, FrozenClassifier):
        return classifier.logits_of_vectors(vectors_of(texts, classifier.encoder, cache))
    if isinstance(classifier, NgramClassifier):
        return classifier.logits_of_features(classifier.features(texts))
    return np.stack([classifier.logits(text) for text in texts])
