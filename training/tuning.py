"""Settings of fine-tuning, and where its checkpoints lie; importable without torch."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Tuning:
    """How the encoder is tuned. `prompts` is how many are drawn in all; 0 draws each about 1.25 times.

    `tokens` cuts a training prompt; `frozen_layers` of the transformer stay as published, and its embeddings.
    `mixtures` is the share of prompts that two domains are joined in.
    """

    prompts: int = 0
    batch: int = 64
    lr: float = 6e-5
    head_lr: float = 2e-3
    tokens: int = 96
    frozen_layers: int = 2
    mixtures: float = 0.05
    evaluations: int = 8
    patience: int = 3
    seed: int = 0


@contextmanager
def work_folder(cache: Path | None, key: str) -> Iterator[Path]:
    """Where checkpoints lie: under the cache, where an interrupted run finds them again, else for this run alone."""
    if cache is not None:
        work = cache / f"finetune-{key}"
        work.mkdir(parents=True, exist_ok=True)
        yield work
        return
    with tempfile.TemporaryDirectory(prefix="collegium-finetune-") as made:
        yield Path(made)
