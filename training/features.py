"""Encoder vectors of training prompts, cached on disk by content so that an interrupted run goes on."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import NDArray

from ..router.encoder import Encoder
from ..router.manifest import Tensors

SHARD = 2_048

Progress = Callable[[int, int], None]
"""(done, all): called as work goes on."""


def quiet(done: int, total: int) -> None:
    """The `Progress` that shows nothing."""


def vectors_of(
    texts: Sequence[str], encoder: Encoder, cache: Path | None = None, progress: Progress = quiet
) -> NDArray[np.float32]:
    """Vectors, shape (n, d). Shards of 2,048 texts are kept under `cache`, named by texts, limits and weights."""
    vectors = np.empty((len(texts), encoder.dimensions), dtype=np.float32)
    for start in range(0, len(texts), SHARD):
        part = texts[start : start + SHARD]
        file = cache / f"{_key(part, encoder)}.safetensors" if cache else None
        found = _read(file, (len(part), encoder.dimensions)) if file else None
        if found is None:
            found = np.empty((len(part), encoder.dimensions), dtype=np.float32)
            done = 0
            for positions, batch in encoder.encode_batches(part):
                found[positions] = batch
                done += len(positions)
                progress(start + done, len(texts))
            if file:
                write_tensors(file, {"vectors": found})
        vectors[start : start + len(part)] = found
        progress(start + len(part), len(texts))
    return vectors


def _key(texts: Sequence[str], encoder: Encoder) -> str:
    digest = hashlib.sha256(f"{encoder.identity.checksum}:{encoder.tokens}".encode())
    for text in texts:
        digest.update(hashlib.sha256(text.encode()).digest())
    return digest.hexdigest()


def _read(file: Path, shape: tuple[int, int]) -> NDArray[np.float32] | None:
    vectors = (read_tensors(file) or {}).get("vectors")
    return vectors.astype(np.float32) if vectors is not None and vectors.shape == shape else None


def read_tensors(file: Path) -> Tensors | None:
    """What the cache holds; None where there is nothing, or nothing whole."""
    try:
        tensors: Tensors = safetensors.numpy.load(file.read_bytes())
    except (OSError, safetensors.SafetensorError):
        return None
    return tensors if all(np.isfinite(values).all() for values in tensors.values()) else None


def write_tensors(file: Path, tensors: Tensors) -> None:
    """Keep tensors in the cache, whole or not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        partial.write_bytes(safetensors.numpy.save(tensors))
        partial.rename(file)
    finally:
        partial.unlink(missing_ok=True)
