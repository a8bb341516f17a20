"""Kind `static`: one vector a word piece, averaged, with a small head; numpy alone, a fraction of a millisecond."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue
from tokenizers import Tokenizer

from .calibration import Floats
from .classifier import DEFAULT_TEXT, Classifier, tensor_of_shape
from .encoder import Locate
from .manifest import ArtefactError, Manifest, Tensors, TextRecord
from .ngrams import unit
from .pieces import Ids, Pieces

PIECES = 160
MAX_TOKENIZER_BYTES = 32 * 2**20


@dataclass(frozen=True, slots=True)
class Weights:
    """Float weights of the head, v being the mean vector of a prompt's pieces (times the root of their number):

        logits = silu(v @ inner + inner_bias) @ outer + v @ straight + bias + what pieces and pairs of pieces say alone

    `tokens` (V, d), `piece` (V, k), `pair` (P, k), `inner` (d, h), `outer` (h, k), `straight` (d, k).
    """

    tokens: NDArray[np.float32]
    piece: NDArray[np.float32]
    pair: NDArray[np.float32]
    inner: NDArray[np.float32]
    inner_bias: NDArray[np.float32]
    outer: NDArray[np.float32]
    straight: NDArray[np.float32]
    bias: NDArray[np.float32]


class StaticClassifier(Classifier):
    """`tokenizer` is the JSON of a tokenizers.Tokenizer, `tokens` the vectors of its pieces, shape (V, d)."""

    kind: ClassVar[str] = "static"
    inline: ClassVar[bool] = True

    def __init__(
        self,
        tokenizer: bytes,
        tokens: NDArray[np.float32],
        text: TextRecord = DEFAULT_TEXT,
        seed: int = 0,
        regularisation: float = 10.0,
    ) -> None:
        super().__init__(text, seed)
        self._json = tokenizer
        try:
            self.tokenizer: Tokenizer = Tokenizer.from_buffer(tokenizer)
        except Exception as error:  # tokenizers raises no narrower one
            raise ArtefactError(f"the tokenizer cannot be read ({error})") from error
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self._pieces = Pieces(self.tokenizer)
        self.regularisation = regularisation
        self._tensors: dict[str, NDArray[np.generic]] = {}
        self._set_table("tokens", tokens)

    def fit(self, texts: Sequence[str], labels: Sequence[str]) -> Self:
        """Logistic regression on mean vectors; training.distil also learns the vectors, from a teacher."""
        from sklearn.linear_model import LogisticRegression

        vectors = np.stack([self._mean(self.ids(self.prepare(text))) for text in texts])
        model = LogisticRegression(C=self.regularisation, class_weight="balanced", max_iter=1_000)
        model.fit(vectors, np.asarray(labels))
        weight, bias = model.coef_, model.intercept_
        if len(model.classes_) == 2:  # scikit-learn keeps the second class's row only
            weight, bias = np.vstack([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])
        count, none = len(model.classes_), np.zeros((0, len(model.classes_)), np.float32)
        d = vectors.shape[1]
        return self.learnt(
            np.asarray(model.classes_, dtype=str).tolist(),
            Weights(
                tokens=self._table("tokens"),
                piece=np.zeros((len(self._tensors["tokens"]), count), np.float32),
                pair=np.zeros((1, count), np.float32),
                inner=np.zeros((d, 0), np.float32),
                inner_bias=np.zeros(0, np.float32),
                outer=none,
                straight=weight.T.astype(np.float32),
                bias=bias.astype(np.float32),
            ),
        )

    def learnt(self, classes: Sequence[str], weights: Weights) -> Self:
        """Take over learnt weights; tables are rounded to 8 bits, a scale for each row."""
        self.classes_ = np.asarray(classes, dtype=str)
        for name in ("tokens", "piece", "pair"):
            self._set_table(name, getattr(weights, name))
        for name in ("inner", "inner_bias", "outer", "straight", "bias"):
            self._tensors[name] = np.ascontiguousarray(getattr(weights, name), np.float32)
        return self

    def ids(self, text: str) -> Ids:
        """Piece numbers of a prepared text, at most PIECES."""
        return self._pieces.of(text)[:PIECES]

    def logits(self, text: str) -> Floats:
        return self.logits_and_vector(text)[0]

    def vector(self, text: str) -> Floats:
        return unit(self._mean(self.ids(text)).astype(np.float64))

    def logits_and_vector(self, text: str) -> tuple[Floats, Floats]:
        ids = self.ids(text)
        mean = self._mean(ids)
        inner = mean @ self._floats("inner") + self._floats("inner_bias")
        scores = (inner / (1 + np.exp(-inner))) @ self._floats("outer") + mean @ self._floats("straight")
        said = self._said("piece", ids) + self._said("pair", pair_numbers(ids, len(self._tensors["pair"])))
        logits: Floats = (scores + self._floats("bias") + said).astype(np.float64)
        return logits, unit(mean.astype(np.float64))

    def state(self) -> tuple[dict[str, JsonValue], Tensors]:
        packed = np.frombuffer(zlib.compress(self._json, 9), np.uint8)
        return {"regularisation": self.regularisation}, {**self._tensors, "tokenizer": packed}

    @classmethod
    def from_state(cls, manifest: Manifest, tensors: Tensors, locate: Locate) -> Self:
        labels = len(manifest.labels)
        d = tensor_of_shape(tensors, "tokens", (None, None)).shape[1]
        hidden = tensor_of_shape(tensors, "inner", (d, None)).shape[1]
        shapes: Mapping[str, tuple[int | None, ...]] = {
            "piece": (len(tensors["tokens"]), labels),
            "pair": (None, labels),
            "inner_bias": (hidden,),
            "outer": (hidden, labels),
            "straight": (d, labels),
            "bias": (labels,),
            "tokenizer": (None,),
        }
        for name, shape in shapes.items():
            tensor_of_shape(tensors, name, shape)
        for name in ("tokens", "piece", "pair"):
            tensor_of_shape(tensors, f"{name}_scale", (len(tensors[name]),))
            if tensors[name].dtype != np.int8:
                raise ArtefactError(f"tensor {name!r} is {tensors[name].dtype}, not int8")
        classifier = cls(_unpacked(tensors["tokenizer"]), np.zeros((len(tensors["tokens"]), d), np.float32))
        if classifier.tokenizer.get_vocab_size() > len(tensors["tokens"]):
            raise ArtefactError(f"the tokenizer has more pieces than the {len(tensors['tokens'])} vectors there are")
        classifier._tensors = {name: values for name, values in tensors.items() if name != "tokenizer"}
        return classifier

    def _floats(self, name: str) -> NDArray[np.float32]:
        return self._tensors[name].astype(np.float32, copy=False)

    def _mean(self, ids: Ids) -> NDArray[np.float32]:
        """Sum of the pieces' vectors over the root of their number, shape (d,)."""
        return self._said("tokens", ids)

    def _said(self, name: str, rows: Ids) -> NDArray[np.float32]:
        """Sum of a table's rows over the root of their number."""
        scale = self._tensors[f"{name}_scale"][rows].astype(np.float32) / np.float32(max(1, len(rows)) ** 0.5)
        said: NDArray[np.float32] = scale @ self._tensors[name][rows].astype(np.float32)
        return said

    def _table(self, name: str) -> NDArray[np.float32]:
        return self._tensors[name].astype(np.float32) * self._tensors[f"{name}_scale"].astype(np.float32)[:, np.newaxis]

    def _set_table(self, name: str, values: NDArray[np.float32]) -> None:
        scale = np.maximum(np.abs(values).max(axis=1) / 127, 1e-6).astype(np.float16)
        rounded = np.round(values / scale.astype(np.float32)[:, np.newaxis])
        self._tensors[name] = np.clip(rounded, -127, 127).astype(np.int8)
        self._tensors[f"{name}_scale"] = scale


def pair_numbers(ids: Ids, count: int) -> Ids:
    """A number in [0, count) for every two pieces that stand side by side."""
    numbers: Ids = (ids[:-1] * 1_000_003 + ids[1:] * 7_919) % count
    return numbers


def _unpacked(packed: NDArray[np.generic]) -> bytes:
    """The tokenizer's JSON; a bomb or garbage is refused.

    Raises:
        ArtefactError: it is no zlib stream, over 32 MiB, or no tokenizer.
    """
    reader = zlib.decompressobj()
    try:
        data = reader.decompress(packed.astype(np.uint8).tobytes(), MAX_TOKENIZER_BYTES)
    except zlib.error as error:
        raise ArtefactError(f"tensor 'tokenizer' is not compressed JSON ({error})") from error
    if reader.unconsumed_tail or not reader.eof:
        raise ArtefactError(f"tensor 'tokenizer' is cut off, or over {MAX_TOKENIZER_BYTES} bytes")
    return data
