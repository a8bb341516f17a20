"""How well classes added by example do: each domain in turn is left out of training and then added by a few prompts.

`python -m collegium.training.by_example --data DIR`
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..experts.weights import locate
from ..router.calibration import Floats
from ..router.encoder import Encoder, EncoderId, load_encoder
from ..router.extension import ExtendedClassifier
from ..router.frozen import FrozenClassifier
from ..router.manifest import TextRecord
from .data import Prompt, read_prompts
from .examples import OWN_COLUMNS, OWN_PROMPTS
from .extend import MAX_CHANGED
from .features import vectors_of
from .prototypes import place

FILES = ("domain_prompts_test", "domain_prompts_ood")
EXAMPLES = 32
ROWS_PER_LABEL = 1_000


@dataclass(frozen=True, slots=True)
class Encoded:
    """Prompts with their vectors, shape (n, d)."""

    labels: np.ndarray[tuple[int], np.dtype[np.str_]]
    vectors: Floats


@dataclass(frozen=True, slots=True)
class Outcome:
    """On one file: recall of the added domain, and which share of the other domains' prompts changed route."""

    recall: float
    changed: float
    rows: int


def encoded(prompts: Sequence[Prompt], encoder: Encoder, cache: Path) -> Encoded:
    texts = [FrozenClassifier(encoder).prepare(prompt.text) for prompt in prompts]
    labels = np.array([prompt.label for prompt in prompts])
    return Encoded(labels, vectors_of(texts, encoder, cache).astype(np.float64))


def left_out(domain: str, train: Encoded, own: Encoded, files: Sequence[Encoded], encoder: Encoder) -> list[Outcome]:
    """Train without a domain, add it by EXAMPLES of our own prompts, and score each file."""
    rng = np.random.default_rng(0)
    labels = sorted(set(train.labels.tolist()) - {domain})
    rows = np.concatenate([rng.permutation(np.flatnonzero(train.labels == label))[:ROWS_PER_LABEL] for label in labels])
    base = FrozenClassifier(encoder).fit_vectors(train.vectors[rows].astype(np.float32), train.labels[rows].tolist())
    examples = rng.permutation(np.flatnonzero(own.labels == domain))[:EXAMPLES]
    old = own.vectors[np.isin(own.labels, labels)]
    routes = base.logits_of_vectors(old.astype(np.float32)).argmax(axis=1)
    placed = place(domain, own.vectors[examples], old, routes, len(labels), MAX_CHANGED)
    extended = ExtendedClassifier(base, base.manifest(), b"", [placed.extension])
    return [_outcome(extended, domain, labels, file) for file in files]


def _outcome(extended: ExtendedClassifier, domain: str, labels: Sequence[str], file: Encoded) -> Outcome:
    assert isinstance(extended.base, FrozenClassifier)  # noqa: S101 - made above
    old = extended.base.calibrated(extended.base.logits_of_vectors(file.vectors.astype(np.float32)))
    new = np.stack([extended.joined(row, vector) for row, vector in zip(old, file.vectors, strict=True)])
    before, after = extended.base.classes_[old.argmax(axis=1)], extended.classes_[new.argmax(axis=1)]
    of_it, of_others = file.labels == domain, np.isin(file.labels, labels)
    return Outcome(
        recall=float(np.mean(after[of_it] == domain)),
        changed=float(np.mean(before[of_others] != after[of_others])),
        rows=int(of_it.sum()),
    )


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m collegium.training.by_example", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with domain_prompts_*.jsonl.gz")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/collegium/features"), help="encoder vectors")
    parser.add_argument("--rows", type=int, default=2_000, help="of each file to score, drawn at random")
    options = parser.parse_args(arguments)
    encoder, cache = load_encoder(EncoderId(), TextRecord().tokens, locate), options.cache.expanduser()
    rng = np.random.default_rng(1)
    train = encoded(read_prompts(options.data / "domain_prompts_train.jsonl.gz", OWN_COLUMNS), encoder, cache)
    own = encoded(read_prompts(OWN_PROMPTS, OWN_COLUMNS), encoder, cache)
    files = []
    for name in FILES:
        rows = read_prompts(options.data / f"{name}.jsonl.gz", OWN_COLUMNS)
        drawn = sorted(rng.permutation(len(rows))[: options.rows])
        files.append(encoded([rows[row] for row in drawn], encoder, cache))
    table = Table("domain", *(f"{column}, {name}" for name in ("test", "ood") for column in ("recall", "changed")))
    found = {}
    for domain in track(sorted(set(own.labels.tolist())), console=Console(stderr=True)):
        found[domain] = left_out(domain, train, own, files, encoder)
        table.add_row(domain, *(f"{value:.3f}" for one in found[domain] for value in (one.recall, one.changed)))
    mean = np.mean([[(one.recall, one.changed) for one in outcomes] for outcomes in found.values()], axis=0)
    table.add_row("mean", *(f"{value:.3f}" for value in mean.ravel()))
    Console().print(table)
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
