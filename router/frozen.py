"""Kind `frozen`: a frozen sentence encoder with multinomial logistic regression on its vectors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from .calibration import Floats
from .classifier import DEFAULT_TEXT, Classifier, tensor_of_shape
from .encoder import Encoder, EncoderId, Locate, load_encoder
from .manifest import ArtefactError, Manifest, Tensors, TextRecord


class FrozenClassifier(Classifier):
    """`regularisation` is scikit-learn's C: larger fits the training rows closer."""

    kind: ClassVar[str] = "frozen"

    def __init__(
        self, encoder: Encoder, text: TextRecord = DEFAULT_TEXT, seed: int = 0, regularisation: float = 10.0
    ) -> None:
        super().__init__(text, seed)
        self.encoder = encoder
        self.regularisation = regularisation
        self._weight: Floats = np.empty((0, encoder.dimensions))
        self._bias: Floats = np.empty(0)

    @property
    def encoder_id(self) -> EncoderId:
        return self.encoder.identity

    def fit(self, texts: Sequence[str], labels: Sequence[str]) -> Self:
        vectors = np.empty((len(texts), self.encoder.dimensions), dtype=np.float32)
        for positions, batch in self.encoder.encode_batches([self.prepare(text) for text in texts]):
            vectors[positions] = batch
        return self.fit_vectors(vectors, labels)

    def fit_vectors(self, vectors: NDArray[np.float32], labels: Sequence[str], weights: Floats | None = None) -> Self:
        """Learn from the encoder's vectors, shape (n, d); classes count alike, rows by `weights`."""
        from sklearn.linear_model import LogisticRegression

        model = LogisticRegression(C=self.regularisation, class_weight="balanced", max_iter=1_000)
        model.fit(vectors.astype(np.float64), np.asarray(labels), sample_weight=weights)
        self.classes_ = np.asarray(model.classes_, dtype=str)
        self._weight, self._bias = model.coef_, model.intercept_
        if len(self.classes_) == 2:  # scikit-learn keeps the second class's row only
            self._weight = np.vstack([np.zeros_like(model.coef_), model.coef_])
            self._bias = np.concatenate([[0.0], model.intercept_])
        return self

    def logits(self, text: str) -> Floats:
        scores: Floats = self._scores(self.encoder.encode(text)[np.newaxis])[0]
        return scores

    def vector(self, text: str) -> Floats:
        return self.encoder.encode(text).astype(np.float64)

    def logits_and_vector(self, text: str) -> tuple[Floats, Floats]:
        vector = self.encoder.encode(text)
        return self._scores(vector[np.newaxis])[0], vector.astype(np.float64)

    def logits_of_vectors(self, vectors: NDArray[np.float32]) -> Floats:
        """Logits from vectors made before, shape (n, k)."""
        return self._scores(vectors)

    def state(self) -> tuple[dict[str, JsonValue], Tensors]:
        tensors: Tensors = {"weight": self._weight.astype(np.float32), "bias": self._bias.astype(np.float32)}
        return {"regularisation": self.regularisation}, tensors

    @classmethod
    def from_state(cls, manifest: Manifest, tensors: Tensors, locate: Locate) -> Self:
        if manifest.encoder is None:
            raise ArtefactError(f"router {manifest.version} of kind {cls.kind!r} names no encoder")
        labels = len(manifest.labels)
        weight = tensor_of_shape(tensors, "weight", (labels, None))
        bias = tensor_of_shape(tensors, "bias", (labels,))
        record = manifest.encoder
        identity = EncoderId(record.model, record.revision, record.checksum)
        encoder = load_encoder(identity, manifest.text.tokens, locate)
        tensor_of_shape(tensors, "weight", (labels, encoder.dimensions))
        classifier = cls(encoder, regularisation=_number(manifest.settings.get("regularisation")))
        classifier._weight, classifier._bias = weight.astype(np.float64), bias.astype(np.float64)
        return classifier

    def _scores(self, vectors: NDArray[np.float32]) -> Floats:
        scores: Floats = vectors.astype(np.float64) @ self._weight.T + self._bias
        return scores


def _number(value: JsonValue) -> float:
    if not isinstance(value, (int, float)):
        raise ArtefactError(f"setting regularisation is {value!r}, not a number")
    return float(value)
