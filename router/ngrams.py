"""Kind `tfidf`: hashed word and character n-grams with a linear model; needs neither torch nor an encoder to route."""

from __future__ import annotations

import re
import zlib
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from .calibration import Floats
from .classifier import DEFAULT_TEXT, Classifier, tensor_of_shape
from .encoder import Locate
from .manifest import ArtefactError, Manifest, Tensors, TextRecord

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

BUCKETS = 2**15
CHARACTER_NGRAMS = (3, 4, 5)
SKETCH = 256
_TOKEN = re.compile(r"\w+|[^\w\s]")
_MIX = np.uint64(0x9E3779B97F4A7C15)  # 2**64 / golden ratio: Fibonacci hashing


class NgramClassifier(Classifier):
    """Sublinear TF-IDF over `buckets` hashed n-grams, of unit length; logistic regression with weights in 8 bits."""

    kind: ClassVar[str] = "tfidf"
    inline: ClassVar[bool] = True

    def __init__(
        self, text: TextRecord = DEFAULT_TEXT, seed: int = 0, regularisation: float = 10.0, buckets: int = BUCKETS
    ) -> None:
        super().__init__(text, seed)
        if buckets < 2 or buckets & (buckets - 1):
            raise ValueError(f"buckets is {buckets}; it must be a power of 2")
        self.regularisation = regularisation
        self.buckets = buckets
        self._idf: NDArray[np.float16] = np.ones(buckets, np.float16)
        self._weight: NDArray[np.int8] = np.empty((0, buckets), np.int8)
        self._scale: NDArray[np.float32] = np.empty(0, np.float32)
        self._bias: NDArray[np.float32] = np.empty(0, np.float32)

    def fit(self, texts: Sequence[str], labels: Sequence[str]) -> Self:
        return self.fit_features(self.features([self.prepare(text) for text in texts]), labels)

    def features(self, texts: Sequence[str]) -> csr_matrix:
        """Sublinear counts of prepared texts, shape (n, buckets), sparse."""
        from scipy.sparse import csr_matrix

        rows = [ngram_counts(text, self.buckets) for text in texts]
        ends = np.cumsum([0, *(len(found) for found, _ in rows)])
        found = np.concatenate([found for found, _ in rows]) if rows else np.empty(0, np.int64)
        counts = np.concatenate([counts for _, counts in rows]) if rows else np.empty(0)
        return csr_matrix((counts, found, ends), shape=(len(rows), self.buckets))

    def fit_features(self, features: csr_matrix, labels: Sequence[str]) -> Self:
        """Learn from `features`; classes count alike."""
        from sklearn.linear_model import LogisticRegression

        seen = np.asarray((features > 0).sum(axis=0)).ravel()
        self._idf = (np.log((1 + features.shape[0]) / (1 + seen)) + 1).astype(np.float16)
        model = LogisticRegression(C=self.regularisation, class_weight="balanced", max_iter=200, tol=1e-3)
        model.fit(self._weighted(features), np.asarray(labels))
        self.classes_ = np.asarray(model.classes_, dtype=str)
        weight, bias = model.coef_, model.intercept_
        if len(self.classes_) == 2:  # scikit-learn keeps the second class's row only
            weight, bias = np.vstack([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])
        self._scale = (np.abs(weight).max(axis=1) / 127).astype(np.float32)
        self._weight = np.round(weight / np.maximum(self._scale, 1e-30)[:, np.newaxis]).astype(np.int8)
        self._bias = bias.astype(np.float32)
        return self

    def logits(self, text: str) -> Floats:
        return self._scores(*self._values(text))

    def vector(self, text: str) -> Floats:
        return _sketch(*self._values(text))

    def logits_and_vector(self, text: str) -> tuple[Floats, Floats]:
        found, values = self._values(text)
        return self._scores(found, values), _sketch(found, values)

    def vectors_of_features(self, features: csr_matrix) -> Floats:
        """What `vector` gives for each text, shape (n, SKETCH): count sketches (Charikar et al. 2002) of n-grams."""
        from scipy.sparse import csr_matrix

        column, sign = _sketch_of(np.arange(self.buckets))
        projection = csr_matrix((sign, (np.arange(self.buckets), column)), shape=(self.buckets, SKETCH))
        return unit((self._weighted(features) @ projection).toarray())

    def logits_of_features(self, features: csr_matrix) -> Floats:
        """Logits of many texts at once, shape (n, k)."""
        scores: Floats = self._weighted(features) @ self._weight.T.astype(np.float64) * self._scale + self._bias
        return scores

    def state(self) -> tuple[dict[str, JsonValue], Tensors]:
        tensors: Tensors = {"weight": self._weight, "scale": self._scale, "bias": self._bias, "idf": self._idf}
        return {"regularisation": self.regularisation, "buckets": self.buckets}, tensors

    @classmethod
    def from_state(cls, manifest: Manifest, tensors: Tensors, locate: Locate) -> Self:
        buckets, regularisation = (manifest.settings.get(name) for name in ("buckets", "regularisation"))
        if not isinstance(buckets, int) or not isinstance(regularisation, (int, float)):
            raise ArtefactError(f"router {manifest.version}: settings buckets and regularisation must be numbers")
        labels = len(manifest.labels)
        weight = tensor_of_shape(tensors, "weight", (labels, buckets))
        if weight.dtype != np.int8:
            raise ArtefactError(f"tensor 'weight' is {weight.dtype}, not int8")
        classifier = cls(regularisation=regularisation, buckets=buckets)
        classifier._weight = weight.astype(np.int8)
        classifier._scale = tensor_of_shape(tensors, "scale", (labels,)).astype(np.float32)
        classifier._bias = tensor_of_shape(tensors, "bias", (labels,)).astype(np.float32)
        classifier._idf = tensor_of_shape(tensors, "idf", (buckets,)).astype(np.float16)
        return classifier

    def _values(self, text: str) -> tuple[NDArray[np.int64], Floats]:
        """Buckets of a text's n-grams and their TF-IDF, of unit length."""
        found, counts = ngram_counts(text, self.buckets)
        return found, unit(counts * self._idf[found].astype(np.float64))

    def _scores(self, found: NDArray[np.int64], values: Floats) -> Floats:
        scores: Floats = self._weight[:, found].astype(np.float64) @ values * self._scale + self._bias
        return scores

    def _weighted(self, features: csr_matrix) -> csr_matrix:
        """Counts times IDF, rows of unit length."""
        weighted = features.multiply(self._idf.astype(np.float64)).tocsr()
        lengths = np.sqrt(np.asarray(weighted.multiply(weighted).sum(axis=1)).ravel())
        weighted.data /= np.repeat(np.maximum(lengths, 1e-12), np.diff(weighted.indptr))
        return weighted


