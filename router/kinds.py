"""Kinds of routers by name; a kind's module is imported when it is asked for."""

from __future__ import annotations

import importlib

from .classifier import Classifier
from .manifest import ArtefactError

_CLASSES = {
    "committee": ("committee", "CommitteeClassifier"),
    "finetuned": ("finetuned", "FinetunedClassifier"),
    "frozen": ("frozen", "FrozenClassifier"),
    "tfidf": ("ngrams", "NgramClassifier"),
}
KINDS = tuple(sorted(_CLASSES))


def class_of(kind: str) -> type[Classifier]:
    """The class of a kind.

    Raises:
        ArtefactError: there is no such kind.
    """
    if kind not in _CLASSES:
        raise ArtefactError(f"kind {kind!r} is not known; known: {', '.join(KINDS)}")
    module, name = _CLASSES[kind]
    found: type[Classifier] = getattr(importlib.import_module(f".{module}", __package__), name)
    return found
