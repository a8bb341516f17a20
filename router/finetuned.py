"""Kind `finetuned`: a sentence encoder tuned end to end on labelled prompts, with a linear head on its vectors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from .calibration import Floats
from .classifier import DEFAULT_TEXT
from .encoder import Encoder, EncoderId, Locate
from .frozen import FrozenClassifier
from .manifest import Manifest, Tensors, TextRecord

PREFIX = "encoder."


class FinetunedClassifier(FrozenClassifier):
    """The artefact holds the head and, in half precision, the weights that differ from the base encoder's.

    `base` is the encoder as published; `encoder` reads with the tuned weights once there are any.
    """

    kind: ClassVar[str] = "finetuned"

    def __init__(
        self, encoder: Encoder, text: TextRecord = DEFAULT_TEXT, seed: int = 0, regularisation: float = 10.0
    ) -> None:
        super().__init__(encoder, text, seed, regularisation)
        self.base = encoder
        self._changed: dict[str, NDArray[np.float16]] = {}

    @property
    def encoder_id(self) -> EncoderId:
        return self.base.identity

    def fit(self, texts: Sequence[str], labels: Sequence[str]) -> Self:
        """Fit the head alone, on the encoder as it is; training.finetune tunes the encoder."""
        return super().fit(texts, labels)

    @property
    def head(self) -> tuple[Floats, Floats]:
        """Weight, shape (k, d), and bias, shape (k,)."""
        return self._weight, self._bias

    def tuned(self, changed: Mapping[str, NDArray[np.generic]], weight: Floats, bias: Floats) -> Self:
        """Take over tuned weights, rounded to half precision, and a head, shapes (k, d) and (k,).

        Raises:
            EncoderError: weights that the base encoder does not have.
        """
        self._changed = {name: np.asarray(values, np.float16) for name, values in changed.items()}
        self.encoder = self.base.with_weights(self._changed)
        self._weight, self._bias = weight.astype(np.float64), bias.astype(np.float64)
        return self

    def state(self) -> tuple[dict[str, JsonValue], Tensors]:
        settings, tensors = super().state()
        return settings, tensors | {f"{PREFIX}{name}": values for name, values in self._changed.items()}

    @classmethod
    def from_state(cls, manifest: Manifest, tensors: Tensors, locate: Locate) -> Self:
        classifier = super().from_state(manifest, tensors, locate)
        changed = {name.removeprefix(PREFIX): values for name, values in tensors.items() if name.startswith(PREFIX)}
        return classifier.tuned(changed, classifier._weight, classifier._bias)
