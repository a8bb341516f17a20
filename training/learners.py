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
from ..router.cascade import CascadeClassifier, Settings, mean_of, settle
from ..router.classifier import Classifier
from ..router.committee import CommitteeClassifier, side_by_side
from ..router.finetuned import PREFIX, FinetunedClassifier
from ..router.frozen import FrozenClassifier
from ..router.ngrams import NgramClassifier
from .features import Progress, read_tensors, vectors_of, write_tensors
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

    def settle(self, rows: Positions) -> None:  # noqa: B027 - most kinds have nothing to settle
        """Choose, after a fit, what only these held-out rows can tell."""

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

    What was tuned is kept in the cache: a committee or cascade on the same rows does not tune again.

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
        self.classifier.fit_vectors(self._first[rows], self._labels[rows].tolist())
        key = self._key(rows)
        file = self._cache / f"finetuned-{key}.safetensors" if self._cache else None
        if file is None or not self._taken_from(file):
            self._tune(rows, key)
            if file:
                write_tensors(file, self.classifier.state()[1])
        self._tuned = True

    def _tune(self, rows: Positions, key: str) -> None:
        from .finetune import finetune

        targets = (self._labels[:, np.newaxis] == self.classifier.classes_).astype(np.float64)
        held = np.setdiff1d(np.arange(len(self._labels)), rows)
        with work_folder(self._cache, key) as work:
            finetune(self.classifier, self._texts, targets, self._sources, held, self._tuning, work, self._progress)

    def _taken_from(self, file: Path) -> bool:
        """Take what an earlier run tuned on the same rows with the same settings, if there is such."""
        tensors = read_tensors(file)
        if tensors is None:
            return False
        weight, bias = tensors.pop("weight"), tensors.pop("bias")
        changed = {name.removeprefix(PREFIX): values for name, values in tensors.items()}
        self.classifier.tuned(changed, weight.astype(np.float64), bias.astype(np.float64))
        return True

    def logits(self, rows: Positions) -> Floats:
        return self.classifier.logits_of_vectors(self._vectors(rows))

    def vectors(self, rows: Positions) -> Floats:
        return self._vectors(rows).astype(np.float64)

    def _vectors(self, rows: Positions) -> NDArray[np.float32]:
        texts = [self._texts[row] for row in rows]
        return vectors_of(texts, self.classifier.encoder, self._cache, self._progress)

    def _key(self, rows: Positions) -> str:
        settings = f"{self.classifier.base.identity.checksum}{self._tuning}{self.classifier.text}"
        digest = hashlib.sha256(settings.encode() + rows.astype(np.int64).tobytes())
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


class CascadeLearner(CommitteeLearner):
    """Settles, over all rounds alike, when the first member may answer alone."""

    def __init__(
        self, classifier: CascadeClassifier, members: Sequence[Learner], labels: Labels, allowed_loss: float
    ) -> None:
        super().__init__(classifier, members)
        self._cascade = classifier
        self._labels, self._allowed_loss = labels, allowed_loss
        self._settled: list[Settings] = []

    def settle(self, rows: Positions) -> None:
        for member in self._members:
            member.settle(rows)
        targets = np.searchsorted(self._cascade.classes_, self._labels[rows])
        found = settle([member.logits(rows) for member in self._members], targets, self._allowed_loss)
        self._settled.append(found)
        self._cascade.settings = mean_of(self._settled)

    def logits(self, rows: Positions) -> Floats:
        return self._cascade.either(*(member.logits(rows) for member in self._members))

    def vectors(self, rows: Positions) -> Floats:
        return self._members[0].vectors(rows)


def logits_of(classifier: Classifier, texts: Sequence[str], cache: Path | None = None) -> Floats:
    """Logits of many prepared prompts by a fitted classifier, shape (n, k); vectors go through the cache."""
    if isinstance(classifier, CascadeClassifier):
        return classifier.either(*(logits_of(member, texts, cache) for member in classifier.members))
    if isinstance(classifier, CommitteeClassifier):
        return classifier.sum_of([logits_of(member, texts, cache) for member in classifier.members])
    if isinstance(classifier, FrozenClassifier):
        return classifier.logits_of_vectors(vectors_of(texts, classifier.encoder, cache))
    if isinstance(classifier, NgramClassifier):
        return classifier.logits_of_features(classifier.features(texts))
    return np.stack([classifier.logits(text) for text in texts])
