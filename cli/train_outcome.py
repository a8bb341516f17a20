"""`collegium train-outcome`: recorded answers -> a router that knows how likely each expert is right."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..evals.outcomes import OutcomesError, read_outcomes
from ..evals.records import RecordError, RunFolder
from ..evals.table import build_table
from ..experts.weights import locate
from ..router.encoder import DEFAULT_ENCODER, EncoderError, EncoderId, load_encoder
from ..router.manifest import ArtefactError, check_target
from ..router.text import bounded
from ..training.data import DataError, Prompt
from ..training.outcome import TEXT, OutcomeReport, Outcomes, TrainedOutcome, train_outcome

CACHE = Path("~/.cache/collegium/features")


@click.command()
@click.option(
    "--records",
    type=click.Path(exists=True, path_type=Path),
    required=True,
    help="A run's folder, or a file of recorded answers (JSONL, also .gz).",
)
@click.option("--experts", required=True, help="Comma-separated names; the pool.")
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder of the artefact; replaced if it is one."
)
@click.option("--encoder", default=DEFAULT_ENCODER, show_default=True, help="Hub id, folder, or wheel:NAME.")
@click.option("--revision", help="Revision of a hub id.")
@click.option("--name", help="Name of the router.  [default: the folder's]")
@click.option("--seed", default=0, show_default=True)
@click.option(
    "--cache",
    envvar="COLLEGIUM_FEATURES",
    type=click.Path(file_okay=False, path_type=Path),
    default=CACHE,
    show_default=True,
    help="Encoder vectors are kept here, so that an interrupted run goes on.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the report as JSON.")
def command(
    records: Path,
    experts: str,
    out: Path,
    encoder: str,
    revision: str | None,
    name: str | None,
    seed: int,
    cache: Path,
    as_json: bool,
) -> None:
    """Train a router of kind `outcome` from which expert answered which question right."""
    pool = tuple(one.strip() for one in experts.split(",") if one.strip())
    try:
        check_target(out)
        outcomes = _outcomes(records, pool)
        trained = _train(outcomes, EncoderId(encoder, revision), name or out.absolute().name, seed, cache.expanduser())
        manifest = trained.save(out)
    except (OutcomesError, RecordError, DataError, ArtefactError, EncoderError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"{error.filename or cache}: {error.strerror}") from error
    if as_json:
        click.echo(json.dumps({"version": manifest.version, "path": str(out), **trained.report.as_dict()}))
    else:
        _print(trained.report)
        click.echo(f"wrote {manifest.version} to {out}")


def _outcomes(records: Path, pool: tuple[str, ...]) -> Outcomes:
    if records.is_dir():
        run = RunFolder(records)
        table = build_table(run.samples(), run.records(), pool)
    else:
        table = build_table(*read_outcomes(records, pool), pool)
    prompts = [
        Prompt(row, bounded(sample.prompt), sample.domain, file=records.name)
        for row, sample in enumerate(table.samples, start=1)
    ]
    return Outcomes(prompts, table.experts, table.correct)


def _train(outcomes: Outcomes, encoder: EncoderId, name: str, seed: int, cache: Path) -> TrainedOutcome:
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task(f"reading {len(outcomes.prompts)} prompts", total=len(outcomes.prompts))

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        return train_outcome(outcomes, load_encoder(encoder, TEXT.tokens, locate), name, seed, cache, advance)


def _print(report: OutcomeReport) -> None:
    console = Console()
    table = Table("expert", "right", "Brier", "ECE", title=f"{report.rows} prompts, held-out qualities")
    for name, one in sorted(report.experts.items(), key=lambda item: -item[1].accuracy):
        table.add_row(name, f"{one.accuracy:.3f}", f"{one.brier:.3f}", f"{one.ece:.3f}")
    console.print(table)
    console.print(f"routed {report.routed:.3f}, best single {report.best_single:.3f}; {report.regions} regions kept")
    if report.difference_penalty is None:
        console.print("beyond its domain a prompt tells nothing about who is better at it")
