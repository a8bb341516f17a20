"""What training needs of each kind: features made once, then fits and logits on chosen rows."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from ..router.calibration import Floats
from ..router.classifier import Classifier
from ..router.committee import CommitteeClassifier, side_by_side
from ..router.finetuned import FinetunedClassifier
from ..router.frozen import FrozenClassifier
from ..router.ngrams import NgramClassifier
from .features import Progress, vectors_of
from .split import Positions
from .tuning import Tuning, work_folder

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

Labels = NDArray[np.str_]


class Learner(ABC):
    """A classifier with the features and labels of all prompts, so that folds encode nothing twice."""

    classifier: Classifier

    @property
    def slow(self) -> bool:
        """Whether a fit takes so long that it is made once, on all rows but a few."""
        return False

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


class FinetunedLearner(Learner):
    """The first fit tunes the encoder, held out being all rows but those given; later fits keep what is tuned.

    `vectors` are those of the encoder as published: the head begins with them.
    """

    def __init__(
        self,
        classifier: FinetunedClassifier,
        texts: Sequence[str],
        vectors: NDArray[np.float32],
        labels: Labels,
        sources: Sequence[str],
        tuning: Tuning,
        cache: Path | None,
        progress: Progress,
    ) -> None:
        self.classifier: FinetunedClassifier = classifier
        self._texts, self._first, self._labels, self._sources = texts, vectors, labels, sources
        self._tuning, self._cache, self._progress = tuning, cache, progress
        self._tuned = False

    @property
    def slow(self) -> bool:
        return True

    def fit(self, rows: Positions) -> None:
        if self._tuned:
            return
        from .finetune import finetune

        self.classifier.fit_vectors(self._first[rows], self._labels[rows].tolist())
        targets = (self._labels[:, np.newaxis] == self.classifier.classes_).astype(np.float64)
        held = np.setdiff1d(np.arange(len(self._labels)), rows)
        with work_folder(self._cache, self._key()) as work:
            finetune(self.classifier, self._texts, targets, self._sources, held, self._tuning, work, self._progress)
        self._tuned = True

    def logits(self, rows: Positions) -> Floats:
        return self.classifier.logits_of_vectors(self._vectors(rows))

    def vectors(self, rows: Positions) -> Floats:
        return self._vectors(rows).astype(np.float64)

    def _vectors(self, rows: Positions) -> NDArray[np.float32]:
        texts = [self._texts[row] for row in rows]
        return vectors_of(texts, self.classifier.encoder, self._cache, self._progress)

    def _key(self) -> str:
        settings = f"{self.classifier.base.identity.checksum}{self._tuning}{self.classifier.text}"
        digest = hashlib.sha256(settings.encode())
        for text, label in zip(self._texts, self._labels, strict=True):
            digest.update(f"{text}\0{label}\0".encode())
        return digest.hexdigest()[:32]


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

    @property
    def slow(self) -> bool:
        return any(member.slow for member in self._members)

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
