"""Make the starter router from permissively licensed prompts and our own, and score it on prompts it never saw.

`python -m collegium.training.starter --data DIR --out router/starter`
"""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from ..experts.weights import locate
from ..router.classifier import Classifier
from ..router.encoder import EncoderId, load_encoder
from ..router.kinds import KINDS
from ..router.manifest import ArtefactError
from .augment import restyled
from .data import Columns, DataError, Prompt, load_prompts
from .learners import logits_of
from .metrics import Scores, score
from .train import Options, train

OWN_PROMPTS = Path(__file__).parent / "prompts" / "own.jsonl"
COLUMNS = Columns(label="domain")
ROWS_PER_SOURCE = 500
RESTYLED_PER_LABEL = 150
OPTIONS = Options(name="starter", seed=7, precision=0.8, hold_out_sources=True)


def starter_prompts(data: Path) -> list[Prompt]:
    """Up to ROWS_PER_SOURCE prompts of each permissive source and domain, and all of our own, some restyled.

    Raises:
        DataError: a file is missing or bad.
    """
    allowed = set((data / "permissive_sources.txt").read_text().split())
    rows = [row for row in load_prompts(data / "domain_prompts_train.jsonl.gz", COLUMNS) if row.source in allowed]
    np.random.default_rng(OPTIONS.seed).shuffle(rows)
    taken: Counter[tuple[str | None, str]] = Counter()
    chosen = load_prompts(OWN_PROMPTS, COLUMNS)
    for row in rows:
        taken[row.source, row.label] += 1
        if taken[row.source, row.label] <= ROWS_PER_SOURCE:
            chosen.append(row)
    return [*chosen, *restyled(chosen, RESTYLED_PER_LABEL, OPTIONS.seed)]


def score_file(classifier: Classifier, path: Path, threshold: float, cache: Path | None) -> Scores:
    """Scores on a file of labelled prompts."""
    labels = classifier.classes_.tolist()
    prompts = [row for row in load_prompts(path, COLUMNS) if row.label in labels]
    logits = logits_of(classifier, [classifier.prepare(row.text) for row in prompts], cache)
    probabilities = classifier.calibrated(logits)
    return score(probabilities, np.array([labels.index(row.label) for row in prompts]), labels, threshold)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m collegium.training.starter", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with domain_prompts_*.jsonl.gz")
    parser.add_argument("--out", type=Path, required=True, help="folder of the artefact")
    parser.add_argument("--kind", choices=KINDS, default="committee")
    parser.add_argument("--cache", type=Path, help="keep encoder vectors here for the next run")
    options = parser.parse_args(arguments)
    console = Console()
    try:
        prompts = starter_prompts(options.data)
        encoder = load_encoder(EncoderId(), OPTIONS.text.tokens, locate)
        trained = train(
            prompts,
            options.kind,
            encoder,
            OPTIONS,
            options.cache,
        )
        threshold = trained.about.threshold
        scores = {"held out": trained.report.held_out}
        for name in ("domain_prompts_test", "domain_prompts_ood"):
            path = options.data / f"{name}.jsonl.gz"
            scores[name] = score_file(trained.classifier, path, threshold, options.cache)
        manifest = trained.save(options.out)
    except (DataError, ArtefactError) as error:
        print(error, file=sys.stderr)
        return 1
    console.print(_table(scores))
    console.print(f"{manifest.version}: {len(prompts)} prompts, temperature {manifest.temperature:.2f}")
    return 0


def _table(scores: dict[str, Scores]) -> Table:
    table = Table("domain", *(f"{name} ({found.rows})" for name, found in scores.items()))
    domains = sorted({domain.domain for found in scores.values() for domain in found.domains})
    for domain in domains:
        recalls = [{d.domain: d.recall for d in found.domains} for found in scores.values()]
        table.add_row(domain, *(f"{recall[domain]:.3f}" if domain in recall else "" for recall in recalls))
    table.add_row("accuracy", *(f"{found.accuracy:.3f}" for found in scores.values()))
    table.add_row("macro-F1", *(f"{found.macro_f1:.3f}" for found in scores.values()))
    table.add_row("ECE", *(f"{found.ece:.3f}" for found in scores.values()))
    table.add_row("coverage", *(f"{found.coverage:.3f}" for found in scores.values()))
    return table


if __name__ == "__main__":
    sys.exit(main())
