"""Add a class to a trained router by examples, and take it away again."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import safetensors.numpy
from pydantic import JsonValue

from ..router.artefact import KINDS, load_router
from ..router.classifier import About, Classifier
from ..router.encoder import Locate, as_given
from ..router.extension import BASE, KIND, ExtendedClassifier, base_of
from ..router.manifest import HEAD, MANIFEST, ArtefactError, DataRecord, Manifest, read_artefact, write_files
from ..router.novelty import NOVELTY
from ..router.seen import SEEN, Sketches, sketches
from ..router.text import bounded
from .data import MAX_LABEL_CHARACTERS, DataError
from .labels import folded
from .learners import logits_of
from .nearest import vectors_with
from .prototypes import Placed, place
from .split import near_duplicate_groups

FEW = 8
MAX_CHANGED = 0.005
"""Share of held-out old prompts that may lie above the gate: half of what is promised, as fresh prompts differ."""
ENOUGH = 200
EXTENSIONS = "extensions"
LABEL = "label."


@dataclass(frozen=True, slots=True)
class ExtensionReport:
    """`reached`: share of examples that reach the label with their own text left out of the prototype.

    `changed`: share of held-out old prompts whose route may change, each judged by prototypes made without it.
    """

    label: str
    examples: int
    held_out: int
    reached: float
    changed: float
    warnings: tuple[str, ...] = ()

    def as_dict(self) -> dict[str, JsonValue]:
        return {**asdict(self), "warnings": list(self.warnings)}


@dataclass(frozen=True, slots=True)
class Extended:
    """An extended router that is not written yet."""

    classifier: ExtendedClassifier
    about: About
    report: ExtensionReport

    def save(self, folder: Path) -> Manifest:
        """Write the artefact.

        Raises:
            ArtefactError: it cannot be written there.
        """
        return self.classifier.save(folder, self.about)


def extend(
    base: Path,
    label: str,
    examples: Sequence[str],
    held_out: Sequence[str],
    locate: Locate = as_given,
    max_changed: float = MAX_CHANGED,
    cache: Path | None = None,
) -> Extended:
    """The router in `base` with a class more. `held_out`: prompts of the old classes, whose routes shall stay.

    Raises:
        ArtefactError: the base is not whole.
        EncoderError: its encoder cannot be had.
        DataError: the label is there already or is none, no example, no held-out prompt, or nothing sets them apart.
    """
    manifest, _ = read_artefact(base)
    _refuse_label(label, manifest)
    texts, old = ([text for text in map(bounded, given) if text] for given in (examples, held_out))
    if not texts:
        raise DataError(f"there is no example of {label!r}")
    if len(old) < 2:
        raise DataError("there are no held-out prompts of the old labels to compare with")
    present = load_router(base, locate).classifier
    placed = _placed(present, label, texts, old, max_changed, cache)
    report = ExtensionReport(
        label=label,
        examples=len(texts),
        held_out=len(old),
        reached=float(np.mean(placed.examples > placed.extension.gate)),
        changed=float(np.mean(placed.old > placed.extension.gate)),
    )
    report = replace(report, warnings=tuple(_warnings(report, texts)))
    parts = _parts(base)
    parts.reports[label], parts.sketches[label] = report.as_dict(), sketches(texts)
    before = present.extensions if isinstance(present, ExtendedClassifier) else ()
    stands_on = present.base if isinstance(present, ExtendedClassifier) else present
    classifier = ExtendedClassifier(stands_on, parts.manifest, parts.head, [*before, placed.extension])
    return Extended(classifier, _about(parts), report)


def remove_label(folder: Path, label: str, out: Path, locate: Locate = as_given) -> Manifest:
    """Write the router without an extension; without the last one it is the base's artefact, bit for bit.

    Raises:
        ArtefactError: it is not whole, or cannot be written.
        EncoderError: its encoder cannot be had.
        DataError: the label is none that was added by example.
    """
    parts = _parts(folder)
    if label not in parts.reports:
        added = ", ".join(sorted(parts.reports)) or "none"
        raise DataError(f"{label!r} was not added to {folder} by example; added: {added}")
    del parts.reports[label], parts.sketches[label]
    if not parts.reports:
        write_files(out, {HEAD: parts.head, **parts.files, MANIFEST: parts.manifest.canonical()})
        return parts.manifest
    present = ExtendedClassifier.load(folder, locate)
    kept = [extension for extension in present.extensions if extension.label != label]
    return ExtendedClassifier(present.base, parts.manifest, parts.head, kept).save(out, _about(parts))


@dataclass(frozen=True, slots=True)
class _Parts:
    """What an artefact is made of: the base's manifest, head and other files; reports and sketches by added label."""

    manifest: Manifest
    head: bytes
    files: dict[str, bytes]
    reports: dict[str, JsonValue]
    sketches: dict[str, Sketches]


