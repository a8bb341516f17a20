"""`collegium eval local`: choices scored in this process by transformers, without an engine."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ..evals.records import Record, RecordError, RunFolder, Sample
from ..evals.runner import Plan
from ..evals.scoring import best_choice
from ..evals.tasks import LETTERS, TaskError, load_samples
from ..training.specialize_data import Row, SpecializeError
from .eval_output import progress_bar

if TYPE_CHECKING:
    from ..training.specialize_report import Bench

BATCH = 32
"""Questions scored by one expert before the next takes its turn."""


@click.command()
@click.argument("model")
@click.option("--task", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=True)
@click.option("--base", default="general", show_default=True, help="The base's name in the records.")
@click.option("--adapter", "adapters", multiple=True, metavar="NAME=DIR", help="May be given again.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="The run's folder; resumed."
)
def command(model: str, task: Path, base: str, adapters: tuple[str, ...], out: Path) -> None:
    """Score the texts of a task's choices by MODEL and its adapters, as `eval run --score text` does by an endpoint.

    A question's choices share its tokens, which is about half the work. `eval judge` takes the folder, together with
    one of `eval run --targets auto --reuse`.
    """
    from ..training.specialize_report import Bench

    folders = _folders(adapters, base)
    names = (base, *folders)
    plan = Plan("choice", names, score="text")
    try:
        samples = load_samples(task, "choice")
        bench = Bench(model, folders)
        folder = RunFolder(out)
        with folder.open(asdict(plan), samples) as writer, progress_bar("scoring", len(samples)) as advance:
            done = {(record.sample, record.target) for record in folder.records()}
            for start in range(0, len(samples), BATCH):
                batch = samples[start : start + BATCH]
                for name in names:
                    left = [sample for sample in batch if (sample.id, name) not in done]
                    for record in _scored(bench, left, name, None if name == base else name):
                        writer.append(record)
                advance(len(batch))
    except (TaskError, RecordError, SpecializeError, ValueError) as error:
        raise click.ClickException(str(error)) from error


def _folders(adapters: tuple[str, ...], base: str) -> dict[str, Path]:
    pairs = [one.partition("=") for one in adapters]
    for name, equals, path in pairs:
        if not (name and equals and path):
            raise click.ClickException(f"--adapter {name}{equals}{path} is no NAME=DIR")
    names = [base, *(name for name, _, _ in pairs)]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise click.ClickException(f"two experts are called {', '.join(twice)}; --base names the model itself")
    return {name: Path(path) for name, _, path in pairs}


def _scored(bench: Bench, samples: list[Sample], name: str, adapter: str | None) -> list[Record]:
    rows = [Row(one.prompt, one.choices[LETTERS.index(one.target)], one.choices) for one in samples]
    trees = [tree for row in rows if (tree := bench.form.sample(row, 1_000_000)[0]) is not None]
    found = bench.score(trees, adapter) if trees else []
    records = []
    for sample, tree, logprobs in zip(samples, trees, found, strict=True):
        answer = LETTERS[best_choice(logprobs)]
        right = answer == sample.target
        record = Record(sample.id, sample.domain, name, name, right, answer, logprobs=logprobs)
        records.append(Record(**{**asdict(record), "prompt_tokens": len(tree)}))
    return records
