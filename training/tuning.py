"""Settings of fine-tuning and distillation, and where checkpoints lie; importable without torch."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Tuning:
    """How the encoder is tuned. `prompts` is how many are drawn in all, of few rows each about `repeats` times.

    `tokens` cuts a training prompt; `frozen_layers` of the transformer stay as published, and its embeddings.
    `mixtures` is the share of prompts that two domains are joined in.
    """

    prompts: int = 32_000
    repeats: float = 4.0
    batch: int = 64
    lr: float = 6e-5
    head_lr: float = 2e-3
    tokens: int = 64
    frozen_layers: int = 3
    mixtures: float = 0.05
    evaluations: int = 5
    patience: int = 3
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Distilling:
    """How a static student is taught. `prompts` is how many are drawn in all; 0 draws eight times the rows, `least`
    at the least, in about `steps` batches where `batches` (smallest, largest) allow it.

    `dimensions` of a piece's vector, `hidden` units, `pairs` of pieces that are told apart. `dropped` is the share of
    pieces that a training prompt loses. Targets are labels, and for the share `soft` the teacher's probabilities at
    `temperature`.
    """

    prompts: int = 0
    least: int = 60_000
    steps: int = 1_000
    batches: tuple[int, int] = (32, 256)
    lr: float = 2e-3
    token_lr: float = 5e-4
    dimensions: int = 64
    hidden: int = 128
    pairs: int = 2**15
    dropped: float = 0.2
    mixtures: float = 0.05
    soft: float = 0.7
    temperature: float = 2.0
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
