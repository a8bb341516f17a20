"""`collegium eval`: is the routing right, and is the routed answer better?"""

from __future__ import annotations

import asyncio
import json
import os
import shlex
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from ..evals.crossval import (
    PosteriorsOfFold,
    QualitiesOfFold,
    cross_validate,
    given_posteriors,
    given_qualities,
    trained_outcomes,
    trained_posteriors,
)
from ..evals.endpoint import Endpoint
from ..evals.features import Advance, default_cache, encode_cached, route_cached
from ..evals.outcomes import OutcomesError, read_outcomes
from ..evals.records import Record, RecordError, RunFolder, Sample
from ..evals.replay import EXAMPLES, ROUTED, Judgement, Known, judge, judge_run
from ..evals.runner import (
    Method,
    Plan,
    PriceOf,
    RunStoppedError,
    Score,
    card_prices,
    judged_per_character,
    letter_tokens,
    totals,
)
from ..evals.runner import run as run_plan
from ..evals.sandbox import SandboxError
from ..evals.table import Price, Table, build_table, fold_of, parse_prices
from ..evals.tasks import KINDS, Style, TaskError, choice_prompt, cloze_prompt, load_samples
from ..evals.text import markdown, run_markdown
from ..experts.card import CardError
from ..experts.pool import load_pool
from ..experts.weights import locate
from ..router.artefact import load_router
from ..router.encoder import DEFAULT_ENCODER, EncoderError, EncoderId, load_encoder
from ..router.manifest import ArtefactError
from ..router.text import bounded
from .ensemble import command as ensemble
from .mix import command as mix
from .seen import router_behind, unseen_samples

ENCODER_TOKENS = 256
"""MiniLM's own limit: a replay may read more of a long question than the edge has time for."""


@click.group()
def command() -> None:
    """Measure a pool: replay recorded answers or run tasks against an endpoint."""


command.add_command(ensemble, "ensemble")
command.add_command(mix, "mix")


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
    _report(judgement, report)
    _print(judgement, as_json)


