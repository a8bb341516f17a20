"""Artefacts side by side on disk: kept by version, so that retraining in place changes no version that is in use."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

from .manifest import MANIFEST, ArtefactError, Manifest, read_artefact


def keep(folder: Path, store: Path) -> Path:
    """Copy a checked artefact to store/<version>, whole or not at all; its folder there.

    Raises:
        ArtefactError: it is not whole, or cannot be written there.
    """
    version = read_artefact(folder)[0].version
    target = store / version
    if _holds(target, version):
        return target
    partial = store / f".{version}.partial-{os.getpid()}"
    try:
        store.mkdir(mode=0o700, parents=True, exist_ok=True)
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(folder, partial)
        _sync(partial)
        if not _holds(partial, version):
            raise ArtefactError(f"router {folder} changed while it was copied")
        partial.rename(target)
        _sync(store)
    except (OSError, shutil.Error) as error:
        raise ArtefactError(f"router {folder} cannot be copied to {store}: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return target


def artefacts(folder: Path) -> Iterator[tuple[Path, Manifest | ArtefactError]]:
    """The artefacts in a folder, or the folder itself where it is one: manifests, or why one is not whole."""
    found = [folder] if (folder / MANIFEST).is_file() else sorted(path.parent for path in folder.glob(f"*/{MANIFEST}"))
    for path in found:
        try:
            yield path, read_artefact(path)[0]
        except ArtefactError as error:
            yield path, error


def held_out_accuracy(manifest: Manifest) -> float | None:
    """What training measured on rows that it held out, where the artefact says so."""
    held_out = manifest.metrics.get("held_out")
    accuracy = held_out.get("accuracy") if isinstance(held_out, dict) else None
    return float(accuracy) if isinstance(accuracy, int | float) else None


def _holds(folder: Path, version: str) -> bool:
    try:
        return read_artefact(folder)[0].version == version
    except ArtefactError:
        return False


def _sync(folder: Path) -> None:
    for path in [folder, *folder.rglob("*")]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
