"""`collegium router report` and `calibrate`: what a router does with prompts it never saw, and a guarantee on them."""

from __future__ import annotations

import json
import shlex
import sys
from pathlib import Path

import click
from rich.console import Console

from ..experts.weights import locate
from ..router.manifest import read_artefact
from ..training.compare import unseen
from ..training.data import Columns, Prompt, read_prompts
from ..training.guarantee import recalibrated
from ..training.measure import RouterReport, measure
from ..training.report import percent, side_by_side, write_report
from .risk import print_risk
from .train import CACHE

FOLDER = click.Path(path_type=Path)


@click.command()
@click.argument("routers", type=FOLDER, nargs=-1, required=True)
@click.option("--data", required=True, help="Labelled prompts that none of them was trained on.")
@click.option("--train-data", multiple=True, help="Training prompts, to show those nearest to the mistakes.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), help="Folder for report.html and PNGs.")
@click.option("--text-column", default="text", show_default=True)
@click.option("--label-column", default="label", show_default=True)
@click.option("--source-column", default="source", show_default=True)
@click.option("--drop-seen", is_flag=True, help="Leave out what one of them was trained on, instead of refusing.")
@click.option("--drop-unknown", is_flag=True, help="Leave out rows whose label a router does not have.")
@click.option("--seed", default=0, show_default=True, help="Of perturbations and samples.")
@click.option(
    "--cache",
    envvar="COLLEGIUM_FEATURES",
    type=click.Path(file_okay=False, path_type=Path),
    default=CACHE,
    show_default=True,
    help="Encoder vectors are kept here.",
)
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def report(
    routers: tuple[Path, ...],
    data: str,
    train_data: tuple[str, ...],
    out: Path | None,
    text_column: str,
    label_column: str,
    source_column: str,
    drop_seen: bool,
    drop_unknown: bool,
    seed: int,
    cache: Path,
    as_json: bool,
) -> None:
    """Report on ROUTERS, side by side where there are several: one HTML page, PNGs, or JSON."""
    if out is None and not as_json:
        raise click.UsageError("give --out for the page, --json for the data, or both")
    columns = Columns(text_column, label_column, source_column)
    try:
        prompts = read_prompts(data, columns)
        if drop_seen:
            prompts = unseen(routers, prompts)
        trained_on = read_prompts(train_data, columns) if train_data else []
        reports = _measured(routers, prompts, trained_on, drop_unknown, cache.expanduser(), seed)
        page = write_report(reports, out, shlex.join(["collegium", *sys.argv[1:]])) if out else None
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"{error.filename or out}: {error.strerror}") from error
    if as_json:
        click.echo(json.dumps([found.as_dict() for found in reports]))
    else:
        _print(reports)
        click.echo(f"wrote {page}")


@click.command()
@click.argument("folder", type=FOLDER)
@click.option("--data", required=True, help="Labelled prompts that it was not trained on, such as it will get.")
@click.option("--alpha", type=float, required=True, help="Largest share of routed prompts that may go wrong.")
@click.option("--confidence", "level", type=float, default=0.9, show_default=True, help="Of the promise.")
@click.option("--out", type=FOLDER, required=True, help="Folder of the new version.")
@click.option("--text-column", default="text", show_default=True)
@click.option("--label-column", default="label", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def calibrate(
    folder: Path, data: str, alpha: float, level: float, out: Path, text_column: str, label_column: str, as_json: bool
) -> None:
    """Set the threshold of the router in FOLDER so that at most ALPHA of the routed prompts go to a wrong domain."""
    try:
        prompts = read_prompts(data, Columns(text_column, label_column))
        manifest, risk = recalibrated(folder, out, prompts, alpha, level, locate)
    except ValueError as error:
        raise click.ClickException(str(error)) from error
    if as_json:
        click.echo(json.dumps({"version": manifest.version, "path": str(out), **risk.as_dict()}))
    else:
        print_risk(risk)
        click.echo(f"wrote {manifest.version} to {out}")


def _measured(
    routers: tuple[Path, ...],
    prompts: list[Prompt],
    trained_on: list[Prompt],
    drop_unknown: bool,
    cache: Path,
    seed: int,
) -> list[RouterReport]:
    with Console(stderr=True).status("opening") as status:
        if drop_unknown:
            known = set.intersection(*(set(read_artefact(folder)[0].labels) for folder in routers))
            prompts = [prompt for prompt in prompts if prompt.label in known]
        reports = []
        for folder in routers:

            def step(name: str, folder: Path = folder) -> None:
                status.update(f"{folder.name}: {name}")

            reports.append(measure(folder, prompts, trained_on, locate, cache, seed, step))
        return reports


def _print(reports: list[RouterReport]) -> None:
    header, rows = side_by_side(reports)
    console = Console()
    for row in rows:
        for name, value in zip(header, row, strict=True):
            console.print(f"{name:>20}  {value}")
        console.print()
    worst = reports[0].sources[:3]
    if worst:
        console.print("hardest sources: " + ", ".join(f"{row.source} {percent(row.accuracy)} %" for row in worst))
