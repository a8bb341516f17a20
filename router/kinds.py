"""Kinds of routers by name; a kind's module is imported when it is asked for."""

from __future__ import annotations

import importlib

from .classifier import Classifier
from .manifest import ArtefactError

_CLASSES = {
    "cascade": ("cascade", "CascadeClassifier"),
    "committee": ("committee", "CommitteeClassifier"),
    "finetuned": ("finetuned", "FinetunedClassifier"),
    "frozen": ("frozen", "FrozenClassifier"),
    "static": ("static", "StaticClassifier"),
    "tfidf": ("ngrams", "NgramClassifier"),
}
KINDS = tuple(sorted(_CLASSES))
"""Kinds that learn from labelled prompts."""

_FROM_RECORDS = {"outcome": ("outcome", "OutcomeClassifier")}
_FROM_ROUTERS = {"extended": ("extension", "ExtendedClassifier")}


def class_of(kind: str) -> type[Classifier]:
    """The class of a kind.

    Raises:
        ArtefactError: there is no such kind.
    """
    known = {**_CLASSES, **_FROM_RECORDS, **_FROM_ROUTERS}
    if kind not in known:
        raise ArtefactError(f"kind {kind!r} is not known; known: {', '.join(sorted(known))}")
    module, name = known[kind]
    found: type[Classifier] = getattr(importlib.import_module(f".{module}", __package__), name)
    return found