def _parts(folder: Path) -> _Parts:
    manifest, tensors = read_artefact(folder)
    if manifest.kind != KIND:
        files = {name: (folder / name).read_bytes() for name in manifest.files if name != HEAD}
        return _Parts(manifest, (folder / HEAD).read_bytes(), files, {}, {})
    base, head = base_of(manifest, tensors)
    files = {name: (folder / BASE / name).read_bytes() for name in base.files if name != HEAD}
    seen = safetensors.numpy.load((folder / SEEN).read_bytes())
    reports = manifest.metrics.get(EXTENSIONS)
    if not isinstance(reports, dict) or any(f"{LABEL}{label}" not in seen for label in reports):
        raise ArtefactError(f"router {folder}: {SEEN} does not hold the sketches of its extensions")
    return _Parts(base, head, files, dict(reports), {label: seen[f"{LABEL}{label}"] for label in reports})


def _about(parts: _Parts) -> About:
    """What an extended artefact says of itself: its base's word, and the same bytes in whatever order it grew."""
    base = parts.manifest
    added = dict(sorted(parts.sketches.items()))
    known = [safetensors.numpy.load(parts.files[SEEN])["sketches"]] if SEEN in parts.files else []
    seen = {"sketches": np.concatenate([*known, *added.values()])}
    seen |= {f"{LABEL}{label}": sketched for label, sketched in added.items()}
    extra = {f"{BASE}/{name}": data for name, data in parts.files.items()}
    if NOVELTY in parts.files:
        extra[NOVELTY] = parts.files[NOVELTY]
    digest = hashlib.sha256(base.data.hash.encode())
    for label, sketched in added.items():
        digest.update(label.encode() + sketched.tobytes())
    return About(
        name=base.name,
        threshold=base.threshold,
        novelty_limit=base.novelty_limit,
        data=DataRecord(
            hash=digest.hexdigest(), rows=base.data.rows | {label: len(rows) for label, rows in added.items()}
        ),
        parent=base.version,
        metrics={EXTENSIONS: dict(sorted(parts.reports.items()))},
        self_test=[test.text for test in base.self_test],
        extra={**extra, SEEN: safetensors.numpy.save(seen)},
    )


def _placed(
    present: Classifier, label: str, texts: Sequence[str], old: Sequence[str], max_changed: float, cache: Path | None
) -> Placed:
    base = present.base if isinstance(present, ExtendedClassifier) else present
    examples = vectors_with(base, [base.prepare(text) for text in texts], cache)
    prepared = [base.prepare(text) for text in old]
    vectors = vectors_with(base, prepared, cache)
    posteriors = base.calibrated(logits_of(base, prepared, cache))
    if isinstance(present, ExtendedClassifier):
        pairs = zip(posteriors, vectors, strict=True)
        posteriors = np.stack([present.joined(posterior, vector) for posterior, vector in pairs])
    try:
        return place(label, examples, vectors, posteriors.argmax(axis=1), len(present.classes_), max_changed)
    except ValueError as error:
        raise DataError(str(error)) from error


def _refuse_label(label: str, manifest: Manifest) -> None:
    if manifest.kind not in (*KINDS, KIND):
        raise DataError(f"a router of kind {manifest.kind!r} has no classes that one could be added to")
    if not label.strip() or label != label.strip() or len(label) > MAX_LABEL_CHARACTERS or not label.isprintable():
        raise DataError(f"label {label!r} must be 1 to {MAX_LABEL_CHARACTERS} printable characters")
    twin = next((known for known in manifest.labels if folded(known) == folded(label)), None)
    if twin is not None:
        raise DataError(f"{manifest.version} has the label {twin!r} already")


def _warnings(report: ExtensionReport, texts: Sequence[str]) -> Iterator[str]:
    different = len(np.unique(near_duplicate_groups(texts)))
    if different == 1 < len(texts):
        yield "all examples are near-duplicates of one; give different ones"
    elif different < FEW:
        yield f"{different} different example{'s' * (different != 1)} tell little of a class; 32 are better"
    if report.reached < 0.5:
        yield f"only {report.reached:.0%} of the examples reach the label with their own text left out"
    if report.held_out < ENOUGH:
        yield f"{report.held_out} held-out prompts tell little of a change of 1 %; give {ENOUGH} or more"
