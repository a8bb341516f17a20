"""Staged adapters: checked copies in the state folder, named by their contents, that engines read."""

from __future__ import annotations

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from .adapter import CONFIG, TENSORS, Adapter, AdapterError, check_fit, locate_adapter, read_adapter
from .backends import AdapterBackend, EngineBackend
from .card import Card
from .state import StateFolder
from .weights import locate, present


@dataclass(frozen=True, slots=True)
class Staged:
    """An adapter as an engine is told of it. `model` is its name there: other contents have another name.

    vLLM's prefix cache knows an adapter by its name only, so a name must never stand for other weights.
    """

    model: str
    folder: str


def staging_folder(state: StateFolder) -> Path:
    """Where adapters are staged."""
    folder = state.path / "adapters"
    folder.mkdir(mode=0o700, exist_ok=True)
    return folder


def stage(card: Card, engine: Card, home: Path | None) -> Staged:
    """Check a card's adapter against its engine's base, and copy its two files into `home`.

    Without `home`, engines run on other machines, and the adapter's path is theirs: nothing is checked here.

    Raises:
        CardError: it is not there, damaged, or does not fit.
        OSError: it cannot be copied.
    """
    if not isinstance(card.backend, AdapterBackend) or not isinstance(engine.backend, EngineBackend):
        raise TypeError(f"{card.name} on {engine.name} is no adapter on an engine")
    if home is None:
        return Staged(f"{card.name}-{card.engine_fingerprint}", card.backend.adapter)
    if engine.backend.adapters is None:
        raise AdapterError(f"the engine of {engine.name!r} takes no adapters; set `adapters` in its backend")
    adapter = read_adapter(locate_adapter(card.backend), card.backend)
    source = locate(engine.backend.model, engine.backend.revision)
    check_fit(adapter, present(engine.backend.model, engine.backend.revision), engine.backend.adapters)
    target = home / f"{card.name}-{adapter.digest(source)}"
    if not target.is_dir():
        _copy(adapter, target, source)
    os.utime(target)
    return Staged(target.name, str(target))


def sweep(home: Path, kept: frozenset[str], age: float) -> None:
    """Delete staged adapters that are not `kept` and were last asked for over `age` seconds ago."""
    for folder in home.iterdir():
        if folder.name not in kept and time.time() - folder.stat().st_mtime > age:
            shutil.rmtree(folder, ignore_errors=True)


def _copy(adapter: Adapter, target: Path, base: str) -> None:
    """Whole or not at all. The copy names the base as the engine was told of it: vLLM's own search compares that."""
    fresh = target.with_name(f".{target.name}.{os.getpid()}")
    shutil.rmtree(fresh, ignore_errors=True)
    fresh.mkdir()
    try:
        config = {**adapter.config, "base_model_name_or_path": base}
        (fresh / CONFIG).write_text(json.dumps(config), encoding="utf-8")
        shutil.copyfile(adapter.folder / TENSORS, fresh / TENSORS)
        if read_adapter(fresh).sha256 != adapter.sha256:
            raise AdapterError(f"{adapter.folder / TENSORS} changed while it was copied")
        fresh.rename(target)
    finally:
        shutil.rmtree(fresh, ignore_errors=True)
