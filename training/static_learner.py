"""What training needs of the static kind: its vocabulary, a teacher's probabilities, then distillation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from ..router.calibration import Floats, softmax
from ..router.encoder import Encoder
from ..router.static import StaticClassifier
from .features import Progress
from .learners import Labels, Learner
from .split import Positions
from .tuning import Distilling


class StaticLearner(Learner):
    """`pieces` are the encoder's vectors of the whole vocabulary, shape (V, d)."""

    def __init__(
        self,
        classifier: StaticClassifier,
        pieces: NDArray[np.float32],
        texts: Sequence[str],
        labels: Labels,
        sources: Sequence[str],
        teacher: Learner | None,
        settings: Distilling,
        progress: Progress,
    ) -> None:
        self.classifier: StaticClassifier = classifier
        self._pieces, self._texts, self._labels, self._sources = pieces, texts, labels, sources
        self._teacher, self._settings, self._progress = teacher, settings, progress

    @property
    def slow(self) -> bool:
        return self._teacher is not None and self._teacher.slow

    def fit(self, rows: Positions) -> None:
        from .distil import distil, first_vectors

        classes = np.unique(self._labels[rows])
        targets = (self._labels[rows, np.newaxis] == classes).astype(np.float64)
        if self._teacher:
            self._teacher.fit(rows)
            soft = softmax(self._teacher.logits(rows), self._settings.temperature)
            targets = (1 - self._settings.soft) * targets + self._settings.soft * soft
        texts = [self._texts[row] for row in rows]
        sources = [self._sources[row] for row in rows]
        self.classifier.classes_ = classes
        first = first_vectors(self._pieces, self.classifier, texts, self._settings.dimensions)
        distil(self.classifier, first, texts, targets, sources, self._settings, self._progress)

    def logits(self, rows: Positions) -> Floats:
        return np.stack([self.classifier.logits(self._texts[row]) for row in rows])

    def vectors(self, rows: Positions) -> Floats:
        return np.stack([self.classifier.vector(self._texts[row]) for row in rows])


def pieces_of(encoder: Encoder) -> tuple[bytes, list[str]]:
    """The encoder's tokenizer as JSON, and its pieces as texts, in the order of their numbers."""
    tokenizer = encoder.module.tokenizer.backend_tokenizer
    tokenizer.no_padding()
    tokenizer.no_truncation()
    pieces = [tokenizer.id_to_token(number) or "" for number in range(tokenizer.get_vocab_size())]
    return tokenizer.to_str().encode(), [piece.removeprefix("##") for piece in pieces]
