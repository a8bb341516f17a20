"""Make the starter router from permissively licensed prompts and our own, and score it on prompts it never saw.

`python -m collegium.training.starter --data DIR --out router/starter`
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.progress import Progress

from ..experts.weights import locate
from ..router.encoder import EncoderId, load_encoder
from ..router.manifest import ArtefactError
from .data import Columns, DataError, Prompt, load_prompts
from .recipes import TEACHERS, TRAINED, Options
from .train import train

OWN_PROMPTS = Path(__file__).parent / "prompts"
COLUMNS = Columns(label="domain")


def starter_prompts(data: Path) -> list[Prompt]:
    """All prompts of permissive sources, and all of our own.

    Raises:
        DataError: a file is missing or bad.
    """
    allowed = set((data / "permissive_sources.txt").read_text().split())
    rows = [row for row in load_prompts(data / "domain_prompts_train.jsonl.gz", COLUMNS) if row.source in allowed]
    for own in sorted(OWN_PROMPTS.glob("own*.jsonl")):
        rows += load_prompts(own, COLUMNS)
    return rows


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m collegium.training.starter", description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="folder with domain_prompts_train.jsonl.gz")
    parser.add_argument("--out", type=Path, required=True, help="folder of the artefact")
    parser.add_argument("--kind", choices=TRAINED, default="static")
    parser.add_argument("--teacher", choices=TEACHERS, help="kind whose probabilities a static router learns too")
    parser.add_argument("--cache", type=Path, help="keep encoder vectors here for the next run")
    given = parser.parse_args(arguments)
    options = Options(name="starter", seed=7, precision=0.9, teacher=given.teacher)
    try:
        prompts = starter_prompts(given.data)
        encoder = load_encoder(EncoderId(), options.text.tokens, locate)
        with Progress(console=Console(stderr=True)) as bar:
            task = bar.add_task(f"{len(prompts)} prompts")
            trained = train(
                prompts, given.kind, encoder, options, given.cache,
                lambda done, total: bar.update(task, completed=done, total=total),
            )  # fmt: skip
        manifest = trained.save(given.out)
    except (DataError, ArtefactError) as error:
        print(error, file=sys.stderr)
        return 1
    held = trained.report.held_out
    print(f"{manifest.version}: {len(prompts)} prompts, {held.accuracy:.3f} of {held.rows} held out are right")
    return 0


if __name__ == "__main__":
    sys.exit(main())
