"""Vectors and posteriors of many questions, kept on disk so that a second replay takes seconds."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ..router.artefact import Router
from ..router.encoder import Encoder
from .table import Floats

Advance = Callable[[int], None]
"""Told how many texts are done since it was last called."""


def default_cache() -> Path:
    """Where rows are kept: under the user's cache folder."""
    return Path.home() / ".cache" / "collegium" / "eval-features"


def encode_cached(texts: Sequence[str], encoder: Encoder, cache: Path, advance: Advance) -> Floats:
    """(n, dimensions) vectors of `texts`, in padded batches."""

    def encode() -> Floats:
        vectors = np.zeros((len(texts), encoder.dimensions))
        for positions, batch in encoder.encode_batches(texts):
            vectors[positions] = batch
            advance(len(positions))
        return vectors

    return _cached(encoder.identity.checksum, texts, cache, encode)


def route_cached(
    texts: Sequence[str], router: Router, experts: Sequence[str], cache: Path, advance: Advance
) -> tuple[Floats, Floats | None]:
    """(n, labels) posteriors of `texts`, each prompt on its own, as serving computes them.

    Also the (n, experts) qualities that the router itself gives; None where it does not know all of `experts`.
    """
    width = len(router.labels)

    def route() -> Floats:
        rows = np.full((len(texts), width + len(experts)), np.nan)
        for position, text in enumerate(texts):
            posterior = router.posterior(text)
            rows[position, :width] = posterior.probabilities
            rows[position, width:] = [posterior.qualities.get(expert, np.nan) for expert in experts]
            advance(1)
        return rows

    rows = _cached("/".join((router.version, *experts)), texts, cache, route)
    quality = rows[:, width:]
    return rows[:, :width], None if np.isnan(quality).any() else quality


def _cached(identity: str, texts: Sequence[str], cache: Path, compute: Callable[[], Floats]) -> Floats:
    """Rows from the file named by `identity` and all texts; a missing or damaged file is made again."""
    digest = hashlib.sha256(identity.encode())
    for text in texts:
        digest.update(hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
    file = cache / f"{digest.hexdigest()[:32]}.safetensors"
    try:
        rows: Floats = load_file(file)["rows"].astype(np.float64)
        if rows.ndim == 2 and len(rows) == len(texts):
            return rows
    except (OSError, SafetensorError, KeyError):
        pass
    rows = compute()
    cache.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(f".{file.name}.{os.getpid()}")
    save_file({"rows": rows}, fresh)
    fresh.replace(file)
    return rows
