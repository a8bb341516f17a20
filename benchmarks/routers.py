"""Routers side by side on prompts that none was trained on: accuracy by domain, calibration, MMLU, flips, time, size.

`python benchmarks/routers.py --data DIR ROUTER...`; DIR has domain_prompts_{test,ood} and domain_ood_mmlu as .jsonl.gz.
"""

from __future__ import annotations

import argparse
import gzip
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from collegium.experts.weights import locate
from collegium.router.artefact import Router, load_router
from collegium.router.calibration import Floats, ece
from collegium.router.classifier import Classifier
from collegium.router.seen import seen_rows
from collegium.training.augment import PERTURBATIONS
from collegium.training.learners import logits_of
from collegium.training.metrics import score
from rich.console import Console
from rich.table import Table

FIVE = {"math": "math", "health": "health", "science": "science", "coding": "coding"}
"""MoDEM's classes (Simonds et al. 2024); every other label is its fifth."""
FLIP_ROWS, TIMED_ROWS = 500, 400


@dataclass(frozen=True)
class Rows:
    """Labelled prompts; `clear` says which have one domain only."""

    texts: list[str]
    labels: list[str]
    clear: list[bool]

    @classmethod
    def read(cls, path: Path, known: Sequence[str], limit: int) -> Rows:
        with gzip.open(path, "rt") as lines:
            found = [row for row in map(json.loads, lines) if row["domain"] in known]
        if 0 < limit < len(found):
            chosen = np.sort(np.random.default_rng(0).choice(len(found), limit, replace=False))
            found = [found[position] for position in chosen]
        clear = [not row.get("domain_ambiguous") for row in found]
        return cls([row["text"] for row in found], [row["domain"] for row in found], clear)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("routers", nargs="+", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, help="keep encoder vectors here")
    parser.add_argument("--limit", type=int, default=0, help="rows of each file, drawn by chance; 0 for all")
    given = parser.parse_args()
    columns = [measured(folder, given.data, given.cache, given.limit) for folder in given.routers]
    table = Table("measure", *(str(folder) for folder in given.routers))
    for name in columns[0]:
        table.add_row(name, *(column.get(name, "") for column in columns))
    Console(width=200).print(table)


def measured(folder: Path, data: Path, cache: Path | None, limit: int) -> dict[str, str]:
    router = load_router(folder, locate)
    found = {"kind": router.manifest.kind, "version": router.version}
    for name in ("domain_prompts_test", "domain_prompts_ood", "domain_ood_mmlu"):
        rows = Rows.read(data / f"{name}.jsonl.gz", router.labels, limit)
        seen = seen_rows(folder, rows.texts)
        found |= {f"{name}: {key}": value for key, value in scores(router, rows, cache).items()}
        found[f"{name}: rows, of which in training"] = f"{len(rows.texts)}, {len(seen)}"
        print(folder, name, "done", flush=True)
    rows = Rows.read(data / "domain_prompts_ood.jsonl.gz", router.labels, FLIP_ROWS)
    found |= flips(router, rows.texts) | times(router, rows.texts[:TIMED_ROWS])
    found["kB, with sketches of training prompts"] = f"{sum(f.stat().st_size for f in folder.iterdir()) / 1e3:.0f}"
    return found


def scores(router: Router, rows: Rows, cache: Path | None) -> Mapping[str, str]:
    classifier: Classifier = router.classifier
    logits = logits_of(classifier, [classifier.prepare(text) for text in rows.texts], cache)
    probabilities = classifier.calibrated(logits)
    targets = np.array([router.labels.index(label) for label in rows.labels])
    found = score(probabilities, targets, router.labels, router.threshold)
    right = probabilities.argmax(axis=1) == targets
    coarse = five_classes(probabilities, router.labels, rows)
    return {
        "accuracy": f"{found.accuracy:.3f}",
        "accuracy, rows of one domain": f"{right[np.array(rows.clear)].mean():.3f}",
        "macro-F1": f"{found.macro_f1:.3f}",
        "five classes": f"{coarse.mean():.3f}",
        "five classes, rows of one domain": f"{coarse[np.array(rows.clear)].mean():.3f}",
        "ECE": f"{ece(probabilities, targets):.3f}",
        "routed": f"{found.coverage:.3f}",
        "of these right": "" if found.precision is None else f"{found.precision:.3f}",
        **{f"recall {domain.domain}": f"{domain.recall:.3f}" for domain in found.domains},
    }


def five_classes(
    probabilities: Floats, labels: Sequence[str], rows: Rows
) -> np.ndarray[tuple[int], np.dtype[np.bool_]]:
    """Whether the coarse class with the largest sum of probabilities is the right one."""
    names = sorted({FIVE.get(label, "other") for label in labels})
    sums = np.stack(
        [probabilities[:, [FIVE.get(label, "other") == name for label in labels]].sum(axis=1) for name in names], axis=1
    )
    return np.array(
        [names[best] == FIVE.get(label, "other") for best, label in zip(sums.argmax(1), rows.labels, strict=True)]
    )


def flips(router: Router, texts: Sequence[str]) -> dict[str, str]:
    """Share of prompts whose label changes when they are misspelt, recased, cut, wrapped."""
    rng = np.random.default_rng(0)
    before = [router.posterior(text).domain for text in texts]
    found = {}
    for name, change in PERTURBATIONS.items():
        after = [router.posterior(change(text, rng)).domain for text in texts]
        found[f"flips: {name}"] = f"{np.mean([a != b for a, b in zip(before, after, strict=True)]):.3f}"
    return found


def times(router: Router, texts: Sequence[str]) -> dict[str, str]:
    """Processor milliseconds a prompt, one at a time on one core."""
    spent = []
    for text in texts:
        start = time.process_time()
        router.posterior(text)
        spent.append(1e3 * (time.process_time() - start))
    return {
        "ms p50": f"{np.median(spent):.3f}",
        "ms p99": f"{np.quantile(spent, 0.99):.3f}",
        "ms mean": f"{np.mean(spent):.3f}",
    }


if __name__ == "__main__":
    main()
