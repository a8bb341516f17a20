"""Kind `cascade`: a cheap member answers alone where it is sure enough; else the second is asked, and both count."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import JsonValue

from .calibration import Floats, Targets, fit_temperature, softmax
from .classifier import DEFAULT_TEXT, Classifier
from .committee import CommitteeClassifier
from .encoder import Locate
from .manifest import ArtefactError, Manifest, Tensors, TextRecord


@dataclass(frozen=True, slots=True)
class Settings:
    """`margin`: how far the first member's best probability must lie before its second best to be enough.

    Temperatures calibrate the first member alone and both together. `asked` is the share of held-out prompts that the
    second member was asked about.
    """

    margin: float = 0.0
    alone: float = 1.0
    together: float = 1.0
    asked: float = 0.0


class CascadeClassifier(CommitteeClassifier):
    """Two members. The vector is the first member's: it is there for every prompt."""

    kind: ClassVar[str] = "cascade"

    def __init__(self, members: Sequence[Classifier], text: TextRecord = DEFAULT_TEXT, seed: int = 0) -> None:
        super().__init__(members, text, seed)
        if len(members) != 2:
            raise ValueError(f"a cascade has two members, not {len(members)}")
        self.settings = Settings()

    def logits(self, text: str) -> Floats:
        return self._logits(text, self.members[0].logits(text))

    def vector(self, text: str) -> Floats:
        return self.members[0].vector(text)

    def logits_and_vector(self, text: str) -> tuple[Floats, Floats]:
        first, vector = self.members[0].logits_and_vector(text)
        return self._logits(text, first), vector

    def is_sure(self, first: Floats) -> NDArray[np.bool_]:
        """Whether the first member's logits, shape (..., k), are enough."""
        best = np.sort(softmax(first, self.settings.alone), axis=-1)
        return np.asarray(best[..., -1] - best[..., -2] >= self.settings.margin)

    def either(self, first: Floats, second: Floats) -> Floats:
        """Logits of many prompts from both members', shapes (n, k)."""
        sure = self.is_sure(first)[:, np.newaxis]
        return np.where(sure, log_softmax(first / self.settings.alone), self._joined(first, second))

    def state(self) -> tuple[dict[str, JsonValue], Tensors]:
        members, tensors = super().state()
        return {**members, **asdict(self.settings)}, tensors

    @classmethod
    def from_state(cls, manifest: Manifest, tensors: Tensors, locate: Locate) -> Self:
        classifier = super().from_state(manifest, tensors, locate)
        found = {name: manifest.settings.get(name) for name in asdict(Settings())}
        numbers = {name: float(value) for name, value in found.items() if isinstance(value, (int, float))}
        if len(numbers) < len(found) or numbers["alone"] <= 0 or numbers["together"] <= 0:
            raise ArtefactError(f"router {manifest.version}: a cascade's settings are {found}, not positive numbers")
        classifier.settings = Settings(**numbers)
        return classifier

    def _logits(self, text: str, first: Floats) -> Floats:
        if self.is_sure(first):
            return log_softmax(first / self.settings.alone)
        return self._joined(first, self.members[1].logits(text))

    def _joined(self, first: Floats, second: Floats) -> Floats:
        return log_softmax(self.sum_of([first, second]) / self.settings.together)


def log_softmax(logits: Floats) -> Floats:
    """Logarithms of the probabilities, shape (..., k)."""
    logs: Floats = np.log(softmax(logits) + 1e-12)
    return logs


def settle(logits: Sequence[Floats], targets: Targets, allowed_loss: float) -> Settings:
    """The least margin that costs at most `allowed_loss` of the accuracy of both members together, on held-out rows."""
    first, second = logits
    both: Floats = np.log(softmax(first) + 1e-12) + np.log(softmax(second) + 1e-12)
    alone, together = fit_temperature(first, targets), fit_temperature(both, targets)
    best = np.sort(softmax(first, alone), axis=1)
    margins = best[:, -1] - best[:, -2]
    order = np.argsort(-margins, kind="stable")
    gain = (both.argmax(axis=1) == targets).astype(float) - (first.argmax(axis=1) == targets)
    lost = np.cumsum(gain[order]) / len(targets)  # where the surest n + 1 rows are left to the first member
    last_of_tie = np.append(margins[order][1:] < margins[order][:-1], True)
    fine = np.flatnonzero((lost <= allowed_loss) & last_of_tie)
    margin = float(margins[order][fine[-1]]) if len(fine) else 1.1
    return Settings(margin, alone, together, float(np.mean(margins < margin)))


def mean_of(found: Sequence[Settings]) -> Settings:
    """The mean of what several rounds settled."""
    means = np.mean([list(asdict(settings).values()) for settings in found], axis=0).tolist()
    return Settings(*means)
