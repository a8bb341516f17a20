"""`collegium eval judge`: one judgement of several runs that asked the same questions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import click

from ..evals.records import Record, RecordError, RunFolder, Sample
from ..evals.replay import EXAMPLES, judge_run
from ..evals.runner import card_prices, judged_per_character
from ..experts.card import CardError
from ..experts.pool import load_pool
from ..router.encoder import EncoderError
from ..router.manifest import ArtefactError
from .eval_output import show, write_page
from .eval_run import posteriors_of

SAME = ("kind", "method", "score", "style", "chat")
"""Settings that runs must share to be judged together."""


@click.command()
@click.argument("runs", nargs=-1, required=True, type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--generalist", help="Its name.  [default: the best single expert of the other half]")
@click.option("--per-character", is_flag=True, help="Where texts were scored: by the log-probability a character.")
@click.option(
    "--router", type=click.Path(path_type=Path), help="The artefact that the endpoint routed with: draws the curves."
)
@click.option("--pool", help="Pool with the cards' prices.  [default: the costs as recorded]")
@click.option("--report", type=click.Path(file_okay=False, path_type=Path), help="Folder for report.html and figures.")
@click.option("--examples-shown", default=EXAMPLES, show_default=True, help="Won and lost questions on the page.")
@click.option("--json", "as_json", is_flag=True, help="Print the judgement as JSON.")
def command(
    runs: tuple[Path, ...],
    generalist: str | None,
    per_character: bool,
    router: Path | None,
    pool: str | None,
    report: Path | None,
    examples_shown: int,
    as_json: bool,
) -> None:
    """Judge the folders RUNS together: experts asked in one, auto in another.

    Questions that one of the runs did not ask are left out.
    """
    try:
        samples, records, score = _joined([RunFolder(folder) for folder in runs])
        if per_character:
            records = judged_per_character(samples, records)
        if pool:
            price = card_prices(load_pool(pool))
            records = [
                replace(one, cost=price(one.expert, one.prompt_tokens, one.completion_tokens)) for one in records
            ]
        known = posteriors_of(samples, router, score) if router else None
        judgement = judge_run(samples, records, generalist, examples_shown, known)
    except (RecordError, CardError, ArtefactError, EncoderError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    write_page(judgement, report)
    show(judgement, as_json)


def _joined(runs: list[RunFolder]) -> tuple[list[Sample], list[Record], str]:
    """Samples that every run asked, their records, and what was scored.

    Raises:
        ValueError: the runs put their questions in different ways, or a question differs.
    """
    settings = [{name: run.settings().get(name) for name in SAME} for run in runs]
    if any(each != settings[0] for each in settings):
        raise ValueError(f"the runs differ in how they asked: {settings}")
    samples: dict[str, Sample] = {}
    for sample in (sample for run in runs for sample in run.samples()):
        if samples.setdefault(sample.id, sample) != sample:
            raise ValueError(f"the question {sample.id!r} differs between the runs")
    records = [run.records() for run in runs]
    asked = set.intersection(*({record.sample for record in found} for found in records))
    kept = [sample for sample in samples.values() if sample.id in asked]
    return kept, [record for found in records for record in found if record.sample in asked], str(settings[0]["score"])
