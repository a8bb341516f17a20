"""Kind `extended`: a router with classes added by example, by the prototype of each, without retraining.

As in Nexus (Gritsch et al. 2024) by prototype, here with a gate under which the old posterior stays as it is.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import exp
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue, ValidationError

from .calibration import Floats
from .classifier import Classifier, tensor_of_shape
from .encoder import EncoderId, Locate
from .kinds import class_of
from .manifest import HEAD, ArtefactError, Manifest, Tensors, tensors_of

KIND = "extended"
BASE = "base"
NUMBERS = ("gate", "slope", "shift")
MAX_EXPONENT = 30.0


@dataclass(frozen=True, slots=True)
class Extension:
    """A class given by examples.

    `prototypes`, shape (1 + m, d), are directions in the base's vector space, the new class's first and then those of
    the old ones; with `offsets`, shape (1 + m,), they score a prompt. Its margin is the new score less the best old
    one. Above `gate` the class's log-odds against all others are slope * margin + shift; at or under it they are none.
    """

    label: str
    prototypes: NDArray[np.float32]
    offsets: NDArray[np.float32]
    gate: float
    slope: float
    shift: float

    def margin(self, vectors: Floats) -> Floats:
        """Margins of vectors, shape (..., d)."""
        scores = vectors @ self.prototypes.T.astype(np.float64) + self.offsets
        margins: Floats = scores[..., 0] - scores[..., 1:].max(axis=-1)
        return margins

    def odds(self, vector: Floats) -> float:
        """Odds of the class against all others together."""
        margin = float(self.margin(vector))
        return exp(min(self.slope * margin + self.shift, MAX_EXPONENT)) if margin > self.gate else 0.0


class ExtendedClassifier(Classifier):
    """Probabilities of the base, from which new classes take their share in proportion.

    `manifest` and `head` are the base artefact's, kept whole: removing the last extension restores it bit for bit.
    """

    kind: ClassVar[str] = KIND

    def __init__(self, base: Classifier, manifest: Manifest, head: bytes, extensions: Sequence[Extension]) -> None:
        super().__init__(base.text, base.seed)
        self.base, self.base_manifest, self.base_head = base, manifest, head
        self.extensions = tuple(sorted(extensions, key=lambda extension: extension.label))
        new = [extension.label for extension in self.extensions]
        labels = sorted([*base.classes_.tolist(), *new])
        if not new or len(set(labels)) < len(labels):
            raise ValueError(f"labels {new} must be new, and at least one; the base has {base.classes_.tolist()}")
        self.classes_ = np.array(labels)
        self._old = np.searchsorted(self.classes_, base.classes_)
        self._new = np.searchsorted(self.classes_, np.array(new))

    @property
    def encoder_id(self) -> EncoderId | None:
        return self.base.encoder_id

    def fit(self, texts: Sequence[str], labels: Sequence[str]) -> Self:
        """
        Raises:
            ValueError: always; extensions come from examples, by training.extend.
        """
        raise ValueError("an extended router is not fitted: extend a fitted one, or train one on all labels")

    def prepare(self, text: str) -> str:
        return self.base.prepare(text)

    def logits(self, text: str) -> Floats:
        """Logarithms of the probabilities."""
        scores: Floats = np.log(np.maximum(self.probabilities(text), 1e-12))
        return scores

    def vector(self, text: str) -> Floats:
        return self.base.vector(text)

    def probabilities(self, text: str) -> Floats:
        return self.probabilities_and_vector(text)[0]

    def probabilities_and_vector(self, text: str) -> tuple[Floats, Floats | None]:
        old, vector = self.base.probabilities_and_vector(text)
        return self.joined(old, vector), vector

    def joined(self, old: Floats, vector: Floats | None) -> Floats:
        """Probabilities of all classes from the base's, and the prompt's vector; none stands for no text."""
        odds = np.array([0.0 if vector is None else extension.odds(vector) for extension in self.extensions])
        total = 1 + odds.sum()
        joined = np.zeros(len(self.classes_))
        joined[self._old], joined[self._new] = old / total, odds / total
        return joined

    def state(self) -> tuple[dict[str, JsonValue], Tensors]:
        tensors: Tensors = {BASE: np.frombuffer(self.base_head, np.uint8)}
        records: list[JsonValue] = []
        for number, extension in enumerate(self.extensions):
            tensors[f"{number}.prototypes"] = extension.prototypes
            tensors[f"{number}.offsets"] = extension.offsets
            records.append({"label": extension.label, **{name: getattr(extension, name) for name in NUMBERS}})
        return {BASE: self.base_manifest.model_dump(mode="json"), "extensions": records}, tensors

    @classmethod
    def from_state(cls, manifest: Manifest, tensors: Tensors, locate: Locate) -> Self:
        base_manifest, head = base_of(manifest, tensors)
        base = class_of(base_manifest.kind).restored(base_manifest, tensors_of(head, f"its base's {HEAD}"), locate)
        records = manifest.settings.get("extensions")
        if not isinstance(records, list) or not records:
            raise ArtefactError(f"router {manifest.version}: an extended router names its extensions")
        extensions = [_extension(manifest, tensors, number, record) for number, record in enumerate(records)]
        try:
            classifier = cls(base, base_manifest, head, extensions)
        except ValueError as error:
            raise ArtefactError(f"router {manifest.version}: {error}") from error
        if classifier.classes_.tolist() != manifest.labels:
            raise ArtefactError(f"router {manifest.version}: its labels are not its base's and its extensions'")
        return classifier


def base_of(manifest: Manifest, tensors: Tensors) -> tuple[Manifest, bytes]:
    """The manifest and the head file of the artefact that an extended one stands on.

    Raises:
        ArtefactError: it is missing, extended itself, or not the one whose version it names.
    """
    try:
        base = Manifest.model_validate(manifest.settings.get(BASE))
    except ValidationError as error:
        raise ArtefactError(f"router {manifest.version}: its base has no manifest") from error
    head = tensor_of_shape(tensors, BASE, (None,)).tobytes()
    whole = HEAD in base.files and hashlib.sha256(head).hexdigest() == base.files[HEAD].sha256
    if not whole or base.kind == KIND or base.content_version() != base.version:
        raise ArtefactError(f"router {manifest.version}: its base {base.version} is not whole")
    return base, head


def _extension(manifest: Manifest, tensors: Tensors, number: int, record: JsonValue) -> Extension:
    fields: Mapping[str, JsonValue] = record if isinstance(record, dict) else {}
    label, values = fields.get("label"), [fields.get(name) for name in NUMBERS]
    if not isinstance(label, str) or not all(isinstance(value, int | float) for value in values):
        raise ArtefactError(f"router {manifest.version}: extension {number} needs a label, {', '.join(NUMBERS)}")
    prototypes = tensor_of_shape(tensors, f"{number}.prototypes", (None, None))
    if len(prototypes) < 2:
        raise ArtefactError(f"router {manifest.version}: extension {number} has no prototype of an old class")
    offsets = tensor_of_shape(tensors, f"{number}.offsets", (len(prototypes),))
    gate, slope, shift = (float(str(value)) for value in values)
    return Extension(label, prototypes.astype(np.float32), offsets.astype(np.float32), gate, slope, shift)
