"""`collegium route`: explain where prompts would go, without a server."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console
from rich.progress import track
from rich.table import Table

from ..experts.card import Card, CardError, relative_costs
from ..experts.pool import load_pool
from ..experts.weights import locate
from ..router.artefact import STARTER, ArtefactError, Router, load_router
from ..router.decision import Candidate, Decision, NoExpertError, Policy, Score, decide
from ..router.encoder import EncoderError
from ..router.posterior import Posterior
from ..router.skills import candidate
from ..router.text import bounded
from ..training.data import DataError, read_records


@click.command()
@click.argument("prompt", required=False)
@click.option(
    "--router", "folder", type=click.Path(path_type=Path), default=STARTER, help="Artefact.  [default: starter]"
)
@click.option("--pool", help="Name or path of a pool: also say which of its experts would answer, and why.")
@click.option("--cost-weight", default=0.0, show_default=True, help="Probability that one generalist's cost is worth.")
@click.option(
    "--file", "file", type=click.Path(path_type=Path), help="JSONL or CSV with a text column, instead of PROMPT."
)
@click.option("--text-column", default="text", show_default=True, help="Column of --file.")
@click.option("--json", "as_json", is_flag=True, help="One JSON object for each prompt, in order.")
def command(
    prompt: str | None,
    folder: Path,
    pool: str | None,
    cost_weight: float,
    file: Path | None,
    text_column: str,
    as_json: bool,
) -> None:
    """Say which domain PROMPT belongs to and, with --pool, which expert would answer it."""
    if (prompt is None) == (file is None):
        raise click.UsageError("give either a PROMPT or --file")
    try:
        texts = [prompt] if prompt is not None else _texts(file, text_column) if file else []
        policy = Policy(cost_weight)
        experts = _candidates(load_pool(pool)) if pool else None
        router = load_router(folder, locate)
        console = Console(stderr=True)
        rows = track(
            texts, "routing", console=console, transient=True, disable=not console.is_terminal or len(texts) == 1
        )
        posteriors = [router.posterior(text) for text in rows]
        decisions = [decide(posterior, experts, policy) if experts else None for posterior in posteriors]
    except (ArtefactError, EncoderError, CardError, DataError, NoExpertError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    for text, posterior, decision in zip(texts, posteriors, decisions, strict=True):
        if as_json:
            click.echo(json.dumps(_record(posterior, decision)))
        elif file is None:
            _explain(router, posterior, decision)
        else:
            chosen = f"  -> {decision.expert}" if decision else ""
            click.echo(f"{_domain(posterior)}{chosen}  {bounded(text)[:80]!r}")


def _texts(file: Path, column: str) -> list[str]:
    """The texts of a file; every bad row is found before anything is routed.

    Raises:
        DataError: a row cannot be read, or has no text.
    """
    texts: list[str] = []
    for row, record in read_records(file):
        text = record.get(column)
        if not isinstance(text, str) or not bounded(text):
            problem = f"there is no column {column!r}" if column not in record else f"{column!r} is no text, or empty"
            raise DataError(f"{file}: row {row}: {problem}")
        texts.append(text)
    return texts


def _candidates(cards: Sequence[Card]) -> list[Candidate]:
    """Experts by what their cards declare, as if all were ready."""
    costs = relative_costs(cards)
    return [
        candidate(
            card.name,
            declared=card.domains,
            default_skill=card.declared_default,
            admitted=card.admitted,
            generalist=card.generalist,
            cost=costs[card.name],
            context_window=card.limits.context_window,
            capabilities=card.capabilities,
        )
        for card in cards
    ]


def _record(posterior: Posterior, decision: Decision | None) -> dict[str, object]:
    record: dict[str, object] = {
        "domain": posterior.domain,
        "confidence": posterior.confidence,
        "abstained": posterior.abstained,
        "novelty": posterior.novelty,
        "posterior": posterior.as_dict(),
    }
    if posterior.qualities:
        record["qualities"] = dict(posterior.qualities)
    if decision:
        record |= {"expert": decision.expert, "runner_up": decision.runner_up, "reason": decision.reason}
        record["scores"] = [_score_record(score) for score in decision.scores]
    return record


def _score_record(score: Score) -> dict[str, object]:
    return {
        "expert": score.expert,
        "quality": score.quality,
        "cost": score.cost,
        "utility": score.utility,
        "excluded": score.excluded,
    }


def _explain(router: Router, posterior: Posterior, decision: Decision | None) -> None:
    console = Console()
    console.print(f"{_domain(posterior)}, by router {router.version}")
    table = Table("domain", "probability")
    for domain, probability in sorted(posterior.as_dict().items(), key=lambda item: -item[1]):
        table.add_row(domain, f"{probability:.3f}")
    console.print(table)
    if decision is None:
        _explain_qualities(console, posterior)
        return
    scores = Table("expert", "quality", "cost", "utility", "not allowed")
    for score in decision.scores:
        numbers = (f"{value:.3f}" for value in (score.quality, score.cost, score.utility))
        scores.add_row(score.expert, *numbers, score.excluded or "")
    console.print(scores)
    console.print(f"{decision.expert} answers: {decision.reason}")


def _explain_qualities(console: Console, posterior: Posterior) -> None:
    if posterior.qualities:
        table = Table("expert", "quality")
        for expert, quality in sorted(posterior.qualities.items(), key=lambda item: -item[1]):
            table.add_row(expert, f"{quality:.3f}")
        console.print(table)


def _domain(posterior: Posterior) -> str:
    unsure = f", unsure (under {posterior.threshold:.2f})" if posterior.confidence < posterior.threshold else ""
    novel = f", novel (beyond {posterior.novelty:.1%} of prompts)" if posterior.novel else ""
    return f"{posterior.domain} {posterior.confidence:.2f}{unsure}{novel}"
