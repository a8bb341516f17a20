"""`collegium eval run` and `judge`: an endpoint asked a task's questions, and what its answers say of the routing."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Mapping
from pathlib import Path

import click

from ..evals.endpoint import Endpoint
from ..evals.features import default_cache, route_cached
from ..evals.records import Record, RecordError, RunFolder, Sample
from ..evals.replay import EXAMPLES, ROUTED, Known, judge_run
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
from ..evals.tasks import KINDS, Style, TaskError, choice_prompt, cloze_prompt, load_samples
from ..evals.text import run_markdown
from ..experts.card import CardError
from ..experts.pool import load_pool
from ..experts.weights import locate
from ..router.artefact import load_router
from ..router.encoder import EncoderError
from .eval_output import progress_bar, write_page
from .seen import router_behind, unseen_samples


@click.command()
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
@click.option(
    "--plain",
    is_flag=True,
    help="Plain completions for all.  [default: for experts of --pool whose card says chat_template: false]",
)
@click.option("--max-tokens", type=click.IntRange(1), default=512, show_default=True)
@click.option("--concurrency", type=click.IntRange(1), default=8, show_default=True)
@click.option("--pool", help="Pool with the cards: their prices, and who has no chat template.")
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
@click.option(
    "--reuse",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="With --score text: a run of the experts; auto is asked for its route alone and takes their answers.",
)
@click.option("--api-key-env", help="Environment variable that holds the endpoint's key.")
@click.option("--seed", default=0, show_default=True)
@click.option("--report", type=click.Path(file_okay=False, path_type=Path), help="Folder for report.html and figures.")
@click.option(
    "--examples-shown", default=EXAMPLES, show_default=True, help="Won and lost questions on the page, so many each."
)
@click.option("--json", "as_json", is_flag=True, help="Print totals and judgement as JSON.")
def command(
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
    reuse: Path | None,
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
        cards = load_pool(pool) if pool else []
        bare = tuple(card.name for card in cards if card.name in asked and not card.chat_template)
        style = Style(shots, reasoning)
        plan = Plan(kind, asked, method, style, not plain, max_tokens, seed, letters, answer_only, score, bare)
        price = card_prices(cards) if cards else None
        key = os.environ.get(api_key_env) if api_key_env else None
        behind = router or (router_behind(endpoint, key) if ROUTED in asked else None)
        if behind is not None:
            samples = unseen_samples(samples, behind, drop_seen)
        old = {(record.sample, record.target): record for record in RunFolder(reuse).records()} if reuse else None
        records = asyncio.run(_ask(RunFolder(out), endpoint, key, plan, samples, worked, price, concurrency, old))
        judged = kind != "perplexity" and ROUTED in asked and len(asked) > 1
        if per_character and score == "text":
            records = judged_per_character(samples, records)
        known = posteriors_of(samples, router, score, worked, plan.style) if judged and router else None
        judgement = judge_run(samples, records, generalist, examples_shown, known) if judged else None
    except (TaskError, RecordError, RunStoppedError, SandboxError, CardError, EncoderError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    if judgement:
        write_page(judgement, report)
    if as_json:
        shown = {"totals": totals(records), "judgement": judgement.as_dict() if judgement else None}
        click.echo(json.dumps(shown, indent=2, allow_nan=False))
    else:
        click.echo(run_markdown(records, judgement), nl=False)


def posteriors_of(
    samples: list[Sample], folder: Path, score: str, worked: list[Sample] | None = None, style: Style | None = None
) -> Known:
    """What the endpoint's own router says of the questions as they were put.

    Raises:
        ArtefactError: the router cannot be used.
    """
    router = load_router(folder, locate)
    with progress_bar("routing", len(samples)) as advance:
        put = cloze_prompt if score == "text" else choice_prompt
        texts = [put(sample, worked or [], style or Style()) if sample.choices else sample.prompt for sample in samples]
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
    reuse: Mapping[tuple[str, str], Record] | None,
) -> list[Record]:
    with progress_bar("asking", len(samples) * len(plan.targets)) as advance:
        async with Endpoint(url, key) as endpoint:
            return await run_plan(
                folder, endpoint, plan, samples, worked, price, concurrency, lambda record: advance(1), reuse
            )
