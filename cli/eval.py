"""`collegium eval`: is the routing right, and is the routed answer better?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import click

from ..evals.crossval import (
    PosteriorsOfFold,
    QualitiesOfFold,
    cross_validate,
    given_posteriors,
    given_qualities,
    trained_outcomes,
    trained_posteriors,
)
from ..evals.features import default_cache, encode_cached, route_cached
from ..evals.outcomes import OutcomesError, read_outcomes
from ..evals.records import RecordError, RunFolder
from ..evals.replay import EXAMPLES, judge
from ..evals.table import Price, Table, build_table, fold_of, parse_prices
from ..experts.weights import locate
from ..router.artefact import load_router
from ..router.encoder import DEFAULT_ENCODER, EncoderError, EncoderId, load_encoder
from ..router.manifest import ArtefactError
from ..router.text import bounded
from .ensemble import command as ensemble
from .eval_judge import command as judge_runs
from .eval_local import command as local_run
from .eval_output import progress_bar, show, write_page
from .eval_run import command as run
from .mix import command as mix
from .seen import unseen_samples

ENCODER_TOKENS = 256
"""MiniLM's own limit: a replay may read more of a long question than the edge has time for."""


@click.group()
def command() -> None:
    """Measure a pool: replay recorded answers or run tasks against an endpoint."""


command.add_command(ensemble, "ensemble")
command.add_command(mix, "mix")
command.add_command(run, "run")
command.add_command(judge_runs, "judge")
command.add_command(local_run, "local")


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
@click.option("--drop-seen", is_flag=True, help="Leave out what the router was trained on, instead of refusing.")
@click.option(
    "--policy",
    type=click.Choice(["skills", "outcome"]),
    default="skills",
    show_default=True,
    help="Without --router: posterior times skill, or an outcome model of the other folds.",
)
@click.option("--generalist", help="Its name.  [default: the best single expert of the other folds]")
@click.option("--folds", default=5, show_default=True, help="Folds, grouped by question text.")
@click.option("--cost-weight", default=0.0, show_default=True, help="As in serving; 0 ignores cost.")
@click.option(
    "--prices",
    default="",
    help="big=72,small=8: each question; a=2.5/10: a million tokens read and written.  [default: as recorded]",
)
@click.option("--seed", default=0, show_default=True)
@click.option("--cache", type=click.Path(file_okay=False, path_type=Path), help="Folder of question vectors.")
@click.option("--report", type=click.Path(file_okay=False, path_type=Path), help="Folder for report.html and figures.")
@click.option(
    "--examples-shown", default=EXAMPLES, show_default=True, help="Won and lost questions on the page, so many each."
)
@click.option("--json", "as_json", is_flag=True, help="Print the judgement as JSON.")
def replay(
    outcomes: Path,
    experts: str,
    router: Path | None,
    drop_seen: bool,
    policy: str,
    generalist: str | None,
    folds: int,
    cost_weight: float,
    prices: str,
    seed: int,
    cache: Path | None,
    report: Path | None,
    examples_shown: int,
    as_json: bool,
) -> None:
    """Judge the routing on recorded answers, without asking any model."""
    pool = [name.strip() for name in experts.split(",") if name.strip()]
    try:
        table = _table(outcomes, pool, parse_prices(prices), router, drop_seen)
        fold = fold_of(table.samples, folds, seed)
        learnt = _learnt(table, router, policy == "outcome", cache or default_cache(), seed)
        crossed = cross_validate(table, fold, learnt.labels, learnt.posteriors, qualities=learnt.qualities)
        told = {"router": learnt.name, "folds": folds, "seed": seed, "cost_weight": cost_weight}
        told["outcomes"] = outcomes.name
        judgement = judge(table, crossed, told, generalist, cost_weight, examples=examples_shown)
    except (OutcomesError, RecordError, ArtefactError, EncoderError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    write_page(judgement, report)
    show(judgement, as_json)


def _table(outcomes: Path, pool: list[str], prices: dict[str, Price], router: Path | None, drop_seen: bool) -> Table:
    """The table of recorded answers, without questions that the router was trained on."""
    if outcomes.is_dir():
        run = RunFolder(outcomes)
        samples, records = run.samples(), run.records()
    else:
        samples, records = read_outcomes(outcomes, pool)
    if router is not None:
        samples = unseen_samples(samples, router, drop_seen)
    return build_table(samples, records, pool, prices)


@dataclass(frozen=True, eq=False, slots=True)
class _Learnt:
    """Where posteriors come from, their labels, qualities that replace skills, and what the result calls it all."""

    posteriors: PosteriorsOfFold
    labels: tuple[str, ...]
    qualities: QualitiesOfFold | None
    name: str


def _learnt(table: Table, router: Path | None, outcome: bool, cache: Path, seed: int) -> _Learnt:
    texts = [bounded(sample.prompt) for sample in table.samples]
    if router is not None:
        loaded = load_router(router, locate)
        with progress_bar("routing", len(texts)) as advance:
            rows, quality = route_cached(texts, loaded, table.experts, cache, advance)
        given = None if quality is None else given_qualities(quality)
        return _Learnt(given_posteriors(rows), loaded.labels, given, loaded.version)
    encoder = load_encoder(EncoderId(DEFAULT_ENCODER), ENCODER_TOKENS, locate)
    with progress_bar("encoding", len(texts)) as advance:
        vectors = encode_cached(texts, encoder, cache, advance)
    trained = trained_outcomes(table, vectors, encoder, seed) if outcome else None
    name = "outcome model of the other folds" if outcome else "trained on the other folds"
    return _Learnt(trained_posteriors(table, vectors, seed), table.domains, trained, name)
