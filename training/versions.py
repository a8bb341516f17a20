"""Which version a newly trained router follows."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from ..router.manifest import ArtefactError, Manifest, read_artefact
from .train import Trained


def version_before(out: Path, parent: Path | None) -> Manifest | None:
    """The manifest of `parent` or, where none is named, of the router that `out` holds; None for the first of its line.

    Raises:
        ArtefactError: `parent` is not whole. (What `out` holds may be broken: it is replaced.)
    """
    if parent is not None:
        return read_artefact(parent)[0]
    try:
        return read_artefact(out)[0]
    except ArtefactError:
        return None


def following(trained: Trained, before: Manifest | None) -> Trained:
    """The router with its parent's version; trained anew of the same rows it keeps the parent, and so its version."""
    if before is None:
        return trained
    parent = before.parent if _same(trained, before) else before.version
    return replace(trained, about=replace(trained.about, parent=parent))


def _same(trained: Trained, before: Manifest) -> bool:
    about, classifier = trained.about, trained.classifier
    ours = (about.name, about.data, dict(about.metrics), about.threshold, classifier.kind, classifier.seed)
    return ours == (before.name, before.data, before.metrics, before.threshold, before.kind, before.seed)
