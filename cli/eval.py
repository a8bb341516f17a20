"""`collegium eval`: is the routing right, and is the routed answer better?"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from ..evals.crossval import PosteriorsOfFold, cross_validate, given_posteriors, trained_posteriors
from ..evals.features import Advance, default_cache, encode_cached, route_cached
from ..evals.outcomes import OutcomesError, read_outcomes
from ..evals.records import RecordError, RunFolder
from ..evals.replay import Judgement, judge
from ..evals.table import Table, build_table, fold_of
from ..evals.text import markdown
from ..experts.weights import locate
from ..router.artefact import load_router
from ..router.encoder import DEFAULT_ENCODER, EncoderError, EncoderId, load_encoder
from ..router.manifest import ArtefactError
from ..router.text import bounded

ENCODER_TOKENS = 256
"""MiniLM's own limit: a replay may read more of a long question than the edge has time for."""


@click.group()
def command() -> None:
    """Measure a pool: replay recorded answers or run tasks against an endpoint."""


@command.command()
@click.option(
    "--outcomes",
    type=click.Path(exists=True, path_type=Path),
    required=True,
    help="File of recorded answers (JSONL, also .gz) or a run's folder.",
)
@click.option("--experts", required=True, help="Comma-separated names; the pool.")
@click.option(
    "--router", type=click.Path(path_type=Path), help="Router artefact.  [default: trained on the other folds]"
)
@click.option("--generalist", help="Its name.  [default: the best single expert of the other folds]")
@click.option("--folds", default=5, show_default=True, help="Folds, grouped by question text.")
@click.option("--cost-weight", default=0.0, show_default=True, help="As in serving; 0 ignores cost.")
@click.option("--prices", default="", help="Cost of a question by expert, e.g. big=72,small=8.  [default: as recorded]")
@click.option("--seed", default=0, show_default=True)
@click.option("--cache", type=click.Path(file_okay=False, path_type=Path), help="Folder of question vectors.")
@click.option("--json", "as_json", is_flag=True, help="Print the judgement as JSON.")
def replay(
    outcomes: Path,
    experts: str,
    router: Path | None,
    generalist: str | None,
    folds: int,
    cost_weight: float,
    prices: str,
    seed: int,
    cache: Path | None,
    as_json: bool,
) -> None:
    """Judge the routing on recorded answers, without asking any model."""
    pool = [name.strip() for name in experts.split(",") if name.strip()]
    try:
        table = _table(outcomes, pool, _prices(prices))
        fold = fold_of(table.samples, folds, seed)
        source, labels, name = _posteriors(table, router, cache or default_cache(), seed)
        crossed = cross_validate(table, fold, labels, source)
        policy = {"router": name, "folds": folds, "seed": seed, "cost_weight": cost_weight, "outcomes": outcomes.name}
        judgement = judge(table, crossed, policy, generalist, cost_weight)
    except (OutcomesError, RecordError, ArtefactError, EncoderError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    _print(judgement, as_json)


def _print(judgement: Judgement, as_json: bool) -> None:
    click.echo(
        json.dumps(judgement.as_dict(), indent=2, allow_nan=False) if as_json else markdown(judgement), nl=as_json
    )


def _table(outcomes: Path, pool: list[str], prices: dict[str, float]) -> Table:
    if outcomes.is_dir():
        run = RunFolder(outcomes)
        return build_table(run.samples(), run.records(), pool, prices)
    return build_table(*read_outcomes(outcomes, pool), pool, prices)


def _prices(text: str) -> dict[str, float]:
    prices = {}
    for item in filter(None, text.split(",")):
        name, _, value = item.partition("=")
        try:
            prices[name.strip()] = float(value)
        except ValueError as error:
            raise ValueError(f"--prices: {item!r} is not name=number") from error
    return prices


def _posteriors(
    table: Table, router: Path | None, cache: Path, seed: int
) -> tuple[PosteriorsOfFold, tuple[str, ...], str]:
    """Where posteriors come from, their labels, and what the result calls it."""
    texts = [bounded(sample.prompt) for sample in table.samples]
    if router is not None:
        loaded = load_router(router, locate)
        with _progress("routing", len(texts)) as advance:
            rows = route_cached(texts, loaded, cache, advance)
        return given_posteriors(rows), loaded.labels, loaded.version
    encoder = load_encoder(EncoderId(DEFAULT_ENCODER), ENCODER_TOKENS, locate)
    with _progress("encoding", len(texts)) as advance:
        vectors = encode_cached(texts, encoder, cache, advance)
    return trained_posteriors(table, vectors, seed), table.domains, "trained on the other folds"


@contextmanager
def _progress(what: str, total: int) -> Iterator[Advance]:
    """A bar with the time left, on a terminal only."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.advance(task, done)