def unit(vectors: Floats) -> Floats:
    """Rows of length 1, shape (..., d)."""
    scaled: Floats = vectors / np.maximum(np.linalg.norm(vectors, axis=-1, keepdims=True), 1e-12)
    return scaled


def _sketch(found: NDArray[np.int64], values: Floats) -> Floats:
    """Count sketch of unit length, shape (SKETCH,)."""
    column, sign = _sketch_of(found)
    return unit(np.bincount(column, values * sign, minlength=SKETCH).astype(np.float64))


def _sketch_of(found: NDArray[np.int64]) -> tuple[NDArray[np.int64], Floats]:
    """Column in [0, SKETCH) and sign of each bucket."""
    mixed = (found.astype(np.uint64) + np.uint64(1)) * _MIX
    return (mixed >> np.uint64(56)).astype(np.int64), np.where(mixed >> np.uint64(40) & np.uint64(1), 1.0, -1.0)


def ngram_counts(text: str, buckets: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Buckets of a text's word 1- and 2-grams and character 3- to 5-grams, ascending, with 1 + log(count) of each."""
    folded = text.casefold()
    tokens = _TOKEN.findall(folded)
    words = [*tokens, *(f"{first} {second}" for first, second in pairwise(tokens))]
    hashes = [np.array([zlib.crc32(word.encode()) for word in words], np.uint64)]
    characters = np.frombuffer(f" {' '.join(tokens)} ".encode("utf-32-le"), np.uint32).astype(np.uint64)
    for size in CHARACTER_NGRAMS:
        if len(characters) >= size:
            windows = np.zeros(len(characters) - size + 1, np.uint64)
            for offset in range(size):
                windows = (windows + characters[offset : offset + len(windows)] + np.uint64(size)) * _MIX
            hashes.append(windows >> np.uint64(20))
    found, counts = np.unique(
        np.concatenate(hashes) * _MIX >> np.uint64(64 - (buckets.bit_length() - 1)), return_counts=True
    )
    return found.astype(np.int64), 1 + np.log(counts)
