"""Kind `committee`: log-probabilities summed over members of different kinds, which err on different prompts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar, Self

import numpy as np
from pydantic import JsonValue

from .calibration import Floats, softmax
from .classifier import DEFAULT_TEXT, Classifier
from .encoder import EncoderId, Locate
from .kinds import class_of
from .manifest import ArtefactError, Manifest, Tensors, TextRecord


class CommitteeClassifier(Classifier):
    """The product of its members' probabilities, then calibrated by one temperature."""

    kind: ClassVar[str] = "committee"

    def __init__(self, members: Sequence[Classifier], text: TextRecord = DEFAULT_TEXT, seed: int = 0) -> None:
        super().__init__(text, seed)
        if not members:
            raise ValueError("a committee needs at least one member")
        self.members = tuple(members)

    @property
    def encoder_id(self) -> EncoderId | None:
        return next((member.encoder_id for member in self.members if member.encoder_id), None)

    def fit(self, texts: Sequence[str], labels: Sequence[str]) -> Self:
        for member in self.members:
            member.fit(texts, labels)
        self.classes_ = self.members[0].classes_
        return self

    def logits(self, text: str) -> Floats:
        return self.sum_of([member.logits(text) for member in self.members])

    def vector(self, text: str) -> Floats:
        return side_by_side([member.vector(text) for member in self.members])

    def logits_and_vector(self, text: str) -> tuple[Floats, Floats]:
        both = [member.logits_and_vector(text) for member in self.members]
        return self.sum_of([logits for logits, _ in both]), side_by_side([vector for _, vector in both])

    def sum_of(self, logits: Sequence[Floats]) -> Floats:
        """Logits of the committee from its members', shape (..., k)."""
        total: Floats = np.sum([np.log(softmax(scores) + 1e-12) for scores in logits], axis=0)
        return total

    def state(self) -> tuple[dict[str, JsonValue], Tensors]:
        settings: list[JsonValue] = []
        tensors: Tensors = {}
        for number, member in enumerate(self.members):
            own, weights = member.state()
            settings.append({"kind": member.kind, "settings": own})
            tensors |= {f"{number}.{name}": values for name, values in weights.items()}
        return {"members": settings}, tensors

    @classmethod
    def from_state(cls, manifest: Manifest, tensors: Tensors, locate: Locate) -> Self:
        records = manifest.settings.get("members")
        if not isinstance(records, list) or not records:
            raise ArtefactError(f"router {manifest.version}: a committee names its members")
        members = []
        for number, record in enumerate(records):
            kind, settings = (record.get("kind"), record.get("settings")) if isinstance(record, dict) else (None, None)
            if not isinstance(kind, str) or kind == cls.kind or not isinstance(settings, dict):
                raise ArtefactError(
                    f"router {manifest.version}: member {number} of the committee has no kind or settings"
                )
            prefix = f"{number}."
            own = {name.removeprefix(prefix): values for name, values in tensors.items() if name.startswith(prefix)}
            members.append(class_of(kind).from_state(manifest.model_copy(update={"settings": settings}), own, locate))
        return cls(members)


def side_by_side(vectors: Sequence[Floats]) -> Floats:
    """Members' unit vectors, shapes (..., d), as one unit vector: its cosines are the mean of the members'."""
    joined: Floats = np.concatenate(vectors, axis=-1) / np.sqrt(len(vectors))
    return joined
