"""`collegium train`: labelled prompts -> router artefact -> report."""

from __future__ import annotations

import json
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from ..experts.weights import locate
from ..router.encoder import DEFAULT_ENCODER, EncoderError, EncoderId, load_encoder
from ..router.manifest import ArtefactError, Manifest, check_target
from ..router.risk import RiskControl
from ..training.data import Columns, DataError, Prompt, load_prompts
from ..training.data_card import data_card
from ..training.guarantee import train_with_guarantee
from ..training.recipes import COMMITTEE, TEACHERS, TRAINED, Options
from ..training.split import Positions, near_duplicate_groups
from ..training.train import Report, Trained, train
from ..training.tuning import Tuning
from ..training.versions import following, version_before
from .data_card import print_card
from .risk import print_risk

CACHE = Path("~/.cache/collegium/features")


@click.command()
@click.argument("data", nargs=-1, required=True)
@click.option(
    "--out", type=click.Path(path_type=Path), required=True, help="Folder of the artefact; replaced if it is one."
)
@click.option("--text-column", default="text", show_default=True)
@click.option("--label-column", default="label", show_default=True)
@click.option("--source-column", default="source", show_default=True, help="Where a row came from, if the rows say so.")
@click.option("--labels", help="All labels that there should be, comma-separated.  [default: those in DATA]")
@click.option("--kind", type=click.Choice(TRAINED), default="frozen", show_default=True, help="See docs/routers.md.")
@click.option(
    "--members",
    default=",".join(COMMITTEE),
    show_default=True,
    help="Kinds that a committee joins, or a cascade asks one after the other.",
)
@click.option(
    "--tune-prompts",
    type=click.IntRange(min=1),
    default=Tuning().prompts,
    show_default=True,
    help="Prompts that fine-tuning draws in all, of few rows each about four times.",
)
@click.option("--teacher", type=click.Choice(TEACHERS), help="Kind whose probabilities a static router learns too.")
@click.option("--encoder", default=DEFAULT_ENCODER, show_default=True, help="Hub id, folder, or wheel:NAME.")
@click.option("--revision", help="Revision of a hub id.")
@click.option("--name", help="Name of the router.  [default: the folder's]")
@click.option(
    "--precision", default=0.9, show_default=True, help="Abstain so that this share of routed prompts is right."
)
@click.option(
    "--alpha", type=float, help="Promise that at most this share of routed prompts goes wrong, instead of --precision."
)
@click.option("--confidence", type=float, default=0.9, show_default=True, help="Of the promise that --alpha asks for.")
@click.option(
    "--hold-out-sources", is_flag=True, help="Hold out whole sources (column `source`) to calibrate and score."
)
@click.option(
    "--spelling/--no-spelling", default=True, show_default=True, help="Undo slips in unknown words of a prompt."
)
@click.option(
    "--parent",
    type=click.Path(path_type=Path),
    help="Router that this one follows.  [default: the one that it replaces]",
)
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
    data: tuple[str, ...],
    out: Path,
    text_column: str,
    label_column: str,
    source_column: str,
    labels: str | None,
    kind: str,
    members: str,
    tune_prompts: int,
    teacher: str | None,
    encoder: str,
    revision: str | None,
    name: str | None,
    precision: float,
    alpha: float | None,
    confidence: float,
    hold_out_sources: bool,
    spelling: bool,
    parent: Path | None,
    seed: int,
    cache: Path,
    as_json: bool,
) -> None:
    """Train a router from DATA: files (JSONL, CSV, both also .gz, Parquet), folders of such, or hf:owner/name[:split].

    Rows have a text and a label, and may name their source.
    """
    try:
        options = Options(
            name=name or out.absolute().name,
            seed=seed,
            precision=precision,
            hold_out_sources=hold_out_sources,
            spelling=spelling,
            members=tuple(member.strip() for member in members.split(",")),
            teacher=teacher,
            tuning=Tuning(prompts=tune_prompts),
        )
        check_target(out)
        before = version_before(out, parent)
        wanted = {label.strip() for label in labels.split(",")} if labels else set()
        prompts = load_prompts(data, Columns(text_column, label_column, source_column), wanted)
        groups = near_duplicate_groups([prompt.text for prompt in prompts])
        card = data_card(prompts, groups)
        if not as_json:
            print_card(card, Console(stderr=True))
        promise = None if alpha is None else (alpha, confidence)
        trained = _train(prompts, kind, EncoderId(encoder, revision), options, promise, cache.expanduser(), groups)
        manifest = following(trained, before).save(out)
    except (DataError, ArtefactError, EncoderError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    except OSError as error:
        raise click.ClickException(f"{error.filename or cache}: {error.strerror}") from error
    if as_json:
        report = trained.report.as_dict()
        promised = {"risk": trained.risk.as_dict()} if trained.risk else {}
        version = {"version": manifest.version, "parent": manifest.parent, "path": str(out)}
        click.echo(json.dumps({**version, "data": card.as_dict(), **report, **promised}))
    else:
        _print(trained.report, trained.risk, manifest, out)


def _train(
    prompts: list[Prompt],
    kind: str,
    encoder: EncoderId,
    options: Options,
    promise: tuple[float, float] | None,
    cache: Path,
    groups: Positions,
) -> Trained:
    with Progress(console=Console(stderr=True), transient=True, disable=not Console(stderr=True).is_terminal) as bar:
        task = bar.add_task(f"reading {len(prompts)} prompts", total=len(prompts))
        loaded = None if kind == "tfidf" else load_encoder(encoder, options.text.tokens, locate)

        def advance(done: int, total: int) -> None:
            bar.update(task, completed=done, total=total)

        if promise:
            return train_with_guarantee(prompts, kind, options, *promise, loaded, cache, advance, groups)
        return train(prompts, kind, loaded, options, cache, advance, groups)


def _print(report: Report, risk: RiskControl | None, manifest: Manifest, out: Path) -> None:
    console, held = Console(), report.held_out
    table = Table("domain", "rows", "precision", "recall", "F1", title="held-out prompts")
    for domain in held.domains:
        precision = "-" if domain.precision is None else f"{domain.precision:.3f}"
        table.add_row(domain.domain, str(domain.rows), precision, f"{domain.recall:.3f}", f"{domain.f1:.3f}")
    console.print(table)
    scaled = " and vector scaling" if report.calibration.vector_scaling else ""
    how = f"temperature {report.temperature:.2f}{scaled}"
    console.print(
        f"accuracy {held.accuracy:.3f}, macro-F1 {held.macro_f1:.3f}, ECE {held.ece:.3f} "
        f"({report.ece_before:.3f} before {how}), Brier {held.brier:.3f}"
    )
    if risk:
        print_risk(risk)
    else:
        right = "none of them" if held.precision is None else f"{held.precision:.1%} of them"
        console.print(f"threshold {held.threshold:.3f}: {held.coverage:.1%} of prompts are routed, {right} right")
    if report.duplicates:
        console.print(f"{report.duplicates} near-duplicates were kept on one side of every split")
    console.print(f"wrote {manifest.version} to {out}", soft_wrap=True)
