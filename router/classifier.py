"""The contract of every kind of router: scikit-learn's, and logits of one prompt alone."""

from __future__ import annotations

import importlib.metadata
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from .calibration import Floats, VectorScaling, softmax
from .encoder import EncoderId, Locate, as_given
from .manifest import (
    FORMAT_VERSION,
    ArtefactError,
    DataRecord,
    EncoderRecord,
    Manifest,
    ScalingRecord,
    SelfTest,
    Tensors,
    TextRecord,
    read_artefact,
    write_artefact,
)
from .spelling import Speller, spelling_apart
from .text import bounded, cut

SELF_TEST_TOLERANCE = 5e-3
DEFAULT_TEXT = TextRecord()


@dataclass(frozen=True, slots=True)
class About:
    """What an artefact says of itself beside its weights."""

    name: str = "router"
    threshold: float = 0.0
    novelty_limit: float | None = None
    data: DataRecord = field(default_factory=DataRecord)
    parent: str | None = None
    metrics: Mapping[str, JsonValue] = field(default_factory=dict)
    self_test: Sequence[str] = ()
    extra: Mapping[str, bytes] = field(default_factory=dict)


class Classifier(ABC):
    """Prompts -> calibrated probabilities of `classes_`, shape (k,), in sorted order.

    `temperature` divides the logits, `scaling` then acts on each class; fit leaves them at 1 and None, calibration on
    held-out prompts sets them. `text` says how much of a prompt is read, `speller` undoes slips of the keyboard first.
    """

    kind: ClassVar[str]
    inline: ClassVar[bool] = False
    """Whether reading a prompt takes so little (well under a millisecond) that a thread for it costs more."""

    def __init__(self, text: TextRecord = DEFAULT_TEXT, seed: int = 0) -> None:
        self.text = text
        self.seed = seed
        self.temperature = 1.0
        self.scaling: VectorScaling | None = None
        self.speller: Speller | None = None
        self.classes_: NDArray[np.str_] = np.array([], dtype=str)

    @abstractmethod
    def fit(self, texts: Sequence[str], labels: Sequence[str]) -> Self:
        """Learn from texts and their labels."""

    @abstractmethod
    def logits(self, text: str) -> Floats:
        """Uncalibrated scores of one prepared prompt alone, shape (k,)."""

    @abstractmethod
    def vector(self, text: str) -> Floats:
        """A prepared prompt in the kind's own space, unit length, shape (d,): prompts alike lie near each other."""

    def logits_and_vector(self, text: str) -> tuple[Floats, Floats]:
        """Both at once; kinds that share work between them read the prompt once."""
        return self.logits(text), self.vector(text)

    @abstractmethod
    def state(self) -> tuple[dict[str, JsonValue], Tensors]:
        """Settings and tensors that `from_state` makes the same classifier of."""

    @classmethod
    @abstractmethod
    def from_state(cls, manifest: Manifest, tensors: Tensors, locate: Locate) -> Self:
        """The classifier of an artefact.

        Raises:
            ArtefactError: tensors of a wrong name or shape.
            EncoderError: the encoder cannot be had, or is another.
        """

    @property
    def encoder_id(self) -> EncoderId | None:
        """The encoder that the kind stands on, if it does."""
        return None

    def prepare(self, text: str) -> str:
        """The part of a prompt that is read, as it is read."""
        part = cut(bounded(text), self.text.head, self.text.tail)
        return self.speller.corrected(part) if self.speller else part

    def probabilities(self, text: str) -> Floats:
        """Calibrated probabilities of one prompt, shape (k,). A prompt without any text gets equal ones."""
        prepared = self.prepare(text)
        if not prepared:
            return np.full(len(self.classes_), 1 / len(self.classes_))
        return self.calibrated(self.logits(prepared))

    def calibrated(self, logits: Floats) -> Floats:
        """Probabilities from logits, shape (..., k) both."""
        scaled = logits / self.temperature
        return softmax(self.scaling.applied(scaled) if self.scaling else scaled)

    def read(self, text: str) -> tuple[Floats, Mapping[str, float]]:
        """Probabilities of one prompt, and each expert's probability of answering it right where the kind knows it."""
        return self.probabilities(text), {}

    def probabilities_and_vector(self, text: str) -> tuple[Floats, Floats | None]:
        """Probabilities and vector of one prompt, read once; no vector where there is no text."""
        prepared = self.prepare(text)
        if not prepared:
            return self.probabilities(text), None
        logits, vector = self.logits_and_vector(prepared)
        return self.calibrated(logits), vector

    def predict_proba(self, texts: Sequence[str]) -> Floats:
        """Calibrated probabilities, shape (n, k); each prompt is read on its own."""
        if not len(texts):
            return np.empty((0, len(self.classes_)))
        return np.stack([self.probabilities(text) for text in texts])

    def predict(self, texts: Sequence[str]) -> NDArray[np.str_]:
        """The most probable label of each prompt, shape (n,)."""
        chosen: NDArray[np.str_] = self.classes_[self.predict_proba(texts).argmax(axis=1)]
        return chosen

    def save(self, folder: Path, about: About = About()) -> Manifest:
        """Write the artefact, whole or not at all.

        Raises:
            ArtefactError: it cannot be written there.
        """
        spelling = self.speller.tensors() if self.speller else {}
        return write_artefact(folder, self.manifest(about), {**self.state()[1], **spelling}, about.extra)

    def manifest(self, about: About = About()) -> Manifest:
        """What the artefact says of itself; `version` and `files` are known once it is written."""
        identity = self.encoder_id
        return Manifest(
            format=FORMAT_VERSION,
            kind=self.kind,
            name=about.name,
            labels=[str(label) for label in self.classes_],
            encoder=EncoderRecord(model=identity.model, revision=identity.revision, checksum=identity.checksum)
            if identity
            else None,
            text=self.text,
            temperature=self.temperature,
            scaling=ScalingRecord(factors=list(self.scaling.factors), shifts=list(self.scaling.shifts))
            if self.scaling
            else None,
            threshold=about.threshold,
            novelty_limit=about.novelty_limit,
            settings=self.state()[0],
            data=about.data,
            seed=self.seed,
            parent=about.parent,
            metrics=dict(about.metrics),
            created_by=f"collegium {importlib.metadata.version('collegium')}",
            self_test=[SelfTest(text=text, posterior=self.probabilities(text).tolist()) for text in about.self_test],
        )

    @classmethod
    def load(cls, folder: Path, locate: Locate = as_given) -> Self:
        """Open an artefact of this kind.

        Raises:
            ArtefactError: it is of another kind, or not whole.
            EncoderError: the encoder cannot be had, or is another.
        """
        manifest, tensors = read_artefact(folder)
        if manifest.kind != cls.kind:
            raise ArtefactError(f"router {folder} is of kind {manifest.kind!r}, not {cls.kind!r}")
        return cls.restored(manifest, tensors, locate)

    @classmethod
    def restored(cls, manifest: Manifest, tensors: Tensors, locate: Locate) -> Self:
        """`from_state`, with what every kind keeps, checked by the self-test prompts."""
        if manifest.labels != sorted(set(manifest.labels)):
            raise ArtefactError(f"router {manifest.version}: labels {manifest.labels} are not sorted and distinct")
        own, spelling = spelling_apart(tensors)
        classifier = cls.from_state(manifest, own, locate)
        classifier.speller = Speller.from_tensors(spelling) if spelling else None
        classifier.text = manifest.text
        classifier.seed = manifest.seed
        classifier.temperature = manifest.temperature
        classifier.scaling = _scaling(manifest)
        classifier.classes_ = np.array(manifest.labels)
        for test in manifest.self_test:
            got = classifier.probabilities(test.text)
            if len(test.posterior) != len(got) or np.abs(got - test.posterior).max() > SELF_TEST_TOLERANCE:
                raise ArtefactError(
                    f"router {manifest.version} fails its self-test: {test.text[:60]!r} gets {got.round(3).tolist()}, "
                    f"not {np.round(test.posterior, 3).tolist()}"
                )
        return classifier


def _scaling(manifest: Manifest) -> VectorScaling | None:
    record = manifest.scaling
    if record is None:
        return None
    if not len(record.factors) == len(record.shifts) == len(manifest.labels):
        raise ArtefactError(f"router {manifest.version}: scaling needs a factor and a shift for each label")
    return VectorScaling(tuple(record.factors), tuple(record.shifts))


def tensor_of_shape(tensors: Tensors, name: str, shape: tuple[int | None, ...]) -> NDArray[np.generic]:
    """One tensor of an artefact; None in `shape` stands for any length.

    Raises:
        ArtefactError: it is missing or of another shape.
    """
    if name not in tensors:
        raise ArtefactError(f"tensor {name!r} is missing; the file has {sorted(tensors)}")
    found = tensors[name].shape
    if len(found) != len(shape) or any(want not in (None, have) for want, have in zip(shape, found, strict=True)):
        raise ArtefactError(f"tensor {name!r} has shape {found}, not {shape}")
    return tensors[name]