@command.command()
@click.option(
    "--task", required=True, help="JSONL, CSV or Parquet file, hf:owner/name[/configuration][:split], or a known name."
)
@click.option("--kind", type=click.Choice(KINDS), default="choice", show_default=True)
@click.option("--endpoint", required=True, help="OpenAI-compatible base URL, ending in /v1.")
@click.option("--targets", required=True, help="Comma-separated models to ask; auto is the routed one.")
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="The run's folder; resumed."
)
@click.option("--method", type=click.Choice(["logprob", "generate"]), default="logprob", show_default=True)
@click.option(
    "--score",
    type=click.Choice(["letter", "text"]),
    default="letter",
    show_default=True,
    help="What of a choice is scored by its log-probability; text: the question is put without its choices.",
)
@click.option("--per-character", is_flag=True, help="With --score text: judge by the log-probability a character.")
@click.option("--generalist", help="Its name.  [default: the best single expert of the other half]")
@click.option("--limit", type=click.IntRange(1), help="So many questions, drawn by the seed.")
@click.option(
    "--examples", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Worked examples for --shots."
)
@click.option("--shots", type=click.IntRange(0), default=0, show_default=True)
@click.option("--reasoning", is_flag=True, help="Ask for the steps before the answer.")
@click.option("--plain", is_flag=True, help="Plain completion instead of the chat template.")
@click.option("--max-tokens", type=click.IntRange(1), default=512, show_default=True)
@click.option("--concurrency", type=click.IntRange(1), default=8, show_default=True)
@click.option("--pool", help="Pool with the cards' prices.")
@click.option(
    "--router",
    type=click.Path(path_type=Path),
    help="The artefact that the endpoint routes with: draws the curves and the calibration too.",
)
@click.option("--drop-seen", is_flag=True, help="Leave out what the router was trained on, instead of refusing.")
@click.option(
    "--tokenizer",
    type=click.Path(exists=True, path_type=Path),
    help="The experts' tokenizer.json: scores rare letters by forcing them instead of by echo.",
)
@click.option("--answer-only", is_flag=True, help="With --tokenizer: one call a question, no log-probabilities kept.")
@click.option("--api-key-env", help="Environment variable that holds the endpoint's key.")
@click.option("--seed", default=0, show_default=True)
@click.option("--report", type=click.Path(file_okay=False, path_type=Path), help="Folder for report.html and figures.")
@click.option(
    "--examples-shown", default=EXAMPLES, show_default=True, help="Won and lost questions on the page, so many each."
)
@click.option("--json", "as_json", is_flag=True, help="Print totals and judgement as JSON.")
def run(
    task: str,
    kind: str,
    endpoint: str,
    targets: str,
    out: Path,
    method: Method,
    score: Score,
    per_character: bool,
    generalist: str | None,
    limit: int | None,
    examples: Path | None,
    shots: int,
    reasoning: bool,
    plain: bool,
    max_tokens: int,
    concurrency: int,
    pool: str | None,
    router: Path | None,
    drop_seen: bool,
    tokenizer: Path | None,
    answer_only: bool,
    api_key_env: str | None,
    seed: int,
    report: Path | None,
    examples_shown: int,
    as_json: bool,
) -> None:
    """Ask an endpoint a task's questions, score the answers, and compare."""
    try:
        samples = load_samples(task, kind, limit, seed)
        worked = load_samples(examples, kind) if examples else []
        asked = tuple(name.strip() for name in targets.split(",") if name.strip())
        letters = letter_tokens(tokenizer) if tokenizer else ()
        plan = Plan(
            kind, asked, method, Style(shots, reasoning), not plain, max_tokens, seed, letters, answer_only, score
        )
        price = card_prices(load_pool(pool)) if pool else None
        key = os.environ.get(api_key_env) if api_key_env else None
        behind = router or (router_behind(endpoint, key) if ROUTED in asked else None)
        if behind is not None:
            samples = unseen_samples(samples, behind, drop_seen)
        records = asyncio.run(_ask(RunFolder(out), endpoint, key, plan, samples, worked, price, concurrency))
        judged = kind != "perplexity" and ROUTED in asked and len(asked) > 1
        if per_character and score == "text":
            records = judged_per_character(samples, records)
        known = _known(samples, worked, plan, router) if judged and router else None
        judgement = judge_run(samples, records, generalist, examples_shown, known) if judged else None
    except (TaskError, RecordError, RunStoppedError, SandboxError, CardError, EncoderError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    if judgement:
        _report(judgement, report)
    if as_json:
        shown = {"totals": totals(records), "judgement": judgement.as_dict() if judgement else None}
        click.echo(json.dumps(shown, indent=2, allow_nan=False))
    else:
        click.echo(run_markdown(records, judgement), nl=False)


def _known(samples: list[Sample], worked: list[Sample], plan: Plan, folder: Path) -> Known:
    """Posteriors of the questions as they were put, by the endpoint's own router."""
    router = load_router(folder, locate)
    with _progress("routing", len(samples)) as advance:
        put = cloze_prompt if plan.score == "text" else choice_prompt
        texts = [put(sample, worked, plan.style) if sample.choices else sample.prompt for sample in samples]
        rows, _ = route_cached(texts, router, (), default_cache(), advance)
    return Known(router.labels, {sample.id: row.tolist() for sample, row in zip(samples, rows, strict=True)})


async def _ask(
    folder: RunFolder,
    url: str,
    key: str | None,
    plan: Plan,
    samples: list[Sample],
    worked: list[Sample],
    price: PriceOf | None,
    concurrency: int,
) -> list[Record]:
    with _progress("asking", len(samples) * len(plan.targets)) as advance:
        async with Endpoint(url, key) as endpoint:
            return await run_plan(
                folder, endpoint, plan, samples, worked, price, concurrency, lambda record: advance(1)
            )


def _report(judgement: Judgement, folder: Path | None) -> None:
    if folder is None:
        return
    from ..evals.report import write_report

    page = write_report(judgement, folder, shlex.join(["collegium", *sys.argv[1:]]))
    click.echo(f"report: {page}", err=True)


def _print(judgement: Judgement, as_json: bool) -> None:
    click.echo(
        json.dumps(judgement.as_dict(), indent=2, allow_nan=False) if as_json else markdown(judgement), nl=as_json
    )


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
        with _progress("routing", len(texts)) as advance:
            rows, quality = route_cached(texts, loaded, table.experts, cache, advance)
        given = None if quality is None else given_qualities(quality)
        return _Learnt(given_posteriors(rows), loaded.labels, given, loaded.version)
    encoder = load_encoder(EncoderId(DEFAULT_ENCODER), ENCODER_TOKENS, locate)
    with _progress("encoding", len(texts)) as advance:
        vectors = encode_cached(texts, encoder, cache, advance)
    trained = trained_outcomes(table, vectors, encoder, seed) if outcome else None
    name = "outcome model of the other folds" if outcome else "trained on the other folds"
    return _Learnt(trained_posteriors(table, vectors, seed), table.domains, trained, name)


@contextmanager
def _progress(what: str, total: int) -> Iterator[Advance]:
    """A bar with the time left, on a terminal only."""
    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal, transient=True) as progress:
        task = progress.add_task(what, total=total)
        yield lambda done: progress.advance(task, done)
